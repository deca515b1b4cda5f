"""Which room answers a request.

An invoke, and whatever is sent to a function URL's host, goes to the data plane on the spot. All else is a coroutine:
by the signature's service name, the X-Amz-Target, or the path; Lambent's own pages under /_lambent/; what no service
here answers goes to `--upstream`.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from lambent.frontend.connection import Connection, RawRequest
from lambent.frontend.function_urls.endpoint import URL_HOST_MIN_BYTES, FunctionUrlEndpoint, is_url_host
from lambent.frontend.invoke import InvokeEndpoint
from lambent.frontend.upstream import Upstream
from lambent.model.limits import CONTROL_REQUEST_MAX_BYTES, SYNC_PAYLOAD_MAX_BYTES
from lambent.wire import rpc_v2_cbor
from lambent.wire.http import Request, Response

_log = logging.getLogger("lambent.frontend")
_OWN = "/_lambent/"
_INVOKE_ENDS = (b"/invocations", b"/response-streaming-invocations", b"/invoke-async", b"/invoke-async/")
#: X-Amz-Target prefix -> service name.
_TARGETS = {
    "Logs_20140328": "logs",
    "GraniteServiceVersion20100801": "monitoring",
    "AnyScaleFrontendService": "application-autoscaling",
}


class Service(Protocol):
    async def handle(self, request: Request) -> Response: ...


Page = Callable[[Request], Awaitable[Response]]


def json_response(value: object, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(value), [("Content-Type", "application/json")])


class Application:
    """Implements connection.Application."""

    def __init__(
        self,
        invokes: InvokeEndpoint,
        urls: FunctionUrlEndpoint,
        services: dict[str, Service],
        pages: dict[str, Page],
        upstream: Upstream | None,
    ) -> None:
        self._invokes = invokes
        self._urls = urls
        self._services = services
        self._pages = pages
        self._upstream = upstream

    def body_limit(self, raw: RawRequest) -> int:
        path = raw.target.partition(b"?")[0]
        if path.endswith(_INVOKE_ENDS) or is_url_host(raw.headers.get(b"host", b"")):
            return SYNC_PAYLOAD_MAX_BYTES
        return CONTROL_REQUEST_MAX_BYTES

    def invoke(self, connection: Connection, raw: RawRequest) -> bool:
        # Every invoke passes here: the length tells nearly all other hosts from those of function URLs.
        if len(raw.headers.get(b"host", b"")) > URL_HOST_MIN_BYTES and self._urls.begin(connection, raw):
            return True
        if not self._invokes.matches(raw):
            return False
        self._invokes.begin(connection, raw)
        return True

    async def handle(self, raw: RawRequest) -> Response:
        try:
            if raw.body_bytes > CONTROL_REQUEST_MAX_BYTES:
                return _plain_error(
                    413,
                    "RequestEntityTooLargeException",
                    f"Request must be smaller than {CONTROL_REQUEST_MAX_BYTES} bytes for this operation",
                )
            return await self._route(raw.whole())
        except Exception:
            _log.exception("unexpected error at %r %r", raw.method, raw.target[:200])
            return _plain_error(500, "ServiceException", "An error of Lambent's own; its log has the details.")

    async def _route(self, request: Request) -> Response:
        if request.path == "/metrics" and not request.service:  # where Prometheus looks by default
            request = dataclasses.replace(request, path=f"{_OWN}metrics")
        if request.path.startswith(_OWN):
            name = request.path[len(_OWN) :].partition("/")[0]
            page = self._pages.get(name)
            if page is not None:
                return await page(request)
            return _plain_error(404, "NotFound", f"{request.path}: pages here are {', '.join(sorted(self._pages))}")
        name = self._service_of(request)
        service = self._services.get(name)
        if service is not None:
            return await service.handle(request)
        if self._upstream is not None:
            return await self._upstream.forward(request)
        return _plain_error(
            501,
            "NotImplementedException",
            f"Lambent does not implement the AWS service '{name}'. Start it with --upstream URL to send such requests "
            f"to another endpoint. Implemented: {', '.join(sorted(self._services))}.",
        )

    def _service_of(self, request: Request) -> str:
        target = request.headers.get("x-amz-target", "").partition(".")[0]
        if target in _TARGETS:
            return _TARGETS[target]
        if request.service:
            return request.service
        smithy = rpc_v2_cbor.service_of(request.path)
        if smithy in _TARGETS:
            return _TARGETS[smithy]
        # Unsigned: Lambda's paths begin with a date.
        return "lambda" if request.path[1:5].isdigit() else "unknown (the request is not signed)"


def _plain_error(status: int, code: str, message: str) -> Response:
    return Response(
        status,
        msgspec.json.encode({"__type": code, "message": message}),
        [("Content-Type", "application/json"), ("x-amzn-ErrorType", code)],
    )
