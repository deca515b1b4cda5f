"""What `lambent dev` says: lines for people, in colour on a terminal, or JSON lines for programs."""

from __future__ import annotations

import json
import re
import sys
import threading
import time
from typing import Any

from rich.console import Console
from rich.text import Text

#: Lines of the platform, in both log formats.
_PLATFORM = re.compile(
    r"(START|END|REPORT|INIT_START|INIT_REPORT|RESTORE_START|RESTORE_REPORT|EXTENSION|TELEMETRY|XRAY)\b"
    r'|\{"time":"[^"]*","type":"platform\.'
)
_STREAM_COLOURS = ("cyan", "magenta", "blue", "yellow", "green")


class Reporter:
    """Threads may call it at the same time."""

    def __init__(self, as_json: bool, closed: threading.Event) -> None:
        """`closed` is set when nobody reads any more."""
        self._as_json = as_json
        self._closed = closed
        self._console = Console(highlight=False, soft_wrap=True)
        self._lock = threading.Lock()
        self._colours: dict[str, str] = {}

    def tell(self, event: str, text: str, **fields: Any) -> None:
        self._say(event, Text(text, "dim" if event in ("watching", "stopped", "server") else ""), fields)

    def error(self, text: str) -> None:
        first, _, rest = text.partition("\n")
        shown = Text.assemble(("error ", "bold red"), (first, "red"), (f"\n{rest}" if rest else "", "red"))
        self._say("error", shown, {"message": text})

    def deployed(
        self, name: str, verb: str, took_ms: float, size_bytes: int, changed: list[str], final: dict[str, Any]
    ) -> None:
        shown = Text.assemble((f"{verb} in {took_ms:.0f} ms", "bold green"))
        if verb == "redeployed":
            shown.append(f"  {', '.join(changed[:3])}{' ...' if len(changed) > 3 else ''}", "dim")
        else:
            details = (
                f"  {name}: {final.get('Runtime')}, {final.get('Handler')}, {final['MemorySize']} MB, "
                f"{final['Timeout']} s, {size_bytes:,} bytes"
            )
            shown.append(details)
        fields = {"function": name, "arn": final["FunctionArn"], "ms": round(took_ms, 1), "changed": changed}
        self._say(verb, shown, {**fields, "code_sha256": final.get("CodeSha256"), "bytes": size_bytes})

    def invoked(self, took_ms: float, result: str, error: str | None) -> None:
        style = "red" if error else "green"
        shown = Text.assemble((f"invoked in {took_ms:.0f} ms  ", style), (result, "red" if error else ""))
        value: Any = result
        try:
            value = json.loads(result) if result else None
        except ValueError:
            pass
        self._say("invoked", shown, {"ms": round(took_ms, 1), "function_error": error, "payload": value})

    def log(self, timestamp_ms: int, stream: str, message: str) -> None:
        message = message.rstrip("\n")
        tag = stream[-4:]
        colour = self._colours.setdefault(stream, _STREAM_COLOURS[len(self._colours) % len(_STREAM_COLOURS)])
        moment = time.strftime("%H:%M:%S", time.localtime(timestamp_ms / 1000))
        style = "dim" if _PLATFORM.match(message) else "red" if message.startswith("[ERROR]") else ""
        shown = Text.assemble(
            (f"{moment}.{timestamp_ms % 1000:03d} ", "dim"), (f"{tag} ", colour), (message.replace("\r", "\n"), style)
        )
        self._say("log", shown, {"timestamp": timestamp_ms, "stream": stream, "message": message})

    def _say(self, event: str, text: Text, fields: dict[str, Any]) -> None:
        with self._lock:
            try:
                if self._as_json:
                    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
                else:
                    self._console.print(text)
                sys.stdout.flush()
            except (BrokenPipeError, SystemExit):  # the latter is what rich makes of it
                self._closed.set()
