"""Zips that strangers made: nothing leaves the directory, nothing outgrows its limit, nothing is kept that
lies."""

from __future__ import annotations

import io
import os
import shutil
import stat
import struct
import tempfile
import warnings
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.model.errors import ApiError, InvalidParameterValue
from lambent.store.archive import COULD_NOT_UNZIP, EMPTY_ZIP, unpack

from .zips import file, folder, link, make_entries, make_zip

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


def refused(data: bytes, into: Path, text: str = COULD_NOT_UNZIP, **bounds: int) -> None:
    with pytest.raises(InvalidParameterValue) as caught:
        unpack(data, into, **bounds)
    assert caught.value.message == text


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The directory to unpack into, with a neighbour that must stay as it is."""
    (tmp_path / "neighbour").write_text("mine")
    into = tmp_path / "tree"
    into.mkdir()
    return into


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_files_directories_modes_and_times(tree: Path) -> None:
    old_umask = os.umask(0o077)
    try:
        data = make_entries(
            file("main.py", b"print()", 0o600),
            folder("bin"),
            file("bin/tool", b"#!", 0o751),
            file("deep/er/x", b"", 0),
            file("suid", b"", 0o4755),
        )
        assert unpack(data, tree) == 9
    finally:
        os.umask(old_umask)
    assert (tree / "main.py").read_bytes() == b"print()"
    assert mode_of(tree / "main.py") == 0o644
    assert mode_of(tree / "bin/tool") == 0o755
    assert mode_of(tree / "deep/er/x") == 0o644
    assert mode_of(tree / "suid") == 0o755
    assert mode_of(tree / "bin") == mode_of(tree / "deep") == mode_of(tree / "deep/er") == 0o755
    assert (tree / "main.py").stat().st_mtime == (tree / "bin").stat().st_mtime == 1715949020


def test_dos_zip_without_modes(tree: Path) -> None:
    unpack(make_entries(("a/b.py", b"1", 0)), tree)
    assert mode_of(tree / "a/b.py") == 0o644


def test_month_zero(tree: Path) -> None:
    data = bytearray(make_zip({"a": b"1"}))
    for signature, offset in ((b"PK\x03\x04", 12), (b"PK\x01\x02", 14)):
        at = data.index(signature)
        data[at + offset : at + offset + 2] = b"\0\0"
    unpack(bytes(data), tree)
    assert (tree / "a").read_bytes() == b"1"


def test_data_before_and_behind(tree: Path) -> None:
    unpack(b"#!/bin/sh\n" + make_zip({"a": b"1"}) + b"\ntail", tree)
    assert (tree / "a").read_bytes() == b"1"


def test_names_that_differ_in_case_or_repeat(tree: Path) -> None:
    unpack(make_entries(file("a", b"old", 0o755), file("A", b"upper"), file("./a", b"new", 0o600)), tree)
    assert (tree / "a").read_bytes() == b"new"
    assert (tree / "A").read_bytes() == b"upper"


def test_links_inside(tree: Path) -> None:
    unpack(
        make_entries(
            file("lib/x.so.1", b"elf"), link("lib/x.so", "x.so.1"), link("up/y", "../lib/x.so"), link("me", ".")
        ),
        tree,
    )
    assert (tree / "up/y").read_bytes() == b"elf"
    assert os.readlink(tree / "lib/x.so") == "x.so.1"


@pytest.mark.parametrize(
    "name",
    ["/etc/x", "../neighbour", "a/../../neighbour", "..", "a\\b", "C:/x", "c:x", "\\\\host\\x", "a/../b", "", "."],
)
def test_names_that_lead_elsewhere(tree: Path, name: str) -> None:
    refused(make_entries(file(name)), tree)
    assert (tree.parent / "neighbour").read_text() == "mine"
    assert sorted(path.name for path in tree.parent.iterdir()) == ["neighbour", "tree"]


@pytest.mark.parametrize(
    "entries",
    [
        [link("a", "/etc/passwd")],
        [link("a", "../neighbour")],
        [link("a", "b"), link("b", "../neighbour")],
        [folder("d/e/f"), link("l", "d/e/f"), link("a/b/c/m", "../../../l"), link("out", "a/b/c/m/../../../../x")],
        [link("a", ".."), file("a/neighbour", b"theirs")],
        [file("a/neighbour", b"theirs"), link("a", "..")],
        [folder("a"), link("a", "x")],
        [link("a", "x"), file("a")],
        [link("a", "x"), link("a/b", "x")],
        [("a", b"", stat.S_IFLNK | 0o777)],
        [link("a", "x" * 5000)],
        [link("a", "x\0y")],
        [("a", b"\xff\xfe", stat.S_IFLNK | 0o777)],
        [("a/", b"", stat.S_IFLNK | 0o777)],
        [("a", b"", stat.S_IFIFO | 0o666)],
        [("a", b"", stat.S_IFCHR | 0o666)],
        [("a", b"", stat.S_IFBLK | 0o666)],
        [("a", b"", stat.S_IFSOCK | 0o666)],
        [("a", b"", stat.S_IFDIR | 0o755)],
        [file("a"), file("a/b")],
        [file("a/b"), file("a")],
        [file("a"), folder("a")],
        [file("x" * 300)],
        [file("d/" * 2500 + "x")],
        [file("d/" * 1000 + "x")],
    ],
)
def test_trees_that_cannot_be_or_must_not_be(tree: Path, entries: list[tuple[str, bytes, int]]) -> None:
    refused(make_entries(*entries), tree)
    assert (tree.parent / "neighbour").read_text() == "mine"


def test_a_chain_of_links_that_climbs_out_although_each_path_looks_inside(tree: Path) -> None:
    # Read as text the last one stays inside; followed, it starts at the root and goes two up.
    entries = [link("a/b/c/l", "../../.."), link("m", "a/b/c/l/../../neighbour")]
    refused(make_entries(*entries), tree)


def test_links_in_a_circle_lead_nowhere(tree: Path) -> None:
    unpack(make_entries(link("a", "b"), link("b", "a")), tree)
    assert os.path.islink(tree / "a")


def test_empty(tree: Path) -> None:
    refused(make_zip(), tree, EMPTY_ZIP)


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip at all" * 100, b"PK\x05\x06" + b"\0" * 17])
def test_not_a_zip(tree: Path, data: bytes) -> None:
    refused(data, tree)


def test_cut_off(tree: Path) -> None:
    whole = make_zip({"a": b"1" * 1000, "b": b"2"})
    for end in range(0, len(whole) - 1, 7):
        refused(whole[:end], tree)


def test_bad_checksum(tree: Path) -> None:
    data = bytearray(make_entries(("a", os.urandom(64), 0)))
    data[40] ^= 1
    refused(bytes(data), tree)


def test_encrypted(tree: Path) -> None:
    data = bytearray(make_zip({"a": b"1"}))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(bytes(data), tree)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions(tree: Path, method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("a", b"1" * 1000)
    refused(buffer.getvalue(), tree)


def test_bomb_that_says_so(tree: Path) -> None:
    refused(
        make_zip({"a": b"\0" * 3000, "b": b"\0" * 3000}),
        tree,
        "Unzipped size must be smaller than 5000 bytes",
        unzipped_max_bytes=5000,
    )
    assert not list(tree.iterdir())


@pytest.mark.parametrize("claimed", [10, 2**32 - 2])
def test_headers_that_lie_about_the_size(tree: Path, claimed: int) -> None:
    data = bytearray(make_zip({"a": b"\0" * 100_000}))
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = data.index(signature)
        data[at + offset : at + offset + 4] = struct.pack("<I", claimed)
    with pytest.raises(InvalidParameterValue):
        unpack(bytes(data), tree, unzipped_max_bytes=50_000)


def test_overlapping_entries_are_counted_for_each(tree: Path) -> None:
    """Many names for the same compressed bytes: small on the wire, large on the disk."""
    one = make_zip({"a": b"\0" * 40_000})
    at = one.index(b"PK\x01\x02")
    end = one.index(b"PK\x05\x06")
    entry = one[at:end]
    many = b"".join(entry.replace(b"a", bytes([98 + number])) for number in range(20))
    tail = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 20, 20, len(many), at, 0)
    with pytest.raises(InvalidParameterValue):
        unpack(one[:at] + many + tail, tree, unzipped_max_bytes=100_000)


def test_too_many_entries(tree: Path) -> None:
    data = make_entries(*(file(str(number), b"") for number in range(11)))
    refused(data, tree, entries_max=10)
    unpack(data, tree, entries_max=11)


def test_deep_trees_can_be_removed_again(tree: Path) -> None:
    unpack(make_entries(file("d/" * 199 + "x")), tree)
    shutil.rmtree(tree)


def test_the_disk_s_own_errors_are_not_the_zip_s_fault(tree: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unpack(make_zip({"a": b"1"}), tree / "missing")


MODES = st.sampled_from([0, 0o644, 0o100644, 0o100755, 0o120777, 0o040755, 0o010644, 0o104755])
PARTS = st.sampled_from(["a", "b", "..", ".", "", "c" * 260, "é", "\\", "C:"])
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
DATA = st.one_of(st.sampled_from([b"..", b"a", b"../a", b"/", b"a/b/../../.."]), st.binary(max_size=20))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(NAMES, DATA, MODES), max_size=6),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=3),
)
def test_nothing_ever_escapes(entries: list[tuple[str, bytes, int]], damage: list[tuple[int, int]]) -> None:
    """Any zip, also a damaged one: either refused in words, or a tree that is closed in itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = bytearray(make_entries(*entries))
    for position, value in damage:
        data[position % len(data)] = value
    with tempfile.TemporaryDirectory() as place:
        into = Path(place, "tree")
        into.mkdir()
        try:
            unpack(bytes(data), into)
        except ApiError:
            pass
        else:
            root = os.path.realpath(into)
            for folder_name, folders, files in os.walk(into):
                for name in (*folders, *files):
                    path = Path(folder_name, name)
                    assert os.path.realpath(path).startswith(root)
                    kind = stat.S_IFMT(path.lstat().st_mode)
                    assert kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
                    if kind != stat.S_IFLNK:
                        assert mode_of(path) & 0o644 == 0o644
                        assert not mode_of(path) & 0o7000
        assert os.listdir(place) == ["tree"]
