"""Container images made by hand, for tests: layers entry by entry, in every wrapping, and a registry to pull from."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


class Entry(NamedTuple):
    name: str
    type: bytes = tarfile.REGTYPE
    data: bytes = b""
    target: str = ""
    mode: int = 0o644
    pax: dict[str, str] | None = None
    mtime: float = 1_700_000_000


def file(name: str, data: bytes | str = b"", mode: int = 0o644, **more: Any) -> Entry:
    return Entry(name, data=data.encode() if isinstance(data, str) else data, mode=mode, **more)


def folder(name: str, mode: int = 0o755) -> Entry:
    return Entry(name, tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str) -> Entry:
    return Entry(name, tarfile.SYMTYPE, target=target, mode=0o777)


def hard(name: str, target: str) -> Entry:
    return Entry(name, tarfile.LNKTYPE, target=target)


def device(name: str) -> Entry:
    return Entry(name, tarfile.CHRTYPE)


def whiteout(name: str) -> Entry:
    head, slash, tail = name.rpartition("/")
    return Entry(f"{head}{slash}.wh.{tail}")


def opaque(name: str) -> Entry:
    return Entry(f"{name}/.wh..wh..opq" if name else ".wh..wh..opq")


def tar_of(*entries: Entry) -> bytes:
    """Names may be wicked: nothing is checked."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
        for entry in entries:
            info = tarfile.TarInfo("x")
            info.name, info.type, info.linkname, info.mode = entry.name, entry.type, entry.target, entry.mode
            info.mtime = entry.mtime
            info.pax_headers = entry.pax or {}
            info.size = len(entry.data)
            archive.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def packed(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.compress(data, mtime=0, compresslevel=1)
    if compression == "zstd":
        import zstandard

        return zstandard.ZstdCompressor().compress(data)
    return data


class Image:
    """An image of `layers` (tars). Attributes may be changed before it is written, to break it."""

    def __init__(
        self,
        *layers: bytes,
        architecture: str = "amd64",
        os: str = "linux",
        compression: str = "gzip",
        **process: Any,
    ) -> None:
        self.tars = layers
        self.architecture, self.os = architecture, os
        self.config = json.dumps(
            {
                "architecture": architecture,
                "os": os,
                "config": process,
                "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            }
        ).encode()
        self.layers = [packed(layer, compression) for layer in layers]
        suffix = "" if compression == "none" else f"+{compression}"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": {"mediaType": OCI_CONFIG, "digest": digest(self.config), "size": len(self.config)},
                "layers": [
                    {"mediaType": OCI_LAYER + suffix, "digest": digest(layer), "size": len(layer)}
                    for layer in self.layers
                ],
            }
        ).encode()

    @property
    def digest(self) -> str:
        return digest(self.manifest)

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")

    @property
    def id(self) -> str:
        """Docker's ID."""
        return digest(self.config)

    @property
    def blobs(self) -> dict[str, bytes]:
        """Everything by its digest."""
        return {digest(data): data for data in (self.manifest, self.config, *self.layers)}

    def descriptor(self, **annotations: str) -> dict[str, Any]:
        platform = {"architecture": self.architecture, "os": self.os}
        size = len(self.manifest)
        found: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": self.digest, "size": size, "platform": platform}
        if annotations:
            found["annotations"] = annotations
        return found


class Index:
    """Several images under one name."""

    def __init__(self, *images: Image, media_type: str = OCI_INDEX) -> None:
        self.images = images
        strange = {"mediaType": OCI_MANIFEST, "digest": digest(b"attestation"), "size": 3}
        manifests = [
            {**strange, "platform": {"architecture": "unknown", "os": "unknown"}},
            *(image.descriptor() for image in images),
        ]
        self.manifest = json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).encode()
        self.media_type = media_type

    @property
    def blobs(self) -> dict[str, bytes]:
        found = {digest(self.manifest): self.manifest}
        for image in self.images:
            found.update(image.blobs)
        return found

    def descriptor(self, **annotations: str) -> dict[str, Any]:
        return {
            "mediaType": self.media_type,
            "digest": digest(self.manifest),
            "size": len(self.manifest),
            "annotations": annotations,
        }


def _layout_files(images: dict[str, Image | Index]) -> dict[str, bytes]:
    manifests = [each.descriptor(**{"org.opencontainers.image.ref.name": tag}) for tag, each in images.items()]
    files = {
        "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).encode(),
    }
    for each in images.values():
        files.update({f"blobs/{name.replace(':', '/')}": data for name, data in each.blobs.items()})
    return files


def write_layout(path: Path, **images: Image | Index) -> Path:
    """An OCI image layout; the names are the tags."""
    for name, data in _layout_files(images).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def write_oci_archive(path: Path, **images: Image | Index) -> Path:
    path.write_bytes(tar_of(*(file(name, data) for name, data in _layout_files(images).items())))
    return path


def write_docker_archive(path: Path, *images: Image) -> Path:
    """What `docker save` made until version 25; the second layer on is a link to nowhere new, as some tools do."""
    entries, manifest = [], []
    for image in images:
        name = image.id.removeprefix("sha256:")
        entries.append(file(f"{name}.json", image.config))
        names = [f"{digest(tar)[7:]}/layer.tar" for tar in image.tars]
        entries += [file(each, tar) for each, tar in zip(names, image.tars, strict=True)]
        manifest.append({"Config": f"{name}.json", "RepoTags": ["t:latest"], "Layers": names})
    path.write_bytes(tar_of(*entries, file("manifest.json", json.dumps(manifest))))
    return path


class Registry:
    """A registry on a free port of this machine. `auth` is "", "basic" or "token"."""

    USER, PASSWORD = "somebody", "söcret:1"

    def __init__(self, auth: str = "") -> None:
        self.auth = auth
        self.tags: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        #: What the token server gives, and what it has given before is worth no more.
        self.token = "let-me-in"
        #: What was asked for, in order, as "GET /path".
        self.requests: list[str] = []
        #: Called first with the path of each request; what it returns is the answer (status, body).
        self.fault: Callable[[str], tuple[int, bytes] | None] = lambda path: None
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        # A client that hangs up is what some tests are about.
        self._server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        self.host = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def push(self, name: str, image: Image | Index) -> str:
        """Put an image under `repository:tag`; its ImageUri."""
        self.tags[name] = image.manifest
        self.blobs.update(image.blobs)
        return f"{self.host}/{name}"

    def docker_config(self, path: Path, **other: Any) -> Path:
        """A Docker config.json that knows this registry."""
        pair = base64.b64encode(f"{self.USER}:{self.PASSWORD}".encode()).decode()
        path.write_text(json.dumps({"auths": {self.host: {"auth": pair}, **other}}))
        return path

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def registry(auth: str = "") -> Iterator[Registry]:
    made = Registry(auth)
    try:
        yield made
    finally:
        made.close()


class _Handler(http.server.BaseHTTPRequestHandler):
    registry: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.registry.requests.append(f"GET {self.path}")
        fault = self.registry.fault(self.path)
        if fault is not None:
            self._answer(*fault)
            return
        path, _, query = self.path.partition("?")
        if path == "/token":
            self._token(query)
        elif not self._is_allowed():
            self._challenge()
        elif "/manifests/" in path:
            repository, _, reference = path.removeprefix("/v2/").partition("/manifests/")
            is_digest = reference.startswith("sha256:")
            found = self.registry.blobs if is_digest else self.registry.tags
            self._found(found.get(reference if is_digest else f"{repository}:{reference}"))
        elif "/blobs/" in path:
            self._found(self.registry.blobs.get(path.rpartition("/")[2]))
        else:
            self._answer(404, b"")

    def _token(self, query: str) -> None:
        asked = dict(urllib.parse.parse_qsl(query))
        if not self._knows_password() or not asked.get("scope", "").startswith("repository:"):
            self._answer(401, b"{}")
            return
        self._answer(200, json.dumps({"token": self.registry.token, "expires_in": 300}).encode())

    def _knows_password(self) -> bool:
        pair = f"{Registry.USER}:{Registry.PASSWORD}".encode()
        return self.headers.get("Authorization") == f"Basic {base64.b64encode(pair).decode()}"

    def _is_allowed(self) -> bool:
        match self.registry.auth:
            case "basic":
                return self._knows_password()
            case "token":
                return self.headers.get("Authorization") == f"Bearer {self.registry.token}"
        return True

    def _challenge(self) -> None:
        realm = f"http://{self.registry.host}/token"
        challenge = {
            "basic": 'Basic realm="registry"',
            "token": f'Bearer realm="{realm}",service="registry.test",scope="repository:any:pull"',
        }[self.registry.auth]
        self._answer(401, b'{"errors":[]}', {"WWW-Authenticate": challenge})

    def _found(self, data: bytes | None) -> None:
        if data is None:
            self._answer(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        else:
            self._answer(200, data)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
