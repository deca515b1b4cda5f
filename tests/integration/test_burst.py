"""Many environments at once: bursts beyond the parked sandboxes, and the account's default limit for real."""

from __future__ import annotations

import asyncio
import collections
import json
import resource
from pathlib import Path
from typing import Any

import pytest

from .harness import Server, serving

DESCRIPTORS = 4_096
WAITER = """
    import socket
    def handler(event, context):
        if "gate" in event:
            with socket.create_connection(("127.0.0.1", event["gate"]), timeout=80) as gate:
                gate.recv(1)
        return context.log_stream_name
"""
SLEEPER = """
    import time
    def handler(event, context):
        time.sleep(event["seconds"])
        return context.log_stream_name
"""


async def invoke(server: Server, name: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of the answer, on a connection of its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        b"POST /2015-03-31/functions/%s/invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (name.encode(), len(body), body)
    )
    answer = await reader.read()
    writer.close()
    head, _, payload = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), payload


def burst(server: Server, name: str, count: int, seconds: float) -> tuple[collections.Counter[int], set[bytes]]:
    """`count` requests sent at once: answers by status, and the environments that served them."""

    async def whole() -> list[tuple[int, bytes]]:
        return await asyncio.gather(*(invoke(server, name, b'{"seconds": %g}' % seconds) for _ in range(count)))

    answers = asyncio.run(whole())
    return collections.Counter(status for status, _ in answers), {body for status, body in answers if status == 200}


def test_a_burst_far_beyond_the_parked_sandboxes(server: Server) -> None:
    function = server.deploy(SLEEPER, Timeout=30)
    statuses, environments = burst(server, function.name, 120, 3)
    assert statuses == {200: 120}
    assert len(environments) == 120


def memory_gib(name: str) -> float:
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**20


class Gate:
    """Handlers connect to it and wait there: who waits is executing, all at the same time."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting = 0
        self._opened, self.full = asyncio.Event(), asyncio.Event()

    async def start(self) -> int:
        """The port."""
        listening = await asyncio.start_server(self._arrives, "127.0.0.1", 0, backlog=self._count)
        return int(listening.sockets[0].getsockname()[1])

    async def _arrives(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._waiting += 1
        if self._waiting == self._count:
            self.full.set()
        await self._opened.wait()
        writer.write(b".")
        writer.close()

    def open(self) -> None:
        self._opened.set()


async def hold_all(server: Server, name: str, count: int) -> tuple[list[tuple[int, bytes]], tuple[int, bytes], Any]:
    """The answers of `count` requests that execute at the same time; of one more; and what `lambent top` shows then."""
    gate = Gate(count)
    body = b'{"gate": %d}' % await gate.start()
    requests = [asyncio.create_task(invoke(server, name, body)) for _ in range(count)]
    await asyncio.wait_for(gate.full.wait(), 80)
    refused = await invoke(server, name, body)
    seen = await asyncio.to_thread(server.page, "top")
    gate.open()
    return await asyncio.gather(*requests), refused, seen


def test_a_thousand_execute_at_once_and_the_next_is_throttled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """About 6 GB, and on 2 quiet cores a quarter of a minute."""
    if memory_gib("MemTotal") < 10 or memory_gib("MemAvailable") < 8:
        pytest.skip(f"1,000 environments need about 6 GB, and only {memory_gib('MemAvailable'):.0f} are available")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < DESCRIPTORS:
        pytest.skip(f"1,000 clients need {DESCRIPTORS} descriptors, and only {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    with serving(tmp_path_factory.mktemp("thousand")) as server:
        health = server.page("health")
        if health["sandbox"] != "namespace" or not health["cgroup_version"]:
            pytest.skip("1,000 environments need the namespace sandbox with control groups; see `lambent doctor`")
        function = server.deploy(WAITER, Timeout=90)
        answers, refused, seen = asyncio.run(hold_all(server, function.name, 1_000))
        assert collections.Counter(status for status, _ in answers) == {200: 1_000}
        environments = {body for _, body in answers}
        assert len(environments) == 1_000
        assert refused[0] == 429
        assert json.loads(refused[1])["Reason"] == "ConcurrentInvocationLimitExceeded"
        assert seen["functions"][0]["environments"] == {"busy": 1_000}
        assert seen["accounts"][0]["in_flight"] == seen["accounts"][0]["concurrency_max"] == 1_000
        assert json.dumps(function.call({})).encode() in environments, "there is room again"
