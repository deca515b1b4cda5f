"""Syntax errors, found before anything is deployed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_NODE_ENDINGS = (".js", ".cjs", ".mjs")
_TIMEOUT_S = 10


def syntax_errors(files: Iterable[Path], runtime: str) -> list[str]:
    """What is wrong with these sources, as their interpreters say it. `runtime` as in a function's configuration; an
    interpreter that is not at hand finds nothing."""
    found = []
    for file in files:
        if not file.is_file():
            continue
        if file.suffix == ".py" and runtime.startswith("python3."):
            found.append(_python_error(file, int(runtime[8:])))
        elif file.suffix in _NODE_ENDINGS and runtime.startswith("nodejs"):
            found.append(_node_error(file))
    return [text for text in found if text]


def _python_error(file: Path, minor: int) -> str:
    try:
        compile(file.read_bytes(), str(file), "exec", dont_inherit=True)
    except SyntaxError as error:
        if minor > sys.version_info[1]:  # maybe syntax that this interpreter does not have yet
            return _newer_python_error(file, minor)
        return _told(error)
    except (OSError, ValueError) as error:
        return f"{file.name}: {error}"
    return ""


def _told(error: SyntaxError) -> str:
    name = Path(error.filename or "?").name
    text = f"{name}:{error.lineno}: {type(error).__name__}: {error.msg}"
    if error.text:
        line = error.text.rstrip("\n")
        text += f"\n    {line.strip()}"
        if error.offset:
            text += "\n    " + " " * max(0, error.offset - 1 - (len(line) - len(line.lstrip()))) + "^"
    return text


def _newer_python_error(file: Path, minor: int) -> str:
    python = shutil.which(f"python3.{minor}")
    if python is None:
        return ""
    source = "import sys; compile(open(sys.argv[1], 'rb').read(), sys.argv[1], 'exec')"
    return _said([python, "-I", "-S", "-c", source, str(file)], file)


def _node_error(file: Path) -> str:
    node = shutil.which("node")
    return "" if node is None else _said([node, "--check", str(file)], file)


def _said(command: list[str], file: Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    if not done.returncode or ("SyntaxError" not in done.stderr and "IndentationError" not in done.stderr):
        return ""
    text = done.stderr.replace(str(file), file.name)
    text = re.sub(r"^Traceback.*?(?=^  File \"" + re.escape(file.name) + ")", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.split(r"\n\s+at |\n\nNode\.js v", text)[0].strip()
