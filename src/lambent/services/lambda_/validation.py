"""Rules of Lambda that the service model does not hold, or holds wider than Lambda means them.

Pure checks of a request's members; each raises the ApiError that AWS would answer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.services.lambda_.messages import TAGS_TOO_MANY, broken_constraint, unsupported

#: Runtimes that work here. The rest of the model's list is refused by name.
RUNNABLE_RUNTIMES = (
    *("python3.9", "python3.10", "python3.11", "python3.12", "python3.13", "python3.14"),
    *("nodejs18.x", "nodejs20.x", "nodejs22.x", "nodejs24.x"),
    *("provided.al2", "provided.al2023"),
)

#: AWS creates no functions with these any more.
DEPRECATED_RUNTIMES = frozenset(
    [
        *("nodejs", "nodejs4.3", "nodejs4.3-edge", "nodejs6.10", "nodejs8.10"),
        *("nodejs10.x", "nodejs12.x", "nodejs14.x", "nodejs16.x"),
        *("python2.7", "python3.6", "python3.7", "python3.8"),
        *("dotnetcore1.0", "dotnetcore2.0", "dotnetcore2.1", "dotnetcore3.1", "dotnet5.0", "dotnet6"),
        *("ruby2.5", "ruby2.7", "java8", "go1.x", "provided"),
    ]
)

RESERVED_ENVIRONMENT = frozenset(
    [
        *("_HANDLER", "_X_AMZN_TRACE_ID", "AWS_DEFAULT_REGION", "AWS_REGION", "AWS_EXECUTION_ENV"),
        *("AWS_LAMBDA_FUNCTION_NAME", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "AWS_LAMBDA_FUNCTION_VERSION"),
        *("AWS_LAMBDA_INITIALIZATION_TYPE", "AWS_LAMBDA_LOG_GROUP_NAME", "AWS_LAMBDA_LOG_STREAM_NAME"),
        *("AWS_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
        *("AWS_LAMBDA_RUNTIME_API", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR"),
    ]
)

TAGS_MAX = 50
_ENVIRONMENT_REFUSED = (
    "Lambda was unable to configure your environment variables because the environment variables you have provided "
)


def check_runtime(runtime: str, known: Iterable[str]) -> None:
    """Refuse a runtime that is unknown, that AWS has retired, or that Lambent cannot run."""
    known = tuple(known)
    if runtime not in known:
        raise InvalidParameterValue(
            f"Value {runtime} at 'runtime' failed to satisfy constraint: "
            f"Member must satisfy enum value set: [{', '.join(known)}] or be a valid ARN"
        )
    if runtime in DEPRECATED_RUNTIMES:
        raise InvalidParameterValue(
            f"The runtime parameter of {runtime} is no longer supported for creating or updating AWS Lambda "
            "functions. We recommend you use a supported runtime while creating or updating functions."
        )
    if runtime not in RUNNABLE_RUNTIMES:
        raise InvalidParameterValue(
            f"Lambent does not run the runtime {runtime} yet. It runs {', '.join(RUNNABLE_RUNTIMES)}."
        )


def check_sizes(params: dict[str, Any], memory_max_mib: int = limits.MEMORY_MAX_MIB) -> None:
    """Timeout, MemorySize, EphemeralStorage: the model allows what only managed instances have."""
    for value, path, most in (
        (params.get("Timeout"), "timeout", limits.TIMEOUT_MAX_S),
        (params.get("MemorySize"), "memorySize", memory_max_mib),
        (params.get("EphemeralStorage", {}).get("Size"), "ephemeralStorage.size", limits.TMP_MAX_MIB),
    ):
        if value is not None and value > most:
            raise broken_constraint(value, path, f"Member must have value less than or equal to {most}")


def check_environment(variables: dict[str, str]) -> None:
    """Reserved names, the 4 KB, and what no process can be given."""
    reserved = [name for name in variables if name in RESERVED_ENVIRONMENT]
    if reserved:
        raise InvalidParameterValue(
            f"{_ENVIRONMENT_REFUSED}contains reserved keys that are currently not supported for "
            f"modification. Reserved keys used in this request: {', '.join(reserved)}"
        )
    measured = json.dumps(variables, separators=(",", ":"), ensure_ascii=False)
    if len(measured.encode()) > limits.ENVIRONMENT_VARIABLES_MAX_BYTES:
        raise InvalidParameterValue(f"{_ENVIRONMENT_REFUSED}exceeded the 4KB limit. String measured: {measured}")
    for name, value in variables.items():
        if "\0" in value:
            raise InvalidParameterValue(
                f"{_ENVIRONMENT_REFUSED}cannot be passed to a process. Key used in this request: {name}"
            )


def check_tags(tags: dict[str, str]) -> None:
    if len(tags) > TAGS_MAX:
        raise InvalidParameterValue(TAGS_TOO_MANY)


def refuse_unsupported(params: dict[str, Any]) -> None:
    """The rule of the house: a feature that would be stored and not enforced is refused."""
    present = (
        (params.get("FileSystemConfigs"), "FileSystemConfigs"),
        (params.get("DeadLetterConfig", {}).get("TargetArn"), "DeadLetterConfig"),
        ("DurableConfig" in params, "DurableConfig"),
        ("RuntimeConfig" in params, "RuntimeConfig"),
        ("AcceleratorConfig" in params, "AcceleratorConfig"),
        ("PublishTo" in params, "PublishTo"),
        (params.get("SourceKMSKeyArn"), "SourceKMSKeyArn"),
        (params.get("S3ObjectStorageMode") == "REFERENCE", "S3ObjectStorageMode REFERENCE"),
    )
    for found, feature in present:
        if found:
            raise unsupported(feature)
    signing = params.get("CodeSigningConfigArn")
    if signing:
        # There are no code signing configurations here, so whichever is named does not exist.
        raise ResourceNotFound(f"The Lambda code signing configuration {signing} can not be found.", with_type=False)
