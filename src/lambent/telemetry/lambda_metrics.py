"""The metrics that Lambda publishes in the namespace AWS/Lambda, counted on the hot path.

Whoever routes an invoke keeps a FunctionHandle for each function, version that runs, and qualifier that was called;
`started`, `ended`, `throttled` only count in the handle, once, whatever the number of series. A flush (metric_store)
takes the counts and spreads them over the series on the writer thread:

    none (the account)              all but those of provisioned concurrency
    FunctionName                    all
    FunctionName, Resource          all; Resource is `name` or `name:qualifier`, as called
    + ExecutedVersion               for aliases: which of its versions ran

An invocation belongs to the minute in which it started. Concurrency is counted by `started` and `ended`; each flush
adds one sample, the highest since the one before, so that Maximum is exact and the others say little. (As on AWS.)

All methods run on the event-loop thread, except `totals`. Handles may be kept as long as one likes.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from lambent.model.names import FunctionKey
from lambent.telemetry.metric_files import Addition, Dimensions, SeriesKey
from lambent.telemetry.metric_point import BUCKET_OFFSET, BUCKETS_PER_E, LEAST, Buckets, Point

NAMESPACE: Final = "AWS/Lambda"
COUNT: Final = "Count"
MILLISECONDS: Final = "Milliseconds"
#: Metrics that are not counts.
_UNITS: Final = {
    "Duration": MILLISECONDS,
    "PostRuntimeExtensionsDuration": MILLISECONDS,
    "AsyncEventAge": MILLISECONDS,
    "IteratorAge": MILLISECONDS,
    "UrlRequestLatency": MILLISECONDS,
    "ProvisionedConcurrencyUtilization": "None",
}
_TOTALS_MAX: Final = 20_000

_log = math.log


class AccountConcurrency(NamedTuple):
    """What only the scheduler knows of an account: executions in the unreserved pool, and what can not be used for
    more of them (unreserved in use, all that is reserved, all that is provisioned)."""

    account: str
    region: str
    unreserved: int
    claimed: int


class Totals:
    """Counts since the server started, for one function, version and qualifier."""

    __slots__ = ("counts", "duration", "errors", "invocations", "throttles")

    def __init__(self) -> None:
        self.invocations = 0
        self.errors = 0
        self.throttles: dict[str, int] = {}
        #: Milliseconds.
        self.duration = Point()
        #: Sums of all other metrics by name.
        self.counts: dict[str, float] = {}


class TotalsKey(NamedTuple):
    function: FunctionKey
    version: str
    #: `name` or `name:qualifier`.
    resource: str


class _Minute:
    """What a handle has counted of one minute."""

    __slots__ = (
        "buckets",
        "duration_ms",
        "errors",
        "invocations",
        "longest_ms",
        "others",
        "provisioned",
        "shortest_ms",
        "spillover",
        "throttles",
    )

    def __init__(self) -> None:
        self.invocations = 0
        self.errors = 0
        self.duration_ms = 0.0
        self.shortest_ms = math.inf
        self.longest_ms = -math.inf
        self.buckets: Buckets = {}
        self.provisioned = 0
        self.spillover = 0
        self.throttles: dict[str, int] | None = None
        self.others: dict[str, Point] | None = None


class _Gauge:
    """How many executions run now, and how many at most since the last sample."""

    __slots__ = ("__weakref__", "dimensions", "peak", "place", "running")

    def __init__(self, place: tuple[str, str], dimensions: Dimensions) -> None:
        #: Account and region.
        self.place = place
        self.dimensions = dimensions
        self.running = 0
        self.peak = 0


class FunctionHandle:
    """Counts what happens to one version of a function under the name by which it was called."""

    __slots__ = (
        "__weakref__",
        "_account",
        "_clock_s",
        "_function",
        "_hot",
        "_listed",
        "_minute",
        "_minutes",
        "_owner",
        "_provisioned",
        "_resource",
        "allocated",
        "key",
        "qualifier",
        "version",
    )

    def __init__(self, owner: LambdaMetrics, key: FunctionKey, version: str, qualifier: str | None) -> None:
        self.key = key
        self.version = version
        self.qualifier = qualifier
        #: Provisioned concurrency that is ready under this qualifier; 0 means there is none.
        self.allocated = 0
        self._owner = owner
        self._clock_s = owner.clock_s
        self._function = owner.gauge(key, (("FunctionName", key.name),))
        self._resource = owner.gauge(key, (("FunctionName", key.name), ("Resource", self.resource)))
        self._account = owner.gauge(key, ())
        self._provisioned = _Gauge((key.account, key.region), self._resource.dimensions)
        self._minute = -1
        self._minutes: dict[int, _Minute] = {}
        self._hot = _Minute()
        self._listed = False

    @property
    def resource(self) -> str:
        return f"{self.key.name}:{self.qualifier}" if self.qualifier else self.key.name

    # -- invocations

    def started(self, provisioned: bool = False) -> None:
        """An execution begins (its Init, when it needs one). Exactly one `ended` must follow."""
        if not self._listed:
            self._list()
        gauge = self._function
        gauge.running += 1
        if gauge.running > gauge.peak:
            gauge.peak = gauge.running
        gauge = self._resource
        gauge.running += 1
        if gauge.running > gauge.peak:
            gauge.peak = gauge.running
        gauge = self._account
        gauge.running += 1
        if gauge.running > gauge.peak:
            gauge.peak = gauge.running
        if provisioned:
            gauge = self._provisioned
            gauge.running += 1
            if gauge.running > gauge.peak:
                gauge.peak = gauge.running

    def ended(self, duration_ms: float, error: bool, provisioned: bool = False) -> None:
        """The execution is over and counts as an invocation. `provisioned` as it was for `started`."""
        minute = int(self._clock_s() - duration_ms * 0.001) // 60
        hot = self._hot if minute == self._minute else self._turn(minute)
        hot.invocations += 1
        if error:
            hot.errors += 1
        hot.duration_ms += duration_ms
        if duration_ms < hot.shortest_ms:
            hot.shortest_ms = duration_ms
        if duration_ms > hot.longest_ms:
            hot.longest_ms = duration_ms
        bucket = int(_log(duration_ms) * BUCKETS_PER_E + BUCKET_OFFSET) if duration_ms > LEAST else 0
        buckets = hot.buckets
        buckets[bucket] = buckets.get(bucket, 0) + 1
        self._function.running -= 1
        self._resource.running -= 1
        self._account.running -= 1
        if provisioned:
            self._provisioned.running -= 1
            hot.provisioned += 1
        elif self.allocated:
            hot.spillover += 1

    def abandoned(self, provisioned: bool = False) -> None:
        """What `started` has announced did not run: no environment could be made. Counts nothing."""
        self._function.running -= 1
        self._resource.running -= 1
        self._account.running -= 1
        if provisioned:
            self._provisioned.running -= 1

    def throttled(self, reason: str) -> None:
        """A request was refused for want of concurrency. `reason` is AWS's, such as CallerRateLimitExceeded."""
        hot = self._now()
        if hot.throttles is None:
            hot.throttles = {}
        hot.throttles[reason] = hot.throttles.get(reason, 0) + 1

    # -- asynchronous invokes and the rest

    def add(self, name: str, value: float = 1.0) -> None:
        """Record a value of any other metric of AWS/Lambda."""
        hot = self._now()
        if hot.others is None:
            hot.others = {}
        point = hot.others.get(name)
        if point is None:
            point = hot.others[name] = Point()
        point.add(value)

    def async_event_received(self) -> None:
        """An event was put into the queue."""
        self.add("AsyncEventsReceived")

    def async_event_age(self, age_ms: float) -> None:
        """An attempt begins; the event was put into the queue so long ago."""
        self.add("AsyncEventAge", age_ms)

    def async_event_dropped(self) -> None:
        """An event left the queue without having been processed."""
        self.add("AsyncEventsDropped")

    def dead_letter_error(self) -> None:
        self.add("DeadLetterErrors")

    def destination_delivery_failure(self) -> None:
        self.add("DestinationDeliveryFailures")

    def recursive_invocation_dropped(self) -> None:
        self.add("RecursiveInvocationsDropped")

    def post_runtime_extensions(self, duration_ms: float) -> None:
        """How long extensions ran on after the runtime's answer."""
        self.add("PostRuntimeExtensionsDuration", duration_ms)

    def iterator_age(self, age_ms: float) -> None:
        """Age of the last record of a batch when it was sent to the function."""
        self.add("IteratorAge", age_ms)

    def offset_lag(self, records: float) -> None:
        self.add("OffsetLag", records)

    def url_request(self, status: int, latency_ms: float) -> None:
        """A request to the function's URL was answered."""
        self.add("UrlRequestCount")
        self.add("UrlRequestLatency", latency_ms)
        self.add("Url4xxCount", 1.0 if 400 <= status < 500 else 0.0)
        self.add("Url5xxCount", 1.0 if status >= 500 else 0.0)

    # -- minutes

    def _now(self) -> _Minute:
        minute = int(self._clock_s()) // 60
        return self._hot if minute == self._minute else self._turn(minute)

    def _turn(self, minute: int) -> _Minute:
        """Count in another minute from now on."""
        if not self._listed:
            self._list()
        hot = self._minutes.get(minute)
        if hot is None:
            hot = self._minutes[minute] = _Minute()
        self._minute = minute
        self._hot = hot
        return hot

    def _list(self) -> None:
        self._listed = True
        self._owner.listed.append(self)

    def take(self) -> tuple[dict[int, _Minute], int, int] | None:
        """For LambdaMetrics: what was counted, the peak of executions on provisioned environments, and what is
        allocated; None when nothing was."""
        minutes, self._minutes = self._minutes, {}
        self._minute = -1
        gauge = self._provisioned
        peak, gauge.peak = gauge.peak, gauge.running
        return (minutes, peak, self.allocated) if minutes or peak else None

    def rest(self) -> bool:
        """For LambdaMetrics, after `take`: whether nothing runs, so that the next call has to list the handle."""
        self._listed = self._resource.running > 0
        return not self._listed


class MappingHandle:
    """Counts for one event source mapping; what it publishes is its owner's choice (MetricsConfig)."""

    __slots__ = ("_owner", "_place", "_points", "uuid")

    def __init__(self, owner: LambdaMetrics, account: str, region: str, uuid: str) -> None:
        self.uuid = uuid
        self._owner = owner
        self._place = (account, region)
        self._points: dict[tuple[int, str], Point] = {}

    def add(self, name: str, value: float = 1.0) -> None:
        """Record a value, for instance of PolledEventCount."""
        place = (int(self._owner.clock_s()) // 60, name)
        point = self._points.get(place)
        if point is None:
            if not self._points:
                self._owner.mappings.append(self)
            point = self._points[place] = Point()
        point.add(value)

    def take(self) -> list[Addition]:
        points, self._points = self._points, {}
        dimensions = (("EventSourceMappingUUID", self.uuid),)
        return [
            Addition(_series(self._place, name, dimensions), 60, minute * 60, point)
            for (minute, name), point in points.items()
        ]


class _Taken(NamedTuple):
    handle: FunctionHandle
    minutes: dict[int, _Minute]
    provisioned_peak: int
    allocated: int


class LambdaMetrics:
    """A source of the MetricStore (`store.add_source`), and the counts since the start for Prometheus.

    `sample` is asked at each flush for what only the scheduler knows; it runs on the event loop.
    """

    def __init__(
        self,
        sample: Callable[[], Iterable[AccountConcurrency]] = lambda: (),
        *,
        clock_s: Callable[[], float] = time.time,
        utilization_resolution_s: int = 60,
    ) -> None:
        self.clock_s = clock_s
        self.sample = sample
        #: Of ProvisionedConcurrencyUtilization, which may have to be looked at more often than once a minute.
        self._utilization_resolution_s = utilization_resolution_s
        self._taken_s = clock_s()
        #: Handles that have counted something since the last flush or still run something.
        self.listed: list[FunctionHandle] = []
        self.mappings: list[MappingHandle] = []
        self._handles: weakref.WeakValueDictionary[tuple[FunctionKey, str, str | None], FunctionHandle]
        self._handles = weakref.WeakValueDictionary()
        self._gauges: weakref.WeakValueDictionary[tuple[str, str, Dimensions], _Gauge] = weakref.WeakValueDictionary()
        self._totals: dict[TotalsKey, Totals] = {}

    def function_handle(self, key: FunctionKey, version: str, qualifier: str | None = None) -> FunctionHandle:
        """The handle for calls of `key` by `qualifier` (None: without one) that run `version`. Keep it: looking it up
        costs more than counting."""
        name = (key, version, qualifier)
        handle = self._handles.get(name)
        if handle is None:
            handle = self._handles[name] = FunctionHandle(self, key, version, qualifier)
        return handle

    def mapping_handle(self, account: str, region: str, uuid: str) -> MappingHandle:
        """A new handle for an event source mapping."""
        return MappingHandle(self, account, region, uuid)

    def gauge(self, key: FunctionKey, dimensions: Dimensions) -> _Gauge:
        """For handles: the gauge that all of these dimensions share."""
        name = (key.account, key.region, dimensions)
        gauge = self._gauges.get(name)
        if gauge is None:
            gauge = self._gauges[name] = _Gauge(name[:2], dimensions)
        return gauge

    def running(self) -> list[tuple[FunctionKey, int]]:
        """Executions that run now, by function; functions where none runs may be missing."""
        counts: dict[FunctionKey, int] = {}
        for handle in self.listed:
            counts[handle.key] = handle._function.running
        return list(counts.items())

    # -- flushing

    def take(self, now_s: float) -> Callable[[], Iterable[Addition]]:
        """As metric_store.Source."""
        handles = self.listed
        taken = [_Taken(handle, *counts) for handle in handles if (counts := handle.take())]
        minute_s = int(now_s) // 60 * 60
        resolution_s = self._utilization_resolution_s
        # A sample is about the time since the last one.
        utilized_s = int(self._taken_s) // resolution_s * resolution_s
        self._taken_s = now_s
        gauges = {gauge for handle in handles for gauge in (handle._function, handle._resource, handle._account)}
        samples = [(gauge.place, gauge.dimensions, gauge.peak) for gauge in gauges if gauge.peak]
        for gauge in gauges:
            gauge.peak = gauge.running
        self.listed = [handle for handle in handles if not handle.rest()]
        mappings, self.mappings = self.mappings, []
        counted = [addition for mapping in mappings for addition in mapping.take()]
        accounts = list(self.sample()) if handles else []

        def additions() -> Iterator[Addition]:
            yield from counted
            for place, dimensions, peak in samples:
                yield _sampled(place, "ConcurrentExecutions", dimensions, minute_s, peak)
            for account in accounts:
                place = (account.account, account.region)
                yield _sampled(place, "UnreservedConcurrentExecutions", (), minute_s, account.unreserved)
                yield _sampled(place, "ClaimedAccountConcurrency", (), minute_s, account.claimed)
            for entry in taken:
                self._count_totals(entry)
                yield from _spread(entry, minute_s, resolution_s, utilized_s)

        return additions

    # -- totals, on the writer thread

    def totals(self) -> dict[TotalsKey, Totals]:
        """Counts since the start; call it where flushes run (MetricStore.after_flush), and change nothing."""
        return self._totals

    def _count_totals(self, entry: _Taken) -> None:
        handle = entry.handle
        key = TotalsKey(handle.key, handle.version, handle.resource)
        # Taken out and put in again: the first one is the one that has been quiet longest.
        totals = self._totals.pop(key, None) or Totals()
        self._totals[key] = totals
        if len(self._totals) > _TOTALS_MAX:
            del self._totals[next(iter(self._totals))]
        for minute in entry.minutes.values():
            totals.invocations += minute.invocations
            totals.errors += minute.errors
            totals.duration.merge(_duration(minute))
            for reason, count in (minute.throttles or {}).items():
                totals.throttles[reason] = totals.throttles.get(reason, 0) + count
            for name, point in (minute.others or {}).items():
                totals.counts[name] = totals.counts.get(name, 0.0) + point.sum


def _series(place: tuple[str, str], name: str, dimensions: Dimensions) -> SeriesKey:
    return SeriesKey(*place, NAMESPACE, name, dimensions, _UNITS.get(name, COUNT))


def _sampled(place: tuple[str, str], name: str, dimensions: Dimensions, start_s: int, value: float) -> Addition:
    return Addition(_series(place, name, dimensions), 60, start_s, _alike(1, value))


def _alike(count: int, value: float) -> Point:
    return Point(count, count * value, value, value)


def _flags(count: int, ones: int) -> Point:
    """`ones` times 1 and otherwise 0."""
    point = _alike(ones, 1.0) if ones else Point()
    if count > ones:
        point.add(0.0, count - ones)
    return point


def _duration(minute: _Minute) -> Point:
    if not minute.invocations:
        return Point()
    return Point(minute.invocations, minute.duration_ms, minute.shortest_ms, minute.longest_ms, dict(minute.buckets))


def _spread(entry: _Taken, sample_s: int, resolution_s: int, utilized_s: int) -> Iterator[Addition]:
    """The additions that follow from what a handle has counted. `utilized_s`: the start of the period of `resolution_s`
    that the utilization belongs to."""
    handle = entry.handle
    place = (handle.key.account, handle.key.region)
    function: Dimensions = (("FunctionName", handle.key.name),)
    resource: Dimensions = (*function, ("Resource", handle.resource))
    everywhere: list[Dimensions] = [(), function, resource]
    if handle.qualifier is not None and handle.qualifier != handle.version:
        everywhere.append((("ExecutedVersion", handle.version), *resource))
    for number, minute in entry.minutes.items():
        for name, point in _points(minute):
            for dimensions in everywhere:
                yield Addition(_series(place, name, dimensions), 60, number * 60, point)
        if entry.allocated or minute.provisioned:
            for name, count in (
                ("ProvisionedConcurrencyInvocations", minute.provisioned),
                ("ProvisionedConcurrencySpilloverInvocations", minute.spillover),
            ):
                for dimensions in (function, resource):
                    yield Addition(_series(place, name, dimensions), 60, number * 60, _flags(minute.invocations, count))
    if entry.provisioned_peak:
        for dimensions in (function, resource):
            yield _sampled(place, "ProvisionedConcurrentExecutions", dimensions, sample_s, entry.provisioned_peak)
        if entry.allocated:
            share = entry.provisioned_peak / entry.allocated
            series = _series(place, "ProvisionedConcurrencyUtilization", resource)
            yield Addition(series, resolution_s, utilized_s, _alike(1, share))


def _points(minute: _Minute) -> Iterator[tuple[str, Point]]:
    if minute.invocations:
        yield "Invocations", _alike(minute.invocations, 1.0)
        yield "Errors", _flags(minute.invocations, minute.errors)
        yield "Duration", _duration(minute)
    throttles = sum(minute.throttles.values()) if minute.throttles else 0
    # One sample for each request: 1 for those that were refused, 0 for those that ran.
    if minute.invocations or throttles:
        yield "Throttles", _flags(minute.invocations + throttles, throttles)
    if minute.others:
        yield from minute.others.items()
