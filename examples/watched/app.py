"""Tells how far the extension of the layer has counted at the start and at the end of this invocation."""

import time

import ticks  # of the layer


def handler(event, context):
    before = ticks.so_far()
    time.sleep(event.get("seconds", 0))
    return {"before": before, "after": ticks.so_far()}
