"""The metric store's file: series and their points in SQLite. Synchronous; for the store's own threads.

A value lies in exactly one row, the one of its series, resolution and start. Fresh points have the resolution that
they were recorded with (1 or 60 s); as they age, `roll_up` merges them into coarser ones, as CloudWatch does:

    1 s points for 3 hours, then 1 minute for 15 days, then 5 minutes for 63 days, then 1 hour for 455 days

A reader that asks for a period gets the rows whose resolution divides it. The file is written ahead (WAL) and
synchronised at checkpoints: a killed process loses nothing that was committed, a power cut perhaps the last seconds.
"""

from __future__ import annotations

import json
import pathlib
import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple, TypeVar

from lambent.telemetry.metric_point import Point, decode_buckets, encode_buckets

HOUR_S: Final = 3_600
DAY_S: Final = 24 * HOUR_S
#: Resolution and how long such points are kept, and what they become then.
RETENTION: Final = ((1, 3 * HOUR_S, 60), (60, 15 * DAY_S, 300), (300, 63 * DAY_S, HOUR_S), (HOUR_S, 455 * DAY_S, None))

_FORMAT: Final = 1
_SCHEMA: Final = (
    """CREATE TABLE series (
        id INTEGER PRIMARY KEY,
        account TEXT NOT NULL, region TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        dimensions TEXT NOT NULL, unit TEXT NOT NULL,
        last_s INTEGER NOT NULL,
        UNIQUE (account, region, namespace, name, dimensions, unit))""",
    """CREATE TABLE points (
        series INTEGER NOT NULL, resolution_s INTEGER NOT NULL, start_s INTEGER NOT NULL,
        count REAL NOT NULL, sum REAL NOT NULL, minimum REAL NOT NULL, maximum REAL NOT NULL, buckets BLOB,
        PRIMARY KEY (series, resolution_s, start_s)) WITHOUT ROWID""",
)
_COLUMNS: Final = "count, sum, minimum, maximum, buckets"
_REPLACE: Final = "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
_CACHED_SERIES_MAX: Final = 100_000
_CACHED_POINTS_MAX: Final = 50_000
#: Points of the last minutes stay in memory, because every flush adds to them.
_OPEN_S: Final = 180

#: So many at a time, then the event loop gets its chance: a thread that only computes lets go of the interpreter no
#: more often than every 5 ms, and each wake-up of the loop would wait for that.
_POLITE_ITEMS: Final = 64
_POLITE_PAUSE_S: Final = 0.0001

T = TypeVar("T")
Dimensions = tuple[tuple[str, str], ...]


class SeriesKey(NamedTuple):
    """What identifies a series. `dimensions` are in ascending order of their names."""

    account: str
    region: str
    namespace: str
    name: str
    dimensions: Dimensions
    unit: str


class Addition(NamedTuple):
    """Something to add to one point; `start_s` is a multiple of the resolution."""

    series: SeriesKey
    resolution_s: int
    start_s: int
    point: Point


class MetricName(NamedTuple):
    """A metric as ListMetrics shows it: without its units."""

    namespace: str
    name: str
    dimensions: Dimensions


class MetricSelection(NamedTuple):
    """What to list. `dimensions`: each must be there, with that value if one is given."""

    account: str
    region: str
    namespace: str | None = None
    name: str | None = None
    dimensions: tuple[tuple[str, str | None], ...] = ()
    #: Only metrics that have had a value since then.
    since_s: int = 0
    after: MetricName | None = None


def politely(items: Iterable[T]) -> Iterator[T]:
    """The items, with short pauses in which another thread can run."""
    for index, item in enumerate(items, 1):
        yield item
        if index % _POLITE_ITEMS == 0:
            time.sleep(_POLITE_PAUSE_S)


class UnknownFormat(Exception):
    """The file is of a newer Lambent."""


def connect(path: pathlib.Path) -> sqlite3.Connection:
    """Open the file for reading and writing; make or migrate it. Raises UnknownFormat."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded only before the first table
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA cache_size = -8192")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > _FORMAT:
        connection.close()
        raise UnknownFormat(f"{path} has format {version}; this Lambent knows formats up to {_FORMAT}.")
    if version < 1:
        connection.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("PRAGMA user_version = 1")
        connection.execute("COMMIT")
    return connection


def connect_for_reading(path: pathlib.Path) -> sqlite3.Connection:
    """A second connection, which sees what has been committed."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.execute("PRAGMA query_only = 1")
    return connection


def _dimensions_text(dimensions: Dimensions) -> str:
    return json.dumps(dimensions, ensure_ascii=False, separators=(",", ":"))


def _dimensions(text: str) -> Dimensions:
    return tuple((name, value) for name, value in json.loads(text))


def _point(row: tuple[float, float, float, float, bytes | None]) -> Point:
    count, total, minimum, maximum, buckets = row
    return Point(count, total, minimum, maximum, decode_buckets(buckets))


def _row(series: int, resolution_s: int, start_s: int, point: Point) -> tuple[object, ...]:
    summary = (point.count, point.sum, point.minimum, point.maximum, encode_buckets(point))
    return (series, resolution_s, start_s, *summary)


class Writer:
    """The one that changes the file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._ids: dict[SeriesKey, tuple[int, int]] = {}  # id and last_s
        self._open: dict[tuple[int, int, int], Point] = {}
        self._newest_s = 0

    def add(self, additions: Iterable[Addition]) -> None:
        """Merge all of it into the file, or on an error (sqlite3.Error) nothing."""
        changed: dict[tuple[int, int, int], Point] = {}
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for series, resolution_s, start_s, point in politely(additions):
                if not point.count:
                    continue
                place = (self._series_id(series, start_s), resolution_s, start_s)
                found = changed.get(place)
                if found is None:
                    found = changed[place] = self._load(place)
                found.merge(point)
                self._newest_s = max(self._newest_s, start_s)
            rows = (_row(*place, point) for place, point in changed.items())
            self._connection.executemany(_REPLACE, politely(rows))
            self._connection.execute("COMMIT")
        except BaseException:
            # What is cached has been merged into and is not what the file has.
            self._forget()
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._keep_open(changed)

    def _keep_open(self, changed: dict[tuple[int, int, int], Point]) -> None:
        self._open |= changed
        horizon_s = self._newest_s - _OPEN_S
        self._open = {place: point for place, point in self._open.items() if place[2] >= horizon_s}
        if len(self._open) > _CACHED_POINTS_MAX:
            self._open.clear()
        if len(self._ids) > _CACHED_SERIES_MAX:
            self._ids.clear()

    def _forget(self) -> None:
        self._open.clear()
        self._ids.clear()

    def _load(self, place: tuple[int, int, int]) -> Point:
        point = self._open.get(place)
        if point is None:
            where = "series = ? AND resolution_s = ? AND start_s = ?"
            row = self._connection.execute(f"SELECT {_COLUMNS} FROM points WHERE {where}", place).fetchone()
            point = _point(row) if row else Point()
        return point

    def _series_id(self, key: SeriesKey, start_s: int) -> int:
        known = self._ids.get(key)
        if known is not None and start_s - known[1] < 60:
            return known[0]
        texts = (*key[:4], _dimensions_text(key.dimensions), key.unit)
        (number, last_s) = self._connection.execute(
            "INSERT INTO series (account, region, namespace, name, dimensions, unit, last_s) VALUES (?,?,?,?,?,?,?) "
            "ON CONFLICT DO UPDATE SET last_s = max(last_s, excluded.last_s) RETURNING id, last_s",
            (*texts, start_s),
        ).fetchone()
        self._ids[key] = (number, last_s)
        return int(number)

    # -- ageing

    def roll_up(self, now_s: int) -> None:
        """Make points coarser that have reached the age for it, and delete those that are too old."""
        for resolution_s, kept_s, coarser_s in RETENTION:
            self._age(resolution_s, now_s - kept_s, coarser_s)
        self._delete_empty_series(now_s)
        self._give_back()

    def shrink(self, bytes_max: int, now_s: int) -> None:
        """Make the file no larger than that: first the oldest days become coarser before their time, then the
        oldest data goes."""
        for resolution_s, _, coarser_s in RETENTION:
            while self.size_bytes() > bytes_max:
                oldest_s = self._oldest(resolution_s)
                # Fine points of the last day are worth more than coarse ones of last year, but not more than the disk.
                if oldest_s is None or (coarser_s is not None and oldest_s > now_s - DAY_S):
                    break
                self._age(resolution_s, oldest_s + DAY_S, coarser_s)
        while self.size_bytes() > bytes_max:
            starts = [start for resolution, _, _ in RETENTION if (start := self._oldest(resolution)) is not None]
            if not starts:
                break
            for resolution_s, _, _ in RETENTION:
                self._age(resolution_s, min(starts) + 2 * HOUR_S, None)
        self._delete_empty_series(now_s)
        self._give_back()

    def size_bytes(self) -> int:
        """What the file's used pages take, without the log that is written ahead."""
        pages, free, size = (
            self._connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("page_count", "freelist_count", "page_size")
        )
        return int((pages - free) * size)

    def _oldest(self, resolution_s: int) -> int | None:
        query = """SELECT min((SELECT min(start_s) FROM points WHERE series = id AND resolution_s = ?)) FROM series"""
        (start_s,) = self._connection.execute(query, (resolution_s,)).fetchone()
        return None if start_s is None else int(start_s)

    def _age(self, resolution_s: int, before_s: int, coarser_s: int | None) -> None:
        """Turn all points of a resolution that are older into the coarser ones, or delete them."""
        if coarser_s is not None:
            before_s = before_s // coarser_s * coarser_s
        where = "series = ? AND resolution_s = ? AND start_s < ?"
        self._forget()
        for (series,) in self._connection.execute("SELECT id FROM series").fetchall():
            place = (series, resolution_s, before_s)
            rows = self._connection.execute(f"SELECT start_s, {_COLUMNS} FROM points WHERE {where}", place).fetchall()
            if not rows:
                continue
            self._connection.execute("BEGIN IMMEDIATE")
            if coarser_s is not None:
                coarse: dict[int, Point] = {}
                for start_s, *summary in rows:
                    target_s = start_s // coarser_s * coarser_s
                    if target_s not in coarse:
                        coarse[target_s] = self._load((series, coarser_s, target_s))
                    coarse[target_s].merge(_point(summary))
                self._connection.executemany(_REPLACE, [_row(series, coarser_s, *entry) for entry in coarse.items()])
            self._connection.execute(f"DELETE FROM points WHERE {where}", place)
            self._connection.execute("COMMIT")

    def _delete_empty_series(self, now_s: int) -> None:
        self._ids.clear()
        self._connection.execute(
            "DELETE FROM series WHERE last_s < ? AND NOT EXISTS (SELECT 1 FROM points WHERE series = id)",
            (now_s - 15 * DAY_S,),
        )

    def _give_back(self) -> None:
        self._connection.execute("PRAGMA incremental_vacuum").fetchall()
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


# -- reading


def read_points(
    connection: sqlite3.Connection, series: SeriesKey, start_s: int, end_s: int, period_s: int
) -> dict[str, dict[int, Point]]:
    """Points of `period_s` from `start_s` (inclusive, where the first period begins) to `end_s` (exclusive), by unit
    and by their start. An empty `series.unit` means all units."""
    found: dict[str, dict[int, Point]] = {}
    texts = (*series[:4], _dimensions_text(series.dimensions))
    query = "SELECT id, unit FROM series WHERE (account, region, namespace, name, dimensions) = (?, ?, ?, ?, ?)"
    for number, unit in connection.execute(query, texts).fetchall():
        if series.unit not in ("", unit):
            continue
        points: dict[int, Point] = {}
        for resolution_s, _, _ in RETENTION:
            if period_s % resolution_s:
                continue
            rows = connection.execute(
                f"SELECT start_s, {_COLUMNS} FROM points "
                "WHERE series = ? AND resolution_s = ? AND start_s >= ? AND start_s < ?",
                (number, resolution_s, start_s, end_s),
            )
            for row_s, *summary in rows:
                bucket_s = row_s - (row_s - start_s) % period_s
                if bucket_s in points:
                    points[bucket_s].merge(_point(summary))
                else:
                    points[bucket_s] = _point(summary)
        if points:
            found[unit] = dict(sorted(points.items()))
    return found


def list_metrics(connection: sqlite3.Connection, selection: MetricSelection) -> Iterator[MetricName]:
    """Metrics in the order of namespace, name and dimensions."""
    conditions = ["account = ?", "region = ?", "last_s >= ?"]
    values: list[object] = [selection.account, selection.region, selection.since_s]
    for column, wanted in (("namespace", selection.namespace), ("name", selection.name)):
        if wanted is not None:
            conditions.append(f"{column} = ?")
            values.append(wanted)
    if selection.after is not None:
        conditions.append("(namespace, name, dimensions) > (?, ?, ?)")
        values += [*selection.after[:2], _dimensions_text(selection.after.dimensions)]
    rows = connection.execute(
        f"SELECT DISTINCT namespace, name, dimensions FROM series WHERE {' AND '.join(conditions)} ORDER BY 1, 2, 3",
        values,
    )
    for namespace, name, text in rows:
        dimensions = _dimensions(text)
        have = dict(dimensions)
        if all(key in have and value in (None, have[key]) for key, value in selection.dimensions):
            yield MetricName(namespace, name, dimensions)
