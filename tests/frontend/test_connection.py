"""One HTTP connection over a real socket: what clients send well, badly, slowly and in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import pytest

from lambent.frontend import connection as connection_module
from lambent.frontend.connection import Connection, RawRequest
from lambent.frontend.listener import Listener, bind
from lambent.model.limits import HEADERS_MAX_BYTES
from lambent.wire.http import Request, Response

PATIENCE_S = 5.0
BODY_LIMIT = 1_000


class EchoApplication:
    """Answers what it got. Paths: /now at once, /later when `release` is called, all else by a coroutine."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Connection, RawRequest]] = []
        self.seen: list[RawRequest] = []

    def body_limit(self, raw: RawRequest) -> int:
        return BODY_LIMIT

    def invoke(self, connection: Connection, raw: RawRequest) -> bool:
        self.seen.append(raw)
        if raw.target.startswith(b"/now"):
            connection.answer(raw, 200, "X-Path: now\r\n", raw.target)
            return True
        if raw.target.startswith(b"/later"):
            self.waiting.append((connection, raw))
            return True
        return False

    def release(self) -> None:
        waiting, self.waiting = self.waiting, []
        for connection, raw in waiting:
            connection.answer(raw, 200, "", raw.target)

    async def handle(self, raw: RawRequest) -> Response:
        if raw.target == b"/nothing":
            return Response(204)
        seen = raw.whole()
        told = {"method": seen.method, "path": seen.path, "query": seen.query, "body": seen.body.decode("latin-1")}
        return Response(200, json.dumps({**told, "bytes": raw.body_bytes}).encode(), [("Content-Type", "text/x")])


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.body)
        return found


class Client:
    """A client that sends exactly the bytes it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, head_only: bool = False) -> Answer:
        async with asyncio.timeout(PATIENCE_S):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head[:-4].split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            length = 0 if head_only else int(headers.get("content-length", "0"))
            return Answer(int(first.split(" ")[1]), headers, await self.reader.readexactly(length))

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.reader.read()


@contextlib.asynccontextmanager
async def serving(application: EchoApplication) -> AsyncIterator[tuple[Listener, Callable[[], Awaitable[Client]]]]:
    listener = Listener(application)
    sock = bind("127.0.0.1", 0)
    address = sock.getsockname()[:2]
    await listener.start(sock)
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Client:
        reader, writer = await asyncio.open_connection(*address)
        writers.append(writer)
        return Client(reader, writer)

    try:
        yield listener, connect
    finally:
        for writer in writers:
            writer.close()
        listener.stop_accepting()
        await listener.close()


def run(scenario: Callable[[EchoApplication, Client], Awaitable[None]]) -> None:
    async def whole() -> None:
        application = EchoApplication()
        async with serving(application) as (_, connect):
            await scenario(application, await connect())

    asyncio.run(whole())


def get(target: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def post(target: str, body: bytes, *headers: str) -> bytes:
    head = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def test_an_answer_has_the_headers_of_aws() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(get("/a?x=1"))
        answer = await client.answer()
        assert answer.status == 200
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers["date"])
        uuid = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
        assert re.fullmatch(uuid, answer.headers["x-amzn-requestid"])
        assert answer.headers["connection"] == "keep-alive"
        assert answer.json == {"method": "GET", "path": "/a", "query": "x=1", "body": "", "bytes": 0}

    run(scenario)


def test_request_ids_differ() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(get("/now") * 300)
        seen = {(await client.answer()).headers["x-amzn-requestid"] for _ in range(300)}
        assert len(seen) == 300

    run(scenario)


def test_byte_by_byte() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        for byte in post("/b?q", b"hello", "X-Odd: \xe9"):
            await client.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await client.answer()).json["body"] == "hello"
        assert application.seen[0].headers[b"x-odd"] == "\xe9".encode()

    run(scenario)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(get("/slow/1") + get("/now/2") + post("/3", b"x") + get("/now/4") + get("/now/5")[:20])
        assert (await client.answer()).json["path"] == "/slow/1"
        assert (await client.answer()).body == b"/now/2"
        assert (await client.answer()).json["path"] == "/3"
        assert (await client.answer()).body == b"/now/4"
        await client.send(get("/now/5")[20:])
        assert (await client.answer()).body == b"/now/5"

    run(scenario)


def test_many_more_pipelined_requests_than_are_held_all_get_their_answer() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        count = 3_000
        await client.send(get("/later/first") + b"".join(get(f"/now/{n}") for n in range(count)))
        while not application.waiting:
            await asyncio.sleep(0.001)
        application.release()
        assert (await client.answer()).body == b"/later/first"
        for n in range(count):
            assert (await client.answer()).body == f"/now/{n}".encode()

    run(scenario)


def test_reading_pauses_while_many_requests_wait() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        count = 200
        for n in range(count):
            await client.send(get(f"/later/{n}"))
            await asyncio.sleep(0)
        for n in range(count):
            async with asyncio.timeout(PATIENCE_S):
                while not application.waiting:
                    await asyncio.sleep(0.001)
            application.release()
            assert (await client.answer()).body == f"/later/{n}".encode()

    run(scenario)


def test_expect_100_continue() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        whole = post("/up", b"body", "Expect: 100-continue")
        await client.send(whole[:-4])
        assert (await client.answer()).status == 100
        await client.send(whole[-4:])
        assert (await client.answer()).json["body"] == "body"

    run(scenario)


def test_chunked_bodies() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        head = b"PUT /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await client.send(head + b"3\r\nabc\r\n")
        await client.send(b"A;ext=1\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n" + get("/now"))
        assert (await client.answer()).json["body"] == "abc0123456789"
        assert (await client.answer()).body == b"/now"

    run(scenario)


def test_head_has_no_body() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(get("/now").replace(b"GET", b"HEAD") + get("/now"))
        answer = await client.answer(head_only=True)
        assert (answer.status, answer.headers["content-length"]) == (200, "4")
        assert (await client.answer()).body == b"/now"

    run(scenario)


def test_204_has_no_length() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(get("/nothing") + get("/now"))
        answer = await client.answer()
        assert answer.status == 204
        assert "content-length" not in answer.headers
        assert (await client.answer()).body == b"/now"

    run(scenario)


@pytest.mark.parametrize(
    "request_bytes",
    [get("/now", "Connection: close"), b"GET /now HTTP/1.0\r\n\r\n"],
    ids=["Connection: close", "HTTP/1.0"],
)
def test_the_server_closes_when_the_client_wants_it(request_bytes: bytes) -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(request_bytes)
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"/now", "close")
        assert await client.rest() == b""

    run(scenario)


def test_an_upgrade_is_ignored_and_the_connection_closed() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(get("/now", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c") + b"PRI * HTTP/2.0")
        answer = await client.answer()
        assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"/now", "close")
        assert await client.rest() == b""

    run(scenario)


def test_nothing_is_run_after_a_request_that_closes() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(get("/now/1", "Connection: close") + get("/now/2"))
        assert (await client.answer()).body == b"/now/1"
        assert await client.rest() == b""
        assert len(application.seen) == 1

    run(scenario)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"hello\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\x00c\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1e3\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: " + b"9" * 40 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * HEADERS_MAX_BYTES + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * HEADERS_MAX_BYTES + b" HTTP/1.1\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * (HEADERS_MAX_BYTES // 2) + b"\r\n", 431),
    ],
    ids=[
        "TLS", "words", "no target", "version", "header without colon", "NUL in a header", "two lengths",
        "length and chunked", "negative length", "length in words", "absurd length", "body over the limit",
        "bad chunk", "long header", "long target", "many headers",
    ],
)  # fmt: skip
def test_what_is_refused(request_bytes: bytes, status: int) -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(request_bytes)
        answer = await client.answer()
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert isinstance(answer.json["message"], str)
        assert await client.rest() == b""
        assert application.seen == []

    run(scenario)


def test_headers_that_never_end_are_refused_before_they_are_whole() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(b"GET / HTTP/1.1\r\nA: ")
        for _ in range(200):
            await client.send(b"a" * 1_024)
            await asyncio.sleep(0)
        assert (await client.answer()).status == 431

    run(scenario)


def test_a_body_over_what_the_target_takes_is_counted_and_dropped() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(post("/big", b"x" * (BODY_LIMIT * 50)) + get("/now"))
        answer = await client.answer()
        assert answer.json["bytes"] == BODY_LIMIT * 50
        assert len(str(answer.json["body"])) <= BODY_LIMIT
        assert (await client.answer()).body == b"/now"

    run(scenario)


def test_a_chunked_body_over_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "_BODY_MAX_BYTES", 100_000)

    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(30):
            await client.send(b"1000\r\n" + b"x" * 4_096 + b"\r\n")
            await asyncio.sleep(0)
        assert (await client.answer()).status == 413
        assert application.seen == []

    run(scenario)


def test_a_client_that_is_still_sending_can_read_why_it_was_refused() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n")
        for _ in range(50):
            await client.send(b"x" * 65_536)
        assert (await client.answer()).status == 413
        assert await client.rest() == b""

    run(scenario)


def test_a_body_cut_off_is_never_run() -> None:
    async def scenario(application: EchoApplication, client: Client) -> None:
        await client.send(post("/cut", b"0123456789")[:-5])
        client.writer.write_eof()
        await client.rest()
        assert application.seen == []

    run(scenario)


def test_a_client_that_leaves_does_not_disturb_the_others() -> None:
    async def whole() -> None:
        application = EchoApplication()
        async with serving(application) as (listener, connect):
            leaving, staying = await connect(), await connect()
            await leaving.send(get("/later/a") + get("/later/b"))
            await staying.send(get("/now"))
            assert (await staying.answer()).body == b"/now"
            leaving.writer.transport.abort()
            while listener.connection_count > 1:
                await asyncio.sleep(0.001)
            application.release()
            await staying.send(get("/now"))
            assert (await staying.answer()).body == b"/now"

    asyncio.run(whole())


def test_slow_and_idle_clients_are_swept() -> None:
    async def whole() -> None:
        application = EchoApplication()
        loop = asyncio.get_running_loop()
        async with serving(application) as (listener, connect):
            slow, idle, busy, fresh = [await connect() for _ in range(4)]
            await slow.send(b"GET / HTTP/1.1\r\nHost")
            await idle.send(get("/now"))
            await busy.send(get("/later"))
            await fresh.send(get("/now"))
            for client in (idle, fresh):
                await client.answer()
            while not application.waiting:
                await asyncio.sleep(0.001)
            connections = list(listener._connections)

            def sweep(after_s: float) -> None:
                for connection in connections:
                    connection.sweep(loop.time() + after_s)

            sweep(connection_module.BODY_PAUSE_TIMEOUT_S - 1)
            assert listener.connection_count == 4
            sweep(connection_module.BODY_PAUSE_TIMEOUT_S + 1)
            assert (await slow.answer()).status == 408
            assert await slow.rest() == b""
            await fresh.send(get("/now"))
            assert (await fresh.answer()).body == b"/now"
            sweep(connection_module.KEEP_ALIVE_S + 1)
            assert await idle.rest() == b""
            application.release()
            assert (await busy.answer()).body == b"/later"

    asyncio.run(whole())


def test_headers_that_drip_in_are_bounded_too() -> None:
    async def whole() -> None:
        async with serving(EchoApplication()) as (listener, connect):
            dripping = await connect()
            await dripping.send(b"GET /now HTTP/1.1\r\nx-long: aaa")
            loop = asyncio.get_running_loop()
            while not listener.connection_count:
                await asyncio.sleep(0.001)
            (connection,) = listener._connections
            while connection._raw is None:
                await asyncio.sleep(0.001)
            later = loop.time() + connection_module.HEADER_TIMEOUT_S
            connection.last_activity = later  # a byte came just now
            connection.sweep(later - 1)
            assert not connection.closing
            connection.sweep(later + 1)
            assert (await dripping.answer()).status == 408

    asyncio.run(whole())


def test_draining_closes_idle_connections_and_busy_ones_after_their_answer() -> None:
    async def whole() -> None:
        application = EchoApplication()
        async with serving(application) as (listener, connect):
            idle, busy = await connect(), await connect()
            await idle.send(get("/now"))
            await idle.answer()
            await busy.send(get("/later"))
            while not application.waiting:
                await asyncio.sleep(0.001)
            listener.stop_accepting()
            assert await idle.rest() == b""
            application.release()
            answer = await busy.answer()
            assert (answer.body, answer.headers["connection"]) == (b"/later", "close")
            assert await busy.rest() == b""
            with pytest.raises(OSError):
                await connect()

    asyncio.run(whole())


def test_the_caller_is_read_from_header_or_query() -> None:
    raw = RawRequest()
    assert raw.caller.account == "000000000000"
    raw.target = b"/x?X-Amz-Credential=123456789012%2F20261123%2Feu-west-1%2Flambda%2Faws4_request"
    assert raw.caller == ("123456789012", "eu-west-1", "lambda")
    raw.headers = {
        b"authorization": b"AWS4-HMAC-SHA256 Credential=210987654321/20261123/us-west-2/logs/aws4_request, x"
    }
    assert raw.caller == ("210987654321", "us-west-2", "logs")
    whole: Request = raw.whole()
    assert (whole.account, whole.region, whole.service) == ("210987654321", "us-west-2", "logs")
