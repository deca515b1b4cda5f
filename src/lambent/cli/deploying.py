"""`lambent deploy`: from a folder, a zip or a file to a function that is Active."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import typer

from lambent.cli.client import client, print_json, told_errors

_SKIPPED = {
    "__pycache__",
    ".git",
    ".venv",
    "venv",
    "node_modules",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
}
_MODULES = ("lambda_function", "app", "main", "handler", "index", "function")
_FUNCTIONS = ("lambda_handler", "handler", "main")
_ROLE = "arn:aws:iam::000000000000:role/lambent"


def bundle(path: Path, install: bool) -> bytes:
    """The zip to upload. Symbolic links inside are followed; caches and repositories are left out."""
    if path.suffix == ".zip":
        return path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        if path.is_file():
            archive.write(path, path.name)
        else:
            _add_tree(archive, path)
            requirements = path / "requirements.txt"
            if install and requirements.exists():
                with tempfile.TemporaryDirectory() as target:
                    command = [
                        sys.executable,
                        "-m",
                        "pip",
                        "install",
                        "-q",
                        "-t",
                        target,
                        "-r",
                        str(requirements),
                    ]
                    if subprocess.run(command, check=False).returncode:
                        typer.echo(f"lambent: pip could not install {requirements}", err=True)
                        raise typer.Exit(1)
                    _add_tree(archive, Path(target))
            elif requirements.exists():
                typer.echo("note: requirements.txt is not bundled; use --install for that.", err=True)
    return buffer.getvalue()


def _add_tree(archive: zipfile.ZipFile, root: Path) -> None:
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        if file.is_file() and not _SKIPPED & set(relative.parts):
            archive.write(file, relative)


def find_handler(code: bytes) -> str | None:
    """`module.function` of the first module at the top that defines what looks like a handler."""
    with zipfile.ZipFile(io.BytesIO(code)) as archive:
        modules = [name[:-3] for name in archive.namelist() if "/" not in name and name.endswith(".py")]
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


def deploy(
    endpoint: str,
    path: Path,
    name: str | None,
    handler: str | None,
    runtime: str | None,
    memory: int | None,
    timeout: int | None,
    env: list[str],
    install: bool,
    as_json: bool,
) -> None:
    started = time.monotonic()
    name = name or path.resolve().stem
    code = bundle(path, install)
    variables = dict(pair.partition("=")[::2] for pair in env)
    with told_errors(endpoint):
        functions = client("lambda", endpoint)
        try:
            existing = functions.get_function_configuration(FunctionName=name)
        except functions.exceptions.ResourceNotFoundException:
            existing = None
        if existing is None:
            try:
                handler = handler or find_handler(code)
            except zipfile.BadZipFile as error:
                typer.echo(f"lambent: {path} is not a zip file", err=True)
                raise typer.Exit(2) from error
            if handler is None:
                typer.echo(
                    "lambent: no handler found at the top of the code; give --handler module.function",
                    err=True,
                )
                raise typer.Exit(2)
            functions.create_function(
                FunctionName=name,
                Runtime=runtime or f"python3.{sys.version_info[1]}",
                Handler=handler,
                Role=_ROLE,
                Code={"ZipFile": code},
                **_settings(memory, timeout, variables),
            )
        else:
            functions.update_function_code(FunctionName=name, ZipFile=code)
            _wait(functions, name)
            changes = _settings(memory, timeout, variables)
            if handler:
                changes["Handler"] = handler
            if runtime:
                changes["Runtime"] = runtime
            if changes:
                functions.update_function_configuration(FunctionName=name, **changes)
        final = _wait(functions, name)
    failed = final.get("State") == "Failed" or final.get("LastUpdateStatus") == "Failed"
    if as_json:
        final.pop("ResponseMetadata", None)
        print_json(final)
    elif failed:
        typer.echo(f"{name}: {final.get('StateReason') or final.get('LastUpdateStatusReason')}", err=True)
    else:
        verb = "created" if existing is None else "updated"
        typer.echo(
            f"{verb} {final['FunctionArn']} ({final['Runtime']}, {final['Handler']}, {final['MemorySize']} MB, "
            f"{len(code):,} bytes) in {time.monotonic() - started:.2f} s"
        )
    if failed:
        raise typer.Exit(1)


def _settings(memory: int | None, timeout: int | None, variables: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if memory:
        found["MemorySize"] = memory
    if timeout:
        found["Timeout"] = timeout
    if variables:
        found["Environment"] = {"Variables": variables}
    return found


def _wait(functions: Any, name: str) -> dict[str, Any]:
    """Until neither creation nor update is under way."""
    while True:
        found: dict[str, Any] = functions.get_function_configuration(FunctionName=name)
        if found.get("State") != "Pending" and found.get("LastUpdateStatus") != "InProgress":
            return found
        time.sleep(0.05)
