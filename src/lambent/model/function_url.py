"""A function URL as the data plane and the frontend need it: which function answers, who may call, how it answers."""

from __future__ import annotations

import enum

import msgspec

from lambent.model.names import FunctionKey

#: What stands between the id of a function URL and its region in a host name.
HOST_MARKER = ".lambda-url."


class UrlAuthType(enum.StrEnum):
    NONE = "NONE"
    AWS_IAM = "AWS_IAM"


class InvokeMode(enum.StrEnum):
    BUFFERED = "BUFFERED"
    RESPONSE_STREAM = "RESPONSE_STREAM"


class Cors(msgspec.Struct, frozen=True, omit_defaults=True):
    """Cross-origin rules of a function URL; None is what was never given. `max_age_s` is for preflight answers."""

    allow_credentials: bool | None = None
    allow_headers: tuple[str, ...] | None = None
    allow_methods: tuple[str, ...] | None = None
    allow_origins: tuple[str, ...] | None = None
    expose_headers: tuple[str, ...] | None = None
    max_age_s: int | None = None


class UrlSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One function URL. `id` is the first label of its host name; `qualifier` an alias, or None for $LATEST."""

    id: str
    key: FunctionKey
    qualifier: str | None = None
    auth_type: UrlAuthType
    invoke_mode: InvokeMode = InvokeMode.BUFFERED
    cors: Cors | None = None

    @property
    def arn(self) -> str:
        return self.key.arn(self.qualifier)


class UrlBase(msgspec.Struct, frozen=True):
    """Where function URLs lie: `scheme://ID.lambda-url.REGION.authority/`. `authority` may have a port."""

    scheme: str
    authority: str

    def url(self, url_id: str, region: str) -> str:
        return f"{self.scheme}://{url_id}{HOST_MARKER}{region}.{self.authority}/"


DEFAULT_URL_BASE = UrlBase("http", "localhost")


def url_base(domain: str, port: int) -> UrlBase:
    """From `--url-domain`: a bare domain means http and the server's own port; a domain with a port, or a whole
    `http(s)://domain[:port]` for what a proxy in front of the server shows, is taken as it is.

    Raises ValueError for what is neither.
    """
    scheme, found, authority = domain.rpartition("://")
    authority = authority.rstrip("/")
    host, _, given_port = authority.partition(":")
    labels = host.split(".")
    well_formed = all(label.replace("-", "").isalnum() and label.isascii() for label in labels)
    if scheme not in ("", "http", "https") or not well_formed or (":" in authority and not given_port.isdigit()):
        raise ValueError(f"{domain}: not a domain such as localhost, example.com:8080 or https://example.com")
    if found or given_port:
        return UrlBase(scheme or "http", authority.lower())
    return UrlBase("http", f"{authority.lower()}:{port}" if port != 80 else authority.lower())
