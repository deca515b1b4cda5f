"""Formulas that say, without a simulation, what it should come out at.

For: standing beside the simulated values, and the tests that hold one against the other. Each is for requests that
arrive by chance (Poisson) at a steady rate; a trace need not follow them. It must not import the simulator. Outcomes:
plain numbers.

Sources: Little (1961) for rate x duration; Erlang (1917) for the loss system: a limit without a queue is one, and
durations may have any shape. Mahmoudi and Khazaei, "Performance Modeling of Serverless Computing Platforms" (IEEE
Transactions on Cloud Computing, 2020) for the number of environments that stay warm.
"""

from __future__ import annotations

import dataclasses
import math


def concurrency(rate: float, duration_s: float) -> float:
    """Requests in flight on average: rate x duration (Little's law)."""
    assert rate >= 0
    assert duration_s >= 0
    return rate * duration_s


def erlang_b(load: float, servers: int) -> float:
    """The share of requests that find all `servers` busy, and are refused. `load` is rate x duration.

    The recursion on 1/B: no factorials, nothing overflows.
    """
    assert load >= 0
    assert servers >= 0
    if load == 0:
        return 0.0 if servers else 1.0
    inverse = 1.0
    for server in range(1, servers + 1):
        inverse = 1.0 + inverse * server / load
        if inverse > 1e300:
            return 0.0
    return 1.0 / inverse


def erlang_c(load: float, servers: int) -> float:
    """The share of requests that would have to wait if they could queue; 1 when the load is too high."""
    if load >= servers:
        return 1.0
    blocked = erlang_b(load, servers)
    return servers * blocked / (servers - load * (1 - blocked))


def busy_percentile(load: float, percent: float) -> int:
    """Requests in flight that are not exceeded for `percent` of the time, without a limit (Poisson's distribution)."""
    assert 0 <= percent < 100
    # Begin at the middle, where the probability does not underflow, and sum both ways.
    middle = int(load)
    term = math.exp(middle * math.log(load) - load - math.lgamma(middle + 1)) if load > 0 else 1.0
    below, down = 0.0, term
    for level in range(middle, 0, -1):
        down *= level / load
        below += down
        if down < 1e-18:
            break
    total, level = below + term, middle
    if total >= percent / 100:
        return _downwards(load, percent, middle, term, total)
    while total < percent / 100 and term > 0:
        level += 1
        term *= load / level
        total += term
    return level


def _downwards(load: float, percent: float, level: int, term: float, total: float) -> int:
    while level > 0 and total - term >= percent / 100:
        total -= term
        term *= level / load
        level -= 1
    return level


@dataclasses.dataclass(frozen=True)
class WarmPool:
    """What the chain of Mahmoudi and Khazaei expects in the long run."""

    environments: float
    #: Serving, cold starts included.
    busy: float
    idle: float
    cold_share: float
    utilisation: float
    response_s: float


def warm_pool(rate: float, warm_s: float, cold_s: float, idle_s: float, environments_max: int = 1_000) -> WarmPool:
    """Environments that stay warm, and the share of cold starts.

    The states are numbers of warm environments. One more comes with each request that finds all of them busy (Erlang
    B), no faster than a cold start takes. One goes when it has seen no request for `idle_s`: with most-recently-used
    first, the m-th environment sees what m-1 of them could not take.
    """
    assert rate > 0
    assert min(warm_s, cold_s, idle_s) > 0
    births, deaths, blocked = _rates(rate, warm_s, cold_s, idle_s, environments_max)
    weights, log_weight = [0.0], 0.0
    for state in range(1, len(blocked)):
        log_weight += math.log(births[state - 1]) - math.log(deaths[state]) if deaths[state] > 0 else 700.0
        weights.append(log_weight)
    highest = max(weights)
    shares = [math.exp(weight - highest) for weight in weights]
    total = sum(shares)
    environments = busy_warm = busy_cold = cold = 0.0
    for state, (weight, refused) in enumerate(zip(shares, blocked, strict=True)):
        share = weight / total
        environments += share * state
        busy_warm += share * rate * (1 - refused) * warm_s
        busy_cold += share * rate * refused * cold_s
        cold += share * refused
    return WarmPool(
        environments=environments,
        busy=busy_warm + busy_cold,
        idle=environments - busy_warm,
        cold_share=cold,
        utilisation=busy_warm / environments if environments else 0.0,
        response_s=cold * cold_s + (1 - cold) * warm_s,
    )


def _rates(
    rate: float, warm_s: float, cold_s: float, idle_s: float, environments_max: int
) -> tuple[list[float], list[float], list[float]]:
    """For each number of warm environments: births and deaths a second, and the share of requests that find none."""
    load = rate * warm_s
    births, deaths, blocked = [rate / (1 + rate * cold_s)], [0.0], [1.0]
    inverse, death = 1.0, 0.0
    for state in range(1, environments_max + 1):
        inverse = 1.0 + inverse * state / load
        refused = 1.0 / inverse
        death += _death_rate(rate * (blocked[-1] - refused), warm_s, idle_s)
        overflow = rate * refused
        births.append(overflow / (1 + overflow * cold_s))
        deaths.append(death)
        blocked.append(refused)
        # States that are never reached add nothing.
        if state > load and overflow < death * 1e-9:
            break
    return births, deaths, blocked


def _death_rate(rate: float, warm_s: float, idle_s: float) -> float:
    """How often an environment that gets requests at this rate sees none for idle_s."""
    last = math.exp(-rate * idle_s)
    if last == 0:
        return 0.0
    time_s = idle_s + warm_s
    gone = math.exp(-rate * time_s)
    # Mean time between requests that are not too far apart. expm1 keeps tiny rates exact.
    between_s = -math.expm1(-rate * time_s) / rate - time_s * gone if rate > 0 else 0.0
    return 1 / (idle_s + (1 / last - 1) * between_s)
