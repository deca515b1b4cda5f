"""What every AWS protocol does for a service: bytes to a call, a result to bytes.

A codec knows one service's model. It raises nothing but ApiError for anything that a client sends; for a
result that does not fit the model it raises TypeError, because that is our bug.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

from lambent.model.errors import ApiError
from lambent.wire.http import Request, Response
from lambent.wire.service_model import ServiceModel


@dataclasses.dataclass(frozen=True, slots=True)
class BoundCall:
    """An operation and its parameters under the model's names; absent members and JSON nulls are left out.

    Blobs are bytes, timestamps aware datetimes in UTC, the rest what JSON makes of them.
    """

    operation: str
    params: dict[str, Any]


class Codec(Protocol):
    @property
    def model(self) -> ServiceModel: ...

    def bind(self, request: Request) -> BoundCall:
        """Which operation the request calls, and with what. Raises ApiError; does not check constraints."""
        ...

    def serialize(self, operation: str, result: dict[str, Any]) -> Response:
        """The answer to a call. Members that are None are left out."""
        ...

    def error(self, error: ApiError) -> Response: ...
