"""The errors that a client may see: one tree, each class with AWS's code, HTTP status and body key.

    ApiError
    ├── 4xx: the caller's mistake, `Type` is "User"
    └── 5xx: ours, `Type` is "Server"

Body keys (`message` or `Message`) and statuses follow botocore's `lambda` model, as recorded in the fact sheet,
appendix B. Some answers of AWS leave `Type` out; pass `with_type=False` for those.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ApiError(Exception):
    """Something to tell the client. `members` are further modelled members of the error's body.

    >>> raise ResourceNotFound("Function not found: arn:...")
    """

    code: ClassVar[str] = "ServiceException"
    status: ClassVar[int] = 500
    message_key: ClassVar[str] = "Message"
    #: False for what the front end answers before the service is reached.
    typed: ClassVar[bool] = True

    def __init__(
        self,
        message: str,
        *,
        with_type: bool = True,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.with_type = with_type and self.typed
        self.headers = headers or {}
        self.members = members

    @property
    def fault(self) -> str:
        """`User` for the caller's fault, `Server` for ours."""
        return "User" if self.status < 500 else "Server"


class ServiceError(ApiError):
    code, status, message_key = "ServiceException", 500, "Message"


class InvalidParameterValue(ApiError):
    code, status, message_key = "InvalidParameterValueException", 400, "message"


class InvalidRequestContent(ApiError):
    code, status, message_key = "InvalidRequestContentException", 400, "message"


class CodeStorageExceeded(ApiError):
    code, status, message_key = "CodeStorageExceededException", 400, "message"


class ValidationError(ApiError):
    """AWS's front end: the request breaks a constraint of the service model."""

    code, status, message_key, typed = "ValidationException", 400, "message", False


class SerializationError(ApiError):
    """AWS's front end: the body is not JSON, or a member has the wrong type."""

    code, status, message_key, typed = "SerializationException", 400, "Message", False


class AccessDenied(ApiError):
    code, status, message_key, typed = "AccessDeniedException", 403, "Message", False


class UnknownOperation(ApiError):
    code, status, message_key, typed = "UnknownOperationException", 404, "Message", False


class ResourceNotFound(ApiError):
    code, status, message_key = "ResourceNotFoundException", 404, "Message"


class ProvisionedConcurrencyConfigNotFound(ApiError):
    code, status, message_key = "ProvisionedConcurrencyConfigNotFoundException", 404, "message"


class ResourceConflict(ApiError):
    code, status, message_key = "ResourceConflictException", 409, "message"


class PreconditionFailed(ApiError):
    code, status, message_key = "PreconditionFailedException", 412, "message"


class RequestTooLarge(ApiError):
    code, status, message_key, typed = "RequestEntityTooLargeException", 413, "Message", False


class TooManyRequests(ApiError):
    code, status, message_key = "TooManyRequestsException", 429, "message"


class NotImplementedYet(ApiError):
    """A thing of AWS that Lambent does not do; the message says so and names the way out."""

    code, status, message_key = "NotImplementedException", 501, "message"


class SnapStartFailed(ApiError):
    """An after-restore hook failed. (Code and statuses of these three: botocore's `lambda` model.)"""

    code, status, message_key = "SnapStartException", 400, "Message"


class SnapStartNotReady(ApiError):
    code, status, message_key = "SnapStartNotReadyException", 409, "Message"


class SnapStartTimeout(ApiError):
    code, status, message_key = "SnapStartTimeoutException", 408, "Message"


class ServiceUnavailable(ApiError):
    """The server is draining or has lost its workers."""

    code, status, message_key = "ServiceUnavailableException", 503, "Message"
