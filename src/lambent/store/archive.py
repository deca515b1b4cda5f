"""Unpack a function's zip, which a stranger made, into a directory.

Everything in the file is hostile until checked. What holds when `unpack` returns:

* nothing was written outside the directory, and no symbolic link in it leads out of it;
* it holds directories (755), files (the zip's rwx bits, at least 644) and links; no set-uid, no devices;
* at most `unzipped_max_bytes` were inflated and at most `entries_max` entries read, whatever the headers
  claim.

Otherwise it raises an ApiError in AWS's words and the caller throws the directory away. Blocking; run it in a
thread.
"""

from __future__ import annotations

import calendar
import errno
import io
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from lambent.model import limits
from lambent.model.errors import ApiError, InvalidParameterValue

COULD_NOT_UNZIP = "Could not unzip uploaded file. Please check your file, then try to upload again."
EMPTY_ZIP = "Uploaded file must be a non-empty zip"

_CHUNK_BYTES = 1 << 18
_LINK_TARGET_MAX_BYTES = 4_096
#: Directories in each other. Removing a tree recurses, and Python ends that at 1,000.
_DEPTH_MAX = 200
_FLAG_ENCRYPTED = 0x1
#: Others (bzip2, LZMA with its dictionary as large as the header likes) are nothing that Lambda takes.
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_CENTRAL_ENTRY = b"PK\x01\x02"
#: Errors of the file system that only a strange name or an impossible tree can cause.
_NAME_ERRNOS = frozenset(
    {errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.EILSEQ}
)
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    struct.error,
)


def unpack(
    data: bytes,
    into: Path,
    *,
    unzipped_max_bytes: int = limits.UNZIPPED_MAX_BYTES,
    entries_max: int = limits.ZIP_ENTRIES_MAX,
) -> int:
    """Unpack the zip `data` into the existing empty directory `into`; the bytes that were inflated."""
    try:
        # Every entry costs memory when the directory is parsed, so they are counted before. A stored zip
        # inside the zip counts too: that errs on the safe side.
        if data.count(_CENTRAL_ENTRY) > entries_max:
            raise _refused()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return _Unpacking(archive, into, unzipped_max_bytes).run()
    except ApiError:
        raise
    except OSError as error:
        if error.errno in _NAME_ERRNOS:
            raise _refused() from error
        raise
    except _BROKEN as error:  # UnicodeError is a ValueError
        raise _refused() from error


def _refused() -> InvalidParameterValue:
    return InvalidParameterValue(COULD_NOT_UNZIP)


class _Unpacking:
    """One run of `unpack`. Links are made last, so that nothing is ever written through one."""

    def __init__(self, archive: zipfile.ZipFile, into: Path, unzipped_max_bytes: int) -> None:
        self._archive = archive
        self._into = into
        self._max_bytes = unzipped_max_bytes
        self._inflated_bytes = 0
        self._links: dict[str, str] = {}
        self._directories: dict[str, zipfile.ZipInfo] = {}
        self._made: set[str] = {""}

    def run(self) -> int:
        entries = self._archive.infolist()
        if not entries:
            raise InvalidParameterValue(EMPTY_ZIP)
        if sum(entry.file_size for entry in entries) > self._max_bytes:
            raise self._too_large()
        checked = [(_checked_path(entry), _kind(entry), entry) for entry in entries]
        for path, kind, entry in checked:
            if kind == stat.S_IFLNK:
                self._links[path] = self._link_target(entry)
        for path, kind, entry in checked:
            if kind == stat.S_IFDIR:
                self._make_directory(path)
                self._directories[path] = entry
            elif kind == stat.S_IFREG:
                self._write_file(path, entry)
        for path, target in self._links.items():
            self._make_link(path, target)
        self._check_links()
        for path, entry in self._directories.items():
            _set_mtime(self._into / path, entry)
        return self._inflated_bytes

    def _too_large(self) -> InvalidParameterValue:
        return InvalidParameterValue(f"Unzipped size must be smaller than {self._max_bytes} bytes")

    def _make_directory(self, path: str) -> None:
        """Make `path` and its parents, with mode 755 whatever the umask, refusing any that is a link or a
        file."""
        missing = []
        while path not in self._made:
            if path in self._links:
                raise _refused()
            missing.append(path)
            path = path.rpartition("/")[0]
        for name in reversed(missing):
            os.mkdir(self._into / name)
            os.chmod(self._into / name, 0o755)
            self._made.add(name)

    def _write_file(self, path: str, entry: zipfile.ZipInfo) -> None:
        self._make_directory(path.rpartition("/")[0])
        if path in self._links:
            raise _refused()  # the same name as a file and as a link: no order is right
        target = self._into / path
        # The same name twice: the later one counts, as with unzip.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        written = 0
        with os.fdopen(os.open(target, flags, 0o600), "wb") as file, self._archive.open(entry) as source:
            while chunk := source.read(_CHUNK_BYTES):
                written += len(chunk)
                self._count(len(chunk))
                file.write(chunk)
            os.fchmod(file.fileno(), _file_mode(entry))
        if written != entry.file_size:
            raise _refused()
        _set_mtime(target, entry)

    def _count(self, inflated_bytes: int) -> None:
        self._inflated_bytes += inflated_bytes
        if self._inflated_bytes > self._max_bytes:
            raise self._too_large()

    def _link_target(self, entry: zipfile.ZipInfo) -> str:
        if not 0 < entry.file_size <= _LINK_TARGET_MAX_BYTES:
            raise _refused()
        with self._archive.open(entry) as source:
            raw = source.read(_LINK_TARGET_MAX_BYTES)
        self._count(len(raw))
        target = raw.decode("utf-8")
        if len(raw) != entry.file_size or "\0" in target or target.startswith("/"):
            raise _refused()
        return target

    def _make_link(self, path: str, target: str) -> None:
        self._make_directory(path.rpartition("/")[0])
        os.symlink(target, self._into / path)

    def _check_links(self) -> None:
        """Every link, followed for real through all others, must end inside the tree.

        Reading the paths is not enough: `a/b/link/../..` climbs from where `link` leads, not from where it
        stands.
        """
        root = os.path.realpath(self._into)
        for path in self._links:
            end = os.path.realpath(os.path.join(root, path))
            if end != root and not end.startswith(root + os.sep):
                raise _refused()


def _checked_path(entry: zipfile.ZipInfo) -> str:
    """The entry's path below the root, without empty and "." parts; refused when it could lead elsewhere."""
    # What the entry calls itself: ZipInfo.filename is already cut at a zero byte.
    name = entry.orig_filename
    if name.startswith("/") or "\\" in name or "\0" in name or (len(name) > 1 and name[1] == ":"):
        raise _refused()
    parts = PurePosixPath(name).parts
    if ".." in parts or len(parts) > _DEPTH_MAX or (not parts and not name.endswith("/")):
        raise _refused()
    return "/".join(parts)


def _kind(entry: zipfile.ZipInfo) -> int:
    """S_IFDIR, S_IFREG or S_IFLNK; anything else that a mode can say is refused, and so is what we cannot
    read."""
    if entry.flag_bits & _FLAG_ENCRYPTED or entry.compress_type not in _METHODS:
        raise _refused()
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if entry.orig_filename.endswith("/"):
        if kind not in (0, stat.S_IFDIR):
            raise _refused()
        return stat.S_IFDIR
    if kind == 0:
        return stat.S_IFREG
    if kind not in (stat.S_IFREG, stat.S_IFLNK):
        raise _refused()
    return kind


def _file_mode(entry: zipfile.ZipInfo) -> int:
    """The zip's permissions, always writable by the owner and readable by others: functions have their own
    uid."""
    return (entry.external_attr >> 16) & 0o777 | 0o644


def _set_mtime(path: Path, entry: zipfile.ZipInfo) -> None:
    try:
        seconds = calendar.timegm(entry.date_time)
    except ValueError:
        return  # zips made reproducible carry month 0, day 0
    os.utime(path, (seconds, seconds))
