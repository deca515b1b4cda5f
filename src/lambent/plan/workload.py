"""Workloads: streams of (arrival_ns, duration_ns, init_ns, function), in order of arrival.

For: the simulator, and later the replay against a live server. It must not look at a clock, and draws chance only from
the seed it is given: the same arguments give the same stream. Outcomes: iterators that hold one minute of arrivals at
the most (per-minute counts) or one line (all others); WorkloadError with one line for people when the input is bad.
"""

from __future__ import annotations

import bisect
import csv
import dataclasses
import gzip
import itertools
import math
import random
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TextIO

from lambent.model.limits import MEMORY_DEFAULT_MIB, MEMORY_MAX_MIB, MEMORY_MIN_MIB, NS_PER_S, TIMEOUT_MAX_S
from lambent.plan.provisioning import Provisioning

#: 300 years. Nanoseconds beyond would not fit into 63 bits.
SECONDS_MAX: Final = 9e9
#: One account's functions in one plan. AWS has no limit on their number; this bounds memory.
FUNCTIONS_MAX: Final = 100_000
_QUANTILES: Final = 512
_MINUTE_NS: Final = 60 * NS_PER_S

#: (arrival_ns, duration_ns, init_ns, index of the function). Arrivals never go back.
Arrival = tuple[int, int, int, int]


class WorkloadError(ValueError):
    """The workload cannot be used; the message is one line that says where and why."""


@dataclasses.dataclass
class PlannedFunction:
    """A function of the plan."""

    name: str
    memory_mib: int = MEMORY_DEFAULT_MIB
    reserved: int | None = None
    timeout_ns: int = TIMEOUT_MAX_S * NS_PER_S
    #: Of environments that no request waits for: provisioned ones.
    init_ns: int = 0
    provisioning: Provisioning | None = None
    #: Environments are restored, in restore_ns, instead of initialised.
    snap_start: bool = False
    restore_ns: int = 0


# --- durations ------------------------------------------------------------------------------------------

#: Draws one duration in nanoseconds.
Durations = Callable[[], int]


def constant(seconds: float) -> Durations:
    duration_ns = _duration_ns(seconds)
    return lambda: duration_ns


def lognormal(mean_s: float, variation: float, rng: random.Random) -> Durations:
    """With this mean, and this coefficient of variation (standard deviation over mean)."""
    _duration_ns(mean_s)
    if mean_s == 0 or variation == 0:
        return constant(mean_s)
    if not 0 <= variation <= 100:
        raise WorkloadError(f"the variation of durations must be between 0 and 100, not {variation}")
    sigma = math.sqrt(math.log(1 + variation * variation))
    mu = math.log(mean_s * NS_PER_S) - sigma * sigma / 2
    gauss, exp = rng.gauss, math.exp
    return lambda: int(exp(mu + sigma * gauss(0.0, 1.0)))


def empirical(points: Iterable[tuple[float, float]], rng: random.Random) -> Durations:
    """Through (percentile, seconds), interpolated on a logarithmic scale: tails are long."""
    table = quantiles(points)
    draw = rng.random
    return lambda: table[int(draw() * _QUANTILES)]


def quantiles(points: Iterable[tuple[float, float]], mean_s: float | None = None) -> list[int]:
    """Durations in ns at the middle of 512 equally likely slices.

    Percentiles leave open what lies between them, which matters in a long tail. If the mean is known, the curve between
    them is bent, all parts alike, until it has this mean (or comes as close as the percentiles let it).
    """
    given = sorted(points)
    if not given:
        raise WorkloadError("no percentiles of durations are given")
    for percent, seconds in given:
        if not 0 <= percent <= 100:
            raise WorkloadError(f"a percentile must be between 0 and 100, not {percent:g}")
        _duration_ns(seconds)
    if any(later < earlier for (_, earlier), (_, later) in itertools.pairwise(given)):
        raise WorkloadError("durations must not fall from one percentile to the next")
    spans = _spans(given)
    if mean_s is None:
        return _curve(spans, 1.0)
    low, high = 1 / 8, 8.0
    for _ in range(10):
        bend = math.sqrt(low * high)
        if sum(_curve(spans, bend)) > mean_s * NS_PER_S * _QUANTILES:
            low = bend
        else:
            high = bend
    return _curve(spans, math.sqrt(low * high))


def _spans(given: list[tuple[float, float]]) -> list[tuple[float, float, float]]:
    """For each slice: the logarithm at the percentile before it, the rise to the next one, its share of the way."""
    percents = [percent for percent, _ in given]
    # 0.1 ms stands for 0: recorded zeros were rounded down from something.
    logs = [math.log(max(seconds, 1e-4)) for _, seconds in given]
    spans = []
    for step in range(_QUANTILES):
        percent = 100 * (step + 0.5) / _QUANTILES
        right = bisect.bisect_left(percents, percent)
        if right == 0 or right == len(percents):
            spans.append((logs[min(right, len(percents) - 1)], 0.0, 0.0))
        else:
            share = (percent - percents[right - 1]) / (percents[right] - percents[right - 1])
            spans.append((logs[right - 1], logs[right] - logs[right - 1], share))
    return spans


def _curve(spans: list[tuple[float, float, float]], bend: float) -> list[int]:
    exp = math.exp
    return [int(exp(base + rise * share**bend) * NS_PER_S) for base, rise, share in spans]


def _duration_ns(seconds: float) -> int:
    if not 0 <= seconds <= SECONDS_MAX:
        raise WorkloadError(f"a duration must be 0 s or more, not {seconds}")
    return round(seconds * NS_PER_S)


# --- rates ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Rate:
    """Requests a second over time. Never above `peak`."""

    peak: float
    at: Callable[[float], float]
    #: The mean over the whole time.
    mean: float
    steady: bool = False


def steady(rate: float) -> Rate:
    _check_rate(rate)
    return Rate(rate, lambda _: rate, rate, steady=True)


def ramp(first: float, last: float, seconds: float) -> Rate:
    """In a straight line from one to the other."""
    _check_rate(first, last)
    return Rate(max(first, last), lambda t: first + (last - first) * t / seconds, (first + last) / 2)


def spike(base: float, peak: float, at_s: float, for_s: float, seconds: float) -> Rate:
    """`peak` from at_s on, for for_s; `base` otherwise."""
    _check_rate(base, peak)
    share = max(0.0, min(at_s + for_s, seconds) - at_s) / seconds
    return Rate(max(base, peak), lambda t: peak if at_s <= t < at_s + for_s else base, base + (peak - base) * share)


def day(low: float, high: float, seconds: float) -> Rate:
    """One wave over the whole time: lowest at both ends, highest in the middle."""
    _check_rate(low, high)
    half = (high - low) / 2
    return Rate(max(low, high), lambda t: low + half * (1 - math.cos(2 * math.pi * t / seconds)), low + half)


def _check_rate(*rates: float) -> None:
    for rate in rates:
        if not 0 <= rate <= 1e9:
            raise WorkloadError(f"a rate must be 0 or more requests a second, not {rate}")


def generated(
    rate: Rate,
    seconds: float,
    durations: Durations,
    init_ns: int,
    *,
    poisson: bool,
    rng: random.Random,
    index: int = 0,
) -> Iterator[Arrival]:
    """Arrivals of one function, the one with this index, at this rate: by chance (Poisson), or evenly spaced."""
    if not 0 < seconds <= SECONDS_MAX:
        raise WorkloadError(f"the time to simulate must be more than 0 s, not {seconds}")
    if rate.peak == 0:
        return iter(())
    if not poisson:
        return _even(rate, seconds, durations, init_ns, index)
    return _poisson(rate, seconds, durations, init_ns, rng, index)


def _poisson(
    rate: Rate, seconds: float, durations: Durations, init_ns: int, rng: random.Random, index: int
) -> Iterator[Arrival]:
    """A rate that changes is made from the highest one by dropping arrivals (thinning)."""
    draw, log = rng.random, math.log
    gap_ns = NS_PER_S / rate.peak
    end_ns = seconds * NS_PER_S
    now_ns = 0.0
    everything, at, peak = rate.steady, rate.at, rate.peak
    while True:
        now_ns -= log(1.0 - draw()) * gap_ns
        if now_ns >= end_ns:
            return
        if everything or draw() * peak < at(now_ns / NS_PER_S):
            yield int(now_ns), durations(), init_ns, index


def _even(rate: Rate, seconds: float, durations: Durations, init_ns: int, index: int) -> Iterator[Arrival]:
    if rate.steady:
        for number in range(math.ceil(seconds * rate.peak - 1e-9)):
            yield int(number * NS_PER_S / rate.peak), durations(), init_ns, index
        return
    # One arrival for each whole request that the rate has summed up to, in steps of at most 10 ms.
    step_s = min(0.01, 1 / rate.peak)
    due = 1.0
    for step in range(int(seconds / step_s)):
        due += rate.at(step * step_s) * step_s
        if due >= 1:
            due -= 1
            yield int(step * step_s * NS_PER_S), durations(), init_ns, index


# --- traces ---------------------------------------------------------------------------------------------


class Trace:
    """A CSV file: header arrival_s,duration_s and, if you like, init_s and function. Plain or .gz. Iterate it once."""

    def __init__(
        self, path: Path, make_function: Callable[[str], PlannedFunction], init_ns: int = 0, known: Iterable[str] = ()
    ) -> None:
        #: Those that are `known` are there from the start (their reservations count from then on).
        self.functions: list[PlannedFunction] = [make_function(name) for name in known]
        self._path = path
        self._make_function = make_function
        self._init_ns = init_ns

    def names(self) -> list[str]:
        """Of its functions, in the order in which they come: reads the file once more."""
        found: dict[str, None] = {}
        try:
            with open_text(self._path) as file:
                reader = csv.reader(file)
                header = [name.strip() for name in next(reader, [])]
                if "function" not in header:
                    return ["function"]
                column = header.index("function")
                found = dict.fromkeys(row[column] for row in reader if len(row) > column)
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            raise WorkloadError(f"{self._path}: cannot be read: {error}") from error
        return list(found)

    def know(self, names: Iterable[str]) -> None:
        """These functions are there from the start. Before it is iterated."""
        known = {function.name for function in self.functions}
        self.functions += [self._make_function(name) for name in names if name not in known]

    def __iter__(self) -> Iterator[Arrival]:
        try:
            with open_text(self._path) as file:
                yield from self._rows(csv.reader(file))
        except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
            raise WorkloadError(f"{self._path}: cannot be read: {error}") from error

    def _rows(self, reader: Iterator[list[str]]) -> Iterator[Arrival]:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise WorkloadError(f"{self._path}: the file is empty; its first line must be arrival_s,duration_s")
        missing = [name for name in ("arrival_s", "duration_s") if name not in header]
        if missing:
            raise WorkloadError(f"{self._path}: column {' and '.join(missing)} is missing in the header")
        arrival, duration = header.index("arrival_s"), header.index("duration_s")
        init = header.index("init_s") if "init_s" in header else None
        function = header.index("function") if "function" in header else None
        indices = {known.name: index for index, known in enumerate(self.functions)}
        longest_ns = int(SECONDS_MAX * NS_PER_S)
        before_ns, nothing, default_init_ns = 0, True, self._init_ns
        for line, row in enumerate(reader, 2):
            if not row:
                continue
            try:
                arrival_ns = round(float(row[arrival]) * NS_PER_S)
                duration_ns = round(float(row[duration]) * NS_PER_S)
                init_ns = round(float(row[init]) * NS_PER_S) if init is not None and row[init] else default_init_ns
                name = row[function] if function is not None else "function"
            except (ValueError, OverflowError, IndexError):
                raise WorkloadError(f"{self._path}: line {line}: {self._complaint(row, header)}") from None
            if not (before_ns <= arrival_ns <= longest_ns and duration_ns >= 0 <= init_ns <= longest_ns - duration_ns):
                raise WorkloadError(f"{self._path}: line {line}: {_order(arrival_ns, before_ns)}")
            before_ns, nothing = arrival_ns, False
            index = indices.get(name)
            if index is None:
                index = indices[name] = self._new_function(name, line)
            yield arrival_ns, duration_ns, init_ns, index
        if nothing:
            raise WorkloadError(f"{self._path}: no invocations: there is nothing after the header")

    def _new_function(self, name: str, line: int) -> int:
        if len(self.functions) >= FUNCTIONS_MAX:
            raise WorkloadError(f"{self._path}: line {line}: more than {FUNCTIONS_MAX:,} functions")
        self.functions.append(self._make_function(name))
        return len(self.functions) - 1

    @staticmethod
    def _complaint(row: list[str], header: list[str]) -> str:
        if len(row) < len(header):
            return f"{len(row)} values, but the header names {len(header)}"
        return f"not a usable number: {','.join(row)[:60]}"


def _order(arrival_ns: int, before_ns: int) -> str:
    if arrival_ns < 0:
        return f"arrival_s is negative: {arrival_ns / NS_PER_S:g}"
    if arrival_ns < before_ns:
        return (
            f"arrivals are not in order: {arrival_ns / NS_PER_S:g} after {before_ns / NS_PER_S:g}; "
            "sort the file by arrival_s"
        )
    return f"a number is negative, or larger than {SECONDS_MAX:g} s"


def open_text(path: Path) -> TextIO:
    """Plain or gzip, by its first two bytes."""
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    if zipped:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


# --- counts per minute (Azure Functions 2019) -----------------------------------------------------------


@dataclasses.dataclass
class MinuteCounts:
    """A function's requests in each minute, and its durations."""

    function: PlannedFunction
    counts: list[int]
    durations_ns: list[int]


def azure(folder: Path, make_function: Callable[[str], PlannedFunction]) -> list[MinuteCounts]:
    """Read *_invocations.csv, *_durations.csv and *_memory.csv (each plain or .gz) of one folder."""
    durations = {row["HashFunction"]: row for row in _table(folder, "durations")}
    memory = {row["HashFunction"]: row for row in _table(folder, "memory")}
    found = []
    for row in _table(folder, "invocations"):
        name = row["HashFunction"]
        try:
            minutes = sorted((int(key), int(value)) for key, value in row.items() if key.isdigit())
            points = [
                (float(key.rsplit("_", 1)[1]), float(value) / 1_000)
                for key, value in durations[name].items()
                if key.startswith("percentile_Average_")
            ]
            mean_s = float(durations[name]["Average"]) / 1_000
            used_mib = float(memory[name]["AverageAllocatedMb_pct100"]) if name in memory else 0.0
        except (KeyError, ValueError) as error:
            raise WorkloadError(f"{folder}: function {name[:16]}: no usable durations, memory or counts") from error
        function = make_function(name)
        # What it used at most is the least that it must be given.
        function.memory_mib = min(max(math.ceil(used_mib), MEMORY_MIN_MIB), MEMORY_MAX_MIB)
        found.append(MinuteCounts(function, [count for _, count in minutes], quantiles(points, mean_s)))
    if not found:
        raise WorkloadError(f"{folder}: no functions in *_invocations.csv")
    return found


def per_minute(
    functions: list[MinuteCounts], init_ns: int, rng: random.Random, minutes_max: int | None = None
) -> Iterator[Arrival]:
    """Arrivals at random within their minute."""
    draw = rng.random
    minutes = max(len(function.counts) for function in functions)
    for minute in range(minutes if minutes_max is None else min(minutes, minutes_max)):
        start_ns = minute * _MINUTE_NS
        arrivals: list[Arrival] = []
        for index, function in enumerate(functions):
            count = function.counts[minute] if minute < len(function.counts) else 0
            if count:
                table = function.durations_ns
                arrivals += [
                    (start_ns + int(draw() * _MINUTE_NS), table[int(draw() * _QUANTILES)], init_ns, index)
                    for _ in range(count)
                ]
        arrivals.sort()
        yield from arrivals


def _table(folder: Path, kind: str) -> list[dict[str, str]]:
    paths = sorted([*folder.glob(f"*{kind}.csv"), *folder.glob(f"*{kind}.csv.gz")])
    if not paths:
        raise WorkloadError(f"{folder}: there is no file *{kind}.csv or *{kind}.csv.gz")
    try:
        with open_text(paths[0]) as file:
            rows = list(csv.DictReader(file))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise WorkloadError(f"{paths[0]}: cannot be read: {error}") from error
    if rows and "HashFunction" not in rows[0]:
        raise WorkloadError(f"{paths[0]}: column HashFunction is missing")
    return rows
