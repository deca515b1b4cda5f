"""The Node.js runtime client as a process driven through the Runtime API: what a function sees, what it prints."""

from __future__ import annotations

import base64
import json
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

import pytest
from tests.runtimes.nodejs_platform import (
    ARN,
    INIT_ERROR,
    NEXT,
    NODE,
    REQUEST_ID,
    RESPONSE,
    TIMEOUT_S,
    function_environ,
    invocation,
    runtime,
)

pytestmark = pytest.mark.skipif(NODE is None, reason="no node on this machine")

ECHO = "exports.handler = async (event) => event;"
BIG_BYTES = 6 * 1_048_576
#: The number of read(2), as /proc shows it.
READ = "63" if platform.machine() == "aarch64" else "0"


def records(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


# --- finding the handler ---


@pytest.mark.parametrize(
    ("handler", "files"),
    [
        ("index.handler", {"index.js": "exports.handler = async () => 'it';"}),
        ("index.handler", {"index.cjs": "exports.handler = async () => 'it';"}),
        ("index.handler", {"index.mjs": "const it = await 'it'; export const handler = async () => it;"}),
        (
            "index.handler",
            {"package.json": '{"type":"module"}', "index.js": "export const handler = async () => 'it';"},
        ),
        (
            "src/a/app.handler",
            {"package.json": '{"type":"module"}', "src/a/app.js": "export const handler=async()=>'it'"},
        ),
        ("src/app.main.handler", {"src/app.js": "exports.main = {handler: async () => 'it'};"}),
        ("app.handler", {"app/index.js": "exports.handler = async () => 'it';"}),
        ("index.handler", {"index": "exports.handler = async () => 'it';"}),
        ("index.handler", {"index.js": "exports.handler=async()=>'it'", "index.mjs": "export const handler=0"}),
        ("lib.handler", {"node_modules/lib/index.js": "exports.handler = async () => 'it';"}),
    ],
)
def test_handler_is_found(tmp_path: Path, handler: str, files: dict[str, str]) -> None:
    with runtime(tmp_path, files, handler) as function:
        assert function.platform.result() == "it"


@pytest.mark.parametrize(
    ("handler", "files", "kind", "message"),
    [
        (
            "nope.handler",
            {},
            "Runtime.ImportModuleError",
            "Error: Cannot find module 'nope'\nRequire stack:\n- /var/runtime/",
        ),
        (
            "index.handler",
            {"index.js": "require('left-pad')"},
            "Runtime.ImportModuleError",
            "Error: Cannot find module 'left-pad'\nRequire stack:\n- {root}/index.js\n- /var/runtime/index.mjs",
        ),
        ("index.other", {"index.js": ECHO}, "Runtime.HandlerNotFound", "index.other is undefined or not exported"),
        ("index.a.b", {"index.js": ECHO}, "Runtime.HandlerNotFound", "index.a.b is undefined or not exported"),
        (
            "index.handler",
            {"index.js": "exports.handler=1"},
            "Runtime.HandlerNotFound",
            "index.handler is not a function",
        ),
        ("index", {"index.js": ECHO}, "Runtime.MalformedHandlerName", "Bad handler"),
        ("../index.handler", {}, "Runtime.MalformedHandlerName", "'../index.handler' is not a valid handler name."),
        (
            "index.handler",
            {"index.js": "exports.handler = ("},
            "Runtime.UserCodeSyntaxError",
            "SyntaxError: Unexpected",
        ),
        (
            "index.handler",
            {"index.mjs": "export const handler = ("},
            "Runtime.UserCodeSyntaxError",
            "SyntaxError: Unexpe",
        ),
        ("index.handler", {"index.js": "throw new RangeError('in init')"}, "RangeError", "in init"),
        ("index.handler", {"index.mjs": "import 'left-pad'"}, "Error", "Cannot find package 'left-pad' imported from"),
        ("index.handler", {"index.mjs": "await Promise.reject(new TypeError('t'))"}, "TypeError", "t"),
    ],
)
def test_init_error(tmp_path: Path, handler: str, files: dict[str, str], kind: str, message: str) -> None:
    with runtime(tmp_path, files, handler) as function:
        request = function.platform.answer()
        assert request.path == INIT_ERROR
        assert request.headers["lambda-runtime-function-error-type"] == kind
        assert list(request.json) == ["errorType", "errorMessage", "trace"]
        assert request.json["errorType"] == kind
        assert request.json["errorMessage"].startswith(message.format(root=tmp_path))
        code, out = function.wait()
    assert code == 129
    head, body = out.split("Uncaught Exception \t")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\tundefined\tERROR\t", head)
    logged = json.loads(body)
    assert (logged["errorType"], logged["stack"]) == (kind, request.json["trace"])


def test_missing_aws_sdk_is_explained(tmp_path: Path) -> None:
    with runtime(tmp_path, "require('@aws-sdk/client-s3')") as function:
        function.platform.answer()
        _, out = function.wait()
    assert "WARN\tLAMBENT_WARNING: @aws-sdk/client-s3 is not part of this runtime" in out


def test_top_level_await_that_never_settles(tmp_path: Path) -> None:
    with runtime(tmp_path, {"index.mjs": "await new Promise(() => {})"}) as function:
        assert function.platform.answer().json["errorType"] == "Runtime.NodeJsExit"
        assert function.wait()[0] == 13


def test_layer_modules_come_from_node_path(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    files = {"index.js": "exports.handler = async () => require('dep')", "layer/dep.js": "module.exports = 'dep'"}
    with runtime(tmp_path, files, NODE_PATH=str(layer)) as function:
        assert function.platform.result() == "dep"


def test_function_sees_a_runtime_like_aws(tmp_path: Path) -> None:
    code = """
        const main = require.main === undefined;
        exports.handler = async () => [main, process.argv.slice(1), Object.keys(require.cache), process.cwd(),
            typeof awslambda.streamifyResponse, process.listenerCount('SIGTERM')];
    """
    with runtime(tmp_path, code) as function:
        expected = [True, ["/var/runtime/index.mjs"], [f"{tmp_path}/index.js"], str(tmp_path), "function", 0]
        assert function.platform.result() == expected


# --- results and the context ---


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ("async () => undefined", None),
        ("async () => null", None),
        ("async () => () => 1", None),
        ("async () => Buffer.from('a')", {"type": "Buffer", "data": [97]}),
        ("async () => new Date(0)", "1970-01-01T00:00:00.000Z"),
        ("async () => 'päth ✓ 😀'", "päth ✓ 😀"),
        ("() => 'ignored'", None),
        ("() => ({then(done) { done('thenable') }})", "thenable"),
        ("(e, c, callback) => { callback(null, 'called') }", "called"),
        ("(e, c, callback) => { setTimeout(() => callback(null, 'late'), 5) }", "late"),
        ("async (e, c, callback) => { callback(null, 'ignored'); return 'returned' }", "returned"),
        ("(e, c) => c.done(null, 'done')", "done"),
        ("(e, c) => c.succeed('succeed')", "succeed"),
        ("() => new Promise(() => {})", None),
        ("(e, c, callback) => {}", None),
        ("async () => { setTimeout(() => {}, 60000); return 'not awaited' }", "not awaited"),
    ],
)
def test_result(tmp_path: Path, body: str, result: object) -> None:
    with runtime(tmp_path, f"exports.handler = {body}") as function:
        request = function.platform.invoke()
        assert (request.path, request.json) == (RESPONSE, result)
        assert request.headers["content-type"] == "application/json"
        assert function.platform.result() == result


def test_context(tmp_path: Path) -> None:
    code = """exports.handler = async (event, context) =>
        ({...context, remaining: context.getRemainingTimeInMillis(), trace: process.env._X_AMZN_TRACE_ID})"""
    with runtime(tmp_path, code) as function:
        context = function.platform.result(
            client_context='{"custom":{"k":"ö"}}', cognito_identity='{"cognitoIdentityId":"i"}', aws_tenant_id="blue"
        )
        assert context.pop("remaining") > 1_000_000
        assert context == {
            "functionVersion": "$LATEST",
            "functionName": "f",
            "memoryLimitInMB": "128",
            "logGroupName": "/aws/lambda/f",
            "logStreamName": "2026/01/01/[$LATEST]0",
            "clientContext": {"custom": {"k": "ö"}},
            "identity": {"cognitoIdentityId": "i"},
            "invokedFunctionArn": ARN,
            "awsRequestId": REQUEST_ID,
            "tenantId": "blue",
            "callbackWaitsForEmptyEventLoop": True,
            "trace": "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1",
        }
        again = function.platform.result(trace_id=None)
        assert "trace" not in again
        assert "clientContext" not in again
        assert "errorMessage" in function.platform.error(client_context="{")


def test_callback_waits_for_the_event_loop_unless_told_not_to(tmp_path: Path) -> None:
    code = """
        let fired = false;
        exports.handler = (event, context, callback) => {
            const before = fired;
            context.callbackWaitsForEmptyEventLoop = event.waits;
            setTimeout(() => { fired = true; console.log('fired') }, 30);
            callback(null, before);
        };
    """
    with runtime(tmp_path, code) as function:
        assert function.platform.result({"waits": True}) is False
        assert function.platform.result({"waits": False}) is True
        _, out = function.finish()
    assert "\tfired\n" in out


def test_invocation_id_is_echoed(tmp_path: Path) -> None:
    with runtime(tmp_path, "exports.handler = async (e) => { if (e) throw 1 }") as function:
        for event in (0, 1):
            request = function.platform.invoke(event, invocation_id="nonce")
            assert request.headers["lambda-runtime-invocation-id"] == "nonce"
        assert "lambda-runtime-invocation-id" not in function.platform.invoke(0).headers


def test_node_24_has_no_callbacks(tmp_path: Path) -> None:
    modern = "AWS_Lambda_nodejs24.x"
    with runtime(tmp_path, "exports.handler = (e, c, callback) => 1", AWS_EXECUTION_ENV=modern) as function:
        error = function.platform.answer().json
        assert error["errorType"] == "Runtime.CallbackHandlerDeprecated"
        assert error["errorMessage"].startswith("ERROR: AWS Lambda has removed support for callback-based function")
        assert "\tERROR\tInit Error \t{" in function.wait()[1]
    code = "exports.handler = (event, context) => event ?? 'done' in context"
    with runtime(tmp_path, code, AWS_EXECUTION_ENV=modern) as function:
        assert function.platform.result("sync") == "sync"
        assert function.platform.result() is False
    with runtime(tmp_path, "exports.handler = () => new Promise(() => {})", AWS_EXECUTION_ENV=modern) as function:
        assert function.platform.error()["errorType"] == "Runtime.NodeJsExit"


# --- errors ---


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("async () => { throw new TypeError('boom') }", ("TypeError", "boom")),
        ("() => { throw new Error('sync') }", ("Error", "sync")),
        ("(e, c, callback) => callback(new Error('given'))", ("Error", "given")),
        ("(e, c, callback) => callback('text')", ("string", "text")),
        ("(e, c) => c.fail(new Error('failed'))", ("Error", "failed")),
        ("async () => { throw 'text' }", ("string", "text")),
        ("async () => { throw 7 }", ("number", "7")),
        ("async () => { throw {a: 1} }", ("object", "[object Object]")),
        (
            "async () => { throw null }",
            (
                "handled",
                "callback called with Error argument, but there was a problem while retrieving one or more of ",
            ),
        ),
        ("async () => { throw Object.assign(new Error('m'), {name: 'Ünïcode\\n'}) }", ("Ünïcode\n", "m")),
        (
            "async () => require('vm').runInNewContext(\"throw new RangeError('other realm')\")",
            ("RangeError", "other realm"),
        ),
        ("async () => { const a = {}; a.a = a; return a }", ("Error", "Unable to stringify response body")),
        ("async () => 1n", ("Error", "Unable to stringify response body")),
    ],
)
def test_handler_error(tmp_path: Path, body: str, error: tuple[str, str]) -> None:
    with runtime(tmp_path, f"exports.handler = {body}") as function:
        document = function.platform.error()
        assert list(document) == ["errorType", "errorMessage", "trace"]
        assert document["errorType"] == error[0]
        assert document["errorMessage"].startswith(error[1])
        assert function.platform.error()["errorType"] == error[0]
        _, out = function.finish()
    assert out.count("\tERROR\tInvoke Error \t{") == 2


def test_error_carries_its_trace_and_its_own_properties(tmp_path: Path) -> None:
    code = (
        "exports.handler = async () => { throw Object.assign(new Error('m'), {code: 'E1', cause: new Error('why')}) }"
    )
    with runtime(tmp_path, code) as function:
        request = function.platform.invoke()
        _, out = function.finish()
    assert request.json["trace"][0] == "Error: m"
    assert re.match(
        rf"    at (Runtime\.)?(exports\.)?handler \({re.escape(str(tmp_path))}/index\.js:1:", request.json["trace"][1]
    )
    cause = json.loads(request.headers["lambda-runtime-function-xray-error-cause"])
    assert cause["exceptions"][0]["stack"][0]["path"] == f"{tmp_path}/index.js"
    logged = json.loads(out.split("Invoke Error \t")[1])
    assert list(logged)[:3] == ["errorType", "errorMessage", "code"]
    assert (logged["code"], logged["cause"]["errorMessage"], logged["stack"]) == ("E1", "why", request.json["trace"])


def test_event_that_is_not_json(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO) as function:
        assert function.platform.error(b"{")["errorType"] == "SyntaxError"
        assert function.platform.result(1) == 1


def test_uncaught_exception_ends_the_process(tmp_path: Path) -> None:
    code = "exports.handler = () => new Promise(() => setTimeout(() => { throw new Error('loose') }, 1))"
    with runtime(tmp_path, code) as function:
        assert function.platform.error()["errorMessage"] == "loose"
        exit_code, out = function.wait()
    assert exit_code == 129
    assert f"\t{REQUEST_ID}\tERROR\tUncaught Exception \t{{" in out


def test_unhandled_rejection_ends_the_process(tmp_path: Path) -> None:
    code = "exports.handler = () => new Promise(() => { Promise.reject(new Error('loose')) })"
    with runtime(tmp_path, code) as function:
        document = function.platform.error()
        exit_code, out = function.wait()
    assert (document["errorType"], document["errorMessage"]) == ("Runtime.UnhandledPromiseRejection", "Error: loose")
    assert document["trace"][0] == "Runtime.UnhandledPromiseRejection: Error: loose"
    assert exit_code == 128
    logged = json.loads(out.split("ERROR\tUnhandled Promise Rejection \t")[1])
    assert (logged["reason"]["errorMessage"], logged["promise"]) == ("loose", {})


def test_exception_between_invocations_ends_the_process(tmp_path: Path) -> None:
    code = "exports.handler = async () => { setImmediate(() => setTimeout(() => { throw new Error('late') }, 5)) }"
    with runtime(tmp_path, code) as function:
        assert function.platform.result() is None
        exit_code, out = function.wait()
    assert (exit_code, "Uncaught Exception" in out) == (129, True)


def test_process_exit_in_a_handler(tmp_path: Path) -> None:
    with runtime(tmp_path, "exports.handler = async () => { console.log('last'); process.exit(3) }") as function:
        function.platform.next()
        exit_code, out = function.wait()
    assert exit_code == 3
    assert out.endswith("\tlast\n")


# --- the platform's answers ---


@pytest.mark.parametrize("status", [413, 410])
def test_refused_response_is_not_fatal(tmp_path: Path, status: int) -> None:
    with runtime(tmp_path, ECHO) as function:
        function.platform.next(1)
        function.platform.request()
        function.platform.reply(status, b'{"errorMessage":"m"}')
        assert function.platform.result(2) == 2


@pytest.mark.parametrize("status", [400, 403, 500])
def test_other_refusals_are_fatal(tmp_path: Path, status: int) -> None:
    with runtime(tmp_path, ECHO) as function:
        function.platform.next(1)
        function.platform.request()
        function.platform.reply(status, b"no")
        exit_code, out = function.wait()
    assert (exit_code, out) == (1, f"The Runtime API answered an answer with {status}: no\n")


def test_next_that_fails_is_fatal(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO) as function:
        function.platform.request()
        function.platform.reply(403, b"no")
        assert function.wait()[0] == 1


def test_platform_gone(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO) as function:
        assert function.platform.request().path == NEXT
        assert function.finish() == (0, "")


def test_platform_that_does_not_speak_http(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO) as function:
        function.platform.request()
        function.platform.send(b"SSH-2.0-x\r\n\r\n")
        assert function.wait() == (1, "The Runtime API: not an HTTP answer\n")


def test_platform_that_is_not_there(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO, AWS_LAMBDA_RUNTIME_API="127.0.0.1:1") as function:
        assert function.wait() == (1, "The Runtime API: connect ECONNREFUSED 127.0.0.1:1\n")


def test_response_and_next_are_one_write(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO) as function:
        address = function.platform.address
        function.platform.next("x")
        received = function.platform.connect().recv(65_536)
    post, _, following = received.partition(b"\r\n\r\n")
    assert post.startswith(f"POST {RESPONSE} HTTP/1.1\r\nHost: {address}\r\n".encode())
    assert following.startswith(f'"x"GET {NEXT} HTTP/1.1\r\n'.encode())


def test_answers_byte_by_byte(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO) as function:
        function.platform.byte_by_byte = True
        assert function.platform.result({"ä": "✓"}) == {"ä": "✓"}
        assert function.platform.result([1]) == [1]


@pytest.mark.parametrize("byte_by_byte", [False, True])
def test_chunked_invocation(tmp_path: Path, byte_by_byte: bool) -> None:
    head = invocation("").partition(b"Content-Length")[0]
    answer = (
        head + b'Transfer-Encoding: chunked\r\n\r\n3;x=y\r\n{"a\r\nA\r\n":"0123456\r\n3\r\n7"}\r\n0\r\nT: 1\r\n\r\n'
    )
    with runtime(tmp_path, ECHO) as function:
        function.platform.byte_by_byte = byte_by_byte
        for _ in range(2):
            function.platform.request()
            function.platform.send(answer)
            assert function.platform.answer().json == {"a": "01234567"}


def test_answer_to_a_response_and_next_invocation_in_one_packet(tmp_path: Path) -> None:
    with runtime(tmp_path, ECHO) as function:
        function.platform.next(0)
        for number in range(5):
            assert function.platform.request().json == number
            assert function.platform.request().path == NEXT
            interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n{}"
            function.platform.send(interim + invocation(number + 1))


@pytest.mark.parametrize("unit", ["x", "é", "😀"])
def test_six_megabytes_each_way(tmp_path: Path, unit: str) -> None:
    event = unit * (BIG_BYTES // len(unit.encode()) - 2)
    with runtime(tmp_path, ECHO) as function:
        function.platform.next(json.dumps(event, ensure_ascii=False).encode())
        assert function.platform.answer().json == event
        assert function.platform.result("small") == "small"


# --- logs ---


def test_text_log(tmp_path: Path) -> None:
    code = """
        console.log('init');
        exports.handler = async () => {
            console.log('a %d', 1, {b: 2}); console.info('i'); console.warn('w'); console.error('e');
            console.debug('d'); console.trace('t\\nline'); process.stdout.write('raw\\n'); console.table([[1]]);
        };
    """
    with runtime(tmp_path, code) as function:
        function.platform.result()
        _, out = function.finish()
    lines = [line.split("\t", 1)[1] if "\t" in line else line for line in out.split("\n")]
    assert lines[:8] == [
        "undefined\tINFO\tinit",
        f"{REQUEST_ID}\tINFO\ta 1 {{ b: 2 }}",
        f"{REQUEST_ID}\tINFO\ti",
        f"{REQUEST_ID}\tWARN\tw",
        f"{REQUEST_ID}\tERROR\te",
        f"{REQUEST_ID}\tDEBUG\td",
        f"{REQUEST_ID}\tTRACE\tt\rline",
        "raw",
    ]
    assert lines[8].startswith(f"{REQUEST_ID}\tINFO\t┌─")


def test_json_log(tmp_path: Path) -> None:
    code = """exports.handler = async () => {
        console.log('a %d', 1); console.warn({b: [2]}); console.error('some text', new RangeError('r'));
        console.error(new RangeError('alone')); const c = {}; c.c = c; console.info(c); console.log(1n);
        throw new Error('x')
    }"""
    with runtime(tmp_path, code, AWS_LAMBDA_LOG_FORMAT="JSON") as function:
        function.platform.error(aws_tenant_id="blue")
        _, out = function.finish()
    formatted, structured, with_error, alone, circular, big, invoke_error = records(out)
    assert list(formatted) == ["timestamp", "level", "requestId", "tenantId", "message"]
    assert (formatted["level"], formatted["requestId"], formatted["tenantId"]) == ("INFO", REQUEST_ID, "blue")
    assert (formatted["message"], structured["message"], structured["level"]) == ("a 1", {"b": [2]}, "WARN")
    assert (with_error["errorType"], with_error["errorMessage"]) == ("RangeError", "r")
    assert with_error["message"].startswith("some text RangeError: r")
    assert with_error["stackTrace"][0] == "RangeError: r"
    assert alone["message"]["errorMessage"] == "alone"
    assert circular["message"].startswith("<ref *1>")
    assert big["message"] == "1n"
    assert (invoke_error["level"], invoke_error["message"]["errorType"]) == ("ERROR", "Error")
    assert invoke_error["message"]["stackTrace"][0] == "Error: x"


@pytest.mark.parametrize(
    ("level", "kept"),
    [("TRACE", 6), ("DEBUG", 5), ("info", 4), ("WARN", 3), ("ERROR", 2), ("FATAL", 1), ("nonsense", 6)],
)
def test_log_level(tmp_path: Path, level: str, kept: int) -> None:
    code = """exports.handler = async () => {
        for (const method of ['trace', 'debug', 'info', 'warn', 'error', 'fatal']) console[method](method) }"""
    with runtime(tmp_path, code, AWS_LAMBDA_LOG_FORMAT="JSON", AWS_LAMBDA_LOG_LEVEL=level) as function:
        function.platform.result()
        _, out = function.finish()
    levels = ["TRACE", "DEBUG", "INFO", "WARN", "ERROR", "FATAL"]
    assert [record["level"] for record in records(out)] == levels[-kept:]


@pytest.mark.parametrize(("log_format", "low_bits"), [("Text", 3), ("JSON", 2)])
def test_framed_log(tmp_path: Path, log_format: str, low_bits: int) -> None:
    code = """exports.handler = async () => {
        console.trace('t'); console.log('two\\nlines ✓'); console.error('e'.repeat(20000));
        console.log(process.env._LAMBDA_TELEMETRY_LOG_FD ?? 'gone') }"""
    with runtime(tmp_path, code, framed=True, AWS_LAMBDA_LOG_FORMAT=log_format) as function:
        function.platform.result()
        assert function.finish() == (0, "")
        trace, info, error, gone = function.read_frames()
    assert [frame[0] - 0xA55A0000 for frame in (trace, info, error)] == [4 + low_bits, 12 + low_bits, 20 + low_bits]
    assert 1.6e15 < trace[1] <= info[1] < 5e15
    if log_format == "JSON":
        assert json.loads(info[2])["message"] == "two\nlines ✓"
    else:
        assert info[2].endswith(f"\t{REQUEST_ID}\tINFO\ttwo\nlines ✓")
    assert "e" * 20000 in error[2]
    assert "gone" in gone[2]


def test_log_larger_than_the_pipe_is_complete(tmp_path: Path) -> None:
    """Once process.stdout has been used, the pipe does not block, and a write may be partial or refused."""
    code = """exports.handler = async () => {
        process.stdout.write(''); for (let i = 0; i < 100; i++) console.log(i + ':' + 'x'.repeat(10000)) }"""
    with runtime(tmp_path, code) as function:
        function.platform.next()
        stdout = function.process.stdout
        assert stdout is not None
        lines = [stdout.readline() for _ in range(100)]
        function.platform.answer()
    assert [line.split(b"\t")[3] for line in lines] == [b"%d:%s\n" % (i, b"x" * 10000) for i in range(100)]


# --- streaming ---


def streaming(body: str) -> str:
    return f"exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {{ {body} }})"


def test_stream(tmp_path: Path) -> None:
    code = streaming("stream.setContentType('text/plain'); stream.write('a'); stream.write({b: 1}); stream.end('c')")
    with runtime(tmp_path, code) as function:
        for _ in range(2):
            request = function.platform.invoke(invocation_id="nonce")
            assert (request.path, request.body, request.trailers) == (RESPONSE, b'a{"b":1}c', {})
            assert request.headers["lambda-runtime-function-response-mode"] == "streaming"
            assert request.headers["content-type"] == "text/plain"
            assert request.headers["lambda-runtime-invocation-id"] == "nonce"


def test_stream_flows_while_the_handler_runs(tmp_path: Path) -> None:
    code = streaming("""
        stream.write('first'); await new Promise((done) => setTimeout(done, 20)); stream.write('');
        stream.write('second'); stream.end();
    """)
    with runtime(tmp_path, code) as function:
        function.platform.next()
        head = function.platform.read_head()
        assert head.headers["content-type"] == "application/octet-stream"
        assert [function.platform.read_chunk() for _ in range(3)] == [b"first", b"second", b""]


def test_http_response_stream_prelude(tmp_path: Path) -> None:
    code = streaming("""
        const metadata = {statusCode: 201, headers: {'x-a': 'b'}, cookies: ['c=d']};
        stream = awslambda.HttpResponseStream.from(stream, metadata);
        if (event) stream.write('body'); stream.end();
    """)
    with runtime(tmp_path, code) as function:
        for event, body in ((1, b"body"), (0, b"")):
            request = function.platform.invoke(event)
            assert request.headers["content-type"] == "application/vnd.awslambda.http-integration-response"
            prelude, _, rest = request.body.partition(b"\0" * 8)
            assert json.loads(prelude) == {"statusCode": 201, "headers": {"x-a": "b"}, "cookies": ["c=d"]}
            assert rest == body


def test_pipeline_of_ten_megabytes_with_back_pressure(tmp_path: Path) -> None:
    code = """
        const { Readable } = require('stream'); const { pipeline } = require('stream/promises');
        exports.handler = awslambda.streamifyResponse(async (event, stream) => {
            let ready = true, refused = 0;
            const write = stream.write.bind(stream);
            stream.write = (...args) => { const ok = write(...args); if (!ok) refused += 1; return ok; };
            function* source() { for (let i = 0; i < 160; i++) yield Buffer.alloc(65536, i) }
            await pipeline(Readable.from(source()), stream);
            console.log('refused', refused > 0);
        });
    """
    with runtime(tmp_path, code) as function:
        request = function.platform.invoke()
        assert request.body == b"".join(bytes([i]) * 65536 for i in range(160))
        assert function.platform.request().path == NEXT
        assert "refused true" in function.finish()[1]


def test_stream_fails_before_it_begins(tmp_path: Path) -> None:
    with runtime(tmp_path, streaming("throw new TypeError('early')")) as function:
        assert function.platform.error()["errorType"] == "TypeError"
        assert function.platform.error()["errorMessage"] == "early"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("stream.write('part'); throw new TypeError('mid')", ("TypeError", "mid")),
        ("stream.write('part'); stream.destroy(new RangeError('destroyed'))", ("RangeError", "destroyed")),
        ("stream.write('part'); await null; stream.destroy()", ("Error", "Premature close")),
    ],
)
def test_stream_fails_in_the_middle(tmp_path: Path, body: str, error: tuple[str, str]) -> None:
    code = streaming(body.replace("stream.write('part');", "await new Promise((d) => stream.write('part', d));"))
    with runtime(tmp_path, code) as function:
        for _ in range(2):
            request = function.platform.invoke()
            assert (request.path, request.body) == (RESPONSE, b"part")
            assert "lambda-runtime-function-error-body" in request.headers["trailer"].lower()
            assert request.trailers["lambda-runtime-function-error-type"] == error[0]
            document = json.loads(base64.b64decode(request.trailers["lambda-runtime-function-error-body"]))
            assert (document["errorType"], document["errorMessage"]) == error
        assert "ERROR\tInvoke Error \t" in function.finish()[1]


def test_stream_that_is_never_ended(tmp_path: Path) -> None:
    with runtime(tmp_path, streaming("stream.write('part')")) as function:
        request = function.platform.invoke()
        assert request.trailers["lambda-runtime-function-error-type"] == "Runtime.NodeJsExit"
        assert function.wait()[0] == 13


def test_stream_waits_for_the_event_loop_before_the_next_invocation(tmp_path: Path) -> None:
    code = streaming(
        "context.callbackWaitsForEmptyEventLoop = event; setTimeout(() => console.log('t'), 30); stream.end('x')"
    )
    with runtime(tmp_path, code) as function:
        stdout = function.process.stdout
        assert stdout is not None
        assert function.platform.invoke(True).body == b"x"
        assert function.platform.request().path == NEXT
        os.set_blocking(stdout.fileno(), False)
        assert stdout.readline().endswith(b"\tt\n")


def test_stream_refuses_late_content_type_and_sync_handlers(tmp_path: Path) -> None:
    code = streaming("await new Promise((d) => stream.write('x', d)); stream.setContentType('a/b')")
    with runtime(tmp_path, code) as function:
        trailers = function.platform.invoke().trailers
        assert b"Cannot set content-type, too late." in base64.b64decode(trailers["lambda-runtime-function-error-body"])
    with runtime(tmp_path, "exports.handler = awslambda.streamifyResponse(() => 1)") as function:
        assert function.platform.error()["errorMessage"] == "Streaming does not support non-async handlers."


# --- parked ---


def test_parked_process_becomes_the_function(tmp_path: Path) -> None:
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "dep.js").write_text("module.exports = 'dep'")
    code = """
        const { execFileSync } = require('child_process');
        exports.handler = async () => ({
            env: process.env, child: execFileSync(process.execPath, ['-p', 'process.env.OLD ?? "clean"']).toString(),
            argv: process.argv.slice(1), cwd: process.cwd(), dep: require('dep'), hour: new Date(0).getHours(),
            cache: Object.keys(require.cache).length, main: require.main === undefined,
        });
    """
    boot = {"OLD": "left over", "TZ": "Asia/Tokyo", "NODE_PATH": "/nowhere"}
    with runtime(tmp_path, code, parked=True, boot_environ=boot) as function:
        environ = function_environ(
            function.platform, tmp_path, "index.handler", NODE_PATH=f"{tmp_path}/layer", TZ="America/New_York", A="ü"
        )
        function.give_order(environ, tmp_path)
        seen = function.platform.result()
        assert seen.pop("env").items() - environ.items() == {
            ("_X_AMZN_TRACE_ID", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1")
        }
        assert seen == {
            "child": "clean\n",
            "argv": ["/var/runtime/index.mjs"],
            "cwd": str(tmp_path),
            "dep": "dep",
            "hour": 19,
            "cache": 2,
            "main": True,
        }


def test_parked_module_handler_streams_and_logs(tmp_path: Path) -> None:
    files = {
        "index.mjs": "console.log('init'); export const handler = awslambda.streamifyResponse(async (event, stream) => "
        "{ stream.end(new Date(0).getHours() + event) })"
    }
    with runtime(tmp_path, files, parked=True) as function:
        environ = function_environ(function.platform, tmp_path, "index.handler", AWS_LAMBDA_LOG_FORMAT="JSON")
        function.give_order(environ, tmp_path)
        assert function.platform.invoke("h").body == b"0h"
        assert function.platform.request().path == NEXT
        code, out = function.finish()
    (record,) = records(out)
    assert list(record) == ["timestamp", "level", "message"]
    assert code == 0


def test_parked_process_has_not_started_the_pool_of_threads(tmp_path: Path) -> None:
    """Its size is an environment variable, which is not known before the order."""
    code = """
        const threads = () => require('fs').readdirSync('/proc/self/task').length;
        exports.handler = async () => {
            const before = threads(); await require('fs').promises.stat('/'); return threads() - before }
    """
    with runtime(tmp_path, code, parked=True) as function:
        environ = function_environ(function.platform, tmp_path, "index.handler", UV_THREADPOOL_SIZE="7")
        function.give_order(environ, tmp_path)
        assert function.platform.result() == 7


def test_parked_init_error(tmp_path: Path) -> None:
    with runtime(tmp_path, {}, parked=True) as function:
        function.give_order(function_environ(function.platform, tmp_path, "nope.handler"), tmp_path)
        assert function.platform.answer().json["errorType"] == "Runtime.ImportModuleError"
        assert function.wait()[0] == 129


def test_parked_process_that_is_not_needed_ends(tmp_path: Path) -> None:
    with runtime(tmp_path, {}, parked=True) as function:
        function.order.close()
        assert function.wait() == (0, "")


@pytest.mark.parametrize("blocking", [True, False])
def test_order_may_come_in_pieces(tmp_path: Path, blocking: bool) -> None:
    with runtime(tmp_path, ECHO, parked=True, blocking=blocking) as function:
        environ = function_environ(function.platform, tmp_path, "index.handler", LARGE="x" * 300_000)
        text = json.dumps({"environ": environ, "task_root": str(tmp_path)}).encode()
        for start in range(0, len(text), 50_000):
            function.order.sendall(text[start : start + 50_000])
        function.order.close()
        assert function.platform.result("there") == "there"


def test_waiting_costs_no_cpu(tmp_path: Path) -> None:
    """Parked, the process is inside read(order): it has no turn of its event loop to take."""
    with runtime(tmp_path, {}, parked=True) as function:
        syscall = Path(f"/proc/{function.process.pid}/syscall")
        if not os.access(syscall, os.R_OK):
            pytest.skip("no /proc/PID/syscall here")
        deadline_s = time.monotonic() + TIMEOUT_S
        while syscall.read_text().split()[:2] != [READ, hex(function.order_fd)]:
            assert time.monotonic() < deadline_s


def test_order_that_is_not_json(tmp_path: Path) -> None:
    with runtime(tmp_path, {}, parked=True) as function:
        function.order.sendall(b"{")
        function.order.close()
        code, out = function.wait()
    assert (code, "SyntaxError" in out) == (1, True)
