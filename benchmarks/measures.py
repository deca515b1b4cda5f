"""The measurements themselves. Each starts what it needs, cleans up, and returns figures.

What is compared with the floor is measured in alternation with it, in short rounds: the machine is shared and
noisy, and a ratio of two neighbours in time survives that better than two figures minutes apart.
"""

import base64
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import machine
from figures import Figure, compared, figure
from functions_api import (
    SMALL_MIB,
    WARM_MIB,
    checked,
    delete,
    deploy,
    first_invoke,
    invoke_together,
    lambda_client,
)
from load import BODY, Connection, percentile
from servers import Server, floor_server, lambent_server

HERE = Path(__file__).parent
MIB = 2**20
ALL_CORES = os.sched_getaffinity(0)
CLIENT_CORE = min(ALL_CORES)
OTHER_CORES = ALL_CORES - {CLIENT_CORE} or ALL_CORES


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured: two sets, full and `--quick`."""

    rounds: int = 7
    warm_s: float = 2.0
    cold_rounds: int = 4
    cold_samples: int = 25  # a round, of each kind
    cold_pause_ms: float = 100.0  # time for parked sandboxes to be refilled
    burst: int = 200
    burst_rounds: int = 3
    idle_environments: int = 60
    mass: int = 1_000
    starts: int = 5


FULL = Sizes()
QUICK = Sizes(
    rounds=3,
    warm_s=1.0,
    cold_rounds=2,
    cold_samples=10,
    burst=50,
    burst_rounds=1,
    idle_environments=50,
    mass=300,
    starts=3,
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement is told."""

    sizes: Sizes
    program: list[str]  # how Lambent is started, without `up`
    sandbox: str
    runtime: str
    floor_processes: int
    step: Callable[[str], None]  # reports progress

    def lambent(self, *options: str) -> Server:
        """Lambent with a new data directory."""
        return lambent_server(self.program, self.sandbox, *options)


def start(bench: Bench) -> list[Figure]:
    """From no process to the ready line, and what the idle server and its helpers hold in memory."""
    times_ms = []
    for number in range(bench.sizes.starts):
        bench.step(f"start {number + 1} of {bench.sizes.starts}")
        with bench.lambent() as server:
            times_ms.append(server.ready_ms)
            if number == bench.sizes.starts - 1:
                time.sleep(2)  # helpers that are started in the background belong to the idle server
                memories = machine.memory_below(server.process.pid)
                server_pid = machine.listener_pid(server.process.pid, server.port)
    resident = [memory for memory in memories if memory.pid == server_pid]
    processes = [asdict(memory) for memory in memories]
    return [
        figure(
            "lambent up to the ready line",
            "ms",
            statistics.median(times_ms),
            detail={"samples_ms": times_ms},
        ),
        figure(
            "server resident when idle",
            "MB",
            resident[0].resident_bytes / MIB if resident else None,
            failure=None if resident else "its memory can not be read",
            detail={"processes": processes},
        ),
        figure(
            "helpers resident when idle (proportional, all)",
            "MB",
            sum(memory.proportional_bytes for memory in memories if memory.pid != server_pid) / MIB,
            detail={"processes": len(memories) - 1},
        ),
    ]


def load(server: Server, function: str, clients: int, seconds: float) -> dict[str, Any]:
    """One run of the load driver, in a process of its own as a client would be.

    A single client is kept on one core, and `warm` says where the server may run meanwhile. Left alone, the
    scheduler sometimes puts client, server and function on one core and sometimes not, and a request then takes half
    or twice as long (40 or 90 us for the floor on 2 cores): the ratio of two such draws would say nothing.
    """
    command = [sys.executable, str(HERE / "load.py"), "--url", server.url, "--function", function]
    command += ["--clients", str(clients), "--seconds", str(seconds)]
    if clients == 1:
        command += ["--core", str(CLIENT_CORE)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 120, check=False)
    if not run.stdout:
        raise RuntimeError(f"the load driver failed: {run.stderr[-500:]}")
    result: dict[str, Any] = json.loads(run.stdout)
    if result["errors"]:
        raise RuntimeError(f"{result['errors']} of {result['requests']} requests failed with {clients} clients")
    return result


# Lambda admits ten requests a second for each unit of the account's concurrency: 10,000 a second with the default of
# 1,000. We measure how fast the server is, so the limit has to stand well above that.
WARM_CONCURRENCY = 20_000
ONE_CORE = "1 client, all on one core"
WARM_SETTINGS = {"1 client": 1, ONE_CORE: 1, "8 clients": 8, "32 clients": 32}


def warm(bench: Bench) -> list[Figure]:
    """Latency of one client, throughput of 8 and 32, floor and Lambent in turn."""
    sizes = bench.sizes
    runs: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with ExitStack() as stack:
        servers = {"floor": stack.enter_context(floor_server(bench.floor_processes))}
        if bench.program:
            servers["lambent"] = stack.enter_context(bench.lambent("--account-concurrency", str(WARM_CONCURRENCY)))
            deploy(lambda_client(servers["lambent"]), ["echo"], "echo", WARM_MIB, bench.runtime)
        for name, server in servers.items():
            connection = Connection(server.host, server.port)
            answer = json.loads(checked(connection.invoke("echo")[0]))
            connection.close()
            if answer != json.loads(BODY):
                raise RuntimeError(f"{name} answered {answer!r} to an echo")
            load(server, "echo", 32, 1.0)  # every environment that the rounds will need, started
        for number in range(sizes.rounds):
            # Who goes first changes, so that neither always meets the other's after-effects.
            order = list(servers.items())
            for setting, clients in WARM_SETTINGS.items():
                for name, server in order if number % 2 == 0 else reversed(order):
                    bench.step(f"round {number + 1} of {sizes.rounds}: {name}, {setting}")
                    if clients == 1:
                        machine.keep_on(server.process.pid, {CLIENT_CORE} if setting == ONE_CORE else OTHER_CORES)
                    load(server, "echo", clients, 0.3)
                    result = load(server, "echo", clients, sizes.warm_s)
                    runs.setdefault((name, setting), []).append(result)
                    machine.keep_on(server.process.pid, ALL_CORES)
    return _warm_figures(runs, bench.floor_processes)


def _warm_figures(runs: dict[tuple[str, str], list[dict[str, Any]]], floor_processes: int) -> list[Figure]:
    rows = [
        ("warm latency p50, ", "us", "1 client", "p50_us"),
        ("warm latency p99, ", "us", "1 client", "p99_us"),
        # Without waking another core, what is left is the length of the path: the strictest of the ratios.
        ("warm latency p50, ", "us", ONE_CORE, "p50_us"),
        ("throughput, ", "/s", "8 clients", "rps"),
        ("throughput, ", "/s", "32 clients", "rps"),
        ("warm latency p99, ", "us", "32 clients", "p99_us"),
    ]
    figures = []
    for kind, unit, setting, key in rows:
        name = kind + setting
        floor = [run[key] for run in runs["floor", setting]]
        if ("lambent", setting) not in runs:
            figures.append(figure(name, unit, None, floor=statistics.median(floor), detail={"floor": floor}))
            continue
        lambent = [run[key] for run in runs["lambent", setting]]
        engine = runs["floor", setting][0]["engine"]
        detail = {
            "engine": engine,
            "memory_mib": WARM_MIB,
            "account_concurrency": WARM_CONCURRENCY,
            "floor_processes": floor_processes,
        }
        figures.append(compared(name, unit, lambent, floor, **detail))
    return figures


def cold_floor(samples: int, burst: int, interpreters: int = 0) -> dict[str, Any]:
    """One run of cold_floor.py."""
    command = [sys.executable, str(HERE / "cold_floor.py"), "--samples", str(samples)]
    command += ["--burst", str(burst), "--interpreters", str(interpreters)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    result: dict[str, Any] = json.loads(run.stdout)
    return result


# Lambent's zygote has boto3 imported ahead and the floor's has not, so the ratio of the third kind shows what that
# saves; it is no figure of the sandbox.
COLD_KINDS = {  # name in the table -> module, whether to pause between samples
    "trivial handler": ("echo", True),
    "trivial handler, back to back": ("echo", False),
    "handler that imports boto3": ("with_boto3", True),
}


def cold(bench: Bench) -> list[Figure]:
    """First invokes of functions that have no environment yet, one after the other.

    Every sample is a function of its own, deployed ahead (all share one package): nothing but the cold start
    happens in the time that is measured, no environment is being retired beside it, and it is also the harder case,
    for it includes whatever the server does on the first request of a function. A runtime's very first cold start,
    which may have to start helpers, is reported apart.
    """
    sizes = bench.sizes
    floors: list[dict[str, Any]] = []
    wall_ms: dict[str, list[list[float]]] = {kind: [] for kind in COLD_KINDS}
    init_ms: dict[str, list[float]] = {kind: [] for kind in COLD_KINDS}
    very_first_ms = None
    with ExitStack() as stack:
        if bench.program:
            server = stack.enter_context(bench.lambent())
            client = lambda_client(server)
            connection = Connection(server.host, server.port)
            stack.callback(connection.close)
            deploy(client, ["first"], "echo", SMALL_MIB, bench.runtime)
            very_first_ms, _ = first_invoke(connection, "first")
        for number in range(sizes.cold_rounds):
            bench.step(f"round {number + 1} of {sizes.cold_rounds}: floor")
            floors.append(cold_floor(sizes.cold_samples, burst=0, interpreters=3))
            for kind, (module, pause) in COLD_KINDS.items() if bench.program else ():
                bench.step(f"round {number + 1} of {sizes.cold_rounds}: {kind}")
                names = [f"{module}-{'p' if pause else 'b'}-{number}-{i}" for i in range(sizes.cold_samples)]
                deploy(client, names, module, SMALL_MIB, bench.runtime)
                time.sleep(1)
                samples_ms = []
                for name in names:
                    if pause:
                        time.sleep(sizes.cold_pause_ms / 1000)
                    took_ms, init_duration_ms = first_invoke(connection, name)
                    samples_ms.append(took_ms)
                    init_ms[kind].append(init_duration_ms)
                wall_ms[kind].append(samples_ms)
                delete(client, names)
    return _cold_figures(floors, wall_ms, init_ms, very_first_ms)


def _cold_figures(
    floors: list[dict[str, Any]],
    wall_ms: dict[str, list[list[float]]],
    init_ms: dict[str, list[float]],
    very_first_ms: float | None,
) -> list[Figure]:
    figures = []
    for kind, (module, _pause) in COLD_KINDS.items():
        floor_all = sorted(sample for floor in floors for sample in floor["fork_ms"][module])
        all_ms = sorted(sample for round_ms in wall_ms[kind] for sample in round_ms)
        for percent in (50, 99):
            row = figure(f"cold start, {kind}, p{percent}", "ms", None, floor=percentile(floor_all, percent))
            if all_ms:
                row.value = percentile(all_ms, percent)
                row.ratio = row.value / percentile(floor_all, percent)
                row.detail = {"samples": len(all_ms), "wall_ms": all_ms, "init_duration_ms": init_ms[kind]}
            figures.append(row)
        if init_ms[kind]:
            figures.append(figure("  … its Init Duration, p50", "ms", statistics.median(init_ms[kind])))
    if very_first_ms is not None:
        figures.append(figure("very first cold start of a new server", "ms", very_first_ms))
    for name in floors[0]["interpreters_ms"]:
        samples_ms = [sample for floor in floors for sample in floor["interpreters_ms"][name]]
        figures.append(figure(f"new interpreter: {name}", "ms", None, floor=statistics.median(samples_ms)))
    return figures


SNAP_START_RUNTIME = "python3.12"  # the first that AWS offers it for


def snapstart(bench: Bench) -> list[Figure]:
    """First invokes of new environments of one function whose Init takes two seconds and leaves 50 MB: of $LATEST,
    which run Init, and of a version with SnapStart, which are restored. Each sample is an environment of its own: those
    that exist are held meanwhile. There is no floor; what is compared is the same function without SnapStart.
    """
    if not bench.program:
        return []
    sizes = bench.sizes
    took_ms: dict[str, list[float]] = {"$LATEST": [], "1": []}
    with bench.lambent() as server:
        client = lambda_client(server)
        deploy(client, ["heavy"], "heavy_init", WARM_MIB, SNAP_START_RUNTIME)
        client.update_function_configuration(FunctionName="heavy", SnapStart={"ApplyOn": "PublishedVersions"})
        client.get_waiter("function_updated_v2").wait(FunctionName="heavy", WaiterConfig={"Delay": 1})
        client.publish_version(FunctionName="heavy")
        client.get_waiter("published_version_active").wait(FunctionName="heavy", Qualifier="1")
        for qualifier, samples in (("$LATEST", 2), ("1", sizes.cold_samples)):
            for number in range(samples):
                bench.step(f"environment {number + 1} of {samples} of heavy:{qualifier}")
                time.sleep(sizes.cold_pause_ms / 1000)
                took_ms[qualifier].append(_invoke_beside(client, "heavy", qualifier, number))
    restored, initialised = sorted(took_ms["1"]), sorted(took_ms["$LATEST"])
    figures = []
    for percent in (50, 99):
        row = figure(f"SnapStart restore, Init of 2 s and 50 MB, p{percent}", "ms", percentile(restored, percent))
        row.detail = {"samples": len(restored), "wall_ms": restored}
        figures.append(row)
    ratio = percentile(initialised, 50) / percentile(restored, 50)
    figures.append(figure("  … the same without SnapStart, p50", "ms", percentile(initialised, 50)))
    figures.append(figure("  … times slower", "x", ratio))
    return figures


def _invoke_beside(client: Any, function: str, qualifier: str, held: int) -> float:
    """How long an invoke takes while all `held` environments of the version are busy; it gets a new one."""

    def invoke(seconds: float) -> Any:
        body = json.dumps({"seconds": seconds})
        answer = client.invoke(FunctionName=function, Qualifier=qualifier, Payload=body, LogType="Tail")
        return json.load(answer["Payload"]), base64.b64decode(answer["LogResult"])

    with ThreadPoolExecutor(held + 1) as pool:
        holding = [pool.submit(invoke, 0.8) for _ in range(held)]
        time.sleep(0.3 if held else 0.0)
        began_s = time.perf_counter()
        _, log = invoke(0.0)
        took_ms = (time.perf_counter() - began_s) * 1000
        for each in holding:
            each.result()
    if b"Restore Duration: " not in log and b"Init Duration: " not in log:
        raise RuntimeError(f"{function}:{qualifier} was served by an environment that was there already")
    return took_ms


def occupy(
    bench: Bench, server: Server, client: Any, function: str, count: int, hold_s: float
) -> tuple[float, list[dict[str, Any]]]:
    """Make `count` environments of one function execute at the same time; when asked, and what each told.

    If the first had ended before the last began, they were fewer: then once more, holding longer.
    """
    for attempt in range(3):
        name = f"{function}-{attempt}"
        deploy(client, [name], "sleeper", SMALL_MIB, bench.runtime)
        body = json.dumps({"seconds": hold_s}).encode()
        began_s, answers = invoke_together(server, name, body, count, timeout_s=hold_s + 100)
        told = [json.loads(checked(answer)) for answer in answers]
        if len({one["environment"] for one in told}) == count:
            return began_s, told
        delete(client, [name])
        hold_s *= 2.5
    raise RuntimeError(f"{count} requests at once did not get {count} environments, though held for {hold_s} s")


def burst(bench: Bench) -> list[Figure]:
    """Many requests at once to a function without environments: until the last one executes."""
    sizes = bench.sizes
    floors, rates, seconds = [], [], []
    for number in range(sizes.burst_rounds):
        bench.step(f"round {number + 1} of {sizes.burst_rounds}: floor")
        floors.append(cold_floor(samples=0, burst=sizes.burst)["burst_per_s"])
        if not bench.program:
            continue
        bench.step(f"round {number + 1} of {sizes.burst_rounds}: {sizes.burst} requests at once")
        with bench.lambent() as server:
            client = lambda_client(server)
            deploy(client, ["first"], "echo", SMALL_MIB, bench.runtime)
            checked(invoke_together(server, "first", b"{}", 1, timeout_s=60)[1][0])
            time.sleep(1)
            began_s, told = occupy(bench, server, client, "burst", sizes.burst, hold_s=8.0)
            took_s = max(one["began_s"] for one in told) - began_s
            seconds.append(took_s)
            rates.append(sizes.burst / took_s)
    name = "environments started a second"
    detail = {"environments": sizes.burst, "seconds_until_all_executing": seconds}
    if not rates:
        return [figure(name, "/s", None, floor=statistics.median(floors), detail=detail)]
    return [compared(name, "/s", rates, floors, **detail)]


def memory(bench: Bench) -> list[Figure]:
    """Proportional memory of everything below the server, before and after it has many idle environments."""
    count = bench.sizes.idle_environments
    with bench.lambent() as server:
        client = lambda_client(server)
        deploy(client, ["first"], "echo", SMALL_MIB, bench.runtime)
        checked(invoke_together(server, "first", b"{}", 1, timeout_s=60)[1][0])
        bench.step("settling")
        time.sleep(3)
        before = machine.memory_below(server.process.pid)
        bench.step(f"starting {count} environments")
        occupy(bench, server, client, "idle", count, hold_s=4.0)
        bench.step("settling")
        time.sleep(3)
        after = machine.memory_below(server.process.pid)
    grown_bytes = sum(one.proportional_bytes for one in after) - sum(one.proportional_bytes for one in before)
    known = {one.pid for one in before}
    new = [one for one in after if one.pid not in known]
    own_bytes = sum(one.proportional_bytes for one in new)
    failure = None
    if len(new) < count:
        failure = f"only {len(new)} new processes can be read for {count} environments"
    return [
        figure(
            "proportional memory of an idle environment",
            "MB",
            grown_bytes / count / MIB,
            failure=failure,
            detail={
                "environments": count,
                "processes_before": len(before),
                "processes_after": len(after),
                "processes": [asdict(one) for one in after],
            },
        ),
        figure(
            "  … of it in the environments' own processes",
            "MB",
            own_bytes / count / MIB,
            detail={"processes": len(new)},
        ),
    ]


MEASURES: dict[str, Callable[[Bench], list[Figure]]] = {
    "start": start,
    "warm": warm,
    "cold": cold,
    "snapstart": snapstart,
    "burst": burst,
    "memory": memory,
}
NEED_LAMBENT = {"start", "memory"}
