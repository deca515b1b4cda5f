"""The server as a process: it drains, survives kill -9 of itself, records what it does, and runs without root."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import lambent
from lambent.core.admission import ScalingProfile
from lambent.core.recording import decode, replay
from lambent.core.scheduler import Scheduler
from lambent.model.limits import NS_PER_S

from .harness import Function, Server, serving, wait_until

SLEEPER = (
    "import time\ndef handler(event, context):\n    print('began')\n    time.sleep(event or 0)\n    return 'done'\n"
)


Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    """Servers that a test ends in its own way; also when it fails before that."""
    started: list[Server] = []

    def begin(data: Path, *options: str) -> Server:
        started.append(Server(data, *options))
        return started[-1]

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.kill()


def alive(pids: set[int]) -> set[int]:
    """Those that still run (a zombie does not)."""
    found = set()
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
                found.add(pid)
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    server = start(tmp_path / "data")
    function = server.deploy(SLEEPER)
    answers: list[Any] = []
    running = threading.Thread(target=lambda: answers.append(function.call(2.0)))
    running.start()
    function.wait_log("began")
    idle = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    idle.connect()
    family = server.family()
    assert len(family) >= 4  # server, launcher, zygote, at least one sandbox
    server.process.send_signal(number)

    def refused() -> bool:
        try:
            socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
        except OSError:
            return True
        return False

    wait_until(refused, "new connections are refused")
    assert server.process.poll() is None
    assert answers == []
    assert server.wait() == 0, server.output
    idle.close()
    running.join(10)
    assert answers == ["done"]
    assert alive(family) == set()
    assert "cut off" not in server.output
    assert "Traceback" not in server.output


def test_drain_has_a_limit(start: Start, tmp_path: Path) -> None:
    server = start(tmp_path / "data", "--drain-seconds", "0.5")
    function = server.deploy(SLEEPER, Timeout=30)
    problems: list[BaseException] = []

    def call() -> None:
        try:
            function.call(25)
        except Exception as error:
            problems.append(error)

    running = threading.Thread(target=call)
    running.start()
    function.wait_log("began")
    family = server.family()
    began = time.monotonic()
    assert server.terminate() == 0, server.output
    assert time.monotonic() - began < 5
    running.join(10)
    assert len(problems) == 1
    assert "1 cut off" in server.output
    assert alive(family) == set()


def test_kill_9_leaves_no_process_and_loses_no_state(start: Start, tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = start(data)
    function = server.deploy(SLEEPER, "survivor", Environment={"Variables": {"COLOUR": "blue"}})
    server.lambda_.publish_version(FunctionName=function.name)
    server.lambda_.create_alias(FunctionName=function.name, Name="live", FunctionVersion="1")
    server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=5)
    escaping = server.deploy(
        """
        import subprocess
        def handler(event, context):
            subprocess.Popen(["/bin/sleep", "600"], start_new_session=True)
        """
    )
    escaping.call()
    first = function.invoke()
    function.log_of(first)
    before = server.lambda_.get_function_configuration(FunctionName=function.name)
    busy = ThreadPoolExecutor(3)
    calls = [busy.submit(function.invoke, 8) for _ in range(3)]
    wait_until(lambda: len(server.environments(function)) == 3, "three environments are busy")
    family = server.family()
    server.kill()
    wait_until(lambda: alive(family) == set(), "everything is gone with the server", 5)
    busy.shutdown()
    assert all(call.exception() is not None for call in calls)
    left = [path for path in Path("/sys/fs/cgroup").glob("*/lambent-*") if int(path.name.rpartition("-")[2]) in family]
    assert left == []

    with serving(data) as again:
        function = Function(again, function.name)
        after = again.lambda_.get_function_configuration(FunctionName=function.name)
        for key in ("RevisionId", "CodeSha256", "Environment", "LastModified", "State"):
            assert after[key] == before[key]
        assert function.invoke(Qualifier="live").version == "1"
        concurrency = again.lambda_.get_function_concurrency(FunctionName=function.name)
        assert concurrency["ReservedConcurrentExecutions"] == 5
        messages = function.log_of(first)
        assert "began\n" in messages
        assert function.call() == "done"


def test_restart_in_between_calls(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        function = server.deploy(SLEEPER)
        reply = function.invoke()
        name = function.name
    with serving(data) as server:  # drained: what was logged last is there
        messages = [event["message"] for event in Function(server, name).events(lambda events: len(events) >= 5)]
        assert any(message.startswith(f"REPORT RequestId: {reply.request_id}") for message in messages)
        assert Function(server, name).call() == "done"


def test_a_record_replays_to_equal_commands(tmp_path: Path) -> None:
    record = tmp_path / "record.bin"
    with serving(tmp_path / "data", "--record", str(record), "--idle-seconds", "0.4") as server:
        function = server.deploy(
            """
            import os, time

            def handler(event, context):
                if event == 13:
                    raise ValueError
                if event == 14:
                    os._exit(1)
                time.sleep(5 if event == 15 else 0.02)
            """,
            Timeout=1,
        )
        server.lambda_.put_function_concurrency(FunctionName=function.name, ReservedConcurrentExecutions=6)

        def call(n: int) -> str:
            try:
                return function.invoke(n).error or "ok"
            except server.lambda_.exceptions.TooManyRequestsException:
                return "throttled"

        with ThreadPoolExecutor(16) as pool:
            results = list(pool.map(call, [n % 16 for n in range(160)]))
        assert {"ok", "throttled"} <= set(results)
        assert [call(n) for n in (13, 14, 15)] == ["Unhandled"] * 3  # whatever the burst let through
        function.update("def handler(event, context):\n    return 'new'\n")
        assert function.call() == "new"
        wait_until(lambda: server.environments(function) == [], "idle environments have ended")
    records = list(decode([record.read_bytes()]))
    kinds = {type(item.event).__name__ for item in records} | {
        type(command).__name__ for item in records for command in item.commands
    }
    assert {"Invoke", "InvocationEnded", "Start", "Dispatch", "Complete", "Throttle", "Reset", "Stop", "Drain"} <= kinds
    mismatch = replay(records, Scheduler(ScalingProfile("current"), int(0.4 * NS_PER_S)))
    assert mismatch is None


def basics(server: Server) -> None:
    """What every sandbox must do."""
    function = server.deploy(
        {
            "m.py": """
                import json, os, sys
                import boto3, helper
                count = 0

                def handler(event, context):
                    global count
                    count += 1
                    print("said", helper.WORD)
                    if event == "fail":
                        raise ValueError("no")
                    if event == "exit":
                        os._exit(3)
                    if event == "hang":
                        import time; time.sleep(30)
                    return [count, os.getcwd() == os.environ["LAMBDA_TASK_ROOT"], context.function_name]
            """,
            "helper.py": "WORD = 'it'\n",
        },
        "basics",
        Timeout=2,
        MemorySize=256,
    )
    assert function.call() == [1, True, function.name]
    assert function.call() == [2, True, function.name]
    reply = function.invoke("fail")
    assert (reply.error, reply.value["errorType"]) == ("Unhandled", "ValueError")
    assert function.invoke("exit").value["errorMessage"].endswith("Runtime exited with error: exit status 3")
    assert function.call()[0] == 1
    assert function.invoke("hang").value["errorType"] == "Sandbox.Timedout"
    reply = function.invoke()
    assert reply.value[0] == 1
    assert "said it\n" in function.log_of(reply)
    assert int(reply.report["Max Memory Used"].split()[0]) > 5
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(function.call, range(12)))) == 12


def test_process_sandbox(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--sandbox", "process") as server:
        assert "sandbox: process (for development only)" in server.output
        assert server.page("health")["sandbox"] == "process"
        basics(server)
        family = server.family()
    wait_until(lambda: alive(family) == set(), "nothing is left", 5)


def test_process_sandbox_reports_out_of_memory(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--sandbox", "process") as server:
        function = server.deploy("def handler(event, context):\n    return len(bytearray(event << 20))\n")
        reply = function.invoke(900)
        assert reply.error == "Unhandled"
        assert reply.value["errorType"] in {"Runtime.OutOfMemory", "MemoryError"}
        assert function.call(1) == 1 << 20


#: Become user 65534 with a way to the program, wherever it lies, and go on as `python ARGUMENTS`.
AS_NOBODY = """
import os, sys
from pathlib import Path
from lambent.sandbox import privilege
privilege.become(65534, [Path(entry) for entry in sys.argv[1].split(os.pathsep)])
os.environ["HOME"] = sys.argv[2]
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


@pytest.mark.parametrize("sandbox", ["auto", "process"])
def test_as_an_ordinary_user(tmp_path: Path, sandbox: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("already an ordinary user: the other tests cover it")
    folder = tmp_path / "nobody"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    source = Path(lambent.__file__).resolve().parent.parent
    needed = os.pathsep.join(map(str, (sys.prefix, sys.base_prefix, source, folder)))
    python = (sys.executable, "-c", AS_NOBODY, needed, str(folder))
    with serving(folder / "data", "--sandbox", sandbox, python=python) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert "Uid:\t65534\t65534\t65534\t65534" in status
        page = server.page("health")
        if sandbox == "process":
            assert page["sandbox"] == "process"
        elif page["sandbox"] == "namespace":
            assert page["rootless"] is True
        basics(server)


def test_the_server_gives_up_root(server: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("not started as root")
    status = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        if ":\t" in line
    )
    assert "0" not in status["Uid"].split()
    assert "0" not in status["Gid"].split()
    assert int(status["CapEff"], 16) == 0
    owner = (server.data / "state.db").stat().st_uid
    assert owner == int(status["Uid"].split()[0])


def test_two_servers_on_one_port(tmp_path: Path, server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lambent", "up", "--port", str(server.port), "--data", str(tmp_path / "data")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == f"lambent: 127.0.0.1:{server.port}: Address already in use. Choose another --port.\n"


def test_health_page(server: Server) -> None:
    page = server.page("health")
    assert page["status"] == "ok"
    assert page["pid"] == server.process.pid
    assert page["sandbox"] in {"namespace", "process"}
    statistics = server.page("statistics")
    assert statistics


def test_starts_quickly(tmp_path: Path) -> None:
    began = time.monotonic()
    with serving(tmp_path / "data"):  # and ends well when it is told to at once
        assert time.monotonic() - began < 5  # 1.5 s on a quiet machine; make bench measures
