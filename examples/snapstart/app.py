"""A slow start, paid once: deploy with SnapStart (docs/snapstart.md), publish a version, invoke that version.

Init builds a table for two seconds. The table is in the snapshot; what has to differ between environments is made after
a restore.
"""

import os
import time
import uuid

from snapshot_restore_py import register_after_restore, register_before_snapshot

BEGAN_S = time.monotonic()
TABLE = {number: str(number) for number in range(200_000)}
time.sleep(max(0.0, 2.0 - (time.monotonic() - BEGAN_S)))
environment = uuid.uuid4().hex


@register_before_snapshot
def close():
    """Here is the place to close connections: they would be dead in the restored environments."""
    print("before the snapshot")


@register_after_restore
def make_unique():
    """Without this, all environments would have the id that was made during Init."""
    global environment
    environment = uuid.uuid4().hex


def handler(event, context):
    return {
        "environment": environment,
        "started": os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"],
        "entries": len(TABLE),
    }
