"""The metric store on a real disk: what is there after a restart, after kill -9, and after 455 days."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambent.telemetry.metric_files import DAY_S, HOUR_S, SeriesKey, UnknownFormat
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import Metric, MetricName, MetricSelection, MetricStore

ACCOUNT, REGION = "000000000000", "eu-west-1"
#: A Monday at noon.
NOON_S = 1_767_614_400 - 1_767_614_400 % DAY_S + 12 * HOUR_S
Test = Callable[[pathlib.Path], Coroutine[Any, Any, None]]


def series(name: str = "Duration", unit: str = "Milliseconds", **dimensions: str) -> SeriesKey:
    return SeriesKey(ACCOUNT, REGION, "Shop", name, tuple(sorted(dimensions.items())), unit)


class Clock:
    def __init__(self) -> None:
        self.now_s = float(NOON_S)

    def __call__(self) -> float:
        return self.now_s


@contextlib.asynccontextmanager
async def opened(directory: pathlib.Path, clock: Clock | None = None, **options: Any) -> AsyncIterator[MetricStore]:
    store = MetricStore(directory / "metrics.db", flush_interval_s=60, clock_s=clock or Clock(), **options)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


async def read(
    store: MetricStore, key: SeriesKey, period_s: int = 60, start_s: int = 0, end_s: int = 2**40
) -> dict[int, Point]:
    (found,) = await store.points([Metric(key, period_s)], start_s, end_s)
    return found.get(key.unit, {})


def one(value: float) -> Point:
    return Point(1, value, value, value)


def test_what_was_added_is_read_also_after_a_restart(tmp_path: pathlib.Path) -> None:
    async def work() -> None:
        async with opened(tmp_path) as store:
            for value in (1.0, 2.0, 300.0):
                store.add(series(), NOON_S + value / 10, one(value))
            store.add(series(), NOON_S + 61, one(7.0))
        async with opened(tmp_path) as store:
            store.add(series(), NOON_S + 5, one(4.0))
            points = await read(store, series())
            assert list(points) == [NOON_S, NOON_S + 60]
            first = points[NOON_S]
            assert (first.count, first.sum, first.minimum, first.maximum) == (4, 307, 1, 300)
            assert first.percentile(50) == pytest.approx(2, rel=0.01)
            assert first.percentile(100) == 300
            whole = await read(store, series(), 300)
            assert [point.count for point in whole.values()] == [5]
            (half,) = (await read(store, series(), 60, NOON_S, NOON_S + 60)).values()
            assert half.count == 4
            assert await read(store, series("Other")) == {}
            assert await read(store, series(FunctionName="f")) == {}

    asyncio.run(work())


WRITER = """
import asyncio, os, pathlib, signal, sys, time
from lambent.telemetry.metric_point import Point
from lambent.telemetry.metric_store import MetricStore, SeriesKey

async def main():
    store = MetricStore(pathlib.Path(sys.argv[1]), flush_interval_s=60)
    await store.start()
    key = SeriesKey("000000000000", "eu-west-1", "Shop", "Orders", (), "Count")
    for value in range(1, 1001):
        store.add(key, time.time(), Point(1, value, value, value))
    await store.flush()
    store.add(key, time.time(), Point(1, 5000, 5000, 5000))
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_kill_9_loses_only_what_was_not_flushed(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path / "metrics.db")]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL

    async def work() -> None:
        async with opened(tmp_path) as store:
            points = await read(store, series("Orders", "Count"), HOUR_S)
            assert sum(point.count for point in points.values()) == 1000
            assert sum(point.sum for point in points.values()) == 500_500

    asyncio.run(work())


def test_points_become_coarser_and_go(tmp_path: pathlib.Path) -> None:
    async def work() -> None:
        clock = Clock()
        async with opened(tmp_path, clock) as store:
            for minute in range(120):
                store.add(series(), NOON_S + 60 * minute, one(minute + 1.0))
                store.add(series("Fine"), NOON_S + minute, one(minute + 1.0), 1)
            await store.flush()

            async def counts(name: str, *periods: int) -> list[int]:
                await store.age()
                return [len(await read(store, series(name), period)) for period in periods]

            clock.now_s = NOON_S + 2 * HOUR_S
            assert await counts("Fine", 1, 60) == [120, 2]
            assert await counts("Duration", 60, 300, HOUR_S) == [120, 24, 2]
            clock.now_s = NOON_S + 5 * HOUR_S
            assert await counts("Fine", 1, 30, 60) == [0, 0, 2]
            clock.now_s = NOON_S + 14 * DAY_S
            assert await counts("Duration", 60, 300, HOUR_S) == [120, 24, 2]
            clock.now_s = NOON_S + 16 * DAY_S
            assert await counts("Duration", 60, 300, HOUR_S) == [0, 24, 2]
            clock.now_s = NOON_S + 64 * DAY_S
            assert await counts("Duration", 60, 300, HOUR_S) == [0, 0, 2]
            first, second = (await read(store, series(), HOUR_S)).values()
            assert (first.count, first.sum, first.minimum, first.maximum) == (60, 1830, 1, 60)
            assert second.percentile(50) == pytest.approx(90, rel=0.01)
            assert await store.metrics(MetricSelection(ACCOUNT, REGION), 9) != []
            clock.now_s = NOON_S + 456 * DAY_S
            assert await counts("Duration", 60, 300, HOUR_S) == [0, 0, 0]
            assert await store.metrics(MetricSelection(ACCOUNT, REGION), 9) == []

    asyncio.run(work())


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.lists(st.tuples(st.integers(0, 20 * DAY_S), st.integers(1, 1000), st.booleans()), min_size=1),
    steps=st.lists(st.integers(0, 30 * DAY_S), max_size=4),
)
def test_nothing_is_lost_or_counted_twice_by_ageing(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[int, int, bool]], steps: list[int]
) -> None:
    async def work() -> None:
        clock = Clock()
        async with opened(tmp_path_factory.mktemp("metrics"), clock) as store:
            for offset_s, value, fine in values:
                store.add(series(), NOON_S + offset_s, one(value), 1 if fine else 60)
                await store.flush()
            for step in steps:
                clock.now_s += step
                await store.age()
            points = await read(store, series(), HOUR_S)
            assert sum(point.count for point in points.values()) == len(values)
            assert sum(point.sum for point in points.values()) == sum(value for _, value, _ in values)
            assert set(points) == {(NOON_S + at) // HOUR_S * HOUR_S for at, _, _ in values}

    asyncio.run(work())


def test_the_file_is_kept_within_its_bound(tmp_path: pathlib.Path) -> None:
    async def work() -> None:
        clock = Clock()
        bound = 1_000_000
        async with opened(tmp_path, clock, bytes_max=bound) as store:
            for day in range(10):
                for minute in range(0, 1440, 2):
                    point = Point()
                    for value in range(1, 12):
                        point.add(1.3**value * (minute + 1))
                    store.add(series(Day=str(day % 2)), NOON_S + day * DAY_S + minute * 60, point)
                clock.now_s = NOON_S + (day + 1) * DAY_S
                await store.age()
            assert store.statistics().stored_bytes < bound
            newest = await read(store, series(Day="1"), 60, NOON_S + 9 * DAY_S)
            assert len(newest) == 720
            assert (await read(store, series(Day="0"), HOUR_S)) != {}
        assert (tmp_path / "metrics.db").stat().st_size < bound * 1.2

        clock.now_s += 60
        async with opened(tmp_path, clock, bytes_max=50_000) as store:
            await store.age()
            assert store.statistics().stored_bytes < 50_000

    asyncio.run(work())


def test_listing_is_in_order_and_by_page(tmp_path: pathlib.Path) -> None:
    async def work() -> None:
        clock = Clock()
        async with opened(tmp_path, clock) as store:
            for name in ("b", "a", "c"):
                for unit in ("Count", "Seconds"):
                    store.add(series(name, unit, F="1", R="x"), NOON_S, one(1))
            store.add(series("old"), NOON_S - 3 * DAY_S, one(1))
            store.add(series("a")._replace(account="111111111111"), NOON_S, one(1))
            select = MetricSelection(ACCOUNT, REGION)
            dimensions = (("F", "1"), ("R", "x"))
            found = await store.metrics(select, 9)
            assert found == [MetricName("Shop", name, dimensions) for name in "abc"] + [MetricName("Shop", "old", ())]
            assert await store.metrics(select, 1) == found[:1]
            assert await store.metrics(select._replace(after=found[1]), 9) == found[2:]
            assert await store.metrics(select._replace(since_s=NOON_S - 100), 9) == found[:3]
            assert await store.metrics(select._replace(name="b"), 9) == found[1:2]
            assert await store.metrics(select._replace(dimensions=(("F", None),)), 9) == found[:3]
            assert await store.metrics(select._replace(dimensions=(("F", "2"),)), 9) == []
            assert await store.metrics(select._replace(namespace="None"), 9) == []

    asyncio.run(work())


def test_what_the_disk_refuses_is_written_later(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async with opened(tmp_path) as store:
            store.add(series(), NOON_S, one(1))
            await store.flush()
            blocker = sqlite3.connect(tmp_path / "metrics.db", isolation_level=None)
            blocker.execute("CREATE TRIGGER full BEFORE INSERT ON points BEGIN SELECT RAISE(ABORT, 'disk full'); END")
            store.add(series(), NOON_S, one(2))
            await store.flush()
            store.add(series(), NOON_S, one(4))
            await store.flush()
            assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["disk full"]
            assert store.statistics().points_waiting == 2
            blocker.execute("DROP TRIGGER full")
            blocker.close()
            points = await read(store, series())
            assert points[NOON_S].sum == 7
            assert store.statistics().points_waiting == 0

    asyncio.run(work())


def test_a_file_of_a_newer_format_is_left_alone(tmp_path: pathlib.Path) -> None:
    connection = sqlite3.connect(tmp_path / "metrics.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()

    async def work() -> None:
        store = MetricStore(tmp_path / "metrics.db")
        with pytest.raises(UnknownFormat):
            await store.start()
        await store.close()

    asyncio.run(work())
