"""Clients that send anything at all: the API stays up, tells the environment nothing twice, and keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.worker.api.rig import EVENT_NEXT, NEXT, REGISTER, Rig, error_path, invocation, response_path, wire

CHUNKED = wire("POST", response_path(), Transfer_Encoding="chunked") + b"3\r\nabc\r\n0\r\nA: b\r\n\r\n"
STREAMED = CHUNKED.replace(b"Host: api", b"Lambda-Runtime-Function-Response-Mode: streaming")
#: What a valid client might send in a row.
SCRIPT = (
    wire("POST", response_path(), b"answer"),
    CHUNKED,
    STREAMED,
    wire("POST", error_path(), b"{}"),
    wire("GET", NEXT),
    wire("POST", REGISTER, b'{"events":["INVOKE"]}', Lambda_Extension_Name="fuzz"),
    wire("GET", EVENT_NEXT, Lambda_Extension_Identifier="0" * 36),
    wire("GET", "/2018-06-01/ping"),
    wire("POST", "/2018-06-01/runtime/init/error", b"x" * 100, Expect="100-continue"),
    b"\r\n",
    b"\0",
)
ENDS = ("response", "error", "stream_end", "too_large")
fuzz = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.close()  # fails when anything has escaped into the loop


def run(rig: Rig, data: bytes) -> None:
    """An invocation, a client that sends `data` and goes away, and the reset that follows."""
    runtime = rig.client()
    runtime.ask("GET", NEXT)
    assert rig.owner.take() == ("settled",)
    rig.do(rig.api.invoke, invocation(), 1)
    assert runtime.answer().status == 200
    client = rig.client()
    try:
        client.send(data)
    except ConnectionError:
        pass
    client.close()
    probe = rig.client()
    assert probe.call("GET", "/2018-06-01/ping").body == b"pong"
    while rig.do(lambda: len(rig.api._connections)) > 2:
        pass
    assert rig.do(lambda: rig.api._body_bytes) == 0
    rig.do(rig.api.begin, True)
    names = []
    while not rig.owner.silent:
        names.append(rig.owner.take()[0])
    assert sum(name in ENDS for name in names) <= 1  # one invocation, one outcome
    assert names.count("settled") <= 1
    assert names.count("stream_start") == names.count("stream_end")
    for open_client in rig.clients:
        open_client.close()
    rig.clients.clear()


@fuzz
@given(st.lists(st.sampled_from(SCRIPT), min_size=1, max_size=6).map(b"".join), st.data())
def test_cut_off_anywhere(rig: Rig, data: bytes, draw: st.DataObject) -> None:
    run(rig, data[: draw.draw(st.integers(1, len(data)))])


@fuzz
@given(
    st.lists(st.sampled_from(SCRIPT), min_size=1, max_size=4).map(b"".join),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3)), max_size=4),
)
def test_with_bytes_changed(rig: Rig, data: bytes, changes: list[tuple[int, bytes]]) -> None:
    for at, other in changes:
        at %= len(data)
        data = data[:at] + other + data[at + len(other) :]
    run(rig, data or b"\0")


@fuzz
@given(st.binary(min_size=1, max_size=200))
def test_noise(rig: Rig, data: bytes) -> None:
    run(rig, data)
