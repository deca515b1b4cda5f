"""Layers that an attacker would write: nothing outside the tree changes, and what is refused is refused clearly."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import struct
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.store.images import layer as layer_module
from lambent.store.images.budget import Budget
from lambent.store.images.errors import Broken
from lambent.store.images.manifest import Layer, parse_config, parse_manifest, settings_of
from lambent.store.images.rootfs import Rootfs

from .image_builder import Entry, device, digest, file, folder, hard, link, opaque, tar_of, whiteout


def unpack(root: Path, *layers: bytes, budget: Budget | None = None) -> Path:
    budget = budget or Budget()
    rootfs = Rootfs(root, budget)
    for number, data in enumerate(layers):
        layer_module.unpack(io.BytesIO(data), Layer(str(number)), rootfs, budget)
    rootfs.finish()
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def names(root: Path) -> set[str]:
    """Everything but what every image is given."""
    found = {
        os.path.relpath(os.path.join(top, each), root) for top, dirs, files in os.walk(root) for each in (*dirs, *files)
    }
    return found - {
        *("proc", "sys", "dev", "tmp", "etc", "etc/hosts", "etc/resolv.conf", "var", "var/task", "opt"),
        *(f"dev/{name}" for name in ("shm", "null", "zero", "full", "random", "urandom")),
        *(f"dev/{name}" for name in ("fd", "stdin", "stdout", "stderr")),
    }


# --- names and links ---------------------------------------------------------------------------------------


def test_names_begin_at_the_root(root: Path) -> None:
    unpack(root, tar_of(file("/abs", "1"), file("./dot/./x", "2"), file("//a///b", "3"), folder("./")))
    assert names(root) == {"abs", "dot", "dot/x", "a", "a/b"}


@pytest.mark.parametrize(
    "entries",
    [
        [file("../outside/new")],
        [file("a/../../outside/new")],
        [folder("..")],
        [link("../outside/new", "x")],
        [hard("new", "../outside/secret")],
        [hard("new", "/nothing")],
        [hard("new", "../../../../../../../../../../etc/passwd")],
        [link("l", "../outside"), hard("new", "l/secret")],
        [whiteout("../outside/secret")],
        [opaque("../outside")],
        [file("a"), file("a/b")],
        [file("")],
        [link("", "x")],
        [file(".wh.")],
        [file("a/.wh..")],
        [file("a/.wh...")],
        [Entry("s", tarfile.GNUTYPE_SPARSE)],
        [link("a", "b"), link("b", "a"), file("a/x")],
        [file("/".join("d" * 201))],
        [file("n" * 300)],
        [file("x/" + "n" * 300 + "/y")],
        [file("p", pax={"path": "a\0b"})],
        [file("a"), hard("a/b", "a")],
        [folder("d"), hard("h", "d")],
        [folder("d"), file("d/f"), hard("d", "d/f")],
    ],
    ids=repr,
)
def test_refused(root: Path, entries: list[Entry]) -> None:
    with pytest.raises(Broken):
        unpack(root, tar_of(*entries))
    assert os.listdir(root.parent / "outside") == ["secret"]


@pytest.mark.parametrize("target", ["/", "/../..", "../../outside", "/outside", "x/../../../outside"])
def test_nothing_is_written_through_a_link(root: Path, target: str) -> None:
    """A link is followed as in the container, whose root is the image's."""
    unpack(root, tar_of(link("way", target)), tar_of(file("way/new", "1"), folder("way/new2")))
    assert os.listdir(root.parent / "outside") == ["secret"]
    assert (root / "way").is_symlink()
    assert {name.rpartition("/")[2] for name in names(root)} >= {"way", "new", "new2"}


def test_a_link_in_the_way_is_replaced(root: Path) -> None:
    secret = root.parent / "outside/secret"
    unpack(root, tar_of(link("a", str(secret)), link("b", str(secret.parent))), tar_of(file("a", "mine"), folder("b")))
    assert secret.read_text() == "secret"
    assert (root / "a").read_text() == "mine"
    assert not (root / "b").is_symlink()


def test_a_file_does_not_change_its_other_names(root: Path) -> None:
    unpack(root, tar_of(file("a", "1"), hard("b", "a")), tar_of(file("a", "2")))
    assert (root / "b").read_text() == "1"


def test_merged_folders(root: Path) -> None:
    """As Debian has them: /bin is a link, and later layers write to it."""
    unpack(root, tar_of(folder("usr/bin"), link("bin", "usr/bin")), tar_of(file("bin/app", "1"), hard("c", "bin/app")))
    assert (root / "usr/bin/app").read_text() == "1"
    assert (root / "c").samefile(root / "usr/bin/app")


def test_modes(root: Path) -> None:
    entries = [file("s", "1", 0o6755), file("n", "1", 0), folder("d", 0o1777), folder("closed", 0o555), folder(".", 0)]
    unpack(root, tar_of(*entries, file("closed/x", "1")), tar_of(file("closed/y", "1"), whiteout("closed/x")))
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("s", "n", "d", "closed", ".")}
    assert modes == {"s": 0o755, "n": 0, "d": 0o1777, "closed": 0o755, ".": 0o755}
    shutil.rmtree(root)


def test_devices_are_left_out(root: Path) -> None:
    fifo = Entry("pipe", tarfile.FIFOTYPE)
    unpack(root, tar_of(device("null"), fifo, file("x"), Entry("b", tarfile.BLKTYPE)))
    assert names(root) == {"x"}


def test_times(root: Path) -> None:
    sane, mad = file("a", mtime=1_600_000_000), file("b", pax={"mtime": "1e300"})
    unpack(root, tar_of(sane, mad, file("c", pax={"mtime": "nan"})))
    assert (root / "a").stat().st_mtime == 1_600_000_000


# --- whiteouts ---------------------------------------------------------------------------------------------

LOWER = tar_of(file("d/one"), file("d/two"), file("d/sub/deep"), file("keep"), link("l", "d"))


@pytest.mark.parametrize(
    ("upper", "left"),
    [
        ([whiteout("keep")], {"d", "d/one", "d/two", "d/sub", "d/sub/deep", "l"}),
        ([whiteout("d")], {"keep", "l"}),
        ([whiteout("none"), whiteout("none/none")], {"d", "d/one", "d/two", "d/sub", "d/sub/deep", "keep", "l"}),
        ([opaque("d")], {"d", "keep", "l"}),
        ([opaque("")], set()),
        # What the layer itself has stays, whichever comes first.
        ([file("d/new"), opaque("d")], {"d", "d/new", "keep", "l"}),
        ([opaque("d"), file("d/new")], {"d", "d/new", "keep", "l"}),
        ([file("d/sub/new"), opaque("d")], {"d", "d/sub", "d/sub/new", "keep", "l"}),
        ([file("keep", "2"), whiteout("keep")], {"d", "d/one", "d/two", "d/sub", "d/sub/deep", "keep", "l"}),
        ([whiteout("l/one")], {"d", "d/two", "d/sub", "d/sub/deep", "keep", "l"}),
        ([whiteout("l")], {"d", "d/one", "d/two", "d/sub", "d/sub/deep", "keep"}),
        ([file("d/.wh..wh.plnk")], {"d", "d/one", "d/two", "d/sub", "d/sub/deep", "keep", "l"}),
    ],
)
def test_whiteouts(root: Path, upper: list[Entry], left: set[str]) -> None:
    assert names(unpack(root, LOWER, tar_of(*upper))) == left


def test_a_whiteout_does_not_reach_out(root: Path) -> None:
    unpack(root, tar_of(link("l", "../outside")), tar_of(whiteout("l/secret"), opaque("l")))
    assert os.listdir(root.parent / "outside") == ["secret"]


# --- mount points ------------------------------------------------------------------------------------------


def test_mount_points_are_never_links(root: Path) -> None:
    outside = str(root.parent / "outside")
    wicked = [link(each, outside) for each in ("proc", "dev", "tmp", "sys", "opt")]
    wicked += [link("etc/hosts", f"{outside}/secret"), folder("etc/resolv.conf"), link("var", outside)]
    unpack(root, tar_of(*wicked))
    for name in ("proc", "dev", "dev/shm", "tmp", "sys", "etc"):
        assert stat.S_ISDIR((root / name).lstat().st_mode)
    for name in ("etc/hosts", "etc/resolv.conf", "dev/null", "dev/urandom"):
        assert stat.S_ISREG((root / name).lstat().st_mode)
    assert os.listdir(outside) == ["secret"]
    assert (root.parent / "outside/secret").read_text() == "secret"


def test_the_devices_of_an_image_are_not_used(root: Path) -> None:
    unpack(root, tar_of(link("dev/null", "/etc/hosts"), file("dev/zero", "1"), folder("dev/full"), file("dev/more")))
    assert names(root) == set()
    for name in ("null", "zero", "full"):
        assert stat.S_ISREG((root / "dev" / name).lstat().st_mode)
        assert (root / "dev" / name).stat().st_size == 0


def test_etc_as_a_link(root: Path) -> None:
    unpack(root, tar_of(link("etc", str(root.parent / "outside"))))
    assert sorted(os.listdir(root / "etc")) == ["hosts", "resolv.conf"]
    assert os.listdir(root.parent / "outside") == ["secret"]


# --- sizes and bytes ---------------------------------------------------------------------------------------


def test_the_size_is_what_is_unpacked(root: Path) -> None:
    data = gzip.compress(tar_of(file("zeros", bytes(4 << 20))))
    with pytest.raises(Broken, match="larger than"):
        unpack(root, data, budget=Budget(bytes_max=1 << 20))


def test_many_entries(root: Path) -> None:
    with pytest.raises(Broken, match="too many files"):
        unpack(root, tar_of(*(file(str(each)) for each in range(20))), budget=Budget(entries_max=10))
    with pytest.raises(Broken, match="too many files"):
        unpack(root, tar_of(file("/".join("abcdefghijkl"))), budget=Budget(entries_max=5))


def _header(name: str, type_: bytes, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = type_, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("type_", [b"x", b"g", b"L", b"K", b"X"])
@pytest.mark.parametrize("size", [8 << 20, 1 << 40])
def test_headers_without_end(root: Path, type_: bytes, size: int) -> None:
    """Not even a part of what they claim is read."""
    body = _header("h", type_, size) + b"9" * (9 << 20)
    with pytest.raises(Broken, match=r"header|data"):
        unpack(root, gzip.compress(body, compresslevel=1))


def test_headers_in_headers(root: Path) -> None:
    chain = b"".join(_header("h", b"L", 1) + b"n".ljust(512, b"\0") for _ in range(2_000))
    with pytest.raises(Broken):
        unpack(root, chain + tar_of(file("x")))


def test_sparse_maps(root: Path) -> None:
    numbers = b"1000000000\n" + b"1\n" * (4 << 20)
    pax = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "9"}
    with pytest.raises(Broken):
        unpack(root, tar_of(file("s", numbers, pax=pax)))


@pytest.mark.parametrize("size", ["-1", "-512", "99999999999999999999", "x"])
def test_sizes_that_are_none(root: Path, size: str) -> None:
    with pytest.raises(Broken):
        unpack(root, tar_of(file("a", b"1", pax={"size": size}), file("b")))


def test_a_broken_header_is_not_the_end(root: Path) -> None:
    data = bytearray(tar_of(file("a", b"x" * 700), file("b")))
    at = data.index(b"b\0", 1_024)
    data[at + 148] ^= 0xFF
    with pytest.raises(Broken, match="header"):
        unpack(root, bytes(data))


@pytest.mark.parametrize("data", [b"", b"\0" * 1_024, b"\0" * 10_240, gzip.compress(b"\0" * 1_024), tar_of()])
def test_empty_layers(root: Path, data: bytes) -> None:
    if data:
        assert names(unpack(root, data)) == set()
    else:
        with pytest.raises(Broken):
            unpack(root, data)


@pytest.mark.parametrize(
    "data",
    [
        b"no tar at all",
        b"x" * 5_000,
        gzip.compress(tar_of(file("a", b"1" * 5_000)))[:-20],
        gzip.compress(tar_of(file("a", os.urandom(5_000))))[:200],
        gzip.compress(b"") + b"rubbish",
        b"\x28\xb5\x2f\xfd" + b"rubbish",
        tar_of(file("a", b"1" * 5_000))[:2_000],
        tar_of(file("a", b"1"))[:300],
    ],
)
def test_bytes_that_are_no_layer(root: Path, data: bytes) -> None:
    with pytest.raises(Broken):
        unpack(root, data)


def test_a_window_without_end(root: Path) -> None:
    """A frame may ask its reader for gigabytes of memory."""
    pytest.importorskip("zstandard")
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, 0xF8]) + struct.pack("<I", 1)[:3]
    with pytest.raises(Broken, match="zstd"):
        unpack(root, frame)


def test_digests_are_checked(root: Path) -> None:
    data = tar_of(file("a"))
    budget = Budget()
    right = Layer("l", len(data), digest(data), digest(data))
    layer_module.unpack(io.BytesIO(data), right, Rootfs(root, budget), budget)
    for wrong in (
        right._replace(size=len(data) - 1),
        right._replace(size=len(data) + 1),
        right._replace(digest=digest(b"")),
        right._replace(diff_id=digest(b"")),
    ):
        with pytest.raises(Broken):
            layer_module.unpack(io.BytesIO(data), wrong, Rootfs(root, budget), budget)


# --- anything at all ---------------------------------------------------------------------------------------

_PART = st.sampled_from(["a", "b", "c", "..", ".", "", "etc", "tmp", ".wh.a", ".wh.b", ".wh..wh..opq", "ä", "\udc80"])
_NAME = st.builds(lambda parts, slash: slash + "/".join(parts), st.lists(_PART, max_size=5), st.sampled_from(["", "/"]))
_TYPE = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE]
)
_MODE = st.integers(0, 0o7777)
_ENTRY = st.builds(
    lambda name, type_, target, mode: Entry(name, type_, b"data" if type_ == tarfile.REGTYPE else b"", target, mode),
    *(_NAME, _TYPE, _NAME, _MODE),
)


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@settings(max_examples=300, deadline=None)
@given(layers=st.lists(st.lists(_ENTRY, max_size=8), min_size=1, max_size=3))
def test_nothing_leaves_the_tree(scratch: Path, layers: list[list[Entry]]) -> None:
    base = Path(tempfile.mkdtemp(dir=scratch))
    # Named as the entries are, on every level above: a way out would be found.
    for above in (base, base / "a", base / "a/b"):
        above.mkdir(exist_ok=True)
        for name in ("c", "etc", "tmp"):
            (above / name).mkdir()
            (above / name / "a").write_text("mine")
    root = base / "a/b/root"
    root.mkdir()

    def outside() -> list[tuple[str, int, bytes]]:
        found = []
        for top, folders, files in os.walk(base):
            if "root" in folders:
                folders.remove("root")
            found += [(os.path.join(top, each), os.stat(os.path.join(top, each)).st_nlink, b"") for each in files]
            found += [(os.path.join(top, each), 0, b"") for each in folders]
        return sorted(found)

    before = outside()
    try:
        unpack(root, *(tar_of(*entries) for entries in layers))
    except Broken:
        pass
    else:
        for name in ("proc", "dev", "dev/shm", "tmp", "sys", "etc"):
            assert stat.S_ISDIR((root / name).lstat().st_mode)
    assert outside() == before
    for top, folders, files in os.walk(root):
        for each in (*folders, *files):
            mode = os.lstat(os.path.join(top, each)).st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
            assert not mode & (stat.S_ISUID | stat.S_ISGID)
    shutil.rmtree(base)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200), at=st.integers(0, 5_000), cut=st.integers(0, 6_000))
def test_damaged_tars(scratch: Path, data: bytes, at: int, cut: int) -> None:
    """Accepted, or refused with Broken: nothing else."""
    whole = tar_of(file("a", b"1" * 700), folder("b"), link("b/c", "/a"), file("n" * 150, pax={"k": "v"}))
    root = Path(tempfile.mkdtemp(dir=scratch))
    try:
        unpack(root, (whole[:at] + data + whole[at + len(data) :])[: cut or None])
    except Broken:
        pass
    shutil.rmtree(root)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=100) | st.sampled_from([b"null", b"{}", b"[]", b'{"manifests":1}', b'{"layers":[]}']))
def test_any_json(data: bytes) -> None:
    for parse in (parse_manifest, parse_config):
        try:
            parse(data)
        except Broken:
            pass


def test_manifests_that_lie() -> None:
    fine = '{"digest":"sha256:%s","size":1}' % ("a" * 64)
    for config, layers in (
        ('{"digest":"sha256:../../x","size":1}', "[]"),
        ('{"digest":"sha512:%s","size":1}' % ("a" * 128), "[]"),
        (fine.replace('"size":1', '"size":-1'), "[]"),
        (fine.replace('"size":1', '"size":99999999999'), "[]"),
        (fine, f"[{fine.replace('}', ',')}" + '"mediaType":"application/vnd.in-toto+json"}]'),
        (fine, "[" + ",".join([fine] * 1_001) + "]"),
    ):
        with pytest.raises(Broken):
            parse_manifest(f'{{"schemaVersion":2,"config":{config},"layers":{layers}}}'.encode())
    with pytest.raises(Broken, match="no process"):
        settings_of(parse_config(b'{"config":{"Cmd":["a\\u0000"]}}'), "x86_64")
    nothing = settings_of(parse_config(b'{"config":{"Env":null,"Entrypoint":null}}'), "arm64")
    assert (nothing.entry_point, nothing.command, nothing.environment) == ((), (), {})
