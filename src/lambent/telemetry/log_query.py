"""Reading events out of segments: time range, streams, pattern, pages. Runs in a reader thread, on a
snapshot.

An event's position, `(timestamp, segment, frame offset, block, index in block)`, orders a group's events and
never changes, so it serves three ends: sort order, eventId, and page tokens. A token is a boundary *between*
events: `f/P` continues with positions >= P, `b/P` with positions < P, which is why both stay what they are at
either end of a stream, as CloudWatch's do.

Segments are visited in the order of their times and the visit ends as soon as no later segment can hold an
event of the page. A page ends at `limit` events or 1 MiB. A call that finds little ends after
_SCAN_BYTES_MAX, with what it has and a token to go on, as CloudWatch's FilterLogEvents does.
"""

from __future__ import annotations

import heapq
import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from lambent.telemetry import log_records
from lambent.telemetry.log_records import Frame

Position = tuple[int, int, int, int, int]
_WIDTHS: Final = (13, 12, 11, 10, 10)
_DIGITS: Final = sum(_WIDTHS)
_PAGE_BYTES_MAX: Final = 1024 * 1024
_SCAN_BYTES_MAX: Final = 256 * 1024 * 1024


class BadToken(ValueError):
    """A page token that this store never gave out."""


class LogEvent(NamedTuple):
    timestamp_ms: int
    message: str
    ingestion_ms: int
    stream: str
    event_id: str


class Page(NamedTuple):
    """Events by time. `forward` and `backward` are tokens of what lies beyond; `more` says whether the
    direction that was asked for goes on."""

    events: list[LogEvent]
    forward: str
    backward: str
    more: bool


class View(NamedTuple):
    """A segment as it was when the query began."""

    number: int
    path: pathlib.Path
    size_bytes: int
    first_ms: int
    last_ms: int


class Query(NamedTuple):
    views: list[View]
    #: Wanted streams: name by id.
    streams: dict[int, str]
    start_ms: int
    #: Exclusive.
    end_ms: int
    limit: int
    newest_first: bool
    #: Boundary from an earlier page.
    boundary: Position | None
    matches: Callable[[str], bool] | None


class _Found(NamedTuple):
    position: Position
    ingestion_ms: int
    stream: int
    message: str


def format_position(position: Position) -> str:
    return "".join(str(part).zfill(width) for part, width in zip(position, _WIDTHS, strict=True))


def parse_token(token: str) -> tuple[str, Position]:
    """Direction (`f` or `b`) and boundary of a page token."""
    match = re.fullmatch(rf"([fb])/([0-9]{{{_DIGITS}}})", token)
    if match is None:
        raise BadToken(token)
    parts: list[int] = []
    at = 0
    for width in _WIDTHS:
        parts.append(int(match[2][at : at + width]))
        at += width
    return match[1], (parts[0], parts[1], parts[2], parts[3], parts[4])


def run(query: Query) -> Page:
    """Execute a query."""
    start, end = max(query.start_ms, 0), min(query.end_ms, log_records.TIME_MAX_MS + 1)
    low: Position = (start, 0, 0, 0, 0)
    high: Position = (end, 0, 0, 0, 0)
    if query.boundary is not None and query.newest_first:
        high = min(high, query.boundary)
    elif query.boundary is not None:
        low = max(low, query.boundary)
    found, rest = _collect(query, low, high)
    found.sort(key=lambda one: one.position)
    page, more = _cut_page(found, query.limit, query.newest_first)
    if page:
        after = page[-1].position
        forward: Position = (*after[:4], after[4] + 1)
        backward = page[0].position
    else:
        # Nothing here: both tokens point at the boundary itself, so that asking again gives the same tokens.
        forward = backward = query.boundary or low
    if rest is not None and not more:
        # Not the end: the search stopped. Go on where it stopped rather than behind the last event found.
        more = True
        forward, backward = (forward, rest) if query.newest_first else (rest, backward)
    events = [
        LogEvent(
            one.position[0],
            one.message,
            one.ingestion_ms,
            query.streams[one.stream],
            format_position(one.position),
        )
        for one in page
    ]
    return Page(events, f"f/{format_position(forward)}", f"b/{format_position(backward)}", more)


def _cut_page(found: list[_Found], limit: int, newest_first: bool) -> tuple[list[_Found], bool]:
    """The first (or last) events that fit into a page, and whether any are left out."""
    count = size = 0
    for one in reversed(found) if newest_first else found:
        message = one.message
        size += len(message) if message.isascii() else len(message.encode())
        size += log_records.EVENT_OVERHEAD_BYTES
        if count == limit or (count and size > _PAGE_BYTES_MAX):
            break
        count += 1
    page = found[len(found) - count :] if newest_first else found[:count]
    return page, count < len(found)


class _Agenda:
    """Segments and frames in the order of their times; a segment gives way to its frames when its turn comes.

    Files are opened only then, so that a page from the middle of a long history reads what it needs.
    """

    def __init__(self, query: Query, low: Position, high: Position) -> None:
        self._query = query
        self._low_ms = low[0]
        self._high_ms = high[0]
        self._heap: list[tuple[int, int, View, Frame | None, bytes]] = []
        self._count = 0
        self.read_bytes = 0
        for view in query.views:
            self._add(view.first_ms, view.last_ms, view, None, b"")

    def _add(self, first_ms: int, last_ms: int, view: View, frame: Frame | None, data: bytes) -> None:
        if last_ms >= self._low_ms and first_ms <= self._high_ms:
            self._count += 1
            rank = -last_ms if self._query.newest_first else first_ms
            heapq.heappush(self._heap, (rank, self._count, view, frame, data))

    def next_frame(self) -> tuple[View, Frame, bytes] | None:
        while self._heap:
            _, _, view, frame, data = heapq.heappop(self._heap)
            if frame is not None:
                return view, frame, data
            try:
                with view.path.open("rb") as file:
                    data = file.read(view.size_bytes)
            except FileNotFoundError:
                continue  # deleted by retention after the query began
            self.read_bytes += len(data)
            for found in log_records.frames(data):
                self._add(found.first_ms, found.last_ms, view, found, data)
        return None

    def boundary(self) -> Position | None:
        """What is still to come lies at or behind this boundary (before it, going back); None at the end."""
        if not self._heap:
            return None
        rank = self._heap[0][0]
        return (1 - rank if self._query.newest_first else rank, 0, 0, 0, 0)


def _collect(query: Query, low: Position, high: Position) -> tuple[list[_Found], Position | None]:
    """Events between `low` and `high`, at least a page of those nearest to where the page starts.

    The second value is None when there can be no others, else the boundary up to which the first is complete.
    """
    agenda = _Agenda(query, low, high)
    found: list[_Found] = []
    size = 0
    enough_count, enough_bytes = query.limit + 1, 2 * _PAGE_BYTES_MAX
    while (unit := agenda.next_frame()) is not None:
        time.sleep(0)  # let the event loop have the interpreter between frames
        for one in _read(query, unit, low, high):
            found.append(one)
            size += len(one.message)
        full = len(found) >= enough_count or size >= enough_bytes
        if not full and agenda.read_bytes <= _SCAN_BYTES_MAX:
            continue
        boundary = agenda.boundary()
        if boundary is None:
            break
        if query.newest_first:
            certain = [one for one in found if one.position >= boundary]
            progress = boundary < high
        else:
            certain = [one for one in found if one.position < boundary]
            progress = boundary > low
        if full:
            if len(certain) > query.limit or sum([len(one.message) for one in certain]) > _PAGE_BYTES_MAX:
                return certain, boundary
            enough_count, enough_bytes = len(found) * 5 // 4 + 1, size * 5 // 4 + 1
        if progress and agenda.read_bytes > _SCAN_BYTES_MAX:
            return certain, boundary
    return found, None


def _read(query: Query, unit: tuple[View, Frame, bytes], low: Position, high: Position) -> Iterator[_Found]:
    """The wanted events of one frame."""
    view, frame, data = unit
    streams, matches, number = query.streams, query.matches, view.number
    try:
        for block, (stream, raw) in enumerate(log_records.blocks(data, frame)):
            if stream not in streams:
                continue
            for index, (stamp, message) in enumerate(log_records.events_of(raw)):
                position = (stamp, number, frame.offset, block, index)
                if low <= position < high and (matches is None or matches(message)):
                    yield _Found(position, frame.ingestion_ms, stream, message)
    except msgspec.DecodeError:
        return
