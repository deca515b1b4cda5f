"""`--recommend`: the smallest settings that meet goals, found by trying.

For: the command line. It must not use formulas: each candidate is simulated with the same arrivals, so that they
differ in nothing but the setting. Outcomes: a `Recommendation` with all that was tried; WorkloadError for goals that
make no sense.

Reserved concurrency: more of it never throttles more, so the smallest that meets the goal is found by bisection
between 0 and what the workload used when only the account limited it. Idle time: doubled until cold starts and latency
meet their goals, or a day is reached.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Final

from lambent.plan.planner import Request, simulate
from lambent.plan.summary import Summary
from lambent.plan.workload import WorkloadError

#: Longer than a day nobody keeps an environment without a request.
IDLE_MAX_S: Final = 86_400.0
_UNITS_MS: Final = {"ms": 1.0, "s": 1_000.0}


@dataclasses.dataclass(frozen=True)
class Amount:
    """At most so many, or at most such a share."""

    value: float
    is_share: bool

    def met(self, count: int, of: int) -> bool:
        return (count / of if of else 0.0) <= self.value if self.is_share else count <= self.value


@dataclasses.dataclass(frozen=True)
class Goals:
    throttles: Amount = Amount(0, is_share=False)
    cold_starts: Amount | None = None
    p99_ms: float | None = None

    @classmethod
    def parse(cls, throttles: str | None, cold_starts: str | None, p99: str | None) -> Goals:
        return cls(
            Amount(0, is_share=False) if throttles is None else _amount("--throttles", throttles),
            None if cold_starts is None else _amount("--cold-starts", cold_starts),
            None if p99 is None else _milliseconds(p99),
        )

    def throttles_met(self, summary: Summary) -> bool:
        return self.throttles.met(summary.throttles, summary.invocations)

    def others_met(self, summary: Summary) -> bool:
        cold = self.cold_starts is None or self.cold_starts.met(summary.cold_starts, summary.served)
        return cold and (self.p99_ms is None or summary.latency_ms["p99"] <= self.p99_ms)


def _amount(option: str, text: str) -> Amount:
    found = re.fullmatch(r"\s*<?=?\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    if found is None:
        raise WorkloadError(f"{option} must be a number or a share, like 0 or <0.1%, not {text}")
    value = float(found[1])
    return Amount(value / 100, is_share=True) if found[2] else Amount(value, is_share=False)


def _milliseconds(text: str) -> float:
    found = re.fullmatch(r"\s*<?=?\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", text)
    if found is None:
        raise WorkloadError(f"--p99 must be a time, like 300ms or 1.5s, not {text}")
    return float(found[1]) * _UNITS_MS[found[2]]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting and what came of it."""

    #: None: only the account limits.
    reserved: int | None
    idle_s: float
    #: As an option; None: the profile's own.
    idle_s_given: float | None
    summary: Summary
    met: bool


@dataclasses.dataclass(frozen=True)
class Recommendation:
    #: The answer; None: nothing that was tried meets the goals.
    best: Trial | None
    #: By idle time, then by reserved concurrency.
    trials: list[Trial]
    why: str

    def as_json(self) -> dict[str, Any]:
        return {
            "met": self.best is not None,
            "reserved": None if self.best is None else self.best.reserved,
            "idle_seconds": None if self.best is None else self.best.idle_s,
            "why": self.why,
            "trials": [
                {
                    "reserved": trial.reserved,
                    "idle_seconds": trial.idle_s,
                    "met": trial.met,
                    "throttles": trial.summary.throttles,
                    "cold_starts": trial.summary.cold_starts,
                    "p99_ms": trial.summary.latency_ms["p99"],
                    "mean_environments": trial.summary.mean_environments,
                    "month_usd": trial.summary.cost.month_usd,
                }
                for trial in self.trials
            ],
        }


def recommend(request: Request, goals: Goals, progress: Callable[[int, int], None] | None = None) -> Recommendation:
    if request.reserved:
        raise WorkloadError("--recommend looks for the reserved concurrency; leave --reserved out")
    search = _Search(request, goals, progress)
    idle_s = request.rules().idle_ns / 1e9
    free = search.trial(None, request.idle_s)
    if free.summary.functions_count != 1:
        raise WorkloadError(
            f"--recommend is for one function, this workload has {free.summary.functions_count:,}: filter the trace"
        )
    if not goals.throttles_met(free.summary):
        return search.answer(
            None, "the account's own limits throttle more than the goal allows: ask for a higher --account-concurrency"
        )
    chosen_s = request.idle_s
    while not goals.others_met(free.summary):
        idle_s *= 2
        if idle_s > IDLE_MAX_S or idle_s == 0:
            return search.answer(
                None,
                "no idle time up to a day meets the goals for cold starts and p99: durations, Init or the first "
                "fill alone are above them (provisioned concurrency would help; the scheduler does not have it yet)",
            )
        chosen_s = idle_s
        free = search.trial(None, chosen_s)
    best = _smallest(search, goals, free, chosen_s)
    return search.answer(best, "the smallest reserved concurrency that meets the goals" if best else "not reachable")


def _smallest(search: _Search, goals: Goals, free: Trial, idle_s: float | None) -> Trial | None:
    low, high = 0, max(1, free.summary.peak_concurrency)
    best = search.trial(high, idle_s)
    # The request rate counts too: 10 a second for each unit.
    while not goals.throttles_met(best.summary):
        if high >= search.request.account_concurrency:
            return None
        low, high = high, min(2 * high, search.request.account_concurrency)
        best = search.trial(high, idle_s)
    while high - low > 1:
        middle = (low + high) // 2
        tried = search.trial(middle, idle_s)
        if goals.throttles_met(tried.summary):
            best, high = tried, middle
        else:
            low = middle
    return best if best.met else None


class _Search:
    """Simulates each setting once and remembers."""

    def __init__(self, request: Request, goals: Goals, progress: Callable[[int, int], None] | None) -> None:
        self.request = request
        self._goals = goals
        self._progress = progress
        self._trials: dict[tuple[int | None, float | None], Trial] = {}

    def trial(self, reserved: int | None, idle_s: float | None) -> Trial:
        known = self._trials.get((reserved, idle_s))
        if known is not None:
            return known
        changed = dataclasses.replace(
            self.request, reserved=() if reserved is None else (str(reserved),), idle_s=idle_s
        )
        summary = simulate(changed, self._progress)
        met = self._goals.throttles_met(summary) and self._goals.others_met(summary)
        trial = Trial(reserved, changed.rules().idle_ns / 1e9, idle_s, summary, met)
        self._trials[reserved, idle_s] = trial
        return trial

    def answer(self, best: Trial | None, why: str) -> Recommendation:
        def order(trial: Trial) -> tuple[float, float]:
            return trial.idle_s, math.inf if trial.reserved is None else trial.reserved

        return Recommendation(best, sorted(self._trials.values(), key=order), why)
