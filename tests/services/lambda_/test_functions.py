"""Functions on the wire: answers with AWS's keys, refusals in AWS's words."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from typing import Any

import pytest

from .harness import ARN, OTHER_ZIP, ROLE, ZIP, Harness, make_zip, refusal, request

INVALID = "InvalidParameterValueException"
NOT_FOUND = ("ResourceNotFoundException", f"Function not found: {ARN}:f")
UNQUALIFIED = (
    INVALID,
    "This operation is permitted on Lambda functions only. Aliases and versions do not support this operation. "
    "Please specify either a function name or an unqualified function ARN.",
)
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def sha(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def without_metadata(answer: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in answer.items() if name != "ResponseMetadata"}


def test_create_answers_with_aws_s_keys(server: Harness, client: Any) -> None:
    server.hold()
    answer = client.create_function(**request())
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 201
    answer = without_metadata(answer)
    revision, modified, runtime = (
        answer.pop("RevisionId"),
        answer.pop("LastModified"),
        answer.pop("RuntimeVersionConfig"),
    )
    assert UUID.fullmatch(revision)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+0000", modified)
    assert re.fullmatch(r"arn:aws:lambda:eu-west-1::runtime:[0-9a-f]{64}", runtime["RuntimeVersionArn"])
    assert answer == {
        "Architectures": ["x86_64"],
        "CodeSha256": sha(ZIP),
        "CodeSize": len(ZIP),
        "Description": "",
        "EphemeralStorage": {"Size": 512},
        "FunctionArn": f"{ARN}:f",
        "FunctionName": "f",
        "Handler": "main.handler",
        "LoggingConfig": {"LogFormat": "Text", "LogGroup": "/aws/lambda/f"},
        "MemorySize": 128,
        "PackageType": "Zip",
        "Role": ROLE,
        "Runtime": "python3.12",
        "SnapStart": {"ApplyOn": "None", "OptimizationStatus": "Off"},
        "State": "Pending",
        "StateReason": "The function is being created.",
        "StateReasonCode": "Creating",
        "Timeout": 3,
        "TracingConfig": {"Mode": "PassThrough"},
        "Version": "$LATEST",
    }
    server.release()
    client.get_waiter("function_active_v2").wait(FunctionName="f", WaiterConfig={"Delay": 0, "MaxAttempts": 1})
    active = client.get_function_configuration(FunctionName="f")
    assert active["State"] == "Active"
    assert active["LastUpdateStatus"] == "Successful"
    assert "StateReason" not in active
    assert active["RevisionId"] != revision
    assert server.deployments.active["f", "$LATEST"].memory_mib == 128


def test_create_with_everything_that_has_a_meaning_here(server: Harness, create: Callable[..., Any]) -> None:
    answer = create(
        Description="d",
        Timeout=900,
        MemorySize=10240,
        EphemeralStorage={"Size": 10240},
        Environment={"Variables": {"KEY": "värde"}},
        Architectures=["arm64"],
        TracingConfig={"Mode": "Active"},
        KMSKeyArn="arn:aws:kms:eu-west-1:1:key/x",
        VpcConfig={"SubnetIds": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
        LoggingConfig={"LogFormat": "JSON", "LogGroup": "mine"},
        Tags={"team": "a"},
        Layers=[],
        SnapStart={"ApplyOn": "None"},
        DeadLetterConfig={},
    )
    assert answer["Environment"] == {"Variables": {"KEY": "värde"}}
    assert answer["Architectures"] == ["arm64"]
    assert answer["TracingConfig"] == {"Mode": "Active"}
    assert answer["VpcConfig"]["SubnetIds"] == ["subnet-1"]
    assert answer["KMSKeyArn"].endswith("key/x")
    assert answer["LoggingConfig"] == {
        "LogFormat": "JSON",
        "ApplicationLogLevel": "INFO",
        "SystemLogLevel": "INFO",
        "LogGroup": "mine",
    }
    spec = server.deployments.active["f", "$LATEST"]
    assert (spec.timeout_s, spec.memory_mib, spec.tmp_mib) == (900, 10240, 10240)
    assert spec.environment == {"KEY": "värde"}
    assert (spec.log_format, spec.application_log_level, spec.log_group) == ("JSON", "INFO", "mine")
    got = server.client().get_function(FunctionName=f"{ARN}:f")
    assert got["Tags"] == {"team": "a"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"Timeout": 901},
            "at 'timeout' failed to satisfy constraint: Member must have value less than or equal to 900",
        ),
        (
            {"Timeout": 0},
            "at 'timeout' failed to satisfy constraint: Member must have value greater than or equal to 1",
        ),
        ({"MemorySize": 10241}, "'10241' at 'memorySize' failed to satisfy constraint: Member must have value less"),
        ({"EphemeralStorage": {"Size": 10241}}, "'10241' at 'ephemeralStorage.size' failed"),
        ({"Role": "nobody"}, "Value 'nobody' at 'role' failed to satisfy constraint: Member must satisfy regular"),
        (
            {"Environment": {"Variables": {"1": "x"}}},
            "at 'environment.variables' failed to satisfy constraint: Map keys",
        ),
    ],
)
def test_broken_constraints(client: Any, changes: dict[str, Any], message: str) -> None:
    code, text = refusal(client.create_function, **request(**changes))
    assert code == "ValidationException"
    assert text.startswith("1 validation error detected: Value ")
    assert message in text


RESERVED = (
    "Lambda was unable to configure your environment variables because the environment variables you have provided "
    "contains reserved keys that are currently not supported for modification. "
    "Reserved keys used in this request: AWS_REGION, LAMBDA_TASK_ROOT"
)
TOO_LARGE = (
    "Lambda was unable to configure your environment variables because the environment variables you have provided "
    'exceeded the 4KB limit. String measured: {"KEY":"' + "x" * 4087 + '"}'
)
NO_SOURCE = "Please provide a source for function code."
TWO_SOURCES = "Please do not provide other FunctionCode parameters when providing a ZipFile."
RETIRED = (
    "The runtime parameter of {} is no longer supported for creating or updating AWS Lambda functions. "
    "We recommend you use a supported runtime while creating or updating functions."
)
MANDATORY = "Runtime and Handler are mandatory parameters for functions created with deployment packages."
COULD_NOT = "Could not unzip uploaded file. Please check your file, then try to upload again."
EMPTY = b"PK\x05\x06" + bytes(18)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Environment": {"Variables": {"AWS_REGION": "x", "OK": "", "LAMBDA_TASK_ROOT": ""}}}, RESERVED),
        ({"Environment": {"Variables": {"KEY": "x" * 4087}}}, TOO_LARGE),
        ({"Runtime": "java8"}, RETIRED.format("java8")),
        ({"Runtime": "python3.8"}, RETIRED.format("python3.8")),
        ({"Runtime": "nodejs16.x"}, RETIRED.format("nodejs16.x")),
        ({"Runtime": None}, MANDATORY),
        ({"Handler": None}, MANDATORY),
        ({"Code": {}}, NO_SOURCE),
        ({"Code": {"S3Bucket": "bucket"}}, NO_SOURCE),
        ({"Code": {"ZipFile": ZIP, "S3Bucket": "bucket", "S3Key": "k"}}, TWO_SOURCES),
        ({"Code": {"ZipFile": b"no zip"}}, COULD_NOT),
        ({"Code": {"ZipFile": EMPTY}}, "Uploaded file must be a non-empty zip"),
        ({"FunctionName": "f:1"}, UNQUALIFIED[1]),
        ({"Tags": {f"k{n}": "" for n in range(51)}}, "Number of tags exceeds resource tag limit."),
        (
            {"LoggingConfig": {"LogFormat": "Text", "SystemLogLevel": "WARN"}},
            "ApplicationLogLevel and SystemLogLevel can be set only when LogFormat is JSON.",
        ),
        (
            {"FunctionName": "n" * 65},
            f"1 validation error detected: Value '{'n' * 65}' at 'functionName' failed to satisfy constraint: "
            "Member must have length less than or equal to 64",
        ),
    ],
)
def test_refusals(client: Any, changes: dict[str, Any], message: str) -> None:
    assert refusal(client.create_function, **request(**changes)) == (INVALID, message)
    assert client.list_functions()["Functions"] == []


def test_largest_environment(create: Callable[..., Any]) -> None:
    create(Environment={"Variables": {"KEY": "x" * 4086}})


def test_values_that_no_process_can_have(client: Any) -> None:
    code, text = refusal(client.create_function, **request(Environment={"Variables": {"KEY": "a\0b"}}))
    assert code == INVALID
    assert text.endswith("Key used in this request: KEY")


def test_unknown_runtime(client: Any) -> None:
    code, text = refusal(client.create_function, **request(Runtime="cobol85"))
    assert code == INVALID
    assert text.startswith(
        "Value cobol85 at 'runtime' failed to satisfy constraint: Member must satisfy enum value set: ["
    )
    assert text.endswith("] or be a valid ARN")


@pytest.mark.parametrize("runtime", ["java21", "ruby3.4", "dotnet8", "python3.15"])
def test_runtimes_to_come(client: Any, runtime: str) -> None:
    code, text = refusal(client.create_function, **request(Runtime=runtime))
    assert (code, text.partition(" yet")[0]) == (INVALID, f"Lambent does not run the runtime {runtime}")


ARN_OF_CSC = "arn:aws:lambda:eu-west-1:123456789012:code-signing-config:csc-0123456789abcdef0"


@pytest.mark.parametrize(
    ("changes", "feature"),
    [
        ({"DeadLetterConfig": {"TargetArn": "arn:aws:sqs:eu-west-1:123456789012:q"}}, "DeadLetterConfig"),
        ({"DurableConfig": {"ExecutionTimeout": 5}}, "DurableConfig"),
        ({"PublishTo": "LATEST_PUBLISHED"}, "PublishTo"),
        ({"Code": {"ZipFile": ZIP, "S3ObjectStorageMode": "REFERENCE"}}, "S3ObjectStorageMode REFERENCE"),
        (
            {
                "FileSystemConfigs": [
                    {
                        "Arn": "arn:aws:elasticfilesystem:eu-west-1:123456789012:access-point/fsap-" + "0" * 17,
                        "LocalMountPath": "/mnt/x",
                    }
                ]
            },
            "FileSystemConfigs",
        ),
    ],
)
def test_what_would_be_stored_and_not_done(client: Any, changes: dict[str, Any], feature: str) -> None:
    answer = refusal(client.create_function, **request(**changes))
    assert answer == (INVALID, f"Lambent does not support {feature} yet.")


def test_code_signing_configuration_that_cannot_exist(client: Any) -> None:
    assert refusal(client.create_function, **request(CodeSigningConfigArn=ARN_OF_CSC)) == (
        "ResourceNotFoundException",
        f"The Lambda code signing configuration {ARN_OF_CSC} can not be found.",
    )


def test_zip_over_the_limit(client: Any) -> None:
    answer = refusal(client.create_function, **request(Code={"ZipFile": bytes(52_428_801)}))
    assert answer == ("RequestEntityTooLargeException", "Zipped size must be smaller than 52428800 bytes")


def test_names_are_taken_once(client: Any, create: Callable[..., Any]) -> None:
    create()
    assert refusal(client.create_function, **request()) == (
        "ResourceConflictException",
        "Function already exist: f",
    )


def test_accounts_and_regions_are_apart(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    assert refusal(server.client(region="us-east-1").get_function, FunctionName="f")[0] == NOT_FOUND[0]
    stranger = server.client("999999999999")
    assert stranger.list_functions()["Functions"] == []
    code, text = refusal(stranger.get_function, FunctionName=f"{ARN}:f")
    assert code == "AccessDeniedException"
    assert "arn:aws:iam::999999999999:root is not authorized to perform: lambda:GetFunction" in text
    assert refusal(client.get_function, FunctionName=f"{ARN}:f".replace("eu-west-1", "us-east-1")) == (
        "ResourceNotFoundException",
        "Functions from 'us-east-1' are not reachable in this region ('eu-west-1')",
    )


def test_qualifiers_show_in_the_arn(client: Any, create: Callable[..., Any]) -> None:
    create(Publish=True)
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    for qualifier, version in (("$LATEST", "$LATEST"), ("1", "1"), ("live", "1")):
        found = client.get_function(FunctionName="f", Qualifier=qualifier)["Configuration"]
        assert (found["FunctionArn"], found["Version"]) == (f"{ARN}:f:{qualifier}", version)
        assert client.get_function_configuration(FunctionName=f"f:{qualifier}")["Version"] == version
    assert client.get_function(FunctionName="f")["Configuration"]["FunctionArn"] == f"{ARN}:f"
    for qualifier in ("2", "dead", "9" * 30):
        assert refusal(client.get_function, FunctionName="f", Qualifier=qualifier) == (
            "ResourceNotFoundException",
            f"Function not found: {ARN}:f:{qualifier}",
        )


def test_what_is_not_there(client: Any) -> None:
    assert refusal(client.get_function, FunctionName="f") == NOT_FOUND
    assert refusal(client.get_function_configuration, FunctionName="f") == NOT_FOUND
    assert refusal(client.update_function_code, FunctionName="f", ZipFile=ZIP) == NOT_FOUND
    assert refusal(client.update_function_configuration, FunctionName="f") == NOT_FOUND
    assert refusal(client.delete_function, FunctionName="f") == NOT_FOUND
    assert refusal(client.delete_function, FunctionName="f", Qualifier="1") == NOT_FOUND


def test_update_code(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    before = client.get_function_configuration(FunctionName="f")
    answer = client.update_function_code(FunctionName="f", ZipFile=OTHER_ZIP, Architectures=["arm64"])
    assert answer["CodeSha256"] == sha(OTHER_ZIP)
    assert answer["CodeSize"] == len(OTHER_ZIP)
    assert answer["Architectures"] == ["arm64"]
    server.release()
    after = client.get_function_configuration(FunctionName="f")
    assert len({before["RevisionId"], answer["RevisionId"], after["RevisionId"]}) == 3
    assert server.deployments.active["f", "$LATEST"].code_sha256 == hashlib.sha256(OTHER_ZIP).hexdigest()


def test_update_code_dry_run(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    before = without_metadata(client.get_function_configuration(FunctionName="f"))
    answer = without_metadata(client.update_function_code(FunctionName="f", ZipFile=OTHER_ZIP, DryRun=True))
    assert answer == {**before, "CodeSha256": sha(OTHER_ZIP), "CodeSize": len(OTHER_ZIP)}
    assert without_metadata(client.get_function_configuration(FunctionName="f")) == before
    assert refusal(client.update_function_code, FunctionName="f", ZipFile=b"x", DryRun=True)[0] == INVALID


def test_update_code_refusals(client: Any, create: Callable[..., Any]) -> None:
    create()
    update = client.update_function_code
    assert refusal(update, FunctionName="f", ImageUri="x") == (
        INVALID,
        "Please don't provide ImageUri when updating a function with packageType Zip.",
    )
    assert refusal(update, FunctionName="f") == (INVALID, NO_SOURCE)
    assert refusal(update, FunctionName="f:1", ZipFile=ZIP) == UNQUALIFIED
    assert refusal(update, FunctionName="f", ZipFile=ZIP, RevisionId="old") == (
        "PreconditionFailedException",
        "The Revision Id provided does not match the latest Revision Id. "
        "Call the GetFunction/GetAlias API to retrieve the latest Revision Id",
    )


def test_update_configuration(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create(Environment={"Variables": {"KEY": "1"}}, LoggingConfig={"LogFormat": "JSON"})
    revision = client.get_function_configuration(FunctionName="f")["RevisionId"]
    update = client.update_function_configuration
    answer = update(FunctionName="f", MemorySize=256, RevisionId=revision, LoggingConfig={"SystemLogLevel": "WARN"})
    assert answer["MemorySize"] == 256
    assert answer["Timeout"] == 3
    assert answer["Environment"] == {"Variables": {"KEY": "1"}}
    assert answer["LoggingConfig"]["SystemLogLevel"] == "WARN"
    assert answer["LoggingConfig"]["ApplicationLogLevel"] == "INFO"
    server.release()
    answer = update(FunctionName="f", LoggingConfig={"LogFormat": "Text"}, Environment={})
    assert answer["LoggingConfig"] == {"LogFormat": "Text", "LogGroup": "/aws/lambda/f"}
    assert answer["Environment"] == {"Variables": {}}
    server.release()
    assert refusal(update, FunctionName="f", RevisionId=revision)[0] == "PreconditionFailedException"
    assert refusal(update, FunctionName="f", Timeout=1000)[0] == "ValidationException"
    assert refusal(update, FunctionName="f", Runtime="java8") == (INVALID, RETIRED.format("java8"))
    assert refusal(update, FunctionName="f", Runtime="cobol85")[0] == INVALID
    assert refusal(update, FunctionName="f", Environment={"Variables": {"AWS_REGION": "x"}})[0] == INVALID
    assert refusal(update, FunctionName="f", Layers=["arn:aws:lambda:eu-west-1:123456789012:layer:l:1"])[0] == INVALID


def test_no_op_update_has_a_new_revision(client: Any, create: Callable[..., Any]) -> None:
    create()
    before = client.get_function_configuration(FunctionName="f")["RevisionId"]
    assert client.update_function_configuration(FunctionName="f")["RevisionId"] != before


def test_delete(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create(Publish=True)
    client.create_alias(FunctionName="f", Name="live", FunctionVersion="1")
    delete = client.delete_function
    assert refusal(delete, FunctionName="f", Qualifier="$LATEST") == (
        INVALID,
        "$LATEST version cannot be deleted without deleting the function.",
    )
    assert refusal(delete, FunctionName="f:live") == (INVALID, "Deletion of aliases is not currently supported.")
    code, text = refusal(delete, FunctionName="f", Qualifier="1")
    assert (code, text) == (
        "ResourceConflictException",
        "Unable to delete version because the following aliases reference it: [live]",
    )
    client.delete_alias(FunctionName="f", Name="live")
    assert delete(FunctionName="f", Qualifier="1")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert delete(FunctionName="f", Qualifier="1")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert ("f", "1") not in server.deployments.active
    assert delete(FunctionName="f")["ResponseMetadata"]["HTTPStatusCode"] == 204
    assert server.deployments.active == {}
    assert refusal(client.get_function, FunctionName="f") == NOT_FOUND
    create()
    assert client.get_function(FunctionName="f")["Configuration"]["Version"] == "$LATEST"


def test_list_functions(client: Any, create: Callable[..., Any]) -> None:
    for name in ("c", "a", "b"):
        create(name, Publish=name == "a")
    listed = client.list_functions()["Functions"]
    assert [each["FunctionArn"] for each in listed] == [f"{ARN}:a", f"{ARN}:b", f"{ARN}:c"]
    for member in ("State", "StateReason", "LastUpdateStatus", "RuntimeVersionConfig"):
        assert member not in listed[0]
    every = client.list_functions(FunctionVersion="ALL")["Functions"]
    assert [each["FunctionArn"] for each in every] == [
        f"{ARN}:a:$LATEST",
        f"{ARN}:a:1",
        f"{ARN}:b:$LATEST",
        f"{ARN}:c:$LATEST",
    ]


def test_pages_stay_right_when_functions_come_and_go(client: Any, create: Callable[..., Any]) -> None:
    for name in ("a", "b", "c", "d"):
        create(name)
    first = client.list_functions(MaxItems=2)
    assert [each["FunctionName"] for each in first["Functions"]] == ["a", "b"]
    client.delete_function(FunctionName="b")
    create("aa")
    second = client.list_functions(MaxItems=2, Marker=first["NextMarker"])
    assert [each["FunctionName"] for each in second["Functions"]] == ["c", "d"]
    assert "NextMarker" not in second
    pages = client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 1})
    assert [each["FunctionName"] for page in pages for each in page["Functions"]] == ["a", "aa", "c", "d"]


@pytest.mark.parametrize("marker", ["x", "!!", "kaFh", "a" * 2000, "é", "kqFh0_________8=", "kqFhz___________"])
def test_markers_that_we_never_made(client: Any, marker: str) -> None:
    assert refusal(client.list_functions, Marker=marker)[0] == INVALID


def test_at_most_fifty_at_a_time(server: Harness, client: Any) -> None:
    for number in range(51):
        client.create_function(**request(f"f{number:02}"))
    server.release()
    page = client.list_functions(MaxItems=10000)
    assert len(page["Functions"]) == 50
    assert len(client.list_functions(Marker=page["NextMarker"])["Functions"]) == 1


def test_code_storage_has_an_end(
    server: Harness, client: Any, create: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    create()
    monkeypatch.setattr("lambent.model.limits.CODE_STORAGE_MAX_BYTES", 2 * len(ZIP))
    code, _ = refusal(client.create_function, **request("g", Publish=True))
    assert code == "CodeStorageExceededException"
    assert refusal(client.get_function, FunctionName="g")[0] == NOT_FOUND[0]
    client.publish_version(FunctionName="f")
    client.update_function_configuration(FunctionName="f", Description="x")
    server.release()
    assert refusal(client.publish_version, FunctionName="f")[0] == "CodeStorageExceededException"
    assert len(client.list_versions_by_function(FunctionName="f")["Versions"]) == 2
    client.update_function_code(FunctionName="f", ZipFile=make_zip("abc"))
