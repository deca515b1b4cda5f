"""The runtimes that Lambent can run, one row each: what to look for on the host and how to start it.

A new runtime is a row here and, where it brings a client of its own, a folder in lambent/runtimes. Paths in a row may
name {program}, {runtime} (the folder of runtimes as the sandbox sees it), {task}, {layers} and {handler}.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lambent.sandbox.interpreters import Choice, Interpreter, choose


class Row(NamedTuple):
    """`names` matches the runtime identifiers of the family."""

    names: re.Pattern[str]
    #: Folder of lambent/runtimes that holds the client, "" for none.
    folder: str = ""
    #: Program to find on the host; "" when the function brings its own.
    program: str = ""
    #: How a runtime process is started when nothing was parked: the first of these whose program exists.
    start: tuple[tuple[str, ...], ...] = ()
    #: What waits in a parked sandbox for its function. Empty: nothing does.
    park: tuple[str, ...] = ()
    #: A fork of the zygote is parked, and speaks frames; else the HTTP Runtime API is spoken.
    forks: bool = False
    #: How many are parked at the most; they cost memory.
    parked_max: int = 64
    environ: dict[str, str] = {}
    #: Variables of a function that a process started ahead can not take on.
    fixed_at_start: frozenset[str] = frozenset({"AWS_LAMBDA_EXEC_WRAPPER"})
    #: Whether AWS_EXECUTION_ENV, LANG and the like are set (not for provided.*).
    managed: bool = True
    #: What goes behind the program for a debugger to attach, with {option}, {host} and {port}. A fork has its own way.
    inspect: tuple[str, ...] = ()


_NODE = ("{program}", "{runtime}/main.cjs")
ROWS = (
    Row(
        re.compile(r"python3\.(\d+)"),
        folder="python",
        start=(("{program}", "{runtime}/wrapped.py", "{task}", "{layers}"),),
        forks=True,
        environ={"LC_CTYPE": "C.UTF-8", "PYTHONPATH": "/var/runtime"},
    ),
    Row(
        re.compile(r"nodejs(\d+)\.x"),
        folder="nodejs",
        program="node",
        start=(_NODE,),
        park=(*_NODE, "--parked", "3"),
        parked_max=3,
        inspect=("{option}={host}:{port}",),
        environ={
            "NODE_PATH": "{layers}/nodejs/node{major}/node_modules:{layers}/nodejs/node_modules:"
            "/var/runtime/node_modules:/var/runtime:{task}",
            "_LAMBDA_TELEMETRY_LOG_FD": "4",
        },
        fixed_at_start=frozenset(
            [
                *("AWS_LAMBDA_EXEC_WRAPPER", "LANG", "LD_PRELOAD", "UV_THREADPOOL_SIZE", "NODE_OPTIONS", "NODE_DEBUG"),
                *("NODE_EXTRA_CA_CERTS", "NODE_ICU_DATA", "NODE_V8_COVERAGE", "NODE_TLS_REJECT_UNAUTHORIZED"),
                *("NODE_NO_WARNINGS", "NODE_PENDING_DEPRECATION", "SSL_CERT_FILE", "SSL_CERT_DIR", "OPENSSL_CONF"),
                *("LC_ALL", "LC_CTYPE", "LC_TIME", "LC_NUMERIC", "LC_COLLATE", "LC_MESSAGES", "LD_LIBRARY_PATH"),
            ]
        ),
    ),
    Row(
        re.compile(r"provided\.al2(023)?"),
        start=(("/var/runtime/bootstrap",), ("{task}/bootstrap",), ("{layers}/bootstrap",)),
        managed=False,
    ),
)
_HOME_GLOBS = (
    ".nvm/versions/node/*/bin",
    ".local/share/mise/installs/node/*/bin",
    ".volta/tools/image/node/*/bin",
)
#: Container images run as custom runtimes do: what they start comes from the image.
IMAGE = "provided.al2023"


class Runtime(NamedTuple):
    """A row, and what was found on this host for one runtime identifier."""

    row: Row
    #: Interpreter of the zygote: the runtime's own for Python, the server's for the others.
    zygote: Choice
    program: str
    #: As INIT_START names it, e.g. `nodejs:20.v19`.
    version: str
    warning: str | None = None


class RuntimeMissing(Exception):
    """The runtime can not be served on this host; the message says what to install."""


def row_of(runtime: str) -> Row | None:
    return next((row for row in ROWS if row.names.fullmatch(runtime)), None)


def pool_key(runtime: str) -> str:
    """Runtimes with one key share their zygote and parked sandboxes."""
    row = row_of(runtime)
    return "provided" if row is not None and not row.folder else runtime


def find(runtime: str, interpreters: dict[int, Interpreter], own: int, strict: bool) -> Runtime:
    """What serves `runtime` here. `own`: minor version of the interpreter that runs Lambent. Asks programs for their
    versions, so not for the event loop. Raises RuntimeMissing."""
    row = row_of(runtime)
    if row is None:
        raise RuntimeMissing(f"Lambent can not run {runtime} functions.")
    if row.forks:
        choice = choose(runtime, interpreters, strict)
        if choice is None:
            raise RuntimeMissing(
                f"The runtime {runtime} is not installed on this host and --strict-runtimes is on. "
                f"Installed: {', '.join(i.runtime for i in sorted(interpreters.values()))}."
            )
        return Runtime(row, choice, str(choice.interpreter.path), "", choice.warning)
    zygote = Choice(interpreters[own], None)
    if not row.program:
        return Runtime(row, zygote, "", f"{runtime.replace('.', ':', 1)}.v1")
    return _find_program(row, runtime, zygote, strict)


def _find_program(row: Row, runtime: str, zygote: Choice, strict: bool) -> Runtime:
    found = sorted({_version(path): path for path in _candidates(row.program)}.items())
    installed = [(version, path) for version, path in found if version]
    match = row.names.fullmatch(runtime)
    assert match is not None
    wanted = int(match[1])
    if not installed or (strict and all(version[0] != wanted for version, _ in installed)):
        names = ", ".join(".".join(map(str, version)) for version, _ in installed) or "none"
        raise RuntimeMissing(
            f"The runtime {runtime} needs the program `{row.program}` on this host. Installed: {names}. "
            + ("--strict-runtimes is on." if installed else f"Install {row.program} and deploy again.")
        )
    version, path = min(installed, key=lambda entry: (abs(entry[0][0] - wanted), [-part for part in entry[0]]))
    warning = None
    if version[0] != wanted:
        warning = (
            f"LAMBENT_WARNING: {runtime} is not installed on this host; the function runs on {row.program} "
            f"{'.'.join(map(str, version))} ({path}). Install {runtime}, or start with --strict-runtimes to refuse."
        )
    name = f"{row.folder}:{version[0]}.v{version[1]}"
    return Runtime(row, zygote, str(path), name, warning)


def _candidates(program: str) -> list[Path]:
    folders = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    folders += [Path("/usr/bin"), Path("/usr/local/bin")]
    folders += sorted(Path("/opt").glob(f"{program}*/bin"))
    for pattern in _HOME_GLOBS:
        try:
            folders += sorted(Path.home().glob(pattern))
        except OSError:
            continue
    found = []
    for folder in folders:
        path = (folder / program).resolve()
        try:
            if path.is_file() and os.access(path, os.X_OK):
                found.append(path)
        except OSError:
            continue
    return list(dict.fromkeys(found))


def _version(path: Path) -> tuple[int, ...]:
    """Major, minor, patch as the program says, or () when it does not run."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    match = re.search(r"(\d+)\.(\d+)\.(\d+)", answer)
    return tuple(map(int, match.groups())) if match else ()


def fill(texts: Sequence[str], places: dict[str, str]) -> list[str]:
    """The places of a row's paths filled in."""
    return [text.format_map(places) for text in texts]
