"""What functions return, as HTTP answers: AWS's rules, hostile answers, preludes in any pieces."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.frontend.function_urls.answer import (
    PRELUDE_CONTENT_TYPE,
    PRELUDE_MAX_BYTES,
    HttpAnswer,
    MalformedAnswer,
    PreludeReader,
    from_payload,
    from_prelude,
    without_prelude,
)

JSON_TYPE = [("Content-Type", "application/json")]
NULS = b"\0" * 8
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def answer(value: Any) -> HttpAnswer:
    return from_payload(json.dumps(value).encode(), "application/json")


@pytest.mark.parametrize(
    ("value", "body"),
    [
        ({"hello": "world"}, b'{"hello":"world"}'),
        ("hello", b"hello"),
        (["hello", 3, True], b'["hello",3,true]'),
        (3.1, b"3.1"),
        (True, b"true"),
        (None, b"null"),
    ],
)
def test_json_without_a_status_is_the_body(value: Any, body: bytes) -> None:
    assert answer(value) == HttpAnswer(200, JSON_TYPE, body)


def test_an_object_with_a_status() -> None:
    assert answer({"statusCode": 201, "body": "x"}) == HttpAnswer(201, JSON_TYPE, b"x")
    assert answer({"statusCode": "418"}) == HttpAnswer(418, JSON_TYPE, b"")
    assert answer({"statusCode": 200.0}).status == 200
    full = answer(
        {
            "statusCode": 302,
            "headers": {"content-type": "text/html", "Location": "/é", "x-n": 3, "x-b": True, "x-none": None},
            "cookies": ["a=1; Path=/", "b=2"],
            "body": base64.b64encode(b"\xff\x00").decode(),
            "isBase64Encoded": True,
        }
    )
    assert full.body == b"\xff\x00"
    assert full.headers == [
        ("content-type", "text/html"),
        ("Location", "/é".encode().decode("latin-1")),
        ("x-n", "3"),
        ("x-b", "true"),
        ("Set-Cookie", "a=1; Path=/"),
        ("Set-Cookie", "b=2"),
    ]
    assert answer({"statusCode": 204, "body": "no body may follow"}).body == b""
    assert answer({"statusCode": 304, "body": "no body may follow"}).body == b""


def test_headers_of_the_platform_are_renamed_or_left_out() -> None:
    given = {"Content-Length": "9", "Date": "today", "Connection": "close", "WWW-Authenticate": "Basic", "x": "y"}
    found = answer({"statusCode": 200, "headers": {**given, "Transfer-Encoding": "chunked", "Upgrade": "h2c"}})
    assert dict(found.headers) == {
        "x-amzn-Remapped-Content-Length": "9",
        "x-amzn-Remapped-Date": "today",
        "x-amzn-Remapped-Connection": "close",
        "x-amzn-Remapped-WWW-Authenticate": "Basic",
        "x": "y",
        "Content-Type": "application/json",
    }


@pytest.mark.parametrize(
    "value",
    [
        {"statusCode": None},
        {"statusCode": "abc"},
        {"statusCode": 99},
        {"statusCode": 101},
        {"statusCode": 600},
        {"statusCode": True},
        {"statusCode": 200.5},
        {"statusCode": [200]},
        {"statusCode": 200, "body": {"a": 1}},
        {"statusCode": 200, "body": "not base64!", "isBase64Encoded": True},
        {"statusCode": 200, "headers": ["a"]},
        {"statusCode": 200, "headers": {"a": ["b"]}},
        {"statusCode": 200, "headers": {"a b": "c"}},
        {"statusCode": 200, "headers": {"": "c"}},
        {"statusCode": 200, "headers": {"a": "b\r\nx: y"}},
        {"statusCode": 200, "headers": {"a\r\nb": "c"}},
        {"statusCode": 200, "cookies": "a=1"},
        {"statusCode": 200, "cookies": ["a=1\nb"]},
    ],
)
def test_malformed(value: Any) -> None:
    with pytest.raises(MalformedAnswer):
        answer(value)


def test_what_is_no_json() -> None:
    for payload in (b"", b"hello", b"\xff", b"[" * 100_000):
        with pytest.raises(MalformedAnswer):
            from_payload(payload, "application/json")
    # A stream that was gathered need be no JSON.
    assert from_payload(b"hello", "text/plain") == HttpAnswer(200, [("Content-Type", "text/plain")], b"hello")


def test_a_gathered_stream_with_a_prelude() -> None:
    head = json.dumps({"statusCode": 201, "headers": {"x": "y"}, "cookies": ["c=d"]}).encode()
    found = from_payload(head + NULS + b"body" + NULS, PRELUDE_CONTENT_TYPE)
    assert (found.status, found.body) == (201, b"body" + NULS)
    assert found.headers == [("x", "y"), ("Content-Type", "application/octet-stream"), ("Set-Cookie", "c=d")]
    with pytest.raises(MalformedAnswer):
        from_payload(head + b"\0" * 7, PRELUDE_CONTENT_TYPE)


def test_a_stream_without_a_prelude() -> None:
    assert without_prelude("").headers == [("Content-Type", "application/octet-stream")]
    assert without_prelude("text/event-stream").headers == [("Content-Type", "text/event-stream")]
    assert without_prelude("a\r\nb: c").headers == [("Content-Type", "application/octet-stream")]


@given(
    st.dictionaries(st.sampled_from(["statusCode", "headers", "cookies", "body", "isBase64Encoded"]), _VALUES),
    st.booleans(),
)
def test_any_json_is_answered_or_malformed(value: dict[str, Any], as_prelude: bool) -> None:
    data = json.dumps(value).encode()
    try:
        found = from_prelude(data) if as_prelude else from_payload(data, "application/json")
    except MalformedAnswer:
        return
    assert 200 <= found.status <= 599
    for name, text in found.headers:
        assert not any(ord(character) < 32 and character != "\t" for character in name + text)
        text.encode("latin-1")


@given(st.binary(max_size=60), st.lists(st.integers(1, 50), min_size=1))
def test_a_prelude_comes_in_any_pieces(body: bytes, cuts: list[int]) -> None:
    wire = json.dumps({"statusCode": 418}).encode() + NULS + body
    reader = PreludeReader()
    at = 0
    for step in cuts * len(wire):
        found = reader.feed(wire[at : at + step])
        at += step
        if found is not None:
            assert found[0].status == 418
            assert found[1] + wire[at:] == body
            return
    raise AssertionError("the prelude was not found")


def test_preludes_are_bounded() -> None:
    reader = PreludeReader()
    for _ in range(PRELUDE_MAX_BYTES // 1_000):
        assert reader.feed(b" " * 1_000) is None
    with pytest.raises(MalformedAnswer, match="over 65536 bytes"):
        reader.feed(b" " * 1_000)
    with pytest.raises(MalformedAnswer):
        PreludeReader().feed(b" " * (PRELUDE_MAX_BYTES + 1) + NULS)
    for head in (b"", b"[]", b"{", b'{"statusCode":99}', b"\xff"):
        with pytest.raises(MalformedAnswer):
            PreludeReader().feed(head + NULS)
