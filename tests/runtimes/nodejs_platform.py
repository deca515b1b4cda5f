"""The platform's side of a Node.js runtime process, played by the test step by step on a real socket."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

MAIN = Path(__file__).resolve().parents[2] / "src" / "lambent" / "runtimes" / "nodejs" / "main.cjs"
NODE = shutil.which("node")
REQUEST_ID = "11111111-2222-4333-8444-555555555555"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:f"
NEXT = "/2018-06-01/runtime/invocation/next"
RESPONSE = f"/2018-06-01/runtime/invocation/{REQUEST_ID}/response"
ERROR = f"/2018-06-01/runtime/invocation/{REQUEST_ID}/error"
INIT_ERROR = "/2018-06-01/runtime/init/error"
TIMEOUT_S = 20


@dataclass
class Request:
    """One request of the runtime; `chunks` are those of a chunked body, `trailers` what followed them."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    chunks: list[bytes] = field(default_factory=list)
    trailers: dict[str, str] = field(default_factory=dict)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Platform:
    """A Runtime API with one connection. `byte_by_byte` cuts every answer into packets of one byte."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(TIMEOUT_S)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.byte_by_byte = False
        self.connection: socket.socket | None = None
        self._stream: BinaryIO | None = None

    def connect(self) -> socket.socket:
        if self.connection is None:
            self.connection, _ = self._listener.accept()
            self.connection.settimeout(TIMEOUT_S)
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self.connection

    def read_head(self) -> Request:
        """Wait for a request and read its head."""
        stream = self._reader()
        method, path, version = stream.readline().decode().split()
        assert version == "HTTP/1.1"
        return Request(method, path, read_headers(stream), b"")

    def read_chunk(self) -> bytes:
        """One chunk of a body; empty at its end, where the trailers are still to be read."""
        stream = self._reader()
        length = int(stream.readline(), 16)
        if length == 0:
            return b""
        chunk = stream.read(length)
        assert stream.read(2) == b"\r\n"
        return chunk

    def request(self) -> Request:
        request = self.read_head()
        if request.headers.get("transfer-encoding") == "chunked":
            while chunk := self.read_chunk():
                request.chunks.append(chunk)
            request.body = b"".join(request.chunks)
            request.trailers = read_headers(self._reader())
        else:
            request.body = self._reader().read(int(request.headers.get("content-length", "0")))
        return request

    def send(self, data: bytes) -> None:
        connection = self.connect()
        if not self.byte_by_byte:
            connection.sendall(data)
            return
        for index in range(len(data)):
            connection.sendall(data[index : index + 1])

    def reply(self, status: int = 202, body: bytes = b'{"status":"OK"}\n') -> None:
        self.send(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))

    def next(self, event: Any = None, **headers: str | None) -> None:
        """Wait for `next` and answer it; headers are named without `Lambda-Runtime-`, None takes one away."""
        request = self.request()
        assert (request.method, request.path) == ("GET", NEXT)
        self.send(invocation(event, **headers))

    def answer(self) -> Request:
        """Wait for a POST and accept it."""
        request = self.request()
        assert request.method == "POST"
        self.reply()
        return request

    def invoke(self, event: Any = None, **headers: str | None) -> Request:
        self.next(event, **headers)
        return self.answer()

    def result(self, event: Any = None, **headers: str | None) -> Any:
        """Invoke, and what the function has returned."""
        request = self.invoke(event, **headers)
        assert request.path == RESPONSE, request.body
        return request.json

    def error(self, event: Any = None, **headers: str | None) -> Any:
        """Invoke, and the error document."""
        request = self.invoke(event, **headers)
        assert request.path == ERROR, request.body
        return request.json

    def hang_up(self) -> None:
        if self.connection is not None:
            self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for part in (self._stream, self.connection, self._listener):
            if part is not None:
                part.close()

    def _reader(self) -> BinaryIO:
        if self._stream is None:
            self._stream = self.connect().makefile("rb")
        return self._stream


def invocation(event: Any = None, **headers: str | None) -> bytes:
    """The answer to `next`."""
    values: dict[str, str | None] = {
        "aws_request_id": REQUEST_ID,
        "deadline_ms": "4102444800000",
        "invoked_function_arn": ARN,
        "trace_id": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1",
        **headers,
    }
    body = event if isinstance(event, bytes) else json.dumps(event).encode()
    lines = [f"Lambda-Runtime-{name.replace('_', '-').title()}: {value}\r\n" for name, value in values.items() if value]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{''.join(lines)}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def read_headers(stream: BinaryIO) -> dict[str, str]:
    headers = {}
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    return headers


@dataclass
class Runtime:
    """A runtime process and its platform."""

    process: subprocess.Popen[bytes]
    platform: Platform
    order: socket.socket
    order_fd: int  # its number in the process
    frames: int

    def finish(self) -> tuple[int, str]:
        """Let the platform go; the exit code and what was printed."""
        self.platform.hang_up()
        return self.wait()

    def wait(self) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, out.decode()

    def read_frames(self) -> list[tuple[int, int, str]]:
        """(type, microseconds, text) of the log frames; call it after the process has ended."""
        data = b""
        while piece := os.read(self.frames, 65_536):
            data += piece
        found = []
        while data:
            kind, length, micros = struct.unpack(">IIQ", data[:16])
            found.append((kind, micros, data[16 : 16 + length].decode()))
            data = data[16 + length :]
        return found

    def give_order(self, environ: Mapping[str, str], task_root: Path) -> None:
        """What a parked process waits for."""
        self.order.sendall(json.dumps({"environ": dict(environ), "task_root": str(task_root)}).encode())
        self.order.shutdown(socket.SHUT_WR)


def function_environ(platform: Platform, task_root: Path, handler: str, **more: str) -> dict[str, str]:
    return {
        "AWS_LAMBDA_RUNTIME_API": platform.address,
        "_HANDLER": handler,
        "LAMBDA_TASK_ROOT": str(task_root),
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f",
        "AWS_LAMBDA_LOG_STREAM_NAME": "2026/01/01/[$LATEST]0",
        "AWS_EXECUTION_ENV": "AWS_Lambda_nodejs20.x",
        "TZ": ":UTC",
        "PATH": os.environ["PATH"],
        **more,
    }


@contextmanager
def runtime(
    task_root: Path,
    files: str | Mapping[str, str],
    handler: str = "index.handler",
    *,
    parked: bool = False,
    framed: bool = False,
    blocking: bool = True,
    boot_environ: Mapping[str, str] | None = None,
    **environ: str,
) -> Iterator[Runtime]:
    """Start a function of these files (a text is index.js). A parked process is not given its order."""
    for name, text in ({"index.js": files} if isinstance(files, str) else files).items():
        path = task_root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    platform = Platform()
    ours, theirs = socket.socketpair()
    theirs.setblocking(blocking)
    reading, writing = os.pipe()
    if framed:
        environ["_LAMBDA_TELEMETRY_LOG_FD"] = str(writing)
    order_fd = theirs.fileno()
    arguments = [str(NODE), str(MAIN), *(["--parked", str(order_fd)] if parked else [])]
    process = subprocess.Popen(
        arguments,
        env=dict(boot_environ or {}) if parked else function_environ(platform, task_root, handler, **environ),
        cwd="/" if parked else task_root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=(order_fd, writing),
    )
    theirs.close()
    os.close(writing)
    try:
        yield Runtime(process, platform, ours, order_fd, reading)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        ours.close()
        os.close(reading)
        platform.close()
