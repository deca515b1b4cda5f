"""Images as the rest of the store sees them: by the digest of what they are.

    <root>/images/<sha256>.json              where it is from and what it runs; one file for each image
    <root>/unpacked/image-<sha256>/          its root file system, read-only for functions

Contract:

* `pinned` asks the source what a name means now, checks that it is an image, and writes the record. Nothing
  large is read: the layers come with `ensure`.
* A tree with its final name is complete, and on the disk: it is flushed before it is renamed into place. So it
  stays when the machine is started anew, unlike the trees of zips, because its source may be gone by then. The
  layers themselves are not kept. A tree that is lost is pulled again, by digest.
* Many callers may ask for the same tree at once; it is pulled once.
* Trees in use must be known to whoever calls `delete_unused`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import shutil
import tempfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.store.images import local
from lambent.store.images.budget import Budget
from lambent.store.images.credentials import credentials_for, default_config
from lambent.store.images.errors import Missing, SourceError, told
from lambent.store.images.manifest import ARCHITECTURES, RunSettings
from lambent.store.images.reference import LocalReference, Reference, parse
from lambent.store.images.registry import RegistrySource
from lambent.store.images.rootfs import Rootfs
from lambent.store.images.source import Source

T = TypeVar("T")

#: Images at a time; each downloads three layers at a time.
_PULLS = 2
#: Questions to sources at a time.
_QUESTIONS = 8
FOLDER_PREFIX = "image-"
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ImageSettings(NamedTuple):
    """What the operator decides about images."""

    #: Folders below which `oci:`, `oci-archive:`, `docker-archive:` and `dir:` may read. Absolute.
    dirs: tuple[Path, ...] = ()
    #: Docker's `config.json` with the credentials of registries; None: where Docker's client looks.
    docker_config: Path | None = None


class StoredImage(msgspec.Struct, frozen=True):
    """An image that somebody asked for. `sha256` is the hex digest of its manifest; `uri` names exactly it."""

    sha256: str
    uri: str
    architecture: str
    settings: RunSettings


class ImageStore:
    """See the module's head. `tmp` is emptied by whoever makes it, when nobody works in it."""

    def __init__(self, root: Path, unpacked: Path, tmp: Path, settings: ImageSettings | None = None) -> None:
        self.settings = settings or ImageSettings()
        self._records = root / "images"
        self._unpacked = unpacked
        self._tmp = tmp
        self._pulls = ThreadPoolExecutor(max_workers=_PULLS, thread_name_prefix="lambent-image")
        self._questions = ThreadPoolExecutor(max_workers=_QUESTIONS, thread_name_prefix="lambent-image-find")
        self._stopping = threading.Event()
        self._pulling: dict[str, asyncio.Task[Path]] = {}
        #: Guards `_pinned` against `delete_unused`.
        self._lock = threading.Lock()
        self._pinned: Counter[str] = Counter()
        self._records.mkdir(mode=0o700, exist_ok=True)

    async def close(self) -> None:
        """Stop what is being pulled; whoever needs it begins again."""
        self._stopping.set()
        await asyncio.gather(*self._pulling.values(), return_exceptions=True)
        self._pulls.shutdown(wait=True)
        self._questions.shutdown(wait=True)

    @contextlib.asynccontextmanager
    async def pinned(self, uri: str, architecture: str) -> AsyncIterator[StoredImage]:
        """What `uri` means now for a function of this architecture; its record stays until the block ends
        although nobody refers to it yet. Raises an ImageProblem."""
        image = await self._in(self._questions, lambda: self._find(uri, architecture))
        with self._lock:
            self._pinned[image.sha256] += 1
        try:
            await self._in(self._questions, lambda: self._write(image))
            yield image
        finally:
            with self._lock:
                self._pinned[image.sha256] -= 1
                if not self._pinned[image.sha256]:
                    del self._pinned[image.sha256]

    def folder(self, sha256: str) -> str:
        """Name, beside the unpacked code, of an image's root file system."""
        if not _SHA256.fullmatch(sha256):
            raise _unknown(sha256)
        return f"{FOLDER_PREFIX}{sha256}"

    async def ensure(self, sha256: str) -> Path:
        """The root file system of a recorded image, pulled now when it is not there. Raises ResourceNotFound or
        an ImageProblem."""
        path = self._unpacked / self.folder(sha256)
        task = self._pulling.get(sha256)
        if task is None:
            if self._is_there(path):
                return path
            task = asyncio.create_task(self._in(self._pulls, lambda: self._pull(sha256)))
            self._pulling[sha256] = task
            task.add_done_callback(lambda _: self._pulling.pop(sha256, None))
        # Shielded: one caller that gives up must not take the tree away from the others.
        return await asyncio.shield(task)

    async def delete_unused(self, referenced: set[str]) -> int:
        """Delete the images that are neither in `referenced` nor pinned; how many went."""
        return await self._in(self._questions, lambda: self._delete_except(referenced))

    # --- in threads --------------------------------------------------------------------------------------

    async def _in(self, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(pool, work)

    def _is_there(self, path: Path) -> bool:
        return os.path.isdir(path)

    def _open(self, reference: Reference) -> Source:
        if isinstance(reference, LocalReference):
            return local.open_source(reference, self.settings.dirs)
        config = self.settings.docker_config or default_config()
        return RegistrySource(reference, credentials_for(reference.host, config))

    def _find(self, uri: str, architecture: str) -> StoredImage:
        if architecture not in ARCHITECTURES:
            raise InvalidParameterValue(f"There are no images for the architecture {architecture}.")
        try:
            reference = parse(uri)
            with contextlib.closing(self._open(reference)) as source:
                found = source.find(architecture)
        except SourceError as error:
            raise told(uri, error) from error
        sha256 = found.digest.removeprefix("sha256:")
        return StoredImage(sha256, reference.pinned(found.digest), architecture, found.settings)

    def _pull(self, sha256: str) -> Path:
        image = self._read(sha256)
        final = self._unpacked / self.folder(sha256)
        temporary = Path(tempfile.mkdtemp(dir=self._tmp))
        tree, scratch = temporary / "tree", temporary / "layers"
        try:
            tree.mkdir()
            scratch.mkdir()
            budget = Budget(self._stopping)
            rootfs = Rootfs(tree, budget)
            with contextlib.closing(self._open(parse(image.uri))) as source:
                found = source.find(image.architecture)
                if found.digest != f"sha256:{sha256}":
                    raise Missing("there is another one in its place")
                source.unpack(found, rootfs, scratch, budget)
            rootfs.finish()
            _flush(tree)
            os.rename(tree, final)
            _sync_folder(self._unpacked)
        except SourceError as error:
            raise told(image.uri, error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def _record_path(self, sha256: str) -> Path:
        return self._records / f"{sha256}.json"

    def _read(self, sha256: str) -> StoredImage:
        try:
            return msgspec.json.decode(self._record_path(sha256).read_bytes(), type=StoredImage)
        except FileNotFoundError as error:
            raise _unknown(sha256) from error

    def _write(self, image: StoredImage) -> None:
        """The newest source of an image is the one that has just proved to have it."""
        handle, name = tempfile.mkstemp(dir=self._tmp)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(image))
                file.flush()
                os.fsync(file.fileno())
            os.rename(name, self._record_path(image.sha256))
        except BaseException:
            os.unlink(name)
            raise
        _sync_folder(self._records)

    def _delete_except(self, referenced: set[str]) -> int:
        names = {path.stem for path in self._records.glob("*.json")}
        names.update(path.name.removeprefix(FOLDER_PREFIX) for path in self._unpacked.glob(f"{FOLDER_PREFIX}*"))
        gone = 0
        for sha256 in names - referenced:
            with self._lock:
                if sha256 in self._pinned or sha256 in self._pulling or not _SHA256.fullmatch(sha256):
                    continue
                # The record goes last: a tree without it could not be made again.
                temporary = Path(tempfile.mkdtemp(dir=self._tmp))
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._unpacked / self.folder(sha256), temporary / "tree")
                self._record_path(sha256).unlink(missing_ok=True)
            self._pulls.submit(shutil.rmtree, temporary, ignore_errors=True)
            gone += 1
        return gone


def _unknown(sha256: str) -> ResourceNotFound:
    return ResourceNotFound(f"There is no image with the digest {sha256}.")


def _flush(tree: Path) -> None:
    """Have all of a tree on the disk. One call for the file system costs less than one for each of its files."""
    handle = os.open(tree, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(tree))
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
