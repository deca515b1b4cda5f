"""A version's configuration: from a request into a record, from a record into an answer and into a spec.

Pure functions over `VersionRecord`.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import msgspec

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue
from lambent.model.function import ImageSpec, LogFormat, VersionSpec
from lambent.model.names import LATEST, FunctionKey
from lambent.services.lambda_.messages import CREATING_CODE, CREATING_REASON
from lambent.store.records import ImageRecord, Phase, VersionRecord

_LEVEL_DEFAULT = "INFO"
#: What does not make a version another version.
_NOT_CONTENT = ("revision_id", "last_modified", "phase", "reason", "reason_code", "serving", "published_from")

_MANAGED = ("capacity_provider", "environment_concurrency", "memory_gib_per_vcpu")
#: Left out of fingerprints while they are empty, so that those made before there were such fields still fit.
_ADDED_LATER = ("layers", "image", "image_config", "snap_start", "tenancy", *_MANAGED)


# --- requests into records ---------------------------------------------------------------------------------


def new_record(
    key: FunctionKey,
    params: dict[str, Any],
    *,
    code_sha256: str,
    code_size: int,
    image: ImageRecord | None = None,
    revision_id: str,
    now: str,
) -> VersionRecord:
    """$LATEST of a function that CreateFunction describes. The members have been checked."""
    record = VersionRecord(
        key=key,
        revision_id=revision_id,
        last_modified=now,
        code_sha256=code_sha256,
        code_size=code_size,
        image=image,
        runtime=params.get("Runtime", ""),
        handler=params.get("Handler", ""),
        role=params["Role"],
        timeout_s=limits.TIMEOUT_DEFAULT_S,
        memory_mib=limits.MEMORY_DEFAULT_MIB,
        tmp_mib=limits.TMP_DEFAULT_MIB,
        architecture=params.get("Architectures", ["x86_64"])[0],
        log_group=f"/aws/lambda/{key.name}",
        tenancy=params.get("TenancyConfig", {}).get("TenantIsolationMode") == "PER_TENANT",
        phase=Phase.CREATING,
    )
    if "CapacityProviderConfig" in params:
        record.memory_mib = limits.MANAGED_MEMORY_MIN_MIB
        _change_logging(record, {"LogFormat": "JSON"})
    return changed(record, params)


def changed(record: VersionRecord, params: dict[str, Any]) -> VersionRecord:
    """A copy of `record` with those members of its configuration that `params` has."""
    record = msgspec.structs.replace(record)
    for member, field in (
        ("Runtime", "runtime"),
        ("Handler", "handler"),
        ("Role", "role"),
        ("Description", "description"),
        ("Timeout", "timeout_s"),
        ("MemorySize", "memory_mib"),
        ("KMSKeyArn", "kms_key_arn"),
    ):
        if member in params:
            setattr(record, field, params[member])
    if "EphemeralStorage" in params:
        record.tmp_mib = params["EphemeralStorage"]["Size"]
    if "Environment" in params:
        record.environment = dict(params["Environment"].get("Variables", {}))
    if params.get("TracingConfig", {}).get("Mode"):
        record.tracing_mode = params["TracingConfig"]["Mode"]
    if "VpcConfig" in params:
        record.vpc = _vpc(params["VpcConfig"])
    if "ImageConfig" in params:
        # It replaces what was there as a whole; an empty member overrides nothing.
        record.image_config = {name: value for name, value in params["ImageConfig"].items() if value}
    if params.get("SnapStart", {}).get("ApplyOn"):
        record.snap_start = params["SnapStart"]["ApplyOn"] == "PublishedVersions"
    if "LoggingConfig" in params:
        _change_logging(record, params["LoggingConfig"])
    if "CapacityProviderConfig" in params:
        sent = params["CapacityProviderConfig"]["LambdaManagedInstancesCapacityProviderConfig"]
        record.capacity_provider = sent["CapacityProviderArn"]
        record.environment_concurrency = sent.get("PerExecutionEnvironmentMaxConcurrency", 0)
        record.memory_gib_per_vcpu = float(sent.get("ExecutionEnvironmentMemoryGiBPerVCpu", 0))
    return record


def vcpus_of(record: VersionRecord) -> float:
    """Of a function with a capacity provider."""
    return record.memory_mib / 1_024 / (record.memory_gib_per_vcpu or limits.MANAGED_GIB_PER_VCPU_DEFAULT)


def concurrency_of(record: VersionRecord) -> int:
    """Requests at once in an environment; 0 without a capacity provider."""
    if not record.capacity_provider:
        return 0
    per_vcpu = limits.MANAGED_CONCURRENCY_PYTHON
    if record.runtime.startswith("nodejs"):
        per_vcpu = limits.MANAGED_CONCURRENCY_NODEJS
    return record.environment_concurrency or max(1, int(per_vcpu * vcpus_of(record)))


def _vpc(sent: dict[str, Any]) -> dict[str, Any] | None:
    if not sent.get("SubnetIds") and not sent.get("SecurityGroupIds"):
        return None
    return {
        "SubnetIds": sent.get("SubnetIds", []),
        "SecurityGroupIds": sent.get("SecurityGroupIds", []),
        "VpcId": "",
        "Ipv6AllowedForDualStack": sent.get("Ipv6AllowedForDualStack", False),
    }


def _change_logging(record: VersionRecord, sent: dict[str, Any]) -> None:
    record.log_format = LogFormat(sent.get("LogFormat", record.log_format))
    record.log_group = sent.get("LogGroup", record.log_group)
    application, system = sent.get("ApplicationLogLevel"), sent.get("SystemLogLevel")
    if record.log_format is LogFormat.JSON:
        record.application_log_level = application or record.application_log_level or _LEVEL_DEFAULT
        record.system_log_level = system or record.system_log_level or _LEVEL_DEFAULT
        return
    if application or system:
        raise InvalidParameterValue("ApplicationLogLevel and SystemLogLevel can be set only when LogFormat is JSON.")
    record.application_log_level = record.system_log_level = None


# --- records into specs and answers ------------------------------------------------------------------------


def spec_of(record: VersionRecord) -> VersionSpec:
    """What the data plane runs."""
    return VersionSpec(
        key=record.key,
        version=record.version,
        runtime=record.runtime,
        handler=record.handler,
        role=record.role,
        code_sha256="" if record.image is not None else record.code_sha256,
        memory_mib=record.memory_mib,
        timeout_s=record.timeout_s,
        tmp_mib=record.tmp_mib,
        environment=record.environment or {},
        log_format=record.log_format,
        application_log_level=record.application_log_level,
        system_log_level=record.system_log_level or _LEVEL_DEFAULT,
        log_group=record.log_group,
        revision_id=record.revision_id,
        layers=tuple(layer.code_sha256 for layer in record.layers),
        image=_image_spec(record),
        snap_start=record.snap_start and not is_latest(record),
        tenancy=record.tenancy,
        concurrency_per_environment=concurrency_of(record),
        memory_gib_per_vcpu=record.memory_gib_per_vcpu or limits.MANAGED_GIB_PER_VCPU_DEFAULT,
    )


def _image_spec(record: VersionRecord) -> ImageSpec | None:
    """The image with ImageConfig merged in; each of its members overrides one instruction of the Dockerfile."""
    image, overriding = record.image, record.image_config
    if image is None:
        return None
    return ImageSpec(
        digest=record.code_sha256,
        entry_point=tuple(overriding.get("EntryPoint", image.entry_point)),
        command=tuple(overriding.get("Command", image.command)),
        working_directory=overriding.get("WorkingDirectory", image.working_directory),
        environment=image.environment,
    )


def fingerprint(record: VersionRecord) -> str:
    """Equal for two states of $LATEST exactly when code and configuration are."""
    content = {name: getattr(record, name) for name in record.__struct_fields__ if name not in _NOT_CONTENT}
    for name in _ADDED_LATER:
        if not content[name]:
            del content[name]
    return hashlib.sha256(msgspec.json.encode(content, order="deterministic")).hexdigest()


def sha256_base64(sha256: str) -> str:
    return base64.b64encode(bytes.fromhex(sha256)).decode()


def code_sha256_of(record: VersionRecord) -> str:
    """CodeSha256: of images, AWS answers the digest in hex."""
    return record.code_sha256 if record.image is not None else sha256_base64(record.code_sha256)


def described(record: VersionRecord, *, arn: str | None = None) -> dict[str, Any]:
    """FunctionConfiguration. `arn` where it is not the version's own (an alias, or no qualifier at all)."""
    return {**listed(record, arn=arn), **_life_cycle(record), **_runtime_version(record)}


def described_unqualified(record: VersionRecord) -> dict[str, Any]:
    """As AWS answers calls that name the function without a qualifier."""
    return described(record, arn=record.key.arn())


def listed(record: VersionRecord, *, arn: str | None = None) -> dict[str, Any]:
    """FunctionConfiguration as lists have it: without states and runtime version."""
    answer: dict[str, Any] = {
        "FunctionName": record.key.name,
        "FunctionArn": arn or record.key.arn(record.version),
        "Role": record.role,
        "CodeSize": record.code_size,
        "Description": record.description,
        "Timeout": record.timeout_s,
        "MemorySize": record.memory_mib,
        "LastModified": record.last_modified,
        "CodeSha256": code_sha256_of(record),
        "Version": record.version,
        "TracingConfig": {"Mode": record.tracing_mode},
        "RevisionId": record.revision_id,
        "PackageType": "Zip" if record.image is None else "Image",
        "Architectures": [record.architecture],
        "EphemeralStorage": {"Size": record.tmp_mib},
        "SnapStart": {
            "ApplyOn": "PublishedVersions" if record.snap_start else "None",
            "OptimizationStatus": "On" if record.snap_start and not is_latest(record) else "Off",
        },
        "LoggingConfig": _logging(record),
    }
    if record.image is None:
        answer.update(Runtime=record.runtime, Handler=record.handler)
    elif record.image_config:
        answer["ImageConfigResponse"] = {"ImageConfig": record.image_config}
    if record.environment is not None:
        answer["Environment"] = {"Variables": record.environment}
    if record.tenancy:
        answer["TenancyConfig"] = {"TenantIsolationMode": "PER_TENANT"}
    if record.capacity_provider:
        answer["CapacityProviderConfig"] = {"LambdaManagedInstancesCapacityProviderConfig": _capacity(record)}
    if record.kms_key_arn:
        answer["KMSKeyArn"] = record.kms_key_arn
    if record.vpc is not None:
        answer["VpcConfig"] = record.vpc
    if record.layers:
        answer["Layers"] = [{"Arn": layer.arn, "CodeSize": layer.code_size} for layer in record.layers]
    return answer


def _capacity(record: VersionRecord) -> dict[str, Any]:
    return {
        "CapacityProviderArn": record.capacity_provider,
        "PerExecutionEnvironmentMaxConcurrency": concurrency_of(record),
        "ExecutionEnvironmentMemoryGiBPerVCpu": record.memory_gib_per_vcpu or limits.MANAGED_GIB_PER_VCPU_DEFAULT,
    }


def _logging(record: VersionRecord) -> dict[str, Any]:
    answer = {"LogFormat": record.log_format.value, "LogGroup": record.log_group}
    if record.log_format is LogFormat.JSON:
        answer["ApplicationLogLevel"] = record.application_log_level or _LEVEL_DEFAULT
        answer["SystemLogLevel"] = record.system_log_level or _LEVEL_DEFAULT
    return answer


def _runtime_version(record: VersionRecord) -> dict[str, Any]:
    if record.image is not None:
        return {}
    # AWS's digest names a build of the runtime. Ours names the runtime, so it stays the same.
    digest = hashlib.sha256(record.runtime.encode()).hexdigest()
    return {"RuntimeVersionConfig": {"RuntimeVersionArn": f"arn:aws:lambda:{record.key.region}::runtime:{digest}"}}


def _life_cycle(record: VersionRecord) -> dict[str, Any]:
    """State and LastUpdateStatus with their reasons."""
    creating = {"StateReason": CREATING_REASON, "StateReasonCode": CREATING_CODE}
    # Yes, "created": AWS says the same of an update.
    updating = {
        "LastUpdateStatus": "InProgress",
        "LastUpdateStatusReason": CREATING_REASON,
        "LastUpdateStatusReasonCode": CREATING_CODE,
    }
    failed = {
        "LastUpdateStatus": "Failed",
        "LastUpdateStatusReason": record.reason,
        "LastUpdateStatusReasonCode": record.reason_code,
    }
    match record.phase:
        case Phase.CREATING:
            return {"State": "Pending", **creating}
        case Phase.READY:
            return {"State": "Active", "LastUpdateStatus": "Successful"}
        case Phase.UPDATING:
            return {"State": "Active", **updating}
        case Phase.UPDATE_FAILED:
            return {"State": "Active", **failed}
        case Phase.CREATE_FAILED:
            reasons = {"StateReason": record.reason, "StateReasonCode": record.reason_code}
            return {"State": "Failed", **reasons, **failed}
        case Phase.REPAIRING:
            return {"State": "Pending", **creating, **updating}


def is_latest(record: VersionRecord) -> bool:
    return record.version == LATEST
