"""States over time: what is answered while a function is being prepared, when that fails, and after a restart."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from lambent.model.errors import InvalidParameterValue
from lambent.model.function import VersionSpec
from lambent.services.lambda_.lifecycle import TRANSITIONS, WAITING, Event, advance
from lambent.store.records import Phase, VersionRecord

from .harness import ARN, OTHER_ZIP, Harness, refusal, request

PENDING = (
    "ResourceConflictException",
    "The operation cannot be performed at this time. The function is currently in the following state: Pending",
)
IN_PROGRESS = (
    "ResourceConflictException",
    f"The operation cannot be performed at this time. An update is in progress for resource: {ARN}:f",
)


def states(client: Any, qualifier: str = "$LATEST") -> tuple[Any, ...]:
    found = client.get_function_configuration(FunctionName="f", Qualifier=qualifier)
    return found["State"], found.get("StateReasonCode"), found.get("LastUpdateStatus")


def content(server: Harness) -> dict[tuple[str, str], VersionSpec]:
    """What is active; but for the revision, which moves on while a spec stays in use."""
    specs = server.deployments.active
    return {label: msgspec.structs.replace(spec, revision_id="") for label, spec in specs.items()}


def test_pending(server: Harness, client: Any) -> None:
    server.hold()
    client.create_function(**request())
    assert server.deployments.pending == {"f": "Pending"}
    assert server.deployments.active == {}
    assert states(client) == ("Pending", "Creating", None)
    for call, params in (
        (client.update_function_code, {"ZipFile": OTHER_ZIP}),
        (client.update_function_configuration, {"Timeout": 4}),
        (client.publish_version, {}),
    ):
        assert refusal(call, FunctionName="f", **params) == PENDING
    server.release()
    assert server.deployments.pending == {"f": None}
    assert states(client) == ("Active", None, "Successful")


def test_update_in_progress(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    server.hold()
    answer = client.update_function_configuration(FunctionName="f", Timeout=4)
    assert answer["State"] == "Active"
    assert answer["LastUpdateStatus"] == "InProgress"
    assert answer["LastUpdateStatusReason"] == "The function is being created."
    assert answer["LastUpdateStatusReasonCode"] == "Creating"
    assert server.deployments.active["f", "$LATEST"].timeout_s == 3
    assert server.deployments.pending == {"f": None}
    for call, params in (
        (client.update_function_code, {"ZipFile": OTHER_ZIP}),
        (client.update_function_configuration, {"Timeout": 5}),
        (client.publish_version, {}),
    ):
        assert refusal(call, FunctionName="f", **params) == IN_PROGRESS
    server.release()
    assert server.deployments.active["f", "$LATEST"].timeout_s == 4
    client.get_waiter("function_updated_v2").wait(FunctionName="f", WaiterConfig={"Delay": 0, "MaxAttempts": 1})


def test_a_creation_that_fails_and_is_repaired(server: Harness, client: Any) -> None:
    server.deployments.failure = InvalidParameterValue("There is no python3.12 on this machine.")
    client.create_function(**request())
    server.release()
    found = client.get_function_configuration(FunctionName="f")
    assert found["State"] == found["LastUpdateStatus"] == "Failed"
    assert found["StateReason"] == found["LastUpdateStatusReason"] == "There is no python3.12 on this machine."
    assert found["StateReasonCode"] == "InvalidConfiguration"
    assert server.deployments.pending == {"f": "Failed"}
    assert refusal(client.publish_version, FunctionName="f")[1].endswith("state: Failed")
    server.deployments.failure = None
    server.hold()
    client.update_function_configuration(FunctionName="f", Runtime="python3.11")
    assert states(client) == ("Pending", "Creating", "InProgress")
    assert server.deployments.pending == {"f": "Pending"}
    server.release()
    assert states(client) == ("Active", None, "Successful")
    assert server.deployments.pending == {"f": None}


def test_an_update_that_fails_leaves_the_old_one_answering(
    server: Harness, client: Any, create: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    create()
    server.deployments.failure = ZeroDivisionError("bug")
    client.update_function_configuration(FunctionName="f", Timeout=4)
    server.release()
    assert "could not prepare" in caplog.text
    found = client.get_function_configuration(FunctionName="f")
    assert (found["State"], found["LastUpdateStatus"]) == ("Active", "Failed")
    assert found["LastUpdateStatusReasonCode"] == "InternalError"
    assert "bug" not in found["LastUpdateStatusReason"]
    assert found["Timeout"] == 4
    assert server.deployments.active["f", "$LATEST"].timeout_s == 3
    server.restart()
    assert server.deployments.active["f", "$LATEST"].timeout_s == 3
    published = client.publish_version(FunctionName="f")
    assert published["State"] == "Pending"
    server.release()
    assert states(client, "1") == ("Active", None, "Successful")
    client.update_function_configuration(FunctionName="f", Timeout=5)
    server.release()
    assert server.deployments.active["f", "$LATEST"].timeout_s == 5


def test_restart_tells_everything_and_starts_nothing(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create(Publish=True)
    create("g")
    client.create_alias(
        FunctionName="f", Name="live", FunctionVersion="1", RoutingConfig={"AdditionalVersionWeights": {}}
    )
    client.put_function_concurrency(FunctionName="g", ReservedConcurrentExecutions=0)
    active, before = content(server), client.get_function(FunctionName="f")["Configuration"]
    server.restart()
    assert content(server) == active
    assert server.deployments.aliases == {("f", "live"): ("1", {})}
    assert server.deployments.reserved == {"g": 0}
    assert server.deployments.pending == {"f": None, "g": None}
    assert not [call for call in server.deployments.calls if call[0] == "prepare"]
    assert client.get_function(FunctionName="f")["Configuration"] == before


def test_restart_finishes_what_was_pending(server: Harness, client: Any) -> None:
    server.hold()
    client.create_function(**request(Publish=True))
    server.restart(hold=True)
    assert server.deployments.pending == {"f": "Pending"}
    assert server.deployments.active == {}
    server.release()
    assert states(client) == states(client, "1") == ("Active", None, "Successful")
    assert set(server.deployments.active) == {("f", "$LATEST"), ("f", "1")}


def test_restart_finishes_what_was_in_progress(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    server.hold()
    client.update_function_code(FunctionName="f", ZipFile=OTHER_ZIP)
    old, active = server.deployments.active["f", "$LATEST"], content(server)
    server.restart(hold=True)
    assert content(server) == active
    assert server.store.unpacked_path(old.code_sha256).is_dir()
    assert states(client) == ("Active", None, "InProgress")
    server.release()
    assert server.deployments.active["f", "$LATEST"].code_sha256 != old.code_sha256
    server.restart()
    assert not server.store.unpacked_path(old.code_sha256).exists()


def test_deleted_and_made_again_while_pending(server: Harness, client: Any) -> None:
    server.hold()
    client.create_function(**request(Timeout=5))
    client.delete_function(FunctionName="f")
    client.create_function(**request(Timeout=6))
    server.release()
    activated = [call for call in server.deployments.calls if call[0] == "activate"]
    assert len(activated) == 1
    assert server.deployments.active["f", "$LATEST"].timeout_s == 6


def test_changes_of_one_function_wait_for_each_other(server: Harness, client: Any, create: Callable[..., Any]) -> None:
    create()
    target = "/2015-03-31/functions/f/configuration"

    async def both() -> list[int]:
        calls = (server.answer("PUT", target, {}, b'{"Timeout": %d}' % (number + 10)) for number in range(8))
        return sorted(response.status for response in await asyncio.gather(*calls))

    server.hold()
    assert server.run(both()) == [200] + [409] * 7


def test_the_table_is_complete() -> None:
    record = VersionRecord(
        key=("a", "r", "f"),  # type: ignore[arg-type]
        revision_id="r",
        last_modified="",
        code_sha256="",
        code_size=0,
        runtime="",
        handler="",
        role="",
        timeout_s=1,
        memory_mib=1,
        tmp_mib=1,
    )
    for phase, event in itertools.product(Phase, Event):
        record.phase = phase
        expected = TRANSITIONS.get((phase, event))
        # A change is for what is at rest, an outcome for what is being prepared.
        assert (expected is not None) == ((phase in WAITING) == (event is not Event.CHANGED))
        if expected is None:
            with pytest.raises(KeyError):
                advance(record, event)
        else:
            advance(record, event)
            assert record.phase is expected
            assert (record.phase in WAITING) == (event is Event.CHANGED)
