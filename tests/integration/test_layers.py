"""Layers in a running function: on the path, in their order, read-only, and there after they are deleted."""

from __future__ import annotations

import errno
import io
import stat
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from integration.harness import RUNTIME, Function, Server, make_zip, serving

HANDLER = """
    import os
    import stat
    import subprocess

    import first
    import shared

    def handler(event, context):
        try:
            with open("/opt/python/first.py", "a"):
                refused = 0
        except OSError as error:
            refused = error.errno
        try:
            os.mkdir("/opt/new")
            made = 0
        except OSError as error:
            made = error.errno
        found = os.stat("/opt")
        return {
            "first": first.NAME,
            "shared": shared.NAME,
            "where": shared.__file__,
            "data": open("/opt/data/second.txt").read(),
            "listing": sorted(os.listdir("/opt")),
            "mode": stat.S_IMODE(found.st_mode),
            "tool": subprocess.run(["tool"], capture_output=True, text=True).stdout,
            "refused": [refused, made],
        }
"""


def zip_with_tool(files: dict[str, str], tool: str) -> bytes:
    """The files, and an executable bin/tool."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        info = zipfile.ZipInfo("bin/tool")
        info.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(info, tool)
    return buffer.getvalue()


FIRST = zip_with_tool(
    {"python/first.py": "NAME = 'first'\n", "python/shared.py": "NAME = 'of the first'\n"}, "#!/bin/sh\necho tooled\n"
)
SECOND = make_zip({"python/shared.py": "NAME = 'of the second'\n", "data/second.txt": "2"})


@pytest.fixture
def layers(server: Server) -> list[str]:
    """ARNs of two layers of which the second one replaces a file of the first."""
    return [publish(server, data) for data in (FIRST, SECOND)]


def publish(server: Server, data: bytes) -> str:
    answer = server.lambda_.publish_layer_version(
        LayerName=f"l-{uuid.uuid4().hex[:8]}", Content={"ZipFile": data}, CompatibleRuntimes=[RUNTIME]
    )
    arn: str = answer["LayerVersionArn"]
    return arn


def test_a_function_with_two_layers(deploy: Callable[..., Function], layers: list[str]) -> None:
    function = deploy({"m.py": HANDLER}, Layers=layers)
    found = function.call()
    refused = found.pop("refused")
    assert found == {
        "first": "first",
        "shared": "of the second",
        "where": "/opt/python/shared.py",
        "data": "2",
        "listing": ["bin", "data", "python"],
        "mode": 0o755,
        "tool": "tooled\n",
    }
    assert set(refused) <= {errno.EROFS, errno.EACCES}


def test_a_change_of_layers(server: Server, deploy: Callable[..., Function], layers: list[str]) -> None:
    function = deploy("import shared\n\ndef handler(event, context):\n    return shared.NAME\n", Layers=layers[:1])
    assert function.call() == "of the first"
    function.configure(Layers=layers)
    assert function.call() == "of the second"
    function.configure(Layers=layers[::-1])
    assert function.call() == "of the first"
    function.configure(Layers=[])
    assert function.invoke().error == "Unhandled"
    assert "No module named 'shared'" in function.invoke().value["errorMessage"]


def test_functions_do_not_see_each_other_s_layers(deploy: Callable[..., Function], layers: list[str]) -> None:
    source = "import os\n\ndef handler(event, context):\n    return sorted(os.listdir('/opt'))\n"
    with_layers, without = deploy(source, Layers=layers[:1]), deploy(source)
    assert with_layers.call() == ["bin", "python"]
    assert without.call() == []
    assert with_layers.call() == ["bin", "python"]


def test_deleted_layers_work_on_after_a_restart(tmp_path: Path) -> None:
    source = "import first, shared\n\ndef handler(event, context):\n    return first.NAME, shared.NAME\n"
    with serving(tmp_path / "data") as server:
        arns = [publish(server, data) for data in (FIRST, SECOND)]
        name = server.deploy(source, Layers=arns).name
        for arn in arns:
            server.lambda_.delete_layer_version(LayerName=arn.rpartition(":")[0], VersionNumber=1)
        assert server.lambda_.list_layers()["Layers"] == []
    with serving(tmp_path / "data") as server:
        function = Function(server, name)
        assert function.call() == ["first", "of the second"]
        found = server.lambda_.get_function_configuration(FunctionName=name)
        assert [each["Arn"] for each in found["Layers"]] == arns
