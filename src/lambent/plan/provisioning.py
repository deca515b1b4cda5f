"""How much provisioned concurrency a planned function asks for, and when: a count, a schedule, target tracking.

For: the simulator, which tells the scheduler. It must not start anything, and knows no clock: it is told the second of
the simulation, whose second 0 is midnight. Outcomes: `Provisioning.wanted()` and `next_change_s()` for the plan as it
was written; `Tracker.minute()` for what the load makes of it.

Target tracking is core/tracking.py, which Application Auto Scaling asks on the live server, with Lambda's cooldown of
none. A schedule beside a target moves the minimum, as scheduled actions do.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Final

from lambent.core.tracking import LOW_DATAPOINTS, Capacity, Past, Rule, decide

DAY_S: Final = 86_400
MINUTE_S: Final = 60
TARGET_MIN, TARGET_MAX = 0.1, 0.9


@dataclasses.dataclass(frozen=True)
class Provisioning:
    """See the head of this module."""

    #: From the start; with a schedule, until its first entry.
    count: int | None = None
    #: (second of the day, count), in order.
    schedule: tuple[tuple[int, int], ...] = ()
    #: Utilisation to be kept, from 0.1 to 0.9; None: no target tracking.
    target: float | None = None
    minimum: int = 0
    #: Only with a target.
    maximum: int = 0

    def wanted(self, second: int) -> int:
        """The count that was written down for this second of the simulation; with a target, the least."""
        assert second >= 0
        passed = [count for at_s, count in self.schedule if at_s <= second % DAY_S]
        if passed:
            count = passed[-1]
        elif self.count is not None and second < DAY_S:
            count = self.count
        elif self.schedule:
            count = self.schedule[-1][1]
        else:
            count = self.count or 0
        return self.bounded(count)

    def bounded(self, count: int) -> int:
        """Within minimum and maximum, where there is a target."""
        return count if self.target is None else min(max(count, self.minimum), self.maximum)

    def next_change_s(self, second: int) -> int | None:
        """When the schedule says something next, later than this second."""
        if not self.schedule:
            return None
        day = second // DAY_S * DAY_S
        later = [day + at_s for at_s, _ in self.schedule if day + at_s > second]
        return later[0] if later else day + DAY_S + self.schedule[0][0]


class Tracker:
    """Target tracking for one function: told the utilisation of each minute."""

    __slots__ = ("_changed_s", "_minutes", "_provisioning", "_rule")

    def __init__(self, provisioning: Provisioning) -> None:
        assert provisioning.target is not None
        self._provisioning = provisioning
        self._rule = Rule(provisioning.target)
        #: The latest last; None: no request came, and there is no figure.
        self._minutes: collections.deque[float | None] = collections.deque(maxlen=LOW_DATAPOINTS)
        self._changed_s: float | None = None

    def minute(self, now_s: int, current: int, least: int, utilisation: float | None) -> int:
        """What is wanted from now on; `least`: what the schedule asks for."""
        self._minutes.append(utilisation)
        provisioning = self._provisioning
        capacity = Capacity(current, max(least, provisioning.minimum), provisioning.maximum, self._changed_s)
        decided = decide(self._rule, Past(), capacity, list(self._minutes), now_s, MINUTE_S)
        wanted = capacity.within(current if decided is None else decided)
        if wanted != current:
            self._changed_s = now_s
        return wanted


def parse_schedule(text: str) -> tuple[tuple[int, int], ...]:
    """08:00=50,20:00=5 as (second of the day, count). Raises ValueError."""
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d\d?):(\d\d)(?::(\d\d))?\s*=\s*(\d{1,7})\s*", part)
        if match is None:
            raise ValueError(f"must be like 08:00=50,20:00=5, not {text}")
        hours, minutes, seconds = int(match[1]), int(match[2]), int(match[3] or 0)
        if hours > 23 or minutes > 59 or seconds > 59:
            raise ValueError(f"{part.strip()} is no time of a day")
        found.append((hours * 3_600 + minutes * 60 + seconds, int(match[4])))
    found.sort()
    if len({at_s for at_s, _ in found}) < len(found):
        raise ValueError(f"names a time twice: {text}")
    return tuple(found)
