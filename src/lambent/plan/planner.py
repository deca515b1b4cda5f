"""From a request for a plan to its summary.

For: the command line, and whoever wants a plan from Python. It must not print. Outcomes: a `Summary`, or WorkloadError
with one line for people.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TextIO

from lambent.model.limits import (
    MEMORY_MAX_MIB,
    MEMORY_MIN_MIB,
    NS_PER_S,
    TIMEOUT_MAX_S,
    UNRESERVED_CONCURRENCY_MIN,
)
from lambent.plan import reports, workload
from lambent.plan.cost import USD_PER_GB_S
from lambent.plan.profiles import PROFILES, Profile
from lambent.plan.simulator import Simulation
from lambent.plan.summary import Summary, summarise
from lambent.plan.workload import Arrival, Durations, PlannedFunction, Rate, WorkloadError

#: Time that is simulated when a rate is given without one: past the time that idle environments live.
SECONDS_DEFAULT = 3_600.0
_SHAPES = ("steady", "ramp", "spike", "day")


@dataclasses.dataclass(frozen=True)
class Request:
    """The options of `lambent plan`, as they were typed. `check()` before anything else."""

    trace: Path | None = None
    azure: Path | None = None
    reports: Path | None = None
    rate: float | None = None
    duration_s: float | None = None
    arrivals: str = "poisson"
    seconds: float | None = None
    seed: int = 1
    shape: str = "steady"
    rate_to: float | None = None
    spike_at_s: float | None = None
    spike_s: float = 60
    #: Of durations: standard deviation over mean.
    variation: float = 0
    percentiles: str | None = None
    init_s: float = 0
    memory_mib: int = 128
    timeout_s: float = TIMEOUT_MAX_S
    #: "N" or "NAME=N".
    reserved: tuple[str, ...] = ()
    provisioned: int = 0
    idle_s: float | None = None
    profile: str = "current"
    account_concurrency: int = 1_000
    architecture: str = "x86_64"

    def check(self) -> None:
        """Refuse what makes no sense."""
        self._check_source()
        self._check_numbers()
        for name, value, allowed in (
            ("--arrivals", self.arrivals, ("poisson", "constant")),
            ("--shape", self.shape, _SHAPES),
            ("--profile", self.profile, tuple(PROFILES)),
            ("--architecture", self.architecture, tuple(USD_PER_GB_S)),
        ):
            if value not in allowed:
                raise WorkloadError(f"{name} must be one of {', '.join(allowed)}, not {value}")
        if self.provisioned != 0:
            raise WorkloadError(
                "--provisioned: the scheduler has no provisioned concurrency yet, so nothing true can be said "
                "about it; leave the option out, or give 0"
            )
        self.reservations()

    def _check_source(self) -> None:
        sources = [name for name in ("trace", "azure", "reports", "rate") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise WorkloadError("give one of --trace FILE, --reports FILE, --azure FOLDER, or --rate with --duration")
        if self.rate is None:
            if self.duration_s is not None or self.percentiles is not None:
                raise WorkloadError(f"durations come from --{sources[0]}; leave --duration and --percentiles out")
            return
        if (self.duration_s is None) == (self.percentiles is None):
            raise WorkloadError("--rate needs the time of a request: --duration SECONDS or --percentiles")
        if self.shape != "steady" and self.rate_to is None:
            raise WorkloadError(f"--shape {self.shape} needs --rate-to")

    def _check_numbers(self) -> None:
        limits: tuple[tuple[str, float | None, float, float], ...] = (
            ("--rate", self.rate, 0, 1e9),
            ("--rate-to", self.rate_to, 0, 1e9),
            ("--duration", self.duration_s, 0, 1e9),
            ("--seconds", self.seconds, 1e-3, workload.SECONDS_MAX),
            ("--variation", self.variation, 0, 100),
            ("--spike-at", self.spike_at_s, 0, workload.SECONDS_MAX),
            ("--spike-seconds", self.spike_s, 0, workload.SECONDS_MAX),
            ("--init", self.init_s, 0, 1e6),
            ("--memory", self.memory_mib, MEMORY_MIN_MIB, MEMORY_MAX_MIB),
            ("--timeout", self.timeout_s, 1e-3, TIMEOUT_MAX_S),
            ("--idle-seconds", self.idle_s, 0, 1e9),
            ("--account-concurrency", self.account_concurrency, 1, 1e9),
        )
        for name, value, low, high in limits:
            # Written so that NaN is refused as well.
            if value is not None and not low <= value <= high:
                raise WorkloadError(f"{name} must be between {low:,.10g} and {high:,.10g}, not {value}")

    def reservations(self) -> tuple[int | None, dict[str, int]]:
        """Reserved concurrency of every function, and of those that are named."""
        everyone: int | None = None
        named: dict[str, int] = {}
        for given in self.reserved:
            name, _, number = given.rpartition("=")
            if not (number.isascii() and number.isdigit() and len(number) < 10):
                raise WorkloadError(f"--reserved must be a whole number from 0 on, or NAME=N, not {given}")
            if name:
                named[name] = int(number)
            else:
                everyone = int(number)
        return everyone, named

    def make_function(self, name: str) -> PlannedFunction:
        everyone, named = self.reservations()
        return PlannedFunction(name, self.memory_mib, named.get(name, everyone), round(self.timeout_s * NS_PER_S))

    def rules(self) -> Profile:
        profile = PROFILES[self.profile]
        return profile if self.idle_s is None else profile.with_idle(round(self.idle_s * NS_PER_S))

    def window_s(self) -> float:
        return SECONDS_DEFAULT if self.seconds is None else self.seconds

    def shaped_rate(self) -> Rate:
        """Only with --rate."""
        assert self.rate is not None
        seconds, other = self.window_s(), self.rate_to if self.rate_to is not None else self.rate
        if self.shape == "ramp":
            return workload.ramp(self.rate, other, seconds)
        if self.shape == "spike":
            at_s = seconds / 3 if self.spike_at_s is None else self.spike_at_s
            return workload.spike(self.rate, other, at_s, self.spike_s, seconds)
        if self.shape == "day":
            return workload.day(self.rate, other, seconds)
        return workload.steady(self.rate)

    def percentile_points(self) -> list[tuple[float, float]]:
        """50=0.1,99=0.8 as pairs."""
        assert self.percentiles is not None
        try:
            pairs = [part.split("=") for part in self.percentiles.split(",")]
            return [(float(percent), float(seconds)) for percent, seconds in pairs]
        except ValueError:
            raise WorkloadError(f"--percentiles must be like 50=0.1,99=0.8,100=3, not {self.percentiles}") from None

    def mean_duration_s(self) -> float | None:
        """None: only the file knows."""
        if self.percentiles is not None:
            table = workload.quantiles(self.percentile_points())
            return sum(table) / len(table) / NS_PER_S
        return self.duration_s

    def durations(self, rng: random.Random) -> Durations:
        """Only with --rate."""
        if self.percentiles is not None:
            return workload.empirical(self.percentile_points(), rng)
        assert self.duration_s is not None
        return workload.lognormal(self.duration_s, self.variation, rng)


def simulate(
    request: Request,
    progress: Callable[[int, int], None] | None = None,
    assignments: TextIO | None = None,
) -> Summary:
    """Run the plan."""
    request.check()
    functions, arrivals, horizon_ns = _source(request)
    simulation = Simulation(
        functions,
        request.rules(),
        account_concurrency=request.account_concurrency,
        assignments=assignments,
    )
    if assignments is not None:
        assignments.write("arrival_s,environment,cold\n")
    # Nothing here makes cycles; looking for them costs a tenth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        simulation.run(arrivals, horizon_ns, progress)
    finally:
        if collects:
            gc.enable()
    return summarise(simulation, request.architecture)


def _source(request: Request) -> tuple[list[PlannedFunction], Iterable[Arrival], int | None]:
    """The functions (a trace adds to them), the stream, and where time ends (None: with the last request)."""
    # Arrivals and durations draw from generators of their own: changing one leaves the other.
    arrivals_rng, durations_rng = random.Random(f"{request.seed}/arrivals"), random.Random(f"{request.seed}/durations")
    init_ns = round(request.init_s * NS_PER_S)
    if request.trace is not None:
        _, named = request.reservations()
        trace = workload.Trace(request.trace, request.make_function, init_ns, sorted(named))
        return trace.functions, _until(trace, request.seconds), None
    if request.reports is not None:
        served, memory_mib = reports.read(request.reports, init_ns)
        function = request.make_function("function")
        function.memory_mib = memory_mib or function.memory_mib
        return [function], _until(served, request.seconds), None
    if request.azure is not None:
        counts = workload.azure(request.azure, request.make_function)
        minutes = max(len(each.counts) for each in counts)
        if request.seconds is not None:
            minutes = min(minutes, math.ceil(request.seconds / 60))
        stream = workload.per_minute(counts, init_ns, arrivals_rng, minutes)
        return [each.function for each in counts], stream, minutes * 60 * NS_PER_S
    stream = workload.generated(
        request.shaped_rate(),
        request.window_s(),
        request.durations(durations_rng),
        init_ns,
        poisson=request.arrivals == "poisson",
        rng=arrivals_rng,
    )
    return [request.make_function("function")], stream, round(request.window_s() * NS_PER_S)


def _until(arrivals: Iterable[Arrival], seconds: float | None) -> Iterable[Arrival]:
    if seconds is None:
        return arrivals
    end_ns = seconds * NS_PER_S
    return itertools.takewhile(lambda arrival: arrival[0] <= end_ns, arrivals)


def reserved_too_much(request: Request, functions_count: int) -> str | None:
    """What AWS would say about the reservations."""
    everyone, named = request.reservations()
    total = sum(named.values()) + (everyone or 0) * max(0, functions_count - len(named))
    left = request.account_concurrency - total
    if total == 0 or left >= UNRESERVED_CONCURRENCY_MIN:
        return None
    return (
        f"AWS would refuse these reservations: of {request.account_concurrency:,} at least "
        f"{UNRESERVED_CONCURRENCY_MIN} must stay unreserved, here {max(0, left)}. "
        "Give --account-concurrency if yours is higher."
    )
