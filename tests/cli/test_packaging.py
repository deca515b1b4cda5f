"""The zip of `lambent dev`: what is in it, and that it is the same for the same files."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from lambent.cli.packaging import folders_of, is_part, pack


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def names(raw: bytes) -> list[str]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def test_what_is_in_it(tmp_path: Path) -> None:
    kept = ["app.py", "lib/x.py", "node_modules/left-pad/index.js"]
    out = [".git/config", "__pycache__/app.pyc", "lib/__pycache__/x.pyc", ".venv/bin/python"]
    transient = ["app.py~", ".app.py.swp", ".#app.py", "#app.py#", "4913", "lib/.DS_Store"]
    write(tmp_path, **dict.fromkeys([*kept, *out, *transient], "x"))
    assert names(pack(tmp_path)) == kept
    for name in [*kept, *out, *transient]:
        assert is_part(Path(name)) is (name in kept)


def test_the_same_files_make_the_same_zip(tmp_path: Path) -> None:
    write(tmp_path, **{"app.py": "x = 1\n", "run.sh": "#!/bin/sh\n"})
    (tmp_path / "run.sh").chmod(0o755)
    before = pack(tmp_path)
    os.utime(tmp_path / "app.py", (1, 1))
    assert pack(tmp_path) == before
    with zipfile.ZipFile(io.BytesIO(before)) as archive:
        assert archive.getinfo("run.sh").external_attr >> 16 == 0o755
    (tmp_path / "app.py").write_text("x = 2\n")
    assert pack(tmp_path) != before


def test_a_large_folder_is_compressed(tmp_path: Path) -> None:
    write(tmp_path, **{"app.py": "x = 1\n"})
    with (tmp_path / "zeros").open("wb") as file:
        file.truncate(17 * 1_048_576)
    assert len(pack(tmp_path)) < 1_000_000


def test_a_file_and_a_zip(tmp_path: Path) -> None:
    write(tmp_path, **{"one.py": "x = 1\n"})
    raw = pack(tmp_path / "one.py")
    assert names(raw) == ["one.py"]
    (tmp_path / "z.zip").write_bytes(raw)
    assert pack(tmp_path / "z.zip") == raw


@pytest.mark.parametrize("deep", ["node_modules/a/b/c", ".git/objects", "lib/__pycache__"])
def test_folders_to_watch(tmp_path: Path, deep: str) -> None:
    (tmp_path / deep).mkdir(parents=True)
    (tmp_path / "lib" / "more").mkdir(parents=True)
    expected = {".", "lib", "lib/more"} | ({"node_modules"} if deep.startswith("node_modules") else set())
    assert {str(folder.relative_to(tmp_path)) for folder in folders_of(tmp_path)} == expected
