"""Several requests at once in one environment (Lambda Managed Instances), and the room that environments have.

For: the books of such an environment, and finding the one that takes the next request. It must not decide about
life and death: sharer.py does. Outcomes: `Rooms.fullest()` is an environment with room for one more, or None.

Theory of operation. Of the environments with room, the one that has the most requests takes the next one, and of
equals the one that changed last. So load gathers in few environments, the others empty and are given back when they
have been idle for long enough; spreading requests evenly would keep all of them half full for ever. An environment
that is up goes before one that is still starting, however many requests wait for the latter: those in front of it
would wait for Init.

A request that timed out is *lingering*: "timeouts are per request and do not kill code", so its place is taken until
the runtime says that it has ended. An environment whose places all linger is replaced.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from lambent.core.environment import EnvironmentState

if TYPE_CHECKING:
    from lambent.core.environment import Environment

_COMING, _UP = 0, 1
_UP_STATES: Final = (EnvironmentState.IDLE, EnvironmentState.BUSY)


class Shared:
    """The requests of one environment."""

    __slots__ = ("bound", "lingering", "live", "place")

    def __init__(self) -> None:
        #: Handed over: request -> deadline, the earliest first, as all have the same timeout.
        self.live: dict[int, int] = {}
        #: Waiting for the end of Init: request -> how many environments it has been given.
        self.bound: dict[int, int] = {}
        #: Timed out, and still running for all we know.
        self.lingering: set[int] = set()
        #: Where it stands in Rooms: (coming or up, load).
        self.place: tuple[int, int] | None = None

    def load(self) -> int:
        assert not (self.live and self.bound)
        return len(self.live) + len(self.bound) + len(self.lingering)


class Rooms:
    """The environments of one version (and tenant) that have room, by how many requests they have."""

    __slots__ = ("_levels", "_masks")

    def __init__(self) -> None:
        #: For coming and up: load -> environments. Bit n of the mask: there are some with load n.
        self._levels: tuple[dict[int, OrderedDict[int, Environment]], ...] = ({}, {})
        self._masks = [0, 0]

    def __bool__(self) -> bool:
        return self._masks != [0, 0]

    def fullest(self) -> Environment | None:
        """The one that should take the next request."""
        for group in (_UP, _COMING):
            mask = self._masks[group]
            if mask:
                level = self._levels[group][mask.bit_length() - 1]
                assert level
                return level[next(reversed(level))]
        return None

    def put(self, environment: Environment) -> None:
        """Its load or state has changed: it stands where it belongs from now on, or nowhere if it is full."""
        shared = environment.shared
        assert shared is not None
        self.remove(environment)
        assert shared.place is None
        load = shared.load()
        assert load <= environment.version.concurrency
        if load == environment.version.concurrency:
            return
        group = _UP if environment.state in _UP_STATES else _COMING
        self._levels[group].setdefault(load, OrderedDict())[environment.id] = environment
        self._masks[group] |= 1 << load
        shared.place = group, load

    def remove(self, environment: Environment) -> None:
        """It takes no more requests."""
        shared = environment.shared
        assert shared is not None
        if shared.place is None:
            return
        (group, load), shared.place = shared.place, None
        level = self._levels[group][load]
        del level[environment.id]
        if not level:
            del self._levels[group][load]
            self._masks[group] &= ~(1 << load)
        assert (load in self._levels[group]) is bool(self._masks[group] >> load & 1)
