"""Who we are to a registry: the `auths` of a Docker `config.json`, as `docker login` writes it.

Credential helpers (`credsStore`, `credHelpers`) are programs; the server starts none of them.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
from pathlib import Path
from typing import NamedTuple

import msgspec

from lambent.store.images.reference import DOCKER_HUB

_log = logging.getLogger("lambent.store.images")
_CONFIG_MAX_BYTES = 1 << 20
_DOCKER_HUB_KEYS = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")


class Credentials(NamedTuple):
    """A name and a password, or a token that stands for both."""

    user: str = ""
    password: str = ""
    identity_token: str = ""


class _Auth(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Config(msgspec.Struct):
    auths: dict[str, _Auth] = {}


def default_config() -> Path:
    """Where Docker's own client looks."""
    folder = os.environ.get("DOCKER_CONFIG")
    return (Path(folder) if folder else Path.home() / ".docker") / "config.json"


def credentials_for(host: str, config: Path) -> Credentials | None:
    """What `config` has for a registry (or None); it is read anew each time, because tokens are renewed there."""
    try:
        with config.open("rb") as file:
            auths = msgspec.json.decode(file.read(_CONFIG_MAX_BYTES), type=_Config).auths
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.DecodeError) as error:
        _log.warning("%s can not be read: %s", config, error)
        return None
    for key in _DOCKER_HUB_KEYS if host == DOCKER_HUB else (host, f"https://{host}", f"http://{host}"):
        found = auths.get(key) or auths.get(f"{key}/v2/") or auths.get(f"{key}/v1/")
        if found is not None:
            return _decoded(found)
    return None


def _decoded(auth: _Auth) -> Credentials | None:
    user, password = auth.username, auth.password
    if auth.auth:
        try:
            user, _, password = base64.b64decode(auth.auth).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
    if not user and not auth.identitytoken:
        return None
    return Credentials(user, password, auth.identitytoken)
