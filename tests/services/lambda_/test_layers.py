"""Layers: versions that are never given twice, who may use them, and functions that keep what they have."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from typing import Any

import pytest

from lambent.model.names import FunctionKey
from lambent.services.lambda_.configuration import fingerprint
from lambent.store.records import LayerUse, VersionRecord

from .harness import ACCOUNT, OTHER_ZIP, REGION, ZIP, Harness, make_zip, refusal, request

INVALID = "InvalidParameterValueException"
NOT_FOUND = "ResourceNotFoundException"
DENIED = "AccessDeniedException"
GONE = "The resource you requested does not exist."
LAYER = f"arn:aws:lambda:{REGION}:{ACCOUNT}:layer"
OTHER_ACCOUNT = "210987654321"


def zeros(size: int) -> bytes:
    """A small zip of one large file."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(size & ((1 << 20) - 1)))
    return buffer.getvalue()


@pytest.fixture
def publish(client: Any) -> Callable[..., Any]:
    """Publish a version of a layer."""

    def make(name: str = "l", data: bytes = ZIP, **members: Any) -> Any:
        return client.publish_layer_version(LayerName=name, Content={"ZipFile": data}, **members)

    return make


def uses(configuration: dict[str, Any]) -> list[str]:
    return [layer["Arn"] for layer in configuration.get("Layers", [])]


# --- layers and versions -----------------------------------------------------------------------------------


def test_publish_and_get(server: Harness, client: Any, publish: Callable[..., Any]) -> None:
    made = publish(
        Description="d",
        CompatibleRuntimes=["python3.12", "nodejs20.x"],
        CompatibleArchitectures=["x86_64"],
        LicenseInfo="MIT",
    )
    assert made["ResponseMetadata"]["HTTPStatusCode"] == 201
    content = made["Content"]
    assert content["CodeSha256"] == base64.b64encode(hashlib.sha256(ZIP).digest()).decode()
    assert content["CodeSize"] == len(ZIP)
    assert server.fetch(content["Location"]).body == ZIP
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", made["CreatedDate"])
    described = {key: value for key, value in made.items() if key not in ("ResponseMetadata", "Content", "CreatedDate")}
    assert described == {
        "LayerArn": f"{LAYER}:l",
        "LayerVersionArn": f"{LAYER}:l:1",
        "Version": 1,
        "Description": "d",
        "CompatibleRuntimes": ["python3.12", "nodejs20.x"],
        "CompatibleArchitectures": ["x86_64"],
        "LicenseInfo": "MIT",
    }
    for got in (
        client.get_layer_version(LayerName="l", VersionNumber=1),
        client.get_layer_version(LayerName=f"{LAYER}:l", VersionNumber=1),
        client.get_layer_version_by_arn(Arn=f"{LAYER}:l:1"),
    ):
        assert {**got, **made, "ResponseMetadata": 0} == {**made, "ResponseMetadata": 0}
        assert server.fetch(got["Content"]["Location"]).body == ZIP


def test_what_was_not_said_is_not_answered(publish: Callable[..., Any]) -> None:
    made = publish()
    assert set(made) == {
        *("ResponseMetadata", "Content", "LayerArn", "LayerVersionArn", "Description", "CreatedDate", "Version")
    }
    assert made["Description"] == ""


def test_numbers_are_never_given_twice(server: Harness, publish: Callable[..., Any]) -> None:
    client = server.client()
    assert [publish()["Version"], publish()["Version"]] == [1, 2]
    for _ in range(2):  # it is gone, which is what was wanted
        answer = client.delete_layer_version(LayerName="l", VersionNumber=2)
        assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204
    client.delete_layer_version(LayerName="l", VersionNumber=1)
    assert client.list_layers()["Layers"] == []
    server.restart()
    client = server.client()
    assert client.publish_layer_version(LayerName="l", Content={"ZipFile": ZIP})["Version"] == 3
    assert refusal(client.get_layer_version, LayerName="l", VersionNumber=2) == (NOT_FOUND, GONE)


def test_lists(client: Any, publish: Callable[..., Any]) -> None:
    publish("b", CompatibleRuntimes=["python3.12"], CompatibleArchitectures=["x86_64"], LicenseInfo="x")
    publish("b", OTHER_ZIP, CompatibleRuntimes=["python3.13"], CompatibleArchitectures=["x86_64", "arm64"])
    publish("a")
    versions = client.list_layer_versions(LayerName="b")["LayerVersions"]
    assert [each["Version"] for each in versions] == [2, 1]
    assert set(versions[1]) == {
        *("LayerVersionArn", "Version", "Description", "CreatedDate"),
        *("CompatibleRuntimes", "CompatibleArchitectures", "LicenseInfo"),
    }

    def newest(**wanted: str) -> list[tuple[str, int]]:
        found = client.list_layers(**wanted)["Layers"]
        for each in found:
            assert each["LayerArn"] == f"{LAYER}:{each['LayerName']}"
        return [(each["LayerName"], each["LatestMatchingVersion"]["Version"]) for each in found]

    assert newest() == [("a", 1), ("b", 2)]
    assert newest(CompatibleRuntime="python3.12") == [("b", 1)]
    assert newest(CompatibleRuntime="python3.13", CompatibleArchitecture="arm64") == [("b", 2)]
    assert newest(CompatibleRuntime="python3.12", CompatibleArchitecture="arm64") == []
    filtered = client.list_layer_versions(
        LayerName="b", CompatibleArchitecture="x86_64", CompatibleRuntime="python3.12"
    )
    assert [each["Version"] for each in filtered["LayerVersions"]] == [1]
    assert client.list_layer_versions(LayerName="none")["LayerVersions"] == []


def test_pages(client: Any, publish: Callable[..., Any]) -> None:
    for name in ("c", "a", "b"):
        for text in ("1", "2", "3"):
            publish(name, make_zip(text))
    layers = client.get_paginator("list_layers").paginate(PaginationConfig={"PageSize": 2})
    pages = [[each["LayerName"] for each in page["Layers"]] for page in layers]
    assert pages == [["a", "b"], ["c"]]
    first = client.list_layer_versions(LayerName="a", MaxItems=2)
    client.delete_layer_version(LayerName="a", VersionNumber=2)
    rest = client.list_layer_versions(LayerName="a", MaxItems=2, Marker=first["NextMarker"])
    assert [each["Version"] for each in first["LayerVersions"] + rest["LayerVersions"]] == [3, 2, 1]
    assert "NextMarker" not in rest
    assert refusal(client.list_layers, Marker="made up")[0] == INVALID
    assert refusal(client.list_layers, MaxItems=51)[0] == "ValidationException"


def test_what_is_no_layer(client: Any, publish: Callable[..., Any]) -> None:
    publish()
    for call, params, expected in (
        (client.get_layer_version, {"LayerName": "l", "VersionNumber": 2}, (NOT_FOUND, GONE)),
        (client.get_layer_version, {"LayerName": "l", "VersionNumber": 2**63 - 1}, (NOT_FOUND, GONE)),
        (client.get_layer_version, {"LayerName": "none", "VersionNumber": 1}, (NOT_FOUND, GONE)),
        (client.get_layer_version_by_arn, {"Arn": f"{LAYER}:none:1"}, (NOT_FOUND, GONE)),
        (client.get_layer_version_by_arn, {"Arn": f"{LAYER}:l:{9**40}"}, (NOT_FOUND, GONE)),
        (client.get_layer_version_by_arn, {"Arn": "arn:aws:lambda:::awslayer:x"}, (NOT_FOUND, GONE)),
        (
            client.get_layer_version_by_arn,
            {"Arn": f"{LAYER}:l:1".replace(REGION, "us-east-1")},
            (NOT_FOUND, GONE),
        ),
        (
            client.get_layer_version,
            {"LayerName": "l", "VersionNumber": 0},
            (INVALID, "Layer Version Cannot be less than 1"),
        ),
        (
            client.delete_layer_version,
            {"LayerName": "l", "VersionNumber": -1},
            (INVALID, "Layer Version Cannot be less than 1"),
        ),
    ):
        assert refusal(call, **params) == expected
    assert refusal(client.get_layer_version, LayerName="l/x", VersionNumber=1)[0] == "ValidationException"


def test_what_can_not_be_published(client: Any, publish: Callable[..., Any]) -> None:
    runtimes = ["python3.12"] * 16
    for params, code in (
        ({"Content": {"ZipFile": b"no zip"}}, INVALID),
        ({"Content": {}}, INVALID),
        ({"Content": {"S3Bucket": "bbb", "S3Key": "k"}}, INVALID),
        ({"Content": {"ZipFile": ZIP}, "CompatibleRuntimes": runtimes}, "ValidationException"),
        ({"Content": {"ZipFile": ZIP}, "CompatibleRuntimes": ["cobol85"]}, "ValidationException"),
        ({"Content": {"ZipFile": ZIP}, "CompatibleArchitectures": ["vax"]}, "ValidationException"),
        ({"Content": {"ZipFile": ZIP}, "Description": "x" * 257}, "ValidationException"),
        ({}, "ValidationException"),
    ):
        assert refusal(client.publish_layer_version, LayerName="l", **params)[0] == code
    assert publish(CompatibleRuntimes=runtimes[1:])["Version"] == 1


def test_layers_count_as_stored_code(client: Any, publish: Callable[..., Any]) -> None:
    publish()
    publish()
    assert client.get_account_settings()["AccountUsage"]["TotalCodeSize"] == 2 * len(ZIP)


# --- functions with layers ---------------------------------------------------------------------------------


def test_a_function_keeps_its_layers(
    server: Harness, client: Any, publish: Callable[..., Any], create: Callable[..., Any]
) -> None:
    arns = [publish("a", OTHER_ZIP)["LayerVersionArn"], publish("b")["LayerVersionArn"]]
    made = create(Layers=arns)
    assert made["Layers"] == [
        {"Arn": arns[0], "CodeSize": len(OTHER_ZIP)},
        {"Arn": arns[1], "CodeSize": len(ZIP)},
    ]
    digests = tuple(hashlib.sha256(data).hexdigest() for data in (OTHER_ZIP, ZIP))
    assert server.deployments.active["f", "$LATEST"].layers == digests
    client.publish_version(FunctionName="f")

    client.update_function_configuration(FunctionName="f", Layers=arns[1:])
    server.release()
    assert server.deployments.active["f", "$LATEST"].layers == digests[1:]
    client.update_function_configuration(FunctionName="f", Timeout=9)
    server.release()
    assert uses(client.get_function_configuration(FunctionName="f")) == arns[1:]
    assert uses(client.list_functions()["Functions"][0]) == arns[1:]
    published = client.get_function(FunctionName="f", Qualifier="1")["Configuration"]
    assert uses(published) == arns

    client.update_function_configuration(FunctionName="f", Layers=[])
    server.release()
    assert "Layers" not in client.get_function_configuration(FunctionName="f")
    assert server.deployments.active["f", "$LATEST"].layers == ()

    for name in ("a", "b"):
        client.delete_layer_version(LayerName=name, VersionNumber=1)
    assert server.run(server.store.ensure_layers(digests)).is_dir()
    server.restart()
    client = server.client()
    assert server.deployments.active["f", "1"].layers == digests
    assert (server.store.unpacked_path("0" * 64).parent / server.store.layers_folder(digests)).is_dir()
    assert (server.run(server.store.ensure_layers(digests)) / "main.py").exists()
    assert client.get_function(FunctionName="f", Qualifier="1")["Configuration"]["Layers"] == made["Layers"]
    gone = f"Layer version {arns[0]} does not exist."
    assert refusal(client.create_function, **request("g", Layers=arns[:1])) == (INVALID, gone)

    client.delete_function(FunctionName="f")
    server.restart()
    assert server.run(server.store.delete_unused(set())) == 0


def test_publishing_again_without_a_change(
    client: Any, publish: Callable[..., Any], create: Callable[..., Any]
) -> None:
    create(Layers=[publish()["LayerVersionArn"]])
    assert [client.publish_version(FunctionName="f")["Version"] for _ in range(2)] == ["1", "1"]


def test_layers_that_a_function_can_not_have(
    client: Any, publish: Callable[..., Any], create: Callable[..., Any]
) -> None:
    create("g")
    arns = [publish(name)["LayerVersionArn"] for name in "abcdef"]
    publish("a")
    elsewhere = f"{LAYER}:a:1".replace(REGION, "us-east-1")
    twice = "Two different versions of the same layer are not allowed to be referenced in the same function. {} and {}"
    for layers, expected in (
        (arns, (INVALID, "Cannot reference more than 5 layers.")),
        ([arns[0], f"{LAYER}:a:2"], (INVALID, twice.format(arns[0], f"{LAYER}:a:2"))),
        ([arns[0], arns[0]], (INVALID, twice.format(arns[0], arns[0]))),
        ([f"{LAYER}:a:3"], (INVALID, f"Layer version {LAYER}:a:3 does not exist.")),
        ([f"{LAYER}:a:0"], (INVALID, f"Layer version {LAYER}:a:0 does not exist.")),
        ([f"{LAYER}:z:1"], (INVALID, f"Layer version {LAYER}:z:1 does not exist.")),
        (
            ["arn:aws:lambda:::awslayer:z"],
            (INVALID, "Layer version arn:aws:lambda:::awslayer:z does not exist."),
        ),
        (
            [elsewhere],
            (
                INVALID,
                f"Layers are not in the same region as the function. Layers are expected to be in region {REGION}.",
            ),
        ),
    ):
        assert refusal(client.create_function, **request(Layers=layers)) == expected
        assert refusal(client.update_function_configuration, FunctionName="g", Layers=layers) == expected
    assert refusal(client.create_function, **request(Layers=["l"]))[0] == "ValidationException"
    assert uses(create(Layers=arns[:5])) == arns[:5]


def test_the_size_of_all_together(server: Harness, client: Any, publish: Callable[..., Any], create: Any) -> None:
    large = publish("large", zeros(200 << 20))["LayerVersionArn"]
    rest = 262_144_000 - (200 << 20)
    code = zeros(rest)
    create("exact", Code={"ZipFile": code}, Layers=[large])
    small = publish("small", make_zip("x"))["LayerVersionArn"]
    more = len("def handler(event, context): return 'x'\n")
    refused = (
        INVALID,
        "Function code combined with layers exceeds the maximum allowed size of 262144000 bytes. "
        f"The actual size is {262_144_000 + more} bytes.",
    )
    update = client.update_function_configuration
    assert refusal(update, FunctionName="exact", Layers=[large, small]) == refused
    assert refusal(client.create_function, **request(Code={"ZipFile": code}, Layers=[small, large])) == refused
    create("both", Layers=[large, small])
    assert refusal(client.update_function_code, FunctionName="both", ZipFile=code) == refused
    update(FunctionName="both", Layers=[small])
    server.release()
    client.update_function_code(FunctionName="both", ZipFile=code)


# --- who may use a layer -----------------------------------------------------------------------------------


def test_layers_of_other_accounts(server: Harness, client: Any, publish: Callable[..., Any]) -> None:
    arn = publish()["LayerVersionArn"]
    other = server.client(OTHER_ACCOUNT)
    denied = (
        DENIED,
        f"User: arn:aws:iam::{OTHER_ACCOUNT}:root is not authorized to perform: lambda:GetLayerVersion on resource: "
        f"{arn} because no resource-based policy allows the lambda:GetLayerVersion action",
    )
    function = request(Layers=[arn])
    assert refusal(other.get_layer_version_by_arn, Arn=arn) == denied
    assert refusal(other.create_function, **function) == denied
    # Whether it exists is no business of theirs either.
    assert refusal(other.get_layer_version_by_arn, Arn=f"{LAYER}:none:1")[0] == DENIED

    def share(sid: str, principal: str, **members: Any) -> Any:
        return client.add_layer_version_permission(
            LayerName="l",
            VersionNumber=1,
            StatementId=sid,
            Action="lambda:GetLayerVersion",
            Principal=principal,
            **members,
        )

    share("third", "333333333333")
    share("organization", "*", OrganizationId="o-1234567890")
    assert refusal(other.create_function, **function) == denied
    share("other", OTHER_ACCOUNT)
    assert other.get_layer_version_by_arn(Arn=arn)["Content"]["CodeSize"] == len(ZIP)
    assert other.get_layer_version(LayerName=f"{LAYER}:l", VersionNumber=1)["Version"] == 1
    assert uses(other.create_function(**function)) == [arn]
    client.remove_layer_version_permission(LayerName="l", VersionNumber=1, StatementId="other")
    server.release()
    assert refusal(other.update_function_configuration, FunctionName="f", Layers=[arn]) == denied
    assert uses(other.get_function_configuration(FunctionName="f")) == [arn]
    share("everybody", "*")
    assert other.get_layer_version_by_arn(Arn=arn)["Version"] == 1
    for call, params in (
        (other.delete_layer_version, {"VersionNumber": 1}),
        (other.get_layer_version_policy, {"VersionNumber": 1}),
        (other.list_layer_versions, {}),
        (other.publish_layer_version, {"Content": {"ZipFile": ZIP}}),
    ):
        assert refusal(call, LayerName=f"{LAYER}:l", **params)[0] == DENIED


def test_a_layer_version_s_policy(client: Any, publish: Callable[..., Any]) -> None:
    arn = publish()["LayerVersionArn"]
    where = {"LayerName": "l", "VersionNumber": 1}
    none = (NOT_FOUND, "No policy is associated with the given resource.")
    stale = (
        "PreconditionFailedException",
        "The Revision Id provided does not match the latest Revision Id. "
        "Call the GetLayerPolicy API to retrieve the latest Revision Id",
    )
    statement = {"StatementId": "s", "Action": "lambda:GetLayerVersion", "Principal": OTHER_ACCOUNT}
    add, remove, get = (
        client.add_layer_version_permission,
        client.remove_layer_version_permission,
        client.get_layer_version_policy,
    )
    assert refusal(get, **where) == none
    assert refusal(remove, **where, StatementId="s") == none
    first = add(**where, **statement)
    written = {
        "Sid": "s",
        "Effect": "Allow",
        "Principal": {"AWS": f"arn:aws:iam::{OTHER_ACCOUNT}:root"},
        "Action": "lambda:GetLayerVersion",
        "Resource": arn,
    }
    assert json.loads(first["Statement"]) == written
    assert refusal(add, **where, **statement) == (
        "ResourceConflictException",
        "The statement id (s) provided already exists. Please provide a new statement id, or remove the existing "
        "statement.",
    )
    second = {**statement, "StatementId": "t", "Principal": "*", "OrganizationId": "o-1234567890"}
    assert refusal(add, **where, **second, RevisionId="wrong") == stale
    revision = add(**where, **second, RevisionId=first["RevisionId"])["RevisionId"]
    policy = get(**where)
    assert policy["RevisionId"] == revision
    assert json.loads(policy["Policy"]) == {
        "Version": "2012-10-17",
        "Id": "default",
        "Statement": [
            written,
            {
                "Sid": "t",
                "Effect": "Allow",
                "Principal": "*",
                "Action": "lambda:GetLayerVersion",
                "Resource": arn,
                "Condition": {"StringEquals": {"aws:PrincipalOrgID": "o-1234567890"}},
            },
        ],
    }
    assert refusal(remove, **where, StatementId="s", RevisionId=first["RevisionId"]) == stale
    assert refusal(remove, **where, StatementId="x") == (NOT_FOUND, "Statement x is not found in resource policy.")
    remove(**where, StatementId="s", RevisionId=revision)
    remove(**where, StatementId="t")
    assert refusal(get, **where) == none
    missing = {"LayerName": "l", "VersionNumber": 2}
    gone = (NOT_FOUND, f"Layer version {LAYER}:l:2 does not exist.")
    assert refusal(add, **missing, **statement) == gone
    assert refusal(get, **missing) == gone
    for wrong in ({"Action": "lambda:InvokeFunction"}, {"Principal": "s3.amazonaws.com"}, {"StatementId": "a b"}):
        assert refusal(add, **where, **{**statement, **wrong})[0] == "ValidationException"


def test_a_deleted_version_has_no_policy(client: Any, publish: Callable[..., Any]) -> None:
    publish()
    where = {"LayerName": "l", "VersionNumber": 1}
    client.add_layer_version_permission(**where, StatementId="s", Action="lambda:GetLayerVersion", Principal="*")
    client.delete_layer_version(**where)
    assert refusal(client.get_layer_version_policy, **where)[0] == NOT_FOUND


def test_records_from_before_there_were_layers_have_the_same_fingerprint() -> None:
    record = VersionRecord(
        key=FunctionKey(ACCOUNT, REGION, "f"),
        revision_id="r",
        last_modified="now",
        code_sha256="ab" * 32,
        code_size=100,
        runtime="python3.12",
        handler="m.h",
        role="r",
        timeout_s=3,
        memory_mib=128,
        tmp_mib=512,
    )
    # As Lambent 0.1.0 made it. Another one would publish every unchanged function anew after an update of Lambent.
    assert fingerprint(record) == "90081818193cfa1859a1ba3854171b44ca826da0fb117227cd38ba195b3d5ac3"
    record.layers = (LayerUse(f"{LAYER}:l:1", "cd" * 32, 1),)
    assert fingerprint(record) != "90081818193cfa1859a1ba3854171b44ca826da0fb117227cd38ba195b3d5ac3"
