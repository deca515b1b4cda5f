"""A service made of a codec and handlers: what every AWS API in this package is.

    request -> codec.bind -> validate -> handler -> codec.serialize -> response

Every outcome is a Response. What goes wrong by the client's doing is an ApiError and becomes the protocol's
error answer; anything else that escapes a handler is a bug of ours: logged with its traceback, answered as
500.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from lambent.model.errors import ApiError, NotImplementedYet, ServiceError, ValidationError
from lambent.wire.codec import Codec
from lambent.wire.http import Request, Response
from lambent.wire.validation import validate

_log = logging.getLogger("lambent.services")


@dataclasses.dataclass(frozen=True, slots=True)
class CallContext:
    """Who calls, where, and under which id."""

    account: str
    region: str
    request_id: str
    request: Request


Handler = Callable[[CallContext, dict[str, Any]], Awaitable[dict[str, Any]]]


class ModelService:
    """Answers the operations of one service model.

    `handlers` maps names of operations to coroutines; what the model has and `handlers` has not is answered
    with NotImplementedYet. `invalid` is the error that this service uses for broken constraints, where that
    is not ValidationException.
    """

    def __init__(
        self, codec: Codec, handlers: Mapping[str, Handler], *, invalid: type[ApiError] = ValidationError
    ) -> None:
        unknown = [name for name in handlers if name not in codec.model]
        if unknown:
            raise ValueError(f"{codec.model.service} has no operation {', '.join(unknown)}")
        self.codec = codec
        self.handlers = dict(handlers)
        self._invalid = invalid

    async def handle(self, request: Request) -> Response:
        operation = "?"
        try:
            call = self.codec.bind(request)
            operation = call.operation
            handler = self.handlers.get(operation)
            if handler is None:
                raise NotImplementedYet(
                    f"Lambent does not implement {operation} of the {self.codec.model.service} API."
                )
            self._check(operation, call.params)
            context = CallContext(request.account, request.region, request.request_id, request)
            return self.codec.serialize(operation, await handler(context, call.params))
        except ApiError as error:
            return self.codec.error(error)
        except Exception:
            service = self.codec.model.service
            _log.exception("bug in Lambent: %s of %s, request %s", operation, service, request.request_id)
            return self.codec.error(
                ServiceError(f"Lambent failed in {operation}; its log has the details of this request.")
            )

    def _check(self, operation: str, params: dict[str, Any]) -> None:
        shape = self.codec.model.operation(operation).input
        if shape is None:
            return
        try:
            validate(params, shape)
        except ValidationError as error:
            raise self._invalid(error.message) from None
