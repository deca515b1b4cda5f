"""Which functions may run on a capacity provider: AWS's rules on the whole configuration, after a change."""

from __future__ import annotations

from typing import Any

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue
from lambent.services.lambda_.capacity import parse_capacity, require_capacity
from lambent.services.lambda_.configuration import concurrency_of, vcpus_of
from lambent.services.lambda_.messages import broken_constraint, not_per_tenant
from lambent.store.functions import FunctionRows
from lambent.store.records import VersionRecord

_RATIOS = (2.0, 4.0, 8.0)


def managed_config(params: dict[str, Any]) -> dict[str, Any] | None:
    """What a request says about the capacity provider; None: nothing."""
    found: dict[str, Any] | None = params.get("CapacityProviderConfig", {}).get(
        "LambdaManagedInstancesCapacityProviderConfig"
    )
    return found


def check_change(before: VersionRecord, params: dict[str, Any]) -> None:
    """A function is made for managed instances or not, for good."""
    if managed_config(params) is not None and not before.capacity_provider:
        raise InvalidParameterValue(
            "CapacityProviderConfig can not be added to a function that was created without one."
        )


def check_managed(rows: FunctionRows, record: VersionRecord) -> None:
    """Raise an ApiError where a capacity provider is named and the rest of the configuration does not fit."""
    if not record.capacity_provider:
        if record.memory_mib > limits.MEMORY_MAX_MIB:
            most = f"Member must have value less than or equal to {limits.MEMORY_MAX_MIB}"
            raise broken_constraint(record.memory_mib, "memorySize", most)
        return
    key = parse_capacity(record.capacity_provider, record.key.account, record.key.region)
    provider = require_capacity(rows, key)
    architectures = provider.members.get("InstanceRequirements", {}).get("Architectures")
    if architectures and record.architecture not in architectures:
        raise InvalidParameterValue(
            f"The function's architecture {record.architecture} is not one of the capacity provider's: "
            f"{', '.join(architectures)}."
        )
    if record.tenancy:
        raise not_per_tenant("CapacityProviderConfig")
    if record.snap_start:
        raise InvalidParameterValue("SnapStart is not supported for functions with a capacity provider.")
    if record.log_format != "JSON":
        raise InvalidParameterValue("Functions with a capacity provider support only the LogFormat JSON.")
    _check_size(record)


def _check_size(record: VersionRecord) -> None:
    if record.memory_mib < limits.MANAGED_MEMORY_MIN_MIB:
        raise InvalidParameterValue(
            f"MemorySize must be at least {limits.MANAGED_MEMORY_MIN_MIB} MB for functions with a capacity provider."
        )
    if record.memory_gib_per_vcpu and record.memory_gib_per_vcpu not in _RATIOS:
        raise InvalidParameterValue("ExecutionEnvironmentMemoryGiBPerVCpu must be 2, 4 or 8.")
    vcpus = vcpus_of(record)
    if vcpus < 1:
        raise InvalidParameterValue(
            "MemorySize and ExecutionEnvironmentMemoryGiBPerVCpu must give an execution environment at least one vCPU."
        )
    concurrency = concurrency_of(record)
    most = int(limits.MANAGED_CONCURRENCY_PER_VCPU_MAX * vcpus)
    if concurrency > most:
        raise InvalidParameterValue(
            f"PerExecutionEnvironmentMaxConcurrency must be at most {most}, "
            f"{limits.MANAGED_CONCURRENCY_PER_VCPU_MAX} for each vCPU."
        )
    if concurrency > 1 and record.runtime.startswith("nodejs"):
        raise InvalidParameterValue(
            f"Lambent does not run several requests at once in an execution environment of {record.runtime} yet "
            f"({concurrency} were asked for, which is the default without PerExecutionEnvironmentMaxConcurrency). "
            "Set PerExecutionEnvironmentMaxConcurrency to 1."
        )
