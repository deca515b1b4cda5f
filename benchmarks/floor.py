"""The floor: the least that can be done to run a function in another process behind HTTP.

A uvloop + httptools protocol hands the body of `POST /…/invocations` to one of N forked Python processes
that run AWS's awslambdaric (`runtime_link.py`), and answers with what it says. Idle processes form a stack
(last used, first taken), as Lambda's environments do; when all are busy, requests wait in a queue. No logs,
no limits, no sandbox, no API: what Lambent costs more than this is the price of being Lambda.

    python benchmarks/floor.py --port 9500 --processes 8
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections import deque
from pathlib import Path

import httptools
import uvloop

from runtime_link import FAILED, LENGTH, start_process

FUNCTIONS = Path(__file__).parent / "functions"
WAITING_MAX = 100_000  # more than any closed-loop driver here can have in flight


class Process(asyncio.Protocol):
    """Our end of the link to one forked process: at most one request at a time."""

    def __init__(self, pool: "Pool") -> None:
        self._pool = pool
        self._received = b""
        self._client: Client | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Idle from the start: the kernel keeps a frame until the process has imported its handler."""
        self._transport = transport
        self._pool.idle.append(self)

    def dispatch(self, client: "Client", body: bytes) -> None:
        """Send a request; the answer comes through `data_received`."""
        self._client = client
        self._transport.write(LENGTH.pack(len(body)) + body)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        """Complete an answer, take the next waiting request or become idle, then answer the client."""
        received = self._received + data if self._received else data
        if len(received) < 4 or len(received) < 4 + LENGTH.unpack_from(received)[0]:
            self._received = received
            return
        self._received = b""
        client, self._client = self._client, None
        if self._pool.waiting:
            self.dispatch(*self._pool.waiting.popleft())
        else:
            self._pool.idle.append(self)
        if client is not None and not client.gone:
            client.answer(received[4:5] == FAILED, received[5:])

    def connection_lost(self, exc: Exception | None) -> None:
        """A process of the floor never ends by itself; if it does, no figure may be taken."""
        del exc
        if not self._pool.stopping:
            print("floor: a process ended", file=sys.stderr, flush=True)
            os._exit(1)


class Pool:
    """All processes: the stack of idle ones and the queue of requests that found none."""

    def __init__(self) -> None:
        self.idle: list[Process] = []
        self.waiting: deque[tuple[Client, bytes]] = deque(maxlen=WAITING_MAX)
        self.stopping = False


class Client(asyncio.Protocol):
    """One HTTP connection, kept alive; the next request is only read after the answer (no pipelining)."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.gone = False  # set when the peer left, perhaps before its answer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A fresh parser per connection; httptools resets itself between messages."""
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = b""

    def data_received(self, data: bytes) -> None:
        """The parser calls the four `on_…` methods below."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """Forget the message before."""
        self._url = b""
        self._body = b""

    def on_url(self, url: bytes) -> None:
        """Path of the request, possibly in pieces."""
        self._url += url

    def on_body(self, body: bytes) -> None:
        """Body, possibly in pieces."""
        self._body += body

    def on_message_complete(self) -> None:
        """Hand the request to an idle process, or let it wait."""
        if not self._url.endswith(b"/invocations"):
            self._transport.write(  # type: ignore[attr-defined]
                b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
            )
            return
        if self._pool.idle:
            self._pool.idle.pop().dispatch(self, self._body)
        else:
            self._pool.waiting.append((self, self._body))

    def connection_lost(self, exc: Exception | None) -> None:
        """A load driver that reached its time limit leaves in the middle of a request."""
        del exc
        self.gone = True

    def answer(self, failed: bool, body: bytes) -> None:
        """The same few headers that any client of Lambda needs."""
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
        if failed:
            head += b"X-Amz-Function-Error: Unhandled\r\n"
        self._transport.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)  # type: ignore[attr-defined]


async def serve(port: int, links: list[socket.socket]) -> None:
    """Serve until SIGTERM or SIGINT; the processes end when their links close."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    pool = Pool()
    for link in links:
        link.setblocking(False)
        await loop.create_unix_connection(lambda: Process(pool), sock=link)
    server = await loop.create_server(lambda: Client(pool), "127.0.0.1", port, backlog=1024)
    bound_port = server.sockets[0].getsockname()[1]
    print(f"Floor ready on http://127.0.0.1:{bound_port}", flush=True)
    await stop.wait()
    pool.stopping = True
    server.close()


def main() -> None:
    """Fork first, while this process is small and has no loop; then serve."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--port", type=int, default=9500, help="0 takes a free one")
    arguments.add_argument("--processes", type=int, default=8)
    arguments.add_argument("--handler", default="echo.handler", help="of benchmarks/functions")
    options = arguments.parse_args()
    sys.path.insert(0, str(FUNCTIONS))
    links: list[socket.socket] = []
    for _ in range(options.processes):
        _pid, link = start_process(options.handler, links)
        links.append(link)
    uvloop.run(serve(options.port, links))


if __name__ == "__main__":
    main()
