"""Event-stream messages, read by botocore's decoder: whole, in pieces, one after the other."""

from __future__ import annotations

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.wire.event_stream import PAYLOAD_MAX_BYTES, encode_event, encode_headers, frame

_TEXT = st.text(st.characters(codec="utf-8"), max_size=200)
_HEADERS = st.dictionaries(_TEXT.filter(lambda name: 0 < len(name.encode()) < 256), _TEXT, max_size=8)


@given(st.lists(st.tuples(_HEADERS, st.binary(max_size=500)), max_size=5), st.integers(1, 97))
def test_botocore_reads_what_was_written(messages: list[tuple[dict[str, str], bytes]], step: int) -> None:
    wire = b"".join(frame(encode_headers(headers), payload) for headers, payload in messages)
    buffer = EventStreamBuffer()
    found = []
    for at in range(0, len(wire), step):
        buffer.add_data(wire[at : at + step])
        found += [(message.headers, message.payload) for message in buffer]
    assert found == messages


@settings(max_examples=20)
@given(st.binary(min_size=1, max_size=300), st.data())
def test_a_flipped_bit_is_noticed(payload: bytes, data: st.DataObject) -> None:
    wire = bytearray(encode_event("PayloadChunk", "application/octet-stream", payload))
    at = data.draw(st.integers(8, len(wire) - 1))  # past the lengths, whose change may mean "more to come"
    wire[at] ^= 1 << data.draw(st.integers(0, 7))
    buffer = EventStreamBuffer()
    buffer.add_data(bytes(wire))
    with pytest.raises(Exception, match=r"(?i)checksum"):
        list(buffer)


def test_an_event() -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(encode_event("InvokeComplete", "application/json", b"{}"))
    (message,) = list(buffer)
    assert message.headers == {
        ":event-type": "InvokeComplete",
        ":content-type": "application/json",
        ":message-type": "event",
    }
    assert message.payload == b"{}"


def test_what_does_not_fit() -> None:
    for headers in ({"": "x"}, {"n" * 256: "x"}, {"n": "x" * 32_768}, {f"n{i}": "x" * 32_000 for i in range(5)}):
        with pytest.raises(ValueError, match="too long"):
            encode_headers(headers)
    with pytest.raises(ValueError, match="too long"):
        frame(b"", bytes(PAYLOAD_MAX_BYTES + 1))
