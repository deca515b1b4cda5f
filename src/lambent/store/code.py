"""Function code on disk, named by what it is.

    <root>/zips/<sha256>.zip         as uploaded, for download and for unpacking again
    <root>/unpacked/<sha256>/        what environments mount, read-only
    <root>/unpacked/opt-<sha256>/    the same for the layers of a function, laid over each other
    <root>/unpacked/image-<sha256>/  the root file systems of container images: see `images.store`
    <root>/tmp/                      work in progress; emptied at start

Contract:

* A zip is checked by unpacking it before anyone refers to it; a file or tree with its final name is complete,
  because it was renamed into place. Killing the process at any moment leaves rubbish in `tmp` at most.
* `zips` is flushed to the disk before `put_zip` returns. `unpacked` is a cache: it is not flushed, and so it
  is forgotten when the machine has been started anew (a power cut may have emptied its files); not so
  images, which are flushed.
* Many callers may ask for the same tree at once; it is unpacked once.
* Code in use must be known to whoever calls `delete_unused`: running environments have their tree mounted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import threading
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from lambent.model import limits
from lambent.model.errors import RequestTooLarge, ResourceNotFound
from lambent.store import code_layers
from lambent.store.archive import unpack
from lambent.store.images.store import FOLDER_PREFIX, ImageSettings, ImageStore

T = TypeVar("T")

#: Unpacking is mostly zlib and system calls, which run beside each other.
_THREADS = 4
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LAYERS = re.compile(rf"{code_layers.PREFIX}[0-9a-f]{{64}}")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class CodeRef(NamedTuple):
    """A stored zip: its digest in the two spellings that are needed, and its size."""

    sha256: str
    sha256_base64: str
    size: int


class CodeStore:
    """The code store below `root`; see the module's head."""

    def __init__(self, root: Path, images: ImageSettings | None = None) -> None:
        self._zips = root / "zips"
        self._unpacked = root / "unpacked"
        self._tmp = root / "tmp"
        self._threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="lambent-code")
        self._unpacking: dict[str, asyncio.Task[Path]] = {}
        #: Guards `_pinned` against `delete_unused`, which decides and deletes in a thread.
        self._lock = threading.Lock()
        self._pinned: Counter[str] = Counter()
        root.mkdir(parents=True, exist_ok=True)
        # Uploaded code is nobody's business but the server's; the unpacked trees are read by functions.
        self._zips.mkdir(mode=0o700, exist_ok=True)
        self._unpacked.mkdir(exist_ok=True)
        self._tmp.mkdir(mode=0o700, exist_ok=True)
        self._forget_after_boot(root / "boot_id")
        for rubbish in self._tmp.iterdir():
            self._remove_later(rubbish)
        self.images = ImageStore(root, self._unpacked, self._tmp, images)

    async def close(self) -> None:
        """Wait for the work in progress; pulls of images are given up."""
        await self.images.close()
        await asyncio.gather(*self._unpacking.values(), return_exceptions=True)
        self._threads.shutdown(wait=True)

    async def put_zip(self, data: bytes, *, zipped_max_bytes: int = limits.ZIP_MAX_BYTES) -> CodeRef:
        """Check, unpack and keep a zip. Raises RequestTooLarge or InvalidParameterValue in AWS's words."""
        async with self.pinned_zip(data, zipped_max_bytes=zipped_max_bytes) as ref:
            return ref

    @contextlib.asynccontextmanager
    async def pinned_zip(self, data: bytes, *, zipped_max_bytes: int = limits.ZIP_MAX_BYTES) -> AsyncIterator[CodeRef]:
        """`put_zip`, and until the block ends the zip stays although no record refers to it yet."""
        if len(data) > zipped_max_bytes:
            raise RequestTooLarge(f"Zipped size must be smaller than {zipped_max_bytes} bytes")
        digest = await self._in_thread(lambda: hashlib.sha256(data).digest())
        ref = CodeRef(digest.hex(), base64.b64encode(digest).decode(), len(data))
        with self._lock:
            self._pinned[ref.sha256] += 1
        try:
            await self._in_thread(lambda: self._put(ref, data))
            yield ref
        finally:
            with self._lock:
                self._pinned[ref.sha256] -= 1
                if not self._pinned[ref.sha256]:
                    del self._pinned[ref.sha256]

    def unpacked_path(self, sha256: str) -> Path:
        """Where the tree of a zip is, or will be."""
        return self._unpacked / _digest(sha256)

    async def ensure_unpacked(self, sha256: str) -> Path:
        """The tree of a stored zip, unpacked now when it is not there. Raises ResourceNotFound."""
        return await self._made_once(
            self.unpacked_path(sha256), lambda: self._in_thread(lambda: self._unpack_stored(sha256))
        )

    def layers_folder(self, layers: tuple[str, ...]) -> str:
        """Name, beside the unpacked code, of the tree that the zips of these digests make in this order."""
        return code_layers.folder_name(map(_digest, layers))

    async def ensure_layers(self, layers: tuple[str, ...]) -> Path:
        """The tree of these layers together, made now when it is not there.

        Raises ResourceNotFound, or InvalidParameterValue for layers that do not go together.
        """
        path = self._unpacked / self.layers_folder(layers)
        return await self._made_once(path, lambda: self._merge_layers(layers, path))

    def image_folder(self, digest: str) -> str:
        """Name, beside the unpacked code, of an image's root file system. Raises ResourceNotFound."""
        return self.images.folder(digest)

    async def ensure_image(self, digest: str) -> Path:
        """An image's root file system, pulled now when it is not there. Raises ResourceNotFound or an
        ImageProblem."""
        return await self.images.ensure(digest)

    async def read_zip(self, sha256: str) -> bytes:
        """The zip as it was uploaded. Raises ResourceNotFound."""
        path = self._zip_path(sha256)
        try:
            return await self._in_thread(path.read_bytes)
        except FileNotFoundError as error:
            raise _missing(sha256) from error

    async def unzipped_bytes(self, sha256s: Iterable[str]) -> int:
        """What the zips hold unpacked, as their directories say and `unpack` has checked. Raises ResourceNotFound."""
        return await self._in_thread(lambda: sum(self._unzipped_bytes(each) for each in sha256s))

    async def delete_unused(self, referenced: set[str], layers: Iterable[tuple[str, ...]] = ()) -> int:
        """Delete the zips, images and trees that are neither in `referenced` nor pinned, and the trees of combined
        layers but those of `layers`; how many went."""
        kept = set(map(self.layers_folder, layers))
        gone = await self._in_thread(lambda: self._delete_except(referenced) + self._delete_layers_except(kept))
        return gone + await self.images.delete_unused(referenced)

    # --- in threads --------------------------------------------------------------------------------------

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _made_once(self, path: Path, make: Callable[[], Coroutine[None, None, Path]]) -> Path:
        """The tree at `path`, for which `make` is called when it is not there; once for all who ask meanwhile."""
        task = self._unpacking.get(path.name)
        if task is None:
            if self._is_unpacked(path):
                return path
            task = self._unpacking[path.name] = asyncio.create_task(make())
            task.add_done_callback(lambda _: self._unpacking.pop(path.name, None))
        # Shielded: one caller that gives up must not take the tree away from the others.
        return await asyncio.shield(task)

    def _is_unpacked(self, path: Path) -> bool:
        return os.path.isdir(path)

    async def _merge_layers(self, layers: tuple[str, ...], final: Path) -> Path:
        trees = [await self.ensure_unpacked(sha256) for sha256 in layers]
        return await self._in_thread(lambda: self._make_tree(final, lambda tree: code_layers.merge(trees, tree)))

    def _put(self, ref: CodeRef, data: bytes) -> None:
        if not self.unpacked_path(ref.sha256).is_dir():
            self._unpack(ref.sha256, data)
        path = self._zip_path(ref.sha256)
        if not path.exists():
            with self._temporary_file() as temporary:
                with open(temporary, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.rename(temporary, path)
            _sync_directory(self._zips)

    def _unpack_stored(self, sha256: str) -> Path:
        try:
            data = self._zip_path(sha256).read_bytes()
        except FileNotFoundError as error:
            raise _missing(sha256) from error
        return self._unpack(sha256, data)

    def _unpack(self, sha256: str, data: bytes) -> Path:
        return self._make_tree(self.unpacked_path(sha256), lambda tree: unpack(data, tree))

    def _make_tree(self, final: Path, fill: Callable[[Path], object]) -> Path:
        """Have `fill` make a tree in a directory of its own, and give it its final name once it is whole."""
        temporary = Path(tempfile.mkdtemp(dir=self._tmp))
        try:
            tree = temporary / "tree"
            tree.mkdir()
            fill(tree)
            tree.chmod(0o755)
            try:
                os.rename(tree, final)
            except OSError:
                # Another upload of the same bytes was faster: its tree is as good as ours.
                if not final.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return final

    def _unzipped_bytes(self, sha256: str) -> int:
        try:
            with zipfile.ZipFile(self._zip_path(sha256)) as archive:
                return sum(entry.file_size for entry in archive.infolist())
        except FileNotFoundError as error:
            raise _missing(sha256) from error

    def _delete_except(self, referenced: set[str]) -> int:
        names = {path.stem for path in self._zips.glob("*.zip")}
        names.update(path.name for path in self._unpacked.iterdir())
        gone = 0
        for sha256 in names - referenced:
            if not _SHA256.fullmatch(sha256):
                continue
            with self._lock:
                if sha256 in self._pinned:
                    continue
                # The zip goes last: a tree without its zip could not be made again.
                self._discard(self.unpacked_path(sha256))
                self._zip_path(sha256).unlink(missing_ok=True)
            gone += 1
        return gone

    def _delete_layers_except(self, kept: set[str]) -> int:
        gone = [path for path in self._unpacked.iterdir() if _LAYERS.fullmatch(path.name) and path.name not in kept]
        for path in gone:
            self._discard(path)
        return len(gone)

    def _discard(self, tree: Path) -> None:
        """Remove a tree in one step as others see it: half a tree must never have the final name."""
        temporary = Path(tempfile.mkdtemp(dir=self._tmp))
        with contextlib.suppress(FileNotFoundError):
            os.rename(tree, temporary / "tree")
        self._remove_later(temporary)

    def _remove_later(self, path: Path) -> None:
        """In a thread: a start must not wait for thousands of old files."""
        if path.is_dir():
            self._threads.submit(shutil.rmtree, path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def _forget_after_boot(self, marker: Path) -> None:
        try:
            boot_id = _BOOT_ID.read_text()
        except OSError:
            return  # no Linux: the process sandbox of a developer's machine
        if marker.exists() and marker.read_text() == boot_id:
            return
        for tree in self._unpacked.iterdir():
            if not tree.name.startswith(FOLDER_PREFIX):
                self._discard(tree)
        marker.write_text(boot_id)

    @contextlib.contextmanager
    def _temporary_file(self) -> Iterator[Path]:
        handle, name = tempfile.mkstemp(dir=self._tmp)
        os.close(handle)
        try:
            yield Path(name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    def _zip_path(self, sha256: str) -> Path:
        return self._zips / f"{_digest(sha256)}.zip"


def _digest(sha256: str) -> str:
    """`sha256` itself: it becomes part of a path, so it must be what it says."""
    if not _SHA256.fullmatch(sha256):
        raise _missing(sha256)
    return sha256


def _missing(sha256: str) -> ResourceNotFound:
    return ResourceNotFound(f"There is no code with the digest {sha256}.")


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
