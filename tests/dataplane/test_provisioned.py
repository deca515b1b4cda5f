"""Configurations as the scheduler is told them: an alias's share for each version, moves, preparation in between."""

from __future__ import annotations

import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st

from lambent.core.events import ProvisionedReason, ProvisionedState
from lambent.core.scheduler import Scheduler
from lambent.dataplane.deployments import Deployments
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.provisioned import split
from lambent.dataplane.routing import AliasEntry, RoutingTable
from lambent.model.function import VersionSpec
from lambent.model.names import FunctionKey
from lambent.telemetry.lambda_metrics import LambdaMetrics

KEY = FunctionKey("000000000000", "us-east-1", "f")


def test_by_weight() -> None:
    assert dict(split(AliasEntry("1", ()), 5)) == {"1": 5}
    assert dict(split(AliasEntry("1", (("2", 0.3),)), 10)) == {"1": 7, "2": 3}
    assert dict(split(AliasEntry("1", (("2", 0.5),)), 5)) == {"1": 2, "2": 3}
    assert dict(split(AliasEntry("1", (("2", 0.1),)), 1)) == {"1": 1, "2": 0}


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_nothing_is_lost(requested: int, weight: float) -> None:
    shares = dict(split(AliasEntry("1", (("2", weight),)), requested))
    assert sum(shares.values()) == requested
    assert min(shares.values()) >= 0
    assert abs(shares["2"] - requested * weight) <= 0.5


def spec(version: str) -> VersionSpec:
    return VersionSpec(
        key=KEY,
        version=version,
        runtime="python3.12",
        handler="m.handler",
        role="",
        code_sha256="",
        memory_mib=128,
        timeout_s=3,
        tmp_mib=512,
    )


class Rig:
    """A data plane to which no worker has come: everything is asked for, nothing is there."""

    def __init__(self) -> None:
        self.plane = DataPlane(Scheduler())
        self.routing = RoutingTable(random.Random(1), LambdaMetrics())
        self.deployments = Deployments(self.plane, self.routing, 1_000)

    def wanted(self) -> dict[str, int]:
        """What the scheduler has been asked for, by version."""
        entries = self.routing.functions[KEY].versions.values()
        labels = {entry.id: entry.spec.version for entry in entries}
        lines = self.plane.scheduler.statistics().versions
        return {labels[line.version]: line.provisioned.wanted for line in lines if line.provisioned is not None}


async def _follow() -> None:
    rig = Rig()
    deployments = rig.deployments
    deployments.activate(spec("1"))
    deployments.set_alias(KEY, "live", "1", {})
    assert deployments.provisioned_status(KEY, "live") is None
    deployments.set_provisioned(KEY, "live", 4)
    assert rig.wanted() == {"1": 4}
    status = deployments.provisioned_status(KEY, "live")
    assert status is not None
    assert (status.allocated, status.available) == (0, 0)
    assert (status.state, status.reason) == (ProvisionedState.IN_PROGRESS, ProvisionedReason.NO_ROOM)

    # Version 2 is still being prepared: until then version 1 keeps what it has.
    deployments.set_alias(KEY, "live", "2", {})
    assert rig.wanted() == {"1": 4}
    deployments.activate(spec("2"))
    assert rig.wanted()["2"] == 4
    deployments.set_alias(KEY, "live", "2", {"1": 0.25})
    assert rig.wanted() == {"1": 1, "2": 3}
    # The same version again under another number of the scheduler's.
    deployments.activate(spec("2"))
    assert rig.wanted() == {"1": 1, "2": 3}
    deployments.set_provisioned(KEY, "live", 8)
    assert rig.wanted() == {"1": 2, "2": 6}
    deployments.remove_alias(KEY, "live")
    assert rig.wanted() == {}
    assert deployments.provisioned_status(KEY, "live") is None

    deployments.set_provisioned(KEY, "1", 2)
    assert rig.wanted() == {"1": 2}
    deployments.retire_version(KEY, "1")
    assert deployments.provisioned_status(KEY, "1") is None
    deployments.set_provisioned(KEY, "2", 2)
    deployments.remove_function(KEY)
    assert deployments.provisioned_status(KEY, "2") is None
    # A function of the same name, with a version of the same number, begins with nothing.
    deployments.activate(spec("2"))
    assert rig.wanted() == {}
    await rig.plane.drain(0)


def test_the_scheduler_hears_of_every_move() -> None:
    asyncio.run(_follow())
