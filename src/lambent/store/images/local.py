"""Images on this machine: OCI layouts, archives, and plain folders.

An API caller names the path, and the server reads it: so only below the folders that the operator has named,
and never through a symbolic link (each part of the path is opened by itself, so that nothing can be swapped
meanwhile). Contents are checked against their digests like those of a registry.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import msgspec

from lambent.store.images import layer as layers
from lambent.store.images.budget import Budget
from lambent.store.images.errors import Broken, Denied, Missing, NotAllowed
from lambent.store.images.manifest import (
    JSON_MAX_BYTES,
    LAYERS_MAX,
    Descriptor,
    FoundImage,
    Index,
    Layer,
    RunSettings,
    choose,
    digest_of,
    layers_of,
    parse_config,
    parse_manifest,
    settings_of,
)
from lambent.store.images.reference import LocalKind, LocalReference
from lambent.store.images.rootfs import Rootfs
from lambent.store.images.source import Source

_REF_NAME = "org.opencontainers.image.ref.name"
_MEMBERS_MAX = 100_000
#: What tarfile may read at once of an archive: a member's header with everything that belongs to it.
_READ_MAX_BYTES = 4 << 20
_DEPTH_MAX = 200


def open_source(reference: LocalReference, allowed: Sequence[Path]) -> Source:
    """Raises NotAllowed, Missing, Denied or Broken."""
    handle = _open_allowed(reference, allowed)
    try:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        if is_folder != (reference.kind in (LocalKind.OCI, LocalKind.DIR)):
            raise Broken(f"{reference.kind}: takes a {'file' if is_folder else 'folder'}")
        match reference.kind:
            case LocalKind.DIR:
                return _Folder(handle, reference)
            case LocalKind.OCI:
                return _Layout(_FolderFiles(handle), reference)
            case LocalKind.OCI_ARCHIVE:
                return _Layout(_ArchiveFiles(handle), reference)
            case LocalKind.DOCKER_ARCHIVE:
                return _DockerArchive(_ArchiveFiles(handle), reference)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise


def _open_allowed(reference: LocalReference, allowed: Sequence[Path]) -> int:
    for base in allowed:
        if os.path.commonpath([base, reference.path]) == os.fspath(base):
            parts = reference.path[len(os.fspath(base)) :].strip("/").split("/")
            try:
                with _opened_folder(os.fspath(base)) as root:
                    return _open_beneath(root, [part for part in parts if part])
            except FileNotFoundError as error:
                raise Missing(f"there is no {reference.path}") from error
    raise NotAllowed(
        "Lambent reads images of this machine only below the folders that it was started with "
        f"({', '.join(map(str, allowed)) or 'none'}): use --image-dir FOLDER."
    )


@contextlib.contextmanager
def _opened_folder(path: str) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_beneath(root: int, parts: Sequence[str]) -> int:
    """Open what `parts` lead to from the folder `root`, without following a link. The caller closes it."""
    here = os.dup(root)
    try:
        for part in parts:
            # O_NONBLOCK: a pipe with that name must not stop us.
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = below
        if not (stat.S_ISREG(os.fstat(here).st_mode) or stat.S_ISDIR(os.fstat(here).st_mode)):
            raise Broken(f"{'/'.join(parts)} is neither a file nor a folder")
        return here
    except BaseException as error:
        os.close(here)
        if isinstance(error, PermissionError):
            raise Denied(f"{'/'.join(parts)} can not be read by the server") from error
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            # A symbolic link in the path, or a file where a folder should be.
            raise Broken(f"{'/'.join(parts)}: {error.strerror}; symbolic links are not followed") from error
        raise


# --- files by name: a folder, or an archive ----------------------------------------------------------------


class _Files(Protocol):
    def open(self, name: str) -> BinaryIO:
        """Raises Broken when it is not there."""

    def close(self) -> None: ...


def _read(files: _Files, name: str) -> bytes:
    with files.open(name) as file:
        data = file.read(JSON_MAX_BYTES + 1)
    if len(data) > JSON_MAX_BYTES:
        raise Broken(f"{name} is too large")
    return data


class _FolderFiles:
    def __init__(self, root: int) -> None:
        self._root = root

    def open(self, name: str) -> BinaryIO:
        try:
            return os.fdopen(_open_beneath(self._root, name.split("/")), "rb")
        except FileNotFoundError as error:
            raise Broken(f"there is no {name} in it") from error
        except IsADirectoryError as error:
            raise Broken(f"{name} is a folder") from error

    def close(self) -> None:
        os.close(self._root)


class _CappedFile(io.FileIO):
    """tarfile reads as much as a header says; not here."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _READ_MAX_BYTES:
            raise Broken("an archive with a header that is too long")
        return super().read(size) or b""


class _ArchiveFiles:
    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._file = _CappedFile(handle, "r", closefd=False)
        try:
            # Any: any object with read, seek and tell.
            source: Any = self._file
            self._archive = tarfile.open(  # noqa: SIM115 - until close()
                fileobj=source, mode="r:", encoding="utf-8", errors="surrogateescape"
            )
            self._members: dict[str, tarfile.TarInfo] = {}
            for entry in self._archive:
                if len(self._members) >= _MEMBERS_MAX:
                    raise Broken("an archive of too many files")
                self._members[entry.name.removeprefix("./")] = entry
        except (tarfile.TarError, ValueError, RecursionError, OSError) as error:
            raise Broken(f"an archive that can not be read ({error}); it must be a tar, not compressed") from error

    def open(self, name: str) -> BinaryIO:
        try:
            file = self._archive.extractfile(self._members[name])
        except (KeyError, tarfile.TarError, RecursionError) as error:
            raise Broken(f"there is no {name} in it") from error
        if file is None:
            raise Broken(f"{name} is no file")
        return io.BufferedReader(_Errors(file))

    def close(self) -> None:
        self._archive.close()
        os.close(self._handle)


class _Errors(io.RawIOBase):
    """A member of an archive whose bytes end too early, or are links in a circle."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        try:
            data = self._file.read(min(len(buffer), _READ_MAX_BYTES))
        except (tarfile.TarError, RecursionError, ValueError) as error:
            raise Broken(f"an archive that can not be read ({error})") from error
        buffer[: len(data)] = data
        return len(data)


# --- OCI layouts -------------------------------------------------------------------------------------------


class _Layout:
    """A folder or archive with `index.json` and `blobs`."""

    def __init__(self, files: _Files, reference: LocalReference) -> None:
        self._files = files
        self._reference = reference

    def find(self, architecture: str) -> FoundImage:
        digest = self._reference.digest or self._tagged(architecture).digest
        for _ in range(3):  # an index may name indexes
            manifest = parse_manifest(self._blob(digest))
            if not isinstance(manifest, Index):
                config = parse_config(self._blob(manifest.config.digest))
                return FoundImage(digest, settings_of(config, architecture), layers_of(manifest))
            digest = choose(manifest.manifests, architecture).digest
        raise Broken("indexes of indexes of indexes")

    def _tagged(self, architecture: str) -> Descriptor:
        index = parse_manifest(_read(self._files, "index.json"))
        if not isinstance(index, Index):
            raise Broken("index.json is no index")
        tag = self._reference.tag
        found = [each for each in index.manifests if tag is None or (each.annotations or {}).get(_REF_NAME) == tag]
        if not found:
            raise Missing(f"the layout has no image {tag}" if tag else "the layout is empty")
        if len(found) == 1:
            return found[0]
        if len({each.digest for each in found}) > 1 and any(each.platform is None for each in found):
            raise Broken("the layout has several images: name a tag or a digest")
        return choose(found, architecture)

    def unpack(self, image: FoundImage, rootfs: Rootfs, scratch: Path, budget: Budget) -> None:
        budget.announce(sum(each.size or 0 for each in image.layers))
        for each in image.layers:
            with self._files.open(_blob_path(each.name)) as file:
                layers.unpack(file, each, rootfs, budget)

    def _blob(self, digest: str) -> bytes:
        try:
            data = _read(self._files, _blob_path(digest))
        except Broken as error:
            if digest == self._reference.digest:
                raise Missing(str(error)) from error
            raise
        if digest_of(data) != digest:
            raise Broken(f"{digest} is not what its digest says")
        return data

    def close(self) -> None:
        self._files.close()


def _blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/', 1)}"


# --- docker save -------------------------------------------------------------------------------------------


class _SavedImage(msgspec.Struct, rename="pascal"):
    config: str
    layers: list[str]


class _DockerArchive:
    """`docker save`. It has no manifest with a digest; the image's ID, the digest of its configuration, names all
    of its contents just as well, for the configuration lists the digests of the layers."""

    def __init__(self, files: _Files, reference: LocalReference) -> None:
        self._files = files
        self._reference = reference

    def find(self, architecture: str) -> FoundImage:
        try:
            saved = msgspec.json.decode(_read(self._files, "manifest.json"), type=list[_SavedImage])
        except msgspec.DecodeError as error:
            raise Broken(f"manifest.json can not be read: {error}") from error
        wanted, configs = self._reference.digest, [_read(self._files, each.config) for each in saved]
        found = [(each, data) for each, data in zip(saved, configs, strict=True) if wanted in (None, digest_of(data))]
        if not found:
            raise Missing("the archive has no such image")
        if len(found) > 1:
            raise Broken("the archive has several images: name one by @sha256: and its ID")
        (image, data) = found[0]
        config = parse_config(data)
        ids = (config.rootfs.diff_ids if config.rootfs else None) or []
        if len(ids) != len(image.layers) or len(ids) > LAYERS_MAX:
            raise Broken("its configuration does not name its layers")
        pairs = zip(image.layers, ids, strict=True)
        return FoundImage(
            digest_of(data), settings_of(config, architecture), tuple(Layer(name, diff_id=each) for name, each in pairs)
        )

    def unpack(self, image: FoundImage, rootfs: Rootfs, scratch: Path, budget: Budget) -> None:
        for each in image.layers:
            with self._files.open(each.name) as file:
                layers.unpack(file, each, rootfs, budget)

    def close(self) -> None:
        self._files.close()


# --- a folder as it is -------------------------------------------------------------------------------------


class _Entry(NamedTuple):
    path: str
    name: str
    #: An open folder that `name` is in.
    folder: int
    found: os.stat_result


class _Folder:
    """A folder that is the root file system. Its digest is one of all names, modes and contents."""

    def __init__(self, handle: int, reference: LocalReference) -> None:
        self._handle = handle
        self._reference = reference

    def find(self, architecture: str) -> FoundImage:
        digest = self._reference.digest or self._copy(None, Budget())
        return FoundImage(digest, RunSettings())

    def unpack(self, image: FoundImage, rootfs: Rootfs, scratch: Path, budget: Budget) -> None:
        if self._copy(rootfs, budget) != image.digest:
            raise Missing("the folder has changed since")

    def _copy(self, rootfs: Rootfs | None, budget: Budget) -> str:
        """Read everything, into `rootfs` if there is one; the digest of it."""
        total = hashlib.sha256()
        for entry in self._entries():
            budget.entry()
            mode, target = stat.S_IMODE(entry.found.st_mode), ""
            contents = hashlib.sha256()
            if stat.S_ISLNK(entry.found.st_mode):
                target, mode = os.readlink(entry.name, dir_fd=entry.folder), 0
                if rootfs is not None:
                    rootfs.link(entry.path, target)
            elif stat.S_ISDIR(entry.found.st_mode):
                if rootfs is not None:
                    rootfs.folder(entry.path, mode)
            elif stat.S_ISREG(entry.found.st_mode):
                chunks = self._chunks(entry, contents, budget)
                if rootfs is not None:
                    rootfs.file(entry.path, mode, chunks, entry.found.st_mtime)
                else:
                    for _ in chunks:
                        pass
            else:
                continue
            kind = stat.S_IFMT(entry.found.st_mode)
            total.update(json.dumps([entry.path, kind, mode, target, contents.hexdigest()]).encode())
        return f"sha256:{total.hexdigest()}"

    def _entries(self) -> Iterator[_Entry]:
        for top, folders, files, handle in os.fwalk(".", dir_fd=self._handle, onerror=_stop):
            if top.count("/") >= _DEPTH_MAX:
                raise Broken("folders too deep in each other")
            folders.sort()
            for name in sorted([*folders, *files]):
                found = os.stat(name, dir_fd=handle, follow_symlinks=False)
                yield _Entry(f"{top}/{name}"[2:], name, handle, found)

    def _chunks(self, entry: _Entry, contents: Any, budget: Budget) -> Iterator[bytes]:
        with os.fdopen(_open_beneath(entry.folder, [entry.name]), "rb") as file:
            while chunk := file.read(layers.CHUNK_BYTES):
                contents.update(chunk)
                budget.take(len(chunk))
                yield chunk

    def close(self) -> None:
        os.close(self._handle)


def _stop(error: OSError) -> None:
    raise Denied(f"{error.filename} can not be read by the server: {error.strerror}") from error
