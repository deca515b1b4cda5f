"""Which Python interpreters this host has, by the runtime that each can serve.

Looked for by file name only (no process is started): folders of PATH, the usual places of distributions and of version
managers. Whether one really works shows when its zygote starts.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

_NAME = re.compile(r"python3\.(\d+)$")
OLDEST, NEWEST = 9, 14
_GLOBS = ("/opt/python*/bin", "/usr/local/python*/bin")
_HOME_GLOBS = (
    ".pyenv/versions/*/bin",
    ".local/share/uv/python/*/bin",
    ".local/share/mise/installs/python/*/bin",
)


class Interpreter(NamedTuple):
    minor: int
    path: Path

    @property
    def runtime(self) -> str:
        return f"python3.{self.minor}"


def _folders() -> list[Path]:
    found = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    found += [Path("/usr/bin"), Path("/usr/local/bin")]
    for pattern in _GLOBS:
        found += sorted(Path("/").glob(pattern[1:]))
    for pattern in _HOME_GLOBS:
        found += sorted(Path.home().glob(pattern))
    return found


def find() -> dict[int, Interpreter]:
    """Minor version -> interpreter, for 3.9 to 3.14. The one that runs Lambent is always among them."""
    own = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    found = {sys.version_info[1]: Interpreter(sys.version_info[1], own)}
    for folder in _folders():
        if folder.name == "shims" or (folder.parent / "pyvenv.cfg").exists():
            continue  # version managers' wrappers and virtual environments point at something else
        try:
            entries = os.listdir(folder)
        except OSError:
            continue
        for entry in entries:
            match = _NAME.match(entry)
            if match and OLDEST <= (minor := int(match[1])) <= NEWEST and minor not in found:
                path = (folder / entry).resolve()
                if path.is_file() and os.access(path, os.X_OK):
                    found[minor] = Interpreter(minor, path)
    return found


class Choice(NamedTuple):
    """The interpreter for a runtime, and the warning when it is not the runtime's own version."""

    interpreter: Interpreter
    warning: str | None


def choose(runtime: str, found: dict[int, Interpreter], strict: bool = False) -> Choice | None:
    """The interpreter for `python3.N`, or the nearest (the newer on a tie). None: strict, or not a Python runtime."""
    match = _NAME.match(runtime)
    if match is None:
        return None
    wanted = int(match[1])
    if wanted in found:
        return Choice(found[wanted], None)
    if strict:
        return None
    nearest = min(found, key=lambda minor: (abs(minor - wanted), -minor))
    warning = (
        f"LAMBENT_WARNING: {runtime} is not installed on this host; the function runs on python3.{nearest} "
        f"({found[nearest].path}). Install {runtime}, or start with --strict-runtimes to refuse."
    )
    return Choice(found[nearest], warning)
