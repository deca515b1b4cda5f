"""Tenants: their numbers, how many environments they may have, and that nothing is remembered of those who left."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lambent.core.scheduler import Scheduler
from lambent.dataplane.asynchronous import AsynchronousInvoker
from lambent.dataplane.deployments import Deployments
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import FunctionEntry, RoutingTable, VersionEntry
from lambent.dataplane.tenants import Tenant, Tenants, require_tenant
from lambent.model.errors import ApiError, InvalidParameterValue
from lambent.model.function import VersionSpec
from lambent.model.names import FunctionKey, FunctionRef
from lambent.telemetry.lambda_metrics import LambdaMetrics
from lambent.worker.interface import Invocation, InvocationResult

KEY = FunctionKey("000000000000", "us-east-1", "f")


def spec(tenancy: bool) -> VersionSpec:
    return VersionSpec(
        key=KEY, version="$LATEST", runtime="python3.11", handler="m.h", role="r", code_sha256="0",
        memory_mib=128, timeout_s=3, tmp_mib=512, tenancy=tenancy,
    )  # fmt: skip


@pytest.mark.parametrize(("tenancy", "tenant_id"), [(True, "blue"), (False, "")])
def test_a_tenant_where_there_should_be_one(tenancy: bool, tenant_id: str) -> None:
    require_tenant(spec(tenancy), tenant_id)


def test_a_tenant_where_there_should_be_none() -> None:
    with pytest.raises(InvalidParameterValue, match=r"is enabled with tenancy configuration\. Add a valid tenant ID"):
        require_tenant(spec(True), "")
    with pytest.raises(
        InvalidParameterValue, match=r"is not enabled with tenancy configuration\. Remove the tenant ID"
    ):
        require_tenant(spec(False), "blue")


class TenantsMachine(RuleBasedStateMachine):
    """Against plain sets: requests and environments come and go as a scheduler would have them."""

    def __init__(self) -> None:
        super().__init__()
        self.tenants = Tenants()
        function = FunctionEntry(1, KEY)
        function.reserved = 3  # seven environments
        self.versions = [VersionEntry(number, function, spec(True)) for number in (10, 11)]
        self.requests: list[tuple[Tenant, tuple[int, str]]] = []
        #: environment: tenant, and whether it is stopping.
        self.environments: dict[int, tuple[tuple[int, str], bool]] = {}
        self.numbers: dict[int, tuple[int, str]] = {}
        self.next = 0

    @rule(version=st.integers(0, 1), name=st.sampled_from("abc"))
    def request(self, version: int, name: str) -> None:
        key = self.versions[version].id, name
        there = sum(each == (key, False) for each in self.environments.values())
        begun = sum(each == key for _, each in self.requests)
        refused = begun >= there and sum(not stopping for _, stopping in self.environments.values()) >= 7
        tenant = self.tenants.enter(self.versions[version], name)
        assert (tenant is None) == refused
        if tenant is not None:
            assert self.numbers.setdefault(tenant.number, key) == key, "a number for two tenants"
            self.requests.append((tenant, key))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        tenant, key = data.draw(st.sampled_from(self.requests))
        self.next += 1
        self.tenants.started(self.next, tenant.number)
        self.environments[self.next] = key, False

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.requests) - 1))
        self.tenants.leave(self.requests.pop(at)[0])

    @precondition(lambda self: self.environments)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        environment = data.draw(st.sampled_from(sorted(self.environments)))
        self.tenants.stopping(environment)
        self.environments[environment] = self.environments[environment][0], True

    @precondition(lambda self: self.environments)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        environment = data.draw(st.sampled_from(sorted(self.environments)))
        self.tenants.died(environment)
        del self.environments[environment]

    @rule()
    def environments_without_tenants_are_not_looked_at(self) -> None:
        self.tenants.stopping(0)
        self.tenants.died(0)
        assert self.tenants.of(0) is None

    @invariant()
    def only_what_runs_is_remembered(self) -> None:
        assert len(self.tenants) == len(
            {key for _, key in self.requests} | {key for key, _ in self.environments.values()}
        )
        for environment, ((_, name), _) in self.environments.items():
            assert self.tenants.of(environment) == name


TestTenants = TenantsMachine.TestCase
TestTenants.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)


class _Caller:
    def __init__(self) -> None:
        self.refused: list[ApiError] = []

    def on_result(self, result: InvocationResult) -> None:
        raise AssertionError(result)

    def on_refused(self, error: ApiError) -> None:
        self.refused.append(error)


def invocation(tenant_id: str) -> Invocation:
    return Invocation(0, "id", b"{}", KEY.arn(), tenant_id=tenant_id)


def test_the_data_plane_asks_whoever_calls() -> None:
    async def whole() -> None:
        plane, routing = DataPlane(Scheduler()), RoutingTable(random.Random(1), LambdaMetrics())
        deployments = Deployments(plane, routing, 1_000)
        for tenancy, tenant_id in ((True, ""), (False, "blue")):
            deployments.activate(spec(tenancy))
            caller = _Caller()
            plane.invoke(routing.resolve(FunctionRef(KEY, None)), invocation(tenant_id), caller, asynchronous=False)
            assert [error.status for error in caller.refused] == [400]
            assert plane.in_flight == 0
        deployments.activate(spec(True))
        caller = _Caller()  # no worker has room: a throttle, and the tenant is forgotten
        plane.invoke(routing.resolve(FunctionRef(KEY, None)), invocation("blue"), caller, asynchronous=False)
        assert [error.status for error in caller.refused] == [429]
        assert len(plane.tenants) == 0

    asyncio.run(whole())


def test_an_event_waits_for_a_function_that_is_made_anew_without_tenants() -> None:
    """It is not run then: neither with a tenant that the function does not know, nor without."""

    async def whole() -> None:
        plane, routing = DataPlane(Scheduler()), RoutingTable(random.Random(1), LambdaMetrics())
        deployments = Deployments(plane, routing, 1_000)
        deployments.activate(spec(True))
        invoker = AsynchronousInvoker(plane, routing)
        ref = FunctionRef(KEY, None)
        with pytest.raises(InvalidParameterValue, match="Add a valid tenant ID"):
            invoker.accept(ref, invocation(""))
        invoker.accept(ref, invocation("blue"))  # throttled, as no worker has room
        (event,) = invoker._pending
        event.cancel()
        deployments.remove_function(KEY)
        deployments.activate(spec(False))
        event.attempt()
        assert not invoker._pending
        invoker.close()

    asyncio.run(whole())
