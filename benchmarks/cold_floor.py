"""The floor of a cold start: fork from a zygote that has the runtime imported, import the handler, answer.

No HTTP, no sandbox, no limits: the least that a cold start of a forked Python process can take. Beside it,
what it would take without a zygote: a new interpreter, bare and with awslambdaric. Prints one JSON object.

This process is the zygote, so it stays single-threaded and imports little.

    python benchmarks/cold_floor.py --samples 60 --burst 200
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from runtime_link import exchange, start_process

FUNCTIONS = Path(__file__).parent / "functions"
INTERPRETERS = {
    "python -c pass": "pass",
    "python -c 'import awslambdaric.bootstrap'": "import awslambdaric.bootstrap",
}


def first_answer_ms(handler: str) -> float:
    """Time from before the fork to the first answer."""
    began_ns = time.perf_counter_ns()
    pid, link = start_process(handler)
    exchange(link, b"{}")
    took_ms = (time.perf_counter_ns() - began_ns) / 1e6
    end(pid, link)
    return took_ms


def burst_per_second(count: int, hold_s: float) -> float:
    """Fork `count` processes that each execute for `hold_s`; starts a second until the last one began."""
    began_s = time.time()
    started: list[tuple[int, socket.socket]] = []
    body = json.dumps({"seconds": hold_s}).encode()
    for _ in range(count):
        pid, link = start_process("sleeper.handler", [earlier for _, earlier in started])
        link.sendall(len(body).to_bytes(4, "little") + body)
        started.append((pid, link))
    last_s = 0.0
    for pid, link in started:
        received = b""
        while not received.endswith(b"}"):
            received += link.recv(4096)
        last_s = max(last_s, json.loads(received[5:])["began_s"])
        end(pid, link)
    return count / (last_s - began_s)


def end(pid: int, link: socket.socket) -> None:
    """End one process that this zygote started."""
    link.close()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def interpreter_ms(program: str) -> float:
    """Time of a new interpreter that runs `program`."""
    began_ns = time.perf_counter_ns()
    subprocess.run([sys.executable, "-c", program], check=True)
    return (time.perf_counter_ns() - began_ns) / 1e6


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--samples", type=int, default=60)
    arguments.add_argument("--interpreters", type=int, default=10, help="samples of a new interpreter")
    arguments.add_argument("--burst", type=int, default=200)
    arguments.add_argument("--pause-ms", type=float, default=20.0)
    options = arguments.parse_args()
    sys.path.insert(0, str(FUNCTIONS))
    fork_ms: dict[str, list[float]] = {"echo": [], "with_boto3": []}
    for _ in range(options.samples):
        for function, samples_ms in fork_ms.items():
            time.sleep(options.pause_ms / 1000)
            samples_ms.append(first_answer_ms(f"{function}.handler"))
    interpreters_ms = {
        name: [interpreter_ms(program) for _ in range(options.interpreters)] for name, program in INTERPRETERS.items()
    }
    burst = burst_per_second(options.burst, hold_s=4.0) if options.burst else None
    print(json.dumps({"fork_ms": fork_ms, "interpreters_ms": interpreters_ms, "burst_per_s": burst}))


if __name__ == "__main__":
    main()
