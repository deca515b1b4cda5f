"""Words for how an invocation can be refused and how it can end."""

from __future__ import annotations

import enum


class ThrottleReason(enum.StrEnum):
    """`Reason` of TooManyRequestsException (botocore model, shape ThrottleReason)."""

    CONCURRENCY = "ConcurrentInvocationLimitExceeded"
    RATE = "FunctionInvocationRateLimitExceeded"
    RESERVED_CONCURRENCY = "ReservedFunctionConcurrentInvocationLimitExceeded"
    RESERVED_RATE = "ReservedFunctionInvocationRateLimitExceeded"
    CALLER_RATE = "CallerRateLimitExceeded"
    SNAPSHOT = "ConcurrentSnapshotCreateLimitExceeded"


class InitializationType(enum.StrEnum):
    """Environment variable AWS_LAMBDA_INITIALIZATION_TYPE."""

    ON_DEMAND = "on-demand"
    PROVISIONED_CONCURRENCY = "provisioned-concurrency"
    SNAP_START = "snap-start"
    MANAGED_INSTANCES = "lambda-managed-instances"


class Outcome(enum.StrEnum):
    """How an invocation ended in its environment."""

    SUCCESS = "success"
    #: The handler raised; the environment lives on.
    ERROR = "error"
    #: The function's timeout passed; the environment is reset.
    TIMEOUT = "timeout"
    #: The runtime process ended (exit, signal, out of memory); the environment is reset.
    RUNTIME_EXIT = "runtime-exit"
    #: Init failed, and failed again inside the invoke.
    INIT_ERROR = "init-error"
    #: SnapStart: the restore was not done within its limit (SnapStartTimeoutException, 408).
    RESTORE_TIMEOUT = "restore-timeout"
    #: The whole environment, or its worker, went away.
    ENVIRONMENT_LOST = "environment-lost"
