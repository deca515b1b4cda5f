"""The frames of the environment link: any pieces give the same frames, and garbage gives FrameError or frames."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.model.limits import RESPONSE_MAX_BYTES
from lambent.wire.frames import FRAME_MAX_BYTES, Frame, FrameError, FrameKind, FrameReader, encode

FRAMES = st.lists(
    st.builds(Frame, st.integers(1, 6), st.binary(max_size=40), st.binary(max_size=200)),
    max_size=6,
)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    """`data` cut at the given sizes in turn; what is left comes as one piece."""
    found = []
    for size in sizes:
        found.append(data[:size])
        data = data[size:]
    return [*found, data]


@given(FRAMES, st.lists(st.integers(0, 30), max_size=20))
def test_any_pieces_give_the_same_frames(frames: list[Frame], sizes: list[int]) -> None:
    data = b"".join(encode(*frame) for frame in frames)
    reader = FrameReader()
    assert [frame for piece in pieces(data, sizes) for frame in reader.feed(piece)] == frames


@given(FRAMES)
def test_byte_by_byte(frames: list[Frame]) -> None:
    data = b"".join(encode(*frame) for frame in frames)
    reader = FrameReader()
    assert [frame for at in range(len(data)) for frame in reader.feed(data[at : at + 1])] == frames


@given(FRAMES, st.binary(max_size=6))
def test_what_follows_a_frame_waits_for_its_rest(frames: list[Frame], trailing: bytes) -> None:
    reader = FrameReader()
    assert reader.feed(b"".join(encode(*frame) for frame in frames) + trailing) == frames
    assert reader.feed(b"") == []


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=50), max_size=5))
def test_garbage_is_frames_or_a_frame_error(chunks: list[bytes]) -> None:
    reader = FrameReader()
    try:
        for chunk in chunks:
            for frame in reader.feed(chunk):
                assert 1 <= frame.kind <= 6
    except FrameError:
        pass


@given(st.integers(0, 2**32 - 1), st.integers(0, 255), st.integers(0, 65_535), st.binary(max_size=30))
def test_any_head(length: int, kind: int, header_length: int, rest: bytes) -> None:
    reader = FrameReader()
    try:
        frames = reader.feed(struct.pack("<IBH", length, kind, header_length) + rest)
    except FrameError:
        assert length > FRAME_MAX_BYTES or header_length + 3 > length or kind not in set(FrameKind)
    else:
        assert length <= FRAME_MAX_BYTES
        for frame in frames[:1]:
            assert len(frame.header) == header_length
            assert len(frame.payload) == length - 3 - header_length


@pytest.mark.parametrize(
    "head",
    [
        struct.pack("<IBH", FRAME_MAX_BYTES + 1, FrameKind.RESULT, 0),
        struct.pack("<IBH", 2, FrameKind.RESULT, 0),
        struct.pack("<IBH", 10, FrameKind.RESULT, 8),
        struct.pack("<IBH", 3, 0, 0),
        struct.pack("<IBH", 3, 7, 0),
    ],
    ids=["too long", "shorter than its head", "header over the frame", "kind 0", "kind 7"],
)
def test_impossible_heads(head: bytes) -> None:
    with pytest.raises(FrameError, match="a frame of kind"):
        FrameReader().feed(head)


def test_the_largest_response_passes_in_socket_sized_pieces() -> None:
    payload = b"x" * RESPONSE_MAX_BYTES
    data = encode(FrameKind.RESULT, b"h" * 65_535, payload)
    reader = FrameReader()
    frames = [frame for at in range(0, len(data), 262_144) for frame in reader.feed(data[at : at + 262_144])]
    assert frames == [(FrameKind.RESULT, b"h" * 65_535, payload)]


def test_a_header_over_its_length_field_is_refused() -> None:
    with pytest.raises(struct.error):
        encode(FrameKind.INVOKE, b"h" * 65_536)
