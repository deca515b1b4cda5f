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
from lambent.plan.cost import PRICES_DATE, PRICES_REGION, Cost, cost
from lambent.plan.simulator import Simulation

_LATENCY_PERCENTS = (50, 90, 95, 99, 99.9)
#: Functions that are listed one by one.
_FUNCTIONS_MAX = 20


@dataclasses.dataclass(frozen=True)
class FunctionLine:
    """One function of the account."""

    name: str
    memory_mib: int
    reserved: int | None
    invocations: int
    cold_starts: int
    throttles: int
    gb_s: float


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
    #: Seconds from the start to the first and the last stretch with throttles; None: there were none.
    throttles_first_s: float | None
    throttles_last_s: float | None
    timeouts: int
    concurrency_p50: int
    concurrency_p95: int
    concurrency_p99: int
    peak_environments: int
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

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"cost_usd": self.cost.total_usd}


def summarise(simulation: Simulation, architecture: str = "x86_64") -> Summary:
    seconds = (simulation.end_ns - simulation.start_ns) / NS_PER_S
    lines = _functions(simulation)
    busy, environments, latency = simulation.busy_measured, simulation.environments_measured, simulation.latency
    served = simulation.invocations - simulation.throttled
    gb_s = sum(line.gb_s for line in lines)
    init_gb_s = sum(
        counts.init_billed_ms * function.memory_mib
        for counts, function in zip(simulation.counts, simulation.functions, strict=True)
    ) / (1_000 * 1_024)
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
        throttles_first_s=throttled_s[0] if throttled_s else None,
        throttles_last_s=throttled_s[-1] if throttled_s else None,
        timeouts=simulation.timeouts,
        concurrency_p50=busy.percentile(50),
        concurrency_p95=busy.percentile(95),
        concurrency_p99=busy.percentile(99),
        peak_environments=environments.peak,
        utilisation=busy.integral() / environments.integral() if environments.integral() else 0.0,
        latency_ms={f"p{percent:g}": latency.percentile(percent) / NS_PER_MS for percent in _LATENCY_PERCENTS}
        | {"mean": latency.mean() / NS_PER_MS, "max": latency.high / NS_PER_MS},
        simulated_s=seconds,
        mean_rate=simulation.invocations / seconds if seconds else 0.0,
        gb_s=gb_s,
        init_gb_s=init_gb_s,
        cost=cost(served, gb_s, init_gb_s, seconds, architecture),
        prices=f"AWS {PRICES_REGION}, {architecture}, {PRICES_DATE}",
        profile=simulation.profile.name,
        account_concurrency=simulation.account_concurrency,
        functions=sorted(lines, key=lambda line: line.gb_s, reverse=True)[:_FUNCTIONS_MAX],
        functions_count=len(lines),
        timeline=timeline,
    )


def _functions(simulation: Simulation) -> list[FunctionLine]:
    return [
        FunctionLine(
            name=function.name,
            memory_mib=function.memory_mib,
            reserved=function.reserved,
            invocations=counts.requests,
            cold_starts=counts.cold,
            throttles=counts.throttled,
            gb_s=counts.billed_ms * function.memory_mib / (1_000 * 1_024),
        )
        for counts, function in zip(simulation.counts, simulation.functions, strict=True)
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
            }
        )
    return points
