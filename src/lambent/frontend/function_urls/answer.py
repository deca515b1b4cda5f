"""From what a function returns to an HTTP answer (fact sheet of events, 2.8): pure.

A JSON object with `statusCode` says all of it; any other JSON is the body of a 200. A streamed answer may begin with a
prelude, a JSON object with the same members but the body, and 8 NUL bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, NamedTuple

import msgspec

#: The content type with which a runtime says that its stream begins with a prelude.
PRELUDE_CONTENT_TYPE = "application/vnd.awslambda.http-integration-response"
PRELUDE_END = b"\0" * 8
#: Lambent's own bound: as much as the headers of a request may have.
PRELUDE_MAX_BYTES = 65_536
_JSON_TYPE, _BYTES_TYPE = "application/json", "application/octet-stream"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: What the platform writes itself; the function's own comes under another name, so that nothing is lost.
_REMAPPED = frozenset(
    [
        "connection",
        "content-length",
        "date",
        "host",
        "server",
        "www-authenticate",
        "x-amzn-requestid",
        "x-amzn-trace-id",
    ]
)
#: Words between two neighbours of a connection, which are no business of the function's.
_DROPPED = frozenset(
    ["keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"]
)
_BODILESS = (204, 205, 304)


class MalformedAnswer(Exception):
    """The function's answer is no HTTP answer; the client gets 502."""


class HttpAnswer(NamedTuple):
    """Header names as the function wrote them. Values are the bytes of the wire, read as latin-1."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


def from_payload(payload: bytes, content_type: str) -> HttpAnswer:
    """The answer of a buffered invocation. Raises MalformedAnswer.

    `content_type` is the runtime's: a streaming runtime that was buffered may have sent a prelude, or no JSON at all.
    """
    if content_type == PRELUDE_CONTENT_TYPE:
        head, found, body = payload.partition(PRELUDE_END)
        if not found or len(head) > PRELUDE_MAX_BYTES:
            raise MalformedAnswer("the prelude has no end")
        return from_prelude(head)._replace(body=body)
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if content_type in ("", _JSON_TYPE):
            raise MalformedAnswer(str(error)) from None
        return HttpAnswer(200, [("Content-Type", _safe(content_type))], payload)
    if isinstance(value, dict) and "statusCode" in value:
        return _described(value)
    body = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
    return HttpAnswer(200, [("Content-Type", _JSON_TYPE)], body)


def _described(value: dict[str, Any]) -> HttpAnswer:
    """An object that speaks of its status."""
    status = _status(value["statusCode"])
    headers = _headers(value, _JSON_TYPE)
    body = value.get("body")
    if body is None:
        data = b""
    elif not isinstance(body, str):
        raise MalformedAnswer("body is no string")
    elif value.get("isBase64Encoded") in (True, "true"):
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise MalformedAnswer("body is no base64") from None
    else:
        data = body.encode()
    return HttpAnswer(status, headers, b"" if status in _BODILESS else data)


def from_prelude(head: bytes) -> HttpAnswer:
    """Status and headers of a streamed answer. Raises MalformedAnswer."""
    try:
        value = msgspec.json.decode(head)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise MalformedAnswer(f"the prelude is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise MalformedAnswer("the prelude is no object")
    status = _status(value.get("statusCode", 200))
    return HttpAnswer(status, _headers(value, _BYTES_TYPE), b"")


def without_prelude(content_type: str) -> HttpAnswer:
    """Status and headers of a streamed answer that says nothing about them."""
    return HttpAnswer(200, [("Content-Type", _safe(content_type) or _BYTES_TYPE)], b"")


def _status(value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{3}", value):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 200 <= value <= 599:
        raise MalformedAnswer("statusCode is no HTTP status")
    return value


def _headers(value: dict[str, Any], default_type: str) -> list[tuple[str, str]]:
    """`headers` and `cookies`, with what belongs to the platform renamed or left out."""
    given = value.get("headers") or {}
    cookies = value.get("cookies") or []
    if not isinstance(given, dict) or not isinstance(cookies, list):
        raise MalformedAnswer("headers are no object, or cookies no list")
    found: list[tuple[str, str]] = []
    typed = False
    for name, content in given.items():
        if content is None:
            continue
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise MalformedAnswer(f"{name!r:.64} is no header")
        lower = name.lower()
        if lower in _DROPPED:
            continue
        typed = typed or lower == "content-type"
        found.append((f"x-amzn-Remapped-{name}" if lower in _REMAPPED else name, _value(content)))
    if not typed:
        found.append(("Content-Type", default_type))
    found.extend(("Set-Cookie", _value(cookie)) for cookie in cookies)
    return found


def _value(content: object) -> str:
    if isinstance(content, bool):
        content = "true" if content else "false"
    if not isinstance(content, str | int | float):
        raise MalformedAnswer("a header's value is no text")
    text = str(content)
    if _CONTROL.search(text):
        raise MalformedAnswer("a header's value has control characters")
    return text.strip().encode("utf-8", "replace").decode("latin-1")


def _safe(content_type: str) -> str:
    """A runtime's content type, or "" when it can not stand in a header."""
    return "" if _CONTROL.search(content_type) else content_type.strip().encode().decode("latin-1")


class PreludeReader:
    """Finds the end of the prelude in a stream that comes in pieces."""

    __slots__ = ("_head",)

    def __init__(self) -> None:
        self._head = bytearray()

    def feed(self, data: bytes) -> tuple[HttpAnswer, bytes] | None:
        """The answer's head and what follows it in this piece, once it is whole. Raises MalformedAnswer."""
        head = self._head
        begin = max(0, len(head) - len(PRELUDE_END) + 1)
        head += data
        at = head.find(PRELUDE_END, begin)
        if at > PRELUDE_MAX_BYTES or (at < 0 and len(head) > PRELUDE_MAX_BYTES + len(PRELUDE_END)):
            raise MalformedAnswer(f"the prelude is over {PRELUDE_MAX_BYTES} bytes")
        if at < 0:
            return None
        return from_prelude(bytes(head[:at])), bytes(head[at + len(PRELUDE_END) :])
