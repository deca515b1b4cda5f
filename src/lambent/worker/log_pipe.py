"""What a function writes: raw lines of stdout and stderr, and the framed records of AWS's runtime clients, on one pipe.

One pipe keeps the order between `print`, loggers and child processes. Raw output is cut into events at newlines; a
frame is one event whatever it contains:

    u32 type (0xa55a00..) | u32 length | u64 microseconds since 1970 | text      (big endian; fact sheet 3.2)

The parser never fails: what is no frame is text, and text that is not UTF-8 is shown with replacement characters.
"""

from __future__ import annotations

import struct

_HEAD = struct.Struct(">IIQ")
_MAGIC = b"\xa5\x5a\x00"
#: CloudWatch's limit for one event; longer ones are cut.
EVENT_MAX_BYTES = 1_048_576


class LogParser:
    """Bytes in, (timestamp_ms, message) out. `flush` gives the unfinished last line when the writer is done."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, now_ms: int) -> list[tuple[int, str]]:
        """Events completed by `data`; raw ones are stamped `now_ms`."""
        rest = self._rest + data if self._rest else data
        events: list[tuple[int, str]] = []
        while rest:
            at = rest.find(_MAGIC)
            if at != 0:
                raw = rest if at < 0 else rest[:at]
                tail = self._lines(raw, now_ms, events, final=at > 0)
                rest = tail if at < 0 else rest[at:]
                if at < 0:
                    break
                continue
            if len(rest) < _HEAD.size:
                break
            _, length, time_us = _HEAD.unpack_from(rest)
            if length > EVENT_MAX_BYTES * 4:  # no record of a runtime client; do not wait for it for ever
                events.append((now_ms, _text(rest[:3])))
                rest = rest[3:]
                continue
            stop = _HEAD.size + length
            if len(rest) < stop:
                break
            events.append((time_us // 1000 or now_ms, _text(rest[_HEAD.size : stop])))
            rest = rest[stop:]
        self._rest = rest
        return events

    def _lines(self, raw: bytes, now_ms: int, events: list[tuple[int, str]], final: bool) -> bytes:
        """Whole lines of `raw` become events; the unfinished one too when `final`, or when it is over the limit."""
        *lines, last = raw.split(b"\n")
        for line in lines:
            rest = _cut(line, now_ms, events)
            events.append((now_ms, _text(rest) + "\n"))
        last = _cut(last, now_ms, events)
        if final and last:
            events.append((now_ms, _text(last)))
            return b""
        return last

    def end_line(self, now_ms: int) -> list[tuple[int, str]]:
        """The unfinished line, when the invocation is over; a record under way stays."""
        return [] if not self._rest or self._rest.startswith(_MAGIC) else self.flush(now_ms)

    def flush(self, now_ms: int) -> list[tuple[int, str]]:
        """What is left, when the writer is gone."""
        rest, self._rest = self._rest, b""
        events: list[tuple[int, str]] = []
        rest = _cut(rest, now_ms, events)
        if rest:
            events.append((now_ms, _text(rest)))
        return events


def _cut(line: bytes, now_ms: int, events: list[tuple[int, str]]) -> bytes:
    """A line over the limit becomes events of that size; returns what is left of it."""
    while len(line) > EVENT_MAX_BYTES:
        events.append((now_ms, _text(line[:EVENT_MAX_BYTES])))
        line = line[EVENT_MAX_BYTES:]
    return line


def _text(raw: bytes) -> str:
    return raw[:EVENT_MAX_BYTES].decode("utf-8", "replace")
