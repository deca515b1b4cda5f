"""What functions write, cut into log events: the same events however the pipe cuts the bytes."""

from __future__ import annotations

import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.worker.log_pipe import EVENT_MAX_BYTES, LogParser

NOW = 1_700_000_000_000


def frame(text: bytes, time_us: int = 1_600_000_000_123_456, kind: int = 0xA55A0003) -> bytes:
    return struct.pack(">IIQ", kind, len(text), time_us) + text


def parse(data: bytes, sizes: list[int] | None = None) -> list[tuple[int, str]]:
    parser = LogParser()
    events: list[tuple[int, str]] = []
    for size in sizes or []:
        events += parser.feed(data[:size], NOW)
        data = data[size:]
    return events + parser.feed(data, NOW) + parser.flush(NOW)


PARTS = st.lists(
    st.one_of(
        st.binary(max_size=12),
        st.sampled_from([b"\n", b"one\n", b"two", b"\r", b"\xa5", b"\xa5Z", b"\xa5Z\0", "päß\n".encode(), b"\xff\n"]),
        st.binary(max_size=20).map(frame),
        st.just(frame(b"a\nb")),
    ),
    max_size=8,
)


@settings(max_examples=400)
@given(PARTS, st.lists(st.integers(0, 9), max_size=30))
def test_pieces_of_any_size_give_the_same_events(parts: list[bytes], sizes: list[int]) -> None:
    data = b"".join(parts)
    assert parse(data, sizes) == parse(data)


@given(PARTS)
def test_byte_by_byte(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert parse(data, [1] * len(data)) == parse(data)


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1), max_size=6))
def test_raw_lines_lose_nothing(lines: list[str]) -> None:
    assert parse("".join(line + "\n" for line in lines).encode()) == [(NOW, line + "\n") for line in lines]


def test_lines_are_cut_at_newlines_only() -> None:
    assert parse(b"a\r\nb\x0bc\xe2\x80\xa8d\n\ne") == [
        (NOW, "a\r\n"),
        (NOW, "b\x0bc\u2028d\n"),
        (NOW, "\n"),
        (NOW, "e"),
    ]


def test_a_frame_is_one_event_with_its_own_time() -> None:
    assert parse(frame(b"first\nsecond\n")) == [(1_600_000_000_123, "first\nsecond\n")]


def test_frames_between_raw_lines_keep_their_order() -> None:
    data = b"before\n" + frame(b"framed") + b"open" + frame(b"\xff") + b"after\n" + frame(b"")
    assert [text for _, text in parse(data)] == ["before\n", "framed", "open", "\ufffd", "after\n", ""]


def test_a_frame_without_a_time_is_stamped_on_arrival() -> None:
    assert parse(frame(b"x", time_us=0)) == [(NOW, "x")]


def test_bytes_that_are_not_utf8_are_shown_replaced() -> None:
    assert parse(b"caf\xe9\n") == [(NOW, "caf\ufffd\n")]


def test_an_unfinished_line_waits_for_the_flush() -> None:
    parser = LogParser()
    assert parser.feed(b"working...", NOW) == []
    assert parser.feed(b" done", NOW + 1) == []
    assert parser.flush(NOW + 2) == [(NOW + 2, "working... done")]
    assert parser.flush(NOW + 3) == []


def test_the_end_of_an_invocation_ends_a_line_but_not_a_record() -> None:
    parser = LogParser()
    parser.feed(b"no newline", NOW)
    assert parser.end_line(NOW) == [(NOW, "no newline")]
    assert parser.end_line(NOW) == []
    record = frame(b"of a thread")
    parser.feed(record[:20], NOW)
    assert parser.end_line(NOW) == []
    assert [text for _, text in parser.feed(record[20:], NOW)] == ["of a thread"]


def test_an_unfinished_frame_is_shown_as_it_is() -> None:
    parser = LogParser()
    assert parser.feed(frame(b"half of it")[:-4], NOW) == []
    ((_, text),) = parser.flush(NOW)
    assert text.endswith("half o")


def test_a_frame_of_impossible_length_does_not_hold_up_what_follows() -> None:
    data = struct.pack(">IIQ", 0xA55A0003, 0xFFFFFFFF, 0) + b"line\n"
    events = parse(data)
    assert events == parse(data, [1] * len(data))
    assert events[-1][1].endswith("line\n")


def test_lines_over_the_limit_are_split_the_same_way_in_any_pieces() -> None:
    line = b"x" * (EVENT_MAX_BYTES + 100)
    expected = ["x" * EVENT_MAX_BYTES, "x" * 100 + "\n"]
    assert [text for _, text in parse(line + b"\n")] == expected
    assert [text for _, text in parse(line + b"\n", [262_144] * 5)] == expected
    assert [text for _, text in parse(line + b"\n", [EVENT_MAX_BYTES])] == expected


def test_a_record_over_the_limit_is_cut() -> None:
    ((_, text),) = parse(frame(b"y" * (EVENT_MAX_BYTES + 5)))
    assert len(text) == EVENT_MAX_BYTES
