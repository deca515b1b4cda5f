"""Measurements of two things that are both ours (Node.js and Python, with and without an extension, freezing and not),
in alternation as in measures.py; the column "floor" then is the other one. And the mass of environments."""

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import machine
from figures import Figure, compared, figure
from functions_api import (
    FUNCTIONS,
    SMALL_MIB,
    WARM_MIB,
    checked,
    delete,
    deploy,
    first_invoke,
    invoke_together,
    lambda_client,
    zip_of,
)
from load import Connection
from measures import ALL_CORES, MIB, OTHER_CORES, WARM_CONCURRENCY, Bench, load, occupy


def node(bench: Bench) -> list[Figure]:
    """Node.js beside Python, warm; and its first invokes (parked) beside what Node.js alone needs to start and end."""
    program = shutil.which("node")
    if program is None:
        return [figure("Node.js", "", None, failure="no node on this machine")]
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    runtime = f"nodejs{version[1:].split('.')[0]}.x"
    sizes = bench.sizes
    runtimes = {"python": bench.runtime, "node": runtime}
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in runtimes}
    cold_ms, alone_ms = [], []
    with bench.lambent("--account-concurrency", str(WARM_CONCURRENCY)) as server:
        client = lambda_client(server)
        for name, each in runtimes.items():
            deploy(client, [name], "echo", WARM_MIB, each)
            load(server, name, 1, 0.5)
        for number in range(sizes.rounds):
            for name in list(runtimes) if number % 2 == 0 else reversed(runtimes):
                bench.step(f"round {number + 1} of {sizes.rounds}: warm, {name}")
                machine.keep_on(server.process.pid, OTHER_CORES)
                runs[name].append(load(server, name, 1, sizes.warm_s))
                machine.keep_on(server.process.pid, ALL_CORES)
        connection = Connection(server.host, server.port)
        for number in range(sizes.cold_rounds):
            bench.step(f"round {number + 1} of {sizes.cold_rounds}: cold")
            names = [f"cold-{number}-{i}" for i in range(sizes.cold_samples)]
            deploy(client, names, "echo", SMALL_MIB, runtime)
            time.sleep(1)
            mine, theirs = [], []
            for name in names:
                time.sleep(sizes.cold_pause_ms / 1000)
                mine.append(first_invoke(connection, name)[0])
                time.sleep(sizes.cold_pause_ms / 1000)
                began_ns = time.perf_counter_ns()
                subprocess.run([program, "-e", "0"], check=True)
                theirs.append((time.perf_counter_ns() - began_ns) / 1e6)
            delete(client, names)
            cold_ms.append(statistics.median(mine))
            alone_ms.append(statistics.median(theirs))
        connection.close()
    node_us, python_us = ([run["p50_us"] for run in runs[name]] for name in ("node", "python"))
    return [
        compared("Node.js warm latency p50, against Python's", "us", node_us, python_us, runtime=runtime),
        compared("Node.js cold start p50, against `node -e 0` alone", "ms", cold_ms, alone_ms, version=version),
    ]


def extension(bench: Bench) -> list[Figure]:
    """A warm call with an extension (in C) that is told of each INVOKE, beside the same without."""
    compiler = shutil.which("cc")
    name = "what an extension told of INVOKE adds to a warm call, p50"
    if compiler is None:
        return [figure(name, "us", None, failure="no C compiler on this machine")]
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "told"
        subprocess.run([compiler, "-O2", "-D_GNU_SOURCE", "-o", built, FUNCTIONS / "told.c"], check=True)
        layer = zip_of("extensions/told", built.read_bytes(), 0o755)
    sizes = bench.sizes
    p50_us: dict[str, list[float]] = {"plain": [], "told": []}
    with bench.lambent("--account-concurrency", str(WARM_CONCURRENCY)) as server:
        client = lambda_client(server)
        arn = client.publish_layer_version(LayerName="told", Content={"ZipFile": layer})["LayerVersionArn"]
        deploy(client, ["plain"], "echo", WARM_MIB, bench.runtime)
        deploy(client, ["told"], "echo", WARM_MIB, bench.runtime, [arn])
        for number in range(sizes.rounds):
            for function in list(p50_us) if number % 2 == 0 else reversed(p50_us):
                bench.step(f"round {number + 1} of {sizes.rounds}: {function}")
                load(server, function, 1, 0.3)
                machine.keep_on(server.process.pid, OTHER_CORES)
                p50_us[function].append(load(server, function, 1, sizes.warm_s)["p50_us"])
                machine.keep_on(server.process.pid, ALL_CORES)
    added_us = [told - plain for told, plain in zip(p50_us["told"], p50_us["plain"], strict=True)]
    return [
        figure(name, "us", statistics.median(added_us), detail={"rounds": p50_us, "added_us": added_us}),
        compared("  … warm latency p50 with it, against without", "us", p50_us["told"], p50_us["plain"]),
    ]


#: Longer than an environment has to be idle before it is frozen.
FROZEN_PAUSE_S = 0.03


def freezing(bench: Bench) -> list[Figure]:
    """The same load on a server that freezes environments and on one that does not; and single calls with pauses, so
    that each finds a frozen environment."""
    sizes = bench.sizes
    rps: dict[str, list[float]] = {}
    paused_us: dict[str, list[float]] = {}
    with ExitStack() as stack:
        servers = {
            option: stack.enter_context(bench.lambent("--account-concurrency", str(WARM_CONCURRENCY), option))
            for option in ("--freeze", "--no-freeze")
        }
        for server in servers.values():
            deploy(lambda_client(server), ["echo"], "echo", WARM_MIB, bench.runtime)
            load(server, "echo", 32, 1.0)
        for number in range(sizes.rounds):
            for option, server in list(servers.items()) if number % 2 == 0 else reversed(servers.items()):
                bench.step(f"round {number + 1} of {sizes.rounds}: {option}")
                load(server, "echo", 32, 0.3)
                rps.setdefault(option, []).append(load(server, "echo", 32, sizes.warm_s)["rps"])
                connection = Connection(server.host, server.port)
                took_us = []
                for _ in range(30):
                    time.sleep(FROZEN_PAUSE_S)
                    response, took_ns = connection.invoke("echo")
                    checked(response)
                    took_us.append(took_ns / 1e3)
                connection.close()
                paused_us.setdefault(option, []).append(statistics.median(took_us))
    return [
        compared("throughput, 32 clients, freezing against not", "/s", rps["--freeze"], rps["--no-freeze"]),
        compared(
            "  … a call every 30 ms (frozen in between), against not", "us", paused_us["--freeze"],
            paused_us["--no-freeze"],
        ),
    ]  # fmt: skip


def mass(bench: Bench) -> list[Figure]:
    """As many environments of one function as the account may have by default, all executing at once."""
    count = bench.sizes.mass
    with bench.lambent() as server:
        client = lambda_client(server)
        deploy(client, ["first"], "echo", SMALL_MIB, bench.runtime)
        checked(invoke_together(server, "first", b"{}", 1, timeout_s=60)[1][0])
        time.sleep(2)
        before = sum(one.proportional_bytes for one in machine.memory_below(server.process.pid))
        bench.step(f"{count} requests at once")
        began_s, told = occupy(bench, server, client, "mass", count, hold_s=20.0)
        took_s = max(one["began_s"] for one in told) - began_s
        bench.step("memory")
        after = sum(one.proportional_bytes for one in machine.memory_below(server.process.pid))
    detail = {"environments": count, "seconds_until_all_executing": took_s}
    return [
        figure("environments of one function, started a second", "/s", count / took_s, detail=detail),
        figure(f"  … until {count:,} execute at once", "s", took_s),
        figure("  … memory of them all", "GB", (after - before) / MIB / 1024),
    ]


SIDE_BY_SIDE: dict[str, Callable[[Bench], list[Figure]]] = {
    "node": node,
    "extension": extension,
    "freezing": freezing,
    "mass": mass,
}
