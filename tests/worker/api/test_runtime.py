"""The Runtime API as a runtime sees it: every status, header and text, and what the environment is told."""

from __future__ import annotations

import base64
import http.client
import json

import pytest
from tests.worker.api.rig import (
    ARN,
    NEXT,
    REQUEST_ID,
    TRACE,
    Client,
    Rig,
    error_path,
    invocation,
    response_path,
    wire,
)

from lambent.model.limits import RESPONSE_MAX_BYTES
from lambent.worker.api import runtime as runtime_module
from lambent.worker.api.runtime import TRANSITIONS, XRAY_CAUSE_MAX_BYTES, Event, State, crop_cause, shown_error_type

INIT_ERROR = "/2018-06-01/runtime/init/error"
RESTORE_NEXT = "/2018-06-01/runtime/restore/next"
RESTORE_ERROR = "/2018-06-01/runtime/restore/error"
NOT_ALLOWED = "State transition is not allowed"


def refused(from_state: str, to_state: str) -> dict[str, str]:
    message = f"State transition from {from_state} to {to_state} failed for runtime. Error: {NOT_ALLOWED}"
    return {"errorMessage": message, "errorType": "InvalidStateTransition"}


# --- next -----------------------------------------------------------------------------------------------


def test_one_invocation_after_the_other(either_rig: Rig) -> None:
    rig = either_rig
    client = rig.runtime()
    for number in range(3):
        rig.do(rig.api.invoke, invocation(b"%d" % number), 1_700_000_000_000 + number)
        given = client.answer()
        assert given.status == 200
        assert given.body == b"%d" % number
        assert given.headers["lambda-runtime-deadline-ms"] == str(1_700_000_000_000 + number)
        accepted = client.call("POST", response_path(), b"answer %d" % number, Content_Type="text/x")
        assert accepted.status == 202
        assert accepted.body == b'{"status":"OK"}\n'
        assert rig.owner.take() == ("response", b"answer %d" % number, "text/x")
        client.ask("GET", NEXT)
        assert rig.owner.take() == ("settled",)


def test_headers_of_next(rig: Rig) -> None:
    client = rig.runtime()
    context = json.dumps({"custom": {"a": "ü"}}, indent=1, ensure_ascii=False)
    identity = '{"cognitoIdentityId":"i","cognitoIdentityPoolId":"p"}'
    rig.do(
        rig.api.invoke,
        invocation(client_context=context, cognito_identity=identity, tenant_id="blue"),
        1_700_000_000_123,
    )
    headers = client.answer().headers
    assert headers["lambda-runtime-aws-request-id"] == REQUEST_ID
    assert headers["lambda-runtime-deadline-ms"] == "1700000000123"
    assert headers["lambda-runtime-invoked-function-arn"] == ARN
    assert headers["lambda-runtime-trace-id"] == TRACE
    assert json.loads(headers["lambda-runtime-client-context"]) == {"custom": {"a": "ü"}}
    assert headers["lambda-runtime-cognito-identity"] == identity
    assert headers["lambda-runtime-aws-tenant-id"] == "blue"
    assert headers["content-type"] == "application/json"
    assert len(headers["lambda-runtime-invocation-id"]) == 36
    assert headers["date"].endswith(" GMT")


def test_headers_that_say_nothing_are_absent(rig: Rig) -> None:
    client = rig.runtime()
    rig.do(rig.api.invoke, invocation(trace_id=""), 1)
    headers = client.answer().headers
    for name in ("trace-id", "client-context", "cognito-identity", "aws-tenant-id"):
        assert f"lambda-runtime-{name}" not in headers


def test_a_header_can_not_bring_another(rig: Rig) -> None:
    client = rig.runtime()
    rig.do(rig.api.invoke, invocation(client_context='{"a":\r\nX-Evil: 1\r\n\r\n"b"}'), 1)
    answer = client.answer()
    assert "x-evil" not in answer.headers
    assert answer.body == b'{"key":"value"}'


def test_an_invocation_waits_for_next(rig: Rig) -> None:
    rig.do(rig.api.invoke, invocation(b"early"), 1)
    client = rig.client()
    assert client.call("GET", NEXT).body == b"early"
    assert rig.owner.silent  # Init was over with the invocation, not before


def test_large_payload(rig: Rig) -> None:
    client = rig.runtime()
    payload = bytes(range(256)) * 24_576  # 6 MiB
    rig.do(rig.api.invoke, invocation(payload), 1)
    assert client.answer().body == payload


def test_next_twice_is_refused(rig: Rig) -> None:
    client = rig.running()
    answer = client.call("GET", NEXT)
    assert answer.status == 403
    assert answer.json == refused("Running", "Ready")
    assert client.call("POST", response_path(), b"1").status == 202


def test_a_second_client_in_next_is_refused(rig: Rig) -> None:
    rig.runtime()
    answer = rig.client().call("GET", NEXT)
    assert answer.status == 403
    assert answer.json == refused("Ready", "Ready")


def test_a_client_that_lost_its_connection_calls_next_again(rig: Rig) -> None:
    rig.runtime().close()
    client = rig.client()
    client.ask("GET", NEXT)
    # The order of a close and of a connection of its own is the kernel's: the second may be refused once.
    rig.do(rig.api.invoke, invocation(), 1)
    while (answer := client.answer()).status == 403:
        client.ask("GET", NEXT)
    assert answer.status == 200


def test_pipelined_response_and_next(rig: Rig) -> None:
    client = rig.running()
    client.send(wire("POST", response_path(), b"yes") + wire("GET", NEXT))
    assert client.answer().status == 202
    assert rig.owner.take() == ("response", b"yes", "application/json")
    assert rig.owner.take() == ("settled",)
    rig.do(rig.api.invoke, invocation(b"second"), 1)
    assert client.answer().body == b"second"


def test_the_owner_invokes_from_within_its_callbacks(rig: Rig) -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        if count < 50:
            rig.api.invoke(invocation(b"%d" % count), 1)

    rig.owner.react["settled"] = again
    client = rig.client()
    client.ask("GET", NEXT)
    for number in range(1, 50):
        assert client.answer().body == b"%d" % number
        client.send(wire("POST", response_path(), b"x") + wire("GET", NEXT))
        assert client.answer().status == 202
    while rig.owner.take()[0] != "settled" or count < 50:
        pass


def test_the_owner_invokes_within_on_response(rig: Rig) -> None:
    rig.owner.react["response"] = lambda *_told: rig.api.invoke(invocation(b"next one"), 2)
    client = rig.running()
    assert client.call("POST", response_path(), b"x").status == 202
    assert client.call("GET", NEXT).body == b"next one"
    assert rig.owner.take()[0] == "response"
    assert rig.owner.silent


@pytest.mark.parametrize("command", ["begin", "close"])
def test_the_owner_ends_it_within_on_response(rig: Rig, command: str) -> None:
    end = (lambda *_told: rig.api.begin(True)) if command == "begin" else (lambda *_told: rig.api.close())
    client = rig.running()
    rig.owner.react["response"] = end
    client.send(wire("POST", response_path(), b"yes") + wire("GET", NEXT))
    assert client.is_cut
    assert rig.owner.take()[0] == "response"
    assert rig.owner.silent


def test_standard_library_client(rig: Rig) -> None:
    connection = http.client.HTTPConnection(*rig.address, timeout=5)
    rig.do(rig.api.invoke, invocation(), 1)
    connection.request("GET", NEXT)
    answer = connection.getresponse()
    assert answer.read() == b'{"key":"value"}'
    connection.request("POST", response_path(), body=iter([b"in ", b"chunks"]))
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (202, b'{"status":"OK"}\n')
    assert rig.owner.take() == ("response", b"in chunks", "application/json")
    connection.close()


# --- the nonce ------------------------------------------------------------------------------------------


def test_the_nonce_is_fresh_and_checked(rig: Rig) -> None:
    client = rig.runtime()
    nonces = []
    for _ in range(2):
        rig.do(rig.api.invoke, invocation(), 1)
        nonces.append(client.answer().headers["lambda-runtime-invocation-id"])
        wrong = client.call("POST", response_path(), b"late", Lambda_Runtime_Invocation_Id="0" * 36)
        assert wrong.status == 410
        assert wrong.json == {"errorMessage": "Invoke timeout", "errorType": "InvokeTimeout"}
        wrong = client.call("POST", error_path(), b"{}", Lambda_Runtime_Invocation_Id="0" * 36)
        assert wrong.status == 410
        right = client.call("POST", response_path(), b"in time", Lambda_Runtime_Invocation_Id=nonces[-1])
        assert right.status == 202
        assert rig.owner.take() == ("response", b"in time", "application/json")
        client.ask("GET", NEXT)
        assert rig.owner.take() == ("settled",)
    assert nonces[0] != nonces[1]


# --- response -------------------------------------------------------------------------------------------

INVALID_ID = {"errorMessage": "Invalid request ID", "errorType": "InvalidRequestID"}


@pytest.mark.parametrize("path", [response_path("other"), error_path("other"), response_path("")])
def test_wrong_request_id(rig: Rig, path: str) -> None:
    client = rig.running()
    answer = client.call("POST", path, b"1")
    assert (answer.status, answer.json) == (400, INVALID_ID)
    assert client.call("POST", response_path(), b"1").status == 202


@pytest.mark.parametrize("path", [response_path(), error_path()])
def test_a_second_answer_is_refused(rig: Rig, path: str) -> None:
    client = rig.running()
    assert client.call("POST", response_path(), b"1").status == 202
    answer = client.call("POST", path, b"2")
    assert (answer.status, answer.json) == (400, INVALID_ID)
    assert rig.owner.take() == ("response", b"1", "application/json")
    assert rig.owner.silent


def test_an_answer_without_an_invocation_is_refused(rig: Rig) -> None:
    answer = rig.client().call("POST", response_path(), b"1")
    assert (answer.status, answer.json) == (400, INVALID_ID)


def test_an_answer_while_another_is_on_its_way(rig: Rig) -> None:
    first = rig.running()
    first.send(b"POST %b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\na" % response_path().encode())
    second = rig.client()
    while (answer := second.call("POST", error_path(), b"{}")).status == 202:
        pytest.fail("the error was taken")
    assert answer.json == refused("InvocationResponse", "InvocationErrorResponse")
    first.send(b"bc")
    assert first.answer().status == 202
    assert rig.owner.take() == ("response", b"abc", "application/json")


def test_a_response_after_a_reset_is_refused(rig: Rig) -> None:
    client = rig.running()
    rig.do(rig.api.begin, True)
    assert client.is_cut
    answer = rig.client().call("POST", response_path(), b"1")
    assert (answer.status, answer.json) == (400, INVALID_ID)
    assert rig.owner.silent


TOO_LARGE = {
    "errorMessage": "Exceeded maximum allowed payload size (6291556 bytes).",
    "errorType": "RequestEntityTooLarge",
}


def test_the_largest_response(rig: Rig) -> None:
    client = rig.running()
    body = b"x" * RESPONSE_MAX_BYTES
    assert client.call("POST", response_path(), body).status == 202
    assert rig.owner.take()[1] == body


def test_a_response_too_large(rig: Rig) -> None:
    client = rig.running()
    answer = client.call("POST", response_path(), b"x" * (RESPONSE_MAX_BYTES + 1))
    assert (answer.status, answer.json) == (413, TOO_LARGE)
    assert rig.owner.take() == ("too_large",)
    client.ask("GET", NEXT)  # the connection is as good as before
    assert rig.owner.take() == ("settled",)


def test_a_chunked_response_too_large(rig: Rig) -> None:
    client = rig.running()
    client.ask("POST", response_path(), Transfer_Encoding="chunked")
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    for _ in range(7):
        client.send(chunk)
    assert rig.owner.take() == ("too_large",)  # told before the end
    client.send(b"0\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.json) == (413, TOO_LARGE)


def test_too_large_and_asking_first(rig: Rig) -> None:
    client = rig.running()
    client.ask("POST", response_path(), Content_Length="7000000", Expect="100-continue")
    assert client.answer().json == TOO_LARGE
    assert rig.owner.take() == ("too_large",)
    assert client.is_cut


def test_expect_continue(rig: Rig) -> None:
    client = rig.running()
    client.ask("POST", response_path(), Content_Length="3", Expect="100-continue")
    assert client.answer().status == 100
    client.send(b"abc")
    assert client.answer().status == 202


def test_an_invalid_response_mode(rig: Rig) -> None:
    client = rig.running()
    answer = client.call("POST", response_path(), b"1", Lambda_Runtime_Function_Response_Mode="fast")
    assert answer.status == 400
    message = "Invalid function response mode"
    assert answer.json == {"errorMessage": message, "errorType": "InvalidFunctionResponseMode"}
    name, error_type, body = rig.owner.take()
    assert (name, error_type) == ("error", "Runtime.InvalidResponseModeHeader")
    assert json.loads(body) == {"errorType": error_type, "errorMessage": message}
    client.ask("GET", NEXT)
    assert rig.owner.take() == ("settled",)


@pytest.mark.parametrize("path", [response_path(), error_path()])
def test_a_truncated_body(rig: Rig, path: str) -> None:
    client = rig.running()
    client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc".encode())
    client.socket.shutdown(1)
    answer = client.answer()
    assert answer.status == 400
    message = "HTTP request detected as truncated"
    assert answer.json == {"errorMessage": message, "errorType": "TruncatedHTTPRequest"}
    name, error_type, body = rig.owner.take()
    assert (name, error_type) == ("error", "Runtime.TruncatedResponse")
    assert json.loads(body)["errorType"] == error_type


def test_a_broken_chunk(rig: Rig) -> None:
    client = rig.running()
    client.ask("POST", response_path(), Transfer_Encoding="chunked")
    client.send(b"5\r\nhello\r\nrubbish\r\n")
    assert client.answer().status == 400
    assert client.is_cut
    assert rig.owner.take()[1] == "Runtime.TruncatedResponse"


# --- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("Runtime.ImportModuleError", "Runtime.ImportModuleError"),
        ("Function.MyError", "Function.MyError"),
        ("Function.my", "Function.Unknown"),
        ("Function.", "Function.Unknown"),
        ("Runtime.X", "Runtime.Unknown"),
        ("Runtime.Bad1", "Runtime.Unknown"),
        ("Runtime.Bad\n", "Runtime.Unknown"),
        ("Unhandled", "Runtime.Unknown"),
        ("", "Runtime.Unknown"),
    ],
)
def test_shown_error_type(told: str, shown: str) -> None:
    assert shown_error_type(told) == shown


def test_an_error_reaches_the_caller_untouched(rig: Rig) -> None:
    client = rig.running()
    body = b'{"errorMessage":"no","errorType":"KeyError"}'
    answer = client.call("POST", error_path(), body, Lambda_Runtime_Function_Error_Type="Function.KeyError")
    assert (answer.status, answer.body) == (202, b'{"status":"OK"}\n')
    assert rig.owner.take() == ("error", "Function.KeyError", body)
    client.ask("GET", NEXT)
    assert rig.owner.take() == ("settled",)


def test_an_error_too_large(rig: Rig) -> None:
    client = rig.running()
    answer = client.call("POST", error_path(), b"x" * (RESPONSE_MAX_BYTES + 1))
    assert (answer.status, answer.json) == (413, TOO_LARGE)
    assert rig.owner.take() == ("too_large",)


def test_xray_cause_of_a_header(rig: Rig) -> None:
    client = rig.running()
    cause = json.dumps({"working_directory": "/var/task", "exceptions": [], "paths": ["p" * 70_000]})
    client.call("POST", error_path(), b"{}", Lambda_Runtime_Function_XRay_Error_Cause=cause)
    rig.owner.take()
    assert json.loads(rig.do(lambda: rig.api.last_error_cause)) == {"working_directory": "/var/task", "exceptions": []}


def test_xray_cause_in_the_body(rig: Rig) -> None:
    client = rig.running()
    body = json.dumps({"errorMessage": "m", "errorType": "T", "errorCause": {"working_directory": "/"}}).encode()
    kind = "application/vnd.aws.lambda.error.cause+json"
    client.call("POST", error_path(), body, Content_Type=kind)
    assert json.loads(rig.owner.take()[2]) == {"errorMessage": "m", "errorType": "T"}
    assert json.loads(rig.do(lambda: rig.api.last_error_cause)) == {"working_directory": "/"}


@pytest.mark.parametrize("cause", [b"", b"[", b"[]", b"7", b"[" * 100_000, b'"' + b"x" * 70_000 + b'"'])
def test_a_cause_that_is_none(cause: bytes) -> None:
    assert crop_cause(cause) == b""


def test_a_long_cause_is_cropped() -> None:
    frames = [{"path": "x" * 100, "line": number} for number in range(1_000)]
    cause = {"exceptions": [{"type": "E", "message": "m" * 100_000, "stack": frames} for _ in range(3)]}
    cropped = crop_cause(json.dumps(cause).encode())
    assert 0 < len(cropped) <= XRAY_CAUSE_MAX_BYTES
    assert json.loads(cropped)["exceptions"][0]["type"] == "E"


def test_init_error(rig: Rig) -> None:
    client = rig.client()
    body = b'{"errorType":"Runtime.ImportModuleError"}'
    answer = client.call("POST", INIT_ERROR, body, Lambda_Runtime_Function_Error_Type="Runtime.ImportModuleError")
    assert (answer.status, answer.body) == (202, b'{"status":"OK"}\n')
    assert rig.owner.take() == ("init_error", "Runtime.ImportModuleError", body)
    again = client.call("POST", INIT_ERROR, body)
    assert (again.status, again.json) == (403, refused("InitError", "InitError"))
    after = client.call("GET", NEXT)
    assert (after.status, after.json) == (403, refused("InitError", "Ready"))


def test_init_error_comes_too_late(rig: Rig) -> None:
    client = rig.running()
    answer = client.call("POST", INIT_ERROR, b"{}")
    assert (answer.status, answer.json) == (403, refused("Running", "InitError"))


# --- SnapStart ------------------------------------------------------------------------------------------


def test_restore(rig: Rig) -> None:
    client = rig.client()
    client.ask("GET", RESTORE_NEXT)
    assert rig.owner.take() == ("restore_next",)
    rig.do(rig.api.restore)
    answer = client.answer()
    assert (answer.status, answer.body) == (200, b"")
    client.ask("GET", NEXT)
    assert rig.owner.take() == ("settled",)
    refusal = rig.client().call("GET", RESTORE_NEXT)
    assert (refusal.status, refusal.json) == (403, refused("Ready", "RestoreReady"))


def test_restored_before_it_asks(rig: Rig) -> None:
    rig.do(rig.api.restore)
    assert rig.client().call("GET", RESTORE_NEXT).status == 200
    assert rig.owner.take() == ("restore_next",)


def test_restore_error(rig: Rig) -> None:
    client = rig.client()
    early = client.call("POST", RESTORE_ERROR, b"{}")
    assert (early.status, early.json) == (403, refused("Started", "RestoreError"))
    client.ask("GET", RESTORE_NEXT)
    rig.do(rig.api.restore)
    assert client.answer().status == 200
    rig.owner.wait_for("restore_next")
    kind = "Runtime.AfterRestoreError"
    assert client.call("POST", RESTORE_ERROR, b"{}", Lambda_Runtime_Function_Error_Type=kind).status == 202
    assert rig.owner.take() == ("restore_error", kind, b"{}")


# --- the rest -------------------------------------------------------------------------------------------


def test_ping_and_unknown_paths(rig: Rig) -> None:
    client = rig.client()
    assert client.call("GET", "/2018-06-01/ping").body == b"pong"
    assert client.call("GET", NEXT[:-4]).status == 404
    assert client.call("POST", "/2018-06-01/runtime/invocation/x/y", b"").status == 404
    assert client.call("POST", NEXT, b"").status == 405
    assert client.call("GET", response_path()).status == 405
    assert client.call("HEAD", "/").status == 405
    assert client.call("GET", "/2018-06-01/ping?x=1").status == 200


@pytest.mark.parametrize(("method", "path"), [("GET", NEXT), ("POST", INIT_ERROR), ("POST", response_path())])
def test_a_runtime_on_the_frame_link_has_no_http(method: str, path: str) -> None:
    rig = Rig(http_runtime=False)
    try:
        rig.do(rig.api.runtime_waiting)
        assert rig.owner.take() == ("settled",)
        rig.do(rig.api.invoke, invocation(), 1)
        assert rig.client().call(method, path, b"{}").status == 403
        rig.do(rig.api.runtime_waiting)
        assert rig.owner.take() == ("settled",)
        assert rig.owner.silent
    finally:
        rig.close()


def test_every_state_and_event() -> None:
    reached = {State.STARTED} | set(TRANSITIONS.values())
    assert reached == set(State)
    assert {event for _, event in TRANSITIONS} == set(Event)


def test_nonces_are_uuids_and_differ() -> None:
    many = {runtime_module._nonce() for _ in range(1_000)}
    assert len(many) == 1_000
    assert all(len(nonce) == 36 and nonce[14] == "4" for nonce in many)


# --- streaming ------------------------------------------------------------------------------------------


def begin_stream(rig: Rig, **headers: str) -> Client:
    client = rig.running()
    client.ask(
        "POST",
        response_path(),
        Lambda_Runtime_Function_Response_Mode="streaming",
        Transfer_Encoding="chunked",
        **headers,
    )
    return client


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_a_streamed_response(either_rig: Rig) -> None:
    rig = either_rig
    client = begin_stream(rig, Content_Type="text/event-stream")
    assert rig.owner.take() == ("stream_start", "text/event-stream")
    for data in (b"one", b"two"):
        client.send(chunk(data))
        assert rig.owner.take() == ("chunk", data)
    client.send(b"0\r\n\r\n" + wire("GET", NEXT))
    assert rig.owner.take() == ("stream_end", None, b"")
    assert rig.owner.take() == ("settled",)
    assert client.answer().status == 202


def test_a_stream_in_one_piece(rig: Rig) -> None:
    client = rig.running()
    client.send(
        wire("POST", response_path(), b"all", Lambda_Runtime_Function_Response_Mode="streaming") + wire("GET", NEXT)
    )
    assert [rig.owner.take()[0] for _ in range(4)] == ["stream_start", "chunk", "stream_end", "settled"]


def test_the_default_content_type_of_a_stream(rig: Rig) -> None:
    begin_stream(rig)
    assert rig.owner.take() == ("stream_start", "application/octet-stream")


@pytest.mark.parametrize(
    ("error_type", "body", "shown", "given"),
    [
        ("Runtime.StreamError", b'{"a":1}', "Runtime.StreamError", b'{"a":1}'),
        ("Odd", b"", "Runtime.Unknown", b""),
        ("", b"{}", "Runtime.Unknown", b"{}"),
    ],
)
def test_trailers_of_a_stream(rig: Rig, error_type: str, body: bytes, shown: str, given: bytes) -> None:
    client = begin_stream(rig, Trailer="Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body")
    client.send(chunk(b"part") + b"0\r\n")
    client.send(f"Lambda-Runtime-Function-Error-Type: {error_type}\r\n".encode())
    client.send(b"Lambda-Runtime-Function-Error-Body: " + base64.b64encode(body) + b"\r\n\r\n")
    assert client.answer().status == 202
    assert rig.owner.wait_for("stream_end") == ("stream_end", shown, given)


def test_a_stream_whose_error_body_is_not_base64(rig: Rig) -> None:
    client = begin_stream(rig)
    client.send(b"0\r\nLambda-Runtime-Function-Error-Type: Function.Broken\r\n")
    client.send(b"Lambda-Runtime-Function-Error-Body: %%%\r\n\r\n")
    assert client.answer().status == 202
    assert rig.owner.wait_for("stream_end") == ("stream_end", "Function.Broken", b"")


def test_a_stream_that_breaks_off(rig: Rig) -> None:
    client = begin_stream(rig)
    client.send(chunk(b"part"))
    assert rig.owner.wait_for("chunk") == ("chunk", b"part")
    client.close()
    _, error_type, body = rig.owner.wait_for("stream_end")
    assert error_type == "Runtime.TruncatedResponse"
    assert json.loads(body)["errorType"] == error_type


def test_a_stream_that_is_reset(rig: Rig) -> None:
    client = begin_stream(rig)
    client.send(chunk(b"part"))
    rig.owner.wait_for("chunk")
    rig.do(rig.api.begin, True)
    assert client.is_cut
    assert rig.owner.silent  # no end of a stream that the environment gave up itself


def test_a_stream_over_its_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "STREAM_MAX_BYTES", 1_000)
    client = begin_stream(rig)
    client.send(chunk(b"x" * 1_000))
    assert rig.owner.wait_for("chunk")[1] == b"x" * 1_000
    client.send(chunk(b"y") + b"0\r\n\r\n")
    _, error_type, body = rig.owner.wait_for("stream_end")
    assert error_type == "Function.ResponseSizeTooLarge"
    assert "(1000 bytes)" in json.loads(body)["errorMessage"]
    assert client.answer().status == 413
    client.ask("GET", NEXT)
    assert rig.owner.take() == ("settled",)


def test_the_limit_of_a_stream() -> None:
    assert runtime_module.STREAM_MAX_BYTES == 209_715_200
