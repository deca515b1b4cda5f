"""Who signed a request to a function URL with AuthType AWS_IAM."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from lambent.frontend.caller import account_of
from lambent.frontend.connection import RawRequest
from lambent.wire.sigv4 import SignatureError, SignedRequest, parse, verify

#: The secret of an access key, or None when this server does not know it.
SecretLookup = Callable[[str], str | None]


class Signer(NamedTuple):
    access_key: str
    account: str


def check_signature(raw: RawRequest, region: str, secret_of: SecretLookup, now_ns: int) -> Signer | None:
    """Who signed; None when nobody did. Raises SignatureError.

    A signature by a key whose secret is known is verified. One by an unknown key is only held to be well formed and
    meant for this service and region, as everywhere in Lambent without `--auth`.
    """
    path, _, query = raw.target.decode("latin-1").partition("?")
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw.headers.items()}
    request = SignedRequest(raw.method.decode("latin-1"), path, query, headers, raw.body)
    claim = parse(request)
    if claim is None:
        return None
    if claim.service != "lambda":
        raise SignatureError(
            "InvalidSignatureException",
            f"Credential should be scoped to correct service: 'lambda'. Got '{claim.service}'.",
        )
    if claim.region != region:
        raise SignatureError(
            "InvalidSignatureException", f"Credential should be scoped to a valid region, not '{claim.region}'."
        )
    secret = secret_of(claim.access_key)
    if secret is not None:
        verify(request, claim, secret, datetime.fromtimestamp(now_ns / 1e9, UTC))
    return Signer(claim.access_key, account_of(claim.access_key))
