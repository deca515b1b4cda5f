"""Builds the deployment package of an example: its files, and what its requirements.txt names.

Libraries are installed with pip into `.cache/bundles`, once per set of requirements, Python version and machine;
only wheels, since a package built from source here might not fit where it runs. The same files give the same bytes.

    python examples/bundle.py examples/api_powertools [--output function.zip]
"""

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bundles"
LEFT_OUT = {"README.md", "requirements.txt", "event.json"}  # for people and tools, not for the function
LONG_AGO = (2026, 1, 1, 0, 0, 0)  # every member's date, so that equal files make equal packages


def libraries(requirements: Path, python_version: str) -> Path:
    """The folder in the cache that holds the installed requirements."""
    text = requirements.read_bytes()
    key = hashlib.sha256(text + f"\n{python_version} {platform.machine()}".encode()).hexdigest()[:16]
    installed = CACHE / key
    if installed.is_dir():
        return installed
    CACHE.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{key}-", dir=CACHE))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    command += ["--target", str(unfinished), "--only-binary", ":all:", "--no-compile"]
    command += ["--python-version", python_version, "--requirement", str(requirements)]
    try:
        subprocess.run(command, check=True)
        shutil.rmtree(unfinished / "bin", ignore_errors=True)  # a library's commands have no use in a function
        unfinished.rename(installed)  # a half-filled folder must never look complete
    except OSError:
        if not installed.is_dir():  # otherwise another process was first: its folder is as good
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return installed


def members(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name in the package and file, in a fixed order."""
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder)
        if file.is_file() and "__pycache__" not in name.parts:
            yield name.as_posix(), file


def bundle(folder: Path, output: Path | None = None, python_version: str | None = None) -> Path:
    """Build the package of one example; returns its path (in the cache unless `output` says otherwise)."""
    version = python_version or f"{sys.version_info.major}.{sys.version_info.minor}"
    files = {name: file for name, file in members(folder) if name not in LEFT_OUT}
    requirements = folder / "requirements.txt"
    if requirements.is_file():
        # The example's own files win over a library's of the same name.
        files = dict(members(libraries(requirements, version))) | files
    target = output or CACHE / f"{folder.resolve().name}.zip"
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in sorted(files.items()):
            member = zipfile.ZipInfo(name, date_time=LONG_AGO)
            data = file.read_bytes()
            member.external_attr = (0o755 if data.startswith(b"#!") else 0o644) << 16  # extensions, bootstrap
            member.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(member, data)
    return target


def main() -> None:
    """Build one package and print where it is."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--output", type=Path)
    arguments.add_argument("--python-version", help="such as 3.12; by default that of the running interpreter")
    options = arguments.parse_args()
    print(bundle(options.folder, options.output, options.python_version))


if __name__ == "__main__":
    main()
