"""Requests for services that Lambent does not have, passed on as they came to `--upstream URL`."""

from __future__ import annotations

import asyncio

import msgspec
import urllib3

from lambent.wire.http import Request, Response

_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "transfer-encoding",
    "te",
    "upgrade",
    "proxy-connection",
    "content-length",
}
_TIMEOUT_S = 60.0


class Upstream:
    """One endpoint (another emulator, or AWS). The signature is passed on; upstream judges it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._pool = urllib3.PoolManager(maxsize=16, retries=False, timeout=_TIMEOUT_S)

    async def forward(self, request: Request) -> Response:
        """The upstream's answer, or 502 that says what went wrong on the way."""
        try:
            return await asyncio.to_thread(self._send, request)
        except urllib3.exceptions.HTTPError as error:
            message = f"The upstream {self.url} did not answer: {error}"
            return Response(502, msgspec.json.encode({"message": message}), [("Content-Type", "application/json")])

    def _send(self, request: Request) -> Response:
        target = request.path + (f"?{request.query}" if request.query else "")
        headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        answer = self._pool.request(
            request.method,
            self.url + target,
            body=request.body,
            headers=headers,
            redirect=False,
            preload_content=False,
        )
        try:
            body = answer.read(decode_content=False)
        finally:
            answer.release_conn()
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP_BY_HOP]
        return Response(answer.status, body, kept)
