"""Which functions may have SnapStart: AWS's rules on the whole configuration, after a change."""

from __future__ import annotations

import re

from lambent.model import limits
from lambent.model.errors import InvalidParameterValue
from lambent.services.lambda_.messages import not_per_tenant
from lambent.store.records import VersionRecord

_PYTHON = re.compile(r"python3\.(\d+)")
_PYTHON_MIN = 12


def check_snap_start(record: VersionRecord) -> None:
    """Raise InvalidParameterValue where SnapStart is asked for and can not be had."""
    if not record.snap_start:
        return
    if record.tenancy:
        raise not_per_tenant("SnapStart")
    if record.image is not None:
        raise InvalidParameterValue("ContainerImage is not supported for SnapStart enabled functions.")
    python = _PYTHON.fullmatch(record.runtime)
    if python is None or int(python[1]) < _PYTHON_MIN:
        raise InvalidParameterValue(f"{record.runtime} is not supported for SnapStart enabled functions.")
    if record.tmp_mib > limits.TMP_DEFAULT_MIB:
        raise InvalidParameterValue(
            f"SnapStart is not supported for functions with ephemeral storage of more than {limits.TMP_DEFAULT_MIB} MB."
        )
