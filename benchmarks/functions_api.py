"""Deploying the bench functions, with boto3 as a user would, and the few raw requests that time them.

Timed requests do not go through boto3: it would take longer than what is measured.
"""

import asyncio
import base64
import io
import re
import time
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import uvloop
from botocore.config import Config

from load import Connection, Response, read_response, request_bytes
from servers import Server

FUNCTIONS = Path(__file__).with_name("functions")
ROLE = "arn:aws:iam::000000000000:role/bench"
WARM_MIB = 1769  # one vCPU by Lambda's rule, so that no CPU share comes between us and the floor
SMALL_MIB = 128  # Lambda's smallest, and its default
INIT_DURATION = re.compile(r"^REPORT .*\tInit Duration: ([0-9.]+) ms", re.MULTILINE)


def lambda_client(server: Server) -> Any:
    """boto3's client, pointed at Lambent with any credentials; a retry would hide an error."""
    return boto3.client(
        "lambda",
        endpoint_url=server.url,
        region_name="us-east-1",
        aws_access_key_id="000000000000",
        aws_secret_access_key="bench",
        config=Config(retries={"total_max_attempts": 1}, read_timeout=120),
    )


def zip_of(name: str, data: bytes, mode: int = 0o644) -> bytes:
    """A package of one file, the same bytes each time."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        member = zipfile.ZipInfo(name, date_time=(2026, 1, 1, 0, 0, 0))
        member.external_attr = mode << 16
        archive.writestr(member, data)
    return packed.getvalue()


def code_zip(module: str, runtime: str) -> bytes:
    """The deployment package of a bench function."""
    file = FUNCTIONS / f"{module}{'.mjs' if runtime.startswith('nodejs') else '.py'}"
    return zip_of(file.name, file.read_bytes())


def deploy(
    client: Any, names: Iterable[str], module: str, memory_mib: int, runtime: str, layers: Iterable[str] = ()
) -> list[str]:
    """Create functions that share one package; returns their names when all are active."""
    package = code_zip(module, runtime)
    made = list(names)
    for name in made:
        client.create_function(
            FunctionName=name,
            Runtime=runtime,
            Role=ROLE,
            Handler=f"{module}.handler",
            Code={"ZipFile": package},
            MemorySize=memory_mib,
            Timeout=120,
            Layers=list(layers),
        )
    waiter = client.get_waiter("function_active_v2")
    for name in made:
        waiter.wait(FunctionName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 60})
    return made


def delete(client: Any, names: Iterable[str]) -> None:
    """Delete functions, and with them their environments."""
    for name in names:
        client.delete_function(FunctionName=name)


def checked(response: Response) -> bytes:
    """The payload of an answer that has to be a success."""
    if response.failed:
        raise RuntimeError(f"an invocation was answered {response.status}: {response.body[:300]!r}")
    return response.body


def first_invoke(connection: Connection, function: str) -> tuple[float, float]:
    """Invoke a function that has no environment: wall time at the client and `Init Duration`, both in ms."""
    response, took_ns = connection.invoke(function, b"{}", {"X-Amz-Log-Type": "Tail"})
    checked(response)
    tail = base64.b64decode(response.headers.get("x-amz-log-result", "")).decode(errors="replace")
    found = INIT_DURATION.search(tail)
    if found is None:
        raise RuntimeError(f"{function} did not start cold, or its log's tail has no REPORT line: {tail!r}")
    return took_ns / 1e6, float(found[1])


class _Once(asyncio.Protocol):
    """One request on a connection that was opened before."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.answered: asyncio.Future[Response] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        parsed = read_response(self.received)
        if parsed is not None and not self.answered.done():
            self.answered.set_result(parsed[0])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(f"closed before the answer: {exc}"))


async def _together(server: Server, requests: list[bytes], timeout_s: float) -> tuple[float, list[Response]]:
    loop = asyncio.get_running_loop()
    clients = []
    for _ in requests:
        _transport, client = await loop.create_connection(_Once, server.host, server.port)
        clients.append(client)
    began_s = time.time()
    for client, request in zip(clients, requests, strict=True):
        client.transport.write(request)  # type: ignore[attr-defined]
    answers = await asyncio.wait_for(asyncio.gather(*(client.answered for client in clients)), timeout_s)
    for client in clients:
        with suppress(Exception):
            client.transport.close()
    return began_s, answers


def invoke_together(
    server: Server, function: str, body: bytes, count: int, timeout_s: float
) -> tuple[float, list[Response]]:
    """Invoke `count` times at once: when the first request was written (wall clock), and all answers."""
    request = request_bytes(f"{server.host}:{server.port}", function, body)
    return uvloop.run(_together(server, [request] * count, timeout_s))
