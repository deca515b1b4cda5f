"""The log store on a real directory: what is written is read, whatever happens in between."""

from __future__ import annotations

import asyncio
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambent.telemetry import log_files, log_query, log_records
from lambent.telemetry.log_catalog import (
    GroupExists,
    GroupMissing,
    GroupSelection,
    StreamExists,
    StreamMissing,
    StreamSelection,
)
from lambent.telemetry.log_store import BadToken, LogGroupKey, LogStore

KEY = LogGroupKey("000000000000", "us-east-1", "/aws/lambda/f")
KIB = 1024


@asynccontextmanager
async def opened(path: pathlib.Path, **options: Any) -> AsyncIterator[LogStore]:
    store = LogStore(path, **options)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await body()

    asyncio.run(main())


def segments(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.glob("*/*.log"))


async def messages(store: LogStore, stream: str = "s", key: LogGroupKey = KEY) -> list[str]:
    page = await store.get_events(key, stream, start_from_head=True)
    return [event.message for event in page.events]


def test_what_was_written_before_a_flush_is_read_after_it(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path, clock_ms=lambda: 5000) as store:
            stream = store.stream(KEY, "s")
            assert store.stream(KEY, "s") is stream
            stream.write(1000, "one")
            stream.write_many([(1001, "two"), (1001, "drei ü \ud800")])
            await store.flush()
            page = await store.get_events(KEY, "s")
            assert [(e.timestamp_ms, e.message, e.ingestion_ms, e.stream) for e in page.events] == [
                (1000, "one", 5000, "s"),
                (1001, "two", 5000, "s"),
                (1001, "drei ü ?", 5000, "s"),
            ]
            assert store.statistics().lines_written == 3
            (info,), _ = store.describe_streams(KEY, StreamSelection())
            assert info == ("s", 5000, 1000, 1001, 5000, info.stored_bytes)

    run(body)


def test_everything_outlives_the_store(tmp_path: pathlib.Path) -> None:
    async def first() -> None:
        async with opened(tmp_path, clock_ms=lambda: 7) as store:
            await store.create_group(KEY, {"team": "a"}, log_class="INFREQUENT_ACCESS")
            await store.set_retention(KEY, 30)
            await store.set_retention(KEY, None)
            await store.create_stream(KEY, "empty")
            other = KEY._replace(region="eu-west-1", group="weird/../#._-")
            await store.create_group(other)
            await store.set_retention(other, 3)
            store.stream(KEY, "s").write(1, "x")

    async def second() -> None:
        async with opened(tmp_path) as store:
            (info,), _ = store.describe_groups("000000000000", "us-east-1", GroupSelection())
            assert (info.key, info.created_ms, info.retention_days, info.tags) == (KEY, 7, None, {"team": "a"})
            assert info.log_class == "INFREQUENT_ACCESS"
            assert info.stored_bytes > 0
            (weird,), _ = store.describe_groups("000000000000", "eu-west-1", GroupSelection())
            assert weird.retention_days == 3
            streams, _ = store.describe_streams(KEY, StreamSelection())
            assert [(one.name, one.first_event_ms) for one in streams] == [("empty", None), ("s", 1)]
            assert await messages(store) == ["x"]
            store.stream(KEY, "s").write(2, "y")
            await store.flush()
            assert await messages(store) == ["x", "y"]

    run(first)
    run(second)


def test_groups_and_streams_are_made_and_deleted(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as store:
            with pytest.raises(GroupMissing):
                store.group(KEY)
            with pytest.raises(GroupMissing):
                await store.create_stream(KEY, "s")
            await store.create_group(KEY)
            with pytest.raises(GroupExists):
                await store.create_group(KEY)
            with pytest.raises(StreamMissing):
                await store.get_events(KEY, "s")
            stream = store.stream(KEY, "s")
            with pytest.raises(StreamExists):
                await store.create_stream(KEY, "s")
            stream.write(1, "old")
            await store.flush()
            await store.delete_stream(KEY, "s")
            with pytest.raises(StreamMissing):
                await store.delete_stream(KEY, "s")
            # The environment that held it goes on writing: a new stream of that name.
            stream.write(2, "new")
            await store.flush()
            assert await messages(store) == ["new"]
            stream.write(3, "never to be seen")
            await store.delete_group(KEY)
            assert not segments(tmp_path)
            with pytest.raises(GroupMissing):
                await store.delete_group(KEY)
            stream.write(4, "afterwards")
            await store.flush()
            assert await messages(store) == ["afterwards"]
        async with opened(tmp_path) as store:
            assert await messages(store) == ["afterwards"]

    run(body)


def test_pages_of_a_stream_in_both_directions(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as store:
            stream = store.stream(KEY, "s")
            for number in range(10):
                stream.write(number // 2, str(number))
                if number % 3 == 0:
                    await store.flush()
            await store.flush()

            async def page(**options: Any) -> tuple[str, str, str]:
                found = await store.get_events(KEY, "s", **options)
                return "".join(event.message for event in found.events), found.forward, found.backward

            text, forward, backward = await page(limit=4, start_from_head=True)
            assert text == "0123"
            text, forward, _ = await page(limit=4, token=forward)
            assert text == "4567"
            text, forward, before_last = await page(limit=4, token=forward)
            assert text == "89"
            # At the end the same token comes back, and finds what is written later.
            assert await page(limit=4, token=forward) == ("", forward, "b" + forward[1:])
            assert (await page(limit=3, token=before_last))[0] == "567"
            text, _, first = await page(limit=4, token=backward)
            assert (text, first) == ("", backward)
            stream.write(9, "later")
            await store.flush()
            assert (await page(token=forward))[0] == "later"
            # Without a token: the newest, in order of time; bounds in time are [start, end).
            assert (await page(limit=2))[0] == "9later"
            assert (await page(start_ms=1, end_ms=3))[0] == "2345"
            for bad in ("", "f/", "f/12", "x/" + forward[2:], forward + "0", "f/" + "²" * 56):
                with pytest.raises(BadToken):
                    await page(token=bad)

    run(body)


def test_filtering_merges_streams_by_time_with_stable_ids(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as store:
            for number in range(30):
                store.stream(KEY, f"{number % 3}/s").write(1000 - number, f"line {number}")
                if number % 7 == 0:
                    await store.flush()
            await store.flush()
            whole, token = await store.filter_events(KEY)
            assert token is None
            assert [event.timestamp_ms for event in whole] == list(range(971, 1001))
            assert len({event.event_id for event in whole}) == 30
            collected: list[log_query.LogEvent] = []
            following: str | None = None
            while True:
                events, following = await store.filter_events(KEY, limit=7, token=following)
                collected += events
                if following is None:
                    break
            assert collected == whole
            backwards, _ = await store.filter_events(KEY, newest_first=True, limit=5)
            assert backwards == whole[:-6:-1]
            one, _ = await store.filter_events(KEY, prefix="1/", start_ms=990, end_ms=1000)
            assert [event.message for event in one] == ["line 10", "line 7", "line 4", "line 1"]
            some, _ = await store.filter_events(KEY, streams=["2/s", "none"], matches=lambda text: "9" in text)
            assert [event.message for event in some] == ["line 29"]

    run(body)


def test_lists_come_in_pages(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as store:
            for number in range(5):
                key = KEY._replace(group=f"g{number}")
                store.stream(key, "x")
                store.stream(KEY, f"s{number}").write(100 - number, "x")
            await store.flush()
            names = GroupSelection(prefix="g", limit=2)
            page, token = store.describe_groups("000000000000", "us-east-1", names)
            assert ([info.key.group for info in page], token) == (["g0", "g1"], "g1")
            rest = names._replace(token=token, limit=9)
            page, token = store.describe_groups("000000000000", "us-east-1", rest)
            assert ([info.key.group for info in page], token) == (["g2", "g3", "g4"], None)
            page, _ = store.describe_groups("000000000000", "us-east-1", GroupSelection(pattern="LAMBDA"))
            assert [info.key for info in page] == [KEY]
            assert store.describe_groups("111111111111", "us-east-1", GroupSelection()) == ([], None)

            newest = StreamSelection(by_last_event=True, descending=True, limit=3)
            streams, token = store.describe_streams(KEY, newest)
            assert [one.name for one in streams] == ["s0", "s1", "s2"]
            streams, token = store.describe_streams(KEY, newest._replace(token=token))
            assert ([one.name for one in streams], token) == (["s3", "s4"], None)
            with pytest.raises(BadToken):
                store.describe_streams(KEY, newest._replace(token="²/x"))

    run(body)


def test_the_oldest_segments_go_when_there_is_too_much(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        now = 0

        def clock() -> int:
            return now

        async with opened(tmp_path, retention_bytes=512 * KIB, clock_ms=clock) as store:
            for now in range(1, 200):
                store.stream(KEY, f"s{now}").write(now, f"{now} " + "x" * 8 * KIB)
                await store.flush()
            on_disk = sum(path.stat().st_size for path in segments(tmp_path))
            assert on_disk == store.statistics().stored_bytes <= 512 * KIB
            events, _ = await store.filter_events(KEY)
            kept = [event.timestamp_ms for event in events]
            assert kept == list(range(kept[0], 200))
            assert 30 < len(kept) < 66
            streams, _ = store.describe_streams(KEY, StreamSelection(limit=1000))
            assert len(streams) == len(kept)

    run(body)


def test_expired_events_are_neither_read_nor_kept(tmp_path: pathlib.Path) -> None:
    day = 24 * 60 * 60 * 1000

    async def body() -> None:
        async with opened(tmp_path, clock_ms=lambda: 100 * day, retention_bytes=512 * KIB) as store:
            store.stream(KEY, "s").write_many([(day, "x" * 70 * KIB)])
            await store.flush()
            store.stream(KEY, "s").write_many([(97 * day, "old"), (99 * day, "new")])
            await store.flush()
            await store.set_retention(KEY, 2)
            assert await messages(store) == ["new"]
            assert len(segments(tmp_path)) == 1
            (info,), _ = store.describe_streams(KEY, StreamSelection())
            assert (info.first_event_ms, info.last_event_ms) == (97 * day, 99 * day)

    run(body)


def test_too_much_at_once_is_dropped_and_said(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path, buffer_bytes=100 * KIB, flush_interval_ms=60_000) as store:
            stream = store.stream(KEY, "s")
            for number in range(1000):
                stream.write(number, f"{number:04d}" + "x" * 1000)
            assert store.statistics().waiting_bytes <= 100 * KIB
            await store.flush()
            found = await messages(store)
            assert found[0].startswith("LAMBENT dropped ")
            assert int(found[0].split()[2]) == 1000 - (len(found) - 1) == store.statistics().lines_dropped
            assert found[-1].startswith("0999")

    run(body)


def test_long_events_are_cut_at_one_mebibyte(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as store:
            stream = store.stream(KEY, "s")
            stream.write(1, "ü" * 3 * KIB * KIB)
            stream.write(2, "x" * 300 * KIB)
            stream.write(3, "after")
            await store.flush()
            first = await store.get_events(KEY, "s", start_from_head=True)
            (event,) = first.events  # a page is 1 MiB at most
            assert KIB * KIB - 30 < len(event.message.encode()) <= KIB * KIB - 26
            second = await store.get_events(KEY, "s", token=first.forward)
            assert [len(event.message) for event in second.events] == [300 * KIB, 5]

    run(body)


def test_a_disk_that_fails_loses_nothing_when_it_recovers(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        async with opened(tmp_path, flush_interval_ms=60_000) as store:
            stream = store.stream(KEY, "s")
            stream.write(1, "one")
            await store.flush()
            (segment,) = segments(tmp_path)
            away = segment.with_suffix(".away")
            segment.rename(away)
            segment.mkdir()  # cannot be opened for writing
            stream.write(2, "two")
            await store.flush()
            await store.flush()
            segment.rmdir()
            away.write_bytes(away.read_bytes() + b"half a frame")
            away.rename(segment)
            stream.write(3, "three")
            await store.flush()
            assert await messages(store) == ["one", "two", "three"]

    run(body)
    assert len([record for record in caplog.records if "cannot write" in record.message]) == 1


def test_strange_times_are_put_into_range(tmp_path: pathlib.Path) -> None:
    async def body() -> None:
        async with opened(tmp_path) as store:
            store.stream(KEY, "s").write_many([(-5, "a"), (2**70, "b")])
            await store.flush()
            assert await messages(store) == ["a", "b"]

    run(body)


CHILD = """
import asyncio, pathlib, sys
from lambent.telemetry.log_store import LogGroupKey, LogStore
async def main():
    store = LogStore(pathlib.Path(sys.argv[1]))
    await store.start()
    for number in range(10**9):
        store.stream(LogGroupKey("0", "r", "g"), f"s{number % 5}").write(number, str(number))
        if number % 50 == 0:
            await store.flush()
            print(number, flush=True)
asyncio.run(main())
"""


def test_a_killed_process_loses_only_what_was_not_flushed(tmp_path: pathlib.Path) -> None:
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            flushed = [int(child.stdout.readline()) for _ in range(20)][-1]
            os.kill(child.pid, signal.SIGKILL)
        times = asyncio.run(stored_times(tmp_path, LogGroupKey("0", "r", "g")))
        assert times >= set(range(flushed + 1))


async def stored_times(path: pathlib.Path, key: LogGroupKey) -> set[int]:
    async with opened(path) as store:
        events, _ = await store.filter_events(key)
        return {event.timestamp_ms for event in events}


def segment_bytes() -> tuple[bytes, list[int]]:
    """A sound segment and where its frames end."""
    data, ends = b"", [0]
    for number in range(4):
        batches = [(stream, [(number, f"{number}/{stream}/{i}") for i in range(3)]) for stream in (1, 2)]
        data += log_records.encode_frame(number, batches, [log_records.stats_of(batch) for batch in batches])
        ends.append(len(data))
    return data, ends


SOUND, ENDS = segment_bytes()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(0, len(SOUND)), garbage=st.binary(max_size=40))
def test_a_torn_segment_is_cut_to_its_last_whole_frame(tmp_path: pathlib.Path, cut: int, garbage: bytes) -> None:
    segment = log_files.Segment(1, tmp_path / "x.log")
    log_files.scan(segment, SOUND[:cut] + garbage)
    whole = max(end for end in ENDS if end <= cut)
    assert segment.size_bytes == whole or SOUND.startswith(SOUND[:cut] + garbage)
    assert (segment.streams == {}) == (segment.size_bytes == 0)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, len(SOUND) - 1), flip=st.integers(1, 255))
def test_a_damaged_segment_yields_only_what_stands_before_the_damage(
    tmp_path: pathlib.Path, at: int, flip: int
) -> None:
    damaged = bytearray(SOUND)
    damaged[at] ^= flip
    path = tmp_path / "00000001.log"
    path.write_bytes(damaged)
    segment = log_files.Segment(1, path)
    log_files.scan(segment, bytes(damaged))
    assert segment.size_bytes == max(end for end in ENDS if end <= at)
    view = log_query.View(1, path, len(damaged), 0, 10)
    query = log_query.Query([view], {1: "a", 2: "b"}, 0, 10**13, 100, False, None, None)
    assert len(log_query.run(query).events) == 6 * ENDS.index(segment.size_bytes)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(noise=st.binary(max_size=200))
def test_noise_in_any_file_does_not_stop_the_store(tmp_path: pathlib.Path, noise: bytes) -> None:
    async def body() -> None:
        home = tmp_path / "00000001"
        for path in home.glob("*"):
            path.unlink()
        home.mkdir(exist_ok=True)
        (home / "group.json").write_bytes(b'{"account":"0","region":"r","name":"g","created_ms":1}')
        for name in ("streams", "00000001.log", "00000001.idx"):
            (home / name).write_bytes(noise)
        key = LogGroupKey("0", "r", "g")
        async with opened(tmp_path) as store:
            store.stream(key, "s").write(1, "x")
            await store.flush()
            assert await messages(store, "s", key) == ["x"]

    run(body)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int, bool]]:
    """Lines as (stream, time, flush afterwards)."""
    return draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.booleans()), max_size=60))


@settings(max_examples=40, deadline=None)
@given(
    history=histories(), limit=st.integers(1, 7), newest=st.booleans(), start=st.integers(0, 10), end=st.integers(0, 40)
)
def test_pages_add_up_to_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[tuple[int, int, bool]],
    limit: int,
    newest: bool,
    start: int,
    end: int,
) -> None:
    async def body() -> None:
        async with opened(tmp_path_factory.mktemp("logs"), retention_bytes=10**9) as store:
            store._segment_bytes = 200  # many segments, with times that overlap
            expected = []
            store.stream(KEY, "s0")
            for number, (stream, at, flush) in enumerate(history):
                store.stream(KEY, f"s{stream}").write(at, str(number))
                if start <= at < end:
                    expected.append((at, number))
                if flush:
                    await store.flush()
            await store.flush()
            found: list[tuple[int, int]] = []
            token: str | None = None
            while True:
                events, token = await store.filter_events(
                    KEY, start_ms=start, end_ms=end, limit=limit, newest_first=newest, token=token
                )
                assert len(events) <= limit
                found += [(event.timestamp_ms, int(event.message)) for event in events]
                if token is None:
                    break
            times = [at for at, _ in found]
            assert times == sorted(times, reverse=newest)
            assert sorted(found) == sorted(expected)

    run(body)
