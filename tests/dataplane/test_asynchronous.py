"""Accepted events wait while limits refuse them, and only so many may wait."""

from __future__ import annotations

import asyncio
import random

import pytest

from lambent.core.scheduler import Scheduler
from lambent.dataplane.asynchronous import AsynchronousInvoker
from lambent.dataplane.deployments import Deployments
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable
from lambent.model.errors import ResourceNotFound, TooManyRequests
from lambent.model.function import VersionSpec
from lambent.model.names import FunctionKey, FunctionRef
from lambent.telemetry.lambda_metrics import LambdaMetrics
from lambent.worker.interface import Invocation

KEY = FunctionKey("000000000000", "us-east-1", "f")
SPEC = VersionSpec(
    key=KEY, version="$LATEST", runtime="python3.11", handler="m.h", role="r", code_sha256="0",
    memory_mib=128, timeout_s=3, tmp_mib=512,
)  # fmt: skip


def event() -> Invocation:
    return Invocation(0, "id", b"{}", KEY.arn())


def test_one_event_too_many_is_refused() -> None:
    async def whole() -> None:
        plane, routing = DataPlane(Scheduler()), RoutingTable(random.Random(1), LambdaMetrics())
        Deployments(plane, routing, 1_000).activate(SPEC)  # no worker has room: the events are throttled and wait
        invoker = AsynchronousInvoker(plane, routing, pending_max=2)
        invoker.accept(FunctionRef(KEY, None), event())
        invoker.accept(FunctionRef(KEY, None), event())
        with pytest.raises(TooManyRequests, match="2 asynchronous events wait") as caught:
            invoker.accept(FunctionRef(KEY, None), event())
        assert caught.value.members["Reason"] == "CallerRateLimitExceeded"
        invoker.close()

    asyncio.run(whole())


def test_an_event_for_nothing_is_refused_at_once() -> None:
    async def whole() -> None:
        invoker = AsynchronousInvoker(DataPlane(Scheduler()), RoutingTable(random.Random(1), LambdaMetrics()))
        with pytest.raises(ResourceNotFound):
            invoker.accept(FunctionRef(KEY, None), event())

    asyncio.run(whole())
