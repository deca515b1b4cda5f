"""A root file system under construction, from layers that a stranger made.

What holds at any moment, whatever the names say:

* nothing outside the folder is written, read, linked or removed. A link in the path of an entry is followed as
  it would be inside the container: an absolute one begins at the image's root, and `..` stops there;
* no devices, no set-uid; files and folders belong to the server's user, with the image's permissions for the
  others, which is what a function is. Folders stay usable for the owner, who has to delete them one day.

Nobody else may write in the folder meanwhile: paths are looked at before they are used. Raises Broken.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from lambent.store.images.budget import Budget
from lambent.store.images.errors import Broken

#: Folders in each other. Removing a tree recurses, and Python ends that at 1,000.
_DEPTH_MAX = 200
_LINKS_MAX = 40
WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_META = ".wh..wh."
#: What the sandbox mounts on or writes: real folders and files in every image, never links.
_MOUNT_FOLDERS = ("proc", "sys", "dev", "dev/shm", "tmp", "etc")
#: Empty files that the machine's devices are mounted on.
_DEVICES = ("dev/null", "dev/zero", "dev/full", "dev/random", "dev/urandom")
_DEVICE_LINKS = {"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}
_MOUNT_FILES = ("etc/resolv.conf", "etc/hosts", *_DEVICES)
#: Of AWS's contract with code, but the image may have them where it likes.
_EXPECTED_FOLDERS = ("var/task", "opt")
#: Errors of the file system that only a strange name or an impossible tree can cause.
_NAME_ERRNOS = frozenset(
    {
        *(errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EILSEQ),
        *(errno.EMLINK, errno.ENOENT),
    }
)


class Rootfs:
    """The tree below `root`, an existing empty folder. Paths are those of tar entries: relative to it."""

    def __init__(self, root: Path, budget: Budget) -> None:
        self._root = os.fspath(root)
        self._budget = budget
        #: What the layer in progress has made, with all folders above: its whiteouts do not mean that.
        self._made: set[str] = set()
        #: Folders as entries name them -> where they really are. Forgotten when that may have changed.
        self._real: dict[str, str] = {}

    # --- building ----------------------------------------------------------------------------------------

    def begin_layer(self) -> None:
        self._made.clear()

    def folder(self, name: str, mode: int) -> None:
        """A folder, or another mode for one that is there."""
        with _refusing(name):
            path = self._place(name)
            if path:
                found = self._look(path)
                if found is None or not stat.S_ISDIR(found.st_mode):
                    self._remove(path)
                    os.mkdir(self._at(path))
            os.chmod(self._at(path), (mode & 0o1777) | 0o700)
            self._note(path)

    def file(self, name: str, mode: int, chunks: Iterable[bytes], mtime_s: float) -> None:
        with _refusing(name):
            path = self._fresh(name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self._at(path), flags, 0o600), "wb", buffering=0) as file:
                for chunk in chunks:
                    left = memoryview(chunk)
                    while left:
                        left = left[file.write(left) :]
                os.fchmod(file.fileno(), mode & 0o777)
                # Interpreters compare the times of sources and what they have compiled of them.
                with contextlib.suppress(OverflowError, ValueError, OSError):
                    os.utime(file.fileno(), (mtime_s, mtime_s))
            self._note(path)

    def link(self, name: str, target: str) -> None:
        """A symbolic link. Where it leads is the container's business: nothing here goes through it unaware."""
        with _refusing(name):
            if not target or "\0" in target:
                raise Broken(f"{name!r}: a link to nowhere")
            path = self._fresh(name)
            os.symlink(target, self._at(path))
            self._real.clear()
            self._note(path)

    def hard_link(self, name: str, target: str) -> None:
        """Another name for a file that is there."""
        with _refusing(name):
            source = self._place(target, create=False)
            found = self._look(source)
            if found is None or not (stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)):
                raise Broken(f"{name!r}: a hard link to what is no file")
            if self._place(name) == source:
                self._note(source)
                return
            path = self._fresh(name)
            if self._look(source) is None:
                raise Broken(f"{name!r}: a hard link to what it replaces")
            os.link(self._at(source), self._at(path), follow_symlinks=False)
            self._real.clear()
            self._note(path)

    def whiteout(self, name: str) -> None:
        """An entry that says what of the layers below is gone."""
        with _refusing(name):
            folder, _, last = name.rstrip("/").rpartition("/")
            if last == _OPAQUE:
                where = self._resolve(_checked(folder))
                found = self._look(where)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    for child in os.listdir(self._at(where)):
                        self._remove_lower(f"{where}/{child}" if where else child)
                return
            if last.startswith(_META):
                return  # AUFS's own bookkeeping
            gone = last.removeprefix(WHITEOUT)
            if gone in ("", ".", ".."):
                raise Broken(f"{name!r}: a whiteout of nothing")
            self._remove_lower(self._place(f"{folder}/{gone}", create=False))

    def finish(self) -> None:
        """Make what the sandbox mounts on, and open the root itself for everybody."""
        self.begin_layer()
        with _refusing("mount points"):
            # Nothing that an image has in /dev is a device here.
            self._remove("dev")
            for path in _MOUNT_FOLDERS:
                found = self._look(path)
                if found is None or not stat.S_ISDIR(found.st_mode):
                    self._remove(path)
                    os.mkdir(self._at(path), 0o755)
                    os.chmod(self._at(path), 0o755)
            for path in _MOUNT_FILES:
                found = self._look(path)
                if found is None or not stat.S_ISREG(found.st_mode):
                    self.file(path, 0o644, (), 0.0)
            for name, target in _DEVICE_LINKS.items():
                self.link(f"dev/{name}", target)
            for path in _EXPECTED_FOLDERS:
                if self._look(self._resolve(path)) is None:
                    self._make_folders(self._resolve(path))
            os.chmod(self._root, stat.S_IMODE(os.stat(self._root).st_mode) | 0o755)

    # --- where things are --------------------------------------------------------------------------------

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _look(self, path: str) -> os.stat_result | None:
        try:
            return os.lstat(self._at(path))
        except FileNotFoundError:
            return None

    def _place(self, name: str, *, create: bool = True) -> str:
        """Where an entry goes: its folder followed through links, its own name not. "" is the root."""
        name = _checked(name)
        if not name:
            return ""
        folder, _, last = name.rpartition("/")
        real = self._real.get(folder)
        if real is None:
            real = self._resolve(folder)
            if create:
                self._make_folders(real)
                self._real[folder] = real
        return f"{real}/{last}" if real else last

    def _fresh(self, name: str) -> str:
        """As `_place`, with nothing there any more."""
        path = self._place(name)
        if not path:
            raise Broken("the root is no folder")
        self._remove(path)
        return path

    def _resolve(self, path: str) -> str:
        """Where the folder `path` really is, followed inside the tree; parts that are not there are taken as
        they are."""
        real: list[str] = []
        left = path.split("/")[::-1]
        links = 0
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del real[-1:]
                continue
            real.append(part)
            if len(real) > _DEPTH_MAX:
                raise Broken("folders too deep in each other")
            try:
                target = os.readlink(self._at("/".join(real)))
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                    continue  # no link
                raise
            links += 1
            if links > _LINKS_MAX:
                raise Broken("links that lead nowhere")
            real = [] if target.startswith("/") else real[:-1]
            left.extend(reversed(target.split("/")))
        return "/".join(real)

    def _make_folders(self, real: str) -> None:
        parts = real.split("/") if real else []
        for end in range(1, len(parts) + 1):
            path = "/".join(parts[:end])
            found = self._look(path)
            if found is None:
                os.mkdir(self._at(path))
                os.chmod(self._at(path), 0o755)
                self._budget.entry()
            elif not stat.S_ISDIR(found.st_mode):
                raise Broken(f"{path!r} is a file and a folder")

    def _note(self, path: str) -> None:
        while path and path not in self._made:
            self._made.add(path)
            path = path.rpartition("/")[0]

    # --- removing ----------------------------------------------------------------------------------------

    def _remove(self, path: str) -> None:
        found = self._look(path)
        if found is None:
            return
        if stat.S_ISDIR(found.st_mode):
            shutil.rmtree(self._at(path))
            self._real.clear()
        else:
            os.unlink(self._at(path))
            if stat.S_ISLNK(found.st_mode):
                self._real.clear()

    def _remove_lower(self, path: str) -> None:
        """Remove what earlier layers have put at `path`, and keep what this one has."""
        if not path:
            raise Broken("a whiteout of the root")
        if path not in self._made:
            self._remove(path)
            return
        found = self._look(path)
        if found is not None and stat.S_ISDIR(found.st_mode):
            for child in os.listdir(self._at(path)):
                self._remove_lower(f"{path}/{child}")


def _checked(name: str) -> str:
    """The name of an entry without empty and "." parts. `..` is in no image that a tool made."""
    if "\0" in name:
        raise Broken(f"{name!r} is no name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Broken(f"{name!r} leads out of the image")
    if len(parts) > _DEPTH_MAX:
        raise Broken("folders too deep in each other")
    return "/".join(parts)


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _NAME_ERRNOS:
            raise Broken(f"{name!r}: {error.strerror}") from error
        raise
    except UnicodeError as error:
        raise Broken(f"{name!r} is no name") from error
