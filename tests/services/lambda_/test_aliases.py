"""Aliases: one version, or two with weights; every refusal in AWS's words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .harness import ARN, Harness, refusal

INVALID = "InvalidParameterValueException"
ROUTING = "routingConfig"


@pytest.fixture
def two_versions(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create(Publish=True)
    client.update_function_configuration(FunctionName="f", Description="2")
    server.release()
    client.publish_version(FunctionName="f")


def weights(**shares: float) -> dict[str, Any]:
    return {"AdditionalVersionWeights": {name[1:]: share for name, share in shares.items()}}


@pytest.mark.usefixtures("two_versions")
def test_create_get_update_delete(server: Harness, client: Any) -> None:
    made = client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 201
    made.pop("ResponseMetadata")
    revision = made.pop("RevisionId")
    assert made == {"AliasArn": f"{ARN}:f:live", "Name": "live", "FunctionVersion": "1", "Description": ""}
    assert server.deployments.aliases == {("f", "live"): ("1", {})}
    updated = client.update_alias(
        FunctionName="f", Name="live", Description="d", RoutingConfig=weights(v2=0.25), RevisionId=revision
    )
    assert updated["RoutingConfig"] == weights(v2=0.25)
    assert updated["FunctionVersion"] == "1"
    assert updated["RevisionId"] != revision
    assert server.deployments.aliases == {("f", "live"): ("1", {"2": 0.25})}
    got = client.get_alias(FunctionName="f", Name="live")
    for member in ("RoutingConfig", "Description", "RevisionId"):
        assert got[member] == updated[member]
    cleared = client.update_alias(FunctionName="f", Name="live", FunctionVersion="2", RoutingConfig=weights())
    assert "RoutingConfig" not in cleared
    assert server.deployments.aliases == {("f", "live"): ("2", {})}
    for _ in range(2):
        assert client.delete_alias(FunctionName="f", Name="live")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert server.deployments.aliases == {}


@pytest.mark.usefixtures("two_versions")
def test_refusals(client: Any) -> None:
    create, update = client.create_alias, client.update_alias
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    new = {"FunctionName": "f", "Name": "new", "FunctionVersion": "1"}
    assert refusal(create, **{**new, "Name": "live"}) == (
        "ResourceConflictException",
        f"Alias already exists: {ARN}:f:live",
    )
    assert refusal(create, **new, RoutingConfig=weights(v1=0.5, v2=0.5)) == (
        INVALID,
        "Number of items in AdditionalVersionWeights cannot be greater than 1",
    )
    assert refusal(create, **new, RoutingConfig=weights(v1=0.5)) == (
        INVALID,
        "Invalid function version 1. Function version 1 is already included in routing configuration.",
    )
    assert refusal(create, **{**new, "FunctionVersion": "$LATEST"}, RoutingConfig=weights(v1=0.5)) == (
        INVALID,
        "$LATEST is not supported for an alias pointing to more than 1 version",
    )
    missing = ("ResourceNotFoundException", f"Function not found: {ARN}:f:9")
    assert refusal(create, **{**new, "FunctionVersion": "9"}) == missing
    assert refusal(create, **new, RoutingConfig=weights(v9=0.5)) == missing
    assert refusal(create, **{**new, "FunctionName": "g"}) == (
        "ResourceNotFoundException",
        f"Function not found: {ARN}:g",
    )
    assert refusal(create, **new, RoutingConfig=weights(v2=1.5))[0] == "ValidationException"
    assert (
        refusal(create, **new, RoutingConfig={"AdditionalVersionWeights": {"$LATEST": 0.5}})[0] == "ValidationException"
    )
    assert refusal(create, **{**new, "Name": "12"})[0] == "ValidationException"
    assert refusal(client.get_alias, FunctionName="f", Name="no") == (
        "ResourceNotFoundException",
        f"Cannot find alias arn: {ARN}:f:no",
    )
    assert refusal(update, FunctionName="f", Name="no") == (
        "ResourceNotFoundException",
        f"Alias not found: {ARN}:f:no",
    )
    assert refusal(update, FunctionName="f", Name="live", RevisionId="x")[0] == "PreconditionFailedException"
    client.update_alias(FunctionName="f", Name="live", RoutingConfig=weights(v2=1.0))
    assert refusal(update, FunctionName="f", Name="live", FunctionVersion="2")[0] == INVALID
    assert refusal(client.delete_function, FunctionName="f", Qualifier="2")[0] == "ResourceConflictException"


@pytest.mark.usefixtures("two_versions")
def test_versions_with_different_roles_cannot_share(server: Harness, client: Any) -> None:
    client.update_function_configuration(FunctionName="f", Role="arn:aws:iam::123456789012:role/other")
    server.release()
    client.publish_version(FunctionName="f")
    params = {"FunctionName": "f", "Name": "a", "FunctionVersion": "1"}
    assert refusal(client.create_alias, **params, RoutingConfig=weights(v3=0.5))[0] == INVALID


@pytest.mark.usefixtures("two_versions")
def test_list_aliases(client: Any) -> None:
    for name, version in (("c", "1"), ("a", "2"), ("b", "1")):
        client.create_alias(FunctionName="f", Name=name, FunctionVersion=version)
    client.update_alias(FunctionName="f", Name="c", RoutingConfig=weights(v2=0.1))

    def names(**params: Any) -> list[str]:
        pages = client.get_paginator("list_aliases").paginate(FunctionName="f", **params)
        return [alias["Name"] for page in pages for alias in page["Aliases"]]

    assert names() == ["a", "b", "c"]
    assert names(PaginationConfig={"PageSize": 1}) == ["a", "b", "c"]
    assert names(FunctionVersion="2") == ["a", "c"]
    assert refusal(client.list_aliases, FunctionName="g")[0] == "ResourceNotFoundException"
