"""Lambent's own pages, for its command line: /_lambent/health, /_lambent/environments, /_lambent/statistics."""

from __future__ import annotations

import time

from lambent.core.environment import EnvironmentState
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable
from lambent.frontend.application import Page, json_response
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
                    "invocations": view.invocations,
                    "memory_peak_bytes": info.memory_peak_bytes if info else None,
                    "log_stream": info.log_stream if info else None,
                    "frozen": info.frozen if info else False,
                }
            )
        return json_response(rows)

    async def statistics(_: Request) -> Response:
        return json_response(plane.scheduler.statistics())

    return {"health": health, "environments": environments, "statistics": statistics}
