"""The layers of a function: which ARNs it may name, and how large it may become with them.

What is found here goes into the function's record whole, so that a function needs the layer's own record never again.
"""

from __future__ import annotations

from collections.abc import Sequence

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue
from lambent.services.base import CallContext
from lambent.services.lambda_.layer_access import readable_version
from lambent.services.lambda_.layer_names import parse_layer_version
from lambent.store.code import CodeStore
from lambent.store.functions import FunctionRows
from lambent.store.records import LayerKey, LayerUse

LAYERS_MAX = 5


def find_layers(rows: FunctionRows, context: CallContext, arns: Sequence[str]) -> tuple[LayerUse, ...]:
    """The layer versions that `Layers` names. Raises InvalidParameterValue, or AccessDenied for what another account
    has and does not share."""
    if len(arns) > LAYERS_MAX:
        raise InvalidParameterValue(f"Cannot reference more than {LAYERS_MAX} layers.")
    found: dict[LayerKey, LayerUse] = {}
    for arn in arns:
        ref = parse_layer_version(arn)
        if ref is None:
            raise _missing(arn)
        if ref.key.region != context.region:
            raise InvalidParameterValue(
                "Layers are not in the same region as the function. "
                f"Layers are expected to be in region {context.region}."
            )
        if ref.key in found:
            raise InvalidParameterValue(
                "Two different versions of the same layer are not allowed to be referenced in the same function. "
                f"{found[ref.key].arn} and {arn}"
            )
        record = readable_version(rows, ref, context.account)
        if record is None:
            raise _missing(arn)
        found[ref.key] = LayerUse(record.arn, record.code_sha256, record.code_size)
    return tuple(found.values())


async def check_unzipped_size(store: CodeStore, code_sha256: str, layers: Sequence[LayerUse]) -> None:
    """Raise InvalidParameterValue when code and layers together unpack to more than a function may have."""
    if not layers:
        return  # the zip alone was measured when it came
    size = await store.unzipped_bytes([code_sha256, *(layer.code_sha256 for layer in layers)])
    if size > limits.UNZIPPED_MAX_BYTES:
        raise InvalidParameterValue(
            "Function code combined with layers exceeds the maximum allowed size of "
            f"{limits.UNZIPPED_MAX_BYTES} bytes. The actual size is {size} bytes."
        )


def _missing(arn: str) -> InvalidParameterValue:
    return InvalidParameterValue(f"Layer version {arn} does not exist.")
