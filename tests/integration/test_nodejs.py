"""Node.js functions in real environments: handlers of every kind, errors, logs, limits, layers, streams."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from .harness import Function, Server, make_zip, wait_until

Deploy = Callable[..., Function]

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on this machine")
STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def node(deploy: Deploy, source: str | dict[str, bytes | str], **configuration: Any) -> Function:
    files: dict[str, bytes | str] = {"index.js": source} if isinstance(source, str) else source
    return deploy(files, "node", **{"Runtime": "nodejs20.x", "Handler": "index.handler", **configuration})


def test_a_handler_and_its_context(deploy: Deploy) -> None:
    function = node(
        deploy,
        """
        let count = 0
        exports.handler = async (event, context) => ({
          event, count: ++count, name: context.functionName, version: context.functionVersion,
          memory: context.memoryLimitInMB, arn: context.invokedFunctionArn, id: context.awsRequestId,
          group: context.logGroupName, left: context.getRemainingTimeInMillis(), cwd: process.cwd(),
          uid: process.getuid(),
        })
        """,
        Timeout=7,
    )
    reply = function.invoke({"a": [1, "ü"]})
    found = reply.value
    assert found.pop("uid") >= 1000
    assert 6_000 < found.pop("left") <= 7_000
    assert found == {
        "event": {"a": [1, "ü"]},
        "count": 1,
        "name": function.name,
        "version": "$LATEST",
        "memory": "128",
        "arn": f"arn:aws:lambda:us-east-1:000000000000:function:{function.name}",
        "id": reply.request_id,
        "group": function.group,
        "cwd": "/var/task",
    }
    assert "Init Duration" in reply.report
    again = function.invoke({})
    assert again.value["count"] == 2, "the environment is used again"
    assert "Init Duration" not in again.report


@pytest.mark.parametrize(
    ("files", "handler"),
    [
        ({"index.mjs": "export const handler = async (e) => [e, 'esm']"}, "index.handler"),
        (
            {"index.mjs": "const x = await Promise.resolve('esm'); export const handler = async (e) => [e, x]"},
            "index.handler",
        ),
        (
            {"package.json": '{"type": "module"}', "index.js": "export const handler = async (e) => [e, 'esm']"},
            "index.handler",
        ),
        ({"src/app.js": "exports.api = {main: async (e) => [e, 'esm']}"}, "src/app.api.main"),
        (
            {"index.js": "exports.handler = (e, c, callback) => setTimeout(() => callback(null, [e, 'esm']), 20)"},
            "index.handler",
        ),
        (
            {
                "index.js": "exports.handler = async (e) => [e, require('dep').name]",
                "node_modules/dep/index.js": "exports.name = 'esm'",
            },
            "index.handler",
        ),
    ],
    ids=["mjs", "top-level await", "type module", "nested", "callback", "node_modules"],
)
def test_kinds_of_handlers(deploy: Deploy, files: dict[str, bytes | str], handler: str) -> None:
    function = node(deploy, files, Handler=handler)
    assert function.call(1) == [1, "esm"]
    assert function.call(2) == [2, "esm"]


def test_errors(deploy: Deploy) -> None:
    function = node(
        deploy,
        """
        exports.handler = async (event) => {
          if (event === "throw") throw new TypeError("bad luck")
          if (event === "exit") process.exit(3)
          if (event === "forever") await new Promise((r) => setTimeout(r, 60000))
          if (event === "loop") for (;;);
          if (event === "memory") { const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1)) }
          if (event === "circular") { const a = {}; a.a = a; return a }
          if (event === "undefined") return undefined
          require("fs").appendFileSync("/tmp/kept", "x")
          return require("fs").readFileSync("/tmp/kept", "utf8")
        }
        """,
        Timeout=1,
    )
    assert function.call("write") == "x"
    thrown = function.invoke("throw")
    assert thrown.error == "Unhandled"
    assert (thrown.value["errorType"], thrown.value["errorMessage"]) == ("TypeError", "bad luck")
    assert thrown.value["trace"][0] == "TypeError: bad luck"
    assert re.search(STAMP + rf"\t{thrown.request_id}\tERROR\tInvoke Error \t{{", thrown.log)
    assert function.call("write") == "xx", "an exception leaves the environment alone"
    ended = function.invoke("exit")
    assert ended.value["errorType"] == "Runtime.ExitError"
    assert ended.value["errorMessage"].endswith("exit status 3")
    for event in ("forever", "loop"):
        late = function.invoke(event)
        assert late.value["errorType"] == "Sandbox.Timedout"
        assert late.report["Status"] == "timeout"
    assert function.call("write") == "xxx", "/tmp outlives the runtime process"
    assert function.invoke("circular").error == "Unhandled"
    assert function.invoke("undefined").raw == b"null"


def test_out_of_memory(server: Server, deploy: Deploy) -> None:
    if not server.page("health")["cgroup_version"]:
        pytest.skip("memory is not limited without control groups")
    function = node(
        deploy,
        "exports.handler = async () => { const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1)) }",
        Timeout=30,
    )
    reply = function.invoke({})
    assert reply.value["errorType"] == "Runtime.OutOfMemory"
    assert reply.report["Max Memory Used"] == "128 MB"


@pytest.mark.parametrize(
    ("source", "handler", "error_type", "words"),
    [
        ("require('nothing')", "index.handler", "Runtime.ImportModuleError", "Cannot find module 'nothing'"),
        ("exports.handler = 1 +", "index.handler", "Runtime.UserCodeSyntaxError", "SyntaxError"),
        ("exports.other = 1", "index.handler", "Runtime.HandlerNotFound", "index.handler is undefined or not exported"),
        ("throw new RangeError('at load')", "index.handler", "RangeError", "at load"),
    ],
)
def test_what_can_not_be_loaded(deploy: Deploy, source: str, handler: str, error_type: str, words: str) -> None:
    function = node(deploy, source, Handler=handler)
    reply = function.invoke({})
    assert reply.error == "Unhandled"
    assert reply.value["errorType"] == error_type
    assert words in reply.value["errorMessage"]
    reports = [line for line in function.log_of(reply) if line.startswith("INIT_REPORT")]
    assert [line.split("\t")[1] for line in reports] == ["Phase: init", "Phase: invoke"]


def test_console(deploy: Deploy) -> None:
    function = node(
        deploy,
        """
        console.log("at load")
        exports.handler = async () => {
          console.log("two\\nlines", {a: 1}); console.error("bad"); console.warn("hm"); process.stdout.write("raw\\n")
        }
        """,
    )
    reply = function.invoke({})
    lines = function.log_of(reply)
    assert any(re.fullmatch(STAMP + r"\tundefined\tINFO\tat load\n?", line) for line in lines)
    assert any(re.fullmatch(STAMP + rf"\t{reply.request_id}\tINFO\ttwo\nlines {{ a: 1 }}\n?", line) for line in lines)
    assert any(re.fullmatch(STAMP + rf"\t{reply.request_id}\tERROR\tbad\n?", line) for line in lines)
    assert any(re.fullmatch(STAMP + rf"\t{reply.request_id}\tWARN\thm\n?", line) for line in lines)
    assert "raw\n" in lines


def test_json_logs_and_levels(deploy: Deploy) -> None:
    function = node(
        deploy,
        """
        exports.handler = async () => {
          console.debug('no'); console.info('no'); console.warn('w', 1); console.error('e')
        }
        """,
        LoggingConfig={"LogFormat": "JSON", "ApplicationLogLevel": "WARN", "SystemLogLevel": "INFO"},
    )
    reply = function.invoke({})
    lines = [json.loads(line) for line in function.log_of(reply, marker="platform.report")]
    own = [line for line in lines if "level" in line]
    assert [(line["level"], line["message"], line["requestId"]) for line in own] == [
        ("WARN", "w 1", reply.request_id),
        ("ERROR", "e", reply.request_id),
    ]
    assert [line["type"] for line in lines if "type" in line] == [
        "platform.initStart",
        "platform.start",
        "platform.report",
    ]


def test_environment_variables_and_layers(server: Server, deploy: Deploy) -> None:
    layer = server.lambda_.publish_layer_version(
        LayerName=f"l-{uuid.uuid4().hex[:8]}",
        Content={"ZipFile": make_zip({"nodejs/node_modules/shared/index.js": "module.exports = 'from the layer'"})},
    )["LayerVersionArn"]
    function = node(
        deploy,
        "exports.handler = async () => ({environ: process.env, shared: require('shared')})",
        Environment={"Variables": {"COLOUR": "blue", "TZ": "Europe/Berlin"}},
        Layers=[layer],
    )
    found = function.call()
    assert found["shared"] == "from the layer"
    environ = found["environ"]
    assert (environ["COLOUR"], environ["TZ"], environ["AWS_EXECUTION_ENV"]) == (
        "blue",
        "Europe/Berlin",
        "AWS_Lambda_nodejs20.x",
    )
    assert environ["NODE_PATH"] == (
        "/opt/nodejs/node20/node_modules:/opt/nodejs/node_modules:/var/runtime/node_modules:/var/runtime:/var/task"
    )
    assert "_LAMBDA_TELEMETRY_LOG_FD" not in environ


def test_options_that_node_reads_at_its_start(deploy: Deploy) -> None:
    """A process that was started ahead can not take them on; one is started anew."""
    function = node(
        deploy,
        "exports.handler = async () => [process.execArgv, typeof gc]",
        Environment={"Variables": {"NODE_OPTIONS": "--expose-gc --max-old-space-size=64"}},
    )
    assert function.call()[1] == "function"


def test_timers_stand_still_between_invocations(server: Server, deploy: Deploy) -> None:
    function = node(deploy, "let n = 0; setInterval(() => n++, 1); exports.handler = async () => n")
    function.call()

    def frozen() -> bool:
        found = [each for each in server.page("environments") if each["function"] == function.name]
        return bool(found[0]["frozen"])

    wait_until(frozen, "the environment is frozen")
    before = function.call()
    wait_until(frozen, "frozen again")
    assert function.call() - before < 100


def test_streamed_chunks_arrive_while_the_handler_sleeps(server: Server, deploy: Deploy) -> None:
    function = node(
        deploy,
        """
        exports.handler = awslambda.streamifyResponse(async (event, stream) => {
          stream.setContentType("text/plain")
          stream.write("first")
          await new Promise((resolve) => setTimeout(resolve, 1000))
          if (event === "fail") throw new Error("midway")
          stream.end("last")
        })
        """,
        Timeout=10,
    )
    import time

    for event in ("good", "fail"):
        answer = server.lambda_.invoke_with_response_stream(FunctionName=function.name, Payload=json.dumps(event))
        times, pieces, end = [], [], {}
        for each in answer["EventStream"]:
            times.append(time.monotonic())
            if "PayloadChunk" in each:
                pieces.append(each["PayloadChunk"]["Payload"])
            else:
                end = each["InvokeComplete"]
        assert pieces[0] == b"first"
        assert times[-1] - times[0] > 0.8, "the first chunk came while the handler slept"
        if event == "good":
            assert b"".join(pieces) == b"firstlast"
            assert not end.get("ErrorCode")
        else:
            assert end["ErrorCode"]
            assert "midway" in end["ErrorDetails"]
    buffered = function.invoke("good")
    assert buffered.raw == b"firstlast", "a plain Invoke gets the stream whole"


def test_a_crowd(server: Server, deploy: Deploy) -> None:
    """Simultaneous requests each have an environment of their own."""
    from concurrent.futures import ThreadPoolExecutor

    function = node(
        deploy,
        """
        const me = Math.random()
        exports.handler = async () => { await new Promise((r) => setTimeout(r, 1500)); return me }
        """,
        Timeout=20,
    )
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda _: function.call(), range(8)))
    assert len(set(seen)) == 8
