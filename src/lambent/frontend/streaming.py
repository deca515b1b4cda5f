"""InvokeWithResponseStream: one invocation whose answer goes out as events, chunk by chunk.

    PayloadChunk ... PayloadChunk InvokeComplete

The status is always 200 once the function runs; how it ended is in InvokeComplete (fact sheet 5.5). A runtime that
answers in one piece has its payload cut into chunks.
"""

from __future__ import annotations

import base64
from collections.abc import Callable

import msgspec

from lambent.dataplane.routing import Target
from lambent.frontend.connection import Connection, RawRequest
from lambent.frontend.invoke_request import client_context, tenant, trace, trace_line
from lambent.model.errors import ApiError
from lambent.wire.event_stream import encode_event, event_headers, frame
from lambent.worker.interface import Invocation, InvocationResult, StreamSource

_CHUNK_MAX_BYTES = 1_048_576
_CHUNK_HEADERS = event_headers("PayloadChunk", "application/octet-stream")


class StreamCall:
    """One streaming invoke and the client that reads it; a Caller of the data plane and the worker's StreamSink.

    A client that goes away changes nothing for the function: what it still sends is taken and dropped.
    """

    __slots__ = ("_connection", "_executed_version", "_raw", "_refuse", "_started", "invocation")

    def __init__(
        self,
        refuse: Callable[[Connection, RawRequest, ApiError], None],
        connection: Connection,
        raw: RawRequest,
        target: Target,
    ) -> None:
        self._refuse = refuse
        self._connection = connection
        self._raw = raw
        self._executed_version = target.version.spec.version
        self._started = False
        headers = raw.headers
        context = headers.get(b"x-amz-client-context")
        self.invocation = Invocation(
            0,
            raw.request_id,
            raw.body or b"{}",
            target.arn,
            trace(raw),
            client_context=client_context(context) if context else "",
            tenant_id=tenant(raw),
            wants_tail=headers.get(b"x-amz-log-type") == b"Tail",
            sink=self,
        )

    def on_start(self, content_type: str, source: StreamSource) -> None:
        self._start(source)

    def _start(self, source: StreamSource | None) -> None:
        self._started = True
        head = (
            "Content-Type: application/vnd.amazon.eventstream\r\n"
            f"X-Amz-Executed-Version: {self._executed_version}\r\n{trace_line(self._raw)}"
        )
        self._connection.begin_stream(self._raw, 200, head, source)

    def on_chunk(self, data: bytes) -> None:
        for at in range(0, len(data), _CHUNK_MAX_BYTES):
            self._connection.write(self._raw, frame(_CHUNK_HEADERS, data[at : at + _CHUNK_MAX_BYTES]))

    def on_result(self, result: InvocationResult) -> None:
        if not self._started:
            self._start(None)
        complete: dict[str, str] = {}
        if result.is_function_error:
            complete["ErrorCode"] = "Unhandled"
            complete["ErrorDetails"] = result.payload.decode("utf-8", "replace")
        elif not result.streamed:
            self.on_chunk(result.payload)
        if result.log_tail is not None:
            complete["LogResult"] = base64.b64encode(result.log_tail).decode()
        self._complete(complete)

    def on_refused(self, error: ApiError) -> None:
        if self._started:
            self._complete({"ErrorCode": error.code, "ErrorDetails": error.message})
        else:
            self._refuse(self._connection, self._raw, error)

    def _complete(self, members: dict[str, str]) -> None:
        event = encode_event("InvokeComplete", "application/json", msgspec.json.encode(members))
        self._connection.write(self._raw, event)
        self._connection.end_stream(self._raw)
