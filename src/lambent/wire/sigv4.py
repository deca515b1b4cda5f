"""AWS Signature Version 4 as a server checks it: in the Authorization header, or in the query of a presigned URL.

`parse` reads what a request claims and raises for what is malformed; `verify` computes the signature again with the
secret. Both are pure: time and secret are given. The rules are AWS's "Signature Version 4 signing process"; where it
leaves a choice (paths are encoded once more, dot segments are taken out) this does what AWS's SDKs do for every
service but S3.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

#: How far the signer's clock may be off, either way.
SKEW_MAX_S = 300
#: The longest life of a presigned request.
EXPIRES_MAX_S = 604_800
ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
_TIME_FORMAT = "%Y%m%dT%H%M%SZ"
_SCOPE = re.compile(r"([^/]{1,128})/(\d{8})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/aws4_request")
_SIGNATURE = re.compile(r"[0-9a-f]{64}")


class SignatureError(Exception):
    """A signature that does not hold; `code` is AWS's name of the error, its status is 403."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class SignedRequest(NamedTuple):
    """The parts of a request that a signature covers. `path` and `query` as sent; header names in lower case, several
    values of one name joined by commas."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


class Claim(NamedTuple):
    """What a request says about its signature. `expires_s` is None but for presigned requests."""

    access_key: str
    date: str
    region: str
    service: str
    signed_headers: tuple[str, ...]
    signature: str
    signed_at: datetime
    expires_s: int | None

    @property
    def scope(self) -> str:
        return f"{self.date}/{self.region}/{self.service}/aws4_request"


def parse(request: SignedRequest) -> Claim | None:
    """What the request claims; None when it is not signed. Raises SignatureError for a signature that is no such."""
    authorization = request.headers.get("authorization")
    if authorization is not None:
        return _from_header(request, authorization)
    if "X-Amz-Algorithm=" in request.query or "X-Amz-Signature=" in request.query:
        return _from_query(request)
    return None


def _from_header(request: SignedRequest, value: str) -> Claim:
    algorithm, _, rest = value.strip().partition(" ")
    if algorithm != ALGORITHM:
        raise SignatureError(
            "IncompleteSignatureException", f"Unsupported AWS 'algorithm': '{algorithm}'. It must be {ALGORITHM}."
        )
    fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    missing = [name for name in ("Credential", "Signature", "SignedHeaders") if not fields.get(name)]
    if missing:
        words = " ".join(f"Authorization header requires '{name}' parameter." for name in missing)
        raise SignatureError("IncompleteSignatureException", f"{words} Authorization={value}")
    signed_at = request.headers.get("x-amz-date") or _basic_format(request.headers.get("date", ""))
    if not signed_at:
        raise SignatureError(
            "IncompleteSignatureException",
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. "
            f"Authorization={value}",
        )
    return _claim(fields["Credential"], fields["SignedHeaders"], fields["Signature"], signed_at, None)


def _basic_format(date: str) -> str:
    """An HTTP date as X-Amz-Date would have it; "" for what is none."""
    try:
        return parsedate_to_datetime(date).astimezone(UTC).strftime(_TIME_FORMAT)
    except (TypeError, ValueError):
        return ""


def _from_query(request: SignedRequest) -> Claim:
    fields = dict(parse_qsl(request.query, keep_blank_values=True))
    names = (
        "X-Amz-Algorithm",
        "X-Amz-Credential",
        "X-Amz-Signature",
        "X-Amz-SignedHeaders",
        "X-Amz-Date",
        "X-Amz-Expires",
    )
    missing = [name for name in names if not fields.get(name)]
    if missing:
        words = " ".join(f"AWS query-string parameters must include '{name}'." for name in missing)
        raise SignatureError("IncompleteSignatureException", words)
    if fields["X-Amz-Algorithm"] != ALGORITHM:
        raise SignatureError("IncompleteSignatureException", f"X-Amz-Algorithm must be {ALGORITHM}.")
    expires = fields["X-Amz-Expires"]
    if not re.fullmatch(r"[0-9]{1,7}", expires) or not 0 < int(expires) <= EXPIRES_MAX_S:
        raise SignatureError(
            "IncompleteSignatureException", f"X-Amz-Expires must be between 1 and {EXPIRES_MAX_S} seconds."
        )
    return _claim(
        fields["X-Amz-Credential"],
        fields["X-Amz-SignedHeaders"],
        fields["X-Amz-Signature"],
        fields["X-Amz-Date"],
        int(expires),
    )


def _claim(credential: str, signed_headers: str, signature: str, signed_at: str, expires_s: int | None) -> Claim:
    scope = _SCOPE.fullmatch(credential)
    if scope is None:
        raise SignatureError(
            "IncompleteSignatureException",
            "Credential must have exactly 5 slash-delimited elements, e.g. "
            f"keyid/date/region/service/term, got '{credential}'",
        )
    if not _SIGNATURE.fullmatch(signature):
        raise SignatureError("IncompleteSignatureException", "The signature is not 64 lower-case hexadecimal digits.")
    try:
        moment = datetime.strptime(signed_at, _TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        raise SignatureError(
            "IncompleteSignatureException",
            f"Date must be in ISO-8601 'basic format'. Got '{signed_at}'. See http://en.wikipedia.org/wiki/ISO_8601",
        ) from None
    names = tuple(signed_headers.split(";"))
    if "host" not in names:
        raise SignatureError("InvalidSignatureException", "'Host' must be a 'SignedHeader' in the AWS Authorization.")
    access_key, date, region, service = scope.groups()
    if not signed_at.startswith(date):
        raise SignatureError(
            "InvalidSignatureException",
            f"Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{date}' != "
            f"'{signed_at[:8]}', from '{signed_at}'.",
        )
    return Claim(access_key, date, region, service, names, signature, moment, expires_s)


def verify(request: SignedRequest, claim: Claim, secret: str, now: datetime) -> None:
    """Raises SignatureError unless `secret` signed exactly this request, and recently enough."""
    _check_time(claim, now)
    payload_hash = _payload_hash(request, claim)
    canonical = canonical_request(request, claim, payload_hash)
    text = "\n".join(
        (
            ALGORITHM,
            claim.signed_at.strftime(_TIME_FORMAT),
            claim.scope,
            hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest(),
        )
    )
    expected = hmac.new(_signing_key(secret, claim), text.encode(), hashlib.sha256).hexdigest()
    if not hmac.compare_digest(expected, claim.signature):
        raise SignatureError(
            "InvalidSignatureException",
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
            "Access Key and signing method. Consult the service documentation for details.",
        )


def _check_time(claim: Claim, now: datetime) -> None:
    age_s = (now - claim.signed_at).total_seconds()
    signed, today = claim.signed_at.strftime(_TIME_FORMAT), now.strftime(_TIME_FORMAT)
    life_s = SKEW_MAX_S if claim.expires_s is None else claim.expires_s
    if age_s > life_s:
        raise SignatureError("InvalidSignatureException", f"Signature expired: {signed} is now earlier than {today}")
    if age_s < -SKEW_MAX_S:
        raise SignatureError(
            "InvalidSignatureException", f"Signature not yet current: {signed} is still later than {today}"
        )


def _payload_hash(request: SignedRequest, claim: Claim) -> str:
    given = request.headers.get("x-amz-content-sha256")
    if given == UNSIGNED_PAYLOAD and "x-amz-content-sha256" in claim.signed_headers:
        return given
    computed = hashlib.sha256(request.body).hexdigest()
    if given is not None and given != computed:
        raise SignatureError(
            "InvalidSignatureException",
            "The value of 'X-Amz-Content-Sha256' does not match the SHA-256 of the request's body.",
        )
    return computed


def canonical_request(request: SignedRequest, claim: Claim, payload_hash: str) -> str:
    """The text that is hashed and signed. Raises SignatureError when a signed header is missing."""
    lines = []
    for name in claim.signed_headers:
        value = request.headers.get(name)
        if value is None:
            raise SignatureError("InvalidSignatureException", f"The signed header '{name}' is not in the request.")
        lines.append(f"{name}:{' '.join(value.split())}\n")
    return "\n".join(
        (
            request.method.upper(),
            canonical_path(request.path),
            canonical_query(request.query, presigned=claim.expires_s is not None),
            "".join(lines),
            ";".join(claim.signed_headers),
            payload_hash,
        )
    )


def canonical_path(path: str) -> str:
    """The path as sent, without dot segments and repeated slashes, encoded once more."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if kept:
                kept.pop()
        elif segment not in ("", "."):
            kept.append(segment)
    whole = "/" + "/".join(kept)
    if path.endswith("/") and kept:
        whole += "/"
    return quote(whole, safe="/~")


def canonical_query(query: str, *, presigned: bool) -> str:
    """Pairs sorted by name and value, with the encoding of RFC 3986; without the signature itself."""
    pairs = []
    for part in query.split("&"):
        if not part:
            continue
        name, _, value = part.partition("=")
        if presigned and name == "X-Amz-Signature":
            continue
        pairs.append((_encoded(name), _encoded(value)))
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))


def _encoded(text: str) -> str:
    return quote(unquote(text, errors="surrogateescape"), safe="-_.~", errors="surrogateescape")


def _signing_key(secret: str, claim: Claim) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (claim.date, claim.region, claim.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key
