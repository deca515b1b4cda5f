"""Sleeps as long as it is told: requests that arrive while it does need environments of their own."""

import os
import time

# The log stream is the environment's own, so it tells environments apart.
ENVIRONMENT = os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", f"local-{os.getpid()}")


def handler(event, context):
    seconds = float(event.get("seconds", 1))
    time.sleep(seconds)
    return {"slept_s": seconds, "environment": ENVIRONMENT}
