"""Many environments at once: bursts beyond the parked sandboxes, and the account's default limit for real."""

from __future__ import annotations

import asyncio
import collections

import pytest

from .harness import Server, serving

SLEEPER = """
    import time
    def handler(event, context):
        time.sleep(event["seconds"])
        return context.log_stream_name
"""


def burst(server: Server, name: str, count: int, seconds: float) -> tuple[collections.Counter[int], set[bytes]]:
    """`count` requests sent at once: answers by status, and the environments that served them."""

    async def one() -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = b'{"seconds": %g}' % seconds
        writer.write(
            b"POST /2015-03-31/functions/%s/invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (name.encode(), len(body), body)
        )
        answer = await reader.read()
        writer.close()
        head, _, payload = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), payload

    async def whole() -> list[tuple[int, bytes]]:
        return await asyncio.gather(*(one() for _ in range(count)))

    answers = asyncio.run(whole())
    return collections.Counter(status for status, _ in answers), {body for status, body in answers if status == 200}


def test_a_burst_far_beyond_the_parked_sandboxes(server: Server) -> None:
    function = server.deploy(SLEEPER, Timeout=30)
    statuses, environments = burst(server, function.name, 120, 3)
    assert statuses == {200: 120}
    assert len(environments) == 120


@pytest.mark.long
def test_a_thousand_execute_and_the_next_is_throttled(tmp_path_factory: pytest.TempPathFactory) -> None:
    with serving(tmp_path_factory.mktemp("thousand")) as server:
        function = server.deploy(SLEEPER, Timeout=60)
        statuses, environments = burst(server, function.name, 1_001, 20)
        assert statuses == {200: 1_000, 429: 1}
        assert len(environments) == 1_000
