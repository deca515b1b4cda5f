"""What the checker (checkers.py) writes down about accounts, functions, versions, environments and allocations.

For: the checker alone. It must not know the scheduler; numbers are fractions where the scheduler has scaled integers.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from fractions import Fraction

from lambent.core.events import ProvisionedState
from lambent.model.invocation import InitializationType

NS_PER_S = 1_000_000_000


class Violation(Exception):
    """The scheduler has broken a rule."""


def require(condition: bool, message: str, *details: object) -> None:
    if not condition:
        raise Violation(" ".join([message, *map(repr, details)]))


class Phase(enum.Enum):
    PREPARING = "preparing"
    WAITING = "waiting"
    BUSY = "busy"
    RESETTING = "resetting"
    IDLE = "idle"
    STOPPING = "stopping"
    DEAD = "dead"


@dataclass
class Bucket:
    """A token bucket as the textbook has it."""

    at_ns: int
    capacity: int
    per_s: Fraction
    tokens: Fraction = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = Fraction(self.capacity)

    def refill(self, now_ns: int) -> None:
        grown = self.tokens + self.per_s * (now_ns - self.at_ns) / NS_PER_S
        self.tokens, self.at_ns = min(Fraction(self.capacity), grown), now_ns

    def has(self, now_ns: int) -> bool:
        self.refill(now_ns)
        return self.tokens >= 1

    def resize(self, now_ns: int, capacity: int, per_s: Fraction) -> None:
        if (capacity, per_s) == (self.capacity, self.per_s):
            return
        self.refill(now_ns)
        self.tokens = max(Fraction(0), self.tokens + capacity - self.capacity)
        self.capacity, self.per_s = capacity, per_s


@dataclass
class AccountBook:
    limit: int
    rate: Bucket
    scaling: Bucket


@dataclass
class FunctionBook:
    account: int
    scaling: Bucket
    reserved: int | None = None
    rate: Bucket | None = None
    removed: bool = False


@dataclass
class VersionBook:
    function: int
    memory_mib: int
    timeout_ns: int
    snap_start: bool = False
    tenancy: bool = False
    slots: int = 1
    retired: bool = False
    pool: PoolBook | None = None

    def provisionable(self) -> bool:
        return not (self.retired or self.snap_start or self.tenancy or self.slots > 1)


@dataclass
class AllocationBook:
    pools: dict[int, PoolBook] = field(default_factory=dict)
    #: All that was asked for has been there.
    complete: bool = False
    told: tuple[object, ...] = (0, 0, ProvisionedState.IN_PROGRESS, None)


@dataclass(eq=False)
class PoolBook:
    """The provisioned environments of a version, from the first Set that names it until it is dropped."""

    version: int
    allocation: int
    rate: Bucket
    want: int = 0
    goal: int = 0
    online: int = 0


@dataclass
class EnvironmentBook:
    version: int
    worker: int
    phase: Phase = Phase.WAITING
    kind: InitializationType = InitializationType.ON_DEMAND
    tenant: int = 0
    pool: PoolBook | None = None
    #: The request that waits for the reset of a provisioned one.
    bound: int | None = None
    #: With several requests: those handed over, with their deadlines, and those that have timed out and not ended.
    live: dict[int, int] = field(default_factory=dict)
    lingering: set[int] = field(default_factory=set)
    request: int | None = None
    deadline_ns: int = 0
    dispatched: int = 0
    runtime_up: bool = True
    debugged: bool = False
    #: Order in which environments became idle.
    idle_order: int = 0
    reset_order: int = 0
    idle_since_ns: int = 0
