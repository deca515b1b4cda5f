"""The JSON of images (OCI image-spec, Docker's image manifest version 2, schema 2) and the choice of a platform.

Everything comes from strangers: digests are checked because they become paths and URLs, sizes because they
become limits. Raises Broken.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple, TypeVar

import msgspec

from lambent.store.images.errors import Broken

T = TypeVar("T")

#: Manifests and configurations are read into memory. Registries refuse manifests of more than this.
JSON_MAX_BYTES = 4 << 20
LAYERS_MAX = 1_000
MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
#: AWS's names of architectures, and those of images.
ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}
_LAYER_TYPE = re.compile(
    r"application/vnd\.(oci\.image\.layer\.(nondistributable\.)?v1\.tar(\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.diff\.tar(\.gzip|\.zstd)?)"
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """A reference to bytes by what they are."""

    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: Descriptor
    layers: list[Descriptor]
    schema_version: int = 2


class Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: list[Descriptor]
    schema_version: int = 2


class _Process(msgspec.Struct, frozen=True, rename="pascal"):
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    working_dir: str | None = None


class _RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] | None = None


class Config(msgspec.Struct, frozen=True):
    """An image's configuration: what to run, and on which platform."""

    architecture: str = ""
    os: str = ""
    config: _Process | None = None
    rootfs: _RootFs | None = None


class RunSettings(msgspec.Struct, frozen=True):
    """What a Dockerfile says about the process."""

    entry_point: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_directory: str = ""
    environment: dict[str, str] = {}


class Layer(NamedTuple):
    """One layer's bytes. `digest` is that of the bytes as they are stored, `diff_id` that of the tar in them;
    None when it is not to be checked."""

    name: str
    size: int | None = None
    digest: str | None = None
    diff_id: str | None = None


class FoundImage(NamedTuple):
    """An image of a source. `digest` is "sha256:" and the hex of its manifest."""

    digest: str
    settings: RunSettings
    layers: tuple[Layer, ...] = ()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def parse_manifest(data: bytes) -> Manifest | Index:
    """A manifest of one image, or an index of several."""
    members = _decode(data, dict[str, msgspec.Raw], "a manifest")
    if "manifests" in members:
        index = _decode(data, Index, "an index")
        for each in index.manifests:
            _check(each)
        return index
    if "layers" not in members or "config" not in members:
        raise Broken("a manifest of a kind that is not supported")
    manifest = _decode(data, Manifest, "a manifest")
    if len(manifest.layers) > LAYERS_MAX:
        raise Broken(f"more than {LAYERS_MAX} layers")
    _check(manifest.config)
    if manifest.config.size > JSON_MAX_BYTES:
        raise Broken("a configuration that is too large")
    for each in manifest.layers:
        _check(each)
        if each.media_type and not _LAYER_TYPE.fullmatch(each.media_type):
            raise Broken(f"a layer of the type {each.media_type}")
    return manifest


def layers_of(manifest: Manifest) -> tuple[Layer, ...]:
    return tuple(Layer(each.digest, each.size, each.digest) for each in manifest.layers)


def parse_config(data: bytes) -> Config:
    config = _decode(data, Config, "a configuration")
    for each in config.rootfs.diff_ids or () if config.rootfs else ():
        if not _DIGEST.fullmatch(each):
            raise Broken("a digest that is none")
    return config


def settings_of(config: Config, architecture: str) -> RunSettings:
    """What the image runs. Raises Broken when that can not be run by a function of `architecture` (AWS's name)."""
    if config.os not in ("", "linux"):
        raise Broken(f"an image for {config.os}")
    if config.architecture not in ("", ARCHITECTURES[architecture]):
        raise Broken(f"an image for {config.architecture}, the function's architecture is {architecture}")
    process = config.config or _Process()
    environment = dict(each.partition("=")[::2] for each in process.env or () if "=" in each)
    texts = (*environment, *environment.values(), *(process.entrypoint or ()), *(process.cmd or ()))
    if any("\0" in text for text in (*texts, process.working_dir or "")):
        raise Broken("a configuration that no process can be given")
    environment.pop("", None)
    return RunSettings(
        tuple(process.entrypoint or ()), tuple(process.cmd or ()), process.working_dir or "", environment
    )


def choose(candidates: list[Descriptor], architecture: str) -> Descriptor:
    """The image of an index that fits. Raises Broken."""
    wanted = ARCHITECTURES[architecture]
    fitting = [
        each
        for each in candidates
        if each.platform is not None and (each.platform.os, each.platform.architecture) == ("linux", wanted)
    ]
    if not fitting:
        raise Broken(f"no image for linux/{wanted}")
    # arm64 without a variant is v8.
    return min(fitting, key=lambda each: each.platform is not None and each.platform.variant not in ("", "v8"))


def _check(descriptor: Descriptor) -> None:
    if not _DIGEST.fullmatch(descriptor.digest):
        raise Broken("a digest that is not sha256")
    if descriptor.size < 0:
        raise Broken("a negative size")


def _decode(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Broken(f"{what} that can not be read: {error}") from error
