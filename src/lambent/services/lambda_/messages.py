"""What the Lambda API says in AWS's words: errors that more than one handler raises.

The texts are literal (fact sheet, sections 1.3, 5.4, 7 and appendix C); clients match on them.
"""

from __future__ import annotations

from lambent.model.errors import (
    InvalidParameterValue,
    PreconditionFailed,
    ResourceConflict,
    ResourceNotFound,
    ValidationError,
)
from lambent.model.names import FunctionKey

CREATING_REASON = "The function is being created."
CREATING_CODE = "Creating"
NOT_FOR_IMAGES = "Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image."
NOT_FOR_ZIPS = "Please don't provide ImageConfig when the intended function PackageType is Zip."
TAGS_TOO_MANY = "Number of tags exceeds resource tag limit."


def function_not_found(arn: str) -> ResourceNotFound:
    return ResourceNotFound(f"Function not found: {arn}")


def function_exists(key: FunctionKey) -> ResourceConflict:
    return ResourceConflict(f"Function already exist: {key.name}")


def update_in_progress(key: FunctionKey) -> ResourceConflict:
    return ResourceConflict(
        f"The operation cannot be performed at this time. An update is in progress for resource: {key.arn()}"
    )


def wrong_state(state: str) -> ResourceConflict:
    return ResourceConflict(
        f"The operation cannot be performed at this time. The function is currently in the following state: {state}"
    )


def stale_revision() -> PreconditionFailed:
    return PreconditionFailed(
        "The Revision Id provided does not match the latest Revision Id. "
        "Call the GetFunction/GetAlias API to retrieve the latest Revision Id"
    )


def functions_only() -> InvalidParameterValue:
    return InvalidParameterValue(
        "This operation is permitted on Lambda functions only. Aliases and versions do not support this "
        "operation. Please specify either a function name or an unqualified function ARN."
    )


def not_per_tenant(feature: str) -> InvalidParameterValue:
    """For what a function with tenant isolation can not have. AWS's text is not recorded: these are the CDK's words."""
    return InvalidParameterValue(f"{feature} is not supported for functions with tenant isolation mode.")


def unsupported(feature: str) -> InvalidParameterValue:
    """Refuse what would be stored and not done."""
    return InvalidParameterValue(f"Lambent does not support {feature} yet.")


def broken_constraint(value: object, path: str, constraint: str) -> ValidationError:
    return ValidationError(
        f"1 validation error detected: Value '{value}' at '{path}' failed to satisfy constraint: {constraint}"
    )
