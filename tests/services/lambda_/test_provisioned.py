"""Provisioned concurrency in the API: who may have how much, AWS's refusals, and what the data plane is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from lambent.core.events import ProvisionedReason, ProvisionedState, ProvisionedStatus

from .harness import ARN, OTHER_ZIP, Harness, make_zip, refusal, request

MISSING = "No Provisioned Concurrency Config found for this function"
VERSION_TAKEN = "Version is pointed by a Provisioned Concurrency alias"
ALIAS_TAKEN = "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version"
UNPUBLISHED = "Provisioned Concurrency Configs cannot be applied to unpublished function versions."


@pytest.fixture
def put(client: Any) -> Callable[..., Any]:
    def call(qualifier: str, count: int, name: str = "f") -> Any:
        return client.put_provisioned_concurrency_config(
            FunctionName=name, Qualifier=qualifier, ProvisionedConcurrentExecutions=count
        )

    return call


@pytest.fixture
def refused(client: Any) -> Callable[..., tuple[str, str]]:
    def call(qualifier: str, count: int, name: str = "f") -> tuple[str, str]:
        return refusal(
            client.put_provisioned_concurrency_config,
            FunctionName=name,
            Qualifier=qualifier,
            ProvisionedConcurrentExecutions=count,
        )

    return call


@pytest.fixture
def versions(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    """f with versions 1 and 2 and the alias `live` of 1."""
    create("f", Publish=True)
    client.update_function_code(FunctionName="f", ZipFile=OTHER_ZIP, Publish=True)
    server.release()
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")


@pytest.mark.usefixtures("versions")
def test_what_is_answered_and_told(server: Harness, client: Any, put: Callable[..., Any]) -> None:
    answer = put("live", 5)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert {name: value for name, value in answer.items() if name not in ("ResponseMetadata", "LastModified")} == {
        "RequestedProvisionedConcurrentExecutions": 5,
        "AvailableProvisionedConcurrentExecutions": 0,
        "AllocatedProvisionedConcurrentExecutions": 0,
        "Status": "IN_PROGRESS",
    }
    assert server.deployments.provisioned == {("f", "live"): 5}
    server.deployments.status = ProvisionedStatus(1, 5, 5, ProvisionedState.READY)
    found = client.get_provisioned_concurrency_config(FunctionName="f", Qualifier="live")
    assert (found["Status"], found["LastModified"]) == ("READY", answer["LastModified"])
    assert "StatusReason" not in found
    server.deployments.status = ProvisionedStatus(1, 0, 0, ProvisionedState.FAILED, ProvisionedReason.INIT_FAILED)
    put("2", 1)
    page = client.list_provisioned_concurrency_configs(FunctionName="f", MaxItems=1)
    (first,) = page["ProvisionedConcurrencyConfigs"]
    assert (first["FunctionArn"], first["StatusReason"]) == (f"{ARN}:f:2", "FUNCTION_ERROR_INIT_FAILURE")
    page = client.list_provisioned_concurrency_configs(FunctionName="f", Marker=page["NextMarker"])
    assert [each["FunctionArn"] for each in page["ProvisionedConcurrencyConfigs"]] == [f"{ARN}:f:live"]
    server.restart()
    assert server.deployments.provisioned == {("f", "live"): 5, ("f", "2"): 1}
    client = server.client()
    for _ in range(2):  # one that is not there is what was wanted
        answer = client.delete_provisioned_concurrency_config(FunctionName="f", Qualifier="live")
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert server.deployments.provisioned == {("f", "2"): 1}
    code, message = refusal(client.get_provisioned_concurrency_config, FunctionName="f", Qualifier="live")
    assert (code, message) == ("ProvisionedConcurrencyConfigNotFoundException", MISSING)


@pytest.mark.usefixtures("versions")
def test_what_can_not_have_it(server: Harness, client: Any, refused: Callable[..., tuple[str, str]]) -> None:
    invalid = "InvalidParameterValueException"
    assert refused("$LATEST", 1) == (invalid, UNPUBLISHED)
    client.create_alias(FunctionName="f", Name="newest", FunctionVersion="$LATEST")
    assert refused("newest", 1) == (invalid, UNPUBLISHED)
    assert refused("10", 1) == ("ResourceNotFoundException", f"Function not found: {ARN}:f:10")
    assert refused("none", 1) == ("ResourceNotFoundException", f"Cannot find alias arn: {ARN}:f:none")
    assert refused("1", 1, "g") == ("ResourceNotFoundException", f"Function not found: {ARN}:g:1")
    assert refused("1", 0) == (
        "ValidationException",
        "1 validation error detected: Value '0' at 'provisionedConcurrentExecutions' failed to satisfy constraint: "
        "Member must have value greater than or equal to 1",
    )
    for operation in (client.get_provisioned_concurrency_config, client.delete_provisioned_concurrency_config):
        code, message = refusal(operation, FunctionName="f", Qualifier="$LATEST")
        assert (code, message) == (invalid, "The function resource provided must be an alias or a published version.")
    client.create_function(**request("s", SnapStart={"ApplyOn": "PublishedVersions"}, Publish=True))
    server.release()
    assert refused("1", 1, "s") == (
        invalid,
        "Provisioned Concurrency is not supported for functions with SnapStart enabled.",
    )
    server.hold()
    client.update_function_code(FunctionName="f", ZipFile=make_zip("three"), Publish=True)
    code, message = refused("3", 1)
    assert code == "ResourceConflictException"
    assert message.endswith("The function is currently in the following state: Pending")


@pytest.mark.usefixtures("versions")
def test_one_configuration_for_each_version(
    server: Harness, client: Any, put: Callable[..., Any], refused: Callable[..., tuple[str, str]]
) -> None:
    conflict = "ResourceConflictException"
    put("live", 1)
    assert refused("1", 1) == (conflict, VERSION_TAKEN)
    client.create_alias(FunctionName="f", Name="other", FunctionVersion="1")
    assert refused("other", 1) == (conflict, ALIAS_TAKEN)
    put("2", 1)
    weights = {"AdditionalVersionWeights": {"2": 0.5}}
    assert refusal(client.update_alias, FunctionName="f", Name="live", FunctionVersion="2") == (conflict, ALIAS_TAKEN)
    assert refusal(client.update_alias, FunctionName="f", Name="live", RoutingConfig=weights) == (conflict, ALIAS_TAKEN)
    client.update_alias(FunctionName="f", Name="other", FunctionVersion="2")
    assert refused("other", 1) == (conflict, ALIAS_TAKEN)
    client.delete_provisioned_concurrency_config(FunctionName="f", Qualifier="2")
    client.update_alias(FunctionName="f", Name="live", RoutingConfig=weights)
    assert refused("2", 1) == (conflict, VERSION_TAKEN)
    client.update_alias(FunctionName="f", Name="live", RoutingConfig={})
    assert refusal(client.update_alias, FunctionName="f", Name="live", FunctionVersion="$LATEST") == (
        "InvalidParameterValueException",
        UNPUBLISHED,
    )
    put("2", 1)
    client.delete_alias(FunctionName="f", Name="live")
    client.delete_alias(FunctionName="f", Name="other")
    client.delete_function(FunctionName="f", Qualifier="2")
    assert client.list_provisioned_concurrency_configs(FunctionName="f")["ProvisionedConcurrencyConfigs"] == []
    put("1", 1)


@pytest.mark.usefixtures("versions")
def test_out_of_what_is_reserved(
    server: Harness, client: Any, put: Callable[..., Any], refused: Callable[..., tuple[str, str]]
) -> None:
    invalid = "InvalidParameterValueException"
    client.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=5)
    put("live", 3)
    too_many = (
        "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for function"
    )
    assert refused("2", 3) == (invalid, too_many)
    put("2", 2)
    assert refused("live", 4) == (invalid, too_many)
    assert refusal(client.put_function_concurrency, FunctionName="f", ReservedConcurrentExecutions=4) == (
        invalid,
        " ReservedConcurrentExecutions  4 should not be lower than function's total provisioned concurrency [5].",
    )
    account = client.get_account_settings()["AccountLimit"]
    assert account["UnreservedConcurrentExecutions"] == 995
    client.delete_function_concurrency(FunctionName="f")
    assert client.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"] == 995
    put("live", 10)
    assert client.get_account_settings()["AccountLimit"]["UnreservedConcurrentExecutions"] == 988


@pytest.mark.usefixtures("versions")
def test_out_of_what_is_not_reserved(
    client: Any, create: Callable[..., Any], put: Callable[..., Any], refused: Callable[..., tuple[str, str]]
) -> None:
    invalid = "InvalidParameterValueException"
    minimum = (
        "Specified ConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below its "
        "minimum value of [100]."
    )
    assert refused("1", 1_001) == (
        invalid,
        "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency [1000].",
    )
    assert refused("1", 901) == (invalid, minimum)
    put("1", 900)
    put("1", 800)
    assert refused("2", 101) == (invalid, minimum)
    create("g", Publish=True)
    assert refused("1", 201, "g") == (
        invalid,
        "Specified ConcurrentExecutions for function is greater than account's unreserved concurrency [200].",
    )
    put("1", 60, "g")
    assert refusal(client.put_function_concurrency, FunctionName="g", ReservedConcurrentExecutions=101) == (
        invalid,
        "Specified ReservedConcurrentExecutions for function decreases account's UnreservedConcurrentExecution below "
        "its minimum value of [100].",
    )
    client.put_function_concurrency(FunctionName="g", ReservedConcurrentExecutions=100)
    assert refused("2", 1) == (invalid, minimum)
