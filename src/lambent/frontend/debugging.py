"""/_lambent/debug: let a debugger attach to environments of a function. For `lambent dev`; AWS has no such thing.

    GET                                                       {"functions": [...], "debugpy": bool}
    POST {"function": ARN, "port": N or null, "wait": bool}   null: no more

Who can reach the port of a debugger runs code as the function. So the page answers only where the server listens on a
loopback address, and refuses what a web page could make a browser send: other content types than JSON, and requests for
another host name.
"""

from __future__ import annotations

import re

import msgspec

from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable
from lambent.frontend.application import Page, json_response
from lambent.model.errors import ApiError
from lambent.model.function import DebugSpec
from lambent.model.names import LATEST, FunctionKey, parse_function_ref
from lambent.sandbox.runtimes import row_of
from lambent.wire.http import Request, Response
from lambent.worker.launcher import debugpy_folder

_LOOPBACK = re.compile(r"127\.\d+\.\d+\.\d+|::1|localhost")


class _Wanted(msgspec.Struct, forbid_unknown_fields=True):
    function: str
    port: int | None = None
    wait: bool = False


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def debug_page(plane: DataPlane, routing: RoutingTable, host: str, port: int) -> Page:
    """`host` and `port`: where the server listens."""
    settings: dict[FunctionKey, DebugSpec] = {}

    async def debug(request: Request) -> Response:
        try:
            _check_sender(request, host)
            for key in settings.keys() - routing.functions.keys():  # deleted since
                _set(key, None)
            if request.method == "POST":
                _change(request)
        except _Refused as error:
            return json_response({"message": str(error)}, error.status)
        functions = [{"function": key.arn(), "port": each.port, "wait": each.wait} for key, each in settings.items()]
        return json_response({"functions": functions, "debugpy": bool(debugpy_folder())})

    def _change(request: Request) -> None:
        try:
            wanted = msgspec.json.decode(request.body, type=_Wanted)
            key = parse_function_ref(wanted.function, None, request.account, _region(wanted.function, request)).key
        except (msgspec.DecodeError, ApiError) as error:
            raise _Refused(400, str(error)) from error
        if wanted.port is None:
            _set(key, None)
            return
        entry = routing.functions.get(key)
        latest = entry.versions.get(LATEST) if entry is not None else None
        if latest is None:
            raise _Refused(404, f"Function not found: {key.arn()}")
        row = row_of(latest.spec.runtime)
        if row is None or not (row.forks or row.inspect):
            raise _Refused(400, f"Only functions in Python and Node.js can be debugged; {key.arn()} is neither.")
        if not 1 <= wanted.port <= 65_535 or wanted.port == port:
            raise _Refused(400, f"{wanted.port} is not a port that a debugger can have.")
        for other, setting in settings.items():
            if other != key and setting.port == wanted.port:
                raise _Refused(409, f"Port {wanted.port} is where {other.arn()} is debugged.")
        _set(key, DebugSpec(wanted.port, wanted.wait))

    def _set(key: FunctionKey, setting: DebugSpec | None) -> None:
        if setting is None:
            settings.pop(key, None)
        else:
            settings[key] = setting
        plane.worker.debug(key, setting)

    return debug


def _check_sender(request: Request, host: str) -> None:
    if not _LOOPBACK.fullmatch(host):
        raise _Refused(
            403, f"The server listens on {host}: functions are debugged only where it is a loopback address."
        )
    named = re.sub(r":\d*$", "", request.headers.get("host", "")).strip("[]")
    if not _LOOPBACK.fullmatch(named):
        raise _Refused(403, f"Requests for {named or 'no host'} are refused here.")
    if request.method not in ("GET", "POST"):
        raise _Refused(405, "GET or POST")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if request.method == "POST" and kind != "application/json":
        raise _Refused(415, "Content-Type must be application/json.")


def _region(function: str, request: Request) -> str:
    fields = function.split(":")
    return fields[3] if function.startswith("arn:") and len(fields) > 3 else request.region
