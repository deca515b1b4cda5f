"""The event that a function gets for a request to its URL: payload format 2.0 (fact sheet of events, 2.8)."""

from __future__ import annotations

import base64
import re
import time
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec

from lambent.frontend.connection import RawRequest
from lambent.frontend.function_urls.signature import Signer
from lambent.frontend.invoke_request import trace
from lambent.model.function_url import UrlSpec

#: Content types whose bodies are handed over as text; every other body comes as base64.
_TEXT = re.compile(
    r"text/.*|application/(?:json|javascript|xml|x-www-form-urlencoded|[\w.+-]+\+(?:json|xml))", re.IGNORECASE
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Client(NamedTuple):
    """Who sent the request, and how. `port` is the one of ours that the client connected to."""

    address: str
    port: int
    protocol: str


def make_event(raw: RawRequest, spec: UrlSpec, host: str, client: Client, signer: Signer | None, now_ns: int) -> bytes:
    """The event as JSON. `host` is the request's host name without a port.

    Members without a value are left out, as AWS does.
    """
    path, _, query = _text(raw.target).partition("?")
    path = path or "/"
    headers = {name.decode("latin-1"): _text(value) for name, value in raw.headers.items()}
    cookies = [cookie for cookie in headers.get("cookie", "").split("; ") if cookie]
    _add_forwarding(headers, raw, client)
    http = {
        "method": raw.method.decode("latin-1"),
        "path": path,
        "protocol": client.protocol,
        "sourceIp": client.address,
    }
    if "user-agent" in headers:
        http["userAgent"] = headers["user-agent"]
    context: dict[str, Any] = {
        "accountId": "anonymous",
        "apiId": spec.id,
        "domainName": host,
        "domainPrefix": spec.id,
        "http": http,
        "requestId": raw.request_id,
        "routeKey": "$default",
        "stage": "$default",
        "time": _clf_time(now_ns // 1_000_000_000),
        "timeEpoch": now_ns // 1_000_000,
    }
    if signer is not None:
        context["accountId"] = signer.account
        context["authorizer"] = {
            "iam": {
                "accessKey": signer.access_key,
                "accountId": signer.account,
                "callerId": signer.access_key,
                "cognitoIdentity": None,
                "principalOrgId": None,
                "userArn": f"arn:aws:iam::{signer.account}:root",
                "userId": signer.access_key,
            }
        }
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": context,
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if query:
        event["queryStringParameters"] = _query(query)
    if raw.body:
        event["body"], event["isBase64Encoded"] = _body(raw.body, headers)
    return msgspec.json.encode(event)


def _text(value: bytes) -> str:
    """Header values are UTF-8 more often than not; what is not is taken byte by byte."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _add_forwarding(headers: dict[str, str], raw: RawRequest, client: Client) -> None:
    """What AWS's front end adds. A proxy's own words about the client are kept, and this hop is added to them."""
    before = headers.get("x-forwarded-for")
    headers["x-forwarded-for"] = f"{before}, {client.address}" if before else client.address
    headers.setdefault("x-forwarded-proto", "http")
    headers.setdefault("x-forwarded-port", str(client.port))
    headers["x-amzn-trace-id"] = trace(raw)


def _query(query: str) -> dict[str, str]:
    """Decoded; several values of one name joined by commas."""
    found: dict[str, list[str]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        found.setdefault(name, []).append(value)
    return {name: ",".join(values) for name, values in found.items()}


def _body(body: bytes, headers: dict[str, str]) -> tuple[str, bool]:
    """The body as text or as base64, and whether it is the latter."""
    kind = headers.get("content-type", "").partition(";")[0].strip()
    if "content-encoding" not in headers and _TEXT.fullmatch(kind):
        try:
            return body.decode(), False
        except UnicodeDecodeError:
            pass  # text in another encoding: only base64 keeps its bytes
    return base64.b64encode(body).decode(), True


def _clf_time(epoch_s: int) -> str:
    """As access logs write it, whatever the locale: 12/Mar/2020:19:03:58 +0000."""
    at = time.gmtime(epoch_s)
    clock = f"{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02}"
    return f"{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{clock} +0000"
