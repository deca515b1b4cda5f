"""What an ImageUri says: a place, and which image there.

oci:/path/to/layout[:tag|@sha256:...]      a folder in the OCI image layout
oci-archive:/path.tar[:tag|@sha256:...]    the same as a tar file
docker-archive:/path.tar                   what `docker save` writes
dir:/path                                  a folder that is the root file system
[host[:port]/]name[:tag][@sha256:...]      a registry; without a host Docker Hub
"""

from __future__ import annotations

import enum
import ipaddress
import os.path
import re
from typing import NamedTuple

from lambent.store.images.errors import Broken

DOCKER_HUB = "docker.io"
_URI_MAX = 4_096
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9-]+)*|\[[0-9a-fA-F:]+\])(?::\d{1,5})?")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY_MAX = 255


class LocalKind(enum.StrEnum):
    """The word before the colon."""

    OCI = "oci"
    OCI_ARCHIVE = "oci-archive"
    DOCKER_ARCHIVE = "docker-archive"
    DIR = "dir"


class LocalReference(NamedTuple):
    """An image on this machine. `path` is absolute and has no `..`; `digest` is "sha256:" and hex."""

    kind: LocalKind
    path: str
    tag: str | None = None
    digest: str | None = None

    def pinned(self, digest: str) -> str:
        """The URI of exactly this image of that place."""
        return f"{self.kind}:{self.path}@{digest}"


class RegistryReference(NamedTuple):
    """An image in a registry. `name` is host and repository as the caller wrote them."""

    name: str
    host: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    def pinned(self, digest: str) -> str:
        return f"{self.name}@{digest}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, where registries speak HTTP without TLS."""
        host = re.sub(r":\d+$", "", self.host).strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


Reference = LocalReference | RegistryReference


def parse(uri: str) -> Reference:
    """Read an ImageUri. Raises Broken when it is none."""
    if len(uri) > _URI_MAX or not uri.isprintable():
        raise Broken("not a name of an image")
    for kind in LocalKind:
        if uri.startswith(f"{kind}:"):
            return _local(kind, uri.removeprefix(f"{kind}:"))
    return _registry(uri)


def _local(kind: LocalKind, rest: str) -> LocalReference:
    rest, digest = _without_digest(rest)
    tag = None
    if kind in (LocalKind.OCI, LocalKind.OCI_ARCHIVE):
        rest, tag = _without_tag(rest)
    path = os.path.normpath(rest)
    if not rest.startswith("/") or ".." in rest.split("/"):
        raise Broken(f"{kind}: takes an absolute path")
    return LocalReference(kind, "/" + path.lstrip("/"), None if digest else tag, digest)


def _registry(uri: str) -> RegistryReference:
    rest, digest = _without_digest(uri)
    name, tag = _without_tag(rest)
    first, slash, others = name.partition("/")
    # Docker's rule: the first part is a host when it looks like one, else everything is a name of Docker Hub.
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, repository = first, others
    else:
        host, repository = DOCKER_HUB, name
    if host in (DOCKER_HUB, "index.docker.io"):
        host = DOCKER_HUB
        repository = repository if "/" in repository else f"library/{repository}"
    if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository) or len(repository) > _REPOSITORY_MAX:
        raise Broken("not a name of an image")
    if digest is not None:
        return RegistryReference(name, host, repository, None, digest)
    return RegistryReference(name, host, repository, tag or "latest")


def _without_digest(text: str) -> tuple[str, str | None]:
    name, at, digest = text.rpartition("@")
    if not at or "/" in digest or ":" not in digest:
        return text, None
    if not _DIGEST.fullmatch(digest):
        raise Broken("a digest is sha256: and 64 hexadecimal digits")
    return name, digest


def _without_tag(text: str) -> tuple[str, str | None]:
    """A colon behind the last slash begins a tag."""
    folder, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    if not colon:
        return text, None
    if not _TAG.fullmatch(tag):
        raise Broken("not a tag")
    return f"{folder}{slash}{name}", tag
