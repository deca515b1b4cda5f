"""A function version as the data plane and the workers need it: what to run, and within which limits."""

from __future__ import annotations

import enum

import msgspec

from lambent.model.names import FunctionKey


class LogFormat(enum.StrEnum):
    TEXT = "Text"
    JSON = "JSON"


class ImageSpec(msgspec.Struct, frozen=True):
    """A container image, ready to run: what ImageConfig overrides is merged in. `digest` is the hex SHA-256 of its
    manifest and the key of the unpacked root file system in the code store."""

    digest: str
    entry_point: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_directory: str = ""
    environment: dict[str, str] = {}


class DebugSpec(msgspec.Struct, frozen=True):
    """Where a debugger attaches to an environment of a function: a port of 127.0.0.1. `wait`: Init waits for it."""

    port: int
    wait: bool = False


class VersionSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One version of a function, ready to run. Immutable: a change of code or configuration makes a new one.

    `code_sha256` is the hex digest of the zip and the key of the code store; with `image` set it is empty, and so are
    `runtime` and `handler`. `layers` are the digests of the layers' zips in the order in which they are laid into /opt.
    `version` is "$LATEST" or a number.
    """

    key: FunctionKey
    version: str
    runtime: str
    handler: str
    role: str
    code_sha256: str
    memory_mib: int
    timeout_s: int
    tmp_mib: int
    environment: dict[str, str] = {}
    log_format: LogFormat = LogFormat.TEXT
    application_log_level: str | None = None
    system_log_level: str = "INFO"
    log_group: str = ""
    revision_id: str = ""
    layers: tuple[str, ...] = ()
    image: ImageSpec | None = None
    #: A published version with SnapStart: its environments are restored from a snapshot that is taken after Init.
    snap_start: bool = False
    #: Tenant isolation: an environment serves one tenant only, and every request names its tenant.
    tenancy: bool = False
    #: Lambda Managed Instances: so many requests at once in an environment; 0 is ordinary Lambda.
    concurrency_per_environment: int = 0
    #: Lambda Managed Instances: an environment has one vCPU for so much memory.
    memory_gib_per_vcpu: float = 2.0

    @property
    def is_managed(self) -> bool:
        """Of a capacity provider."""
        return self.concurrency_per_environment > 0

    @property
    def is_shared(self) -> bool:
        """An environment serves several requests at once."""
        return self.concurrency_per_environment > 1

    @property
    def arn(self) -> str:
        return self.key.arn(self.version)
