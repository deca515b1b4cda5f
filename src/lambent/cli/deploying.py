"""`lambent deploy`: from a folder, a zip or a file to a function that is Active."""

from __future__ import annotations

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
from lambent.cli.recognising import Recognised, recognise

SKIPPED = {
    "__pycache__",
    ".git",
    ".venv",
    "venv",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
}
ROLE = "arn:aws:iam::000000000000:role/lambent"


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
        if file.is_file() and not SKIPPED & set(relative.parts):
            archive.write(file, relative)


def deploy(
    endpoint: str,
    path: Path,
    name: str | None,
    handler: str | None,
    runtime: str | None,
    memory: int | None,
    timeout: int | None,
    env: list[str],
    layers: list[str],
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
            found = _recognised(path, code, runtime, handler)
            functions.create_function(
                FunctionName=name,
                Runtime=found.runtime,
                Handler=found.handler,
                Role=ROLE,
                Code={"ZipFile": code},
                **settings(memory, timeout, variables, layers),
            )
        else:
            functions.update_function_code(FunctionName=name, ZipFile=code)
            _wait(functions, name)
            changes = settings(memory, timeout, variables, layers)
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


def _recognised(path: Path, code: bytes, runtime: str | None, handler: str | None) -> Recognised:
    """What was said, and for the rest what the code looks like."""
    try:
        found = recognise(code)
    except zipfile.BadZipFile as error:
        typer.echo(f"lambent: {path} is not a zip file", err=True)
        raise typer.Exit(2) from error
    handler = handler or (found.handler if found is not None else None)
    if handler is None:
        typer.echo("lambent: no handler found at the top of the code; give --handler module.function", err=True)
        raise typer.Exit(2)
    return Recognised(runtime or (found.runtime if found is not None else f"python3.{sys.version_info[1]}"), handler)


def settings(memory: int | None, timeout: int | None, variables: dict[str, str], layers: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if layers:
        found["Layers"] = layers
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
