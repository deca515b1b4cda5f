"""Fails in the way that the event asks for: each is a different line in the log and a different answer."""

import os
import time

MIB = 1024 * 1024
STEP_MIB = 16


class OrderRefused(Exception):
    """An error of the function's own: its name becomes `errorType` in the answer."""


def handler(event, context):
    fault = event.get("fault")
    if fault == "raise":
        raise OrderRefused(event.get("message", "no tea left"))
    if fault == "exit":
        os._exit(int(event.get("code", 1)))
    if fault == "memory":
        return overrun(int(event.get("mib", 2 * configured_mib())))
    if fault == "timeout":
        time.sleep(context.get_remaining_time_in_millis() / 1000 + 5)
    return {"fault": fault, "survived": True}


def configured_mib():
    return int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"))


def overrun(mib):
    """Take memory and write to it: what is only reserved does not count against the limit."""
    held = [b"\x01" * (STEP_MIB * MIB) for _ in range(mib // STEP_MIB)]
    return {"fault": "memory", "held_mib": len(held) * STEP_MIB}
