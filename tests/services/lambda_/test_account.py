"""Concurrency, account, tags, and the questions that Terraform asks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .harness import ARN, ZIP, Harness, refusal

INVALID = "InvalidParameterValueException"


def test_reserved_concurrency(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    assert "ReservedConcurrentExecutions" not in client.get_function_concurrency(FunctionName="f")
    answer = client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=0)
    assert answer["ReservedConcurrentExecutions"] == 0
    assert client.get_function_concurrency(FunctionName="f")["ReservedConcurrentExecutions"] == 0
    assert client.get_function(FunctionName="f")["Concurrency"] == {"ReservedConcurrentExecutions": 0}
    assert server.deployments.reserved == {"f": 0}
    assert client.delete_function_concurrency(FunctionName="f")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert server.deployments.reserved == {"f": None}
    assert "Concurrency" not in client.get_function(FunctionName="f")


def test_a_hundred_stay_unreserved(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    create("g")
    put = client.put_function_concurrency
    put(FunctionName="f", ReservedConcurrentExecutions=600)
    too_many = (
        INVALID,
        "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution "
        "below its minimum value of [100].",
    )
    assert refusal(put, FunctionName="g", ReservedConcurrentExecutions=301) == too_many
    put(FunctionName="g", ReservedConcurrentExecutions=300)
    assert refusal(put, FunctionName="f", ReservedConcurrentExecutions=601) == too_many
    put(FunctionName="f", ReservedConcurrentExecutions=599)
    limit = client.get_account_settings()["AccountLimit"]
    assert limit["UnreservedConcurrentExecutions"] == 101
    # AWS leaves `Type` out of this one.
    target = "/2017-10-31/functions/f/concurrency"
    response = server.run(server.answer("PUT", target, {}, b'{"ReservedConcurrentExecutions": 5000}'))
    assert json.loads(response.body) == {"message": too_many[1]}


def test_existence_comes_before_the_value(client: Any, create: Callable[..., Any]) -> None:
    put = client.put_function_concurrency
    assert refusal(put, FunctionName="f", ReservedConcurrentExecutions=5000) == (
        "ResourceNotFoundException",
        f"Function not found: {ARN}:f:$LATEST",
    )
    assert refusal(client.get_function_concurrency, FunctionName="f") == (
        "ResourceNotFoundException",
        f"Function not found: {ARN}:f",
    )
    create(Publish=True)
    code, text = refusal(put, FunctionName=f"{ARN}:f:1", ReservedConcurrentExecutions=1)
    assert code == INVALID
    assert text.startswith("This operation is permitted on Lambda functions only.")


def test_small_accounts(tmp_path: Path) -> None:
    server = Harness(tmp_path, account_concurrency=150).start()
    client = server.client()
    client.create_function(
        FunctionName="f",
        Runtime="python3.12",
        Handler="a.b",
        Role="arn:aws:iam::123456789012:role/r",
        Code={"ZipFile": ZIP},
    )
    client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=50)
    assert refusal(client.put_function_concurrency, FunctionName="f", ReservedConcurrentExecutions=51)[0] == INVALID
    server.stop()


def test_account_settings(client: Any, create: Callable[..., Any]) -> None:
    create(Publish=True)
    create("g")
    answer = client.get_account_settings()
    assert answer["AccountLimit"] == {
        "TotalCodeSize": 322_122_547_200,
        "CodeSizeUnzipped": 262_144_000,
        "CodeSizeZipped": 52_428_800,
        "ConcurrentExecutions": 1000,
        "UnreservedConcurrentExecutions": 1000,
    }
    assert answer["AccountUsage"] == {"TotalCodeSize": 3 * len(ZIP), "FunctionCount": 2}


def test_tags(client: Any, create: Callable[..., Any]) -> None:
    create(Tags={"a": "1"})
    resource = f"{ARN}:f"
    client.tag_resource(Resource=resource, Tags={"b": "2", "a": "3"})
    assert client.list_tags(Resource=resource)["Tags"] == {"a": "3", "b": "2"}
    client.untag_resource(Resource=resource, TagKeys=["a", "never"])
    assert client.get_function(FunctionName="f")["Tags"] == {"b": "2"}
    tag = client.tag_resource
    assert refusal(tag, Resource=resource, Tags={}) == (
        INVALID,
        "An error occurred and the request cannot be processed.",
    )
    assert refusal(tag, Resource=resource, Tags={f"k{n}": "" for n in range(50)}) == (
        INVALID,
        "Number of tags exceeds resource tag limit.",
    )
    assert refusal(tag, Resource=resource + ":1", Tags={"a": "1"}) == (
        INVALID,
        "Tags on function aliases and versions are not supported. Please specify a function ARN.",
    )
    assert refusal(client.list_tags, Resource=f"{ARN}:g") == (
        "ResourceNotFoundException",
        f"Function not found: {ARN}:g",
    )
    mapping = "arn:aws:lambda:eu-west-1:123456789012:event-source-mapping:" + "0" * 8 + "-0000-0000-0000-" + "0" * 12
    assert refusal(client.list_tags, Resource=mapping) == (
        "ResourceNotFoundException",
        f"Event source mapping not found: {mapping}",
    )


def test_questions_with_one_answer(client: Any, create: Callable[..., Any]) -> None:
    create()
    signing = client.get_function_code_signing_config(FunctionName="f")
    assert (signing["CodeSigningConfigArn"], signing["FunctionName"]) == ("", "f")
    assert client.get_function_recursion_config(FunctionName="f")["RecursiveLoop"] == "Terminate"
    management = client.get_runtime_management_config(FunctionName="f")
    assert (management["UpdateRuntimeOn"], management["FunctionArn"]) == ("Auto", f"{ARN}:f")
    assert refusal(client.get_policy, FunctionName="f") == (
        "ResourceNotFoundException",
        "The resource you requested does not exist.",
    )
    for call in (
        client.get_function_code_signing_config,
        client.get_function_recursion_config,
        client.get_runtime_management_config,
    ):
        assert refusal(call, FunctionName="g")[0] == "ResourceNotFoundException"


@pytest.mark.parametrize(
    ("call", "params"),
    [
        ("put_function_recursion_config", {"RecursiveLoop": "Allow"}),
    ],
)
def test_what_is_not_built_says_so(client: Any, call: str, params: dict[str, str]) -> None:
    code, text = refusal(getattr(client, call), FunctionName="f", **params)
    assert code == "NotImplementedException"
    assert text.startswith("Lambent does not implement ")
