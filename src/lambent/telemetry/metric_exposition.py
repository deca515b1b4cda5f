"""Lambda's metrics for Prometheus: counters and histograms since the server's start, and gauges of now.

The same events as in CloudWatch, counted by function, version that ran, and resource (`name` or `name:qualifier`, as
called). Durations come from the logarithmic buckets, so that a value within 1 % of a boundary may be counted on
either side of it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Final, NamedTuple

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from lambent.model.names import FunctionKey
from lambent.telemetry.lambda_metrics import LambdaMetrics, Totals, TotalsKey
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import MetricStore
from lambent.wire.http import Request, Response

_PLACE: Final = ("account", "region", "function")
_LABELS: Final = (*_PLACE, "version", "resource")
_BOUNDS_MS: Final = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 30_000, 60_000),
    *(120_000, 300_000, 900_000),
)
#: Sums of these say nothing; CloudWatch has them.
_NOT_COUNTS: Final = ("AsyncEventAge", "IteratorAge", "OffsetLag", "PostRuntimeExtensionsDuration", "UrlRequestLatency")


class LiveGauge(NamedTuple):
    """A figure of now that somebody else knows, such as environments by state. All samples have the same labels."""

    name: str
    help: str
    samples: list[tuple[dict[str, str], float]]


def metrics_page(
    store: MetricStore, metrics: LambdaMetrics, live: Callable[[], Iterable[LiveGauge]] = lambda: ()
) -> Callable[[Request], Awaitable[Response]]:
    """The page /metrics. `live` is asked on the event loop, each time that the page is."""

    async def page(_: Request) -> Response:
        running = metrics.running()
        gauges = list(live())
        statistics = store.statistics()
        own = [
            LiveGauge("lambent_metrics_stored_bytes", "Size of the metric store.", [({}, statistics.stored_bytes)]),
            LiveGauge("lambent_metrics_points_waiting", "Points not yet written.", [({}, statistics.points_waiting)]),
        ]
        body = await store.after_flush(lambda: render(metrics.totals(), running, [*gauges, *own]))
        return Response(200, body, [("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)])

    return page


def render(
    totals: dict[TotalsKey, Totals], running: list[tuple[FunctionKey, int]], gauges: Iterable[LiveGauge]
) -> bytes:
    """Everything in the text format 0.0.4."""
    return generate_latest(_Families([*_of_totals(totals), _concurrency(running), *map(_of_gauge, gauges)]))


class _Families(Collector):
    """What prometheus_client renders."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _of_totals(totals: dict[TotalsKey, Totals]) -> Iterator[Metric]:
    invocations = CounterMetricFamily("lambent_invocations", "Executions, failures included.", labels=_LABELS)
    errors = CounterMetricFamily("lambent_errors", "Executions that failed.", labels=_LABELS)
    throttles = CounterMetricFamily("lambent_throttles", "Requests refused (429).", labels=(*_LABELS, "reason"))
    duration = HistogramMetricFamily("lambent_duration_seconds", "Time of the handler, without Init.", labels=_LABELS)
    others: dict[str, CounterMetricFamily] = {}
    for key, total in totals.items():
        labels = [*key.function, key.version, key.resource]
        invocations.add_metric(labels, total.invocations)
        errors.add_metric(labels, total.errors)
        for reason, count in total.throttles.items():
            throttles.add_metric([*labels, reason], count)
        if total.duration.count:
            duration.add_metric(labels, _histogram(total.duration), total.duration.sum / 1000)
        for name, amount in total.counts.items():
            if name in _NOT_COUNTS:
                continue
            if name not in others:
                text = f"CloudWatch's {name}, summed up since the start."
                others[name] = CounterMetricFamily(f"lambent_{_snake(name)}", text, labels=_LABELS)
            others[name].add_metric(labels, amount)
    yield from (invocations, errors, throttles, duration, *others.values())


def _histogram(point: Point) -> list[tuple[str, float]]:
    """Cumulative counts by upper bound in seconds."""
    values = point.distribution() or []
    buckets: list[tuple[str, float]] = []
    seen = 0.0
    index = 0
    for bound_ms in _BOUNDS_MS:
        while index < len(values) and values[index][0] <= bound_ms:
            seen += values[index][1]
            index += 1
        buckets.append((repr(bound_ms / 1000), seen))
    return [*buckets, ("+Inf", point.count)]


def _concurrency(running: list[tuple[FunctionKey, int]]) -> Metric:
    family = GaugeMetricFamily("lambent_concurrent_executions", "Executions that run now.", labels=_PLACE)
    for key, count in running:
        family.add_metric(list(key), count)
    return family


def _of_gauge(gauge: LiveGauge) -> Metric:
    names = list(gauge.samples[0][0]) if gauge.samples else []
    family = GaugeMetricFamily(gauge.name, gauge.help, labels=names)
    for labels, value in gauge.samples:
        family.add_metric([labels[name] for name in names], value)
    return family


def _snake(name: str) -> str:
    """`AsyncEventsReceived` as `async_events_received`, `Url4xxCount` as `url_4xx_count`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z0-9])|(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
