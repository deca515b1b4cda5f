"""SnapStart: published versions are restored from a snapshot that was taken after Init, when they were published."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from integration.harness import Function, Reply, Server, make_zip, serving, wait_until
from integration.test_extensions import SUBSCRIBER

#: Of templates and what is restored from them: lambent.worker.sandboxes.
TEMPLATE_UIDS = range(300_000, 300_000 + 1_024 * 4_096)
SNAP_START = {"Runtime": "python3.12", "SnapStart": {"ApplyOn": "PublishedVersions"}}
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="templates need user ids of their own")


def publish(function: Function) -> dict[str, Any]:
    """The new version, once it is no longer Pending."""
    client = function.server.lambda_
    answer = client.publish_version(FunctionName=function.name)
    assert answer["State"] == "Pending"
    assert answer["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "On"}

    def settled() -> Any:
        found = client.get_function_configuration(FunctionName=function.name, Qualifier=answer["Version"])
        return found if found["State"] != "Pending" else None

    found: dict[str, Any] = wait_until(settled, "the snapshot")
    return found


def together(function: Function, count: int, payload: Any, **arguments: Any) -> list[Reply]:
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(function.invoke, payload, **arguments) for _ in range(count)]
        return [call.result() for call in calls]


def processes(among: set[int]) -> set[int]:
    """Those of `among` that are a template's, or restored from one."""
    found = set()
    for pid in among:
        with contextlib.suppress(OSError):
            if os.stat(f"/proc/{pid}").st_uid in TEMPLATE_UIDS:
                found.add(pid)
    return found


@pytest.fixture
def snapped(deploy: Callable[..., Function]) -> Iterator[Callable[..., Function]]:
    """Deployed with SnapStart, and published as version 1."""

    def make(source: str, **configuration: Any) -> Function:
        function = deploy(source, **{**SNAP_START, **configuration})
        assert publish(function)["State"] == "Active"
        return function

    return make


@pytest.fixture(scope="module", autouse=True)
def too_slow(server: Server) -> Iterator[tuple[Function, concurrent.futures.Future[Reply]]]:
    """A call whose restore takes longer than the ten seconds that it may: it runs beside the other tests."""
    function = server.deploy(AFTER.format("time.sleep(60)"), **SNAP_START)
    assert publish(function)["State"] == "Active"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        yield function, pool.submit(function.invoke, Qualifier="1")
    server.lambda_.delete_function(FunctionName=function.name)


UNIQUE = """
    import os, random, secrets, tempfile, time, uuid
    from snapshot_restore_py import register_after_restore, register_before_snapshot

    born, hooks = uuid.uuid4().hex, []
    mine = random.Random()
    for name in ("one", "two"):
        register_before_snapshot(hooks.append, "before " + name)
        register_after_restore(hooks.append, "after " + name)
    at_init = dict(os.environ)

    def handler(event, context):
        time.sleep(event)
        return {
            "born": born, "hooks": hooks, "uid": os.getuid(), "api": os.environ["AWS_LAMBDA_RUNTIME_API"],
            "random": random.random(), "uuid": str(uuid.uuid4()), "secret": secrets.token_hex(), "urandom":
            os.urandom(8).hex(), "name": tempfile.mktemp(), "type": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
            "at_init": at_init["AWS_LAMBDA_INITIALIZATION_TYPE"],
            "logs": [n for n in os.environ if n.startswith("AWS_LAMBDA_LOG_")], "stream": context.log_stream_name,
        }
"""


def test_init_runs_once_for_many_environments(snapped: Callable[..., Function]) -> None:
    function = snapped(UNIQUE)
    replies = together(function, 20, 0.4, Qualifier="1")
    values = [reply.value for reply in replies]
    assert len({value["born"] for value in values}) == 1
    for name in ("uid", "api", "random", "uuid", "secret", "urandom", "name"):
        assert len({value[name] for value in values}) == 20, name
    for reply in replies:
        value, report = reply.value, reply.report
        assert value["hooks"] == ["before two", "before one", "after one", "after two"]
        assert value["type"] == value["at_init"] == "snap-start"
        assert (value["logs"], value["stream"]) == ([], None)
        assert "Init Duration" not in report
        assert float(report["Restore Duration"].split()[0]) < 2_000
        billed = int(report["Billed Restore Duration"].split()[0])
        duration = float(report["Duration"].split()[0])
        above = int(report["Billed Duration"].split()[0]) - billed - duration
        assert 0 <= above < 1.01  # it is rounded up before Duration is rounded to two places
        assert reply.version == "1"
    assert all(value["uid"] not in TEMPLATE_UIDS for value in values), "inside they have the number of sbx_user1051"
    again = function.invoke(0, Qualifier="1")
    assert "Restore Duration" not in again.report
    events = function.log_of(again)
    assert sum(event.startswith("INIT_START Runtime Version: python:3.12") for event in events) == 1
    assert sum(event.startswith("INIT_REPORT Init Duration: ") for event in events) == 1
    assert sum(event.startswith("RESTORE_START Runtime Version: python:3.12") for event in events) == 20


def test_latest_and_aliases(snapped: Callable[..., Function]) -> None:
    function = snapped(UNIQUE)
    client = function.server.lambda_
    client.create_alias(FunctionName=function.name, Name="live", FunctionVersion="1")
    assert function.call(0, Qualifier="live")["type"] == "snap-start"
    latest = function.invoke(0)
    assert latest.value["type"] == "on-demand"
    assert "Init Duration" in latest.report
    found = client.get_function_configuration(FunctionName=function.name)
    assert found["SnapStart"] == {"ApplyOn": "PublishedVersions", "OptimizationStatus": "Off"}
    function.configure(SnapStart={"ApplyOn": "None"}, Description="plain")
    plain = client.publish_version(FunctionName=function.name)
    assert (plain["State"], plain["SnapStart"]["OptimizationStatus"]) == ("Active", "Off")
    assert function.call(0, Qualifier=plain["Version"])["type"] == "on-demand"


DESCRIPTORS = """
    import asyncio, os, selectors, socket, threading

    server = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(server.getsockname())
    other, _ = server.accept()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    read, write = os.pipe()
    with open("/tmp/data", "w") as file:
        file.write("0123456789")
    data = open("/tmp/data")
    data.read(0)
    position = os.lseek(data.fileno(), 3, os.SEEK_SET)
    code = open("/var/task/m.py")

    def handler(event, context):
        found = {}
        try:
            client.sendall(b"x")
            found["sent"] = True
        except OSError as error:
            found["sent"] = type(error).__name__
        found["received"] = other.recv(10).decode()
        found["file"] = os.read(data.fileno(), event).decode()
        os.write(write, b"p" * event)
        found["pipe"] = len(os.read(read, 100))

        async def wake():
            return await loop.run_in_executor(None, lambda: "woken")  # needs the loop's own socket pair

        found["loop"] = loop.run_until_complete(asyncio.wait_for(wake(), 5))
        import time
        time.sleep(0.3)
        return found
"""


def test_nothing_open_is_shared(snapped: Callable[..., Function]) -> None:
    function = snapped(DESCRIPTORS)
    for reply in together(function, 4, 2, Qualifier="1"):
        assert reply.value == {"sent": "BrokenPipeError", "received": "", "file": "34", "pipe": 2, "loop": "woken"}


def test_extensions_start_with_each_environment(server: Server, snapped: Callable[..., Function]) -> None:
    layer = server.lambda_.publish_layer_version(
        LayerName="subscriber", Content={"ZipFile": make_zip({"extensions/subscriber.py": SUBSCRIBER})}
    )["LayerVersionArn"]
    source = """
        import json, os, time
        def handler(event, context):
            end = time.time() + 5
            while time.time() < end:
                if os.path.exists("/tmp/telemetry"):
                    events = [json.loads(line) for line in open("/tmp/telemetry")]
                    if any(event["type"] == "platform.start" for event in events):
                        return {event["type"]: event["record"] for event in events if "restore" in event["type"]}
                time.sleep(0.01)
    """
    function = snapped(source, Layers=[layer])
    reply = function.invoke(Qualifier="1")
    assert "Restore Duration" in reply.report
    records = reply.value
    assert set(records) == {"platform.restoreStart", "platform.restoreRuntimeDone", "platform.restoreReport"}
    assert records["platform.restoreStart"]["functionVersion"] == "1"
    assert records["platform.restoreRuntimeDone"] == {"status": "success"}
    assert records["platform.restoreReport"]["metrics"]["durationMs"] > 0
    hog = function.invoke(Qualifier="1")
    assert hog.error is None
    server.lambda_.delete_layer_version(LayerName="subscriber", VersionNumber=1)


HOSTILE = """
    import ctypes, os, signal
    libc = ctypes.CDLL(None, use_errno=True)

    def attempts():
        found = {}
        for name, call in {
            "unshare": lambda: libc.unshare(0x10000000), "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, 0),
            "setuid": lambda: libc.setuid(0), "umount": lambda: libc.umount2(b"/tmp", 2),
            "setns": lambda: libc.setns(os.open("/proc/self/ns/mnt", os.O_RDONLY), 0),
            "kill": lambda: libc.kill(1, 9), "ptrace": lambda: libc.ptrace(16, 1, 0, 0),
            "reboot": lambda: libc.sethostname(b"x", 1),
        }.items():
            found[name] = call()
        with open("/proc/self/status") as file:
            found.update(line.split() for line in file if line.startswith(("CapEff:", "CapPrm:")))
        return found

    class Header(ctypes.Structure):
        _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]

    class Sets(ctypes.Structure):
        _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]

    def raised():
        # The template may enter namespaces that it is given; with all that it can raise it can do nothing else.
        header, data = Header(0x20080522, 0), (Sets * 2)()
        assert libc.capget(ctypes.byref(header), data) == 0
        for each in data:
            each.effective = each.permitted
        assert libc.capset(ctypes.byref(header), data) == 0
        return attempts()

    at_init = attempts()
    with_all = raised()
    foreign = []
    for name in ("mnt", "pid", "user", "net", "ipc"):
        try:
            foreign.append(libc.setns(os.open("/proc/1/ns/" + name, os.O_RDONLY), 0))
        except OSError as error:
            foreign.append(type(error).__name__)
    open("/tmp/from-init", "w").write("init")

    def handler(event, context):
        if event:
            open("/tmp/mine", "w").write(event)
        open("/tmp/from-init", "a").write("+")
        pids = sorted(int(pid) for pid in os.listdir("/proc") if pid.isdigit())
        import time
        time.sleep(0.3)
        return {"at_init": at_init, "with_all": with_all, "foreign": foreign, "now": attempts(), "pids": pids,
                "tmp": sorted(os.listdir("/tmp")), "kept": open("/tmp/from-init").read()}
"""


def test_isolation(snapped: Callable[..., Function]) -> None:
    function = snapped(HOSTILE)
    replies = together(function, 3, "x", Qualifier="1")
    calls = ("unshare", "mount", "setuid", "umount", "setns", "ptrace", "reboot")
    for reply in replies:
        value = reply.value
        assert {name: value["at_init"][name] for name in calls} == dict.fromkeys(calls, -1)
        assert {name: value["with_all"][name] for name in calls} == dict.fromkeys(calls, -1)
        assert value["foreign"] == ["PermissionError"] * 5
        assert {name: value["now"][name] for name in (*calls, "kill")} == dict.fromkeys((*calls, "kill"), -1)
        assert value["now"]["CapEff:"] == value["now"]["CapPrm:"] == "0000000000000000"
        assert value["at_init"]["CapEff:"] == "0000000000000000"
        assert value["pids"] == [1, 2]
        assert value["tmp"] == ["from-init", "mine"]
        assert value["kept"] == "init+", "each has its own copy"


LIMITS = """
    import os, time
    calls = 0

    def handler(event, context):
        global calls
        calls += 1
        if event == "hog":
            return len(bytearray(300 << 20))
        if event == "hang":
            open("/tmp/left", "w").close()
            time.sleep(60)
        if event == "exit":
            os._exit(3)
        return [calls, os.listdir("/tmp"), os.getpid()]
"""


def test_restored_again_after_a_reset(snapped: Callable[..., Function]) -> None:
    function = snapped(LIMITS, Timeout=1)
    assert function.call(Qualifier="1")[:2] == [1, []]
    assert function.call(Qualifier="1")[0] == 2
    hog = function.invoke("hog", Qualifier="1")
    assert hog.value["errorType"] == "Runtime.OutOfMemory"
    assert function.call(Qualifier="1")[0] == 1, "module state is that of the snapshot"
    assert function.invoke("exit", Qualifier="1").value["errorType"] == "Runtime.ExitError"
    assert function.call(Qualifier="1")[0] == 1
    hang = function.invoke("hang", Qualifier="1")
    assert hang.value["errorType"] == "Sandbox.Timedout"
    again = function.invoke(Qualifier="1")
    assert again.value[:2] == [1, ["left"]], "the environment is the same, and keeps /tmp"
    assert "Restore Duration" not in again.report


def test_init_fails(deploy: Callable[..., Function]) -> None:
    for source, code, words in (
        ("raise ValueError('no')\n", "FunctionError.RuntimeInitError", "ValueError: no"),
        ("import os\nos._exit(7)\n", "FunctionError.RuntimeInitError", "exit status 7"),
        ("x = bytearray(300 << 20)\n", "FunctionError.InitResourceExhausted", "Runtime.OutOfMemory"),
        (
            "from snapshot_restore_py import register_before_snapshot\nregister_before_snapshot(lambda: 1 / 0)\n"
            "def handler(event, context):\n    pass\n",
            "FunctionError.RuntimeInitError",
            "ZeroDivisionError",
        ),
    ):
        function = deploy(source, **SNAP_START)
        found = publish(function)
        assert (found["State"], found["StateReasonCode"]) == ("Failed", code)
        assert words in found["StateReason"]
        with pytest.raises(ClientError, match=r"ResourceConflictException.*following state: Failed"):
            function.invoke(Qualifier="1")


AFTER = """
    import os, time
    from snapshot_restore_py import register_after_restore

    @register_after_restore
    def hook():
        if os.path.exists("/tmp/second"):
            return
        open("/tmp/second", "w").close()
        {}

    def handler(event, context):
        return "ran"
"""


def test_after_restore_fails(snapped: Callable[..., Function]) -> None:
    function = snapped(AFTER.format("raise ValueError('not restored')"))
    with pytest.raises(ClientError, match="SnapStartException") as caught:
        function.invoke(Qualifier="1")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    events = function.wait_log("RESTORE_REPORT")
    assert any("Status: error\tError Type: Runtime.AfterRestoreError" in event for event in events)
    assert any("ValueError: not restored" in event for event in events)
    assert not any(event.startswith("START") for event in events)
    assert function.call(Qualifier="1") == "ran", "it is tried again"


def test_what_can_not_be_forked_starts_as_ever(snapped: Callable[..., Function]) -> None:
    threads = """
        import threading, time, uuid
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        born = uuid.uuid4().hex
        def handler(event, context):
            time.sleep(event)
            return born
    """
    function = snapped(threads)
    replies = together(function, 2, 0.3, Qualifier="1")
    assert len({reply.value for reply in replies}) == 2
    assert all("Init Duration" in reply.report for reply in replies)
    wanted = "not restored from a snapshot, because Init left 1 threads running"
    assert any("LAMBENT_WARNING" in event and wanted in event for event in function.log_of(replies[0]))


def test_refused_configurations(server: Server) -> None:
    function = server.deploy("def handler(event, context):\n    pass\n", Runtime="python3.12")
    change = server.lambda_.update_function_configuration
    wanted = {"ApplyOn": "PublishedVersions"}
    for changes, words in (
        ({"Runtime": "python3.11"}, "python3.11 is not supported for SnapStart enabled functions."),
        ({"Runtime": "nodejs20.x"}, "nodejs20.x is not supported for SnapStart enabled functions."),
        ({"EphemeralStorage": {"Size": 1024}}, "ephemeral storage of more than 512 MB"),
    ):
        with pytest.raises(ClientError, match="InvalidParameterValueException") as caught:
            change(FunctionName=function.name, SnapStart=wanted, **changes)
        assert words in caught.value.response["Error"]["Message"]
    server.lambda_.delete_function(FunctionName=function.name)


def test_life_of_a_template(tmp_path: Path) -> None:
    slow = """
        import time, uuid
        time.sleep(0.5)
        born = uuid.uuid4().hex
        def handler(event, context):
            return born
    """
    server = Server(tmp_path / "data")
    try:
        function = server.deploy(slow, **SNAP_START)
        server.lambda_.publish_version(FunctionName=function.name)
        with pytest.raises(ClientError, match="SnapStartNotReadyException"):
            function.invoke(Qualifier="1")
        wait_until(lambda: _state(function) == "Active", "active")
        born = function.call(Qualifier="1")
        server.lambda_.delete_function(FunctionName=function.name, Qualifier="1")
        wait_until(lambda: not processes(server.family()), "the template and its environments are gone")
        function.configure(Description="again")
        assert publish(function)["State"] == "Active"
        assert function.call(Qualifier="2") != born
        _kill_template(server)
        wait_until(lambda: "is lost" in server.output, "the server has seen it")
        assert function.call(Qualifier="2")
        wait_until(lambda: "Restore Duration" in function.invoke(Qualifier="2").report, "a new snapshot is in use")
        left = processes(server.family())
        assert left
    finally:
        server.kill()
    wait_until(lambda: not processes(left), "kill -9 leaves nothing behind")
    with serving(tmp_path / "data") as server:
        function = Function(server, function.name)
        assert function.invoke(Qualifier="2").error is None
        wait_until(lambda: "Restore Duration" in function.invoke(Qualifier="2").report, "made again after a restart")
        left = processes(server.family())
    wait_until(lambda: not processes(left), "nothing is left behind")


def _state(function: Function) -> Any:
    return function.server.lambda_.get_function_configuration(FunctionName=function.name, Qualifier="1")["State"]


def _kill_template(server: Server) -> None:
    """The oldest of its processes: environments are forked from it."""

    def began(pid: int) -> int:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])

    os.kill(min(processes(server.family()), key=began), signal.SIGKILL)


def test_restore_takes_too_long(too_slow: tuple[Function, concurrent.futures.Future[Reply]]) -> None:
    function, call = too_slow
    with pytest.raises(ClientError, match="SnapStartTimeoutException") as caught:
        call.result()
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 408
    events = function.wait_log("RESTORE_REPORT")
    assert any("RESTORE_REPORT Restore Duration: 10" in event and "Status: timeout" in event for event in events)
