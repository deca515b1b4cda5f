"""The errors of the Application Auto Scaling API, by the names of its model. (Broken constraints are model.errors'
ValidationError.)"""

from __future__ import annotations

from lambent.model.errors import ApiError
from lambent.services.autoscaling.names import DIMENSION
from lambent.store.scaling import TargetKey


class AutoScalingError(ApiError):
    status, message_key, typed = 400, "Message", False


class ObjectNotFound(AutoScalingError):
    code = "ObjectNotFoundException"


class LimitExceeded(AutoScalingError):
    code = "LimitExceededException"


class InvalidNextToken(AutoScalingError):
    code = "InvalidNextTokenException"


class ResourceNotFound(AutoScalingError):
    """Of the operations on tags."""

    code = "ResourceNotFoundException"


class TooManyTags(AutoScalingError):
    code = "TooManyTagsException"


def not_found(what: str, key: TargetKey, name: str = "") -> ObjectNotFound:
    """AWS's sentence for a target, policy or action that is not there. `name`: such as `policy name: x`."""
    tail = f", {name}" if name else ""
    return ObjectNotFound(
        f"No {what} found for service namespace: lambda, resource ID: {key.resource}, scalable dimension: "
        f"{DIMENSION}{tail}"
    )


def not_registered(key: TargetKey) -> ObjectNotFound:
    return ObjectNotFound(
        f"No scalable target registered for service namespace: lambda, resource ID: {key.resource}, scalable "
        f"dimension: {DIMENSION}"
    )
