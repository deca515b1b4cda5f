"""What Lambda publishes, series by series, and what Prometheus is told of it."""

from __future__ import annotations

import asyncio
import gc
import pathlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lambent.model.names import FunctionKey
from lambent.telemetry.lambda_metrics import AccountConcurrency, LambdaMetrics
from lambent.telemetry.metric_exposition import LiveGauge, metrics_page
from lambent.telemetry.metric_files import Dimensions, SeriesKey
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import Metric, MetricSelection, MetricStore
from lambent.wire.http import Request

ACCOUNT, REGION = "000000000000", "eu-west-1"
KEY = FunctionKey(ACCOUNT, REGION, "f")
MINUTE_S = 1_767_614_400
FUNCTION: Dimensions = (("FunctionName", "f"),)
NONE: Dimensions = ()


class World:
    """A store, the metrics that it asks, and the clock of both."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.now_s = MINUTE_S + 30.0
        self.accounts: list[AccountConcurrency] = []
        self.store = MetricStore(directory / "metrics.db", flush_interval_s=60, clock_s=lambda: self.now_s)
        self.metrics = LambdaMetrics(lambda: self.accounts, clock_s=lambda: self.now_s)
        self.store.add_source(self.metrics)

    async def points(self, name: str, dimensions: Dimensions, unit: str = "Count") -> dict[int, Point]:
        key = SeriesKey(ACCOUNT, REGION, "AWS/Lambda", name, dimensions, unit)
        (found,) = await self.store.points([Metric(key, 60)], 0, 2**40)
        return {at - MINUTE_S: point for at, point in found.get(unit, {}).items()}

    async def sums(self, name: str, dimensions: Dimensions) -> dict[int, tuple[float, float]]:
        """Number and sum of the values of each minute."""
        return {at: (point.count, point.sum) for at, point in (await self.points(name, dimensions)).items()}


def run(directory: pathlib.Path, work: Callable[[World], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        world = World(directory)
        await world.store.start()
        try:
            await work(world)
        finally:
            await world.store.close()

    asyncio.run(whole())


def resource(name: str) -> Dimensions:
    return (*FUNCTION, ("Resource", name))


def executed(name: str, version: str) -> Dimensions:
    return (("ExecutedVersion", version), *resource(name))


def test_an_invocation_counts_in_each_of_its_series(tmp_path: pathlib.Path) -> None:
    async def work(world: World) -> None:
        one = world.metrics.function_handle(KEY, "1", "live")
        two = world.metrics.function_handle(KEY, "2", "live")
        plain = world.metrics.function_handle(KEY, "$LATEST")
        for handle, duration_ms, error in ((one, 10, False), (one, 20, True), (two, 30, False), (plain, 40, False)):
            handle.started()
            handle.ended(duration_ms, error)
        one.throttled("CallerRateLimitExceeded")
        for dimensions, numbers in (
            (NONE, (4, 1)),
            (FUNCTION, (4, 1)),
            (resource("f"), (1, 0)),
            (resource("f:live"), (3, 1)),
            (executed("f:live", "1"), (2, 1)),
            (executed("f:live", "2"), (1, 0)),
        ):
            invocations, errors = numbers
            assert await world.sums("Invocations", dimensions) == {0: (invocations, invocations)}
            assert await world.sums("Errors", dimensions) == {0: (invocations, errors)}
        assert await world.sums("Throttles", FUNCTION) == {0: (5, 1)}
        assert await world.sums("Throttles", resource("f")) == {0: (1, 0)}
        duration = (await world.points("Duration", FUNCTION, "Milliseconds"))[0]
        assert (duration.count, duration.sum, duration.minimum, duration.maximum) == (4, 100, 10, 40)
        assert duration.percentile(99) == pytest.approx(30, rel=0.01)
        names = {metric.name for metric in await world.store.metrics(MetricSelection(ACCOUNT, REGION), 99)}
        assert names == {"Invocations", "Errors", "Throttles", "Duration", "ConcurrentExecutions"}

    run(tmp_path, work)


def test_an_invocation_belongs_to_the_minute_in_which_it_started(tmp_path: pathlib.Path) -> None:
    async def work(world: World) -> None:
        handle = world.metrics.function_handle(KEY, "$LATEST")
        for now_s, duration_ms in ((30, 10), (61, 100), (61, 10_000), (62, 1), (125, 120_000), (125, 0)):
            world.now_s = MINUTE_S + now_s
            handle.started()
            handle.ended(duration_ms, False)
        assert await world.sums("Invocations", FUNCTION) == {0: (3, 3), 60: (2, 2), 120: (1, 1)}
        assert (await world.points("Duration", FUNCTION, "Milliseconds"))[0].maximum == 120_000

    run(tmp_path, work)


def test_the_highest_concurrency_is_found_however_short(tmp_path: pathlib.Path) -> None:
    async def work(world: World) -> None:
        handle = world.metrics.function_handle(KEY, "1", "live")
        other = world.metrics.function_handle(FunctionKey(ACCOUNT, REGION, "g"), "$LATEST")
        world.accounts = [AccountConcurrency(ACCOUNT, REGION, 7, 9)]
        other.started()
        for _ in range(5):
            handle.started()
        for _ in range(4):
            handle.ended(1, False)
        await world.store.flush()
        await world.store.flush()
        concurrent = (await world.points("ConcurrentExecutions", FUNCTION))[0]
        assert (concurrent.maximum, concurrent.minimum) == (5, 1)
        assert (await world.points("ConcurrentExecutions", NONE))[0].maximum == 6
        assert (await world.points("ConcurrentExecutions", resource("f:live")))[0].maximum == 5
        assert (await world.points("UnreservedConcurrentExecutions", NONE))[0].maximum == 7
        assert (await world.points("ClaimedAccountConcurrency", NONE))[0].maximum == 9
        assert dict(world.metrics.running()) == {KEY: 1, other.key: 1}
        handle.abandoned()
        other.ended(1, False)
        await world.store.flush()
        world.now_s += 60
        await world.store.flush()
        assert list(await world.points("ConcurrentExecutions", FUNCTION)) == [0]
        assert world.metrics.running() == []
        assert await world.sums("Invocations", FUNCTION) == {0: (4, 4)}

    run(tmp_path, work)


def test_provisioned_concurrency(tmp_path: pathlib.Path) -> None:
    async def work(world: World) -> None:
        handle = world.metrics.function_handle(KEY, "1", "live")
        handle.allocated = 4
        handle.started(provisioned=True)
        handle.started(provisioned=True)
        handle.started()
        handle.ended(5, False, provisioned=True)
        handle.ended(5, False, provisioned=True)
        handle.ended(5, False)
        live = resource("f:live")
        assert await world.sums("ProvisionedConcurrencyInvocations", live) == {0: (3, 2)}
        assert await world.sums("ProvisionedConcurrencySpilloverInvocations", live) == {0: (3, 1)}
        assert (await world.points("ProvisionedConcurrentExecutions", live))[0].maximum == 2
        assert (await world.points("ProvisionedConcurrencyUtilization", live, "None"))[0].maximum == 0.5
        assert await world.points("ProvisionedConcurrencyInvocations", NONE) == {}

    run(tmp_path, work)


def test_everything_else_that_is_counted(tmp_path: pathlib.Path) -> None:
    async def work(world: World) -> None:
        handle = world.metrics.function_handle(KEY, "$LATEST")
        handle.async_event_received()
        handle.async_event_age(1500)
        handle.async_event_dropped()
        handle.dead_letter_error()
        handle.destination_delivery_failure()
        handle.recursive_invocation_dropped()
        handle.post_runtime_extensions(12)
        handle.iterator_age(100)
        handle.offset_lag(3)
        handle.url_request(404, 20)
        handle.url_request(200, 40)
        mapping = world.metrics.mapping_handle(ACCOUNT, REGION, "uuid")
        mapping.add("PolledEventCount", 10)
        mapping.add("PolledEventCount", 5)
        for name in ("AsyncEventsReceived", "AsyncEventsDropped", "DeadLetterErrors", "DestinationDeliveryFailures"):
            assert await world.sums(name, FUNCTION) == {0: (1, 1)}
        assert await world.sums("RecursiveInvocationsDropped", NONE) == {0: (1, 1)}
        assert await world.sums("Url4xxCount", FUNCTION) == {0: (2, 1)}
        assert await world.sums("Url5xxCount", FUNCTION) == {0: (2, 0)}
        assert await world.sums("UrlRequestCount", FUNCTION) == {0: (2, 2)}
        assert await world.sums("OffsetLag", FUNCTION) == {0: (1, 3)}
        assert (await world.points("AsyncEventAge", FUNCTION, "Milliseconds"))[0].maximum == 1500
        assert (await world.points("UrlRequestLatency", FUNCTION, "Milliseconds"))[0].average == 30
        assert await world.sums("PolledEventCount", (("EventSourceMappingUUID", "uuid"),)) == {0: (2, 15)}
        assert await world.sums("Invocations", FUNCTION) == {}

    run(tmp_path, work)


def test_handles_are_shared_while_they_live_and_forgotten_then() -> None:
    metrics = LambdaMetrics()
    handle = metrics.function_handle(KEY, "1", "live")
    assert metrics.function_handle(KEY, "1", "live") is handle
    assert metrics.function_handle(KEY, "1", "1") is not handle
    handle.started()
    del handle
    gc.collect()
    assert metrics.function_handle(KEY, "1", "live")._function.running == 1  # it is listed, so it lives
    metrics.function_handle(KEY, "1", "live").ended(1, False)
    list(metrics.take(time.time())())
    gc.collect()
    assert len(metrics._handles) == 0
    assert len(metrics._gauges) == 0


def test_an_invocation_costs_next_to_nothing() -> None:
    """Measured: 0.6 us. The bound is loose, because machines that test are busy."""
    handle = LambdaMetrics().function_handle(KEY, "1", "live")
    best_s = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(2_000):
            handle.started()
            handle.ended(12.5, False)
        best_s = min(best_s, time.perf_counter() - started)
    assert best_s / 2_000 < 5e-6


def test_prometheus_reads_the_page(tmp_path: pathlib.Path) -> None:
    async def work(world: World) -> None:
        handle = world.metrics.function_handle(KEY, "1", 'li"ve\n')
        for index in range(100):
            handle.started()
            handle.ended(index * 10 + 0.5, index % 10 == 0)
        handle.throttled("ConcurrentInvocationLimitExceeded")
        handle.async_event_received()
        handle.started()
        live = [LiveGauge("lambent_environments", "By state.", [({"state": "idle"}, 3), ({"state": "busy"}, 1)])]
        page = metrics_page(world.store, world.metrics, lambda: live)
        request = Request("GET", "/metrics", "", {}, b"", ACCOUNT, REGION, "", "id")
        for _ in range(2):  # asking changes nothing
            response = await page(request)
        assert dict(response.headers)["Content-Type"].startswith("text/plain; version=0.0.4")
        found = {}
        for family in text_string_to_metric_families(response.body.decode()):
            for sample in family.samples:
                found[sample.name, sample.labels.get("le") or sample.labels.get("state")] = sample
        calls = found["lambent_invocations_total", None]
        assert calls.value == 100
        assert calls.labels == {
            "account": ACCOUNT,
            "region": REGION,
            "function": "f",
            "version": "1",
            "resource": 'f:li"ve\n',
        }
        assert found["lambent_errors_total", None].value == 10
        throttles = found["lambent_throttles_total", None]
        assert (throttles.value, throttles.labels["reason"]) == (1, "ConcurrentInvocationLimitExceeded")
        assert found["lambent_duration_seconds_bucket", "0.1"].value == 10
        assert found["lambent_duration_seconds_bucket", "+Inf"].value == 100
        assert found["lambent_duration_seconds_sum", None].value == pytest.approx(49.55)
        assert found["lambent_async_events_received_total", None].value == 1
        assert found["lambent_concurrent_executions", None].value == 1
        assert found["lambent_environments", "idle"].value == 3

    run(tmp_path, work)
