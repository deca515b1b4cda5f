"""HTTP as clients send it well, badly, slowly, in pieces, and in masses."""

from __future__ import annotations

import os
import resource
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.worker.api.rig import NEXT, PATIENCE_S, REGISTER, Client, Rig, error_path, invocation, response_path, wire

from lambent.worker.api import connection as connection_module
from lambent.worker.api import server as server_module
from lambent.worker.api.connection import HEAD_MAX_BYTES
from lambent.worker.api.server import CONNECTIONS_MAX

PING = "/2018-06-01/ping"


def is_refused(client: Client, status: int) -> bool:
    answer = client.answer()
    assert answer.headers["connection"] == "close"
    assert client.is_cut
    return answer.status == status


# --- pieces ---------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 400), max_size=12), st.booleans(), st.integers(0, 3_000))
def test_any_split_of_the_bytes_means_the_same(cuts: list[int], chunked: bool, size: int) -> None:
    rig = Rig()
    try:
        client = rig.running()
        body = os.urandom(size)
        if chunked:
            pieces = [body[at : at + 700] for at in range(0, size, 700)]
            framed = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            answer = wire("POST", response_path(), Transfer_Encoding="chunked") + framed
        else:
            answer = wire("POST", response_path(), body)
        data = wire("GET", PING) + answer + wire("GET", PING) + wire("GET", NEXT)
        at = 0
        for cut in [*cuts, len(data)]:
            client.send(data[at : at + cut])
            at += cut
        assert [client.answer().status for _ in range(3)] == [200, 202, 200]
        assert rig.owner.take() == ("response", body, "application/json")
        assert rig.owner.take() == ("settled",)
    finally:
        rig.close()


def test_byte_by_byte(rig: Rig) -> None:
    client = rig.running()
    for byte in wire("POST", response_path(), b"slow") + wire("GET", PING):
        client.send(bytes([byte]))
    assert client.answer().status == 202
    assert client.answer().body == b"pong"
    assert rig.owner.take()[1] == b"slow"


def test_a_body_of_tiny_chunks(rig: Rig) -> None:
    client = rig.running()
    client.send(wire("POST", response_path(), Transfer_Encoding="chunked") + b"2\r\nab\r\n" * 100_000 + b"0\r\n\r\n")
    assert client.answer().status == 202
    assert rig.owner.take()[1] == b"ab" * 100_000


def test_many_pipelined_requests_in_order(rig: Rig) -> None:
    client = rig.client()
    count = 2_000
    sender = threading.Thread(
        target=client.send, args=(b"".join(wire("GET", PING if at % 2 else "/no") for at in range(count)),)
    )
    sender.start()
    assert [client.answer().status for _ in range(count)] == [404, 200] * (count // 2)
    sender.join()


def test_pipelined_behind_a_long_poll(rig: Rig) -> None:
    client = rig.client()
    body = b"x" * 10_000
    client.send(wire("GET", NEXT) + wire("GET", PING) + wire("POST", response_path(), body) + wire("GET", PING))
    assert rig.owner.take() == ("settled",)
    rig.do(rig.api.invoke, invocation(), 1)
    assert [client.answer().status for _ in range(4)] == [200, 200, 202, 200]
    assert rig.owner.take() == ("response", body, "application/json")


def test_what_is_pipelined_behind_a_long_poll_is_bounded(rig: Rig) -> None:
    client = rig.client()
    client.send(wire("GET", NEXT))
    client.socket.settimeout(0.2)
    request = wire("POST", "/2018-06-01/runtime/init/error", b"x" * 60_000)
    sent = 0
    try:
        while sent < 100_000_000:
            sent += client.socket.send(request)
    except TimeoutError:
        pass
    assert sent < 30_000_000  # what kernels keep; the server has stopped reading
    assert rig.owner.take() == ("settled",)


def test_a_client_that_does_not_read(rig: Rig) -> None:
    client = rig.runtime()
    payload = b"x" * 6_000_000
    rig.do(rig.api.invoke, invocation(payload), 1)
    client.send(wire("GET", PING))
    assert client.answer().body == payload
    assert client.answer().body == b"pong"


def test_connection_close(rig: Rig) -> None:
    client = rig.client()
    assert client.call("GET", PING, Connection="close").body == b"pong"
    assert client.is_cut


def test_http_1_0(rig: Rig) -> None:
    client = rig.client()
    client.send(b"GET /2018-06-01/ping HTTP/1.0\r\n\r\n")
    assert client.answer().body == b"pong"
    assert client.is_cut


def test_upgrades_are_not_taken(rig: Rig) -> None:
    client = rig.client()
    assert client.call("GET", PING, Connection="Upgrade", Upgrade="h2c").body == b"pong"
    assert client.is_cut


# --- what is refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nA\0B: 1\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        os.urandom(64),
    ],
)
def test_garbage(rig: Rig, data: bytes) -> None:
    client = rig.client()
    client.send(data + b"\r\n\r\n")
    assert is_refused(client, 400)
    assert rig.client().call("GET", PING).status == 200


def test_what_came_before_garbage_is_answered(rig: Rig) -> None:
    client = rig.client()
    client.send(wire("GET", PING) + b"rubbish\r\n\r\n")
    assert client.answer().body == b"pong"
    assert is_refused(client, 400)


def test_garbage_behind_a_long_poll(rig: Rig) -> None:
    client = rig.runtime()
    client.send(b"rubbish\r\n\r\n")
    assert client.is_cut
    rig.client().ask("GET", NEXT)  # and the runtime may come again


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"])
def test_a_head_that_never_ends(rig: Rig, start: bytes) -> None:
    client = rig.client()
    filler = b"A: b\r\n" * 1_000 if start.endswith(b"\r\n") else b"x" * 6_000
    client.send(start)
    for _ in range(HEAD_MAX_BYTES // len(filler) + 2):
        client.send(filler)
    assert is_refused(client, 431)


def test_a_large_head(rig: Rig) -> None:
    assert rig.client().call("GET", PING, X_Large="x" * 200_000).status == 200


def test_trailers_that_never_end(rig: Rig) -> None:
    client = rig.running()
    client.ask("POST", response_path(), Transfer_Encoding="chunked")
    client.send(b"1\r\na\r\n0\r\n")
    try:
        for _ in range(HEAD_MAX_BYTES // 6_000 + 30):
            client.send(b"A: b\r\n" * 1_000)
    except ConnectionError:
        pass
    assert rig.owner.take()[1] == "Runtime.TruncatedResponse"


def test_a_body_that_never_ends(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "DISCARD_MAX_BYTES", 4_000_000)
    client = rig.client()
    client.ask("POST", REGISTER, Transfer_Encoding="chunked", Lambda_Extension_Name="a")
    piece = b"10000\r\n" + b"x" * 65_536 + b"\r\n"
    try:
        for _ in range(1_000):
            client.send(piece)
        pytest.fail("all of it was taken")
    except ConnectionError:
        pass
    assert rig.client().call("GET", PING).status == 200


def test_unfinished_bodies_are_bounded_in_all(rig: Rig) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    clients = [rig.client() for _ in range(60)]
    for client in clients:
        client.ask("POST", "/2018-06-01/runtime/init/error", Content_Length="1000001")
        client.send(b"x" * 1_000_000)
    rig.do(lambda: None)
    assert rig.do(lambda: rig.api._body_bytes) <= server_module.BODIES_MAX_BYTES
    for client in clients:
        client.send(b"x")
    statuses = {client.answer().status for client in clients}
    assert 500 in statuses
    assert rig.do(lambda: rig.api._body_bytes) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


# --- masses ---------------------------------------------------------------------------------------------


def test_the_number_of_connections_is_bounded(rig: Rig) -> None:
    runtime = rig.runtime()
    idle = [rig.client() for _ in range(CONNECTIONS_MAX + 60)]
    assert idle[-1].call("GET", PING).body == b"pong"
    assert rig.do(lambda: len(rig.api._connections)) <= CONNECTIONS_MAX
    assert idle[0].is_cut  # the oldest made room
    rig.do(rig.api.invoke, invocation(), 1)
    assert runtime.answer().status == 200  # but not the runtime's
    extra = [rig.client() for _ in range(CONNECTIONS_MAX)]
    assert extra[-1].call("GET", PING).body == b"pong"
    assert runtime.call("POST", response_path(), b"still here").status == 202


def test_busy_connections_are_not_closed_for_new_ones(rig: Rig) -> None:
    busy = [rig.client() for _ in range(CONNECTIONS_MAX)]
    for client in busy:
        client.send(b"GET / HT")
    while rig.do(lambda: sum(connection.is_busy for connection in rig.api._connections)) < CONNECTIONS_MAX:
        pass
    assert rig.client().is_cut
    busy[0].send(b"TP/1.1\r\n\r\n")
    assert busy[0].answer().status == 404


def test_a_flood_of_connections(rig: Rig) -> None:
    for _ in range(2_000):
        Client(rig.address).close()
    assert rig.client().call("GET", PING).status == 200


def test_a_flood_of_registrations(rig: Rig) -> None:
    client = rig.client()
    count = 500
    flood = b"".join(
        wire("POST", REGISTER, b'{"events":[]}', Lambda_Extension_Name=f"extension{at}") for at in range(count)
    )
    threading.Thread(target=client.send, args=(flood,), daemon=True).start()
    statuses = [client.answer().status for _ in range(count)]
    assert statuses == [200] * 10 + [403] * (count - 10)


def test_refused_by_the_admission() -> None:
    rig = Rig(admits=lambda _peer: False)
    try:
        client = rig.client()
        assert client.is_cut
    finally:
        rig.close()


# --- streaming with back-pressure -----------------------------------------------------------------------


def test_a_paused_stream_stops_the_runtime(rig: Rig) -> None:
    total = 60_000_000
    rig.owner.keep_chunks = False
    paused = threading.Event()

    def pause_now_and_then(byte_count: int) -> None:
        if byte_count > 1_000_000 and not paused.is_set():
            assert rig.owner.source is not None
            rig.owner.source.pause()
            paused.set()

    rig.owner.on_bytes = pause_now_and_then
    client = rig.running()
    client.ask("POST", response_path(), Transfer_Encoding="chunked", Lambda_Runtime_Function_Response_Mode="streaming")
    piece = b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def send_all() -> None:
        for _ in range(total // 1_000_000):
            client.send(piece)
        client.send(b"0\r\n\r\n")

    client.socket.settimeout(30)
    sender = threading.Thread(target=send_all, daemon=True)
    sender.start()
    assert paused.wait(PATIENCE_S)
    taken = rig.owner.stream_bytes
    sender.join(0.2)  # blocked: the kernel's buffers are full
    assert sender.is_alive()
    assert rig.owner.stream_bytes - taken < 1_000_000
    assert rig.owner.source is not None
    rig.do(rig.owner.source.resume)
    assert rig.owner.wait_for("stream_end") == ("stream_end", None, b"")
    assert rig.owner.stream_bytes == total
    assert client.answer().status == 202
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    rig.do(rig.owner.source.pause)  # a source that has ended pauses nothing
    client.ask("GET", NEXT)
    assert rig.owner.take() == ("settled",)


# --- the end --------------------------------------------------------------------------------------------


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


@pytest.mark.parametrize("command", ["begin", "close"])
def test_nothing_is_left_behind(rig: Rig, command: str) -> None:
    rig.do(lambda: None)
    before = open_descriptors()
    clients = [rig.client() for _ in range(5)]
    clients[0].ask("GET", NEXT)
    assert rig.owner.take() == ("settled",)
    clients[1].send(b"GET / HT")
    clients[2].send(b"rubbish\r\n\r\n")  # lingers
    clients[2].answer()
    clients[3].ask("POST", response_path(), b"")
    clients[3].answer()
    rig.do(rig.api.begin, True) if command == "begin" else rig.do(rig.api.close)
    for client in clients:
        assert client.is_cut
        client.close()
    rig.do(lambda: None)
    assert rig.do(lambda: len(rig.api._connections)) == 0
    assert open_descriptors() == before - (command == "close")
    rig.do(rig.api.close)


def test_an_error_report_that_is_not_finished_is_no_answer(rig: Rig) -> None:
    client = rig.running()
    client.send(f"POST {error_path()} HTTP/1.1\r\nContent-Length: 9\r\n\r\n{{}}".encode())
    while rig.do(lambda: rig.api._runtime.state.value) == "Running":
        pass
    assert rig.owner.silent
    rig.do(rig.api.begin, True)
    assert client.is_cut
    assert rig.owner.silent
