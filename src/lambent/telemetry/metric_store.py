"""Metric storage: values in, points of any period out, on local disk, kept as long as CloudWatch keeps them.

What is recorded gathers in memory, in the store itself (`add`, for values that arrive through the API) or in sources
that count for themselves (`add_source`, for what happens on the hot path: see lambda_metrics). Every
`flush_interval_s` one writer thread merges it into a SQLite file (metric_files). Reads flush first, so that whoever
asks sees what happened before. A kill -9 loses at most what was not flushed.

Bounded: what waits in memory by `_WAITING_MAX` points (then `add` refuses), the file by `bytes_max`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import pathlib
import sqlite3
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, Protocol, TypeVar

from lambent.telemetry import metric_files
from lambent.telemetry.metric_files import Addition, MetricName, MetricSelection, SeriesKey, Writer
from lambent.telemetry.metric_point import Point

__all__ = ["Addition", "Metric", "MetricName", "MetricSelection", "MetricStore", "SeriesKey", "StoreFull"]

_log = logging.getLogger("lambent.telemetry")
T = TypeVar("T")

MIB: Final = 1024 * 1024
_WAITING_MAX: Final = 200_000
_CROWDED: Final = 50_000
_AGEING_INTERVAL_S: Final = 600.0


class StoreFull(Exception):
    """More waits to be written than the disk takes."""


class Source(Protocol):
    """Something that counts in memory of its own."""

    def take(self, now_s: float) -> Callable[[], Iterable[Addition]]:
        """Give up what has been counted. Runs on the event loop and must be quick; what it returns runs on the writer
        thread and makes additions of it."""
        ...


class Statistics(NamedTuple):
    points_waiting: int
    stored_bytes: int
    last_flush_ms: float


class MetricStore:
    """All metrics of all accounts and regions, in one file that belongs to this store alone."""

    def __init__(
        self,
        path: pathlib.Path,
        bytes_max: int = 1024 * MIB,
        flush_interval_s: float = 3.0,
        *,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._flush_interval_s = flush_interval_s
        self.clock_s = clock_s
        self._waiting: dict[tuple[SeriesKey, int, int], Point] = {}
        self._sources: list[Source] = []
        #: What could not be written, to be tried again; touched on the writer thread only.
        self._unwritten: list[Addition] = []
        self._unwritten_count = 0
        self._failing = False
        self._stored_bytes = 0
        self._last_flush_ms = 0.0
        self._writer: Writer | None = None
        self._connections: list[sqlite3.Connection] = []
        self._writing = concurrent.futures.ThreadPoolExecutor(1, "metric-writer")
        self._reading = concurrent.futures.ThreadPoolExecutor(1, "metric-reader")
        self._stopping = asyncio.Event()
        self._flusher: asyncio.Task[None] | None = None

    # -- life

    async def start(self) -> None:
        """Open the file and begin to flush. Raises metric_files.UnknownFormat, OSError, sqlite3.Error."""
        await self._on_writer(self._open)
        self._flusher = asyncio.create_task(self._flush_periodically())

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        connection = metric_files.connect(self._path)
        self._connections = [connection, metric_files.connect_for_reading(self._path)]
        self._writer = Writer(connection)
        self._stored_bytes = self._writer.size_bytes()

    async def close(self) -> None:
        """Write everything and stop."""
        self._stopping.set()
        if self._flusher is not None:
            await self._flusher
            await self.flush()
        await asyncio.get_running_loop().run_in_executor(self._reading, lambda: None)
        await self._on_writer(self._close)
        self._writing.shutdown()
        self._reading.shutdown()

    def _close(self) -> None:
        for connection in reversed(self._connections):
            connection.close()

    def statistics(self) -> Statistics:
        return Statistics(len(self._waiting) + self._unwritten_count, self._stored_bytes, self._last_flush_ms)

    # -- in

    def add_source(self, source: Source) -> None:
        """Ask `source` at every flush from now on."""
        self._sources.append(source)

    def add(self, series: SeriesKey, moment_s: float, point: Point, resolution_s: int = 60) -> None:
        """Add `point` to the period that `moment_s` falls into. Raises StoreFull."""
        place = (series, resolution_s, int(moment_s // resolution_s * resolution_s))
        found = self._waiting.get(place)
        if found is None:
            if len(self._waiting) + self._unwritten_count >= _WAITING_MAX:
                raise StoreFull
            found = self._waiting[place] = Point()
        found.merge(point)

    @property
    def crowded(self) -> bool:
        """So much waits that who brings much more should flush first."""
        return len(self._waiting) > _CROWDED

    # -- flushing and ageing

    async def flush(self) -> None:
        """Return when all that was recorded before the call can be read (or the disk has refused it)."""
        await self.after_flush(lambda: None)

    async def after_flush(self, work: Callable[[], T]) -> T:
        """Flush, then run `work` on the writer thread."""
        now_s = self.clock_s()
        thunks = [source.take(now_s) for source in self._sources]
        waiting, self._waiting = self._waiting, {}

        def on_thread() -> T:
            self._write(thunks, waiting)
            return work()

        # Shielded: what has been taken must be written, even if who asked goes away.
        return await asyncio.shield(self._on_writer(on_thread))

    def _on_writer(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._writing, work)

    def _write(
        self,
        thunks: list[Callable[[], Iterable[Addition]]],
        waiting: dict[tuple[SeriesKey, int, int], Point],
    ) -> None:
        assert self._writer is not None, "start() first"
        started = time.monotonic()
        additions = [*self._unwritten, *(Addition(*place, point) for place, point in waiting.items())]
        for thunk in thunks:
            additions += metric_files.politely(thunk())
        if not additions:
            return
        try:
            self._writer.add(additions)
            additions = []
            self._failing = False
        except sqlite3.Error as error:
            if not self._failing:  # say it once, not every few seconds
                self._failing = True
                _log.error("cannot write metrics to %s: %s", self._path, error)
        self._unwritten = additions[-_WAITING_MAX:]
        self._unwritten_count = len(self._unwritten)
        self._stored_bytes = self._writer.size_bytes()
        self._last_flush_ms = (time.monotonic() - started) * 1e3

    async def _flush_periodically(self) -> None:
        next_ageing = time.monotonic()
        while not self._stopping.is_set():
            try:
                if time.monotonic() >= next_ageing:
                    next_ageing = time.monotonic() + _AGEING_INTERVAL_S
                    await self.age()
                elif self._stored_bytes > self._bytes_max:
                    await self.age()
            except Exception:
                _log.exception("the metrics' roll-up failed")
            try:
                await asyncio.wait_for(self._stopping.wait(), self._flush_interval_s)
            except TimeoutError:
                pass
            try:
                await self.flush()
            except Exception:
                _log.exception("bug in Lambent: a flush of the metrics failed")

    async def age(self) -> None:
        """Roll up and delete what has reached the age for it, and keep the file within its bound. Runs by itself every
        ten minutes."""
        now_s = int(self.clock_s())

        def work() -> None:
            assert self._writer is not None
            self._writer.roll_up(now_s)
            if self._writer.size_bytes() > self._bytes_max:
                self._writer.shrink(self._bytes_max * 9 // 10, now_s)
            self._stored_bytes = self._writer.size_bytes()

        await asyncio.shield(self._on_writer(work))

    # -- out

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._connections[1]
        return await asyncio.get_running_loop().run_in_executor(self._reading, lambda: work(connection))

    async def points(self, wanted: list[Metric], start_s: int, end_s: int) -> list[dict[str, dict[int, Point]]]:
        """For each metric its points by unit and by their start; periods begin at `start_s`."""
        await self.flush()

        def work(connection: sqlite3.Connection) -> list[dict[str, dict[int, Point]]]:
            return [
                metric_files.read_points(connection, metric.series, start_s, end_s, metric.period_s)
                for metric in wanted
            ]

        return await self._read(work)

    async def metrics(self, selection: MetricSelection, limit: int) -> list[MetricName]:
        """The first `limit` metrics of the selection, in order."""
        await self.flush()

        def work(connection: sqlite3.Connection) -> list[MetricName]:
            found: list[MetricName] = []
            for metric in metric_files.list_metrics(connection, selection):
                found.append(metric)
                if len(found) == limit:
                    break
            return found

        return await self._read(work)


class Metric(NamedTuple):
    """A series (an empty unit means all units) and the period in which it is wanted."""

    series: SeriesKey
    period_s: int
