"""CBOR (RFC 8949), the part that Smithy's RPC v2 uses: integers of 64 bits, text, bytes, lists, maps with text as
keys, floats of any width, true, false, null, and moments (tag 1, seconds since 1970).

Everything else (big numbers, references, regular expressions, sets) is refused, so that a body can not make more
of itself than it has bytes. Lengths may be indefinite when reading; writing is always definite.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable
from typing import Any, Final

UTC = dt.UTC
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=UTC)
_DEPTH_MAX: Final = 64
_BREAK: Final = object()
_INDEFINITE: Final = 31
_FLOATS: Final = {25: (">e", 2), 26: (">f", 4), 27: (">d", 8)}
_SIMPLE: Final = {20: False, 21: True, 22: None, 23: None}


class CborError(ValueError):
    """The bytes are not CBOR, or not of the part described above."""


def decode(data: bytes) -> Any:
    """The one item that `data` holds. Moments are aware datetimes in UTC. Raises CborError."""
    reader = _Reader(data)
    value = reader.item(0)
    if value is _BREAK:
        raise CborError("break outside of an indefinite item")
    if reader.position != len(data):
        raise CborError(f"{len(data) - reader.position} bytes follow the item")
    return value


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0
        self._majors: tuple[Callable[[int, int], Any], ...] = (
            self._unsigned,
            self._negative,
            self._bytes,
            self._text,
            self._list,
            self._map,
            self._tag,
            self._simple,
        )

    def item(self, depth: int) -> Any:
        if depth > _DEPTH_MAX:
            raise CborError("nested too deeply")
        initial = self._take(1)[0]
        return self._majors[initial >> 5](initial & 31, depth)

    def _take(self, count: int) -> bytes:
        start = self.position
        end = start + count
        if end > len(self._data):
            raise CborError("unexpected end")
        self.position = end
        return self._data[start:end]

    def _argument(self, info: int) -> int:
        if info < 24:
            return info
        if info > 27:
            raise CborError(f"additional information {info} is reserved")
        return int.from_bytes(self._take(1 << (info - 24)), "big")

    def _unsigned(self, info: int, _depth: int) -> int:
        return self._argument(info)

    def _negative(self, info: int, _depth: int) -> int:
        return -1 - self._argument(info)

    def _bytes(self, info: int, _depth: int) -> bytes:
        return self._string(info, 2)

    def _text(self, info: int, _depth: int) -> str:
        try:
            return self._string(info, 3).decode()
        except UnicodeDecodeError as problem:
            raise CborError(f"text is not UTF-8: {problem}") from None

    def _string(self, info: int, major: int) -> bytes:
        if info != _INDEFINITE:
            return self._take(self._argument(info))
        chunks: list[bytes] = []
        while (initial := self._take(1)[0]) != 0xFF:
            if initial >> 5 != major or initial & 31 == _INDEFINITE:
                raise CborError("a string's chunk is not a string of its kind")
            chunks.append(self._take(self._argument(initial & 31)))
        return b"".join(chunks)

    def _list(self, info: int, depth: int) -> list[Any]:
        items: list[Any] = []
        left = -1 if info == _INDEFINITE else self._argument(info)
        while left:
            item = self.item(depth + 1)
            if item is _BREAK:
                if left > 0:
                    raise CborError("break in a definite list")
                break
            items.append(item)
            left -= 1
        return items

    def _map(self, info: int, depth: int) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        left = -1 if info == _INDEFINITE else self._argument(info)
        while left:
            key = self.item(depth + 1)
            if key is _BREAK and left < 0:
                break
            if not isinstance(key, str):
                raise CborError("a map's key is not text")
            value = self.item(depth + 1)
            if value is _BREAK:
                raise CborError("break instead of a map's value")
            entries[key] = value
            left -= 1
        return entries

    def _tag(self, info: int, depth: int) -> dt.datetime:
        tag = self._argument(info)
        seconds = self.item(depth + 1)
        if tag != 1 or isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise CborError(f"tag {tag} is not supported here")
        try:
            return _EPOCH + dt.timedelta(seconds=seconds)
        except (OverflowError, ValueError):
            raise CborError(f"timestamp out of range: {seconds}") from None

    def _simple(self, info: int, _depth: int) -> Any:
        if info in _SIMPLE:
            return _SIMPLE[info]
        if info in _FLOATS:
            form, width = _FLOATS[info]
            return struct.unpack(form, self._take(width))[0]
        if info == _INDEFINITE:
            return _BREAK
        raise CborError(f"simple value {info} is not supported")


def encode(value: Any) -> bytes:
    """Bytes of a value made of the types above. Raises TypeError for any other."""
    out = bytearray()
    _write(value, out)
    return bytes(out)


def _head(major: int, argument: int, out: bytearray) -> None:
    if argument < 24:
        out.append(major << 5 | argument)
        return
    for info, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if argument < 1 << (8 * width):
            out.append(major << 5 | info)
            out += argument.to_bytes(width, "big")
            return
    raise TypeError(f"{argument} has more than 64 bits")


def _write(value: Any, out: bytearray) -> None:
    if value is None:
        out.append(0xF6)
    elif isinstance(value, bool):
        out.append(0xF5 if value else 0xF4)
    elif isinstance(value, int):
        if value >= 0:
            _head(0, value, out)
        else:
            _head(1, -1 - value, out)
    elif isinstance(value, float):
        out.append(0xFB)
        out += struct.pack(">d", value)
    elif isinstance(value, str):
        text = value.encode("utf-8", "replace")  # lone surrogates become question marks, as in JSON
        _head(3, len(text), out)
        out += text
    elif isinstance(value, bytes):
        _head(2, len(value), out)
        out += value
    elif isinstance(value, dt.datetime):
        out.append(0xC1)
        seconds = round((value - _EPOCH).total_seconds(), 3)
        _write(int(seconds) if seconds == int(seconds) else seconds, out)
    elif isinstance(value, dict):
        _head(5, len(value), out)
        for key, item in value.items():
            _write(key, out)
            _write(item, out)
    elif isinstance(value, list | tuple):
        _head(4, len(value), out)
        for item in value:
            _write(item, out)
    else:
        raise TypeError(f"CBOR has no {type(value).__name__}")
