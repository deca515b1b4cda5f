"""Log events to bytes of a segment file and back.

A segment is a row of frames, each one flush of one group:

    u32 length of the body | u32 CRC-32 of the body | body
    body: i64 ingestion ms | i64 first timestamp ms | i64 last timestamp ms | msgpack [[stream id, [[ms,
    message]..]]..]

The times stand in front so that a reader can pass over a frame without decoding it; a block's events are
decoded only when its stream is wanted. Reading stops at the first frame that is cut short or fails its
checksum: what lies behind it cannot be trusted. Pure: bytes in, bytes out.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

Event = tuple[int, str]
#: A stream's id and its events, in the order in which they were written.
Batch = tuple[int, list[Event]]

#: CloudWatch Logs takes events of at most 1 MiB, and counts 26 bytes on top of each.
EVENT_BYTES_MAX: Final = 1024 * 1024
EVENT_OVERHEAD_BYTES: Final = 26
#: Times have 13 digits, which lasts until the year 2286.
TIME_MAX_MS: Final = 10**13 - 1
#: Batches are cut so that a frame stays near this; a reader holds one frame's events at a time.
FRAME_BYTES_AIM: Final = 1024 * 1024
#: No frame of ours is longer: one event's 4 MiB at worst (UTF-8) beyond the aim. A greater length is
#: corruption.
FRAME_BYTES_MAX: Final = 16 * 1024 * 1024

_HEAD = struct.Struct("<II")
_TIMES = struct.Struct("<qqq")
_BODY_MIN = _TIMES.size


class _Block(msgspec.Struct, array_like=True, frozen=True):
    stream: int
    events: msgspec.Raw


_ENCODER = msgspec.msgpack.Encoder()
_BLOCKS = msgspec.msgpack.Decoder(list[_Block])
_EVENTS = msgspec.msgpack.Decoder(list[Event])


class Frame(NamedTuple):
    offset: int
    end: int
    ingestion_ms: int
    first_ms: int
    last_ms: int


class BlockStats(NamedTuple):
    """What one batch adds to its stream."""

    stream: int
    first_ms: int
    last_ms: int
    size_bytes: int


def stats_of(batch: Batch) -> BlockStats:
    stream, events = batch
    stamps = [event[0] for event in events]
    size = sum([len(event[1]) for event in events])
    return BlockStats(stream, min(stamps), max(stamps), size + len(events) * EVENT_OVERHEAD_BYTES)


def shorten(message: str) -> str:
    """The longest beginning of `message` that CloudWatch would take as one event."""
    room = EVENT_BYTES_MAX - EVENT_OVERHEAD_BYTES
    data = message.encode("utf-8", "replace")
    return message if len(data) <= room else data[:room].decode("utf-8", "ignore")


def encode_frame(ingestion_ms: int, batches: list[Batch], stats: list[BlockStats]) -> bytes:
    """One frame of `batches`, none of them empty. Characters that UTF-8 has no bytes for become `?`."""
    try:
        blocks = _ENCODER.encode(batches)
    except UnicodeEncodeError:
        blocks = _ENCODER.encode([(stream, [_encodable(event) for event in events]) for stream, events in batches])
    first = min([one.first_ms for one in stats])
    last = max([one.last_ms for one in stats])
    body = _TIMES.pack(ingestion_ms, first, last) + blocks
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def _encodable(event: Event) -> Event:
    return event[0], event[1].encode("utf-8", "replace").decode("utf-8")


def split(batches: list[Batch]) -> Iterator[tuple[list[Batch], list[BlockStats]]]:
    """Cut batches into portions for frames, with their statistics."""
    portion: list[Batch] = []
    stats: list[BlockStats] = []
    total = 0
    for batch in batches:
        for part in _split_batch(batch):
            found = stats_of(part)
            if portion and total + found.size_bytes > FRAME_BYTES_AIM:
                yield portion, stats
                portion, stats, total = [], [], 0
            portion.append(part)
            stats.append(found)
            total += found.size_bytes
    if portion:
        yield portion, stats


def _split_batch(batch: Batch) -> Iterator[Batch]:
    """A batch in parts of about a frame. Most batches are a few lines and pass untouched."""
    stream, events = batch
    if len(events) * EVENT_OVERHEAD_BYTES + sum([len(event[1]) for event in events]) <= FRAME_BYTES_AIM:
        yield batch
        return
    part: list[Event] = []
    total = 0
    for event in events:
        if part and total + len(event[1]) > FRAME_BYTES_AIM:
            yield stream, part
            part, total = [], 0
        part.append(event)
        total += len(event[1]) + EVENT_OVERHEAD_BYTES
    yield stream, part


def frames(data: bytes) -> Iterator[Frame]:
    """The sound frames at the start of `data`; the last one's `end` is where trust ends."""
    offset = 0
    while len(data) - offset >= _HEAD.size:
        length, checksum = _HEAD.unpack_from(data, offset)
        start = offset + _HEAD.size
        end = start + length
        if not _BODY_MIN <= length <= FRAME_BYTES_MAX or end > len(data):
            return
        if zlib.crc32(memoryview(data)[start:end]) != checksum:
            return
        yield Frame(offset, end, *_TIMES.unpack_from(data, start))
        offset = end


def blocks(data: bytes, frame: Frame) -> list[tuple[int, msgspec.Raw]]:
    """Stream ids of a frame with their events, still encoded. Raises msgspec.DecodeError on foreign bytes."""
    start = frame.offset + _HEAD.size + _TIMES.size
    return [(block.stream, block.events) for block in _BLOCKS.decode(memoryview(data)[start : frame.end])]


def events_of(raw: msgspec.Raw) -> list[Event]:
    return _EVENTS.decode(raw)
