"""A run written down and replayed."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.core.events import (
    Dispatch,
    Drain,
    EnvironmentReady,
    Invoke,
    ProvisionedSet,
    Start,
    Tick,
    VersionRetired,
    VersionSet,
    WorkerLost,
)
from lambent.core.recording import RECORD_MAX_BYTES, Record, decode, encode, replay
from lambent.core.scheduler import Scheduler
from lambent.model.invocation import Outcome

from .helpers import IDLE_NS, TIMEOUT_NS, VERSION, WORKER, Bench


def recorded_run() -> list[bytes]:
    """Most kinds of facts and commands."""
    bench = Bench(concurrency=3)
    bench.idle(2)
    bench.end(bench.dispatch(), Outcome.RUNTIME_EXIT)
    bench.dispatch()
    bench.tick(TIMEOUT_NS)
    bench.tick(IDLE_NS)
    for _ in range(5):
        bench.invoke()
    bench.tell(ProvisionedSet(7, ((VERSION, 1),)))
    bench.tell(EnvironmentReady(bench.scheduler.environments()[-1].environment))
    bench.tell(WorkerLost(WORKER))
    bench.tell(VersionRetired(VERSION))
    bench.tell(Drain())
    bench.invoke()
    return bench.frames


def test_a_replay_gives_the_same_commands() -> None:
    records = list(decode(recorded_run()))
    kinds = {type(command).__name__ for record in records for command in record.commands}
    assert kinds == {"Start", "Dispatch", "Complete", "Throttle", "Reject", "Reset", "Stop", "ProvisionedStatus"}
    assert replay(records, Scheduler()) is None


def test_a_replay_finds_the_first_difference() -> None:
    records = list(decode(recorded_run()))
    mismatch = replay(records, Scheduler(idle_reclaim_ns=2 * IDLE_NS))
    assert mismatch is not None
    assert mismatch.record == records[mismatch.position]
    assert mismatch.commands != mismatch.record.commands
    assert isinstance(mismatch.record.event, Tick)


@given(st.integers(1, 300))
def test_pieces_of_any_size(size: int) -> None:
    data = b"".join(recorded_run())
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert list(decode(pieces)) == list(decode([data]))


def test_a_file_cut_off_anywhere_is_read_up_to_there() -> None:
    frames = recorded_run()[:6]
    data = b"".join(frames)
    whole = list(decode([data]))
    assert len(whole) == 6
    for length in range(len(data) + 1):
        part = list(decode([data[:length]]))
        assert part == whole[: len(part)]
        assert sum(len(frame) for frame in frames[: len(part)]) <= length


def test_one_record_there_and_back() -> None:
    frame = encode(5, Invoke(1, 2, True), [])
    assert list(decode([frame])) == [Record(5, Invoke(1, 2, True), [])]


def test_records_from_before_there_were_more_fields() -> None:
    body = [
        5,
        ["VersionSet", 1, 2, 128, 3, 4],
        [["Start", 1, 2, 3], ["Dispatch", 1, 2, 3, True, False]],
    ]
    data = msgspec.msgpack.encode(body)
    (record,) = decode([len(data).to_bytes(4, "big") + data])
    assert record.event == VersionSet(1, 2, 128, 3, 4)
    assert record.commands == [Start(1, 2, 3), Dispatch(1, 2, 3, True, False)]


def test_what_is_not_ours_is_refused() -> None:
    with pytest.raises(ValueError, match="most that is written"):
        list(decode([(RECORD_MAX_BYTES + 1).to_bytes(4, "big")]))
    with pytest.raises(ValueError, match="MessagePack"):
        list(decode([b"\0\0\0\1\xc1"]))
