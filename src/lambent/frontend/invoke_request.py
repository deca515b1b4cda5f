"""What Invoke, InvokeWithResponseStream and function URLs read from a request in the same way."""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from lambent.frontend.connection import RawRequest
from lambent.model.errors import InvalidParameterValue, InvalidRequestContent, RequestTooLarge
from lambent.model.limits import CLIENT_CONTEXT_MAX_BYTES
from lambent.wire.service_model import load
from lambent.wire.validation import validate

_JSON = msgspec.json.Decoder(msgspec.Raw)
#: Shape TenantId of the service model.
_is_tenant = re.compile(rb"[a-zA-Z0-9._:/=+\-@ ]{1,256}").fullmatch


def trace(raw: RawRequest) -> str:
    """`Root=...;Parent=...;Sampled=...` for the runtime: the client's, or a new one that is not sampled."""
    given = raw.headers.get(b"x-amzn-trace-id")
    if given is not None:
        return given.decode("latin-1")
    return f"Root=1-{raw.trace_id[:8]}-{raw.trace_id[8:]};Parent={raw.trace_id[:16]};Sampled=0"


def trace_line(raw: RawRequest) -> str:
    trace = raw.trace_id
    return f"X-Amzn-Trace-Id: root=1-{trace[:8]}-{trace[8:]};parent={trace[:16]};sampled=0\r\n"


def check_payload(raw: RawRequest, limit_bytes: int, kind: str) -> None:
    if raw.body_bytes > limit_bytes:
        raise RequestTooLarge(
            f"{raw.body_bytes} byte payload is too large for the {kind} invocation type (limit {limit_bytes} bytes)"
        )
    body = raw.body
    if not body:
        return
    try:
        _JSON.decode(body)
        if not body.isascii():
            body.decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestContent(
            f"Could not parse request body into json: Could not parse payload into json: {error}"
        ) from None


def tenant(raw: RawRequest) -> str:
    """X-Amz-Tenant-Id; "" where there is none. Raises ValidationError."""
    value = raw.headers.get(b"x-amz-tenant-id")
    if value is None:
        return ""
    text = value.decode("latin-1")
    if not _is_tenant(value):
        shape = load("lambda").operation("Invoke").input
        assert shape is not None
        validate({"FunctionName": "f", "TenantId": text}, shape)
    return text


def client_context(value: bytes) -> str:
    """The header is base64 of JSON; the runtime gets the JSON."""
    if len(value) > CLIENT_CONTEXT_MAX_BYTES:
        raise InvalidParameterValue(
            f"Client context must be no more than {CLIENT_CONTEXT_MAX_BYTES} bytes; it is {len(value)}."
        )
    try:
        text = base64.b64decode(value, validate=True)
        _JSON.decode(text)
        return text.decode()
    except (binascii.Error, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestContent(f"Client context is not base64 of a JSON document: {error}") from None
