"""Images of registries: the pull side of the OCI distribution API, with basic and bearer authorization.

HTTPS, except for registries on this machine. A blob's bytes go to a file on their way to be checked; nothing
is used before its digest is right, so redirects to anybody's storage are as good as the registry itself.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import threading
import time
import urllib.parse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import urllib3

from lambent.store.images import layer as layers
from lambent.store.images.budget import Budget
from lambent.store.images.credentials import Credentials
from lambent.store.images.errors import Broken, Denied, Missing, Unreachable
from lambent.store.images.manifest import (
    JSON_MAX_BYTES,
    MANIFEST_TYPES,
    FoundImage,
    Index,
    Layer,
    choose,
    digest_of,
    layers_of,
    parse_config,
    parse_manifest,
    settings_of,
)
from lambent.store.images.reference import DOCKER_HUB, RegistryReference
from lambent.store.images.rootfs import Rootfs

_HUB_HOST = "registry-1.docker.io"
_DOWNLOADS = 3
_CONNECT_TIMEOUT_S, _READ_TIMEOUT_S = 5.0, 30.0
#: For a manifest, a configuration or a token as a whole.
_ANSWER_MAX_S = 60.0
_RETRIES = 2
_TOKEN_MAX_BYTES = 1 << 20
_CHALLENGE = re.compile(r'(\w+)\s+((?:\w+\s*=\s*(?:"[^"]*"|[^\s,"]+)\s*,?\s*)*)')
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"([^"]*)"|([^\s,"]+))')


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """WWW-Authenticate: parameters by scheme, both in lower case.

    >>> parse_challenges('Bearer realm="https://auth.example/token",service="registry"')
    {'bearer': {'realm': 'https://auth.example/token', 'service': 'registry'}}
    """
    found: dict[str, dict[str, str]] = {}
    for scheme, rest in _CHALLENGE.findall(header):
        found[scheme.lower()] = {name.lower(): quoted or bare for name, quoted, bare in _PARAMETER.findall(rest)}
    return found


class RegistrySource:
    """One image's repository."""

    def __init__(self, reference: RegistryReference, credentials: Credentials | None) -> None:
        self._reference = reference
        self._credentials = credentials
        self._scheme = "http" if reference.is_loopback else "https"
        host = _HUB_HOST if reference.host == DOCKER_HUB else reference.host
        self._base = f"{self._scheme}://{host}/v2/{reference.repository}"
        self._authorization: str | None = None
        self._lock = threading.Lock()
        # Headers of authorization are left out by urllib3 when a redirect leads to another host.
        self._http = urllib3.PoolManager(
            maxsize=_DOWNLOADS + 1,
            timeout=urllib3.Timeout(connect=_CONNECT_TIMEOUT_S, read=_READ_TIMEOUT_S),
            retries=urllib3.Retry(
                total=_RETRIES + 5,
                connect=_RETRIES,
                read=_RETRIES,
                redirect=5,
                status=_RETRIES,
                other=0,
                status_forcelist=(429, 500, 502, 503, 504),
                backoff_factor=0.2,
                respect_retry_after_header=False,
                raise_on_status=False,
            ),
            headers={"User-Agent": "lambent"},
        )

    def find(self, architecture: str) -> FoundImage:
        reference = self._reference.digest or self._reference.tag or "latest"
        for _ in range(3):  # an index may name indexes
            data = self._manifest(reference)
            manifest = parse_manifest(data)
            if not isinstance(manifest, Index):
                config = parse_config(self._small_blob(manifest.config.digest))
                return FoundImage(digest_of(data), settings_of(config, architecture), layers_of(manifest))
            reference = choose(manifest.manifests, architecture).digest
        raise Broken("indexes of indexes of indexes")

    def unpack(self, image: FoundImage, rootfs: Rootfs, scratch: Path, budget: Budget) -> None:
        """Some layers are downloaded while the one before them is unpacked."""
        budget.announce(sum(each.size or 0 for each in image.layers))
        failed = threading.Event()

        def download(number: int, each: Layer) -> Path:
            target = scratch / str(number)
            self._download(each, target, budget, failed)
            return target

        with ThreadPoolExecutor(_DOWNLOADS, thread_name_prefix="lambent-pull") as pool:
            try:
                downloads = [pool.submit(download, number, each) for number, each in enumerate(image.layers)]
                for each, waiting in zip(image.layers, downloads, strict=True):
                    path = waiting.result()
                    with path.open("rb") as file:
                        layers.unpack(file, each._replace(digest=None), rootfs, budget)
                    path.unlink()
            except BaseException:
                failed.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def close(self) -> None:
        self._http.clear()

    # --- requests ----------------------------------------------------------------------------------------

    def _manifest(self, reference: str) -> bytes:
        with self._get(f"manifests/{reference}", ", ".join(MANIFEST_TYPES)) as response:
            data = _read(response, JSON_MAX_BYTES)
        if reference.startswith("sha256:") and digest_of(data) != reference:
            raise Broken("a manifest that is not what its digest says")
        return data

    def _small_blob(self, digest: str) -> bytes:
        with self._get(f"blobs/{digest}") as response:
            data = _read(response, JSON_MAX_BYTES)
        if digest_of(data) != digest:
            raise Broken("a configuration that is not what its digest says")
        return data

    def _download(self, layer: Layer, target: Path, budget: Budget, failed: threading.Event) -> None:
        assert layer.size is not None, "registries say how long a blob is"
        found, size = hashlib.sha256(), 0
        with self._get(f"blobs/{layer.digest}") as response, target.open("xb") as file:
            while chunk := _chunk(response):
                budget.check()
                if failed.is_set():
                    raise Unreachable("another layer has failed")
                size += len(chunk)
                if size > layer.size:
                    raise Broken(f"layer {layer.name} is longer than it should be")
                found.update(chunk)
                file.write(chunk)
        if size != layer.size or f"sha256:{found.hexdigest()}" != layer.digest:
            raise Broken(f"layer {layer.name} is not what its digest says")

    @contextlib.contextmanager
    def _get(self, path: str, accept: str = "*/*") -> Iterator[urllib3.BaseHTTPResponse]:
        used = self._authorization
        response = self._send(path, accept, used)
        try:
            if response.status == 401:
                fresh = self._authorize(response.headers.get("WWW-Authenticate", ""), used)
                if fresh is not None:
                    response.close()
                    response = self._send(path, accept, fresh)
            if response.status == 404:
                raise Missing
            if response.status in (401, 403):
                raise Denied(f"the registry {self._reference.host} answered {response.status}")
            if response.status != 200:
                raise Unreachable(f"the registry {self._reference.host} answered {response.status}")
            yield response
        except urllib3.exceptions.HTTPError as error:
            raise Unreachable(f"the registry {self._reference.host}: {error}") from error
        finally:
            response.close()

    def _send(self, path: str, accept: str, authorization: str | None) -> urllib3.BaseHTTPResponse:
        headers = {"Accept": accept}
        if authorization is not None:
            headers["Authorization"] = authorization
        return self._request("GET", f"{self._base}/{path}", headers)

    def _request(
        self, method: str, url: str, headers: dict[str, str], fields: dict[str, str] | None = None
    ) -> urllib3.BaseHTTPResponse:
        body = urllib.parse.urlencode(fields).encode() if fields is not None else None
        if body is not None:
            headers = {**headers, "Content-Type": "application/x-www-form-urlencoded"}
        try:
            return self._http.request(method, url, headers=headers, body=body, preload_content=False)
        except (urllib3.exceptions.HTTPError, UnicodeError) as error:
            host = urllib.parse.urlsplit(url).netloc
            raise Unreachable(f"{host} does not answer: {_first_cause(error)}") from error

    # --- authorization -----------------------------------------------------------------------------------

    def _authorize(self, header: str, used: str | None) -> str | None:
        """Do what the registry asks for after it has refused `used`; the header to try next, if there is one."""
        with self._lock:  # several layers are refused at once when a token is too old
            if self._authorization != used:
                return self._authorization
            challenges = parse_challenges(header)
            if "bearer" in challenges:
                self._authorization = f"Bearer {self._token(challenges['bearer'])}"
            elif "basic" in challenges and self._credentials is not None and self._credentials.user:
                self._authorization = _basic(self._credentials)
            return None if self._authorization == used else self._authorization

    def _token(self, challenge: dict[str, str]) -> str:
        realm = challenge.get("realm", "")
        parts = urllib.parse.urlsplit(realm)
        # A password goes to the realm that the registry names: over TLS, or where the registry itself is.
        if parts.scheme != "https" and not (parts.scheme == "http" and self._scheme == "http"):
            raise Denied(f"the registry {self._reference.host} asks to be authorized without TLS")
        asked = {"scope": challenge.get("scope") or f"repository:{self._reference.repository}:pull"}
        if "service" in challenge:
            asked["service"] = challenge["service"]
        known = self._credentials
        if known is not None and known.identity_token:
            fields = {**asked, "grant_type": "refresh_token", "refresh_token": known.identity_token}
            response = self._request("POST", realm, {}, {**fields, "client_id": "lambent"})
        else:
            headers = {"Authorization": _basic(known)} if known is not None else {}
            url = f"{realm}{'&' if parts.query else '?'}{urllib.parse.urlencode(asked)}"
            response = self._request("GET", url, headers)
        try:
            if response.status != 200:
                raise Denied(f"{parts.netloc} answered {response.status} to the request for a token")
            answer = msgspec.json.decode(_read(response, _TOKEN_MAX_BYTES), type=_Token)
        except msgspec.DecodeError as error:
            raise Denied(f"{parts.netloc} gave a token that can not be read") from error
        finally:
            response.close()
        token = answer.token or answer.access_token
        if not token or not token.isascii() or not token.isprintable():
            raise Denied(f"{parts.netloc} gave no token")
        return token


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.user}:{credentials.password}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def _chunk(response: urllib3.BaseHTTPResponse) -> bytes:
    try:
        # What is there, at least one byte: between two reads somebody looks at the time.
        return response.read1(layers.CHUNK_BYTES, decode_content=False)
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"the registry broke off: {error}") from error


def _read(response: urllib3.BaseHTTPResponse, most: int) -> bytes:
    data, ends_s = bytearray(), time.monotonic() + _ANSWER_MAX_S
    while chunk := _chunk(response):
        data += chunk
        if len(data) > most:
            raise Broken("an answer that is too large")
        if time.monotonic() > ends_s:
            raise Unreachable("the registry is too slow")
    return bytes(data)


def _first_cause(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if reason is not None else error)
