"""Layers laid over each other: later over earlier, whatever is there, and never outside of the tree."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lambent.model.errors import InvalidParameterValue, ResourceNotFound
from lambent.store import archive, code_layers
from lambent.store import code as code_module
from lambent.store.code import CodeStore

from .zips import file, folder, link, make_entries, make_zip

#: What a path is in a layer: the bytes of a file, the target of a link, None for a directory.
Entry = bytes | str | None


def laid(tmp_path: Path, *layers: bytes) -> Path:
    """The merged tree of these zips."""
    trees = []
    for number, data in enumerate(layers):
        trees.append(tmp_path / f"layer{number}")
        trees[-1].mkdir()
        archive.unpack(data, trees[-1])
    into = tmp_path / "opt"
    into.mkdir()
    code_layers.merge(trees, into)
    return into


def contents(root: Path) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for directory, folders, files in os.walk(root):
        for name in folders + files:
            path = Path(directory, name)
            entry: Entry = None
            if path.is_symlink():
                entry = os.readlink(path)
            elif path.is_file():
                entry = path.read_bytes()
            found[os.path.relpath(path, root)] = entry
    return found


def test_later_over_earlier(tmp_path: Path) -> None:
    first = make_entries(
        file("python/a.py", b"1"),
        file("python/b.py", b"1"),
        file("file-then-folder", b"1"),
        file("folder-then-file/x/y", b"1"),
        link("link-then-folder", "python"),
        link("link-then-file", "python/a.py"),
        file("folder-then-link/x", b"1"),
        file("file-then-link", b"1"),
        link("kept", "python/a.py"),
    )
    second = make_entries(
        file("python/b.py", b"2"),
        file("python/c.py", b"2"),
        file("file-then-folder/x", b"2"),
        file("folder-then-file", b"2"),
        file("link-then-folder/x", b"2"),
        file("link-then-file", b"2"),
        link("folder-then-link", "python"),
        link("file-then-link", "python/c.py"),
        folder("empty"),
    )
    assert contents(laid(tmp_path, first, second)) == {
        "python": None,
        "python/a.py": b"1",
        "python/b.py": b"2",
        "python/c.py": b"2",
        "file-then-folder": None,
        "file-then-folder/x": b"2",
        "folder-then-file": b"2",
        "link-then-folder": None,
        "link-then-folder/x": b"2",
        "link-then-file": b"2",
        "folder-then-link": "python",
        "file-then-link": "python/c.py",
        "kept": "python/a.py",
        "empty": None,
    }
    # The layers' own trees are as they were.
    assert contents(tmp_path / "layer0")["python/b.py"] == b"1"
    assert contents(tmp_path / "layer0")["folder-then-file/x/y"] == b"1"


def test_modes_and_times(tmp_path: Path) -> None:
    old_umask = os.umask(0o077)
    try:
        data = make_entries(file("bin/tool", b"#!", 0o755), file("bin/data", b"", 0o600), folder("bin"))
        opt = laid(tmp_path, data, make_zip({"bin/more": b""}))
    finally:
        os.umask(old_umask)

    def mode(name: str) -> int:
        return stat.S_IMODE((opt / name).stat().st_mode)

    assert (mode("bin"), mode("bin/tool"), mode("bin/data")) == (0o755, 0o755, 0o644)
    assert (opt / "bin/tool").stat().st_mtime == (tmp_path / "layer0/bin/tool").stat().st_mtime
    assert (opt / "bin").stat().st_mtime == (tmp_path / "layer1/bin").stat().st_mtime


def test_links_that_only_two_layers_together_bend_out_of_the_tree(tmp_path: Path) -> None:
    first = make_entries(file("a/b/x"), link("out", "a/b/../.."))
    second = make_entries(link("a/b", ".."))
    for number, data in enumerate((first, second)):  # each is right by itself
        alone = tmp_path / f"alone{number}"
        alone.mkdir()
        laid(alone, data)
    with pytest.raises(InvalidParameterValue, match="symbolic link that leads out of /opt: out"):
        laid(tmp_path, first, second)


def test_files_are_copied_where_they_can_not_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(os, "link", refuse)
    opt = laid(tmp_path, make_entries(file("tool", b"#!", 0o755)))
    assert (opt / "tool").read_bytes() == b"#!"
    assert stat.S_IMODE((opt / "tool").stat().st_mode) == 0o755
    assert (opt / "tool").stat().st_nlink == 1


_NAMES = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join)
#: Links to themselves stay inside: where they lead is not what this is about.
_LAYER = st.dictionaries(_NAMES, st.binary(max_size=1) | st.none() | st.just("."), max_size=6)


def tree_of(layer: dict[str, Entry]) -> dict[str, Entry]:
    """What of a drawn layer can be together: nothing lies below a file or a link."""
    tree: dict[str, Entry] = {}
    for path in sorted(layer):
        parents = [path[:cut] for cut in range(len(path)) if path[cut] == "/"]
        if all(tree.get(parent) is None for parent in parents):
            tree |= dict.fromkeys(parents)
            tree[path] = layer[path]
    return tree


def zip_of(tree: dict[str, Entry]) -> bytes:
    entries = []
    for path, entry in tree.items():
        if entry is None:
            entries.append(folder(path))
        elif isinstance(entry, str):
            entries.append(link(path, entry))
        else:
            entries.append(file(path, entry))
    return make_entries(*entries, folder("."))


def expected(layers: Sequence[dict[str, Entry]]) -> dict[str, Entry]:
    """The rule in its shortest form."""
    result: dict[str, Entry] = {}
    for layer in layers:
        for path, entry in layer.items():
            if entry is None and path in result and result[path] is None:
                continue
            result = {each: value for each, value in result.items() if each != path and not each.startswith(path + "/")}
            result[path] = entry
    return result


@settings(max_examples=100, deadline=None)
@given(st.lists(_LAYER.map(tree_of), min_size=1, max_size=3))
@example([{"a": None, "a/b": b"1"}, {"a": "."}, {"a": None, "a/b": b"2"}])
def test_any_layers(layers: list[dict[str, Entry]]) -> None:
    with tempfile.TemporaryDirectory() as folder_:
        assert contents(laid(Path(folder_), *map(zip_of, layers))) == expected(layers)


# --- in the store ------------------------------------------------------------------------------------------

FIRST, SECOND = make_zip({"python/a.py": b"1", "x": b"1"}), make_zip({"python/b.py": b"2", "x": b"2"})


def test_the_store_makes_a_combination_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    real = code_layers.merge

    def counting(trees: Sequence[Path], into: Path) -> None:
        runs.append(into)
        real(trees, into)

    async def scenario() -> None:
        store = CodeStore(tmp_path)
        layers = tuple([(await store.put_zip(data)).sha256 for data in (FIRST, SECOND)])
        name = store.layers_folder(layers)
        assert name == "opt-" + hashlib.sha256("".join(layers).encode()).hexdigest()
        for sha256 in layers:  # as after the machine's start
            store._discard(store.unpacked_path(sha256))
        monkeypatch.setattr(code_module.code_layers, "merge", counting)
        impatient = asyncio.create_task(store.ensure_layers(layers))
        await asyncio.sleep(0)
        others = [asyncio.create_task(store.ensure_layers(layers)) for _ in range(10)]
        await asyncio.sleep(0)
        impatient.cancel()
        paths = await asyncio.gather(*others)
        assert set(paths) == {tmp_path / "unpacked" / name}
        assert len(runs) == 1
        assert contents(paths[0]) == {"python": None, "python/a.py": b"1", "python/b.py": b"2", "x": b"2"}
        assert paths[0].stat().st_mode & 0o777 == 0o755
        assert (await store.ensure_layers(layers[::-1]) / "x").read_bytes() == b"1"
        assert await store.ensure_layers(layers) == paths[0]
        assert len(runs) == 2
        assert os.listdir(tmp_path / "tmp") == []
        await store.close()

    asyncio.run(scenario())


def test_combinations_go_when_nobody_needs_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path)
        layers = tuple([(await store.put_zip(data)).sha256 for data in (FIRST, SECOND)])
        kept = await store.ensure_layers(layers)
        unused = await store.ensure_layers(layers[:1])
        assert await store.delete_unused(set(layers), [layers]) == 1
        assert (kept / "x").read_bytes() == b"2"
        assert not unused.exists()
        # What the trees share is on the disk as long as one of them is.
        assert await store.delete_unused(set(), [layers]) == 2
        assert (kept / "x").read_bytes() == b"2"
        assert await store.delete_unused(set()) == 1
        assert os.listdir(tmp_path / "unpacked") == []
        with pytest.raises(ResourceNotFound):
            await store.ensure_layers(layers)
        assert os.listdir(tmp_path / "unpacked") == []
        await store.close()

    asyncio.run(scenario())


def test_a_combination_that_can_not_be_is_not_there(tmp_path: Path) -> None:
    bent = [make_entries(file("a/b/x"), link("out", "a/b/../..")), make_entries(link("a/b", ".."))]

    async def scenario() -> None:
        store = CodeStore(tmp_path)
        layers = tuple([(await store.put_zip(data)).sha256 for data in bent])
        for _ in range(2):
            with pytest.raises(InvalidParameterValue):
                await store.ensure_layers(layers)
        assert sorted(os.listdir(tmp_path / "unpacked")) == sorted(layers)
        assert os.listdir(tmp_path / "tmp") == []
        with pytest.raises(ResourceNotFound):
            await store.ensure_layers(("../x",))
        await store.close()

    asyncio.run(scenario())


def test_combinations_are_made_again_after_a_boot(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path)
        layers = tuple([(await store.put_zip(data)).sha256 for data in (FIRST, SECOND)])
        path = await store.ensure_layers(layers)
        await store.close()
        (tmp_path / "boot_id").write_text("another boot")
        store = CodeStore(tmp_path)
        assert not path.exists()
        assert contents(await store.ensure_layers(layers))["x"] == b"2"
        await store.close()

    asyncio.run(scenario())


def test_sizes_unpacked(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = CodeStore(tmp_path)
        refs = [await store.put_zip(data) for data in (make_zip({"a": bytes(1_000)}), make_zip({"b": bytes(20)}))]
        assert await store.unzipped_bytes([refs[0].sha256]) == 1_000
        assert await store.unzipped_bytes([ref.sha256 for ref in refs]) == 1_020
        with pytest.raises(ResourceNotFound):
            await store.unzipped_bytes(["0" * 64])
        await store.close()

    asyncio.run(scenario())
