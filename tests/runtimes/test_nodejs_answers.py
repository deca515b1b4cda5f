"""The Node.js client's reader of HTTP answers, by properties: however answers are framed and cut, it reads them."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.runtimes.nodejs_platform import MAIN, NODE

pytestmark = pytest.mark.skipif(NODE is None, reason="no node on this machine")

#: Reads lines of pieces in base64, feeds them to a reader from one buffer that is overwritten, tells what it read.
PROGRAM = """
const { AnswerReader } = require(process.argv[1]);
const buffer = Buffer.alloc(65536);
require('readline').createInterface({ input: process.stdin }).on('line', (line) => {
    const answers = []; let error = null, whole = false;
    const reader = new AnswerReader((status, headers, from, start, end) =>
        answers.push([status, headers, from.toString('base64', start, end)]));
    try {
        for (const piece of JSON.parse(line)) {
            buffer.fill(88);
            reader.feed(buffer.subarray(0, Buffer.from(piece, 'base64').copy(buffer)));
        }
        whole = reader.end();
    } catch (caught) { error = caught.message }
    console.log(JSON.stringify({ answers, error, whole }));
});
"""

bodies = st.binary(max_size=300)
headers = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True).filter(
        lambda name: name not in ("content-length", "transfer-encoding", "--proto--", "constructor")
    ),
    st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True),
    max_size=5,
)


class Reader:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [str(NODE), "-e", PROGRAM, str(MAIN.with_name("answers.cjs"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def read(self, pieces: list[bytes]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([base64.b64encode(piece).decode() for piece in pieces]).encode() + b"\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    reader = Reader()
    yield reader
    reader.process.communicate()


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, tuple[int, dict[str, str], bytes]]:
    """The bytes of an answer, and what should be read from them."""
    status, fields, body = draw(st.sampled_from([200, 202, 413, 500])), draw(headers), draw(bodies)
    framing = draw(st.sampled_from(["length", "chunked", "empty"]))
    payload = body
    if framing == "length":
        fields["content-length"] = str(len(body))
    elif framing == "chunked":
        fields["transfer-encoding"] = draw(st.sampled_from(["chunked", "Chunked", "gzip, chunked"]))
        size = draw(st.integers(1, 50))
        chunks = [body[at : at + size] for at in range(0, len(body), size)]
        payload = b"".join(b"%x;e=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
        payload += b"0\r\n" + b"".join(b"T: v\r\n" for _ in range(draw(st.integers(0, 2)))) + b"\r\n"
    else:
        status, body, payload = 204, b"", b""
    lines = "".join(f"{name.title()}:{draw(st.sampled_from(['', ' ']))}{value}\r\n" for name, value in fields.items())
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n"]))
    return interim + f"HTTP/1.1 {status} R\r\n{lines}\r\n".encode() + payload, (status, fields, body)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if end > start]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(answers(), min_size=1, max_size=4), st.lists(st.integers(0, 5_000), max_size=30), st.booleans())
def test_answers_are_read_however_they_are_cut(
    reader: Reader, written: list[tuple[bytes, tuple[int, dict[str, str], bytes]]], places: list[int], bytewise: bool
) -> None:
    data = b"".join(raw for raw, _ in written)
    found = reader.read([data[i : i + 1] for i in range(len(data))] if bytewise else cut(data, places))
    assert found["error"] is None
    assert found["whole"] is True
    assert [(status, fields, base64.b64decode(body)) for status, fields, body in found["answers"]] == [
        expected for _, expected in written
    ]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=100))
def test_what_is_not_http_is_refused_or_waited_for(reader: Reader, data: bytes) -> None:
    found = reader.read([data, b"\r\n\r\n"])
    assert found["error"] is not None
    assert found["answers"] == []


def test_body_until_the_connection_closes(reader: Reader) -> None:
    found = reader.read([b"HTTP/1.0 500 X\r\n\r", b"\nab", b"c"])
    assert found == {"answers": [[500, {}, base64.b64encode(b"abc").decode()]], "error": None, "whole": True}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "a Content-Length of -1"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "a chunk length of xyz"),
    ],
)
def test_lengths_that_make_no_sense(reader: Reader, data: bytes, message: str) -> None:
    assert reader.read([data])["error"] == message


def test_answer_that_is_cut_off(reader: Reader) -> None:
    assert reader.read([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"])["whole"] is False
    assert reader.read([b"HTTP/1.1 200 OK\r\nConte"])["whole"] is False
