"""Profiles: the rules of the platform that a plan is made for.

For: `--profile`. It must not decide anything by itself: the scaling rule and the idle time go to the scheduler,
the rest to the virtual worker. Outcomes: a `Profile`.

`aws` is what logs of AWS Lambda show (facts: docs/planner.md, "How the aws profile was fitted"). Three times
describe them: a function's only environment goes after `lone_idle_ns` without a request; spare ones beside
another live longer; and no environment gets older than `life_ns`. The scheduler knows one idle time; the
other two are the fleet's doing, so the virtual worker does them: it lets environments die, as AWS does.
"""

from __future__ import annotations

import dataclasses
from typing import Final

from lambent.core.admission import ScalingProfile
from lambent.core.provisioner import PROVISIONED_STARTING_MAX
from lambent.model.limits import IDLE_RECLAIM_S, NS_PER_S, PROVISIONED_BURST_ENVIRONMENTS


@dataclasses.dataclass(frozen=True)
class Profile:
    name: str
    scaling: ScalingProfile
    #: After so long without a request the scheduler stops an environment.
    idle_ns: int
    #: The same for an environment that is its function's only one. None: no difference.
    lone_idle_ns: int | None = None
    #: The host takes an environment away at this age, as soon as it is not busy. None: never.
    life_ns: int | None = None
    #: Provisioned environments of one function that may be in Init at once: AWS has many hosts for them.
    provisioned_starting_max: int = PROVISIONED_STARTING_MAX

    def with_idle(self, idle_ns: int) -> Profile:
        """The user knows the idle time better."""
        return dataclasses.replace(self, idle_ns=idle_ns, lone_idle_ns=None)


AWS: Final = Profile(
    "aws",
    ScalingProfile.CURRENT,
    idle_ns=1_000 * NS_PER_S,
    lone_idle_ns=640 * NS_PER_S,
    life_ns=7_380 * NS_PER_S,
    provisioned_starting_max=PROVISIONED_BURST_ENVIRONMENTS,
)
CURRENT: Final = Profile("current", ScalingProfile.CURRENT, IDLE_RECLAIM_S * NS_PER_S)
CLASSIC: Final = Profile("classic", ScalingProfile.CLASSIC, IDLE_RECLAIM_S * NS_PER_S)
PROFILES: Final = {profile.name: profile for profile in (AWS, CURRENT, CLASSIC)}
