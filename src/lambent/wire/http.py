"""HTTP requests and responses as plain values, between the listener and the services."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class Request:
    """One complete HTTP request. `path` and `query` are as sent (percent-encoded); header names are lower case."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    #: From the signature, or the defaults: who asks, where, and which service they mean (may be "").
    account: str
    region: str
    service: str
    #: A new lower-case UUID; returned as x-amzn-RequestId.
    request_id: str


@dataclasses.dataclass(slots=True)
class Response:
    """What to answer. The listener adds Date, Content-Length, Connection and x-amzn-RequestId."""

    status: int
    body: bytes = b""
    headers: list[tuple[str, str]] = dataclasses.field(default_factory=list)
