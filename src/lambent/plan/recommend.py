"""`--recommend`: the smallest settings that meet goals, found by trying.

For: the command line. It must not use formulas: each candidate is simulated with the same arrivals, so that they
differ in nothing but the setting. Outcomes: a `Recommendation` with all that was tried; WorkloadError for goals that
make no sense.

Cold starts and latency first. Idle time is doubled until they meet their goals, or a day is reached; beside it, or if
no idle time does it, the smallest provisioned concurrency is found by bisection between 0 and what the workload used
when only the account limited it. The idle time costs nothing but memory, and is Lambent's to set, not AWS's: in
the `aws` profile only provisioned concurrency is looked for. Then reserved concurrency: more of it never throttles
more, so the smallest that meets the goal is found by bisection as well.

Several functions are bisected at the same time, each towards its own goal: one simulation of the account moves the
bounds of all of them. They disturb each other only through the account's limit, which goals without throttles keep
them from.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any, Final

from lambent.plan.planner import Request, simulate
from lambent.plan.summary import FUNCTIONS_LISTED_MAX, FunctionLine, Summary
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

    def throttles_met_by(self, _: Summary, line: FunctionLine) -> bool:
        return self.throttles.met(line.throttles, line.invocations)

    def cold_met(self, summary: Summary, line: FunctionLine) -> bool:
        """And latency, which is that of all functions together."""
        served = line.invocations - line.throttles
        cold = self.cold_starts is None or self.cold_starts.met(line.cold_starts, served)
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


#: For each function: reserved (None: only the account limits) and provisioned concurrency.
Choice = dict[str, tuple[int | None, int]]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One setting and what came of it."""

    choice: Choice
    idle_s: float
    #: As an option; None: the profile's own.
    idle_s_given: float | None
    summary: Summary
    met: bool

    @property
    def reserved(self) -> int | None:
        """Of all functions together; None: at least one has none."""
        values = [reserved for reserved, _ in self.choice.values()]
        return None if None in values else sum(reserved or 0 for reserved in values)

    @property
    def provisioned(self) -> int:
        return sum(provisioned for _, provisioned in self.choice.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "reserved": self.reserved,
            "provisioned": self.provisioned,
            "idle_seconds": self.idle_s,
            "met": self.met,
            "throttles": self.summary.throttles,
            "cold_starts": self.summary.cold_starts,
            "p99_ms": self.summary.latency_ms["p99"],
            "mean_environments": self.summary.mean_environments,
            "month_usd": self.summary.cost.month_usd,
            "functions": {
                name: {"reserved": reserved, "provisioned": provisioned}
                for name, (reserved, provisioned) in self.choice.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class Recommendation:
    #: The answer; None: nothing that was tried meets the goals.
    best: Trial | None
    #: By idle time, then by provisioned and by reserved concurrency.
    trials: list[Trial]
    why: str
    #: With provisioned concurrency instead of a longer idle time; None: there is nothing else to choose.
    alternative: Trial | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "met": self.best is not None,
            "reserved": None if self.best is None else self.best.reserved,
            "provisioned": None if self.best is None else self.best.provisioned,
            "idle_seconds": None if self.best is None else self.best.idle_s,
            "functions": None if self.best is None else self.best.as_json()["functions"],
            "why": self.why,
            "alternative": None if self.alternative is None else self.alternative.as_json(),
            "trials": [trial.as_json() for trial in self.trials],
        }


def recommend(request: Request, goals: Goals, progress: Callable[[int, int], None] | None = None) -> Recommendation:
    for name in request.functions_set:
        _check_free(request.for_function(name))
    _check_free(request)
    search = _Search(request, goals, progress)
    free = search.trial({}, request.idle_s)
    if free.summary.functions_count > FUNCTIONS_LISTED_MAX:
        raise WorkloadError(
            f"--recommend is for at most {FUNCTIONS_LISTED_MAX} functions, this workload has "
            f"{free.summary.functions_count:,}: filter the trace"
        )
    if free.summary.functions_count > 1 and goals.p99_ms is not None:
        raise WorkloadError("--p99 is a goal for one function: leave it out, or filter the trace")
    start: Choice = {line.name: (None, 0) for line in free.summary.functions}
    free = search.trial(start, request.idle_s)
    if not goals.throttles_met(free.summary):
        return search.answer(
            None, "the account's own limits throttle more than the goal allows: ask for a higher --account-concurrency"
        )
    if search.unmet(free, goals.cold_met):
        idle_s = _longer_idle(search, start) if request.rules().life_ns is None else None
        provisioned = _provisioned(search, free)
        by_idle = None if idle_s is None else _reserved(search, search.trial(start, idle_s))
        by_count = None if provisioned is None else _reserved(search, provisioned)
        if by_idle is not None:
            why = "the shortest idle time of a doubling series, and the smallest reserved concurrency"
            return search.answer(by_idle, why, by_count)
        if by_count is not None:
            return search.answer(by_count, "the smallest provisioned and reserved concurrency that meet the goals")
        return search.answer(
            None,
            "no idle time up to a day and no provisioned concurrency meets the goals: durations alone, or spillovers "
            "at the account's limit, are above them",
        )
    best = _reserved(search, free)
    return search.answer(best, "the smallest reserved concurrency that meets the goals" if best else "not reachable")


def _check_free(request: Request) -> None:
    if request.reserved:
        raise WorkloadError("--recommend looks for the reserved concurrency; leave --reserved out")
    if request.provisioned or request.provisioned_schedule or request.provisioned_target is not None:
        raise WorkloadError("--recommend looks for the provisioned concurrency; leave --provisioned... out")
    if request.snap_start:
        raise WorkloadError("--recommend can not choose provisioned concurrency with SnapStart; leave --snapstart out")


def _longer_idle(search: _Search, choice: Choice) -> float | None:
    """The first of a doubling series that meets the goals for cold starts and latency."""
    idle_s = search.request.rules().idle_ns / 1e9
    while idle_s and 2 * idle_s <= IDLE_MAX_S:
        idle_s *= 2
        if not search.unmet(search.trial(choice, idle_s), search.goals.cold_met):
            return idle_s
    return None


def _provisioned(search: _Search, free: Trial) -> Trial | None:
    """The smallest counts that meet the goals for cold starts and latency."""

    def choose(choice: Choice, name: str, count: int) -> None:
        choice[name] = (choice[name][0], count)

    unmet = search.unmet(free, search.goals.cold_met)
    highest = {line.name: line.environments_peak for line in free.summary.functions if line.name in unmet}
    return _bisect(search, free, highest, choose, search.goals.cold_met)


def _reserved(search: _Search, free: Trial) -> Trial | None:
    """The smallest reservations with which the goal for throttles is still met."""

    def choose(choice: Choice, name: str, count: int) -> None:
        choice[name] = (max(count, choice[name][1]), choice[name][1])

    # Environments of one function; the busy ones of a single function are known better.
    highest = {line.name: max(1, line.environments_peak) for line in free.summary.functions}
    if len(highest) == 1:
        highest = dict.fromkeys(highest, max(1, free.summary.peak_concurrency))
    found = _bisect(search, free, highest, choose, search.goals.throttles_met_by)
    return found if found is not None and found.met else None


def _bisect(
    search: _Search,
    start: Trial,
    highest: dict[str, int],
    choose: Callable[[Choice, str, int], None],
    met: Callable[[Summary, FunctionLine], bool],
) -> Trial | None:
    """The smallest number for each of these functions with which it meets its goal, all at the same time."""
    low, high = dict.fromkeys(highest, 0), dict(highest)

    def trial(numbers: dict[str, int]) -> Trial:
        choice = dict(start.choice)
        for name, number in numbers.items():
            choose(choice, name, number)
        return search.trial(choice, start.idle_s_given)

    best = trial(high)
    # The request rate counts too: 10 a second for each unit.
    while unmet := search.unmet(best, met) & high.keys():
        for name in unmet:
            if high[name] >= search.request.account_concurrency:
                return None
            low[name], high[name] = high[name], min(2 * high[name], search.request.account_concurrency)
        best = trial(high)
    while any(high[name] - low[name] > 1 for name in high):
        middle = {
            name: (low[name] + high[name] + 1) // 2 if high[name] - low[name] > 1 else high[name] for name in high
        }
        tried = trial(middle)
        unmet = search.unmet(tried, met)
        for name, number in middle.items():
            if name in unmet:
                low[name] = number
            else:
                high[name] = number
    # 0 of both may do.
    for name in high:
        if high[name] == 1:
            without = trial(high | {name: 0})
            if name not in search.unmet(without, met):
                high[name] = 0
    best = trial(high)
    return None if search.unmet(best, met) & high.keys() else best


class _Search:
    """Simulates each setting once and remembers."""

    def __init__(self, request: Request, goals: Goals, progress: Callable[[int, int], None] | None) -> None:
        self.request = request
        self.goals = goals
        self._progress = progress
        self._trials: dict[tuple[tuple[tuple[str, int | None, int], ...], float | None], Trial] = {}

    def trial(self, choice: Choice, idle_s: float | None) -> Trial:
        key = tuple((name, *numbers) for name, numbers in sorted(choice.items())), idle_s
        known = self._trials.get(key)
        if known is not None:
            return known
        changed = chosen(self.request, choice, idle_s)
        summary = simulate(changed, self._progress)
        trial = Trial(dict(choice), changed.rules().idle_ns / 1e9, idle_s, summary, met=False)
        met = not self.unmet(trial, self.goals.throttles_met_by) and not self.unmet(trial, self.goals.cold_met)
        trial = dataclasses.replace(trial, met=met)
        if choice:
            self._trials[key] = trial
        return trial

    def unmet(self, trial: Trial, met: Callable[[Summary, FunctionLine], bool]) -> set[str]:
        """Functions that miss this goal."""
        return {line.name for line in trial.summary.functions if not met(trial.summary, line)}

    def answer(self, best: Trial | None, why: str, alternative: Trial | None = None) -> Recommendation:
        def order(trial: Trial) -> tuple[float, ...]:
            return trial.idle_s, trial.provisioned, math.inf if trial.reserved is None else trial.reserved

        return Recommendation(best, sorted(self._trials.values(), key=order), why, alternative)


def chosen(request: Request, choice: Choice, idle_s: float | None) -> Request:
    """The request with these settings."""
    if set(choice) == {"function"} and request.config is None:
        reserved, provisioned = choice["function"]
        return dataclasses.replace(
            request,
            reserved=() if reserved is None else (str(reserved),),
            provisioned=(str(provisioned),) if provisioned else (),
            idle_s=idle_s,
        )
    settings = tuple((name, *numbers) for name, numbers in choice.items())
    return dataclasses.replace(request, chosen=settings, idle_s=idle_s)
