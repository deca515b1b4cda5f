"""TenancyConfig in the API: what is answered and told, that it stays, and what can not be had with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from .harness import OTHER_ZIP, Harness, refusal, request

PER_TENANT = {"TenantIsolationMode": "PER_TENANT"}
INVALID = "InvalidParameterValueException"


@pytest.fixture
def isolated(server: Harness, create: Callable[..., Any], client: Any) -> Any:
    """`f`, isolated per tenant, with version 1 and the alias `live` of it."""
    answer = create("f", TenancyConfig=PER_TENANT, Publish=True)
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    return answer


def test_every_configuration_answers_it(isolated: Any, server: Harness, client: Any) -> None:
    assert isolated["TenancyConfig"] == PER_TENANT
    for qualifier in ("$LATEST", "1", "live"):
        found = client.get_function_configuration(FunctionName="f", Qualifier=qualifier)
        assert found["TenancyConfig"] == PER_TENANT
    assert client.get_function(FunctionName="f")["Configuration"]["TenancyConfig"] == PER_TENANT
    assert [each["TenancyConfig"] for each in client.list_functions()["Functions"]] == [PER_TENANT]
    assert len(client.list_versions_by_function(FunctionName="f")["Versions"]) == 2
    assert server.deployments.active["f", "$LATEST"].tenancy
    assert server.deployments.active["f", "1"].tenancy


def test_it_stays_through_updates_and_restarts(isolated: Any, server: Harness, client: Any) -> None:
    client.update_function_code(FunctionName="f", ZipFile=OTHER_ZIP)
    server.release()
    answer = client.update_function_configuration(FunctionName="f", Timeout=9)
    assert answer["TenancyConfig"] == PER_TENANT
    server.release()
    assert client.publish_version(FunctionName="f")["TenancyConfig"] == PER_TENANT
    server.stop()
    server.start()
    client = server.client()
    assert client.get_function_configuration(FunctionName="f")["TenancyConfig"] == PER_TENANT
    assert all(server.deployments.active["f", version].tenancy for version in ("$LATEST", "1", "2"))


def test_it_can_not_be_turned_on_later(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    assert "TenancyConfig" not in create("plain")
    _send_more(client, "UpdateFunctionConfiguration", {"TenancyConfig": PER_TENANT})
    client.update_function_configuration(FunctionName="plain", Timeout=9)
    server.release()
    found = client.get_function_configuration(FunctionName="plain")
    assert found["Timeout"] == 9
    assert "TenancyConfig" not in found
    assert not server.deployments.active["plain", "$LATEST"].tenancy


def _send_more(client: Any, operation: str, members: dict[str, Any]) -> None:
    """Members that the SDK does not know, in the body of each such call."""

    def add(params: dict[str, Any], **_: object) -> None:
        params["body"] = json.dumps({**json.loads(params["body"]), **members}).encode()

    client.meta.events.register(f"before-call.lambda.{operation}", add)


def test_what_the_model_refuses(client: Any) -> None:
    code, text = refusal(client.create_function, **request(TenancyConfig={"TenantIsolationMode": "NONE"}))
    assert code == "ValidationException"
    assert text == (
        "1 validation error detected: Value 'NONE' at 'tenancyConfig.tenantIsolationMode' failed to satisfy "
        "constraint: Member must satisfy enum value set: [PER_TENANT]"
    )
    code, text = refusal(client.create_function, **request(TenancyConfig={}))
    assert (code, "'tenancyConfig.tenantIsolationMode'" in text) == ("ValidationException", True)


@pytest.mark.usefixtures("isolated")
def test_what_can_not_be_had_with_it(client: Any) -> None:
    snap_start = {"SnapStart": {"ApplyOn": "PublishedVersions"}}
    provisioned = "Provisioned Concurrency"
    for call, params, feature in (
        (client.create_function, request("g", TenancyConfig=PER_TENANT, **snap_start), "SnapStart"),
        (client.update_function_configuration, {"FunctionName": "f", **snap_start}, "SnapStart"),
        (client.create_function_url_config, {"FunctionName": "f", "AuthType": "NONE"}, "FunctionUrl"),
        (
            client.create_function_url_config,
            {"FunctionName": "f", "AuthType": "AWS_IAM", "Qualifier": "live"},
            "FunctionUrl",
        ),
        (
            client.put_provisioned_concurrency_config,
            {"FunctionName": "f", "Qualifier": "1", "ProvisionedConcurrentExecutions": 1},
            provisioned,
        ),
        (
            client.put_provisioned_concurrency_config,
            {"FunctionName": "f", "Qualifier": "live", "ProvisionedConcurrentExecutions": 1},
            provisioned,
        ),
    ):
        text = f"{feature} is not supported for functions with tenant isolation mode."
        assert refusal(call, **params) == (INVALID, text)
    assert client.list_function_url_configs(FunctionName="f")["FunctionUrlConfigs"] == []
