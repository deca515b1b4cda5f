"""Where new environments go: workers, their room, and whom to stop to make room.

For: choosing a worker. It must not start or stop anything: it answers with a worker and the idle
environments that must go first; scheduler.py does it. Outcomes: a `Site`, or None when no worker can have
room.

Theory of operation. A worker has room if memory and number of environments stay within what it promised. Of
the workers with room, the one with the most free memory is taken (lowest id of equals): load spreads, and
the choice is easy to foresee. If none has room, idle environments are given up, least recently used first,
on one worker; of the workers where that makes enough room, the one that gives up the least valuable: whose
most recently used victim has been idle for the longest (then lowest id).

The room of an environment counts as free from its Stop on, not from its death: a stopping one holds no
request and goes within milliseconds (the scheduler forgets it after 10 s at the latest), while a request
that waited for the death would be late or refused. A worker must therefore bear a moment with both; workers
kill the old one before they start the new one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from lambent.core.environment import Environment


class Worker:
    """A host as the scheduler knows it."""

    __slots__ = (
        "environments",
        "environments_max",
        "id",
        "idle",
        "memory_mib",
        "memory_used_mib",
        "occupied",
    )

    def __init__(self, identity: int, memory_mib: int, environments_max: int) -> None:
        assert memory_mib >= 0
        assert environments_max >= 0
        self.id = identity
        self.memory_mib = memory_mib
        self.environments_max = environments_max
        #: Promised to environments that have not been told to stop; `occupied` is their number.
        self.memory_used_mib = 0
        self.occupied = 0
        #: All on this worker, those that are stopping included.
        self.environments: dict[int, Environment] = {}
        #: Those in IDLE, least recently used first; provisioned ones are not given up for room and not listed.
        self.idle: OrderedDict[int, Environment] = OrderedDict()

    def has_room(self, memory_mib: int) -> bool:
        assert memory_mib > 0
        return self.memory_used_mib + memory_mib <= self.memory_mib and self.occupied < self.environments_max

    def occupy(self, environment: Environment) -> None:
        assert environment.id not in self.environments
        assert self.has_room(environment.version.memory_mib)
        self.environments[environment.id] = environment
        self.memory_used_mib += environment.version.memory_mib
        self.occupied += 1

    def vacate(self, environment: Environment) -> None:
        """It was told to stop, or died without."""
        assert environment.id in self.environments
        self.memory_used_mib -= environment.version.memory_mib
        self.occupied -= 1
        assert self.memory_used_mib >= 0
        assert self.occupied >= 0

    def victims(self, memory_mib: int) -> list[Environment] | None:
        """The least recently used idle environments that must go to make room; None if that is not enough."""
        assert not self.has_room(memory_mib)
        memory_free_mib = self.memory_mib - self.memory_used_mib
        free_count = self.environments_max - self.occupied
        victims: list[Environment] = []
        for environment in self.idle.values():
            victims.append(environment)
            memory_free_mib += environment.version.memory_mib
            free_count += 1
            if memory_free_mib >= memory_mib and free_count > 0:
                return victims
        assert len(victims) == len(self.idle)
        return None


class Site(NamedTuple):
    """A worker, and whom to stop there first."""

    worker: Worker
    victims: list[Environment]


def find_site(workers: dict[int, Worker], memory_mib: int) -> Site | None:
    """A place for a new environment of this size."""
    assert memory_mib > 0
    best: Worker | None = None
    best_key = (0, 0)
    for worker in workers.values():
        if worker.has_room(memory_mib):
            key = (worker.memory_used_mib - worker.memory_mib, worker.id)
            if best is None or key < best_key:
                best, best_key = worker, key
    if best is not None:
        assert best.has_room(memory_mib)
        return Site(best, [])
    return _make_room(workers, memory_mib)


def _make_room(workers: dict[int, Worker], memory_mib: int) -> Site | None:
    site: Site | None = None
    site_key = (0, 0)
    for worker in workers.values():
        victims = worker.victims(memory_mib) if worker.idle else None
        if victims is None:
            continue
        assert victims
        key = (victims[-1].since_ns, worker.id)
        if site is None or key < site_key:
            site, site_key = Site(worker, victims), key
    return site
