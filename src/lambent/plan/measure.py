"""What a simulation remembers: sums and histograms of fixed size, never one entry for each invocation.

For: simulator.py, which writes into these from its inner loop and says so where it does. It must not know the
scheduler. Outcomes: means, percentiles and a timeline, whose memory does not grow with the number of
invocations.

`Levels` integrates over time: how long the level (say, requests in flight) stood at each value. So its mean and
percentiles are exact, and are over *time*, not over requests. `Sketch` counts values in buckets whose width is
1 % of the value. `Timeline` has at most `BINS_MAX` bins; when they are used up, neighbours are merged and bins
become twice as wide.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Final

#: Points of a plot; a screen shows no more.
BINS_MAX: Final = 600
_BUCKETS_PER_E: Final = 1 / math.log(1.01)


class Levels:
    """A whole number that changes with time. The owner may write `level` after `settle()`."""

    __slots__ = ("level", "peak", "since_ns", "time_at")

    def __init__(self, now_ns: int) -> None:
        self.level = 0
        self.peak = 0
        self.since_ns = now_ns
        #: Nanoseconds spent at each level.
        self.time_at = [0]

    def change(self, now_ns: int, by: int) -> None:
        self.settle(now_ns)
        self.level += by
        assert self.level >= 0
        if self.level > self.peak:
            self.peak = self.level
            self.time_at.extend([0] * (self.peak + 1 - len(self.time_at)))

    def settle(self, now_ns: int) -> None:
        assert now_ns >= self.since_ns
        self.time_at[self.level] += now_ns - self.since_ns
        self.since_ns = now_ns

    def begin(self, now_ns: int) -> None:
        """Forget what was measured; stand where it stands."""
        assert now_ns >= self.since_ns
        self.since_ns, self.peak = now_ns, self.level
        self.time_at[:] = [0] * (self.peak + 1)

    def successor(self) -> Levels:
        """Goes on where this one stands, and has measured nothing yet."""
        new = Levels(self.since_ns)
        new.level, new.peak, new.time_at = self.level, self.peak, [0] * len(self.time_at)
        return new

    def integral(self) -> int:
        """Level x nanoseconds, up to the last settle()."""
        return sum(level * time_ns for level, time_ns in enumerate(self.time_at))

    def mean(self) -> float:
        total_ns = sum(self.time_at)
        return self.integral() / total_ns if total_ns else 0.0

    def percentile(self, percent: float) -> int:
        """The level that is not exceeded for `percent` of the time."""
        assert 0 <= percent <= 100
        wanted = sum(self.time_at) * percent / 100
        passed = 0
        for level, time_ns in enumerate(self.time_at):
            passed += time_ns
            if passed >= wanted and passed > 0:
                return level
        return self.level


class Sketch:
    """Counts of values by logarithmic buckets: percentiles within 1 % of the value, exact if all are the same."""

    __slots__ = ("cells", "high")

    def __init__(self) -> None:
        #: For each bucket: how many values, and their sum.
        self.cells: dict[int, list[int]] = {}
        self.high = 0

    def cell(self, value: int) -> list[int]:
        """Where to count this value: the caller adds 1 to [0] and the value to [1], and may keep the cell for equal
        values that follow."""
        bucket = int(math.log(value) * _BUCKETS_PER_E) if value > 0 else -1
        if value > self.high:
            self.high = value
        cell = self.cells.get(bucket)
        if cell is None:
            cell = self.cells[bucket] = [0, 0]
        return cell

    def add(self, value: int) -> None:
        cell = self.cell(value)
        cell[0] += 1
        cell[1] += value

    @property
    def count(self) -> int:
        return sum(count for count, _ in self.cells.values())

    def mean(self) -> float:
        count = self.count
        return sum(total for _, total in self.cells.values()) / count if count else 0.0

    def percentile(self, percent: float) -> float:
        assert 0 <= percent <= 100
        wanted = self.count * percent / 100
        passed = 0
        for bucket in sorted(self.cells):
            count, total = self.cells[bucket]
            passed += count
            if passed >= wanted:
                return total / count
        return float(self.high)


@dataclasses.dataclass(slots=True)
class Bin:
    """What happened in one stretch of time. Peaks are the highest seen, the rest are sums."""

    requests: int = 0
    cold: int = 0
    throttled: int = 0
    spillovers: int = 0
    #: Level x nanoseconds: requests in flight, those of them that wait for Init, and environments.
    busy_ns: int = 0
    init_ns: int = 0
    environments_ns: int = 0
    #: Provisioned: asked for, environments (those in Init too), and those of them with a request.
    wanted_ns: int = 0
    provisioned_ns: int = 0
    provisioned_busy_ns: int = 0
    busy_peak: int = 0

    def merged(self, other: Bin) -> Bin:
        return Bin(
            self.requests + other.requests,
            self.cold + other.cold,
            self.throttled + other.throttled,
            self.spillovers + other.spillovers,
            self.busy_ns + other.busy_ns,
            self.init_ns + other.init_ns,
            self.environments_ns + other.environments_ns,
            self.wanted_ns + other.wanted_ns,
            self.provisioned_ns + other.provisioned_ns,
            self.provisioned_busy_ns + other.provisioned_busy_ns,
            max(self.busy_peak, other.busy_peak),
        )


class Timeline:
    """Bins of equal width from `start_ns` on."""

    __slots__ = ("bins", "end_ns", "start_ns", "width_ns")

    def __init__(self, start_ns: int, width_ns: int) -> None:
        assert width_ns > 0
        self.start_ns = start_ns
        self.width_ns = width_ns
        self.bins: list[Bin] = []
        #: Where the open bin ends.
        self.end_ns = start_ns + width_ns

    def close(self, filled: Bin) -> None:
        """The open bin is over; the next one begins."""
        self.bins.append(filled)
        if len(self.bins) >= BINS_MAX:
            self.bins = [self.bins[i].merged(self.bins[i + 1]) for i in range(0, BINS_MAX - 1, 2)]
            self.width_ns *= 2
        self.end_ns = self.start_ns + (len(self.bins) + 1) * self.width_ns
