"""Target tracking: which capacity keeps a utilisation near its target.

For: Application Auto Scaling's decision about provisioned concurrency, live and planned. It must not know a clock, a
store or a policy's document. Outcomes: `decide()` gives the capacity to go to, or None to stay.

Theory of operation. AWS makes two alarms of a policy: *high*, above the target for 3 periods of a minute, and *low*,
below 90 % of it for 15. A period without data breaches neither, so without traffic nothing is scaled in. In state
*high* the capacity becomes what would have brought the newest value to the target; in state *low* the same with the
highest of the 15 values (AWS only says that it scales in gradually). The capacity stays within its bounds.

*Cooldowns* as AWS's guide describes them: after scaling out, what was added counts as part of what the next scaling
out asks for, so that only a greater demand adds more; scaling in waits for both; a scaling out ends the waiting for a
scaling in. *After a change* the values must be about the capacity that there is now, or one demand would be answered
twice: the newest one to scale out, all 15 to scale in. One whose period was half over when the change came does not
count.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

HIGH_DATAPOINTS: Final = 3
LOW_DATAPOINTS: Final = 15
#: The low alarm's threshold as part of the target.
LOW_PART: Final = 0.9
_EPSILON: Final = 1e-9
#: More than anybody has; keeps a tiny target from asking for infinity.
_CAPACITY_MAX: Final = 1e9


class Alarm(enum.Enum):
    OK = enum.auto()
    HIGH = enum.auto()
    LOW = enum.auto()


class Rule(NamedTuple):
    """A target tracking policy. `target` is in the metric's unit; cooldowns in seconds."""

    target: float
    scale_out_cooldown_s: float = 0.0
    scale_in_cooldown_s: float = 0.0
    scale_in: bool = True


class Past(NamedTuple):
    """What a policy did last, on the caller's clock; None: never."""

    scaled_out_s: float | None = None
    #: Capacity before that.
    scaled_out_from: int = 0
    scaled_in_s: float | None = None


class Capacity(NamedTuple):
    """What there is, and its bounds. `changed_s`: when it last became what it is, if that is known."""

    current: int
    minimum: int
    maximum: int
    changed_s: float | None = None

    def within(self, wanted: int) -> int:
        return max(self.minimum, min(wanted, self.maximum))


def alarm(target: float, datapoints: Sequence[float | None]) -> Alarm:
    """The state that the values of the last periods, newest last, None for those without data, are in."""
    recent = datapoints[-HIGH_DATAPOINTS:]
    if len(recent) == HIGH_DATAPOINTS and all(value is not None and value > target for value in recent):
        return Alarm.HIGH
    recent = datapoints[-LOW_DATAPOINTS:]
    low = target * LOW_PART
    if len(recent) == LOW_DATAPOINTS and all(value is not None and value < low for value in recent):
        return Alarm.LOW
    return Alarm.OK


def decide(
    rule: Rule, past: Past, capacity: Capacity, datapoints: Sequence[float | None], now_s: float, period_s: float
) -> int | None:
    """The capacity to go to for one policy; None: nothing is to be done. `datapoints` as for `alarm`."""
    assert rule.target > 0
    assert period_s > 0
    assert 0 <= capacity.minimum <= capacity.maximum
    state = alarm(rule.target, datapoints)
    periods = LOW_DATAPOINTS if state is Alarm.LOW else 1
    if capacity.changed_s is not None and now_s - capacity.changed_s < (periods - 0.5) * period_s:
        return None
    cooling_out = past.scaled_out_s is not None and now_s < past.scaled_out_s + rule.scale_out_cooldown_s
    if state is Alarm.HIGH:
        newest = datapoints[-1]
        assert newest is not None
        wanted = capacity.within(_needed(past.scaled_out_from if cooling_out else capacity.current, newest, rule))
        return wanted if wanted > capacity.current else None
    if state is Alarm.LOW and rule.scale_in and not cooling_out:
        since_s = past.scaled_in_s
        if since_s is not None and past.scaled_out_s is not None and past.scaled_out_s > since_s:
            since_s = None
        if since_s is not None and now_s < since_s + rule.scale_in_cooldown_s:
            return None
        highest = max(value for value in datapoints[-LOW_DATAPOINTS:] if value is not None)
        wanted = capacity.within(_needed(capacity.current, highest, rule))
        return wanted if wanted < capacity.current else None
    return None


def combine(current: int, decisions: Iterable[tuple[Rule, int | None]]) -> int | None:
    """One capacity out of those of all policies of a target: out if any wants that, in only if all that may do so want
    it; the greatest of what they want."""
    wanted = list(decisions)
    assert current >= 0
    assert all(decision != current for _, decision in wanted)
    out = [decision for _, decision in wanted if decision is not None and decision > current]
    if out:
        return max(out)
    scaling_in = [decision for rule, decision in wanted if rule.scale_in]
    if not scaling_in or any(decision is None for decision in scaling_in):
        return None
    return max(decision for decision in scaling_in if decision is not None)


def _needed(base: int, value: float, rule: Rule) -> int:
    """The capacity at which `value`, measured at `base`, would be at the target."""
    needed = min(base * value / rule.target, _CAPACITY_MAX) - _EPSILON
    return -int(-needed // 1)
