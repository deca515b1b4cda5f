"""What `lambent up` can be told, by options or LAMBENT_* variables."""

from __future__ import annotations

import enum
import os
from pathlib import Path

import msgspec

from lambent.model.limits import ACCOUNT_CONCURRENCY_DEFAULT, IDLE_RECLAIM_S


class SandboxChoice(enum.StrEnum):
    AUTO = "auto"
    PROCESS = "process"
    NAMESPACE = "namespace"
    OCI = "oci"


class Profile(enum.StrEnum):
    CURRENT = "current"
    CLASSIC = "classic"


class CpuLimit(enum.StrEnum):
    SHARE = "share"
    QUOTA = "quota"


def default_data_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/lambent")
    return Path(os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share"))) / "lambent"


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All of it has a default that is right for a developer's machine."""

    host: str = "127.0.0.1"
    port: int = 9400
    data_dir: Path
    sandbox: SandboxChoice = SandboxChoice.AUTO
    profile: Profile = Profile.CURRENT
    account_concurrency: int = ACCOUNT_CONCURRENCY_DEFAULT
    upstream: str | None = None
    #: Domain of function URLs (model.function_url.url_base).
    url_domain: str = "localhost"
    insecure: bool = False
    strict_runtimes: bool = False
    cpu: CpuLimit = CpuLimit.SHARE
    #: Stop environments between invocations, as Lambda does.
    freeze: bool = True
    idle_s: float = IDLE_RECLAIM_S
    drain_s: float = 30.0
    parked: int = 8
    memory_overcommit: float = 8.0
    log_retention_mib: int = 1_024
    record: Path | None = None
    #: Folders below which ImageUri may name images of this machine; absolute.
    image_dirs: tuple[Path, ...] = ()
    #: Docker's config.json with the credentials of registries; must be readable for the server's user.
    docker_config: Path | None = None
