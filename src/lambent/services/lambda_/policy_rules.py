"""Resource policies: the statements that AWS writes, and whether a document lets a caller do something. Pure.

Who calls is told as one text, the *caller*:

* `ANYBODY` ("*"): a request without credentials, as a function URL with AuthType NONE takes them;
* a 12-digit account: somebody of that account. AWS's further half of the rule (what the account itself lets its own
  users do) is not known here and taken as given;
* a service, such as `s3.amazonaws.com`;
* an ARN of IAM or STS, where one is known.

A statement for an account (its number, or its `:root`) is for everybody in it; one for a user or a role is for that ARN
alone, so a caller known only as an account does not get what a single role of it was granted.

>>> allows(document, "lambda:InvokeFunctionUrl", ANYBODY, context={"lambda:FunctionUrlAuthType": "NONE"})

Rules: facts on resource-based policies; IAM's evaluation logic for Deny, conditions and wildcards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

#: A caller without credentials, and the principal that everybody is.
ANYBODY = "*"

Statement = dict[str, Any]

_ACCOUNT = re.compile(r"\d{12}", re.ASCII)
_PRINCIPAL_ARN = re.compile(
    r"arn:aws[a-zA-Z-]*:(iam|sts)::(?P<account>\d{12}):"
    r"(root|(user|role|assumed-role|federated-user)/[\x21-\x7e]+)",
    re.ASCII,
)
_SERVICE = re.compile(r"([a-z0-9-]+\.)+(amazonaws\.com(\.cn)?|amazon\.com)", re.ASCII)


# --- writing -----------------------------------------------------------------------------------------------


def principal(sent: str) -> str | dict[str, str] | None:
    """`Principal` as a statement has it; None for what names nobody."""
    if sent == ANYBODY:
        return ANYBODY
    if _ACCOUNT.fullmatch(sent):
        return {"AWS": f"arn:aws:iam::{sent}:root"}
    if _PRINCIPAL_ARN.fullmatch(sent):
        return {"AWS": sent}
    return {"Service": sent} if _SERVICE.fullmatch(sent) else None


def statement(
    sid: str, who: str | dict[str, str], action: str, resource: str, conditions: Iterable[tuple[str, str, str | None]]
) -> Statement:
    """One statement. `conditions` are (operator, key, value); those without a value are left out."""
    made: Statement = {"Sid": sid, "Effect": "Allow", "Principal": who, "Action": action, "Resource": resource}
    condition: dict[str, dict[str, str]] = {}
    for operator, key, value in conditions:
        if value is not None:
            condition.setdefault(operator, {})[key] = value
    if condition:
        made["Condition"] = condition
    return made


def document(statements: Iterable[Statement]) -> dict[str, Any]:
    """The policy that these statements make."""
    return {"Version": "2012-10-17", "Id": "default", "Statement": list(statements)}


def written(value: object) -> str:
    """A statement or policy as the text that AWS answers and measures."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# --- evaluating --------------------------------------------------------------------------------------------


def allows(
    policy: Mapping[str, Any] | None,
    action: str,
    caller: str,
    *,
    resource: str | None = None,
    context: Mapping[str, str] | None = None,
) -> bool:
    """Whether the policy lets `caller` do `action`: some statement allows it and none denies it.

    `resource` is the ARN that is acted on; None leaves statements' Resource out of account. `context` are the values
    of condition keys ("AWS:SourceArn", "lambda:FunctionUrlAuthType"; case does not matter); a condition on a key that
    is not in it does not hold. What is not understood never allows, and in a Deny always denies.
    """
    allowed = False
    values = {key.lower(): value for key, value in (context or {}).items()}
    for each in _listed((policy or {}).get("Statement")):
        denies = each.get("Effect") != "Allow"
        if (
            _is_meant(each, caller)
            and _any_matches(each.get("Action"), action.lower(), lower=True)
            and (resource is None or _any_matches(each.get("Resource"), resource))
            and _holds(each.get("Condition", {}), values, unknown=denies)
        ):
            if denies:
                return False
            allowed = True
    return allowed


def _listed(value: Any) -> list[Any]:
    """IAM takes one thing for a list of one thing."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _is_meant(each: Statement, caller: str) -> bool:
    who = each.get("Principal")
    if who == ANYBODY:
        return True
    if not isinstance(who, dict):
        return False
    if caller in _listed(who.get("Service")):
        return True
    return any(_is_principal(name, caller) for name in _listed(who.get("AWS")))


def _is_principal(name: str, caller: str) -> bool:
    if name == ANYBODY:
        return True
    account = name if _ACCOUNT.fullmatch(name) else None
    match = _PRINCIPAL_ARN.fullmatch(name)
    if match is not None and name.endswith(":root"):
        account = match["account"]
    if account is None:
        return name == caller
    calling = _PRINCIPAL_ARN.fullmatch(caller)
    return account == (calling["account"] if calling else caller)


def _any_matches(patterns: Any, text: str, *, lower: bool = False) -> bool:
    return any(matches(each.lower() if lower else each, text) for each in _listed(patterns))


def matches(pattern: str, text: str) -> bool:
    """IAM's wildcards: `*` is any text, `?` any one character. Takes time in proportion to both lengths' product at
    most, whatever the pattern."""
    at = star = 0
    resume = -1  # where in `text` the newest `*` ends; -1: none yet
    here = 0
    while here < len(text):
        if at < len(pattern) and pattern[at] == "*":
            star, resume = at, here
            at += 1
        elif at < len(pattern) and pattern[at] in ("?", text[here]):
            at += 1
            here += 1
        elif resume >= 0:
            resume += 1
            at, here = star + 1, resume
        else:
            return False
    return all(character == "*" for character in pattern[at:])


def _arn_matches(pattern: str, text: str) -> bool:
    """Wildcards do not reach over the colons of an ARN's first five parts."""
    patterns, parts = pattern.split(":", 5), text.split(":", 5)
    return len(patterns) == len(parts) and all(map(matches, patterns, parts))


def _equal(wanted: str, value: str) -> bool:
    return wanted == value


def _equal_whatever_case(wanted: str, value: str) -> bool:
    return wanted.lower() == value.lower()


_OPERATORS: dict[str, Callable[[str, str], bool]] = {
    "StringEquals": _equal,
    "StringEqualsIgnoreCase": _equal_whatever_case,
    "StringLike": matches,
    "ArnEquals": _arn_matches,  # IAM: the same as ArnLike
    "ArnLike": _arn_matches,
    "Bool": _equal_whatever_case,
}


def _holds(condition: Any, values: Mapping[str, str], *, unknown: bool) -> bool:
    """Whether every condition holds; `unknown` is what one with an unknown operator counts as."""
    for name, keys in condition.items():
        operator = _OPERATORS.get(name)
        if operator is None:
            if not unknown:
                return False
            continue
        for key, wanted in keys.items():
            value = values.get(key.lower())
            if value is None or not any(operator(str(each), value) for each in _listed(wanted)):
                return False
    return True
