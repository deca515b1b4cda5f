"""Freezes environments that have been idle for a moment, so that nothing in them makes progress between invocations.

Not at once: while requests keep coming an environment is idle for microseconds, and stopping it would cost more than
the request. An environment that has rested for FREEZE_AFTER_S is frozen by its control group, or, where there is none,
by signals from its first process.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lambent.worker.environment import Environment
    from lambent.worker.sandboxes import Sandbox

FREEZE_AFTER_S = 0.01
_FREEZE_AFTER_NS = int(FREEZE_AFTER_S * 1e9)


class Freezer:
    """`rests` and `works` are on the hot path: a dictionary entry each."""

    def __init__(self, loop: asyncio.AbstractEventLoop, enabled: bool) -> None:
        self._loop = loop
        self._enabled = enabled
        #: Resting environments, longest first.
        self._resting: dict[Environment, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    def rests(self, environment: Environment) -> None:
        """It waits for a request from now on."""
        environment.idle_since_ns = time.monotonic_ns()
        self._resting[environment] = None
        if self._timer is None and self._enabled:
            self._timer = self._loop.call_later(FREEZE_AFTER_S, self._sweep)

    def works(self, environment: Environment) -> None:
        self._resting.pop(environment, None)

    def _sweep(self) -> None:
        self._timer = None
        before_ns = time.monotonic_ns() - _FREEZE_AFTER_NS
        for environment in list(self._resting):
            if environment.idle_since_ns > before_ns:
                break
            del self._resting[environment]
            environment.freeze()
        if self._resting:
            self._timer = self._loop.call_later(FREEZE_AFTER_S / 2, self._sweep)

    def freeze(self, sandbox: Sandbox) -> bool:
        """True: it is frozen, and must be thawed before anything is wanted of it."""
        if sandbox.freezer_fd < 0:
            return sandbox.send({"op": "freeze"})
        try:
            os.write(sandbox.freezer_fd, _FREEZE[sandbox.freezes_by_v1])
        except OSError:
            return False
        return True

    def thaw(self, sandbox: Sandbox) -> None:
        if sandbox.freezer_fd < 0:
            sandbox.send({"op": "thaw"})
            return
        try:
            os.write(sandbox.freezer_fd, _THAW[sandbox.freezes_by_v1])
        except OSError:
            pass  # it is gone

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._enabled = False


_FREEZE = {True: b"FROZEN", False: b"1"}
_THAW = {True: b"THAWED", False: b"0"}
