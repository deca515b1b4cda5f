"""The zip of a folder that is being worked on: made again after every save, so made fast, and the same for the same
files."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lambent.cli.deploying import SKIPPED

#: What editors and file managers leave beside a file for a moment.
_TRANSIENT = re.compile(r".*~|\..*\.sw[a-z]|\.#.*|#.*#|4913|\.DS_Store|.*___jb_(tmp|old)___")
#: Up to here files are stored as they are: the zip goes no further than this machine, and compressing takes longer than
#: sending. Beyond, it must stay below Lambda's limit for zips in a request.
_STORED_MAX_BYTES = 16 * 1_048_576
#: Names of the files in a zip, with something that tells two versions of one apart.
Contents = frozenset[tuple[str, int]]
_DATE = (1980, 1, 1, 0, 0, 0)


def is_part(relative: Path) -> bool:
    """Whether a file at this place in a folder belongs to the function."""
    return not (SKIPPED & set(relative.parts) or _TRANSIENT.fullmatch(relative.name))


def folders_of(root: Path) -> Iterator[Path]:
    """The folder and those below that are worth watching: what is in node_modules is part of the function, and changes
    as a whole."""
    for folder, names, _ in os.walk(root):
        here = Path(folder)
        yield here
        names[:] = [] if here.name == "node_modules" else [name for name in names if name not in SKIPPED]


def pack(path: Path) -> bytes:
    """The zip of a file or a folder; of a zip, itself. Raises OSError."""
    if path.suffix == ".zip":
        return path.read_bytes()
    if path.is_file():
        files = [(path.name, path)]
    else:
        files = sorted(_files_of(path))
    held = [(name, file, file.stat()) for name, file in files]
    small = sum(found.st_size for _, _, found in held) <= _STORED_MAX_BYTES
    buffer = io.BytesIO()
    method = zipfile.ZIP_STORED if small else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for name, file, found in held:
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = stat.S_IMODE(found.st_mode) << 16
            entry.compress_type = archive.compression
            archive.writestr(entry, file.read_bytes())
    return buffer.getvalue()


def contents_of(code: bytes) -> Contents:
    """What two zips can be compared by. Raises BadZipFile."""
    with zipfile.ZipFile(io.BytesIO(code)) as archive:
        return frozenset((entry.filename, entry.CRC ^ entry.external_attr) for entry in archive.infolist())


def _files_of(root: Path) -> Iterator[tuple[str, Path]]:
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if name not in SKIPPED]
        here = Path(folder)
        for name in files:
            file = here / name
            if not _TRANSIENT.fullmatch(name) and file.is_file():
                yield file.relative_to(root).as_posix(), file
