"""Resource policies of functions: what AddPermission writes, and what the written lets whom do."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambent.services.lambda_ import policy_rules
from lambent.services.lambda_.policy_rules import ANYBODY, allows, matches

from .harness import ACCOUNT, ARN, Harness, refusal, request

NOT_FOUND = "ResourceNotFoundException"
GONE = (NOT_FOUND, "The resource you requested does not exist.")
OTHER = "210987654321"
BUCKET = "arn:aws:s3:::bucket"
PERMISSION = {"StatementId": "s", "Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com"}


def policy(client: Any, **params: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(client.get_policy(FunctionName="f", **params)["Policy"])
    return document


# --- the operations ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "principal", "condition"),
    [
        ({}, {"Service": "s3.amazonaws.com"}, None),
        ({"Principal": "*"}, "*", None),
        ({"Principal": OTHER}, {"AWS": f"arn:aws:iam::{OTHER}:root"}, None),
        ({"Principal": f"arn:aws:iam::{OTHER}:role/a/b"}, {"AWS": f"arn:aws:iam::{OTHER}:role/a/b"}, None),
        ({"Principal": "logs.eu-west-1.amazonaws.com"}, {"Service": "logs.eu-west-1.amazonaws.com"}, None),
        ({"SourceArn": BUCKET}, {"Service": "s3.amazonaws.com"}, {"ArnLike": {"AWS:SourceArn": BUCKET}}),
        (
            {"SourceArn": BUCKET, "SourceAccount": OTHER},
            {"Service": "s3.amazonaws.com"},
            {"StringEquals": {"AWS:SourceAccount": OTHER}, "ArnLike": {"AWS:SourceArn": BUCKET}},
        ),
        (
            {"Principal": "alexa-appkit.amazon.com", "EventSourceToken": "amzn1.ask.skill.x"},
            {"Service": "alexa-appkit.amazon.com"},
            {"StringEquals": {"lambda:EventSourceToken": "amzn1.ask.skill.x"}},
        ),
        (
            {"Principal": "*", "Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"},
            "*",
            {"StringEquals": {"lambda:FunctionUrlAuthType": "NONE"}},
        ),
        (
            {"Principal": "*", "InvokedViaFunctionUrl": True},
            "*",
            {"Bool": {"lambda:InvokedViaFunctionUrl": "true"}},
        ),
        (
            {"Principal": "*", "PrincipalOrgID": "o-1234567890"},
            "*",
            {"StringEquals": {"aws:PrincipalOrgID": "o-1234567890"}},
        ),
    ],
)
def test_what_is_written(
    client: Any,
    create: Callable[..., Any],
    members: dict[str, Any],
    principal: object,
    condition: dict[str, Any] | None,
) -> None:
    create()
    sent = {**PERMISSION, **members}
    answer = client.add_permission(FunctionName="f", **sent)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 201
    expected = {
        "Sid": "s",
        "Effect": "Allow",
        "Principal": principal,
        "Action": sent["Action"],
        "Resource": f"{ARN}:f",
        **({"Condition": condition} if condition else {}),
    }
    assert json.loads(answer["Statement"]) == expected
    assert list(json.loads(answer["Statement"])) == list(expected)
    assert policy(client) == {"Version": "2012-10-17", "Id": "default", "Statement": [expected]}


def test_each_qualifier_has_its_own_policy(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create(Publish=True)
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    client.publish_version(FunctionName="f")
    for number, where in enumerate(({}, {"Qualifier": "1"}, {"Qualifier": "live"})):
        client.add_permission(FunctionName="f", **{**PERMISSION, "StatementId": f"s{number}"}, **where)
    found = {
        qualifier: [(each["Sid"], each["Resource"]) for each in policy(client, **where)["Statement"]]
        for qualifier, where in (("", {}), ("1", {"Qualifier": "1"}), ("live", {"Qualifier": "live"}))
    }
    assert found == {"": [("s0", f"{ARN}:f")], "1": [("s1", f"{ARN}:f:1")], "live": [("s2", f"{ARN}:f:live")]}
    assert json.loads(client.get_policy(FunctionName="f:live")["Policy"]) == policy(client, Qualifier="live")

    server.restart()
    client = server.client()
    assert policy(client)["Statement"][0]["Sid"] == "s0"
    client.delete_alias(FunctionName="f", Name="live")
    client.delete_function(FunctionName="f", Qualifier="1")
    assert refusal(client.get_policy, FunctionName="f", Qualifier="live") == GONE
    assert refusal(client.get_policy, FunctionName="f", Qualifier="1") == GONE
    assert policy(client)["Statement"][0]["Sid"] == "s0"
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="$LATEST")
    assert refusal(client.get_policy, FunctionName="f", Qualifier="live") == GONE
    client.delete_function(FunctionName="f")
    client.create_function(**request())
    assert refusal(client.get_policy, FunctionName="f") == GONE


def test_refusals(client: Any, create: Callable[..., Any]) -> None:
    create()
    add, remove, get = client.add_permission, client.remove_permission, client.get_policy
    bad_principal = (
        "InvalidParameterValueException",
        "The provided principal was invalid. Please check the principal and try again.",
    )
    assert refusal(get, FunctionName="f") == GONE
    assert refusal(get, FunctionName="none") == GONE
    assert refusal(add, FunctionName="none", **PERMISSION) == (NOT_FOUND, f"Function not found: {ARN}:none")
    assert refusal(add, FunctionName="f", Qualifier="7", **PERMISSION) == (NOT_FOUND, f"Function not found: {ARN}:f:7")
    assert refusal(add, FunctionName="f", Qualifier="live", **PERMISSION) == (
        NOT_FOUND,
        f"Cannot find alias arn: {ARN}:f:live",
    )
    assert refusal(add, FunctionName="f", Qualifier="$LATEST", **PERMISSION) == (
        "InvalidParameterValueException",
        "We currently do not support adding policies for $LATEST.",
    )
    for principal in ("me", "invalid.nonaws.com", "12345", "arn:aws:s3:::bucket", "arn:aws:iam::12:root"):
        assert refusal(add, FunctionName="f", **{**PERMISSION, "Principal": principal}) == bad_principal
    assert refusal(add, FunctionName="f", **PERMISSION, FunctionUrlAuthType="NONE") == (
        "InvalidParameterValueException",
        "FunctionUrlAuthType is only supported for lambda:InvokeFunctionUrl action",
    )
    for wrong in ({"Action": "s3:x"}, {"StatementId": "a b"}, {"SourceArn": "x"}, {"SourceAccount": "1"}):
        assert refusal(add, FunctionName="f", **{**PERMISSION, **wrong})[0] == "ValidationException"

    assert refusal(remove, FunctionName="none", StatementId="s") == (NOT_FOUND, f"No policy found for: {ARN}:none")
    assert refusal(remove, FunctionName="f", StatementId="s") == (
        NOT_FOUND,
        "No policy is associated with the given resource.",
    )
    add(FunctionName="f", **PERMISSION)
    assert refusal(add, FunctionName="f", **PERMISSION) == (
        "ResourceConflictException",
        "The statement id (s) provided already exists. Please provide a new statement id, or remove the existing "
        "statement.",
    )
    assert refusal(remove, FunctionName="f", StatementId="x") == (
        NOT_FOUND,
        "Statement x is not found in resource policy.",
    )
    answer = remove(FunctionName="f", StatementId="s")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert refusal(get, FunctionName="f") == GONE


def test_revisions(client: Any, create: Callable[..., Any]) -> None:
    create()
    stale = (
        "PreconditionFailedException",
        "The Revision Id provided does not match the latest Revision Id. "
        "Call the GetPolicy API to retrieve the latest Revision Id",
    )
    add, remove = client.add_permission, client.remove_permission
    function = client.get_function_configuration(FunctionName="f")["RevisionId"]
    assert refusal(add, FunctionName="f", **PERMISSION, RevisionId="x") == stale
    add(FunctionName="f", **PERMISSION, RevisionId=function)
    first = client.get_policy(FunctionName="f")["RevisionId"]
    second = {**PERMISSION, "StatementId": "t"}
    assert refusal(add, FunctionName="f", **second, RevisionId=function) == stale
    add(FunctionName="f", **second, RevisionId=first)
    assert refusal(remove, FunctionName="f", StatementId="s", RevisionId=first) == stale
    remove(FunctionName="f", StatementId="s", RevisionId=client.get_policy(FunctionName="f")["RevisionId"])
    assert [each["Sid"] for each in policy(client)["Statement"]] == ["t"]


def test_a_permission_does_not_disturb_a_creation(server: Harness, client: Any) -> None:
    server.hold()
    client.create_function(**request())
    client.add_permission(FunctionName="f", **PERMISSION)
    server.release()
    assert client.get_function_configuration(FunctionName="f")["State"] == "Active"


def test_a_policy_has_20_kb(client: Any, create: Callable[..., Any]) -> None:
    create()
    size = 0
    for number in range(200):
        sent = {**PERMISSION, "StatementId": f"s{number}", "SourceArn": "arn:aws:s3:::" + "b" * 300}
        try:
            client.add_permission(FunctionName="f", **sent)
        except client.exceptions.PolicyLengthExceededException as error:
            text = error.response["Error"]["Message"]
            break
        size = len(client.get_policy(FunctionName="f")["Policy"])
        assert size <= 20_480
    else:
        pytest.fail("a policy without end")
    match = re.fullmatch(r"The final policy size \((\d+)\) is bigger than the limit \(20480\)\.", text)
    assert match is not None
    assert int(match[1]) > 20_480
    assert len(client.get_policy(FunctionName="f")["Policy"]) == size
    assert size > 20_000


def test_policies_of_other_accounts(server: Harness, create: Callable[..., Any]) -> None:
    create()
    other = server.client(OTHER)
    assert refusal(other.get_policy, FunctionName=f"{ARN}:f")[0] == "AccessDeniedException"
    assert refusal(other.add_permission, FunctionName=f"{ARN}:f", **PERMISSION)[0] == "AccessDeniedException"


# --- who may do what ---------------------------------------------------------------------------------------

URL, INVOKE = "lambda:InvokeFunctionUrl", "lambda:InvokeFunction"


def granted(**members: Any) -> dict[str, Any]:
    sent = {"Sid": "s", "Effect": "Allow", "Principal": "*", "Action": INVOKE, "Resource": f"{ARN}:f"}
    return policy_rules.document([{**sent, **members}])


@pytest.mark.parametrize(
    ("principal", "caller", "expected"),
    [
        ("*", ANYBODY, True),
        ("*", OTHER, True),
        ("*", "s3.amazonaws.com", True),
        ({"AWS": "*"}, OTHER, True),
        ({"AWS": OTHER}, OTHER, True),
        ({"AWS": OTHER}, ACCOUNT, False),
        ({"AWS": OTHER}, ANYBODY, False),
        ({"AWS": [ACCOUNT, OTHER]}, OTHER, True),
        ({"AWS": f"arn:aws:iam::{OTHER}:root"}, OTHER, True),
        ({"AWS": f"arn:aws:iam::{OTHER}:root"}, f"arn:aws:iam::{OTHER}:user/u", True),
        ({"AWS": f"arn:aws:iam::{OTHER}:root"}, f"arn:aws:iam::{ACCOUNT}:user/u", False),
        ({"AWS": f"arn:aws:iam::{OTHER}:role/r"}, OTHER, False),
        ({"AWS": f"arn:aws:iam::{OTHER}:role/r"}, f"arn:aws:iam::{OTHER}:role/r", True),
        ({"AWS": f"arn:aws:iam::{OTHER}:role/r"}, f"arn:aws:iam::{OTHER}:role/s", False),
        ({"Service": "s3.amazonaws.com"}, "s3.amazonaws.com", True),
        ({"Service": "s3.amazonaws.com"}, "sns.amazonaws.com", False),
        ({"Service": "s3.amazonaws.com"}, OTHER, False),
        (None, OTHER, False),
    ],
)
def test_principals(principal: object, caller: str, expected: bool) -> None:
    assert allows(granted(Principal=principal), INVOKE, caller) is expected


@pytest.mark.parametrize(
    ("action", "asked", "expected"),
    [
        (INVOKE, INVOKE, True),
        (INVOKE, URL, False),
        ("lambda:*", URL, True),
        ("*", URL, True),
        ("lambda:invokefunction", INVOKE, True),
        ([INVOKE, URL], URL, True),
    ],
)
def test_actions(action: object, asked: str, expected: bool) -> None:
    assert allows(granted(Action=action), asked, ANYBODY) is expected


def test_a_public_function_url() -> None:
    both = policy_rules.document(
        [
            policy_rules.statement("a", "*", URL, f"{ARN}:f", [("StringEquals", "lambda:FunctionUrlAuthType", "NONE")]),
            policy_rules.statement("b", "*", INVOKE, f"{ARN}:f", [("Bool", "lambda:InvokedViaFunctionUrl", "true")]),
        ]
    )
    assert allows(both, URL, ANYBODY, context={"lambda:FunctionUrlAuthType": "NONE"})
    assert allows(both, URL, ANYBODY, resource=f"{ARN}:f", context={"lambda:functionurlauthtype": "NONE"})
    assert not allows(both, URL, ANYBODY, resource=f"{ARN}:f:live", context={"lambda:FunctionUrlAuthType": "NONE"})
    assert not allows(both, URL, ANYBODY, context={"lambda:FunctionUrlAuthType": "AWS_IAM"})
    assert not allows(both, URL, ANYBODY)
    assert allows(both, INVOKE, ANYBODY, context={"lambda:InvokedViaFunctionUrl": "true"})
    assert not allows(both, INVOKE, ANYBODY)
    assert not allows(None, URL, ANYBODY)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"ArnLike": {"AWS:SourceArn": "arn:aws:s3:::buck*"}}, True),
        ({"ArnLike": {"AWS:SourceArn": "arn:aws:*:bucket"}}, False),  # the wildcard would have to eat colons
        ({"ArnLike": {"AWS:SourceArn": ["arn:aws:s3:::x", BUCKET]}}, True),
        ({"StringEquals": {"AWS:SourceAccount": OTHER}}, True),
        ({"StringEquals": {"AWS:SourceAccount": ACCOUNT}}, False),
        ({"StringEquals": {"AWS:SourceAccount": OTHER}, "ArnLike": {"AWS:SourceArn": "arn:aws:s3:::x"}}, False),
        ({"StringLike": {"aws:sourcearn": "arn:*:bucket"}}, True),
        ({"NumericLessThan": {"AWS:SourceAccount": OTHER}}, False),
        ({"StringEquals": {"aws:PrincipalOrgID": "o-1234567890"}}, False),
    ],
)
def test_conditions(condition: dict[str, Any], expected: bool) -> None:
    context = {"AWS:SourceArn": BUCKET, "AWS:SourceAccount": OTHER}
    document = granted(Principal={"Service": "s3.amazonaws.com"}, Condition=condition)
    assert allows(document, INVOKE, "s3.amazonaws.com", context=context) is expected


def test_a_denial_wins() -> None:
    document = granted()
    document["Statement"].append({"Effect": "Deny", "Principal": {"AWS": OTHER}, "Action": "*"})
    document["Statement"].append({"Effect": "Allow", "Principal": {"AWS": OTHER}, "Action": "*"})
    assert allows(document, INVOKE, ACCOUNT)
    assert not allows(document, INVOKE, OTHER)
    document["Statement"][1]["Condition"] = {"DateGreaterThan": {"aws:CurrentTime": "x"}}
    assert not allows(document, INVOKE, OTHER)
    document["Statement"][1]["Condition"] = {"StringEquals": {"aws:SourceIp": "x"}}
    assert allows(document, INVOKE, OTHER)


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=8))
def test_wildcards(pattern: str, text: str) -> None:
    assert matches(pattern, text) is (re.fullmatch(fnmatch.translate(pattern), text) is not None)


def test_wildcards_take_no_exponential_time() -> None:
    assert not matches("a*" * 2_000 + "b", "a" * 5_000)
