"""The errors of the CloudWatch API. The codes are those of the model's shapes; clients of the query protocol, and
botocore in any protocol, see the older names that the model gives beside them, such as MissingParameter."""

from __future__ import annotations

from lambent.model.errors import ApiError


class CloudWatchError(ApiError):
    status, message_key, typed = 400, "message", False


class InvalidParameterValue(CloudWatchError):
    code = "InvalidParameterValueException"


class InvalidParameterCombination(CloudWatchError):
    code = "InvalidParameterCombinationException"


class MissingParameter(CloudWatchError):
    code = "MissingRequiredParameterException"


class InvalidRequest(CloudWatchError):
    """What GetMetricData answers to all of these."""

    code = "ValidationError"


class InvalidNextToken(CloudWatchError):
    code = "InvalidNextToken"


class RequestTooLarge(CloudWatchError):
    code, status = "RequestEntityTooLarge", 413


class Throttling(CloudWatchError):
    """More metrics arrive than the disk takes."""

    code = "Throttling"
