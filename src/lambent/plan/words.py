"""A plan in words: each figure with the formula beside it and one sentence on what it means.

For: the table in the terminal and the HTML report, so that both say the same. It must not simulate. Outcomes: strings
for people who have never sized a Lambda function.
"""

from __future__ import annotations

import dataclasses

from lambent.plan import formulas
from lambent.plan.planner import Request, reserved_too_much
from lambent.plan.recommend import Trial
from lambent.plan.summary import Summary


@dataclasses.dataclass(frozen=True)
class Line:
    name: str
    simulated: str
    formula: str
    words: str


def opening(request: Request, summary: Summary) -> str:
    """The answer, and why, in a few lines."""
    duration_s = request.mean_duration_s()
    if request.rate is None or duration_s is None:
        return (
            f"{summary.invocations:,} requests of {summary.functions_count:,} "
            f"{'function' if summary.functions_count == 1 else 'functions'} in {_time(summary.simulated_s)}: "
            f"{summary.mean_concurrency:,.4g} in flight on average, {summary.peak_concurrency:,} at the peak.\n"
            "An environment serves one request at a time, so this is also how many environments are busy."
        )
    rate = request.shaped_rate().mean
    load = formulas.concurrency(rate, duration_s)
    return (
        f"Concurrency: {load:,.6g}\n"
        f"{rate:,.6g} requests a second x {duration_s:,.6g} seconds each = {load:,.6g} requests in flight on average.\n"
        "An environment serves one request at a time, so on average as many environments are busy. Requests do not "
        "come evenly: at some moments more are in flight, and each then needs an environment of its own."
    )


def lines(request: Request, summary: Summary) -> list[Line]:
    return [
        *_concurrency(request, summary),
        *_throttles(request, summary),
        *_provisioned(request, summary),
        *_environments(request, summary),
        *_latency(summary),
        *_cost(summary),
    ]


def _load(request: Request) -> float | None:
    """Rate x duration, where both are known."""
    duration_s = request.mean_duration_s()
    if request.rate is None or duration_s is None:
        return None
    return formulas.concurrency(request.shaped_rate().mean, duration_s)


def _limit(request: Request) -> int:
    everyone, named = request.reservations()
    return named.get("function", everyone if everyone is not None else request.account_concurrency)


def _by_chance(request: Request) -> bool:
    """Do the formulas for a steady Poisson stream hold?"""
    return request.rate is not None and request.shape == "steady" and request.arrivals == "poisson" and request.rate > 0


def _concurrency(request: Request, summary: Summary) -> list[Line]:
    load = _load(request)
    mean = p99 = ""
    words = "requests a second x seconds each (Little's law)"
    if load is not None:
        limit = _limit(request)
        refused = formulas.erlang_b(load, limit) if _by_chance(request) else 0.0
        mean = f"{load * (1 - refused):,.4g}"
        if refused >= 0.0005:
            words += f"; without the {refused:.1%} that are throttled"
        elif _by_chance(request):
            p99 = f"{formulas.busy_percentile(load, 99):,}"
    return [
        Line("concurrency, mean", f"{summary.mean_concurrency:,.4g}", mean, words),
        Line("concurrency, p95", f"{summary.concurrency_p95:,}", "", "95 % of the time it is not above this"),
        Line("concurrency, p99", f"{summary.concurrency_p99:,}", p99, "the same for 99 %; without a limit"),
        Line("concurrency, peak", f"{summary.peak_concurrency:,}", "", "the limit must not be below this"),
    ]


def _throttles(request: Request, summary: Summary) -> list[Line]:
    load = _load(request)
    formula, words = "", f"refused with 429; the account's limit is {request.account_concurrency:,}"
    if load is not None and _by_chance(request):
        limit = _limit(request)
        formula = f"{formulas.erlang_b(load, limit):.4%}"
        words = f"refused with 429: Erlang B, {load:,.4g} in flight wanted, {limit:,} allowed"
    found = [Line("throttles", f"{summary.throttles:,} ({summary.throttle_rate:.4%})", formula, words)]
    if summary.throttles_no_room:
        found.append(
            Line("", f"{summary.throttles_no_room:,}", "", "of these: no worker had room for a new environment")
        )
    for reason, count in summary.throttles_by_reason.items():
        found.append(Line("", f"{count:,}", "", f"{reason}: {_REASONS.get(reason, '')}"))
    if summary.throttles_first_s is not None and summary.throttles_last_s is not None:
        span = f"{_time(summary.throttles_first_s)} .. {_time(summary.throttles_last_s)}"
        found.append(Line("", span, "", "when: from the first to the last stretch of time with throttles"))
    return found


_REASONS = {
    "ConcurrentInvocationLimitExceeded": "the account's limit, or environments wanted faster than they may start",
    "FunctionInvocationRateLimitExceeded": "more than 10 requests a second for each unit of concurrency",
    "ReservedFunctionConcurrentInvocationLimitExceeded": "the function's reserved concurrency is its ceiling",
    "ReservedFunctionInvocationRateLimitExceeded": "more than 10 requests a second for each reserved unit",
}


def _provisioned(request: Request, summary: Summary) -> list[Line]:
    found = summary.provisioned
    if found is None:
        return []
    load, count = _load(request), _steady_provisioned(request)
    spills = utilised = ""
    words = "found all provisioned environments busy, and ran on demand"
    if load is not None and count and _by_chance(request):
        blocked = formulas.erlang_b(load, count)
        spills, utilised = f"{blocked:.4%}", f"{load * (1 - blocked) / count:.1%}"
        words += f": Erlang B, {load:,.4g} in flight wanted, {count:,} provisioned"
    return [
        Line("provisioned, mean", f"{found.mean:,.4g}", "", "environments that are asked for, and paid in use or not"),
        Line("provisioned, peak", f"{found.peak:,}", "", "they are taken out of the account's concurrency"),
        Line("provisioned, requests", f"{found.invocations:,}", "", "served without a cold start"),
        Line("spillovers", f"{found.spillovers:,} ({found.spillover_rate:.4%})", spills, words),
        Line("provisioned, utilisation", f"{found.utilisation:.1%}", utilised, "busy / provisioned, over time"),
    ]


def _steady_provisioned(request: Request) -> int | None:
    """The count, if it never changes."""
    own = request.provisioning("function")
    return own.count if own is not None and not own.schedule and own.target is None else None


def _environments(request: Request, summary: Summary) -> list[Line]:
    pool = None if summary.provisioned else _pool(request)
    states = summary.environments_by_state
    by_state = ", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in states.items() if value > 0)
    cold = f"{summary.cold_starts:,} ({summary.cold_start_rate:.4%})"
    return [
        Line(
            "environments, mean",
            f"{summary.mean_environments:,.4g}",
            f"{pool.environments:,.4g}" if pool else "",
            "alive, busy or idle; formula: Mahmoudi-Khazaei, in the long run" if pool else "alive, busy or idle",
        ),
        Line("", "", "", f"of these on average: {by_state}"),
        Line("environments, peak", f"{summary.peak_environments:,}", "", "alive at the same time"),
        Line("environments started", f"{summary.environments_started:,}", "", "each begins with Init, or a restore"),
        Line(
            "cold starts",
            cold,
            f"{pool.cold_share:.4%}" if pool else "",
            "requests that found no idle environment and waited for Init; the formula leaves the first fill out"
            if pool
            else "requests that found no idle environment and waited for Init",
        ),
        Line("utilisation", f"{summary.utilisation:.1%}", f"{pool.utilisation:.1%}" if pool else "", "busy / alive"),
    ]


def _pool(request: Request) -> formulas.WarmPool | None:
    load, duration_s = _load(request), request.mean_duration_s()
    profile = request.rules()
    cold_s = request.restore_s if request.snap_start else request.init_s
    if load is None or not duration_s or not _by_chance(request) or profile.life_ns is not None:
        return None
    limit = _limit(request)
    # Where requests are refused the chain says nothing; beyond some thousands it takes too long.
    if profile.idle_ns == 0 or load > 2_000 or formulas.erlang_b(load, limit) > 1e-6:
        return None
    assert request.rate is not None
    return formulas.warm_pool(request.rate, duration_s, duration_s + cold_s, profile.idle_ns / 1e9, limit)


def _latency(summary: Summary) -> list[Line]:
    latency = summary.latency_ms
    return [
        Line("latency, p50", _ms(latency["p50"]), "", "Init, if cold, and duration; half of the requests are faster"),
        Line("latency, p95", _ms(latency["p95"]), "", ""),
        Line("latency, p99", _ms(latency["p99"]), "", "one in a hundred is slower"),
        Line("latency, max", _ms(latency["max"]), "", ""),
    ]


def _cost(summary: Summary) -> list[Line]:
    cost = summary.cost
    duration = f"{summary.gb_s:,.6g} GB-s on demand, of which Init {summary.init_gb_s:,.4g}"
    found = [
        Line("cost, requests", _usd(cost.requests_usd), "", f"{summary.served:,} served at 0.20 USD a million"),
        Line("cost, duration", _usd(cost.duration_usd), "", duration),
    ]
    if summary.provisioned is not None:
        kept, used = summary.provisioned.kept_gb_s, summary.provisioned.used_gb_s
        found += [
            Line("cost, provisioned", _usd(cost.provisioned_kept_usd), "", f"{kept:,.6g} GB-s kept"),
            Line("", _usd(cost.provisioned_used_usd), "", f"{used:,.6g} GB-s used, at their lower price"),
        ]
    if cost.snap_start_cache_usd:
        found += [
            Line("cost, SnapStart cache", _usd(cost.snap_start_cache_usd), "", "3 hours at least; none for Java"),
            Line("cost, SnapStart restores", _usd(cost.snap_start_restore_usd), "", "none for Java"),
        ]
    return [
        *found,
        Line("cost, 30 days", _usd(cost.month_usd), "", f"if it went on like this; {summary.prices}; no free tier"),
    ]


def notes(request: Request, summary: Summary) -> list[str]:
    """What the reader should know about this plan in particular."""
    found = []
    if summary.timeouts:
        found.append(f"{summary.timeouts:,} requests were cut off by the timeout of {request.timeout_s:g} s.")
    if summary.restore_timeouts:
        found.append(f"{summary.restore_timeouts:,} requests failed because the restore took 10 s or more.")
    if summary.evictions:
        found.append(f"{summary.evictions:,} idle environments were given up to make room for others.")
    if summary.recorded is not None:
        was = summary.recorded
        found.append(
            f"The server itself: {was.invocations:,} invocations, {was.cold_starts:,} cold starts, "
            f"{was.environments_started:,} environments started, {was.throttles:,} throttles, "
            f"{was.peak_concurrency:,} in flight at the peak, {was.spillovers:,} spillovers."
        )
    refused = reserved_too_much(request, summary.functions_count)
    if refused is not None:
        found.append(refused)
    if request.init_s == 0 and request.rate is not None and not request.snap_start:
        found.append("Init is taken as 0 s here: give --init 0.3, say, to see what cold starts cost.")
    return found


def option_words(trial: Trial) -> str:
    """The setting as options; for several functions one after the other."""
    words = []
    several = len(trial.choice) > 1 or "function" not in trial.choice
    for name, (reserved, provisioned) in trial.choice.items():
        prefix = f"{name}=" if several else ""
        if provisioned:
            words.append(f"--provisioned {prefix}{provisioned}")
        if reserved is not None:
            words.append(f"--reserved {prefix}{reserved}")
    if trial.idle_s_given is not None:
        words.append(f"--idle-seconds {trial.idle_s:g}")
    return " ".join(words) or "as it was given"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:,.4g} s"
    if seconds < 7_200:
        return f"{seconds / 60:,.4g} min"
    return f"{seconds / 3_600:,.4g} h"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.4g} ms" if milliseconds < 10_000 else f"{milliseconds / 1_000:,.4g} s"


def _usd(dollars: float) -> str:
    return f"{dollars:,.4f} USD" if dollars < 100 else f"{dollars:,.2f} USD"
