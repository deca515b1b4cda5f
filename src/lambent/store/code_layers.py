"""One tree out of the trees of several layers, as a function sees them in /opt.

The layers are laid in one after the other; what comes later overwrites. A directory over a directory is a merge of
both; anything else with the same name replaces what was there, whole trees and links too. Links of a layer are never
followed, only copied, so nothing is written outside the tree; as layers can bend each other's links, the links of the
finished tree are checked again.

Files are hard links to those of the layers' own trees, which no function can write: a merge costs no space and keeps
modes and times. Where the file system refuses one more link, the file is copied. Blocking; run it in a thread.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from lambent.model.errors import InvalidParameterValue

#: What folders of merged layers begin with, beside the trees that are named by a digest alone.
PREFIX = "opt-"


def folder_name(layers: Iterable[str]) -> str:
    """The name of the tree that the zips with these digests make, in this order."""
    return PREFIX + hashlib.sha256("".join(layers).encode()).hexdigest()


def merge(trees: Sequence[Path], into: Path) -> None:
    """Lay `trees` into the existing empty directory `into`, in their order.

    Raises InvalidParameterValue when together they make a symbolic link that leads out of the tree.
    """
    links: set[str] = set()
    for tree in trees:
        _lay(os.fspath(tree), os.fspath(into), links)
    root = os.path.realpath(into)
    for path in links:
        end = os.path.realpath(path)
        if os.path.islink(path) and end != root and not end.startswith(root + os.sep):
            raise InvalidParameterValue(
                f"The layers together make a symbolic link that leads out of /opt: {os.path.relpath(path, into)}"
            )


def _lay(source: str, target: str, links: set[str]) -> None:
    """Lay what is in the directory `source` into the directory `target`; note the symbolic links made."""
    with os.scandir(source) as found:
        entries = list(found)
    for entry in entries:
        path = os.path.join(target, entry.name)
        if entry.is_dir(follow_symlinks=False):
            if os.path.islink(path) or not os.path.isdir(path):
                _remove(path)
                os.mkdir(path)
                os.chmod(path, 0o755)  # whatever the umask
            _lay(entry.path, path, links)
            continue
        _remove(path)
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), path)
            links.add(path)
        else:
            _link_file(entry.path, path)
    changed_ns = os.stat(source).st_mtime_ns
    os.utime(target, ns=(changed_ns, changed_ns))


def _link_file(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # EMLINK, EPERM and what else file systems say
        shutil.copy2(source, target, follow_symlinks=False)


def _remove(path: str) -> None:
    """Remove whatever has this name, if anything has."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):  # Linux says the first, other systems the second
        shutil.rmtree(path)
