"""Messages of `application/vnd.amazon.eventstream`, the framing of AWS's streamed answers.

    total length u32 | headers length u32 | CRC-32 of these 8 bytes | headers | payload | CRC-32 of all before

Numbers are big-endian. A header is: length of the name u8, the name, type u8, the value; the only type that events
need is 7, a string with its length as u16.
"""

from __future__ import annotations

import struct
import zlib

#: What AWS's clients accept as one message's payload and headers (botocore.eventstream).
PAYLOAD_MAX_BYTES = 24 * 1_048_576
HEADERS_MAX_BYTES = 128 * 1_024
_STRING = 7
_PRELUDE = struct.Struct(">II")
_U32 = struct.Struct(">I")


def encode_headers(headers: dict[str, str]) -> bytes:
    """String headers as they lie in a message. Raises ValueError for what does not fit."""
    parts = []
    for name, value in headers.items():
        name_bytes, value_bytes = name.encode(), value.encode()
        if not 0 < len(name_bytes) < 256 or len(value_bytes) > 32_767:
            raise ValueError(f"header {name[:64]!r} is too long for an event stream")
        parts.append(struct.pack(">B", len(name_bytes)) + name_bytes)
        parts.append(struct.pack(">BH", _STRING, len(value_bytes)) + value_bytes)
    encoded = b"".join(parts)
    if len(encoded) > HEADERS_MAX_BYTES:
        raise ValueError(f"headers of {len(encoded)} bytes are too long for an event stream")
    return encoded


def frame(headers: bytes, payload: bytes) -> bytes:
    """One message of encoded headers and a payload of at most PAYLOAD_MAX_BYTES."""
    if len(payload) > PAYLOAD_MAX_BYTES:
        raise ValueError(f"a payload of {len(payload)} bytes is too long for an event stream")
    prelude = _PRELUDE.pack(len(headers) + len(payload) + 16, len(headers))
    head = prelude + _U32.pack(zlib.crc32(prelude)) + headers
    checksum = zlib.crc32(payload, zlib.crc32(head))
    return b"".join((head, payload, _U32.pack(checksum)))


def encode_event(kind: str, content_type: str, payload: bytes) -> bytes:
    """One event of the type `kind`."""
    return frame(event_headers(kind, content_type), payload)


def event_headers(kind: str, content_type: str) -> bytes:
    """Headers of an event, to be encoded once and used for many."""
    return encode_headers({":event-type": kind, ":content-type": content_type, ":message-type": "event"})
