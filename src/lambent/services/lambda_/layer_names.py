"""Names of layers and their versions, in the forms in which clients write them: a name, or an ARN."""

from __future__ import annotations

import re
from typing import NamedTuple

from lambent.store.records import ORDINAL_MAX, LayerKey

_ARN = re.compile(
    r"arn:aws[a-zA-Z-]*:lambda:(?P<region>[a-z0-9-]+):(?P<account>\d{12}):layer:(?P<name>[a-zA-Z0-9-_]{1,140})"
    r"(?::(?P<version>\d+))?",
    re.ASCII,
)


class LayerRef(NamedTuple):
    """One version of a layer, which may or may not exist."""

    key: LayerKey
    version: int

    @property
    def arn(self) -> str:
        return self.key.arn(self.version)


def parse_layer(text: str, account: str, region: str) -> LayerKey:
    """The layer that a name or an ARN means to a caller of `account` and `region`. The model has checked the text."""
    match = _ARN.fullmatch(text)
    return LayerKey(match["account"], match["region"], match["name"]) if match else LayerKey(account, region, text)


def parse_layer_version(arn: str) -> LayerRef | None:
    """The version that an ARN names; None for the ARNs of layers that only AWS has, and for a number beyond all."""
    match = _ARN.fullmatch(arn)
    if match is None or match["version"] is None or len(match["version"]) > len(str(ORDINAL_MAX)):
        return None
    version = int(match["version"])
    if version > ORDINAL_MAX:
        return None
    return LayerRef(LayerKey(match["account"], match["region"], match["name"]), version)
