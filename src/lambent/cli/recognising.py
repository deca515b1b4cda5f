"""What a zip of code is: which runtime it wants and where its handler is, for those who do not say."""

from __future__ import annotations

import ast
import io
import re
import shutil
import subprocess
import sys
import zipfile
from typing import NamedTuple

_MODULES = ("lambda_function", "app", "main", "handler", "index", "function")
_FUNCTIONS = ("lambda_handler", "handler", "main")
_NODE_MODULES = ("index", "app", "main", "handler", "lambda")
_NODE_ENDINGS = (".mjs", ".js", ".cjs")
_NODE_EXPORT = re.compile(
    rb"exports\.(?:handler)\b|export\s+(?:const|let|var|async\s+function|function)\s+handler\b"
    rb"|export\s*\{[^}]*\bhandler\b"
)
_NEWEST_NODE = 22


class Recognised(NamedTuple):
    runtime: str
    handler: str


def recognise(code: bytes) -> Recognised | None:
    """From the files at the top of the zip: a `bootstrap`, a Python or a JavaScript handler. Raises BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(code)) as archive:
        top = {name for name in archive.namelist() if "/" not in name}
        if "bootstrap" in top:
            return Recognised("provided.al2023", "bootstrap")
        handler = _python_handler(archive, top)
        if handler is not None:
            return Recognised(f"python3.{sys.version_info[1]}", handler)
        handler = _node_handler(archive, top)
        return None if handler is None else Recognised(f"nodejs{_node_major()}.x", handler)


def _python_handler(archive: zipfile.ZipFile, top: set[str]) -> str | None:
    """`module.function` of the first module that defines what looks like a handler."""
    modules = sorted(name[:-3] for name in top if name.endswith(".py"))
    ordered = [name for name in _MODULES if name in modules] + [name for name in modules if name not in _MODULES]
    for module in ordered:
        try:
            tree = ast.parse(archive.read(f"{module}.py"))
        except SyntaxError:
            continue
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        defined |= {
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for function in _FUNCTIONS:
            if function in defined:
                return f"{module}.{function}"
    return None


def _node_handler(archive: zipfile.ZipFile, top: set[str]) -> str | None:
    for module in _NODE_MODULES:
        for ending in _NODE_ENDINGS:
            if module + ending in top and _NODE_EXPORT.search(archive.read(module + ending)):
                return f"{module}.handler"
    return None


def _node_major() -> int:
    """Of the Node.js at hand, as AWS names its runtimes (even numbers)."""
    node = shutil.which("node")
    if node is None:
        return _NEWEST_NODE
    try:
        answer = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return _NEWEST_NODE
    match = re.match(r"v(\d+)", answer)
    return min(24, max(18, int(match[1]) // 2 * 2)) if match else _NEWEST_NODE
