"""Capacity providers and functions on them: what is kept, told to the data plane, and refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from .harness import ACCOUNT, ARN, REGION, ROLE, Harness, refusal, request

PROVIDER = f"arn:aws:lambda:{REGION}:{ACCOUNT}:capacity-provider:pool"
INVALID = "InvalidParameterValueException"
NETWORK = {"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]}
PERMISSIONS = {"CapacityProviderOperatorRoleArn": ROLE}


def provider(name: str = "pool", **more: Any) -> dict[str, Any]:
    return {"CapacityProviderName": name, "VpcConfig": NETWORK, "PermissionsConfig": PERMISSIONS, **more}


def on(arn: str = PROVIDER, **more: Any) -> dict[str, Any]:
    return {"LambdaManagedInstancesCapacityProviderConfig": {"CapacityProviderArn": arn, **more}}


@pytest.fixture
def pool(client: Any) -> Any:
    return client.create_capacity_provider(**provider())["CapacityProvider"]


def test_a_provider_from_creation_to_deletion(client: Any) -> None:
    scaling = {"MaxVCpuCount": 8, "ScalingMode": "Auto"}
    instances = {"Architectures": ["x86_64"], "AllowedInstanceTypes": ["m7i.*"]}
    answer = client.create_capacity_provider(
        **provider(CapacityProviderScalingConfig=scaling, InstanceRequirements=instances)
    )
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 202
    made = answer["CapacityProvider"]
    assert made.pop("LastModified")
    assert made == {
        "CapacityProviderArn": PROVIDER,
        "State": "Active",
        "VpcConfig": NETWORK,
        "PermissionsConfig": PERMISSIONS,
        "InstanceRequirements": instances,
        "CapacityProviderScalingConfig": scaling,
    }
    for name in ("pool", PROVIDER):
        found = client.get_capacity_provider(CapacityProviderName=name)["CapacityProvider"]
        assert found["CapacityProviderArn"] == PROVIDER
    changed = client.update_capacity_provider(
        CapacityProviderName="pool", CapacityProviderScalingConfig={"MaxVCpuCount": 16}
    )["CapacityProvider"]
    assert changed["CapacityProviderScalingConfig"] == {"MaxVCpuCount": 16}
    assert changed["InstanceRequirements"] == instances
    assert refusal(client.create_capacity_provider, **provider())[0] == "ResourceConflictException"
    gone = client.delete_capacity_provider(CapacityProviderName="pool")["CapacityProvider"]
    assert gone["State"] == "Deleting"
    code, message = refusal(client.get_capacity_provider, CapacityProviderName="pool")
    assert (code, message) == ("ResourceNotFoundException", f"Capacity provider not found: {PROVIDER}")


def test_lists_have_pages(client: Any) -> None:
    for name in ("b", "a", "c"):
        client.create_capacity_provider(**provider(name))
    first = client.list_capacity_providers(MaxItems=2)
    rest = client.list_capacity_providers(Marker=first["NextMarker"])
    found = [each["CapacityProviderArn"][-1] for each in first["CapacityProviders"] + rest["CapacityProviders"]]
    assert found == ["a", "b", "c"]
    assert "NextMarker" not in rest
    assert client.list_capacity_providers(State="Failed")["CapacityProviders"] == []


def test_a_function_on_a_provider(pool: Any, server: Harness, create: Callable[..., Any], client: Any) -> None:
    config = on(PerExecutionEnvironmentMaxConcurrency=10, ExecutionEnvironmentMemoryGiBPerVCpu=4.0)
    made = create("f", CapacityProviderConfig=config, MemorySize=8_192, Publish=True)
    assert made["CapacityProviderConfig"] == config
    assert made["LoggingConfig"]["LogFormat"] == "JSON"
    spec = server.deployments.active["f", "1"]
    assert (spec.concurrency_per_environment, spec.memory_gib_per_vcpu, spec.is_shared) == (10, 4.0, True)
    listed = client.list_function_versions_by_capacity_provider(CapacityProviderName="pool")
    assert listed["CapacityProviderArn"] == PROVIDER
    assert listed["FunctionVersions"] == [
        {"FunctionArn": f"{ARN}:f:$LATEST", "State": "Active"},
        {"FunctionArn": f"{ARN}:f:1", "State": "Active"},
    ]
    page = client.list_function_versions_by_capacity_provider(CapacityProviderName="pool", MaxItems=1)
    rest = client.list_function_versions_by_capacity_provider(CapacityProviderName="pool", Marker=page["NextMarker"])
    assert page["FunctionVersions"] + rest["FunctionVersions"] == listed["FunctionVersions"]
    client.update_function_configuration(
        FunctionName="f", CapacityProviderConfig=on(PerExecutionEnvironmentMaxConcurrency=3)
    )
    server.release()
    assert server.deployments.active["f", "$LATEST"].concurrency_per_environment == 3
    assert server.deployments.active["f", "1"].concurrency_per_environment == 10
    assert client.publish_version(FunctionName="f")["Version"] == "2"
    assert refusal(client.delete_capacity_provider, CapacityProviderName="pool")[0] == "ResourceConflictException"
    server.restart()
    client = server.client()
    assert server.deployments.active["f", "1"].concurrency_per_environment == 10
    client.delete_function(FunctionName="f")
    client.delete_capacity_provider(CapacityProviderName="pool")


def test_what_is_not_said_has_defaults(pool: Any, server: Harness, create: Callable[..., Any]) -> None:
    made = create("f", CapacityProviderConfig=on(), MemorySize=None)
    assert made["MemorySize"] == 2_048
    said = made["CapacityProviderConfig"]["LambdaManagedInstancesCapacityProviderConfig"]
    assert said["PerExecutionEnvironmentMaxConcurrency"] == 16
    assert server.deployments.active["f", "$LATEST"].concurrency_per_environment == 16
    assert "CapacityProviderConfig" not in create("plain")
    assert not server.deployments.active["plain", "$LATEST"].is_managed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MemorySize": 1_024}, "at least 2048 MB"),
        ({"LoggingConfig": {"LogFormat": "Text"}}, "LogFormat JSON"),
        ({"CapacityProviderConfig": on(ExecutionEnvironmentMemoryGiBPerVCpu=4.0)}, "at least one vCPU"),
        ({"CapacityProviderConfig": on(ExecutionEnvironmentMemoryGiBPerVCpu=3.0)}, "2, 4 or 8"),
        ({"CapacityProviderConfig": on(PerExecutionEnvironmentMaxConcurrency=65)}, "at most 64"),
        ({"TenancyConfig": {"TenantIsolationMode": "PER_TENANT"}}, "tenant isolation"),
        ({"SnapStart": {"ApplyOn": "PublishedVersions"}}, "SnapStart"),
        ({"Runtime": "nodejs22.x"}, "Set PerExecutionEnvironmentMaxConcurrency to 1."),
        ({"PublishTo": "LATEST_PUBLISHED"}, "PublishTo"),
    ],
)
def test_what_does_not_fit_is_refused(pool: Any, client: Any, changes: dict[str, Any], words: str) -> None:
    code, message = refusal(client.create_function, **request("f", **{"CapacityProviderConfig": on(), **changes}))
    assert code == INVALID
    assert words in message


def test_more_that_is_refused(pool: Any, server: Harness, client: Any, create: Callable[..., Any]) -> None:
    missing = PROVIDER.replace("pool", "none")
    code, message = refusal(client.create_function, **request("f", CapacityProviderConfig=on(missing)))
    assert (code, message) == ("ResourceNotFoundException", f"Capacity provider not found: {missing}")
    client.create_capacity_provider(**provider("arm", InstanceRequirements={"Architectures": ["arm64"]}))
    arm = PROVIDER.replace("pool", "arm")
    assert refusal(client.create_function, **request("f", CapacityProviderConfig=on(arm)))[0] == INVALID
    create("plain")
    assert (
        refusal(client.update_function_configuration, FunctionName="plain", CapacityProviderConfig=on())[0] == INVALID
    )
    too_much = refusal(client.update_function_configuration, FunctionName="plain", MemorySize=20_000)
    assert too_much[0] == "ValidationException"
    create("f", CapacityProviderConfig=on(), Publish=True)
    code, _ = refusal(
        client.put_provisioned_concurrency_config, FunctionName="f", Qualifier="1", ProvisionedConcurrentExecutions=1
    )
    assert code == INVALID
    single = on(PerExecutionEnvironmentMaxConcurrency=1)
    create("node", Runtime="nodejs22.x", CapacityProviderConfig=single)
    assert server.deployments.active["node", "$LATEST"].is_managed
