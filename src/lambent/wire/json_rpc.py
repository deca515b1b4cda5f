"""AWS's JSON protocols 1.0 and 1.1 (CloudWatch Logs and most others): everything is POST /, the header
X-Amz-Target names the operation, all members travel in one JSON object.

Errors carry their code in `__type`. These services answer every mistake of the caller with 400, whatever
status the error has elsewhere; only a request that is too large keeps its 413.
"""

from __future__ import annotations

from typing import Any

from lambent.model.errors import ApiError, UnknownOperation
from lambent.wire import json_values
from lambent.wire.codec import BoundCall
from lambent.wire.http import Request, Response
from lambent.wire.service_model import ServiceModel


class JsonRpcCodec:
    """The codec of one service whose model speaks JSON 1.0 or 1.1."""

    def __init__(self, model: ServiceModel) -> None:
        self.model = model
        self._content_type = ("Content-Type", f"application/x-amz-json-{model.json_version}")

    def bind(self, request: Request) -> BoundCall:
        target = request.headers.get("x-amz-target", "")
        prefix, _, operation = target.rpartition(".")
        if request.method != "POST" or prefix != self.model.target_prefix or operation not in self.model:
            raise UnknownOperation(f"{self.model.service} has no operation {target!r}"[:1024])
        shape = self.model.operation(operation).input
        if shape is None:
            return BoundCall(operation, {})
        return BoundCall(operation, json_values.read_object(request.body, shape))

    def serialize(self, operation: str, result: dict[str, Any]) -> Response:
        shape = self.model.operation(operation).output
        if shape is None:
            return Response(200, b"", [self._content_type])
        json_values.check_members(result, shape)
        document = json_values.write_structure(result, tuple(shape.members.values()))
        return Response(200, json_values.encode(document), [self._content_type])

    def error(self, error: ApiError) -> Response:
        status = 400 if error.status < 500 and error.status != 413 else error.status
        headers = [self._content_type, *error.headers.items()]
        if self.model.query_compatible:
            fault = "Sender" if status < 500 else "Receiver"
            headers.append(("x-amzn-query-error", f"{self.model.query_error_code(error.code)};{fault}"))
        body = {"__type": error.code, "message": error.message}
        body |= {name: value for name, value in error.members.items() if value is not None}
        return Response(status, json_values.encode(body), headers)
