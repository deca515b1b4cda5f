"""Frames of the environment link: how a request reaches a Python runtime and how its answer comes back.

    u32 length of what follows (little endian) | u8 kind | u16 length of the header | header | payload

The header is UTF-8 fields separated by NUL; the payload is never looked at. `FrameReader` takes bytes in any pieces and
gives back whole frames, or raises FrameError for what no honest runtime sends. The other end is
runtimes/python/bootstrap.py.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

from lambent.model.limits import RESPONSE_MAX_BYTES

_HEAD = struct.Struct("<IBH")
_LENGTH_BYTES = 4
#: A response at its limit, with a header of any size that a u16 can say.
FRAME_MAX_BYTES = RESPONSE_MAX_BYTES + 65_536 + _HEAD.size


class FrameKind(enum.IntEnum):
    """Platform to runtime: INVOKE. Runtime to platform: the rest."""

    INVOKE = 1
    READY = 2
    RESULT = 3
    ERROR = 4
    INIT_ERROR = 5
    TOO_LARGE = 6


class Frame(NamedTuple):
    kind: int
    header: bytes
    payload: bytes


class FrameError(Exception):
    """The peer broke the framing; the link can not be used any more."""


def encode(kind: int, header: bytes, payload: bytes = b"") -> bytes:
    """One frame. Raises struct.error when the header is over 64 KiB."""
    return b"".join((_HEAD.pack(3 + len(header) + len(payload), kind, len(header)), header, payload))


class FrameReader:
    """Bytes in, frames out."""

    __slots__ = ("_buffer", "_wanted")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._wanted = _HEAD.size

    def feed(self, data: bytes) -> list[Frame]:
        """Frames completed by `data`. Raises FrameError on an impossible length, header or kind."""
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._wanted:
                return []
            data = bytes(self._buffer)
            self._buffer.clear()
        frames: list[Frame] = []
        start, end = 0, len(data)
        while end - start >= _HEAD.size:
            length, kind, header_length = _HEAD.unpack_from(data, start)
            if length > FRAME_MAX_BYTES or header_length + 3 > length or not 1 <= kind <= 6:
                raise FrameError(f"a frame of kind {kind} with {length} bytes, {header_length} of them header")
            stop = start + _LENGTH_BYTES + length
            if stop > end:
                self._wanted = stop - start
                break
            body = start + _HEAD.size + header_length
            frames.append(Frame(kind, data[start + _HEAD.size : body], data[body:stop]))
            start = stop
        else:
            self._wanted = _HEAD.size
        if start < end:
            self._buffer += data[start:]
        return frames
