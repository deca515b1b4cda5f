"""Between invocations an environment makes no progress, children included; and starting again costs next to nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .harness import Function, Server, wait_until

Deploy = Callable[..., Function]

BACKGROUND = '''
    import subprocess, sys, textwrap, threading, time

    ticks = 0
    CHILD = """
    import time
    n = 0
    while True:
        n += 1
        open('/tmp/n', 'w').write(str(n))
        time.sleep(0.002)
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(CHILD)])

    def tick():
        global ticks
        while True:
            ticks += 1
            time.sleep(0.001)

    threading.Thread(target=tick, daemon=True).start()

    def handler(event, context):
        time.sleep(event or 0)
        try:
            return [ticks, int(open("/tmp/n").read() or 0)]
        except FileNotFoundError:
            return [ticks, 0]
'''


def environment_of(server: Server, function: Function) -> dict[str, Any]:
    found = [each for each in server.page("environments") if each["function"] == function.name]
    assert len(found) == 1
    one: dict[str, Any] = found[0]
    return one


def test_nothing_runs_between_invocations(server: Server, deploy: Deploy) -> None:
    function = deploy(BACKGROUND, "background")
    function.call(0.3)  # the child has started
    wait_until(lambda: environment_of(server, function)["frozen"], "the idle environment is frozen")
    before = function.call(0)
    wait_until(lambda: environment_of(server, function)["frozen"], "frozen again")
    started = time.monotonic()
    while time.monotonic() - started < 1.0:
        assert environment_of(server, function)["frozen"]
    thread_ticks, child_ticks = function.call(0)
    # What passed was the moment until it was frozen, not the second in which it was.
    assert 0 <= thread_ticks - before[0] < 300
    assert 0 <= child_ticks - before[1] < 150
    during = function.call(0.3)
    assert during[0] > thread_ticks + 20, "in an invocation it makes progress"


def test_a_frozen_environment_ends_when_it_is_told(server: Server, deploy: Deploy) -> None:
    function = deploy(BACKGROUND, "thawed")
    function.call(0)
    wait_until(lambda: environment_of(server, function)["frozen"], "frozen")
    server.lambda_.delete_function(FunctionName=function.name)
    wait_until(
        lambda: not [e for e in server.page("environments") if e["function"] == function.name],
        "the environment is gone",
    )
