"""The hot side of log storage: lines wait here, in memory, from the write to the next flush.

Event-loop thread only, so no locks. What waits is bounded: beyond `buffer_bytes` the older half of every
stream's lines is dropped, and a line in the stream says how much is missing there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Final, NamedTuple

from lambent.telemetry import log_records
from lambent.telemetry.log_catalog import Group, Stream
from lambent.telemetry.log_files import LogGroupKey

#: What a line occupies in memory besides its characters: the tuple, the number, the string's header.
_LINE_MEMORY_BYTES: Final = 150
#: A string of no more characters than this fits into an event whatever the characters are.
_SURELY_SHORT_CHARS: Final = log_records.EVENT_BYTES_MAX // 4 - log_records.EVENT_OVERHEAD_BYTES


class LogStream:
    """Where one environment (or PutLogEvents) writes. Get it from LogStore.stream; event-loop thread only."""

    __slots__ = (
        "__weakref__",
        "_intake",
        "dropped_chars",
        "dropped_count",
        "group",
        "key",
        "name",
        "pending",
        "stream",
    )

    def __init__(self, intake: Intake, key: LogGroupKey, name: str) -> None:
        self._intake = intake
        self.key = key
        self.name = name
        self.pending: list[log_records.Event] = []
        self.dropped_count = 0
        self.dropped_chars = 0
        #: What the store found under key and name; may have been deleted since.
        self.group: Group | None = None
        self.stream: Stream | None = None

    def write(self, timestamp_ms: int, message: str) -> None:
        """Take one event. Group and stream are made anew if somebody has deleted them."""
        size = len(message)
        if size > _SURELY_SHORT_CHARS:
            message = log_records.shorten(message)
        if not 0 <= timestamp_ms <= log_records.TIME_MAX_MS:  # functions may stamp their own lines
            timestamp_ms = min(max(timestamp_ms, 0), log_records.TIME_MAX_MS)
        intake = self._intake
        pending = self.pending
        if not pending:
            intake.dirty.append(self)
        pending.append((timestamp_ms, message))
        intake.waiting_bytes += size + _LINE_MEMORY_BYTES
        if intake.waiting_bytes > intake.buffer_bytes:
            intake.drop_oldest()

    def write_many(self, events: list[tuple[int, str]]) -> None:
        """Take events in the order given."""
        for timestamp_ms, message in events:
            self.write(timestamp_ms, message)


class Waiting(NamedTuple):
    handle: LogStream
    events: list[log_records.Event]


class Intake:
    """All handles, and which of them have something waiting."""

    def __init__(self, buffer_bytes: int) -> None:
        self.buffer_bytes = buffer_bytes
        self.waiting_bytes = 0
        self.dropped_count = 0
        #: Handles with something to write. One may stand here twice; the second time it has nothing.
        self.dirty: list[LogStream] = []
        # Weak: an environment's handle goes when the environment and its unwritten lines are gone.
        self._handles: weakref.WeakValueDictionary[tuple[LogGroupKey, str], LogStream] = weakref.WeakValueDictionary()

    def handle(self, key: LogGroupKey, name: str) -> LogStream:
        """The one handle of that stream."""
        known = self._handles.get((key, name))
        if known is None:
            known = self._handles[key, name] = LogStream(self, key, name)
        return known

    def names_in_use(self, key: LogGroupKey) -> set[str]:
        """Streams of a group that somebody holds."""
        return {handle.name for handle in list(self._handles.values()) if handle.key == key}

    def take(self, now_ms: int) -> list[Waiting]:
        """Everything that waits; none of it waits any more."""
        dirty, self.dirty = self.dirty, []
        self.waiting_bytes = 0
        taken: list[Waiting] = []
        for handle in dirty:
            events, handle.pending = handle.pending, []
            if handle.dropped_count:
                events.insert(0, _marker(handle, events[0][0] if events else now_ms))
            if events:
                taken.append(Waiting(handle, events))
        return taken

    def put_back(self, handle: LogStream, events: list[log_records.Event]) -> None:
        """What could not be written waits again, ahead of what has come since."""
        handle.pending[:0] = events
        self.dirty.append(handle)
        self.waiting_bytes += sum([len(event[1]) for event in events]) + len(events) * _LINE_MEMORY_BYTES
        if self.waiting_bytes > self.buffer_bytes:
            self.drop_oldest()

    def drop_oldest(self) -> None:
        """The disk cannot keep up: forget the older half of what waits, and remember how much that was."""
        freed = 0
        for handle in self.dirty:
            count = (len(handle.pending) + 1) // 2
            chars = sum([len(event[1]) for event in handle.pending[:count]])
            del handle.pending[:count]
            handle.dropped_count += count
            handle.dropped_chars += chars
            self.dropped_count += count
            freed += chars + count * _LINE_MEMORY_BYTES
        self.waiting_bytes = max(0, self.waiting_bytes - freed)

    def forget(self, concerned: Callable[[LogStream], bool]) -> None:
        """What waits in these streams is not to be written: they are being deleted."""
        for handle in self.dirty:
            if concerned(handle):
                handle.pending = []
                handle.dropped_count = handle.dropped_chars = 0
        self.dirty = [handle for handle in self.dirty if not concerned(handle)]


def _marker(handle: LogStream, at_ms: int) -> log_records.Event:
    text = (
        f"LAMBENT dropped {handle.dropped_count} log lines ({handle.dropped_chars} characters) of this stream here: "
        "they came faster than the disk took them."
    )
    handle.dropped_count = handle.dropped_chars = 0
    return at_ms, text
