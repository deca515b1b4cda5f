"""Zips that want out, as functions and as layers, through the API: refused, or harmless where they land. The unpacker
by itself, and images, are tested in tests/store."""

from __future__ import annotations

import os
import stat
import struct
import uuid
import warnings
import zlib
from pathlib import Path

import botocore.exceptions
import pytest

from integration.harness import ROLE, RUNTIME, Server, wait_until
from store.zips import file, folder, link, make_entries, make_zip

HANDLER = file("m.py", b"def handler(event, context):\n    return 'harmless'\n")
MARK = f"lambent-{uuid.uuid4().hex}"


def _claims(data: bytes, size: int) -> bytes:
    """The same zip with another unpacked size in both its headers."""
    changed = bytearray(data)
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = changed.index(signature)
        changed[at + offset : at + offset + 4] = struct.pack("<I", size)
    return bytes(changed)


def _many_entries(count: int) -> bytes:
    """A central directory alone: `count` names for one empty file."""
    local = struct.pack("<4s5H3I2H", b"PK\x03\x04", 20, 0, 0, 0, 0x21, 0, 0, 0, 5, 0) + b"00000"
    entries = b"".join(
        struct.pack("<4s6H3I5H2I", b"PK\x01\x02", 20, 20, 0, 0, 0, 0x21, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)
        + b"%05x" % number
        for number in range(count)
    )
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count & 0xFFFF, count & 0xFFFF, len(entries), len(local), 0)
    return local + entries + end


def _overlapping(count: int) -> bytes:
    """Many names for the same compressed 40 MB."""
    one = make_zip({"aaaa": bytes(40_000_000)})
    at, end = one.index(b"PK\x01\x02"), one.index(b"PK\x05\x06")
    entries = b"".join(one[at:end].replace(b"aaaa", b"%04d" % number) for number in range(count))
    return one[:at] + entries + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(entries), at, 0)


def _bad_checksum() -> bytes:
    data = bytearray(make_entries(HANDLER, file("x", os.urandom(64))))
    at = data.rindex(b"PK\x01\x02")
    data[at + 16] ^= 1
    return bytes(data)


ZIPS = {
    "link to the root": [link("out", "/"), file(f"out/tmp/{MARK}")],
    "link to the root, after": [file(f"out/tmp/{MARK}"), link("out", "/")],
    "link upwards": [link("out", "../../../../../../tmp"), file(f"out/{MARK}")],
    "chain of links": [link("a", "b"), link("b", "../.."), file(f"a/{MARK}")],
    "link to the code of others": [link("out", "..")],
    "link to process 1": [link("out", "/proc/1/root")],
    "absolute name": [file(f"/tmp/{MARK}")],
    "name upwards": [file(f"../../../../../../tmp/{MARK}")],
    "name upwards in the middle": [file(f"a/../../../../../../tmp/{MARK}")],
    "backslashes": [file(f"..\\..\\..\\tmp\\{MARK}")],
    "zero byte": [file(f"cut\0/../../../../tmp/{MARK}")],
    "drive": [file(f"C:/tmp/{MARK}")],
    "block device": [("disk", b"", stat.S_IFBLK | 0o666)],
    "character device": [("mem", b"", stat.S_IFCHR | 0o666)],
    "fifo": [("pipe", b"", stat.S_IFIFO | 0o666)],
    "socket": [("socket", b"", stat.S_IFSOCK | 0o666)],
    "file and folder": [file("x"), folder("x")],
    "very deep": [file("d/" * 1_000 + "x")],
    "very long": [file("x" * 300)],
}
RAW = {
    "bomb": lambda: make_zip({"a": bytes(262_144_001)}),
    "bomb that lies": lambda: _claims(make_zip({"a": bytes(262_144_001)}), 10),
    "claims 4 GB": lambda: _claims(make_zip({"a": b"1"}), 2**32 - 2),
    "overlapping": lambda: _overlapping(20),
    "100,001 entries": lambda: _many_entries(100_001),
    "checksum": _bad_checksum,
    "cut off": lambda: make_zip({"m.py": b"x" * 1000})[:-30],
    "not a zip": lambda: b"PK\x03\x04" + zlib.compress(bytes(1000)),
}


def _untouched(server: Server) -> None:
    for path in (Path("/tmp") / MARK, Path("/") / MARK, server.data.parent / MARK, Path("/etc") / MARK):
        assert not os.path.lexists(path)
    assert list(server.data.rglob(MARK)) == []
    for path in (server.data / "code").rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode), path
        assert not mode & (stat.S_ISUID | stat.S_ISGID), path


@pytest.mark.parametrize("kind", [*ZIPS, *RAW])
def test_refused(server: Server, kind: str) -> None:
    data = make_entries(HANDLER, *ZIPS[kind]) if kind in ZIPS else RAW[kind]()
    layers = {layer["LayerName"] for layer in server.lambda_.list_layers()["Layers"]}
    name = f"wicked-{uuid.uuid4().hex[:8]}"
    with pytest.raises(botocore.exceptions.ClientError) as refused:
        server.lambda_.create_function(
            FunctionName=name, Runtime=RUNTIME, Role=ROLE, Handler="m.handler", Code={"ZipFile": data}
        )
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 413)
    with pytest.raises(botocore.exceptions.ClientError) as refused:
        server.lambda_.publish_layer_version(LayerName=name, Content={"ZipFile": data})
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] in (400, 413)
    with pytest.raises(server.lambda_.exceptions.ResourceNotFoundException):
        server.lambda_.get_function(FunctionName=name)
    assert {layer["LayerName"] for layer in server.lambda_.list_layers()["Layers"]} == layers
    _untouched(server)


def test_harmless(server: Server) -> None:
    """Names that are strange and no more, set-user-id bits, and the same name twice."""
    name = f"strange-{uuid.uuid4().hex[:8]}"
    entries = [
        file("m.py", b"raise SystemExit\n"),
        file("m.py", b"import os\ndef handler(event, context):\n    return sorted(os.listdir('/var/task'))\n"),
        file("new\nline"), file("-rf"), file("$(id)"), file("%s%n"), file("\u202e\u00e9"),
        file("run", b"#!/bin/sh\n", 0o6755),
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of the name that is there twice
        data = make_entries(*entries)
    server.lambda_.create_function(
        FunctionName=name, Runtime=RUNTIME, Role=ROLE, Handler="m.handler", Code={"ZipFile": data}
    )
    wait_until(
        lambda: server.lambda_.get_function_configuration(FunctionName=name)["State"] == "Active", f"{name} is active"
    )
    seen = server.lambda_.invoke(FunctionName=name)["Payload"].read().decode()
    assert '"new\\nline"' in seen
    _untouched(server)
    server.lambda_.delete_function(FunctionName=name)


def test_layers_that_together_lead_out(server: Server) -> None:
    """Each is harmless; one over the other, the second would be written through the link of the first."""
    versions = []
    for number, entries in enumerate(([folder("a"), link("a/up", "."), link("out", "a/up")], [file(f"out/{MARK}")])):
        made = server.lambda_.publish_layer_version(
            LayerName=f"together-{number}", Content={"ZipFile": make_entries(*entries)}
        )
        versions.append(made["LayerVersionArn"])
    source = "import os\ndef handler(event, context):\n    return [f for _, _, fs in os.walk('/opt') for f in fs]"
    for order in (versions, versions[::-1]):
        try:
            function = server.deploy(source, Layers=order)
        except (botocore.exceptions.ClientError, AssertionError):
            continue  # refused, or never active
        assert function.call() in ([MARK], [])
        server.lambda_.delete_function(FunctionName=function.name)
    for path in (Path("/tmp") / MARK, server.data.parent / MARK):
        assert not os.path.lexists(path)
