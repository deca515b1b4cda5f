"""From a request for a plan to its summary.

For: the command line, and whoever wants a plan from Python. It must not print. Outcomes: a `Summary`, or WorkloadError
with one line for people.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from lambent.model.limits import (
    MEMORY_MAX_MIB,
    MEMORY_MIN_MIB,
    NS_PER_S,
    TIMEOUT_MAX_S,
    UNRESERVED_CONCURRENCY_MIN,
)
from lambent.plan import recorded, reports, settings, workload
from lambent.plan.cost import USD_PER_GB_S
from lambent.plan.profiles import PROFILES, Profile
from lambent.plan.provisioning import TARGET_MAX, TARGET_MIN, Provisioning, parse_schedule
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
    recording: Path | None = None
    #: Settings of single functions, see settings.py.
    config: Path | None = None
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
    #: The same.
    provisioned: tuple[str, ...] = ()
    provisioned_schedule: str | None = None
    provisioned_target: float | None = None
    provisioned_min: int | None = None
    provisioned_max: int | None = None
    snap_start: bool = False
    restore_s: float = 0
    #: Memory of the machines; None: without end.
    worker_memory_mib: int | None = None
    memory_overcommit: float = 1
    idle_s: float | None = None
    profile: str = "current"
    account_concurrency: int = 1_000
    architecture: str = "x86_64"
    #: What --recommend found for functions of --config or a file: (name, reserved, provisioned); before all else.
    chosen: tuple[tuple[str, int | None, int], ...] = ()

    def check(self) -> None:
        """Refuse what makes no sense."""
        self._check_source()
        self._check_numbers()
        self._check_shape()
        for name, value, allowed in (
            ("--profile", self.profile, tuple(PROFILES)),
            ("--architecture", self.architecture, tuple(USD_PER_GB_S)),
        ):
            if value not in allowed:
                raise WorkloadError(f"{name} must be one of {', '.join(allowed)}, not {value}")
        self.reservations()
        self._check_provisioned()
        for name in self.functions_set:
            try:
                self.for_function(name)._check_function()
            except WorkloadError as error:
                raise WorkloadError(f"{self.config}: {name}: {error}") from None

    def _check_function(self) -> None:
        """The same for one function of the configuration file."""
        if self.rate is not None:
            self._check_shape()
            self._check_rate_options()
        self._check_numbers()
        self.reservations()
        self._check_provisioned()

    def _check_provisioned(self) -> None:
        _numbers("--provisioned", self.provisioned)
        if self.provisioned_schedule is not None:
            try:
                parse_schedule(self.provisioned_schedule)
            except ValueError as error:
                raise WorkloadError(f"--provisioned-schedule {error}") from None
        low, high = self.provisioned_min, self.provisioned_max
        if self.provisioned_target is None:
            if low is not None or high is not None:
                raise WorkloadError("--provisioned-min and --provisioned-max are bounds of --provisioned-target")
        elif high is None or high < 1 or (low or 0) > high:
            raise WorkloadError(
                "--provisioned-target needs --provisioned-max, from 1 on and not below --provisioned-min"
            )
        everyone, named = _numbers("--provisioned", self.provisioned)
        if self.snap_start and (
            everyone or any(named.values()) or self.provisioned_schedule or self.provisioned_target
        ):
            raise WorkloadError("SnapStart and provisioned concurrency can not be had together, as on AWS")

    @functools.cached_property
    def functions_set(self) -> dict[str, dict[str, Any]]:
        """What --config says about single functions."""
        found = {} if self.config is None else settings.read(self.config)
        for name, reserved, provisioned in self.chosen:
            own = found.setdefault(name, {})
            own["provisioned"] = (str(provisioned),)
            if reserved is not None:
                own["reserved"] = (str(reserved),)
        return found

    @property
    def generates(self) -> bool:
        """Does the configuration file bring the workload?"""
        return any("rate" in fields for fields in self.functions_set.values())

    def for_function(self, name: str) -> Request:
        """As if it were the only function: its own settings before those of all."""
        fields = self.functions_set.get(name)
        return self if fields is None else dataclasses.replace(self, config=None, chosen=(), **fields)

    def _check_source(self) -> None:
        sources = [n for n in ("trace", "azure", "reports", "recording", "rate") if getattr(self, n) is not None]
        if self.generates:
            sources.append("config")
            without = [name for name, fields in self.functions_set.items() if "rate" not in fields]
            if without:
                raise WorkloadError(f"{self.config}: {without[0]}: no rate, but other functions have one")
        if len(sources) != 1:
            raise WorkloadError(
                "give one of --trace FILE, --reports FILE, --recording FILE, --azure FOLDER, --config FILE with rates, "
                "or --rate with --duration"
            )
        if self.rate is not None:
            self._check_rate_options()
        elif not self.generates and (self.duration_s is not None or self.percentiles is not None):
            raise WorkloadError(f"durations come from --{sources[0]}; leave --duration and --percentiles out")

    def _check_rate_options(self) -> None:
        if (self.duration_s is None) == (self.percentiles is None):
            raise WorkloadError("--rate needs the time of a request: --duration SECONDS or --percentiles")
        if self.shape != "steady" and self.rate_to is None:
            raise WorkloadError(f"--shape {self.shape} needs --rate-to")

    def _check_shape(self) -> None:
        for name, value, allowed in (
            ("arrivals", self.arrivals, ("poisson", "constant")),
            ("shape", self.shape, _SHAPES),
        ):
            if value not in allowed:
                raise WorkloadError(f"--{name} must be one of {', '.join(allowed)}, not {value}")

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
            ("--restore", self.restore_s, 0, 1e6),
            ("--provisioned-target", self.provisioned_target, TARGET_MIN, TARGET_MAX),
            ("--provisioned-min", self.provisioned_min, 0, 1e6),
            ("--provisioned-max", self.provisioned_max, 0, 1e6),
            ("--worker-memory-mib", self.worker_memory_mib, MEMORY_MIN_MIB, 1e12),
            ("--memory-overcommit", self.memory_overcommit, 0.1, 1_000),
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
        return _numbers("--reserved", self.reserved)

    def make_function(self, name: str) -> PlannedFunction:
        own = self.for_function(name)
        everyone, named = own.reservations()
        return PlannedFunction(
            name,
            own.memory_mib,
            named.get(name, everyone),
            round(own.timeout_s * NS_PER_S),
            round(own.init_s * NS_PER_S),
            own.provisioning(name),
            own.snap_start,
            round(own.restore_s * NS_PER_S),
        )

    def provisioning(self, name: str) -> Provisioning | None:
        """What is asked for; None: nothing, ever."""
        everyone, named = _numbers("--provisioned", self.provisioned)
        found = Provisioning(
            named.get(name, everyone),
            () if self.provisioned_schedule is None else parse_schedule(self.provisioned_schedule),
            self.provisioned_target,
            self.provisioned_min or 0,
            self.provisioned_max or 0,
        )
        return found if found.count or found.schedule or found.target is not None else None

    @property
    def provisions(self) -> bool:
        """Is provisioned concurrency asked for, for any function?"""
        fields = ("provisioned", "provisioned_schedule", "provisioned_target")
        return any(getattr(self, f) for f in fields) or any(
            field in own for own in self.functions_set.values() for field in fields
        )

    def room_mib(self) -> int | None:
        """What may be promised on the workers."""
        return None if self.worker_memory_mib is None else int(self.worker_memory_mib * self.memory_overcommit)

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


def _numbers(option: str, given: tuple[str, ...]) -> tuple[int | None, dict[str, int]]:
    """N for every function, and NAME=N for those that are named."""
    everyone: int | None = None
    named: dict[str, int] = {}
    for text in given:
        name, _, number = text.rpartition("=")
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise WorkloadError(f"{option} must be a whole number from 0 on, or NAME=N, not {text}")
        if name:
            named[name] = int(number)
        else:
            everyone = int(number)
    return everyone, named


def simulate(
    request: Request,
    progress: Callable[[int, int], None] | None = None,
    assignments: TextIO | None = None,
) -> Summary:
    """Run the plan."""
    request.check()
    return run(request, source(request), progress, assignments)


@dataclasses.dataclass
class Source:
    """What is simulated."""

    #: A trace may add to them.
    functions: list[PlannedFunction]
    arrivals: Iterable[Arrival]
    #: Where time ends; None: with the last request.
    horizon_ns: int | None
    #: What a live server did with it.
    actual: recorded.Actual | None = None
    account_concurrency: int | None = None


def run(
    request: Request,
    source: Source,
    progress: Callable[[int, int], None] | None = None,
    assignments: TextIO | None = None,
) -> Summary:
    """Simulate this source with the account's settings of the request."""
    room_mib = request.room_mib()
    simulation = Simulation(
        source.functions,
        request.rules(),
        account_concurrency=source.account_concurrency or request.account_concurrency,
        **({} if room_mib is None else {"memory_mib": room_mib}),
        assignments=assignments,
    )
    if assignments is not None:
        assignments.write("arrival_s,environment,cold\n")
    # Nothing here makes cycles; looking for them costs a tenth of the time.
    collects = gc.isenabled()
    gc.disable()
    try:
        simulation.run(source.arrivals, source.horizon_ns, progress)
    finally:
        if collects:
            gc.enable()
    return summarise(simulation, request.architecture, source.actual)


def source(request: Request) -> Source:
    """The workload of a request that has been checked."""
    # Arrivals and durations draw from generators of their own: changing one leaves the other.
    arrivals_rng, durations_rng = random.Random(f"{request.seed}/arrivals"), random.Random(f"{request.seed}/durations")
    init_ns = round(request.init_s * NS_PER_S)
    if request.trace is not None:
        return _trace(request, request.trace, init_ns)
    if request.reports is not None:
        served, memory_mib = reports.read(request.reports, init_ns)
        function = request.make_function("function")
        function.memory_mib = memory_mib or function.memory_mib
        function.init_ns = function.init_ns or served[0][2]
        return Source([function], _until(served, request.seconds), None)
    if request.recording is not None:
        return _recording(request, request.recording, init_ns)
    if request.azure is not None:
        counts = workload.azure(request.azure, request.make_function)
        minutes = max(len(each.counts) for each in counts)
        if request.seconds is not None:
            minutes = min(minutes, math.ceil(request.seconds / 60))
        stream = workload.per_minute(counts, init_ns, arrivals_rng, minutes)
        return Source([each.function for each in counts], stream, minutes * 60 * NS_PER_S)
    horizon_ns = round(request.window_s() * NS_PER_S)
    if not request.generates:
        return Source([request.make_function("function")], _generated(request, arrivals_rng, durations_rng), horizon_ns)
    names = list(request.functions_set)
    streams = [
        _generated(
            request.for_function(name),
            random.Random(f"{request.seed}/{name}/arrivals"),
            random.Random(f"{request.seed}/{name}/durations"),
            index,
        )
        for index, name in enumerate(names)
    ]
    merged = streams[0] if len(streams) == 1 else heapq.merge(*streams)
    return Source([request.make_function(name) for name in names], merged, horizon_ns)


def _generated(
    request: Request, arrivals_rng: random.Random, durations_rng: random.Random, index: int = 0
) -> Iterable[Arrival]:
    return workload.generated(
        request.shaped_rate(),
        request.window_s(),
        request.durations(durations_rng),
        round(request.init_s * NS_PER_S),
        poisson=request.arrivals == "poisson",
        rng=arrivals_rng,
        index=index,
    )


def _trace(request: Request, path: Path, init_ns: int) -> Source:
    """Functions with settings of their own are there from the start; with provisioned concurrency all are."""
    known = [*request.reservations()[1], *_numbers("--provisioned", request.provisioned)[1], *request.functions_set]
    trace = workload.Trace(path, request.make_function, init_ns, sorted(set(known)))
    if request.provisions:
        trace.know(trace.names())
    return Source(trace.functions, _until(trace, request.seconds), None)


def _recording(request: Request, path: Path, init_ns: int) -> Source:
    """Of a server, or of a replay (which is a trace). What options and --config say goes before what was recorded."""
    if not recorded.is_recording(path):
        return _trace(request, path, init_ns)
    found = recorded.read(path)
    plain = Request()
    for function in found.functions:
        own = request.for_function(function.name)
        planned = own.make_function(function.name)
        function.reserved = function.reserved if planned.reserved is None else planned.reserved
        if planned.provisioning is not None or own.provisioned:
            function.provisioning = planned.provisioning
        if own.memory_mib != plain.memory_mib:
            function.memory_mib = planned.memory_mib
        if own.timeout_s != plain.timeout_s:
            function.timeout_ns = planned.timeout_ns
        if own.snap_start:
            function.snap_start, function.restore_ns = True, planned.restore_ns
            function.provisioning = None
    changed = request.account_concurrency != plain.account_concurrency
    return Source(
        found.functions,
        _until(found.arrivals, request.seconds),
        None,
        found.actual,
        request.account_concurrency if changed else found.account_concurrency,
    )


def _until(arrivals: Iterable[Arrival], seconds: float | None) -> Iterable[Arrival]:
    if seconds is None:
        return arrivals
    end_ns = seconds * NS_PER_S
    return itertools.takewhile(lambda arrival: arrival[0] <= end_ns, arrivals)


def reserved_too_much(request: Request, functions_count: int) -> str | None:
    """What AWS would say about the reservations."""
    everyone, named = request.reservations()
    named = dict(named)
    for name in request.functions_set:
        own = request.for_function(name).reservations()
        if own[0] is not None and own[0] != everyone:
            named[name] = own[0]
    total = sum(named.values()) + (everyone or 0) * max(0, functions_count - len(named))
    left = request.account_concurrency - total
    if total == 0 or left >= UNRESERVED_CONCURRENCY_MIN:
        return None
    return (
        f"AWS would refuse these reservations: of {request.account_concurrency:,} at least "
        f"{UNRESERVED_CONCURRENCY_MIN} must stay unreserved, here {max(0, left)}. "
        "Give --account-concurrency if yours is higher."
    )
