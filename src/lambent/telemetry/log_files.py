"""One log group's directory: metadata, streams, segments. Synchronous; `log_store` calls it in its writer
thread.

    group.json      name, creation time, retention, tags; replaced as a whole
    streams         journal of streams made and deleted; checksummed entries, a torn end is cut off
    00000007.log    segment: frames (see log_records), only ever appended to
    00000007.idx    per-stream summary of a finished segment; rebuilt from the segment when missing or out of date

Nothing here is synchronised to the platter: what was flushed survives the death of the process, not of the
machine.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import pathlib
import shutil
import struct
import time
import zlib
from typing import Any, Final, NamedTuple

import msgspec

from lambent.telemetry import log_records

_log = logging.getLogger("lambent.telemetry")
_ENTRY = struct.Struct("<II")
_METADATA: Final = "group.json"
_JOURNAL: Final = "streams"


class LogGroupKey(NamedTuple):
    account: str
    region: str
    group: str


@dataclasses.dataclass(slots=True)
class StreamStats:
    """What a segment, or all segments of a group, hold of one stream."""

    first_ms: int
    last_ms: int
    size_bytes: int
    ingestion_ms: int

    def add(self, other: StreamStats) -> None:
        self.first_ms = min(self.first_ms, other.first_ms)
        self.last_ms = max(self.last_ms, other.last_ms)
        self.ingestion_ms = max(self.ingestion_ms, other.ingestion_ms)
        self.size_bytes += other.size_bytes


@dataclasses.dataclass(slots=True, eq=False)
class Segment:
    """A segment file. `size_bytes` is the part of it that is written and readable."""

    number: int
    path: pathlib.Path
    size_bytes: int = 0
    ingestion_ms: int = 0
    first_ms: int = 0
    last_ms: int = -1
    streams: dict[int, StreamStats] = dataclasses.field(default_factory=dict)

    def add(self, stream: int, stats: StreamStats) -> None:
        """Account for events of a stream that have been written."""
        if self.streams:
            self.first_ms = min(self.first_ms, stats.first_ms)
            self.last_ms = max(self.last_ms, stats.last_ms)
        else:
            self.first_ms, self.last_ms = stats.first_ms, stats.last_ms
        self.ingestion_ms = max(self.ingestion_ms, stats.ingestion_ms)
        known = self.streams.get(stream)
        if known is None:
            self.streams[stream] = dataclasses.replace(stats)
        else:
            known.add(stats)


class GroupMetadata(msgspec.Struct):
    account: str
    region: str
    name: str
    created_ms: int
    retention_days: int | None = None
    tags: dict[str, str] = {}
    log_class: str = "STANDARD"
    kms_key: str | None = None
    protected: bool = False


class StreamEntry(NamedTuple):
    """A line of the journal: a stream that was made, or (`created_ms` None) deleted."""

    id: int
    name: str
    created_ms: int | None


class _Index(msgspec.Struct, array_like=True):
    size_bytes: int
    streams: dict[int, tuple[int, int, int, int]]


class StoredGroup(NamedTuple):
    """What a directory holds."""

    metadata: GroupMetadata
    streams: list[StreamEntry]
    segments: list[Segment]
    #: Highest id ever given to a stream, so that no id is given twice.
    last_stream: int


_INDEX = msgspec.msgpack.Decoder(_Index)
_STREAM_ENTRY = msgspec.msgpack.Decoder(tuple[int, str, int | None])


# -- reading a directory


def load_group(directory: pathlib.Path) -> StoredGroup | None:
    """Read a group's directory and mend what a crash has left. None when it is no group."""
    try:
        metadata = msgspec.json.decode((directory / _METADATA).read_bytes(), type=GroupMetadata)
    except (OSError, msgspec.DecodeError):
        return None
    entries = _load_journal(directory / _JOURNAL)
    alive: dict[int, StreamEntry] = {}
    for entry in entries:
        if entry.created_ms is None:
            alive.pop(entry.id, None)
        else:
            alive[entry.id] = entry
    if len(entries) > 2 * len(alive) + 100:
        _replace(directory / _JOURNAL, b"".join(_encode_entry(entry) for entry in alive.values()))
    segments = [_load_segment(path) for path in sorted(directory.glob("*.log"))]
    last_stream = max((entry.id for entry in entries), default=0)
    for segment in segments:
        last_stream = max(last_stream, *segment.streams, 0)
    return StoredGroup(metadata, list(alive.values()), segments, last_stream)


def _load_journal(path: pathlib.Path) -> list[StreamEntry]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    entries: list[StreamEntry] = []
    offset = 0
    while len(data) - offset >= _ENTRY.size:
        length, checksum = _ENTRY.unpack_from(data, offset)
        body = data[offset + _ENTRY.size : offset + _ENTRY.size + length]
        if len(body) < length or zlib.crc32(body) != checksum:
            break
        try:
            entries.append(StreamEntry(*_STREAM_ENTRY.decode(body)))
        except msgspec.DecodeError:
            break
        offset += _ENTRY.size + length
    _cut(path, offset, len(data))
    return entries


def _load_segment(path: pathlib.Path) -> Segment:
    """A segment's summary, from its index when that is up to date, else from the segment itself."""
    segment = Segment(int(path.stem), path)
    size = path.stat().st_size
    try:
        index = _INDEX.decode(path.with_suffix(".idx").read_bytes())
    except (OSError, msgspec.DecodeError):
        index = None
    if index is not None and index.size_bytes == size:
        segment.size_bytes = size
        for stream, values in index.streams.items():
            segment.add(stream, StreamStats(*values))
        return segment
    scan(segment, path.read_bytes())
    _cut(path, segment.size_bytes, size)
    return segment


def scan(segment: Segment, data: bytes) -> None:
    """Fill a segment's summary from its bytes; `size_bytes` becomes the length of what is sound."""
    for frame in log_records.frames(data):
        try:
            for stream, raw in log_records.blocks(data, frame):
                events = log_records.events_of(raw)
                if events:
                    found = log_records.stats_of((stream, events))
                    segment.add(
                        stream, StreamStats(found.first_ms, found.last_ms, found.size_bytes, frame.ingestion_ms)
                    )
        except msgspec.DecodeError:
            return
        segment.size_bytes = frame.end


def _cut(path: pathlib.Path, sound: int, size: int) -> None:
    if sound < size:
        _log.warning("%s: cut off %d bytes of an unfinished write", path, size - sound)
        os.truncate(path, sound)


# -- writing


class GroupJob(NamedTuple):
    """All that one flush has to write for one group."""

    directory: pathlib.Path
    metadata: GroupMetadata | None
    entries: list[StreamEntry]
    #: Finished segments whose index is to be written: path and bytes.
    seals: list[tuple[pathlib.Path, bytes]]
    segment: pathlib.Path
    #: Where the segment ends as far as we know; anything behind is the rest of a failed write.
    offset: int
    ingestion_ms: int
    batches: list[log_records.Batch]


class GroupResult(NamedTuple):
    written_bytes: int
    stats: list[log_records.BlockStats]
    error: OSError | None


def write_groups(jobs: list[GroupJob]) -> list[GroupResult]:
    """Do the jobs of a flush one after another."""
    results: list[GroupResult] = []
    for job in jobs:
        results.append(write_group(job))
        time.sleep(0)  # the event loop may want the interpreter
    return results


def write_group(job: GroupJob) -> GroupResult:
    """Do a job. On an error of the disk nothing of the batches counts as written."""
    try:
        if job.metadata is not None:
            job.directory.mkdir(parents=True, exist_ok=True)
            _replace(job.directory / _METADATA, msgspec.json.encode(job.metadata))
        if job.entries:
            _append(job.directory / _JOURNAL, b"".join(_encode_entry(entry) for entry in job.entries))
        for path, content in job.seals:
            _replace(path, content)
        data = bytearray()
        stats: list[log_records.BlockStats] = []
        for portion, found in log_records.split(job.batches):
            data += log_records.encode_frame(job.ingestion_ms, portion, found)
            stats += found
        if data:
            _append(job.segment, data, job.offset)
    except OSError as error:
        return GroupResult(0, [], error)
    return GroupResult(len(data), stats, None)


def encode_index(segment: Segment) -> bytes:
    streams: dict[int, Any] = {
        stream: (stats.first_ms, stats.last_ms, stats.size_bytes, stats.ingestion_ms)
        for stream, stats in segment.streams.items()
    }
    return msgspec.msgpack.encode(_Index(segment.size_bytes, streams))


def delete_segments(paths: list[pathlib.Path]) -> None:
    for path in paths:
        for victim in (path, path.with_suffix(".idx")):
            try:
                victim.unlink(missing_ok=True)
            except OSError as problem:
                _log.error("cannot delete %s: %s", victim, problem)


def delete_directory(directory: pathlib.Path) -> None:
    """Delete a group. Its metadata goes first: without it, what a crash leaves is swept away at the next
    start."""
    try:
        (directory / _METADATA).unlink(missing_ok=True)
        shutil.rmtree(directory)
    except FileNotFoundError:
        pass
    except OSError as problem:
        _log.error("cannot delete %s: %s", directory, problem)


def _encode_entry(entry: StreamEntry) -> bytes:
    body = msgspec.msgpack.encode(tuple(entry))
    return _ENTRY.pack(len(body), zlib.crc32(body)) + body


def _append(path: pathlib.Path, data: bytes | bytearray, offset: int | None = None) -> None:
    """Append, at `offset` when given: a failed write's remains are overwritten."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if offset is not None and end != offset:
            os.ftruncate(descriptor, offset)
            os.lseek(descriptor, offset, os.SEEK_SET)
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
    finally:
        os.close(descriptor)


def _replace(path: pathlib.Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.replace(path)
