"""Lambent's own pages, for its command line: /_lambent/health, /_lambent/environments, /_lambent/statistics, and
/_lambent/top, which is all that `lambent top` needs, counted here: its size goes with the functions, not with the
environments."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from typing import Any

from lambent.core.environment import EnvironmentState
from lambent.core.statistics import FunctionStatistics
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable
from lambent.frontend.application import Page, json_response
from lambent.model.invocation import InitializationType
from lambent.model.limits import MEMORY_PER_VCPU_MIB
from lambent.model.names import FunctionKey
from lambent.telemetry.lambda_metrics import LambdaMetrics
from lambent.telemetry.metric_store import MetricStore
from lambent.wire.http import Request, Response


def own_pages(plane: DataPlane, routing: RoutingTable, facts: dict[str, object]) -> dict[str, Page]:
    """`facts`: what the composition root knows about this server (sandbox, data folder, problems)."""

    async def health(_: Request) -> Response:
        return json_response({"status": "ok", "in_flight": plane.in_flight, **facts})

    async def environments(_: Request) -> Response:
        now_ns = time.monotonic_ns()
        names = {entry.id: entry for function in routing.functions.values() for entry in function.versions.values()}
        rows = []
        for view in plane.scheduler.environments():
            if view.state is EnvironmentState.DEAD:
                continue
            entry = names.get(view.version)
            info = plane.worker.info(view.environment)
            rows.append(
                {
                    "id": view.environment,
                    "function": entry.spec.key.name if entry else "(replaced)",
                    "account": entry.spec.key.account if entry else None,
                    "region": entry.spec.key.region if entry else None,
                    "version": entry.spec.version if entry else None,
                    "state": view.state.name.lower(),
                    "age_s": round((now_ns - view.created_ns) / 1e9, 3),
                    "in_state_s": round((now_ns - view.since_ns) / 1e9, 3),
                    "initialization_type": view.initialization_type.value,
                    "invocations": view.invocations,
                    "tenant": plane.tenants.of(view.environment),
                    "memory_peak_bytes": info.memory_peak_bytes if info else None,
                    "log_stream": info.log_stream if info else None,
                    "frozen": info.frozen if info else False,
                }
            )
        return json_response(rows)

    async def statistics(_: Request) -> Response:
        return json_response(plane.scheduler.statistics())

    return {"health": health, "environments": environments, "statistics": statistics}


#: What `lambent top` draws alike.
_CELLS = {
    EnvironmentState.STARTING: "starting",
    EnvironmentState.INIT: "starting",
    EnvironmentState.RESTORING: "starting",
    EnvironmentState.IDLE: "idle",
    EnvironmentState.BUSY: "busy",
    EnvironmentState.RESETTING: "resetting",
    EnvironmentState.SHUTTING_DOWN: "stopping",
}


def top_page(plane: DataPlane, routing: RoutingTable, store: MetricStore, metrics: LambdaMetrics) -> Page:
    """Levels are of now; counters (invocations, errors, cold starts, throttles, the buckets of metric_point) count from
    the server's start, so that each reader makes differences of its own."""

    frozen: dict[int, int] = {}  # what the last look found frozen, and since when it was idle

    async def top(_: Request) -> Response:
        statistics = plane.scheduler.statistics()
        cells, vcpus_promised = _count_environments(plane, routing, frozen)
        cold: Counter[int] = Counter()
        for version in statistics.versions:
            cold[version.function] += version.cold_starts
        keys = {entry.id: key for key, entry in routing.functions.items()}
        memory = {key: max(each.spec.memory_mib for each in entry.versions.values())
                  for key, entry in routing.functions.items() if entry.versions}  # fmt: skip
        levels: list[tuple[FunctionKey, dict[str, Any]]] = []
        accounts: dict[int, FunctionKey] = {}
        for each in statistics.functions:
            key = keys.get(each.function)
            if key is not None:
                accounts[each.account] = key
                levels.append((key, _function(key, each, cells.pop(each.function, {}), cold[each.function])))
        leaving = sum(map(Counter, cells.values()), Counter[str]())
        counted = await store.after_flush(lambda: _counted(metrics))
        body = {
            "at_s": time.monotonic(),
            "pid": os.getpid(),
            "draining": statistics.draining,
            "accounts": [
                {"account": accounts[each.account].account, "region": accounts[each.account].region,
                 "concurrency_max": each.concurrency_max, "in_flight": each.in_flight, "reserved": each.reserved,
                 "unreserved_in_flight": each.unreserved_in_flight, "unreserved_max": each.unreserved_max,
                 "provisioned": each.provisioned, "provisioned_in_flight": each.provisioned_in_flight}
                for each in statistics.accounts if each.account in accounts
            ],
            "functions": [{**level, "memory_mib": memory.get(key, 0), **counted.get(key, {})} for key, level in levels],
            "leaving": leaving,  # environments of functions that have been deleted
            "workers": statistics.workers,
            "machine": {"vcpus_promised": vcpus_promised, **_machine()},
        }  # fmt: skip
        return json_response(body)

    return top


def _count_environments(
    plane: DataPlane, routing: RoutingTable, frozen: dict[int, int]
) -> tuple[dict[int, dict[str, int]], float]:
    """Cells by function; and the sum of the CPU that Lambda gives for the memory of all environments."""
    known = frozen.copy()
    frozen.clear()
    cells: dict[int, Counter[str]] = {}
    sizes = {each.id: each.spec.memory_mib for entry in routing.functions.values() for each in entry.versions.values()}
    memory_mib = 0
    for view in plane.scheduler.environments():
        cell = _CELLS[view.state]
        if view.initialization_type is InitializationType.PROVISIONED_CONCURRENCY and cell in ("idle", "busy"):
            cell = f"provisioned-{cell}"
        elif cell == "idle":
            # Frozen, it stays so while it is idle: the worker, which reads a file for its answer, is asked once.
            still = known.get(view.environment) == view.since_ns
            if still or ((info := plane.worker.info(view.environment)) is not None and info.frozen):
                frozen[view.environment] = view.since_ns
                cell = "frozen"
        cells.setdefault(view.function, Counter())[cell] += 1
        memory_mib += sizes.get(view.version, 0)
    return {function: dict(counts) for function, counts in cells.items()}, memory_mib / MEMORY_PER_VCPU_MIB


def _function(key: FunctionKey, level: FunctionStatistics, cells: dict[str, int], cold_starts: int) -> dict[str, Any]:
    return {
        "account": key.account,
        "region": key.region,
        "name": key.name,
        "in_flight": level.in_flight,
        "reserved": level.reserved,
        "provisioned": level.provisioned,
        "provisioned_in_flight": level.provisioned_in_flight,
        "environments": cells,
        "cold_starts": cold_starts,
        "throttles": level.throttles,
    }


def _counted(metrics: LambdaMetrics) -> dict[FunctionKey, dict[str, Any]]:
    """On the metric store's thread: what has ended since the start, by function."""
    functions: dict[FunctionKey, dict[str, Any]] = {}
    for key, totals in metrics.totals().items():
        known = functions.setdefault(key.function, {"invocations": 0, "errors": 0, "duration_buckets": {}})
        known["invocations"] += totals.invocations
        known["errors"] += totals.errors
        buckets = known["duration_buckets"]
        for bucket, count in (totals.duration.buckets or {}).items():
            buckets[bucket] = buckets.get(bucket, 0) + count
    return functions


def _machine() -> dict[str, float]:
    """Of the host that the environments run on. Times are sums over its processors since it started; what this kernel
    does not tell is 0."""
    ticks, kib = [0] * 8, {}
    with contextlib.suppress(OSError), open("/proc/stat", encoding="ascii") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in file)}
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return {
        "processors": os.cpu_count() or 1,
        "cpu_ticks": sum(ticks),
        "cpu_idle_ticks": ticks[3] + ticks[4],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * page_bytes,
        "memory_available_bytes": kib.get("MemAvailable", 0) * 1_024,
    }
