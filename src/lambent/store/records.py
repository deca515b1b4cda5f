"""What is remembered about a function, as the documents that the tables hold.

Plain values: no behaviour but encoding. A field that is added later needs a default, so that documents
written before it can still be read.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgspec

from lambent.model.function import LogFormat, VersionSpec
from lambent.model.function_url import UrlSpec
from lambent.model.names import LATEST, FunctionKey


class Phase(enum.StrEnum):
    """Where a version is in its life. AWS's `State` and `LastUpdateStatus` are two views of this one thing;
    `services.lambda_.lifecycle` has the transitions.
    """

    CREATING = "creating"
    READY = "ready"
    #: The newest change is being prepared; what was there before answers.
    UPDATING = "updating"
    #: The newest change could not be prepared; what was there before goes on answering.
    UPDATE_FAILED = "update-failed"
    CREATE_FAILED = "create-failed"
    #: A change of a version that could never run.
    REPAIRING = "repairing"


class FunctionRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What all versions of a function share."""

    key: FunctionKey
    #: The newest number given to a version. Never goes back, so that a number is never used twice.
    last_version: int = 0
    reserved: int | None = None
    tags: dict[str, str] = {}


class LayerUse(msgspec.Struct, frozen=True):
    """A layer version as a function uses it: all that is needed of it once it is deleted."""

    arn: str
    code_sha256: str
    code_size: int


class ImageRecord(msgspec.Struct, frozen=True, omit_defaults=True):
    """A container image as a function uses it: `uri` as it was asked for, `resolved_uri` with the digest that this
    meant then, and what the image itself says about its process."""

    uri: str
    resolved_uri: str
    entry_point: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_directory: str = ""
    environment: dict[str, str] = {}


class VersionRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One version: its code, its configuration, its life cycle. `version` is "$LATEST" or a number."""

    key: FunctionKey
    version: str = LATEST
    revision_id: str
    last_modified: str

    #: Hex digest of the zip, or of the manifest of `image`.
    code_sha256: str
    code_size: int
    #: Container images only, which have no `runtime` and no `handler`.
    image: ImageRecord | None = None
    #: ImageConfig as it was sent: what of the image is overridden.
    image_config: dict[str, Any] = {}

    runtime: str
    handler: str
    role: str
    description: str = ""
    timeout_s: int
    memory_mib: int
    tmp_mib: int
    #: None: never sent, and then not answered either.
    environment: dict[str, str] | None = None
    architecture: str = "x86_64"
    log_format: LogFormat = LogFormat.TEXT
    application_log_level: str | None = None
    system_log_level: str | None = None
    log_group: str = ""
    #: In the order in which they are laid into /opt.
    layers: tuple[LayerUse, ...] = ()
    #: Accepted and answered; nothing on this machine depends on them.
    tracing_mode: str = "PassThrough"
    kms_key_arn: str = ""
    vpc: dict[str, Any] | None = None

    #: SnapStart.ApplyOn is PublishedVersions.
    snap_start: bool = False
    #: TenancyConfig.TenantIsolationMode is PER_TENANT; never changes.
    tenancy: bool = False
    #: ARN of the capacity provider, "" for ordinary Lambda; and what was said with it, 0 for what was not.
    capacity_provider: str = ""
    environment_concurrency: int = 0
    memory_gib_per_vcpu: float = 0.0

    phase: Phase = Phase.READY
    #: Why the phase is a failed one.
    reason: str = ""
    reason_code: str = ""

    #: $LATEST only: what answers invokes while (or because) the newest update has not taken effect.
    serving: VersionSpec | None = None
    #: Published versions only: fingerprint of $LATEST when this version was made of it.
    published_from: str = ""

    @property
    def ordinal(self) -> int:
        """The key column: 0 for $LATEST, else the version's number."""
        return ordinal_of(self.version)


class AliasRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A name for a version, or for two with weights. `additional` is version -> share of the second one."""

    key: FunctionKey
    alias: str
    version: str
    description: str = ""
    additional: dict[str, float] = {}
    revision_id: str


class UrlRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A function URL and when it was made and changed, as the API writes it."""

    spec: UrlSpec
    created: str
    modified: str


class ProvisionedRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The provisioned concurrency that was asked for, for a version or an alias."""

    key: FunctionKey
    qualifier: str
    requested: int
    last_modified: str


class PolicyRecord(msgspec.Struct, kw_only=True):
    """A resource policy: who may do what with a function, a version, an alias or a layer version. Statements are as
    AWS writes them, in the order in which they came."""

    revision_id: str
    statements: tuple[dict[str, Any], ...]


class CapacityKey(NamedTuple):
    """What identifies a capacity provider."""

    account: str
    region: str
    name: str

    @property
    def arn(self) -> str:
        return f"arn:aws:lambda:{self.region}:{self.account}:capacity-provider:{self.name}"


class CapacityRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A capacity provider. `members`: of the API's CapacityProvider, as they were sent."""

    key: CapacityKey
    members: dict[str, Any]
    modified: str
    tags: dict[str, str] = {}


class LayerKey(NamedTuple):
    """What identifies a layer: everything but its versions."""

    account: str
    region: str
    name: str

    def arn(self, version: int | None = None) -> str:
        base = f"arn:aws:lambda:{self.region}:{self.account}:layer:{self.name}"
        return base if version is None else f"{base}:{version}"


class LayerVersionRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One version of a layer; all that is ever changed of it is its policy."""

    key: LayerKey
    version: int
    created: str
    code_sha256: str
    code_size: int
    description: str = ""
    license_info: str | None = None
    #: None: never said, and then not answered either.
    runtimes: tuple[str, ...] | None = None
    architectures: tuple[str, ...] | None = None
    policy: PolicyRecord | None = None

    @property
    def arn(self) -> str:
        return self.key.arn(self.version)


#: What a signed 64-bit column holds.
ORDINAL_MAX = 2**63 - 1


def ordinal_of(version: str) -> int:
    """A version's place in lists: 0 for $LATEST, else its number; -1 for what can be no version's name."""
    if version == LATEST:
        return 0
    if not version.isascii() or not version.isdecimal() or version.startswith("0") or len(version) > 19:
        return -1
    number = int(version)
    return number if number <= ORDINAL_MAX else -1
