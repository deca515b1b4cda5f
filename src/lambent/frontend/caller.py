"""Who calls, where, and which service they mean: from the signature's credential scope, or the defaults.

Signatures are not verified (that is `--auth`, a later step): any credentials do. A 12-digit access key id is the
account; the region and the service come from the scope `KEY/DATE/REGION/SERVICE/aws4_request`.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

from lambent.model.names import DEFAULT_ACCOUNT, DEFAULT_REGION

_CACHE_MAX = 4_096
_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d{1,2}")
_ACCOUNT = re.compile(r"\d{12}")


class CallerIdentity(NamedTuple):
    account: str
    region: str
    service: str


ANYONE = CallerIdentity(DEFAULT_ACCOUNT, DEFAULT_REGION, "")
_cache: dict[bytes, CallerIdentity] = {}


def from_authorization(value: bytes | None) -> CallerIdentity:
    """Header `Authorization: AWS4-HMAC-SHA256 Credential=..., ...`; anything else is nobody in particular."""
    if value is None:
        return ANYONE
    start = value.find(b"Credential=")
    if start < 0:
        return ANYONE
    end = value.find(b",", start)
    scope = value[start + 11 : end if end > 0 else len(value)]
    found = _cache.get(scope)
    if found is None:
        if len(_cache) >= _CACHE_MAX:
            _cache.clear()
        found = _cache[scope] = _parse(scope.decode("latin-1"))
    return found


def from_query(query: str) -> CallerIdentity:
    """A presigned request: `X-Amz-Credential` in the query."""
    match = re.search(r"(?:^|&)X-Amz-Credential=([^&]+)", query)
    return _parse(unquote(match[1])) if match else ANYONE


def _parse(scope: str) -> CallerIdentity:
    parts = scope.strip().split("/")
    if len(parts) < 5:
        return ANYONE
    account = account_of(parts[0])
    region = parts[-3] if _REGION.fullmatch(parts[-3]) else DEFAULT_REGION
    return CallerIdentity(account, region, parts[-2])


def account_of(access_key: str) -> str:
    """A key id of 12 digits is the account; every other key belongs to the default one."""
    return access_key if _ACCOUNT.fullmatch(access_key) else DEFAULT_ACCOUNT
