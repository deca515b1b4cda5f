"""One layer: a tar, perhaps compressed, read once from front to back, checked, and applied to a root file system.

`tarfile` reads the headers. It believes them, so the bytes that it may read for one header are counted here.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import importlib
import tarfile
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from lambent.store.images.budget import Budget
from lambent.store.images.errors import Broken, SourceError
from lambent.store.images.manifest import Layer
from lambent.store.images.rootfs import WHITEOUT, Rootfs

CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 16
#: Long names, extended attributes, and the block that tarfile reads ahead.
_HEADER_MAX_BYTES = 2 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_ZSTD_WINDOW_MAX_BYTES = 128 << 20


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


def unpack(raw: Readable, layer: Layer, rootfs: Rootfs, budget: Budget) -> None:
    """Apply the layer that `raw` gives. Raises Broken: then the tree is worth nothing any more."""
    stored = _Stored(raw, layer)
    try:
        with _decompressed(stored) as inner:
            contents = _Contents(inner, budget, layer.diff_id is not None)
            _apply(contents, rootfs, budget)
            contents.drain()
        stored.drain()
    except SourceError:
        raise
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        raise Broken(f"layer {layer.name}: {error or type(error).__name__}") from error
    stored.verify()
    if layer.diff_id is not None and contents.digest != layer.diff_id:
        raise Broken(f"layer {layer.name} is not what the image's configuration says")


class _Stored:
    """The bytes as they are stored, measured on their way."""

    def __init__(self, raw: Readable, layer: Layer) -> None:
        self._raw = raw
        self._layer = layer
        self._hash = hashlib.sha256()
        self._size = 0
        self.start = self._more(4)
        self._ahead = self.start

    def read(self, size: int = -1) -> bytes:
        if self._ahead:
            data, self._ahead = self._ahead[:size], self._ahead[size:]
            return data
        return self._more(size)

    def _more(self, size: int) -> bytes:
        data = self._raw.read(size)
        self._size += len(data)
        if self._layer.size is not None and self._size > self._layer.size:
            raise Broken(f"layer {self._layer.name} is longer than it should be")
        if self._layer.digest is not None:
            self._hash.update(data)
        return data

    def drain(self) -> None:
        while self.read(CHUNK_BYTES):
            pass

    def verify(self) -> None:
        if self._layer.size is not None and self._size != self._layer.size:
            raise Broken(f"layer {self._layer.name} is shorter than it should be")
        if self._layer.digest is not None and f"sha256:{self._hash.hexdigest()}" != self._layer.digest:
            raise Broken(f"layer {self._layer.name} is not what its digest says")


class _Contents:
    """The tar, counted. `header` limits what may be read until it is set again; None: no limit."""

    def __init__(self, inner: Readable, budget: Budget, hashing: bool) -> None:
        self._inner = inner
        self._budget = budget
        self._hash = hashlib.sha256() if hashing else None
        self.header: int | None = None
        #: What was read last, and where it ends: for a look at what tarfile stopped at.
        self.last = b""
        self.end = 0

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self._budget.take(len(data))
        if self.header is not None:
            self.header -= len(data)
            if self.header < 0:
                raise Broken("a header that is too long")
        if self._hash is not None:
            self._hash.update(data)
        self.end += len(data)
        self.last = data or self.last
        return data

    def drain(self) -> None:
        self.header = None
        while self.read(CHUNK_BYTES):
            pass

    @property
    def digest(self) -> str:
        assert self._hash is not None
        return f"sha256:{self._hash.hexdigest()}"


@contextlib.contextmanager
def _decompressed(stored: _Stored) -> Iterator[Readable]:
    if stored.start.startswith(_GZIP):
        # Any: gzip wants a whole file object, and uses of it what is here.
        source: Any = stored
        with gzip.GzipFile(fileobj=source, mode="rb") as unzipped:
            yield unzipped
    elif stored.start.startswith(_ZSTD):
        try:
            # Any: an optional package.
            zstandard: Any = importlib.import_module("zstandard")
        except ImportError as error:
            raise Broken("a layer in zstd: install the Python package zstandard for it") from error
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_MAX_BYTES)
        try:
            with decompressor.stream_reader(stored, read_across_frames=True, closefd=False) as unzipped:
                yield unzipped
        except zstandard.ZstdError as error:
            raise Broken(f"a layer in zstd that can not be read: {error}") from error
    else:
        yield stored


def _apply(contents: _Contents, rootfs: Rootfs, budget: Budget) -> None:
    rootfs.begin_layer()
    contents.header = _HEADER_MAX_BYTES
    # Any: as above.
    source: Any = contents
    archive: Any
    with tarfile.open(
        fileobj=source, mode="r|", bufsize=_BLOCK_BYTES, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        while True:
            contents.header = _HEADER_MAX_BYTES
            entry = archive.next()
            if entry is None:
                break
            budget.entry()
            contents.header = None
            _apply_entry(archive, entry, rootfs)
            # tarfile remembers every entry, and we never ask again.
            archive.members = []
        _check_end(archive.offset, contents)


def _apply_entry(archive: tarfile.TarFile, entry: tarfile.TarInfo, rootfs: Rootfs) -> None:
    if entry.name.rstrip("/").rpartition("/")[2].startswith(WHITEOUT):
        rootfs.whiteout(entry.name)
    elif entry.isdir():
        rootfs.folder(entry.name, entry.mode)
    elif entry.issym():
        rootfs.link(entry.name, entry.linkname)
    elif entry.islnk():
        rootfs.hard_link(entry.name, entry.linkname)
    elif entry.issparse():
        raise Broken(f"{entry.name!r}: a sparse file")
    elif entry.isreg():
        rootfs.file(entry.name, entry.mode, _data(archive, entry), float(entry.mtime))
    # Devices and pipes are left out: the sandbox has its own /dev.


def _data(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Iterator[bytes]:
    if entry.size < 0:
        raise Broken(f"{entry.name!r}: a size that is none")
    file = archive.extractfile(entry)
    assert file is not None, "a regular file"
    left = entry.size
    while left:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise Broken(f"{entry.name!r} ends too early")
        left -= len(chunk)
        yield chunk


def _check_end(offset: int, contents: _Contents) -> None:
    """tarfile takes a broken header for the end; the end is zeros, or nothing."""
    begin = contents.end - len(contents.last)
    if offset >= begin and contents.last[offset - begin :][: tarfile.BLOCKSIZE].strip(b"\0"):
        raise Broken("a tar with a header that can not be read")
