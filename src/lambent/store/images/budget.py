"""What one image may cost: bytes, entries and time. Counted while it is read, whatever its headers claim."""

from __future__ import annotations

import threading
import time

from lambent.store.images.errors import Broken, Unreachable

#: AWS: 10 GB uncompressed, all layers together.
IMAGE_MAX_BYTES = 10 << 30
#: Files, folders and links of all layers. Lambent's own: inodes are not in the 10 GB.
ENTRIES_MAX = 1_000_000
#: Lambent's own, for pulling and unpacking together.
PULL_MAX_S = 1_800.0


class Budget:
    """Raises Broken when an image is too large, Unreachable when time is up or the server stops.

    Bytes are those of the layers' tars, uncompressed. `check` may be called from other threads.
    """

    def __init__(
        self,
        stopping: threading.Event | None = None,
        *,
        bytes_max: int = IMAGE_MAX_BYTES,
        entries_max: int = ENTRIES_MAX,
        seconds_max: float = PULL_MAX_S,
    ) -> None:
        self._stopping = stopping or threading.Event()
        self._bytes_max = bytes_max
        self._bytes_left = bytes_max
        self._entries_left = entries_max
        self._ends_s = time.monotonic() + seconds_max

    def take(self, count: int) -> None:
        """These many bytes more of a tar."""
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise Broken(f"larger than {self._bytes_max} bytes")
        self.check()

    def announce(self, count: int) -> None:
        """Refuse before anything is pulled what can not fit: compressed, it is already too large."""
        if count > self._bytes_max:
            raise Broken(f"larger than {self._bytes_max} bytes")

    def entry(self) -> None:
        self._entries_left -= 1
        if self._entries_left < 0:
            raise Broken("too many files")
        self.check()

    def check(self) -> None:
        """Between two pieces of work."""
        if self._stopping.is_set():
            raise Unreachable("Lambent is stopping")
        if time.monotonic() > self._ends_s:
            raise Unreachable("it took too long")
