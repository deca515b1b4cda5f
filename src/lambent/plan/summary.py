"""A finished simulation in numbers with names and units: what `--json` prints and tables and plots are made of.

For: every output of the planner. It must not run anything. Outcomes: a `Summary`, whose first seven fields are the
fixed interface for scripts; fields are added, never renamed.

Words: an *invocation* here is a request, served or throttled. Concurrency is the number of requests in flight, Init
included; its mean and percentiles are over time. An *environment* counts from its start to its end, busy or not.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from lambent.model.limits import NS_PER_MS, NS_PER_S
from lambent.plan.cost import PRICES_DATE, PRICES_REGION, Cost, Usage, cost
from lambent.plan.recorded import Actual
from lambent.plan.simulator import FunctionCounts, Simulation
from lambent.plan.workload import PlannedFunction

_LATENCY_PERCENTS = (50, 90, 95, 99, 99.9)
#: Functions that are listed one by one.
FUNCTIONS_LISTED_MAX = 20


@dataclasses.dataclass(frozen=True)
class FunctionLine:
    """One function of the account."""

    name: str
    memory_mib: int
    reserved: int | None
    invocations: int
    cold_starts: int
    throttles: int
    #: On demand and in provisioned environments.
    gb_s: float
    #: On average over time.
    provisioned: float = 0.0
    provisioned_invocations: int = 0
    spillovers: int = 0
    environments_peak: int = 0


@dataclasses.dataclass(frozen=True)
class ProvisionedLine:
    """Provisioned concurrency of all functions together."""

    #: Asked for, on average over time, and at most.
    mean: float
    peak: int
    invocations: int
    #: Requests that ran on demand because all provisioned environments were busy.
    spillovers: int
    #: Of the requests of these functions that were served.
    spillover_rate: float
    #: Requests in provisioned environments over these environments, on average over time.
    utilisation: float
    kept_gb_s: float
    used_gb_s: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """See the head of this module."""

    invocations: int
    cold_starts: int
    environments_started: int
    throttles: int
    peak_concurrency: int
    mean_concurrency: float
    mean_environments: float
    #: invocations - throttles
    served: int
    #: Of the requests that were served.
    cold_start_rate: float
    #: Of all requests.
    throttle_rate: float
    throttles_by_reason: dict[str, int]
    #: Those for which no worker had room; AWS's reason for them is the account's limit.
    throttles_no_room: int
    #: Seconds from the start to the first and the last stretch with throttles; None: there were none.
    throttles_first_s: float | None
    throttles_last_s: float | None
    timeouts: int
    restore_timeouts: int
    #: Idle environments that were given up for others.
    evictions: int
    concurrency_p50: int
    concurrency_p95: int
    concurrency_p99: int
    peak_environments: int
    #: Averages: init, busy, idle, provisioned_busy, provisioned_idle (Init of provisioned ones counts as idle).
    environments_by_state: dict[str, float]
    #: None: there is none.
    provisioned: ProvisionedLine | None
    #: Busy environments over environments, on average.
    utilisation: float
    #: Init and duration, throttled requests left out: "p50", "p90" and so on, "mean", "max".
    latency_ms: dict[str, float]
    simulated_s: float
    mean_rate: float
    gb_s: float
    init_gb_s: float
    cost: Cost
    prices: str
    profile: str
    account_concurrency: int
    functions: list[FunctionLine]
    functions_count: int
    timeline: list[dict[str, float]]
    #: What the server did whose recording this is.
    recorded: Actual | None = None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"cost_usd": self.cost.total_usd}


def summarise(simulation: Simulation, architecture: str = "x86_64", actual: Actual | None = None) -> Summary:
    seconds = (simulation.end_ns - simulation.start_ns) / NS_PER_S
    lines = _functions(simulation, seconds)
    busy, environments, latency = simulation.busy_measured, simulation.environments_measured, simulation.latency
    served = simulation.invocations - simulation.throttled
    provisioned = _provisioned(simulation)
    usage = _usage(simulation)
    timeline = _timeline(simulation)
    throttled_s = [point["start_s"] for point in timeline if point["throttles"]]
    return Summary(
        invocations=simulation.invocations,
        cold_starts=simulation.cold_starts,
        environments_started=simulation.environments_started,
        throttles=simulation.throttled,
        peak_concurrency=busy.peak,
        mean_concurrency=busy.mean(),
        mean_environments=environments.mean(),
        served=served,
        cold_start_rate=simulation.cold_starts / served if served else 0.0,
        throttle_rate=simulation.throttled / simulation.invocations if simulation.invocations else 0.0,
        throttles_by_reason={reason.value: count for reason, count in simulation.throttles.items()},
        throttles_no_room=simulation.throttles_no_room,
        throttles_first_s=throttled_s[0] if throttled_s else None,
        throttles_last_s=throttled_s[-1] if throttled_s else None,
        timeouts=simulation.timeouts,
        restore_timeouts=simulation.restore_timeouts,
        evictions=simulation.evictions,
        concurrency_p50=busy.percentile(50),
        concurrency_p95=busy.percentile(95),
        concurrency_p99=busy.percentile(99),
        peak_environments=environments.peak,
        environments_by_state=_states(simulation),
        provisioned=provisioned,
        utilisation=busy.integral() / environments.integral() if environments.integral() else 0.0,
        latency_ms={f"p{percent:g}": latency.percentile(percent) / NS_PER_MS for percent in _LATENCY_PERCENTS}
        | {"mean": latency.mean() / NS_PER_MS, "max": latency.high / NS_PER_MS},
        simulated_s=seconds,
        mean_rate=simulation.invocations / seconds if seconds else 0.0,
        gb_s=usage.gb_s,
        init_gb_s=usage.init_gb_s,
        cost=cost(usage, seconds, architecture),
        prices=f"AWS {PRICES_REGION}, {architecture}, {PRICES_DATE}",
        profile=simulation.profile.name,
        account_concurrency=simulation.account_concurrency,
        functions=sorted(lines, key=lambda line: line.gb_s, reverse=True)[:FUNCTIONS_LISTED_MAX],
        functions_count=len(lines),
        timeline=timeline,
        recorded=actual,
    )


def _both(simulation: Simulation) -> list[tuple[FunctionCounts, PlannedFunction]]:
    return list(zip(simulation.counts, simulation.functions, strict=True))


def _gb_s(milliseconds: int, function: PlannedFunction) -> float:
    return milliseconds * function.memory_mib / (1_000 * 1_024)


def _usage(simulation: Simulation) -> Usage:
    both = _both(simulation)
    return Usage(
        served=simulation.invocations - simulation.throttled,
        gb_s=sum(_gb_s(counts.billed_ms, function) for counts, function in both),
        init_gb_s=sum(_gb_s(counts.init_billed_ms, function) for counts, function in both),
        provisioned_kept_gb_s=sum(counts.wanted_ns * function.memory_mib for counts, function in both)
        / (NS_PER_S * 1_024),
        provisioned_used_gb_s=sum(_gb_s(counts.provisioned_billed_ms, function) for counts, function in both),
        snap_start_gb=sum(function.memory_mib for _, function in both if function.snap_start) / 1_024,
        restored_gb=sum(counts.restores * function.memory_mib for counts, function in both) / 1_024,
    )


def _provisioned(simulation: Simulation) -> ProvisionedLine | None:
    both = [each for each in _both(simulation) if each[1].provisioning is not None]
    if not both:
        return None
    usage, measured = _usage(simulation), simulation.measured
    invocations = sum(counts.provisioned for counts, _ in both)
    spillovers = sum(counts.spillovers for counts, _ in both)
    served = sum(counts.requests - counts.throttled for counts, _ in both)
    there = measured.provisioned.integral()
    return ProvisionedLine(
        mean=measured.wanted.mean(),
        peak=measured.wanted.peak,
        invocations=invocations,
        spillovers=spillovers,
        spillover_rate=spillovers / served if served else 0.0,
        utilisation=measured.provisioned_busy.integral() / there if there else 0.0,
        kept_gb_s=usage.provisioned_kept_gb_s,
        used_gb_s=usage.provisioned_used_gb_s,
    )


def _states(simulation: Simulation) -> dict[str, float]:
    measured = simulation.measured
    return _split(
        measured.busy.mean(),
        measured.initialising.mean(),
        measured.environments.mean(),
        measured.provisioned.mean(),
        measured.provisioned_busy.mean(),
    )


def _split(
    busy: float, init: float, environments: float, provisioned: float, provisioned_busy: float
) -> dict[str, float]:
    """Environments by state. Differences of floats may fall below 0 by a hair."""
    return {
        "init": init,
        "busy": max(0.0, busy - provisioned_busy - init),
        "idle": max(0.0, environments - provisioned - (busy - provisioned_busy)),
        "provisioned_busy": provisioned_busy,
        "provisioned_idle": max(0.0, provisioned - provisioned_busy),
    }


def _functions(simulation: Simulation, seconds: float) -> list[FunctionLine]:
    return [
        FunctionLine(
            name=function.name,
            memory_mib=function.memory_mib,
            reserved=function.reserved,
            invocations=counts.requests,
            cold_starts=counts.cold,
            throttles=counts.throttled,
            gb_s=_gb_s(counts.billed_ms + counts.provisioned_billed_ms, function),
            provisioned=counts.wanted_ns / NS_PER_S / seconds if seconds else 0.0,
            provisioned_invocations=counts.provisioned,
            spillovers=counts.spillovers,
            environments_peak=counts.environments_peak,
        )
        for counts, function in _both(simulation)
    ]


def _timeline(simulation: Simulation) -> list[dict[str, float]]:
    """One point for each stretch of time; the last one may be shorter than the others."""
    timeline = simulation.timeline_measured
    width_s = timeline.width_ns / NS_PER_S
    points = []
    for number, filled in enumerate(timeline.bins):
        start_s = number * width_s
        end_s = min(start_s + width_s, (simulation.end_ns - simulation.start_ns) / NS_PER_S)
        length_ns = max(end_s - start_s, 1e-9) * NS_PER_S
        points.append(
            {
                "start_s": start_s,
                "end_s": end_s,
                "requests": filled.requests,
                "cold_starts": filled.cold,
                "throttles": filled.throttled,
                "concurrency_mean": filled.busy_ns / length_ns,
                "concurrency_peak": filled.busy_peak,
                "environments_mean": filled.environments_ns / length_ns,
                "spillovers": filled.spillovers,
                "provisioned_wanted": filled.wanted_ns / length_ns,
            }
            | _split(
                filled.busy_ns / length_ns,
                filled.init_ns / length_ns,
                filled.environments_ns / length_ns,
                filled.provisioned_ns / length_ns,
                filled.provisioned_busy_ns / length_ns,
            )
        )
    return points
