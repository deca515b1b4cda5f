"""How much memory an environment has used, and whether the kernel has killed for it."""

from __future__ import annotations

import os
import signal

from lambent.model.limits import MIB
from lambent.worker.sandboxes import Sandbox

#: When the memory peak is read again: after an invoke of this length (a shorter one can touch some 15 MiB at the most),
#: and after so much work in shorter ones.
_PEAK_INVOKE_NS = 3_000_000
_PEAK_AGE_NS = 25_000_000
#: Exit code by which a runtime without a control group says that it ran out of its memory (bootstrap.py).
OUT_OF_MEMORY_EXIT = 137


class MemoryAccount:
    """Of one sandbox. Without a control group the runtime tells its peak itself (`note_kib`)."""

    __slots__ = ("_age_ns", "_baseline_bytes", "_events_fd", "_limit_mib", "_oom_kills", "_peak_bytes", "_peak_fd")

    def __init__(self, limit_mib: int) -> None:
        self._limit_mib = limit_mib
        self._peak_fd = self._events_fd = -1
        self._baseline_bytes = 0
        self._oom_kills = 0
        self._peak_bytes, self._age_ns = 0, _PEAK_AGE_NS

    def attach(self, sandbox: Sandbox) -> None:
        self._peak_fd, self._events_fd = sandbox.peak_fd, sandbox.events_fd
        self._baseline_bytes = sandbox.zygote.shared_bytes

    def detach(self) -> None:
        """The descriptors are about to be closed."""
        self._peak_fd = self._events_fd = -1

    @property
    def told_by_runtime(self) -> bool:
        return self._peak_fd < 0

    def begin(self) -> None:
        """A new runtime process begins."""
        self._peak_bytes, self._age_ns = 0, _PEAK_AGE_NS

    def note_kib(self, kib: int) -> None:
        self._peak_bytes = max(self._peak_bytes, kib * 1_024)

    def used_mib(self, duration_ns: int, at_limit: bool) -> int:
        """Max Memory Used after an invocation of this length: the peak of the control group, and the interpreter that
        is shared and so not counted there."""
        self._age_ns += _PEAK_AGE_NS if duration_ns >= _PEAK_INVOKE_NS else duration_ns
        if at_limit:
            return self._limit_mib
        if self._peak_fd < 0:
            used = -(-self._peak_bytes // MIB)
        else:
            if self._age_ns >= _PEAK_AGE_NS:
                self._age_ns = 0
                self._peak_bytes = self._read_peak()
            used = -(-(self._peak_bytes + self._baseline_bytes) // MIB)
        return min(used, self._limit_mib)

    def peak_bytes(self) -> int:
        return self._read_peak() + self._baseline_bytes

    def own_bytes(self) -> int:
        """Without what is shared with others."""
        return self._read_peak()

    def _read_peak(self) -> int:
        if self._peak_fd < 0:
            return self._peak_bytes
        try:
            return int(os.pread(self._peak_fd, 32, 0))
        except (OSError, ValueError):
            return self._peak_bytes

    def was_reason(self, status: int) -> bool:
        """Did the kernel kill for memory, given the process's wait status? Without a group the exit code says so."""
        if self._events_fd < 0:
            return self._peak_fd < 0 and status == OUT_OF_MEMORY_EXIT << 8
        return status & 0x7F == signal.SIGKILL and self.new_oom_kills()

    def new_oom_kills(self) -> bool:
        if self._events_fd < 0:
            return False
        before = self._oom_kills
        for line in os.pread(self._events_fd, 1_024, 0).splitlines():
            name, _, count = line.partition(b" ")
            if name == b"oom_kill":
                self._oom_kills = int(count)
        return self._oom_kills > before
