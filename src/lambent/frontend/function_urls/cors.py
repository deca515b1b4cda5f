"""Cross-origin rules of a function URL: the platform's own answer to a preflight, and headers on every other answer.

What is configured wins over what the function says: with a configuration, all of the function's own
`access-control-*` headers are left out.
"""

from __future__ import annotations

from lambent.frontend.connection import RawRequest
from lambent.model.function_url import Cors

_PREFIX = "access-control-"


def is_preflight(raw: RawRequest) -> bool:
    return raw.method == b"OPTIONS" and b"origin" in raw.headers and b"access-control-request-method" in raw.headers


def preflight_headers(cors: Cors, raw: RawRequest) -> list[tuple[str, str]]:
    """Nothing for an origin that is not allowed: the browser then refuses."""
    origin = _origin_headers(cors, raw)
    if not origin:
        return []
    found = [*origin]
    wanted_method = raw.headers[b"access-control-request-method"].decode("latin-1")
    wanted_headers = raw.headers.get(b"access-control-request-headers", b"").decode("latin-1")
    methods = _list(cors.allow_methods, cors, wanted_method)
    headers = _list(cors.allow_headers, cors, wanted_headers)
    if methods:
        found.append(("Access-Control-Allow-Methods", methods))
    if headers:
        found.append(("Access-Control-Allow-Headers", headers))
    if cors.max_age_s is not None:
        found.append(("Access-Control-Max-Age", str(cors.max_age_s)))
    return found


def with_cors(headers: list[tuple[str, str]], cors: Cors | None, raw: RawRequest) -> list[tuple[str, str]]:
    """The headers of an answer, with the configured rules in place of the function's own."""
    if cors is None:
        return headers
    kept = [(name, value) for name, value in headers if not name.lower().startswith(_PREFIX)]
    origin = _origin_headers(cors, raw)
    kept += origin
    if origin and cors.expose_headers:
        kept.append(("Access-Control-Expose-Headers", ",".join(cors.expose_headers)))
    return kept


def _origin_headers(cors: Cors, raw: RawRequest) -> list[tuple[str, str]]:
    allowed = cors.allow_origins or ()
    origin = raw.headers.get(b"origin", b"").decode("latin-1")
    credentials = bool(cors.allow_credentials)
    if "*" in allowed and not credentials:
        return [("Access-Control-Allow-Origin", "*")]
    if not origin or not ("*" in allowed or origin in allowed):
        return []
    found = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
    if credentials:
        found.append(("Access-Control-Allow-Credentials", "true"))
    return found


def _list(values: tuple[str, ...] | None, cors: Cors, wanted: str) -> str:
    """A configured list as a header. Browsers take `*` literally where credentials are allowed, so it is spelt out."""
    if not values:
        return ""
    return wanted if "*" in values and cors.allow_credentials else ",".join(values)
