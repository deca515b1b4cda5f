"""Groups and streams in memory: what exists, what of it has still to be written, what their segments hold.

Belongs to the event-loop thread. The writer thread gets copies (`log_files.GroupJob`) and gives back results;
it never touches these objects.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from lambent.telemetry import log_files, log_query
from lambent.telemetry.log_files import GroupMetadata, LogGroupKey, Segment, StreamEntry, StreamStats


class LogStoreError(Exception):
    """Something about groups or streams that the caller got wrong."""


class GroupMissing(LogStoreError):
    pass


class StreamMissing(LogStoreError):
    pass


class GroupExists(LogStoreError):
    pass


class StreamExists(LogStoreError):
    pass


class GroupInfo(NamedTuple):
    key: LogGroupKey
    created_ms: int
    retention_days: int | None
    stored_bytes: int
    tags: dict[str, str]
    log_class: str
    kms_key: str | None
    protected: bool


class StreamInfo(NamedTuple):
    name: str
    created_ms: int
    first_event_ms: int | None
    last_event_ms: int | None
    last_ingestion_ms: int | None
    stored_bytes: int


@dataclasses.dataclass(slots=True, eq=False)
class Stream:
    id: int
    name: str
    created_ms: int
    #: None while it holds no event. First and last are too wide while `stale`.
    stats: StreamStats | None = None
    #: In how many segments it has events.
    segment_count: int = 0
    stale: bool = False
    deleted: bool = False

    def info(self) -> StreamInfo:
        stats = self.stats
        if stats is None:
            return StreamInfo(self.name, self.created_ms, None, None, None, 0)
        return StreamInfo(
            self.name, self.created_ms, stats.first_ms, stats.last_ms, stats.ingestion_ms, stats.size_bytes
        )


class Group:
    """One log group, with its streams and segments (oldest first; only the last is written to)."""

    def __init__(self, directory: pathlib.Path, metadata: GroupMetadata) -> None:
        self.directory = directory
        self.metadata = metadata
        self.key = LogGroupKey(metadata.account, metadata.region, metadata.name)
        self.streams: dict[str, Stream] = {}
        self.by_id: dict[int, Stream] = {}
        self.segments: list[Segment] = []
        self.deleted = False
        #: What the next flush has to write.
        self.metadata_changed = True
        self.new_entries: list[StreamEntry] = []
        self.seals: list[tuple[pathlib.Path, bytes]] = []
        self._last_stream = 0
        self._last_segment = 0

    @classmethod
    def load(cls, directory: pathlib.Path) -> Group | None:
        stored = log_files.load_group(directory)
        if stored is None:
            return None
        group = cls(directory, stored.metadata)
        group.metadata_changed = False
        group._last_stream = stored.last_stream
        group.segments = stored.segments
        group._last_segment = max((segment.number for segment in stored.segments), default=0)
        for entry in stored.streams:
            stream = Stream(entry.id, entry.name, entry.created_ms or 0)
            group.streams[entry.name] = group.by_id[entry.id] = stream
        for segment in group.segments:
            for stream_id, stats in segment.streams.items():
                group._credit(stream_id, stats, new_segment=True)
        return group

    def stream_info(self, stream: Stream) -> StreamInfo:
        """What is known of a stream; after a deletion of segments its times are looked up in what remains."""
        if stream.stale and stream.stats is not None:
            stream.stale = False
            parts = [segment.streams[stream.id] for segment in self.segments if stream.id in segment.streams]
            stream.stats.first_ms = min(part.first_ms for part in parts)
            stream.stats.last_ms = max(part.last_ms for part in parts)
        return stream.info()

    def _credit(self, stream_id: int, stats: StreamStats, *, new_segment: bool) -> None:
        """A segment holds (more) events of a stream."""
        stream = self.by_id.get(stream_id)
        if stream is None:
            return
        stream.segment_count += new_segment
        if stream.stats is None:
            stream.stats = dataclasses.replace(stats)
        else:
            stream.stats.add(stats)

    def info(self) -> GroupInfo:
        known = self.metadata
        return GroupInfo(
            self.key,
            known.created_ms,
            known.retention_days,
            self.size_bytes,
            dict(known.tags),
            known.log_class,
            known.kms_key,
            known.protected,
        )

    @property
    def size_bytes(self) -> int:
        return sum(segment.size_bytes for segment in self.segments)

    def add_stream(self, name: str, now_ms: int) -> Stream:
        """Make a stream that does not exist."""
        assert name not in self.streams
        self._last_stream += 1
        stream = Stream(self._last_stream, name, now_ms)
        self.streams[name] = self.by_id[stream.id] = stream
        self.new_entries.append(StreamEntry(stream.id, name, now_ms))
        return stream

    def remove_stream(self, stream: Stream) -> None:
        """Forget a stream. Its events stay in the segments, unreachable, until these are deleted."""
        stream.deleted = True
        del self.streams[stream.name]
        del self.by_id[stream.id]
        self.new_entries.append(StreamEntry(stream.id, stream.name, None))

    def segment_for_writing(self, segment_bytes_max: int) -> Segment:
        """The segment that takes the next frames; a full one is finished first."""
        last = self.segments[-1] if self.segments else None
        if last is None or last.size_bytes >= segment_bytes_max:
            if last is not None:
                self.seal(last)
            self._last_segment += 1
            last = Segment(self._last_segment, self.directory / f"{self._last_segment:08d}.log")
            self.segments.append(last)
        return last

    def seal(self, segment: Segment) -> None:
        """Have the segment's index written with the next flush."""
        self.seals.append((segment.path.with_suffix(".idx"), log_files.encode_index(segment)))

    def written(self, segment: Segment, result: log_files.GroupResult, ingestion_ms: int) -> None:
        """Account for what a flush has written."""
        segment.size_bytes += result.written_bytes
        for found in result.stats:
            new = found.stream not in segment.streams
            fresh = StreamStats(found.first_ms, found.last_ms, found.size_bytes, ingestion_ms)
            segment.add(found.stream, fresh)
            self._credit(found.stream, fresh, new_segment=new)

    def drop_segment(self, segment: Segment, in_use: set[str]) -> None:
        """Forget a segment, and streams that lose their last event by it unless somebody still writes to
        them."""
        self.segments.remove(segment)
        index = segment.path.with_suffix(".idx")
        self.seals = [seal for seal in self.seals if seal[0] != index]
        for stream_id, part in segment.streams.items():
            stream = self.by_id.get(stream_id)
            if stream is None or stream.stats is None:
                continue
            stream.segment_count -= 1
            stream.stats.size_bytes -= part.size_bytes
            stream.stale = True
            if stream.segment_count == 0:
                stream.stats = None
                if stream.name not in in_use:
                    self.remove_stream(stream)

    def views(self, wanted: set[int]) -> list[log_query.View]:
        """The segments that hold events of any of the streams, as they are now."""
        views: list[log_query.View] = []
        for segment in self.segments:
            few, many = sorted((wanted, segment.streams.keys()), key=len)
            if any(stream in many for stream in few):
                views.append(
                    log_query.View(segment.number, segment.path, segment.size_bytes, segment.first_ms, segment.last_ms)
                )
        return views


# -- lists, a page at a time


class GroupSelection(NamedTuple):
    prefix: str = ""
    #: Looked for anywhere in the name, without regard to case.
    pattern: str = ""
    names: frozenset[str] | None = None
    log_class: str | None = None
    limit: int = 50
    #: The name of the last group of the page before.
    token: str | None = None


class StreamSelection(NamedTuple):
    prefix: str = ""
    by_last_event: bool = False
    descending: bool = False
    limit: int = 50
    token: str | None = None


def select_groups(groups: Iterable[Group], selection: GroupSelection) -> tuple[list[GroupInfo], str | None]:
    """Groups of one account and region by name, and a token if there are more."""
    lowered = selection.pattern.lower()
    found = {
        group.key.group: group
        for group in groups
        if group.key.group.startswith(selection.prefix)
        and lowered in group.key.group.lower()
        and (selection.names is None or group.key.group in selection.names)
        and selection.log_class in (None, group.metadata.log_class)
        and (selection.token is None or group.key.group > selection.token)
    }
    page = sorted(found)[: selection.limit]
    return [found[name].info() for name in page], page[-1] if len(found) > len(page) else None


def select_streams(group: Group, selection: StreamSelection) -> tuple[list[StreamInfo], str | None]:
    """A group's streams in order, and a token (rank of the last one) if there are more. Raises BadToken."""

    def rank(stream: Stream) -> tuple[int, str]:
        return stream.stats.last_ms if selection.by_last_event and stream.stats else 0, stream.name

    ranked = [(rank(one), one) for one in group.streams.values() if one.name.startswith(selection.prefix)]
    ranked.sort(key=lambda pair: pair[0], reverse=selection.descending)
    if selection.token is not None:
        last, _, name = selection.token.partition("/")
        if not (last.isascii() and last.isdigit() and len(last) < 20):
            raise log_query.BadToken(selection.token)
        behind = (int(last), name)
        ranked = [pair for pair in ranked if (pair[0] < behind if selection.descending else pair[0] > behind)]
    page = ranked[: selection.limit]
    token = f"{page[-1][0][0]}/{page[-1][0][1]}" if len(ranked) > len(page) else None
    return [group.stream_info(stream) for _, stream in page], token


# -- in the writer thread


def open_directory(directory: pathlib.Path) -> tuple[list[Group], int]:
    """The groups in `directory`, and the highest number of a directory in use."""
    directory.mkdir(parents=True, exist_ok=True)
    groups: list[Group] = []
    last = 0
    for path in sorted(directory.iterdir()):
        if not (path.is_dir() and re.fullmatch(r"[0-9]{8,}", path.name)):
            continue
        last = max(last, int(path.name))
        group = Group.load(path)
        if group is not None:
            groups.append(group)
        else:
            log_files.delete_directory(path)  # half made or half deleted when the process died
    return groups, last
