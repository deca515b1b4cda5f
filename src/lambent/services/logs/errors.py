"""The errors of the CloudWatch Logs API. All are 400 there, and carry their text in `message`."""

from __future__ import annotations

from lambent.model.errors import ApiError


class LogsError(ApiError):
    status, message_key, typed = 400, "message", False


class ResourceNotFound(LogsError):
    code = "ResourceNotFoundException"


class ResourceAlreadyExists(LogsError):
    code = "ResourceAlreadyExistsException"


class InvalidParameter(LogsError):
    code = "InvalidParameterException"


class TooManyTags(LogsError):
    code = "TooManyTagsException"


class OperationRefused(LogsError):
    """A group is protected from deletion."""

    code = "ValidationException"
