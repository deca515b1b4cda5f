"""Log storage: lines from environments in, CloudWatch-like queries out, on local disk.

Hot side (log_intake): `LogStream.write` appends to a list in memory and returns. Every `flush_interval_ms`
what has gathered is handed to one writer thread, which encodes it and appends it to segment files, one
directory per group. `flush()` returns when everything written before the call can be read. Memory is bounded
by `buffer_bytes` of what waits, and as much again being written.

Disk. Segments are appended to and deleted whole, never changed: the oldest one goes when the total exceeds
`retention_bytes`, and any that lies wholly behind its group's retentionInDays. A kill -9 loses at most what
was not flushed; a torn frame at a segment's end is cut off when the store is opened.

Cold side. Everything asynchronous; files are read in other threads, from a snapshot of the list of segments.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import pathlib
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, NamedTuple

from lambent.telemetry import log_files, log_query, log_records
from lambent.telemetry.log_catalog import (
    Group,
    GroupExists,
    GroupInfo,
    GroupMissing,
    GroupSelection,
    Stream,
    StreamExists,
    StreamInfo,
    StreamMissing,
    StreamSelection,
    open_directory,
    select_groups,
    select_streams,
)
from lambent.telemetry.log_files import GroupJob, GroupMetadata, GroupResult, LogGroupKey, Segment
from lambent.telemetry.log_intake import Intake, LogStream
from lambent.telemetry.log_query import BadToken, LogEvent, Page

__all__ = ["BadToken", "LogEvent", "LogGroupKey", "LogStore", "LogStream", "Page", "Statistics"]

_log = logging.getLogger("lambent.telemetry")

MIB: Final = 1024 * 1024
DAY_MS: Final = 24 * 60 * 60 * 1000
_SEGMENT_BYTES_MAX: Final = 8 * MIB
_SEGMENT_BYTES_MIN: Final = 64 * 1024
_EXPIRY_INTERVAL_S: Final = 60.0
_REST: Final = 9
_PAUSE_MAX_S: Final = 1.0
_FOREVER_MS: Final = 10**13


class Statistics(NamedTuple):
    """What the store has done since it was opened, and what it holds."""

    lines_written: int
    lines_dropped: int
    waiting_bytes: int
    stored_bytes: int
    group_count: int
    segment_count: int


class LogStore:
    """All log groups of all accounts and regions, in one directory that belongs to this store alone."""

    def __init__(
        self,
        directory: pathlib.Path,
        retention_bytes: int = 1024 * MIB,
        flush_interval_ms: int = 100,
        *,
        buffer_bytes: int = 64 * MIB,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._directory = directory
        self._retention_bytes = retention_bytes
        self._flush_interval_s = flush_interval_ms / 1000
        self._segment_bytes = max(_SEGMENT_BYTES_MIN, min(_SEGMENT_BYTES_MAX, retention_bytes // 8))
        self._clock_ms = clock_ms
        self._groups: dict[LogGroupKey, Group] = {}
        self._last_directory = 0
        self._stored_bytes = 0
        self._intake = Intake(buffer_bytes)
        #: Groups with something to write that is not events.
        self._unsaved: set[Group] = set()
        #: Groups whose last write went wrong.
        self._failing: set[Group] = set()
        self._lines_written = 0
        #: One flush or change of the catalogue at a time.
        self._turn = asyncio.Lock()
        self._writer = concurrent.futures.ThreadPoolExecutor(1, "log-writer")
        self._readers = concurrent.futures.ThreadPoolExecutor(2, "log-reader")
        self._flusher: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._running: set[asyncio.Task[None]] = set()

    # -- life

    async def start(self) -> None:
        """Read what the directory holds, mend what a crash left, and begin to flush."""
        assert self._flusher is None
        loop = asyncio.get_running_loop()
        groups, self._last_directory = await loop.run_in_executor(self._writer, open_directory, self._directory)
        for group in groups:
            self._groups[group.key] = group
            self._stored_bytes += group.size_bytes
        self._flusher = asyncio.create_task(self._flush_periodically())

    async def close(self) -> None:
        """Write everything, with the indexes that make the next start fast, and stop."""
        self._stopping.set()
        if self._flusher is not None:
            await self._flusher
        await self.flush()
        async with self._turn:
            for group in self._groups.values():
                if group.segments:
                    group.seal(group.segments[-1])
                    self._unsaved.add(group)
        await self.flush()
        self._writer.shutdown()
        self._readers.shutdown()

    def statistics(self) -> Statistics:
        return Statistics(
            self._lines_written,
            self._intake.dropped_count,
            self._intake.waiting_bytes,
            self._stored_bytes,
            len(self._groups),
            sum(len(group.segments) for group in self._groups.values()),
        )

    # -- hot side

    def stream(self, key: LogGroupKey, name: str) -> LogStream:
        """The stream to write to; it and its group exist from now on."""
        assert self._flusher is not None, "start() first"
        handle = self._intake.handle(key, name)
        self._resolve(handle, self._clock_ms())
        return handle

    # -- flushing

    async def flush(self) -> None:
        """Return when all that was written before the call can be read."""
        # Shielded: a caller that goes away must not leave a write unaccounted for.
        await self._finish(self._flush())

    async def _finish(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        await asyncio.shield(task)

    async def _flush_periodically(self) -> None:
        next_expiry = time.monotonic() + _EXPIRY_INTERVAL_S
        pause_s = self._flush_interval_s
        while not self._stopping.is_set():
            try:
                await asyncio.wait_for(self._stopping.wait(), pause_s)
            except TimeoutError:
                pass
            try:
                started = time.monotonic()
                if self._intake.dirty or self._unsaved:
                    await self.flush()
                # Very many groups make a flush slow: rest for longer than it took, to leave the processor alone.
                pause_s = max(self._flush_interval_s, min(_REST * (time.monotonic() - started), _PAUSE_MAX_S))
                if time.monotonic() >= next_expiry:
                    next_expiry = time.monotonic() + _EXPIRY_INTERVAL_S
                    await self.expire()
            except Exception:
                _log.exception("bug in Lambent: a flush of the logs failed")

    async def _flush(self) -> None:
        async with self._turn:
            if not self._intake.dirty and not self._unsaved:
                return
            now_ms = self._clock_ms()
            work = self._take(now_ms)
            jobs = [job for _, _, job in work]
            loop = asyncio.get_running_loop()
            results = await loop.run_in_executor(self._writer, log_files.write_groups, jobs)
            for (group, segment, job), result in zip(work, results, strict=True):
                self._account(group, segment, job, result)
            await self._shrink()

    def _take(self, now_ms: int) -> list[tuple[Group, Segment | None, GroupJob]]:
        """Everything that waits, as one job for each group."""
        batches: dict[Group, list[log_records.Batch]] = {}
        for handle, events in self._intake.take(now_ms):
            group, stream = self._resolve(handle, now_ms)
            batches.setdefault(group, []).append((stream.id, events))
        work: list[tuple[Group, Segment | None, GroupJob]] = []
        for group in self._unsaved.union(batches):
            found = batches.get(group, [])
            segment = group.segment_for_writing(self._segment_bytes) if found else None
            job = GroupJob(
                group.directory,
                group.metadata if group.metadata_changed else None,
                group.new_entries,
                group.seals,
                segment.path if segment else group.directory,
                segment.size_bytes if segment else 0,
                now_ms,
                found,
            )
            group.metadata_changed = False
            group.new_entries, group.seals = [], []
            work.append((group, segment, job))
        self._unsaved.clear()
        return work

    def _resolve(self, handle: LogStream, now_ms: int) -> tuple[Group, Stream]:
        """The group and stream behind a handle, made anew if they have been deleted."""
        group, stream = handle.group, handle.stream
        if group is None or group.deleted:
            group = handle.group = self._groups.get(handle.key) or self._add_group(handle.key, now_ms)
            stream = None
        if stream is None or stream.deleted:
            stream = group.streams.get(handle.name)
            if stream is None:
                stream = group.add_stream(handle.name, now_ms)
                self._unsaved.add(group)
            handle.stream = stream
        return group, stream

    def _add_group(self, key: LogGroupKey, now_ms: int) -> Group:
        self._last_directory += 1
        directory = self._directory / f"{self._last_directory:08d}"
        group = self._groups[key] = Group(directory, GroupMetadata(key.account, key.region, key.group, now_ms))
        self._unsaved.add(group)
        return group

    def _account(self, group: Group, segment: Segment | None, job: GroupJob, result: GroupResult) -> None:
        """Make what a job has written visible; keep for the next flush what it could not write."""
        if result.error is None:
            if segment is not None:
                group.written(segment, result, job.ingestion_ms)
                self._stored_bytes += result.written_bytes
                self._lines_written += sum([len(events) for _, events in job.batches])
            self._failing.discard(group)
            return
        if group not in self._failing:  # say it once, not ten times a second
            self._failing.add(group)
            _log.error("cannot write the logs of %s: %s", group.key.group, result.error)
        group.metadata_changed = group.metadata_changed or job.metadata is not None
        group.new_entries = job.entries + group.new_entries
        group.seals = job.seals + group.seals
        self._unsaved.add(group)
        for stream_id, events in job.batches:
            stream = group.by_id.get(stream_id)
            if stream is not None:
                self._intake.put_back(self.stream(group.key, stream.name), events)

    # -- retention

    async def _shrink(self) -> None:
        """Delete the oldest segments until the total fits. Holds the turn."""
        victims: list[Segment] = []
        while self._stored_bytes > self._retention_bytes:
            candidates = [(segment, group) for group in self._groups.values() for segment in group.segments]
            if len(candidates) <= 1:
                break
            segment, group = min(candidates, key=lambda pair: (pair[0].ingestion_ms, pair[0].number))
            self._drop(group, segment)
            victims.append(segment)
        await self._delete(victims)

    async def expire(self) -> None:
        """Delete segments that lie wholly behind their group's retentionInDays. Runs by itself every minute."""
        async with self._turn:
            victims: list[Segment] = []
            for group in self._groups.values():
                oldest_ms = self._oldest_ms(group)
                for segment in list(group.segments):
                    if segment.streams and segment.last_ms < oldest_ms:
                        self._drop(group, segment)
                        victims.append(segment)
            await self._delete(victims)

    def _drop(self, group: Group, segment: Segment) -> None:
        group.drop_segment(segment, self._intake.names_in_use(group.key))
        self._stored_bytes -= segment.size_bytes
        if group.new_entries:
            self._unsaved.add(group)

    async def _delete(self, victims: list[Segment]) -> None:
        if victims:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writer, log_files.delete_segments, [segment.path for segment in victims])

    def _oldest_ms(self, group: Group) -> int:
        """Events before this moment have expired."""
        days = group.metadata.retention_days
        return 0 if days is None else self._clock_ms() - days * DAY_MS

    # -- groups and streams

    def _group(self, key: LogGroupKey) -> Group:
        group = self._groups.get(key)
        if group is None:
            raise GroupMissing(key.group)
        return group

    def _stream(self, key: LogGroupKey, name: str) -> tuple[Group, Stream]:
        group = self._group(key)
        stream = group.streams.get(name)
        if stream is None:
            raise StreamMissing(name)
        return group, stream

    def group(self, key: LogGroupKey) -> GroupInfo:
        """Raises GroupMissing."""
        return self._group(key).info()

    def has_stream(self, key: LogGroupKey, name: str) -> bool:
        """Whether the stream exists; raises GroupMissing."""
        return name in self._group(key).streams

    async def create_group(
        self,
        key: LogGroupKey,
        tags: dict[str, str] | None = None,
        *,
        log_class: str = "STANDARD",
        kms_key: str | None = None,
        protected: bool = False,
    ) -> None:
        """Make an empty group; on disk when this returns. Raises GroupExists."""
        if key in self._groups:
            raise GroupExists(key.group)
        group = self._add_group(key, self._clock_ms())
        group.metadata.tags = dict(tags or {})
        group.metadata.log_class, group.metadata.kms_key = log_class, kms_key
        group.metadata.protected = protected
        await self.flush()

    async def create_stream(self, key: LogGroupKey, name: str) -> None:
        """Make an empty stream; on disk when this returns. Raises GroupMissing, StreamExists."""
        if self.has_stream(key, name):
            raise StreamExists(name)
        group = self._group(key)
        group.add_stream(name, self._clock_ms())
        self._unsaved.add(group)
        await self.flush()

    async def delete_group(self, key: LogGroupKey) -> None:
        """Delete the group with its data, also what still waits. Whoever writes to it later makes a new
        one."""
        self._group(key)
        await self._finish(self._delete_group(key))

    async def _delete_group(self, key: LogGroupKey) -> None:
        async with self._turn:
            group = self._groups.pop(key, None)
            if group is None:
                return
            group.deleted = True
            self._unsaved.discard(group)
            self._stored_bytes -= group.size_bytes
            self._intake.forget(lambda handle: handle.key == key)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._writer, log_files.delete_directory, group.directory)

    async def delete_stream(self, key: LogGroupKey, name: str) -> None:
        """Delete a stream: its events can no longer be read. Raises GroupMissing, StreamMissing."""
        self._stream(key, name)
        async with self._turn:
            group = self._groups.get(key)
            stream = group.streams.get(name) if group else None
            if group is not None and stream is not None:
                group.remove_stream(stream)
                self._unsaved.add(group)
                self._intake.forget(lambda handle: handle.key == key and handle.name == name)
        await self.flush()

    async def set_retention(self, key: LogGroupKey, days: int | None) -> None:
        """Keep events for so many days; None keeps them as long as there is room. Raises GroupMissing."""
        self._group(key).metadata.retention_days = days
        await self._save(key)
        await self.expire()

    async def set_tags(self, key: LogGroupKey, tags: dict[str, str]) -> None:
        """Replace the group's tags. Raises GroupMissing."""
        self._group(key).metadata.tags = dict(tags)
        await self._save(key)

    async def set_protection(self, key: LogGroupKey, protected: bool) -> None:
        """Whether the group is marked as not to be deleted, which callers of delete_group respect."""
        self._group(key).metadata.protected = protected
        await self._save(key)

    async def _save(self, key: LogGroupKey) -> None:
        group = self._group(key)
        group.metadata_changed = True
        self._unsaved.add(group)
        await self.flush()

    # -- queries

    def describe_groups(
        self, account: str, region: str, selection: GroupSelection
    ) -> tuple[list[GroupInfo], str | None]:
        """A page of groups by name, and a token if there are more."""
        mine = (group for key, group in self._groups.items() if key[:2] == (account, region))
        return select_groups(mine, selection)

    def describe_streams(self, key: LogGroupKey, selection: StreamSelection) -> tuple[list[StreamInfo], str | None]:
        """A page of a group's streams, and a token if there are more. Raises GroupMissing, BadToken."""
        return select_streams(self._group(key), selection)

    async def get_events(
        self,
        key: LogGroupKey,
        stream_name: str,
        *,
        start_ms: int = 0,
        end_ms: int = _FOREVER_MS,
        start_from_head: bool = False,
        limit: int = 10_000,
        token: str | None = None,
    ) -> Page:
        """A page of one stream, by time. `end_ms` is exclusive. A token's letter decides the direction.

        Raises GroupMissing, StreamMissing, BadToken.
        """
        group, stream = self._stream(key, stream_name)
        newest_first = not start_from_head
        boundary: log_query.Position | None = None
        if token is not None:
            direction, boundary = log_query.parse_token(token)
            newest_first = direction == "b"
        return await self._run(group, {stream.id: stream.name}, start_ms, end_ms, limit, newest_first, boundary, None)

    async def filter_events(
        self,
        key: LogGroupKey,
        *,
        streams: Collection[str] | None = None,
        prefix: str = "",
        start_ms: int = 0,
        end_ms: int = _FOREVER_MS,
        matches: Callable[[str], bool] | None = None,
        limit: int = 10_000,
        newest_first: bool = False,
        token: str | None = None,
    ) -> tuple[list[LogEvent], str | None]:
        """Events of several streams by time, and a token if there may be more. `end_ms` is exclusive.

        `matches` comes from filter_pattern.compile_pattern. Raises GroupMissing, BadToken.
        """
        group = self._group(key)
        wanted = {
            stream.id: stream.name
            for stream in group.streams.values()
            if stream.name.startswith(prefix) and (streams is None or stream.name in streams)
        }
        boundary: log_query.Position | None = None
        if token is not None:
            direction, boundary = log_query.parse_token(token)
            newest_first = direction == "b"
        page = await self._run(group, wanted, start_ms, end_ms, limit, newest_first, boundary, matches)
        if newest_first:
            return page.events[::-1], page.backward if page.more else None
        return page.events, page.forward if page.more else None

    async def _run(
        self,
        group: Group,
        streams: dict[int, str],
        start_ms: int,
        end_ms: int,
        limit: int,
        newest_first: bool,
        boundary: log_query.Position | None,
        matches: Callable[[str], bool] | None,
    ) -> Page:
        start_ms = max(start_ms, self._oldest_ms(group))
        views = group.views(set(streams))
        query = log_query.Query(views, streams, start_ms, end_ms, limit, newest_first, boundary, matches)
        return await asyncio.get_running_loop().run_in_executor(self._readers, log_query.run, query)
