"""Function URLs: create, read, change, delete, list; what the data plane hears; every refusal in AWS's words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lambent.model.function_url import Cors, InvokeMode, UrlAuthType, UrlSpec, url_base

from .harness import ACCOUNT, ARN, Harness, refusal

MISSING = ("ResourceNotFoundException", "The resource you requested does not exist.")
ANYBODY = "*"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Harness]:
    harness = Harness(tmp_path, url_base=url_base("localhost", 9400)).start()
    yield harness
    harness.stop()


@pytest.fixture
def function(client: Any, create: Callable[..., Any]) -> None:
    create(Publish=True)
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")


def spec_of(server: Harness, answer: dict[str, Any]) -> UrlSpec:
    url_id = re.fullmatch(r"http://([a-z0-9]{32})\.lambda-url\.eu-west-1\.localhost:9400/", answer["FunctionUrl"])
    assert url_id is not None
    return server.deployments.urls[url_id[1]][0]


def permits(server: Harness, answer: dict[str, Any], caller: str) -> bool:
    return server.deployments.urls[spec_of(server, answer).id][1](caller)


def allow(client: Any, sid: str = "public", **changes: Any) -> None:
    """The two statements that the console and SAM write."""
    common = {"FunctionName": "f", "Principal": "*", **changes}
    client.add_permission(
        **common, StatementId=sid, Action="lambda:InvokeFunctionUrl", FunctionUrlAuthType=changes.get("auth", "NONE")
    )
    client.add_permission(**common, StatementId=f"{sid}-2", Action="lambda:InvokeFunction", InvokedViaFunctionUrl=True)


@pytest.mark.usefixtures("function")
def test_create_get_update_delete(server: Harness, client: Any) -> None:
    cors = {"AllowCredentials": False, "AllowOrigins": ["https://a.example"], "AllowMethods": ["*"], "MaxAge": 0}
    made = client.create_function_url_config(FunctionName="f", AuthType="NONE", Cors=cors)
    assert made.pop("ResponseMetadata")["HTTPStatusCode"] == 201
    assert set(made) == {"FunctionUrl", "FunctionArn", "AuthType", "Cors", "CreationTime"}
    assert (made["FunctionArn"], made["AuthType"], made["Cors"]) == (f"{ARN}:f", "NONE", cors)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", made["CreationTime"])
    spec = spec_of(server, made)
    assert (spec.key.name, spec.qualifier, spec.auth_type) == ("f", None, UrlAuthType.NONE)
    assert spec.cors == Cors(False, None, ("*",), ("https://a.example",), None, 0)

    got = client.get_function_url_config(FunctionName="f")
    assert got["InvokeMode"] == "BUFFERED"
    assert got["LastModifiedTime"] == made["CreationTime"]

    changed = client.update_function_url_config(FunctionName="f", AuthType="AWS_IAM", InvokeMode="RESPONSE_STREAM")
    assert changed["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert (changed["AuthType"], changed["InvokeMode"], changed["Cors"]) == ("AWS_IAM", "RESPONSE_STREAM", cors)
    assert changed["FunctionUrl"] == made["FunctionUrl"]
    assert changed["LastModifiedTime"] > changed["CreationTime"]
    assert spec_of(server, changed).invoke_mode is InvokeMode.RESPONSE_STREAM
    without = client.update_function_url_config(FunctionName="f", Cors={})
    assert "Cors" not in without

    gone = client.delete_function_url_config(FunctionName="f")
    assert gone["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert server.deployments.urls == {}
    assert refusal(client.get_function_url_config, FunctionName="f") == MISSING
    again = client.create_function_url_config(FunctionName="f", AuthType="NONE", InvokeMode="BUFFERED")
    assert again["InvokeMode"] == "BUFFERED"
    assert again["FunctionUrl"] != made["FunctionUrl"]


@pytest.mark.usefixtures("function")
def test_an_alias_has_a_url_of_its_own(server: Harness, client: Any) -> None:
    client.create_function_url_config(FunctionName="f", AuthType="NONE")
    made = client.create_function_url_config(FunctionName="f", Qualifier="live", AuthType="AWS_IAM")
    assert made["FunctionArn"] == f"{ARN}:f:live"
    assert spec_of(server, made).arn == f"{ARN}:f:live"
    assert client.get_function_url_config(FunctionName="f:live")["AuthType"] == "AWS_IAM"
    client.delete_function_url_config(FunctionName="f")
    assert refusal(client.get_function_url_config, FunctionName="f") == MISSING
    assert client.get_function_url_config(FunctionName="f", Qualifier="live")["FunctionUrl"] == made["FunctionUrl"]
    # The URL outlives its alias; requests to it are then refused.
    client.delete_alias(FunctionName="f", Name="live")
    assert client.get_function_url_config(FunctionName="f", Qualifier="live")["FunctionUrl"] == made["FunctionUrl"]


@pytest.mark.usefixtures("function")
def test_refusals(client: Any) -> None:
    client.create_function_url_config(FunctionName="f", AuthType="NONE")
    assert refusal(client.create_function_url_config, FunctionName="f", AuthType="NONE") == (
        "ResourceConflictException",
        f"Failed to create function url config for [functionArn = {ARN}:f]. Error message:  "
        "FunctionUrlConfig exists for this Lambda function",
    )
    absent = ("ResourceNotFoundException", "Function does not exist")
    assert refusal(client.create_function_url_config, FunctionName="g", AuthType="NONE") == absent
    assert refusal(client.create_function_url_config, FunctionName="f", Qualifier="x", AuthType="NONE") == absent
    assert refusal(client.list_function_url_configs, FunctionName="g") == absent
    assert refusal(client.get_function_url_config, FunctionName="g") == MISSING
    assert refusal(client.update_function_url_config, FunctionName="f", Qualifier="live") == MISSING
    assert refusal(client.delete_function_url_config, FunctionName="f", Qualifier="live") == MISSING
    for qualifier in ("1", "$LATEST"):
        code, message = refusal(
            client.create_function_url_config, FunctionName="f", Qualifier=qualifier, AuthType="NONE"
        )
        assert code == "ValidationException"
        assert r"((?!^\d+$)^[0-9a-zA-Z-_]+$)" in message
    for wrong in ({"AuthType": "ANY"}, {"Cors": {"MaxAge": 86_401}}, {"Cors": {"AllowMethods": ["OPTIONS"]}}, {}):
        arguments: dict[str, Any] = {"AuthType": "NONE", **wrong} if wrong else {}
        assert refusal(client.create_function_url_config, FunctionName="f", **arguments)[0] == "ValidationException"


@pytest.mark.usefixtures("function")
def test_list_pages(client: Any) -> None:
    names = [None, "a", "b", "live"]
    for alias in ("a", "b"):
        client.create_alias(FunctionName="f", Name=alias, FunctionVersion="1")
    for name in names:
        client.create_function_url_config(FunctionName="f", AuthType="NONE", **({"Qualifier": name} if name else {}))
    found: list[str] = []
    marker: dict[str, str] = {}
    while True:
        page = client.list_function_url_configs(FunctionName="f", MaxItems=1, **marker)
        found += [each["FunctionArn"] for each in page["FunctionUrlConfigs"]]
        if "NextMarker" not in page:
            break
        marker = {"Marker": page["NextMarker"]}
    assert found == [f"{ARN}:f", f"{ARN}:f:a", f"{ARN}:f:b", f"{ARN}:f:live"]


@pytest.mark.usefixtures("function")
def test_urls_survive_a_restart_and_end_with_their_function(server: Harness, client: Any) -> None:
    made = client.create_function_url_config(FunctionName="f", AuthType="NONE", Cors={"AllowOrigins": ["*"]})
    allow(client)
    before = spec_of(server, made)
    server.restart()
    client = server.client()
    assert spec_of(server, made) == before
    assert permits(server, made, ANYBODY)
    assert client.get_function_url_config(FunctionName="f")["FunctionUrl"] == made["FunctionUrl"]
    client.delete_function(FunctionName="f")
    server.restart()
    assert server.deployments.urls == {}


@pytest.mark.usefixtures("function")
def test_the_policy_decides_who_may_call(server: Harness, client: Any) -> None:
    made = client.create_function_url_config(FunctionName="f", AuthType="NONE")
    assert not permits(server, made, ANYBODY)
    client.add_permission(
        FunctionName="f",
        StatementId="one",
        Principal="*",
        Action="lambda:InvokeFunctionUrl",
        FunctionUrlAuthType="NONE",
    )
    assert not permits(server, made, ANYBODY), "lambda:InvokeFunction is needed too"
    client.add_permission(
        FunctionName="f", StatementId="two", Principal="*", Action="lambda:InvokeFunction", InvokedViaFunctionUrl=True
    )
    assert permits(server, made, ANYBODY)
    # The statement was for AuthType NONE.
    client.update_function_url_config(FunctionName="f", AuthType="AWS_IAM")
    assert not permits(server, made, "111111111111")
    client.update_function_url_config(FunctionName="f", AuthType="NONE")
    client.remove_permission(FunctionName="f", StatementId="one")
    assert not permits(server, made, ANYBODY)


@pytest.mark.usefixtures("function")
def test_the_policy_of_an_alias_is_its_own(server: Harness, client: Any) -> None:
    made = client.create_function_url_config(FunctionName="f", Qualifier="live", AuthType="AWS_IAM")
    other = "222222222222"
    for sid, action in (("a", "lambda:InvokeFunctionUrl"), ("b", "lambda:InvokeFunction")):
        client.add_permission(FunctionName="f", StatementId=sid, Principal=other, Action=action)
    assert not permits(server, made, other), "granted on the function, not on the alias"
    for sid, action in (("a", "lambda:InvokeFunctionUrl"), ("b", "lambda:InvokeFunction")):
        client.add_permission(FunctionName="f", Qualifier="live", StatementId=sid, Principal=other, Action=action)
    assert permits(server, made, other)
    assert not permits(server, made, "333333333333")
    client.delete_alias(FunctionName="f", Name="live")
    assert not permits(server, made, other), "the policy went with the alias"
    assert spec_of(server, made).key.account == ACCOUNT


@pytest.mark.parametrize(
    ("domain", "url"),
    [
        ("localhost", "http://i.lambda-url.r.localhost:9400/"),
        ("Example.com", "http://i.lambda-url.r.example.com:9400/"),
        ("example.com:8080", "http://i.lambda-url.r.example.com:8080/"),
        ("http://example.com", "http://i.lambda-url.r.example.com/"),
        ("https://example.com/", "https://i.lambda-url.r.example.com/"),
        ("https://example.com:8443", "https://i.lambda-url.r.example.com:8443/"),
    ],
)
def test_where_urls_lie(domain: str, url: str) -> None:
    assert url_base(domain, 9400).url("i", "r") == url


@pytest.mark.parametrize("domain", ["", "ftp://x", "a b", "x:port", "https://", "x/y", "a..b", "x\r\n"])
def test_what_is_no_domain(domain: str) -> None:
    with pytest.raises(ValueError, match="not a domain"):
        url_base(domain, 9400)
