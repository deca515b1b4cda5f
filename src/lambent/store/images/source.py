"""What the store asks of every place where images are. All of it blocks; a source is used by one thread."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lambent.store.images.budget import Budget
from lambent.store.images.manifest import FoundImage
from lambent.store.images.rootfs import Rootfs


class Source(Protocol):
    """One ImageUri's place. Every call may raise a SourceError."""

    def find(self, architecture: str) -> FoundImage:
        """The image that the reference means now, for a function of this architecture (AWS's name)."""

    def unpack(self, image: FoundImage, rootfs: Rootfs, scratch: Path, budget: Budget) -> None:
        """Apply all its layers. `scratch` is an empty folder that is removed afterwards."""

    def close(self) -> None: ...
