"""The Extensions API: registration, events, settling, and every error it can answer with."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from tests.worker.api.rig import (
    ARN,
    EVENT_NEXT,
    NEXT,
    REGISTER,
    REQUEST_ID,
    TRACE,
    Client,
    Rig,
    invocation,
    response_path,
    wire,
)

from lambent.worker.api.extensions import EXTENSIONS_MAX, TRANSITIONS, Event, Extension, State

EXIT_ERROR = "/2020-01-01/extension/exit/error"
EXTENSION_INIT_ERROR = "/2020-01-01/extension/init/error"
BODY = b'{"events":["INVOKE"]}'
NOT_ALLOWED = "State transition is not allowed"


def wait_in_next(client: Client, identifier: str) -> None:
    client.ask("GET", EVENT_NEXT, Lambda_Extension_Identifier=identifier)


def refused(name: str, from_state: str, to_state: str) -> dict[str, str]:
    message = f"State transition from {from_state} to {to_state} failed for extension {name}. Error: {NOT_ALLOWED}"
    return {"errorMessage": message, "errorType": "Extension.InvalidExtensionState"}


# --- registration ---------------------------------------------------------------------------------------


def test_register(rig: Rig) -> None:
    client = rig.client()
    answer = client.call("POST", REGISTER, BODY, Lambda_Extension_Name="inner")
    assert answer.status == 200
    assert answer.json == {"functionName": "orders", "functionVersion": "$LATEST", "handler": "app.handler"}
    assert len(answer.headers["lambda-extension-identifier"]) == 36
    assert rig.do(lambda: (rig.api.extensions, rig.api.external)) == (["inner"], [])


def test_the_account_id_for_those_who_ask(rig: Rig) -> None:
    answer = rig.client().call(
        "POST", REGISTER, BODY, Lambda_Extension_Name="inner", Lambda_Extension_Accept_Feature="other, accountId"
    )
    assert answer.json["accountId"] == "000000000000"


def test_registered_when_all_that_were_expected_have(rig: Rig) -> None:
    rig.do(rig.api.expect, ["one", "two"])
    rig.extension("one", ["INVOKE", "SHUTDOWN"])
    rig.extension("inner")
    assert rig.owner.silent
    rig.extension("two", [])
    assert rig.owner.take() == ("registered",)
    assert rig.do(lambda: rig.api.external) == ["one", "two"]
    assert rig.owner.silent


def test_nobody_expected(rig: Rig) -> None:
    rig.do(rig.api.expect, [])
    assert rig.owner.take() == ("registered",)


def test_one_that_was_expected_has_ended(rig: Rig) -> None:
    rig.do(rig.api.expect, ["one", "two"])
    rig.extension("one")
    rig.do(rig.api.forget_extension, "two")
    assert rig.owner.take() == ("registered",)


def test_what_a_command_settles_is_not_told_from_inside_it(rig: Rig) -> None:
    def command() -> bool:
        rig.api.expect([])
        rig.api.runtime_waiting()
        return rig.owner.silent

    assert rig.do(command)
    assert rig.owner.take() == ("registered",)
    assert rig.owner.take() == ("settled",)


def test_a_command_is_taken_back_by_begin(rig: Rig) -> None:
    def commands() -> None:
        rig.api.expect([])
        rig.api.runtime_waiting()
        rig.api.begin(True)

    rig.do(commands)
    rig.do(lambda: None)
    assert rig.owner.silent


@pytest.mark.parametrize(
    ("headers", "body", "error_type", "message"),
    [
        ({}, BODY, "Extension.InvalidExtensionName", "Empty extension name"),
        ({"Lambda_Extension_Name": ""}, BODY, "Extension.InvalidExtensionName", "Empty extension name"),
        ({"Lambda_Extension_Name": "a"}, b"", "InvalidRequestFormat", None),
        ({"Lambda_Extension_Name": "a"}, b"[" * 50_000, "InvalidRequestFormat", None),
        ({"Lambda_Extension_Name": "a"}, b'{"events":7}', "InvalidRequestFormat", None),
        ({"Lambda_Extension_Name": "a"}, b'{"events":[[]]}', "InvalidRequestFormat", None),
        ({"Lambda_Extension_Name": "a"}, b'{"events":["BOO"]}', "Extension.InvalidEventType", None),
        (
            {"Lambda_Extension_Name": "a"},
            b'{"events":["SHUTDOWN"]}',
            "ShutdownEventNotSupportedForInternalExtension",
            None,
        ),
    ],
)
def test_refused_registrations(
    rig: Rig, headers: dict[str, str], body: bytes, error_type: str, message: str | None
) -> None:
    answer = rig.client().call("POST", REGISTER, body, **headers)
    assert answer.status == 403
    assert answer.json["errorType"] == error_type
    if message is not None:
        assert answer.json["errorMessage"] == message
    assert rig.do(lambda: rig.api.extensions) == []


def test_registration_closes_with_the_first_next(rig: Rig) -> None:
    rig.runtime()
    answer = rig.client().call("POST", REGISTER, BODY, Lambda_Extension_Name="late")
    message = "Extension registration closed already"
    assert answer.status == 403
    assert answer.json == {"errorMessage": message, "errorType": "Extension.RegistrationClosed"}


def test_registration_closes_with_a_frame_link_runtime() -> None:
    rig = Rig(http_runtime=False)
    try:
        rig.do(rig.api.runtime_waiting)
        answer = rig.client().call("POST", REGISTER, BODY, Lambda_Extension_Name="late")
        assert answer.json["errorType"] == "Extension.RegistrationClosed"
    finally:
        rig.close()


def test_ten_extensions(rig: Rig) -> None:
    rig.do(rig.api.expect, ["outer"])
    for number in range(EXTENSIONS_MAX - 1):
        rig.extension(f"inner{number}")
    answer = rig.client().call("POST", REGISTER, BODY, Lambda_Extension_Name="eleventh")
    message = "Extension limit (10) reached"
    assert answer.status == 403
    assert answer.json == {"errorMessage": message, "errorType": "Extension.TooManyExtensions"}
    rig.extension("outer")  # its place was kept
    assert rig.owner.take() == ("registered",)


def test_a_name_registers_once(rig: Rig) -> None:
    rig.extension("inner")
    answer = rig.client().call("POST", REGISTER, BODY, Lambda_Extension_Name="inner")
    assert (answer.status, answer.json) == (403, refused("inner", "Registered", "Registered"))


def test_begin_forgets_all(rig: Rig) -> None:
    client, identifier = rig.extension("inner")
    rig.do(rig.api.begin, True)
    assert client.is_cut
    answer = rig.client().call("GET", EVENT_NEXT, Lambda_Extension_Identifier=identifier)
    assert answer.json["errorType"] == "Extension.UnknownExtensionIdentifier"
    rig.extension("inner")


# --- who calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("identifier", "error_type"),
    [
        (None, "Extension.MissingExtensionIdentifier"),
        ("", "Extension.MissingExtensionIdentifier"),
        ("nonsense", "Extension.InvalidExtensionIdentifier"),
        ("00000000-0000-4000-a000-000000000000", "Extension.UnknownExtensionIdentifier"),
    ],
)
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", EVENT_NEXT),
        ("POST", EXIT_ERROR),
        ("POST", EXTENSION_INIT_ERROR),
        ("PUT", "/2022-07-01/telemetry"),
        ("PUT", "/2020-08-15/logs"),
    ],
)
def test_unknown_callers(rig: Rig, method: str, path: str, identifier: str | None, error_type: str) -> None:
    headers = {} if identifier is None else {"Lambda_Extension_Identifier": identifier}
    answer = rig.client().call(method, path, b"{}", **headers)
    assert answer.status == 403
    assert answer.json["errorType"] == error_type


# --- events ---------------------------------------------------------------------------------------------


def test_invoke_and_shutdown_events(either_rig: Rig) -> None:
    rig = either_rig
    rig.do(rig.api.expect, ["outer"])
    outer, identifier = rig.extension("outer", ["INVOKE", "SHUTDOWN"])
    assert rig.owner.take() == ("registered",)
    wait_in_next(outer, identifier)
    assert rig.owner.take() == ("extension_ready", "outer", ("INVOKE", "SHUTDOWN"))
    runtime = rig.runtime()
    rig.do(rig.api.invoke, invocation(), 1_700_000_000_000)
    event = outer.answer()
    assert event.status == 200
    assert len(event.headers["lambda-extension-event-identifier"]) == 36
    assert event.json == {
        "eventType": "INVOKE",
        "deadlineMs": 1_700_000_000_000,
        "requestId": REQUEST_ID,
        "invokedFunctionArn": ARN,
        "tracing": {"type": "X-Amzn-Trace-Id", "value": TRACE},
    }
    assert runtime.answer().status == 200
    runtime.send(wire("POST", response_path(), b"1") + wire("GET", NEXT))
    assert rig.owner.take()[0] == "response"
    assert runtime.answer().status == 202
    assert rig.owner.silent  # the extension still works
    wait_in_next(outer, identifier)
    assert rig.owner.take() == ("settled",)
    assert rig.do(rig.api.shut_down, "spindown", 1_700_000_002_000) == ["outer"]
    assert outer.answer().json == {
        "eventType": "SHUTDOWN",
        "shutdownReason": "spindown",
        "deadlineMs": 1_700_000_002_000,
    }


def test_the_extension_is_ready_before_the_runtime(rig: Rig) -> None:
    inner, identifier = rig.extension("inner")
    wait_in_next(inner, identifier)
    assert rig.owner.take()[0] == "extension_ready"
    rig.runtime()


def test_the_runtime_is_ready_before_the_extension(rig: Rig) -> None:
    inner, identifier = rig.extension("inner")
    runtime = rig.client()
    runtime.ask("GET", NEXT)
    while rig.do(lambda: rig.api.is_registration_open):
        pass
    assert rig.owner.silent
    wait_in_next(inner, identifier)
    assert rig.owner.take()[0] == "extension_ready"
    assert rig.owner.take() == ("settled",)


def test_without_invoke_events_an_extension_delays_nothing(rig: Rig) -> None:
    inner, identifier = rig.extension("inner", [])
    wait_in_next(inner, identifier)
    rig.owner.wait_for("extension_ready")
    runtime = rig.running()
    runtime.send(wire("POST", response_path(), b"1") + wire("GET", NEXT))
    assert rig.owner.take()[0] == "response"
    assert rig.owner.take() == ("settled",)
    assert rig.do(rig.api.shut_down, "spindown", 1) == []


def test_an_event_waits_for_next(rig: Rig) -> None:
    rig.do(rig.api.expect, ["outer"])
    outer, identifier = rig.extension("outer", ["INVOKE", "SHUTDOWN"])
    rig.do(rig.api.invoke, invocation(), 1)
    assert rig.do(rig.api.shut_down, "timeout", 2) == ["outer"]
    wait_in_next(outer, identifier)
    assert outer.answer().json["shutdownReason"] == "timeout"  # the invocation is over: not told any more


def test_an_extension_with_a_frame_link_runtime() -> None:
    rig = Rig(http_runtime=False)
    try:
        inner, identifier = rig.extension("inner")
        wait_in_next(inner, identifier)
        rig.owner.wait_for("extension_ready")
        rig.do(rig.api.runtime_waiting)
        assert rig.owner.take() == ("settled",)
        rig.do(rig.api.invoke, invocation(), 1)
        assert inner.answer().json["eventType"] == "INVOKE"
        rig.do(rig.api.runtime_waiting)
        rig.do(lambda: None)
        assert rig.owner.silent
        wait_in_next(inner, identifier)
        assert rig.owner.take() == ("settled",)
    finally:
        rig.close()


def test_an_extension_that_ended_is_not_waited_for(rig: Rig) -> None:
    inner, identifier = rig.extension("inner")
    wait_in_next(inner, identifier)
    rig.owner.wait_for("extension_ready")
    runtime = rig.running()
    runtime.send(wire("POST", response_path(), b"1") + wire("GET", NEXT))
    assert rig.owner.take()[0] == "response"
    rig.do(rig.api.forget_extension, "inner")
    assert rig.owner.take() == ("settled",)
    assert rig.do(lambda: rig.api.extensions) == []
    rig.do(rig.api.forget_extension, "inner")


def test_next_again_after_a_lost_connection(rig: Rig) -> None:
    inner, identifier = rig.extension("inner")
    wait_in_next(inner, identifier)
    rig.owner.wait_for("extension_ready")
    inner.close()
    runtime = rig.runtime()
    rig.do(rig.api.invoke, invocation(), 1)
    assert runtime.answer().status == 200
    other = rig.client()
    assert other.call("GET", EVENT_NEXT, Lambda_Extension_Identifier=identifier).json["eventType"] == "INVOKE"


def test_two_clients_of_one_extension(rig: Rig) -> None:
    inner, identifier = rig.extension("inner")
    wait_in_next(inner, identifier)
    rig.owner.wait_for("extension_ready")
    answer = rig.client().call("GET", EVENT_NEXT, Lambda_Extension_Identifier=identifier)
    assert (answer.status, answer.json) == (403, refused("inner", "Ready", "Ready"))


# --- errors that extensions report ----------------------------------------------------------------------


@pytest.mark.parametrize(("path", "in_init"), [(EXTENSION_INIT_ERROR, True), (EXIT_ERROR, False)])
def test_reported_errors(rig: Rig, path: str, in_init: bool) -> None:
    client, identifier = rig.extension("inner")
    missing = client.call("POST", path, b"{}", Lambda_Extension_Identifier=identifier)
    assert missing.status == 403
    assert missing.json["errorType"] == "Extension.MissingHeader"
    headers = {"Lambda_Extension_Identifier": identifier, "Lambda_Extension_Function_Error_Type": "Extension.NoConfig"}
    answer = client.call("POST", path, b'{"errorMessage":"x"}', **headers)
    assert (answer.status, answer.body) == (202, b'{"status":"OK"}\n')
    assert rig.owner.take() == ("extension_error", "inner", "Extension.NoConfig", in_init)
    state = "InitError" if in_init else "ExitError"
    again = client.call("POST", path, b"{}", **headers)
    assert (again.status, again.json) == (403, refused("inner", state, state))
    after = client.call("GET", EVENT_NEXT, Lambda_Extension_Identifier=identifier)
    assert (after.status, after.json) == (403, refused("inner", state, "Ready"))


def test_init_error_after_init(rig: Rig) -> None:
    inner, identifier = rig.extension("inner")
    wait_in_next(inner, identifier)
    rig.owner.wait_for("extension_ready")
    headers = {"Lambda_Extension_Identifier": identifier, "Lambda_Extension_Function_Error_Type": "Extension.X"}
    answer = rig.client().call("POST", EXTENSION_INIT_ERROR, b"{}", **headers)
    assert (answer.status, answer.json) == (403, refused("inner", "Ready", "InitError"))


# --- the machine ----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from(list(Event)), max_size=12))
def test_only_the_table_changes_a_state(events: list[Event]) -> None:
    extension = Extension("any", False)
    for event in events:
        before = extension.state
        allowed = extension.apply(event)
        assert allowed == ((before, event) in TRANSITIONS)
        assert extension.state is (TRANSITIONS[before, event] if allowed else before)


def test_every_state_is_reached() -> None:
    assert {State.STARTED} | set(TRANSITIONS.values()) == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)


class Life(RuleBasedStateMachine):
    """One runtime and one extension over real sockets, in any order that a platform and they can act in: the
    environment hears that it is settled exactly when both wait."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.extension, self.identifier = self.rig.extension("inner")
        self.runtime = self.rig.client()
        self.runtime_waits = self.extension_waits = self.running = self.ready_told = False

    def _check(self) -> None:
        if self.runtime_waits and self.extension_waits:
            assert self.rig.owner.take() == ("settled",)
        self.rig.do(lambda: None)
        assert self.rig.owner.silent

    @precondition(lambda self: not self.runtime_waits and not self.running)
    @rule()
    def runtime_next(self) -> None:
        self.runtime.ask("GET", NEXT)
        self.rig.do(lambda: None)
        self.runtime_waits = True
        while self.rig.do(lambda: self.rig.api._runtime.state.value) != "Ready":
            pass
        self._check()

    @precondition(lambda self: not self.extension_waits)
    @rule()
    def extension_next(self) -> None:
        wait_in_next(self.extension, self.identifier)
        if not self.ready_told:
            self.ready_told = True
            assert self.rig.owner.take()[0] == "extension_ready"
        while self.rig.do(lambda: self.rig.api._extensions._by_name["inner"].state.value) != "Ready":
            pass
        self.extension_waits = True
        self._check()

    @precondition(lambda self: self.runtime_waits and self.extension_waits)
    @rule()
    def invoke(self) -> None:
        self.rig.do(self.rig.api.invoke, invocation(), 1)
        assert self.runtime.answer().status == 200
        assert self.extension.answer().json["eventType"] == "INVOKE"
        self.runtime_waits = self.extension_waits = False
        self.running = True

    @precondition(lambda self: self.running)
    @rule(is_error=st.booleans())
    def respond(self, is_error: bool) -> None:
        path = response_path() if not is_error else response_path().replace("/response", "/error")
        assert self.runtime.call("POST", path, b"1").status == 202
        assert self.rig.owner.take()[0] == ("error" if is_error else "response")
        self.running = False

    def teardown(self) -> None:
        self.rig.close()


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much]
)
