"""The code store: complete or not there, shared, and gone only when nobody needs it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lambent.model.errors import InvalidParameterValue, RequestTooLarge, ResourceNotFound
from lambent.store import archive
from lambent.store import code as code_module
from lambent.store.code import CodeStore

from .zips import make_zip

ZIP = make_zip({"main.py": b"def handler(event, context): return event\n", "lib/x.py": b"1"})


def test_put_read_unpack(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path / "code")
        ref = await store.put_zip(ZIP)
        digest = hashlib.sha256(ZIP)
        assert ref == (digest.hexdigest(), base64.b64encode(digest.digest()).decode(), len(ZIP))
        assert await store.read_zip(ref.sha256) == ZIP
        path = await store.ensure_unpacked(ref.sha256)
        assert path == store.unpacked_path(ref.sha256)
        assert (path / "lib/x.py").read_bytes() == b"1"
        assert path.stat().st_mode & 0o777 == 0o755
        assert await store.put_zip(ZIP) == ref
        assert os.listdir(tmp_path / "code/tmp") == []
        await store.close()

    asyncio.run(scenario())


def test_refused_zips_leave_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path)
        with pytest.raises(InvalidParameterValue, match="Could not unzip"):
            await store.put_zip(b"no zip")
        with pytest.raises(InvalidParameterValue, match="Unzipped size must be smaller than 262144000 bytes"):
            await store.put_zip(make_zip({"zeros": bytes(262_144_001)}))
        with pytest.raises(RequestTooLarge) as caught:
            await store.put_zip(bytes(52_428_801))
        assert caught.value.message == "Zipped size must be smaller than 52428800 bytes"
        assert caught.value.status == 413
        for folder in ("zips", "unpacked", "tmp"):
            assert os.listdir(tmp_path / folder) == []
        await store.close()

    asyncio.run(scenario())


def test_unpacking_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    real = archive.unpack

    def counting(data: bytes, into: Path) -> int:
        runs.append(into)
        return real(data, into)

    async def scenario() -> None:
        ref = await CodeStore(tmp_path).put_zip(ZIP)
        store = CodeStore(tmp_path)
        store._discard(store.unpacked_path(ref.sha256))
        monkeypatch.setattr(code_module, "unpack", counting)
        impatient = asyncio.create_task(store.ensure_unpacked(ref.sha256))
        await asyncio.sleep(0)
        others = [asyncio.create_task(store.ensure_unpacked(ref.sha256)) for _ in range(10)]
        await asyncio.sleep(0)
        impatient.cancel()
        paths = await asyncio.gather(*others)
        assert set(paths) == {store.unpacked_path(ref.sha256)}
        assert len(runs) == 1
        assert (paths[0] / "main.py").exists()
        await store.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc", "", "A" * 64])
def test_unknown_code(tmp_path: Path, digest: str) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path)
        with pytest.raises(ResourceNotFound):
            await store.ensure_unpacked(digest)
        with pytest.raises(ResourceNotFound):
            await store.read_zip(digest)
        await store.close()

    asyncio.run(scenario())


def test_unused_code_goes_and_pinned_code_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path)
        kept = await store.put_zip(make_zip({"a": b"1"}))
        unused = await store.put_zip(make_zip({"a": b"2"}))
        async with store.pinned_zip(make_zip({"a": b"3"})) as pinned:
            assert await store.delete_unused({kept.sha256}) == 1
            assert (store.unpacked_path(pinned.sha256) / "a").read_bytes() == b"3"
        assert (store.unpacked_path(kept.sha256) / "a").exists()
        assert not store.unpacked_path(unused.sha256).exists()
        with pytest.raises(ResourceNotFound):
            await store.read_zip(unused.sha256)
        assert await store.delete_unused({kept.sha256}) == 1
        await store.close()

    asyncio.run(scenario())


def test_same_bytes_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path)
        refs = await asyncio.gather(*(store.put_zip(ZIP) for _ in range(8)))
        assert len(set(refs)) == 1
        assert os.listdir(tmp_path / "tmp") == []
        await store.close()

    asyncio.run(scenario())


def test_trees_are_made_again_after_a_boot(tmp_path: Path) -> None:
    async def scenario() -> None:
        ref = await CodeStore(tmp_path).put_zip(ZIP)
        (tmp_path / "boot_id").write_text("another boot")
        store = CodeStore(tmp_path)
        assert not store.unpacked_path(ref.sha256).exists()
        assert ((await store.ensure_unpacked(ref.sha256)) / "main.py").exists()
        await store.close()

    asyncio.run(scenario())


def _put_for_ever(root: Path, started: multiprocessing.synchronize.Event) -> None:
    async def run() -> None:
        store = CodeStore(root)
        started.set()
        number = 0
        while True:
            number += 1
            await store.put_zip(make_zip({f"f{n}": os.urandom(2000) + str(number).encode() for n in range(30)}))

    asyncio.run(run())


def test_killed_at_any_moment(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    root = tmp_path / "code"
    started = context.Event()
    process = context.Process(target=_put_for_ever, args=(root, started), daemon=True)
    process.start()
    assert started.wait(30)
    deadline = time.monotonic() + 30
    while len(list((root / "zips").glob("*"))) < 20 and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    asyncio.run(CodeStore(root).close())
    assert os.listdir(root / "tmp") == []
    zips = list((root / "zips").iterdir())
    assert len(zips) >= 20
    for path in zips:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.stem
    for tree in (root / "unpacked").iterdir():
        assert len(list(tree.iterdir())) == 30
