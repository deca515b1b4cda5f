"""Versions: numbers that are never given twice, content that never changes, guards on what is published."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from .harness import ARN, OTHER_ZIP, ZIP, Harness, refusal, request


@pytest.fixture
def update(server: Harness, client: Any) -> Callable[..., Any]:
    def change(**changes: Any) -> Any:
        answer = client.update_function_configuration(FunctionName="f", **changes)
        server.release()
        return answer

    return change


def test_publish(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create(Description="of latest", Environment={"Variables": {"KEY": "1"}})
    before = client.get_function_configuration(FunctionName="f")["RevisionId"]
    answer = client.publish_version(FunctionName="f")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 201
    assert (answer["Version"], answer["FunctionArn"]) == ("1", f"{ARN}:f:1")
    assert (answer["State"], answer["LastUpdateStatus"]) == ("Active", "Successful")
    assert answer["Description"] == "of latest"
    latest = client.get_function_configuration(FunctionName="f")
    assert len({before, latest["RevisionId"], answer["RevisionId"]}) == 3
    assert server.deployments.active["f", "1"].environment == {"KEY": "1"}


def test_nothing_new_gives_the_same_version(
    client: Any, create: Callable[..., Any], update: Callable[..., Any]
) -> None:
    create()
    first = client.publish_version(FunctionName="f", Description="first")
    again = client.publish_version(FunctionName="f", Description="ignored")
    assert again["ResponseMetadata"]["HTTPStatusCode"] == 201
    for member in ("Version", "RevisionId", "Description"):
        assert again[member] == first[member]
    update(Timeout=3)
    assert client.publish_version(FunctionName="f")["Version"] == "1"
    update(Description="new")
    second = client.publish_version(FunctionName="f")
    assert (second["Version"], second["Description"]) == ("2", "new")
    assert client.get_function_configuration(FunctionName="f", Qualifier="1")["Description"] == "first"


def test_numbers_are_never_given_twice(client: Any, create: Callable[..., Any], update: Callable[..., Any]) -> None:
    create(Publish=True)
    client.delete_function(FunctionName="f", Qualifier="1")
    assert client.publish_version(FunctionName="f")["Version"] == "2"


def test_guards(client: Any, create: Callable[..., Any], update: Callable[..., Any]) -> None:
    create()
    current = base64.b64encode(hashlib.sha256(ZIP).digest()).decode()
    assert refusal(client.publish_version, FunctionName="f", CodeSha256="x") == (
        "InvalidParameterValueException",
        f"CodeSHA256 (x) is different from current CodeSHA256 in $LATEST ({current}). "
        "Please try again with the CodeSHA256 in $LATEST.",
    )
    assert refusal(client.publish_version, FunctionName="f", RevisionId="x")[0] == "PreconditionFailedException"
    assert refusal(client.publish_version, FunctionName="g") == (
        "ResourceNotFoundException",
        f"Function not found: {ARN}:g",
    )
    revision = client.get_function_configuration(FunctionName="f")["RevisionId"]
    answer = client.publish_version(FunctionName="f", CodeSha256=current, RevisionId=revision)
    assert answer["Version"] == "1"


def test_create_with_publish(server: Harness, client: Any) -> None:
    server.hold()
    answer = client.create_function(**request(Publish=True))
    assert (answer["Version"], answer["FunctionArn"], answer["State"]) == ("1", f"{ARN}:f", "Pending")
    latest = client.get_function_configuration(FunctionName="f")
    assert latest["RevisionId"] != answer["RevisionId"]
    server.release()
    assert client.publish_version(FunctionName="f")["Version"] == "1"
    assert set(server.deployments.active) == {("f", "$LATEST"), ("f", "1")}


def test_update_code_with_publish(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    server.hold()
    answer = client.update_function_code(FunctionName="f", ZipFile=OTHER_ZIP, Publish=True)
    assert (answer["Version"], answer["FunctionArn"]) == ("1", f"{ARN}:f:1")
    assert (answer["State"], answer["StateReasonCode"]) == ("Pending", "Creating")
    latest = client.get_function_configuration(FunctionName="f")
    assert (latest["State"], latest["LastUpdateStatus"]) == ("Active", "InProgress")
    server.release()
    server.call(lambda: None)
    client.get_waiter("published_version_active").wait(
        FunctionName="f", Qualifier="1", WaiterConfig={"Delay": 0, "MaxAttempts": 1}
    )
    specs = server.deployments.active
    assert specs["f", "1"].code_sha256 == specs["f", "$LATEST"].code_sha256 == hashlib.sha256(OTHER_ZIP).hexdigest()
    again = client.update_function_code(FunctionName="f", ZipFile=OTHER_ZIP, Publish=True)
    assert (again["Version"], again["State"]) == ("1", "Active")


def test_list_versions(client: Any, create: Callable[..., Any], update: Callable[..., Any]) -> None:
    create(Publish=True)
    for number in range(2, 12):
        update(Description=str(number))
        client.publish_version(FunctionName="f")
    listed = client.list_versions_by_function(FunctionName="f")["Versions"]
    assert [each["Version"] for each in listed] == ["$LATEST", *map(str, range(1, 12))]
    assert listed[0]["FunctionArn"] == f"{ARN}:f:$LATEST"
    assert "State" not in listed[0]
    pages = client.get_paginator("list_versions_by_function").paginate(
        FunctionName="f", PaginationConfig={"PageSize": 5}
    )
    assert [len(page["Versions"]) for page in pages] == [5, 5, 2]
    assert refusal(client.list_versions_by_function, FunctionName="g") == (
        "ResourceNotFoundException",
        f"Function not found: {ARN}:g",
    )
