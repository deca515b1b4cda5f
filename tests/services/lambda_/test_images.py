"""Functions with PackageType Image: the API's answers, from a registry and from this machine."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lambent.model.function import VersionSpec
from lambent.store.images.store import ImageSettings
from store.image_builder import Image, Index, Registry, file, registry, tar_of, write_layout

from .harness import ZIP, Harness, RecordingDeployments, refusal, request

INVALID = "InvalidParameterValueException"
ONE = Image(
    tar_of(file("bin/one", "1", 0o755)),
    Entrypoint=["/bin/one"],
    Cmd=["x", "y"],
    WorkingDir="/w",
    Env=["A=1", "PATH=/bin"],
)
TWO = Image(tar_of(file("bin/two", "2", 0o755)), Cmd=["/bin/two"])


class Pulling(RecordingDeployments):
    """Prepares as a worker does."""

    server: ImageHarness

    async def prepare(self, spec: VersionSpec) -> None:
        await super().prepare(spec)
        if spec.image is not None:
            await self.server.store.ensure_image(spec.image.digest)


class ImageHarness(Harness):
    async def _start(self, hold: bool) -> None:
        await super()._start(hold)
        self.deployments.__class__ = Pulling
        self.deployments.server = self  # type: ignore[attr-defined]
        self.store.images.settings = ImageSettings((self.data,), self.data / "docker-config.json")

    def spec(self, name: str = "f", version: str = "$LATEST") -> Any:
        return self.deployments.active[name, version]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ImageHarness]:
    harness = ImageHarness(tmp_path)
    harness.start()
    yield harness
    harness.stop()


@pytest.fixture
def remote() -> Iterator[Registry]:
    with registry() as made:
        yield made


def image_request(uri: str, name: str = "f", **changes: Any) -> dict[str, Any]:
    members = {"PackageType": "Image", "Code": {"ImageUri": uri}, "Runtime": None, "Handler": None}
    return request(name, **{**members, **changes})


def test_create_and_read(server: ImageHarness, client: Any, remote: Registry) -> None:
    uri = remote.push("team/f:v1", ONE)
    made = client.create_function(**image_request(uri, ImageConfig={"Command": ["z"]}))
    assert made["State"] == "Pending"
    assert made["PackageType"] == "Image"
    assert made["CodeSha256"] == ONE.sha256
    assert made["CodeSize"] == 0
    assert made["ImageConfigResponse"] == {"ImageConfig": {"Command": ["z"]}}
    assert not {"Runtime", "Handler", "RuntimeVersionConfig", "Layers"} & made.keys()
    server.release()
    found = client.get_function(FunctionName="f")
    assert found["Configuration"]["State"] == "Active"
    resolved = f"{remote.host}/team/f@{ONE.digest}"
    assert found["Code"] == {"RepositoryType": "ECR", "ImageUri": uri, "ResolvedImageUri": resolved}
    assert client.get_function_configuration(FunctionName="f")["ImageConfigResponse"]
    listed = client.list_functions()["Functions"][0]
    assert (listed["PackageType"], listed["CodeSha256"]) == ("Image", ONE.sha256)

    spec = server.spec()
    assert (spec.code_sha256, spec.runtime, spec.handler) == ("", "", "")
    assert spec.image.digest == ONE.sha256
    assert spec.image.entry_point == ("/bin/one",)
    assert spec.image.command == ("z",)
    assert spec.image.working_directory == "/w"
    assert spec.image.environment == {"A": "1", "PATH": "/bin"}
    assert (server.store._unpacked / server.store.image_folder(ONE.sha256) / "bin/one").read_text() == "1"


def test_image_config(server: ImageHarness, client: Any, remote: Registry) -> None:
    config = {"EntryPoint": ["/e", "1"], "Command": [], "WorkingDirectory": "/t"}
    client.create_function(**image_request(remote.push("f:1", ONE), ImageConfig=config))
    server.release()
    image = server.spec().image
    assert (image.entry_point, image.command, image.working_directory) == (("/e", "1"), ("x", "y"), "/t")
    changed = client.update_function_configuration(FunctionName="f", Description="d")
    assert changed["ImageConfigResponse"]["ImageConfig"] == {"EntryPoint": ["/e", "1"], "WorkingDirectory": "/t"}
    server.release()
    changed = client.update_function_configuration(FunctionName="f", ImageConfig={})
    assert "ImageConfigResponse" not in changed
    server.release()
    image = server.spec().image
    assert (image.entry_point, image.command, image.working_directory) == (("/bin/one",), ("x", "y"), "/w")
    assert refusal(client.update_function_configuration, FunctionName="f", ImageConfig={"Command": ["x" * 17_000]}) == (
        INVALID,
        "ImageConfig must be smaller than 16384 bytes",
    )
    assert (
        refusal(client.update_function_configuration, FunctionName="f", ImageConfig={"Command": ["\0"]})[0] == INVALID
    )


def test_update_and_publish(server: ImageHarness, client: Any, remote: Registry) -> None:
    """A tag is looked up once for each change of the code; a published version keeps what it meant then."""
    uri = remote.push("f:latest", ONE)
    client.create_function(**image_request(uri))
    server.release()
    wrong = base64.b64encode(bytes(32)).decode()
    assert refusal(client.publish_version, FunctionName="f", CodeSha256=wrong)[0] == INVALID
    assert client.publish_version(FunctionName="f", CodeSha256=ONE.sha256)["Version"] == "1"
    remote.push("f:latest", TWO)
    client.update_function_configuration(FunctionName="f", Timeout=9)
    server.release()
    assert server.spec().image.digest == ONE.sha256
    assert client.update_function_code(FunctionName="f", ImageUri=uri, DryRun=True)["CodeSha256"] == TWO.sha256
    changed = client.update_function_code(FunctionName="f", ImageUri=uri, Publish=True)
    assert (changed["Version"], changed["CodeSha256"]) == ("2", TWO.sha256)
    server.release()
    assert server.spec().image.digest == TWO.sha256
    assert server.spec().image.command == ("/bin/two",)
    assert server.spec("f", "1").image.digest == ONE.sha256
    located = client.get_function(FunctionName="f", Qualifier="1")["Code"]
    assert (located["ImageUri"], located["ResolvedImageUri"]) == (uri, f"{remote.host}/f@{ONE.digest}")
    remote.tags.clear()
    server.restart()
    server.release()
    assert server.spec("f", "1").image.digest == ONE.sha256
    assert len(list(server.store._unpacked.glob("image-*"))) == 2
    client = server.client()
    client.delete_function(FunctionName="f")
    server.restart()
    assert list(server.store._unpacked.glob("image-*")) == []


def test_what_still_answers_keeps_its_image(server: ImageHarness, client: Any, remote: Registry) -> None:
    uri = remote.push("f:latest", ONE)
    client.create_function(**image_request(uri))
    server.release()
    remote.push("f:latest", TWO)
    server.hold()
    client.update_function_code(FunctionName="f", ImageUri=uri)
    server.restart(hold=True)
    assert server.spec().image.digest == ONE.sha256
    assert (server.store._unpacked / server.store.image_folder(ONE.sha256)).is_dir()
    server.release()
    assert server.spec().image.digest == TWO.sha256


def test_architectures(server: ImageHarness, client: Any, remote: Registry) -> None:
    arm = Image(tar_of(file("arm")), architecture="arm64", Cmd=["/arm"])
    uri = remote.push("f:1", Index(ONE, arm))
    made = client.create_function(**image_request(uri, Architectures=["arm64"]))
    assert (made["CodeSha256"], made["Architectures"]) == (arm.sha256, ["arm64"])
    server.release()
    changed = client.update_function_code(FunctionName="f", ImageUri=uri, Architectures=["x86_64"])
    assert (changed["CodeSha256"], changed["Architectures"]) == (ONE.sha256, ["x86_64"])


def test_images_of_this_machine(server: ImageHarness, client: Any) -> None:
    layout = write_layout(server.data / "layout", v1=ONE)
    made = client.create_function(**image_request(f"oci:{layout}:v1"))
    assert made["CodeSha256"] == ONE.sha256
    resolved = client.get_function(FunctionName="f")["Code"]["ResolvedImageUri"]
    assert resolved == f"oci:{layout}@{ONE.digest}"
    code, message = refusal(client.create_function, **image_request("dir:/etc", "g"))
    assert code == INVALID
    assert message.endswith("use --image-dir FOLDER.")


def test_the_two_kinds_do_not_mix(server: ImageHarness, client: Any, remote: Registry) -> None:
    uri = remote.push("f:1", ONE)
    layer = "arn:aws:lambda:eu-west-1:123456789012:layer:l:1"
    not_for_images = (
        INVALID,
        "Please don't provide Handler or Runtime or Layer when the intended function PackageType is Image.",
    )
    for member in ({"Runtime": "python3.12"}, {"Handler": "a.b"}, {"Layers": [layer]}):
        assert refusal(client.create_function, **image_request(uri, **member)) == not_for_images
    for code in ({}, {"ZipFile": ZIP}, {"ImageUri": uri, "ZipFile": ZIP}, {"S3Bucket": "bbb", "S3Key": "k"}):
        text = "Please provide ImageUri when creating a function with packageType Image."
        assert refusal(client.create_function, **image_request(uri, Code=code)) == (INVALID, text)
    no_source = (INVALID, "Please provide a source for function code.")
    assert refusal(client.create_function, **request(Code={"ImageUri": uri})) == no_source
    config = {"Command": ["x"]}
    text = "Please don't provide ImageConfig when the intended function PackageType is Zip."
    assert refusal(client.create_function, **request(ImageConfig=config)) == (INVALID, text)

    client.create_function(**request("zip", ImageConfig={}))
    client.create_function(**image_request(uri, "image"))
    server.release()
    assert refusal(client.update_function_configuration, FunctionName="zip", ImageConfig=config) == (INVALID, text)
    text = "Please don't provide ImageUri when updating a function with packageType Zip."
    assert refusal(client.update_function_code, FunctionName="zip", ImageUri=uri) == (INVALID, text)
    text = "Please provide ImageUri when updating a function with packageType Image."
    assert refusal(client.update_function_code, FunctionName="image", ZipFile=ZIP) == (INVALID, text)
    assert refusal(client.update_function_code, FunctionName="image") == (INVALID, text)
    for member in ({"Runtime": "python3.12"}, {"Handler": "a.b"}, {"Layers": [layer]}):
        assert refusal(client.update_function_configuration, FunctionName="image", **member) == not_for_images


def test_images_that_are_not_there(server: ImageHarness, client: Any, remote: Registry) -> None:
    uri = f"{remote.host}/none:v1"
    text = f"Source image {uri} does not exist. Provide a valid source image."
    assert refusal(client.create_function, **image_request(uri)) == (INVALID, text)
    code, message = refusal(client.create_function, **image_request("a:b:c"))
    assert code == INVALID
    assert message.startswith("Source image a:b:c is not valid. Provide a valid source image.")
    remote.push("secret:v1", ONE)
    remote.auth = "token"
    code, message = refusal(client.create_function, **image_request(f"{remote.host}/secret:v1"))
    assert code == "AccessDeniedException"
    assert message.startswith("Lambda does not have permission to access the ECR image. Check the ECR permissions.")
    assert client.list_functions()["Functions"] == []


@pytest.mark.parametrize(
    ("answer", "reason_code", "reason"),
    [
        ((404, b""), "ImageDeleted", "does not exist. Provide a valid source image."),
        ((403, b""), "ImageAccessDenied", "Lambda does not have permission to access the ECR image."),
        ((200, b"rubbish"), "InvalidImage", "is not valid. Provide a valid source image."),
        ((501, b""), "InternalError", "answered 501"),
    ],
)
def test_a_pull_that_fails(
    server: ImageHarness, client: Any, remote: Registry, answer: tuple[int, bytes], reason_code: str, reason: str
) -> None:
    uri = remote.push("f:1", ONE)
    server.hold()
    client.create_function(**image_request(uri))
    remote.fault = lambda path: answer if "/blobs/" in path else None
    server.release()
    found = client.get_function_configuration(FunctionName="f")
    assert found["State"] == "Failed"
    assert reason in found["StateReason"]
    assert found["StateReasonCode"] == reason_code
    remote.fault = lambda path: None
    client.update_function_code(FunctionName="f", ImageUri=uri)
    server.release()
    assert client.get_function_configuration(FunctionName="f")["State"] == "Active"
