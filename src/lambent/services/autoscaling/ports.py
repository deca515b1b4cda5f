"""What Application Auto Scaling needs of the Lambda service."""

from __future__ import annotations

from typing import Protocol

from lambent.model.names import FunctionKey


class Level(Protocol):
    @property
    def requested(self) -> int: ...

    @property
    def settled(self) -> bool:
        """All that was asked for is there, or it has failed."""
        ...


class Provisioning(Protocol):
    """Provisioned concurrency, of functions that may be gone since: then ApiError is raised."""

    async def level(self, key: FunctionKey, qualifier: str) -> Level:
        """What was asked for; 0 where nothing was."""
        ...

    async def scale(self, key: FunctionKey, qualifier: str, requested: int) -> None:
        """Ask for so many; 0 takes the configuration away."""
        ...
