"""A function that holds its environment for event["seconds"] and tells who served the request, and when.

`environment` is made once per environment, so the caller can count environments without asking the platform.
The two times are of the host's wall clock, which every process on the machine shares.
"""

import os
import time

ENVIRONMENT = os.urandom(8).hex()


def handler(event, context):  # noqa: ARG001  Lambda passes both
    """Sleep; answer with the environment's name and when this invocation began and ended."""
    began_s = time.time()
    time.sleep(event["seconds"])
    return {"environment": ENVIRONMENT, "began_s": began_s, "ended_s": time.time()}
