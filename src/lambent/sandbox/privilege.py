"""Giving up root: the server (HTTP, API, logs) runs as an ordinary user; only the launcher keeps its rights.

The program itself may lie where ordinary users can not go (an interpreter or a checkout below /root): the server then
gets a mount namespace of its own in which exactly those folders can be reached.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from lambent.runtimes.sandbox import linux

#: An id that no distribution gives out; LAMBENT_UID chooses another.
DEFAULT_UID = 64_999


def server_uid(data_dir: Path) -> int:
    """Who to become: LAMBENT_UID, else the owner of an existing data folder, else DEFAULT_UID."""
    chosen = os.environ.get("LAMBENT_UID")
    if chosen is not None:
        return int(chosen)
    owner = data_dir.stat().st_uid if data_dir.exists() else 0
    return owner or DEFAULT_UID


def own(folder: Path, uid: int) -> None:
    """Make the data folder, and what an earlier run as root left in it, the server's."""
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_uid == uid:
        return
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.lchown(os.path.join(top, name), uid, uid)
    os.chown(folder, uid, uid)


def become(uid: int, needed: list[Path]) -> None:
    """Change to `uid` for good. `needed`: folders that must stay readable. Raises OSError when that can not be had."""
    hidden = [path for path in needed if _first_closed_parent(path) is not None]
    if hidden:
        _open_a_way(hidden)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.environ["HOME"] = "/nonexistent"
    for path in needed:
        if not os.access(path, os.R_OK | os.X_OK):
            raise PermissionError(13, f"{path} can not be read by user {uid}", str(path))


def _first_closed_parent(path: Path) -> Path | None:
    for parent in reversed(path.parents):
        if not parent.stat().st_mode & stat.S_IXOTH:
            return parent
    return None


def _open_a_way(paths: list[Path]) -> None:
    """In a new mount namespace, replace each closed folder by an empty one that holds only what is needed."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_PRIVATE)
    handles = {path: os.open(path, os.O_PATH) for path in paths}
    replaced: list[Path] = []
    for closed in sorted({parent for path in paths if (parent := _first_closed_parent(path)) is not None}):
        if not any(closed.is_relative_to(other) for other in replaced):
            linux.mount("tmpfs", str(closed), "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755,size=1m")
            replaced.append(closed)
    for path, handle in handles.items():
        path.mkdir(parents=True, exist_ok=True)
        linux.mount(f"/proc/self/fd/{handle}", str(path), None, linux.MS_BIND)
        os.close(handle)
