"""What the control plane needs of the data plane.

All calls for one function come in the order in which its changes were committed to the store; after a restart
`load` makes them again from what is stored. Nothing here waits but `prepare`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from lambent.core.events import ProvisionedStatus
from lambent.model.function import VersionSpec
from lambent.model.function_url import UrlSpec
from lambent.model.names import FunctionKey


class Deployments(Protocol):
    """Where functions run."""

    async def prepare(self, spec: VersionSpec) -> None:
        """Make ready what a first invoke needs (code unpacked, runtime up). Raises ApiError when it cannot
        run; the message becomes the version's StateReason."""
        ...

    def activate(self, spec: VersionSpec) -> None:
        """Route new requests of this version label to `spec`; an earlier generation of the label drains.

        The spec is the one that `prepare` got, or after a restart one that was prepared by an earlier
        process.
        """
        ...

    def hold(self, spec: VersionSpec, state: str | None) -> None:
        """SnapStart: this published version is "Pending" or "Failed", which invokes are told; None: neither."""
        ...

    def retire_version(self, key: FunctionKey, version: str) -> None: ...

    def set_pending(self, key: FunctionKey, state: str | None) -> None:
        """ "Pending" or "Failed": invokes are answered with 409 and that state; None: it can be invoked."""
        ...

    def remove_function(self, key: FunctionKey) -> None:
        """With all its versions, aliases and URLs."""
        ...

    def set_alias(self, key: FunctionKey, alias: str, version: str, additional: dict[str, float]) -> None: ...

    def remove_alias(self, key: FunctionKey, alias: str) -> None: ...

    def set_url(self, spec: UrlSpec, permits: Callable[[str], bool]) -> None:
        """Requests to this function URL are the function's. `permits`: whether the resource policy lets an account
        call it, or anybody ("*")."""
        ...

    def remove_url(self, url_id: str) -> None: ...

    def set_reserved(self, key: FunctionKey, reserved: int | None) -> None: ...

    def set_provisioned(self, key: FunctionKey, qualifier: str, requested: int) -> None:
        """Keep so many environments initialised for a version or an alias, also where the alias moves; again for what
        has failed."""
        ...

    def remove_provisioned(self, key: FunctionKey, qualifier: str) -> None:
        """Deleting the version, the alias or the function does this too."""
        ...

    def provisioned_status(self, key: FunctionKey, qualifier: str) -> ProvisionedStatus | None:
        """What has become of it so far; None: nothing was asked for."""
        ...
