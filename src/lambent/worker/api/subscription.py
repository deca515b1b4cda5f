"""What a Telemetry or Logs API subscriber asks for, read and checked: the body of PUT /telemetry and PUT /logs."""

from __future__ import annotations

import dataclasses
from typing import Any
from urllib.parse import urlsplit

import msgspec

SOURCES = ("platform", "function", "extension")
HOSTS = ("sandbox.localdomain", "sandbox")
TELEMETRY_SCHEMAS = ("2022-07-01", "2022-12-13", "2025-01-29")
LOGS_SCHEMAS = ("2020-08-15", "2021-03-18")
#: name -> (least, most, default). AWS's table for maxBytes and maxItems has two columns swapped; these are its values.
BUFFERING = {
    "maxItems": (1_000, 10_000, 10_000),
    "maxBytes": (262_144, 1_048_576, 262_144),
    "timeoutMs": (25, 30_000, 1_000),
}


class SubscriptionError(Exception):
    """The body is not one of the API's; the message says why."""


@dataclasses.dataclass(slots=True, frozen=True)
class Wanted:
    """A valid subscription. `path` and `method` are of use for HTTP only."""

    is_logs_api: bool
    schema: str
    sources: tuple[str, ...]
    is_http: bool
    host: str
    port: int
    path: str
    method: str
    items_max: int
    bytes_max: int
    timeout_ms: int


def read(body: bytes, is_logs_api: bool, own_port: int) -> Wanted:
    """Raises SubscriptionError. `own_port` is the API's, to which nothing is delivered."""
    try:
        told: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        raise SubscriptionError(f"the body is not JSON: {error}") from None
    if not isinstance(told, dict):
        raise SubscriptionError("the body is not a JSON object")
    schemas = LOGS_SCHEMAS if is_logs_api else TELEMETRY_SCHEMAS
    schema = told.get("schemaVersion", schemas[0])
    if schema not in schemas:
        raise SubscriptionError(f"schemaVersion must be one of {', '.join(schemas)}")
    sources = told.get("types")
    if not isinstance(sources, list) or not sources or any(source not in SOURCES for source in sources):
        raise SubscriptionError(f"types must be a list of one or more of {', '.join(SOURCES)}")
    is_http, host, port, path, method = _destination(told.get("destination"))
    if port == own_port:
        raise SubscriptionError(f"destination port {port} is in use by the Runtime API")
    buffering = told.get("buffering", {})
    if not isinstance(buffering, dict):
        raise SubscriptionError("buffering must be an object")
    limits = {name: _bounded(buffering.get(name), name) for name in BUFFERING}
    return Wanted(
        is_logs_api, schema, tuple(dict.fromkeys(sources)), is_http, host, port, path, method, limits["maxItems"],
        limits["maxBytes"], limits["timeoutMs"],
    )  # fmt: skip


def _bounded(value: Any, name: str) -> int:
    least, most, default = BUFFERING[name]
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise SubscriptionError(f"buffering.{name} must be a number from {least} to {most}")
    return value


def _destination(told: Any) -> tuple[bool, str, int, str, str]:
    """(is HTTP, host, port, path, method)."""
    if not isinstance(told, dict):
        raise SubscriptionError("destination must be an object")
    protocol = told.get("protocol")
    if protocol == "TCP":
        port = told.get("port")
        if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65_536:
            raise SubscriptionError("destination.port must be a number from 1 to 65535")
        return False, HOSTS[0], port, "", ""
    if protocol != "HTTP":
        raise SubscriptionError("destination.protocol must be HTTP or TCP")
    method = told.get("method", "POST")
    if method not in ("POST", "PUT"):
        raise SubscriptionError("destination.method must be POST or PUT")
    if told.get("encoding", "JSON") != "JSON":
        raise SubscriptionError("destination.encoding must be JSON")
    uri = told.get("URI")
    if not isinstance(uri, str) or len(uri) > 2_048 or not uri.isascii() or not uri.isprintable() or " " in uri:
        raise SubscriptionError("destination.URI must be an http URI")
    try:
        parts = urlsplit(uri)
        host, number = parts.hostname, parts.port
    except ValueError:
        host = number = None
        parts = None
    if parts is None or parts.scheme.lower() != "http" or host not in HOSTS or parts.username is not None:
        raise SubscriptionError("destination.URI must be http://sandbox.localdomain:<port>, or http://sandbox:<port>")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return True, host, 80 if number is None else number, path, method
