"""A run written down: every fact with its time, and the commands that followed.

For: replaying a live run, to the same commands, on a scheduler made with the same parameters. It must not
open files: it turns records into bytes and chunks of bytes into records. Outcomes: `replay` gives the first
Mismatch or None.

A record is framed by its length in 4 bytes, big-endian, and is MessagePack. A file that a crash has cut off
inside its last record is read up to there. A length beyond RECORD_MAX_BYTES is not ours: ValueError
(msgspec's errors are ValueErrors too).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from lambent.core.events import AnyCommand, AnyEvent

if TYPE_CHECKING:
    from lambent.core.scheduler import Scheduler

#: The largest record we write is the Drain of a full host: about 20 bytes for each of its environments.
RECORD_MAX_BYTES: Final = 64 * 1024 * 1024
_LENGTH_BYTES: Final = 4


class Record(msgspec.Struct, frozen=True, array_like=True):
    """One call of Scheduler.handle()."""

    now_ns: int
    event: AnyEvent
    commands: list[AnyCommand]


class Mismatch(msgspec.Struct, frozen=True):
    """Where a replay went another way."""

    #: Number of the record, from 0.
    position: int
    record: Record
    commands: list[AnyCommand]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def encode(now_ns: int, event: AnyEvent, commands: list[AnyCommand]) -> bytes:
    """One framed record, to be appended to a file."""
    body = _encoder.encode(Record(now_ns, event, commands))
    assert body
    assert len(body) <= RECORD_MAX_BYTES
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def decode(chunks: Iterable[bytes]) -> Iterator[Record]:
    """The records of a file that comes in pieces of any size, down to `[data]`."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        position = 0
        while (end := _frame_end(buffer, position)) is not None:
            yield _decoder.decode(memoryview(buffer)[position + _LENGTH_BYTES : end])
            position = end
        del buffer[:position]
        assert len(buffer) < _LENGTH_BYTES + RECORD_MAX_BYTES


def _frame_end(buffer: bytearray, position: int) -> int | None:
    """Where the frame that begins here ends; None: not all of it is there yet."""
    assert 0 <= position <= len(buffer)
    body = position + _LENGTH_BYTES
    if body > len(buffer):
        return None
    length = int.from_bytes(buffer[position:body], "big")
    if length > RECORD_MAX_BYTES:
        raise ValueError(f"a record of {length} bytes; the most that is written is {RECORD_MAX_BYTES}")
    end = body + length
    return end if end <= len(buffer) else None


def replay(records: Iterable[Record], scheduler: Scheduler) -> Mismatch | None:
    """Feed the facts to a fresh scheduler, made like the recorded one, and compare what it commands."""
    for position, record in enumerate(records):
        commands = scheduler.handle(record.now_ns, record.event)
        if commands != record.commands:
            return Mismatch(position, record, commands)
    return None
