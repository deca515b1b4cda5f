"""Names, qualifiers and ARNs of functions, in all the forms in which clients write them.

A function is named by `name`, `name:qualifier`, `123456789012:function:name[:qualifier]` or a full ARN
(botocore's `lambda` model, shapes FunctionName and NamespacedFunctionName).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from lambent.model.errors import InvalidParameterValue, ResourceNotFound, ValidationError
from lambent.model.limits import FUNCTION_NAME_MAX

LATEST = "$LATEST"
DEFAULT_ACCOUNT = "000000000000"
DEFAULT_REGION = "us-east-1"

NAME_PATTERN = (
    r"(arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}:)?(\d{12}:)?"
    r"(function:)?([a-zA-Z0-9-_]+)(:(\$LATEST|[a-zA-Z0-9-_]+))?"
)
_NAME = re.compile(
    r"(?:arn:(?P<partition>aws[a-zA-Z-]*):lambda:)?"
    r"(?:(?P<region>(?:eusc-)?[a-z]{2}(?:-gov|-iso[a-z]?)?-[a-z]+-\d):)?"
    r"(?:(?P<account>\d{12}):)?(?:function:)?"
    r"(?P<name>[a-zA-Z0-9-_]+)(?::(?P<qualifier>\$LATEST|[a-zA-Z0-9-_]+))?",
    re.ASCII,
)
_QUALIFIER = re.compile(r"\$LATEST|[a-zA-Z0-9-_]{1,128}")
_FORM_MAX = 140


class FunctionKey(NamedTuple):
    """What identifies a function: everything but its versions."""

    account: str
    region: str
    name: str

    def arn(self, qualifier: str | None = None) -> str:
        """The function's ARN, qualified when a version or alias is given."""
        base = f"arn:aws:lambda:{self.region}:{self.account}:function:{self.name}"
        return f"{base}:{qualifier}" if qualifier else base


class FunctionRef(NamedTuple):
    """A function as a client named it: the key and, when one was given, the qualifier."""

    key: FunctionKey
    qualifier: str | None

    @property
    def arn(self) -> str:
        return self.key.arn(self.qualifier)


def parse_function_ref(text: str, qualifier: str | None, account: str, region: str) -> FunctionRef:
    """Resolve `text` (any of the forms) and an optional `Qualifier` for a caller of `account` and `region`.

    Raises ValidationError for what matches no form, InvalidParameterValue where two qualifiers disagree or
    the name is too long, ResourceNotFound for another region.
    """
    match = _NAME.fullmatch(text)
    if match is None or len(text) > _FORM_MAX:
        constraint = (
            f"Member must satisfy regular expression pattern: {NAME_PATTERN}"
            if match is None
            else f"Member must have length less than or equal to {_FORM_MAX}"
        )
        raise ValidationError(
            f"1 validation error detected: Value '{text}' at 'functionName' failed to satisfy constraint: {constraint}"
        )
    name = match["name"]
    if len(name) > FUNCTION_NAME_MAX:
        raise InvalidParameterValue(
            f"1 validation error detected: Value '{name}' at 'functionName' failed to satisfy constraint: "
            f"Member must have length less than or equal to {FUNCTION_NAME_MAX}"
        )
    if match["region"] and match["region"] != region:
        raise ResourceNotFound(f"Functions from '{match['region']}' are not reachable in this region ('{region}')")
    derived = match["qualifier"]
    if derived and qualifier and derived != qualifier:
        raise InvalidParameterValue(
            "The derived qualifier from the function name does not match the specified qualifier."
        )
    chosen = derived or qualifier
    if chosen is not None and not _QUALIFIER.fullmatch(chosen):
        raise ValidationError(
            f"1 validation error detected: Value '{chosen}' at 'qualifier' failed to satisfy constraint: "
            "Member must satisfy regular expression pattern: (|[a-zA-Z0-9$_-]+)"
        )
    return FunctionRef(FunctionKey(match["account"] or account, region, name), chosen)
