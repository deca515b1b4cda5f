"""A function whose Init takes two seconds and leaves some 50 MB, as one that loads a model or a large library does."""

import time

BEGAN_S = time.monotonic()
DATA = [str(number) * 4 for number in range(600_000)]
while time.monotonic() - BEGAN_S < 2.0:
    sum(range(1000))


def handler(event, context):  # noqa: ARG001  Lambda passes both
    """Sleep, so that the caller can keep this environment busy."""
    time.sleep(event["seconds"])
    return len(DATA)
