"""Freezes environments that have been idle for a moment, so that nothing in them makes progress between invocations.

Not at once: while requests keep coming an environment is idle for microseconds, and stopping it would cost more than
the request. An environment that has rested for FREEZE_AFTER_S is frozen by its control group, or, where there is none,
by signals from its first process.

In a crowd of clients some environments rest a little longer than others, again and again, and each thaw takes some
0.2 ms: one that is wanted within SOON_S of being frozen gets twice the patience the next time, up to PATIENCE_MAX_S,
and the short one again as soon as it has rested for longer.
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
SOON_S = 0.03
PATIENCE_MAX_S = 0.08
FREEZE_AFTER_NS, _SOON_NS, _PATIENCE_MAX_NS = (int(each * 1e9) for each in (FREEZE_AFTER_S, SOON_S, PATIENCE_MAX_S))


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
        now_ns = time.monotonic_ns()
        for environment in list(self._resting):
            rested_ns = now_ns - environment.idle_since_ns
            if rested_ns < FREEZE_AFTER_NS:
                break
            if rested_ns >= environment.patience_ns:
                del self._resting[environment]
                environment.freeze()
        if self._resting:
            self._timer = self._loop.call_later(FREEZE_AFTER_S / 2, self._sweep)

    def patience_ns(self, before_ns: int, frozen_ns: int) -> int:
        """How long an environment may rest from now on, that had `before_ns` and was frozen for `frozen_ns`."""
        return min(2 * before_ns, _PATIENCE_MAX_NS) if frozen_ns < _SOON_NS else FREEZE_AFTER_NS

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
