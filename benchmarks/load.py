"""The load driver: closed-loop clients that invoke one function over plain HTTP, and one JSON result.

Two engines measure the same thing:
  wrk      for throughput, when it is installed: it takes the least of the machine that the server needs too;
  clients  a raw-socket asyncio protocol on uvloop with its own small HTTP reading, always used for the
           latency of one client, and where wrk is missing. It also looks for X-Amz-Function-Error.

Requests are unsigned but look signed: the header names account and region, as any SDK's would.

    python benchmarks/load.py --url http://127.0.0.1:9400 --function echo --clients 8 --seconds 5
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=000000000000/20260101/us-east-1/lambda/aws4_request, SignedHeaders=host, Signature=0"
)
BODY = b'{"order": 17, "items": ["tea", "bread"], "express": true}'
WRK_SCRIPT = Path(__file__).with_name("post.lua")
GRACE_S = 30.0  # how long a request in flight may go on after the time is over


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one run of a driver saw. Times are of the client: request written to answer complete."""

    engine: str
    clients: int
    requests: int  # answered, errors included
    errors: int
    seconds: float
    rps: float
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float


def percentile(ascending: list[float], percent: float) -> float:
    """The smallest value that at least `percent` of all values do not exceed (nearest rank)."""
    if not ascending:
        return 0.0
    rank = -(-len(ascending) * percent // 100)
    return ascending[max(int(rank) - 1, 0)]


def invoke_path(function: str) -> str:
    """Path of the Invoke API."""
    return f"/2015-03-31/functions/{function}/invocations"


def request_bytes(host: str, function: str, body: bytes, headers: dict[str, str] | None = None) -> bytes:
    """One Invoke request as it goes over the wire."""
    lines = [
        f"POST {invoke_path(function)} HTTP/1.1",
        f"Host: {host}",
        f"Authorization: {AUTHORIZATION}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in (headers or {}).items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@dataclass(frozen=True, slots=True)
class Response:
    """One HTTP answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def failed(self) -> bool:
        """Whether the API refused or the function raised."""
        return self.status >= 400 or "x-amz-function-error" in self.headers


def read_response(received: bytes | bytearray) -> tuple[Response, int] | None:
    """Parse one answer from the start of `received`; None when it is not whole yet, else it and its length.

    Only what both servers send is understood: Content-Length or chunked, no trailers.
    """
    head_end = received.find(b"\r\n\r\n")
    if head_end < 0:
        return None
    status_line, *header_lines = bytes(received[:head_end]).decode("latin-1").split("\r\n")
    headers = {}
    for line in header_lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    status = int(status_line.split(" ", 2)[1])
    start = head_end + 4
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return _read_chunks(received, start, status, headers)
    end = start + int(headers.get("content-length", "0"))
    if len(received) < end:
        return None
    return Response(status, headers, bytes(received[start:end])), end


def _read_chunks(
    received: bytes | bytearray, start: int, status: int, headers: dict[str, str]
) -> tuple[Response, int] | None:
    body = bytearray()
    while True:
        line_end = received.find(b"\r\n", start)
        if line_end < 0:
            return None
        size_bytes = int(bytes(received[start:line_end]).split(b";")[0], 16)
        data_end = line_end + 2 + size_bytes
        if len(received) < data_end + 2:
            return None
        if size_bytes == 0:
            return Response(status, headers, bytes(body)), data_end + 2
        body += received[line_end + 2 : data_end]
        start = data_end + 2


class Connection:
    """One blocking keep-alive connection, for measurements that send one request at a time."""

    def __init__(self, host: str, port: int, timeout_s: float = 60.0) -> None:
        self._host = f"{host}:{port}"
        self._socket = socket.create_connection((host, port), timeout=timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def invoke(self, function: str, body: bytes = BODY, headers: dict[str, str] | None = None) -> tuple[Response, int]:
        """Invoke once: the answer, and nanoseconds from before the write until it was whole."""
        request = request_bytes(self._host, function, body, headers)
        received = bytearray()
        began_ns = time.perf_counter_ns()
        self._socket.sendall(request)
        while True:
            data = self._socket.recv(262_144)
            if not data:
                raise ConnectionError("the server closed the connection before it answered")
            received += data
            parsed = read_response(received)
            if parsed is not None:
                return parsed[0], time.perf_counter_ns() - began_ns

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class _Client(asyncio.Protocol):
    """One closed-loop client: a request, its whole answer, the next request, until time is over."""

    def __init__(self, request: bytes, until_ns: int, latencies_us: list[float]) -> None:
        self._request = request
        self._until_ns = until_ns
        self._latencies_us = latencies_us
        self._received = bytearray()
        self.errors = 0
        self.done = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._write()

    def _write(self) -> None:
        self._began_ns = time.perf_counter_ns()
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._received += data
        parsed = read_response(self._received)
        if parsed is None:
            return
        now_ns = time.perf_counter_ns()
        self._latencies_us.append((now_ns - self._began_ns) / 1000)
        response, length = parsed
        self.errors += response.failed
        del self._received[:length]
        if now_ns < self._until_ns:
            self._write()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Closed by us when time is over; closed by the server before that is an error."""
        if exc is not None or time.perf_counter_ns() < self._until_ns:
            self.errors += 1
        if not self.done.done():
            self.done.set_result(None)


async def _run_clients(url: str, function: str, clients: int, seconds: float, body: bytes) -> LoadResult:
    address = urlsplit(url)
    host, port = address.hostname or "127.0.0.1", address.port or 80
    request = request_bytes(f"{host}:{port}", function, body)
    loop = asyncio.get_running_loop()
    latencies_us: list[float] = []
    began_ns = time.perf_counter_ns()
    until_ns = began_ns + int(seconds * 1e9)
    protocols = []
    for _ in range(clients):
        _transport, protocol = await loop.create_connection(
            lambda: _Client(request, until_ns, latencies_us), host, port
        )
        protocols.append(protocol)
    await asyncio.wait_for(asyncio.gather(*(client.done for client in protocols)), seconds + GRACE_S)
    took_s = (time.perf_counter_ns() - began_ns) / 1e9
    latencies_us.sort()
    return LoadResult(
        engine="clients",
        clients=clients,
        requests=len(latencies_us),
        errors=sum(client.errors for client in protocols),
        seconds=round(took_s, 6),
        rps=round(len(latencies_us) / took_s, 1),
        p50_us=round(percentile(latencies_us, 50), 1),
        p90_us=round(percentile(latencies_us, 90), 1),
        p99_us=round(percentile(latencies_us, 99), 1),
        max_us=round(latencies_us[-1], 1) if latencies_us else 0.0,
    )


def run_clients(url: str, function: str, clients: int, seconds: float, body: bytes = BODY) -> LoadResult:
    """Measure with the Python driver, in this process."""
    return uvloop.run(_run_clients(url, function, clients, seconds, body))


def run_wrk(url: str, function: str, clients: int, seconds: float, body: bytes = BODY) -> LoadResult:
    """Measure with wrk: one thread, since the server needs the rest of a small machine."""
    command = ["wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{seconds:.0f}s"]
    command += ["--timeout", f"{GRACE_S:.0f}s", "--latency", "--script", str(WRK_SCRIPT)]
    run = subprocess.run(
        [*command, url + invoke_path(function)],
        env={**os.environ, "BENCH_BODY": body.decode(), "BENCH_AUTHORIZATION": AUTHORIZATION},
        capture_output=True,
        text=True,
        timeout=seconds + 2 * GRACE_S,
        check=False,
    )
    found = [line.removeprefix("BENCH ") for line in run.stdout.splitlines() if line.startswith("BENCH ")]
    if run.returncode != 0 or len(found) != 1:
        raise RuntimeError(f"wrk ended with {run.returncode}: {run.stdout}{run.stderr}")
    counted = json.loads(found[0])
    rps = round(counted["requests"] / counted["seconds"], 1)
    return LoadResult(engine="wrk", clients=clients, rps=rps, **counted)


def run_load(url: str, function: str, clients: int, seconds: float, body: bytes = BODY) -> LoadResult:
    """Measure with the engine that suits: our own for one client, else wrk if it is there."""
    if clients > 1 and shutil.which("wrk"):
        return run_wrk(url, function, clients, max(seconds, 1.0), body)
    return run_clients(url, function, clients, seconds, body)


def main() -> int:
    """Print one JSON object; exit code 1 when any request failed."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--url", default="http://127.0.0.1:9500")
    arguments.add_argument("--function", default="echo")
    arguments.add_argument("--clients", type=int, default=1)
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--body", default=BODY.decode())
    arguments.add_argument("--core", type=int, help="run the clients on this core only")
    arguments.add_argument("--engine", choices=["auto", "wrk", "clients"], default="auto")
    options = arguments.parse_args()
    if options.core is not None:
        os.sched_setaffinity(0, {options.core})
    engine = {"auto": run_load, "wrk": run_wrk, "clients": run_clients}[options.engine]
    result = engine(options.url.rstrip("/"), options.function, options.clients, options.seconds, options.body.encode())
    print(json.dumps(asdict(result)))
    return 1 if result.errors else 0


if __name__ == "__main__":
    sys.exit(main())
