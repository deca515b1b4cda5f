"""What has been saved in a folder, as soon as it has been quiet for a moment: a burst of saves is one change.

The library watchfiles asks the kernel to tell; where it is not installed (`lambent[dev]`), the files' times are looked
at again and again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

from lambent.cli.packaging import folders_of, is_part

#: A change is told when nothing more has come for between one and two of these.
_QUIET_MS = 25
#: Files that are written without a pause are told after this.
_BURST_MAX_MS = 500
_CHECK_MS = 400
_POLL_S = 0.1


def changes(path: Path, stop: threading.Event) -> Iterator[set[Path]]:
    """Until `stop`: which files have changed, come or gone. An empty set, now and then, says that nobody has told, but
    something may be new. `path`: a folder or a file. Raises FileNotFoundError when it goes away."""
    try:
        import watchfiles  # noqa: F401
    except ImportError:
        return _polled(path, stop)
    return _notified(path, stop)


def _notified(path: Path, stop: threading.Event) -> Iterator[set[Path]]:
    from watchfiles import watch

    while not stop.is_set():
        folders = _folders(path)
        is_new = True
        for found in watch(
            *folders,
            watch_filter=None,
            debounce=_BURST_MAX_MS,
            step=_QUIET_MS,
            stop_event=stop,
            rust_timeout=_CHECK_MS,
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
            ignore_permission_denied=True,
        ):
            changed = {Path(name) for _, name in found if _concerns(path, Path(name))}
            if changed or is_new:
                yield changed
            if not found:
                is_new = False  # files that came into new folders before these were watched have been seen
            if not path.exists():
                raise FileNotFoundError(path)
            if changed and _folders(path) != folders:
                break


def _polled(path: Path, stop: threading.Event) -> Iterator[set[Path]]:
    known = _times(path)
    while not stop.wait(_POLL_S):
        if not path.exists():
            raise FileNotFoundError(path)
        found = _times(path)
        if found == known:
            continue
        while not stop.wait(_QUIET_MS / 1000) and (later := _times(path)) != found:
            found = later
        yield {file for file in found.keys() | known.keys() if found.get(file) != known.get(file)}
        known = found


def _folders(path: Path) -> list[Path]:
    """An editor may replace a file by another: its folder tells."""
    return list(folders_of(path)) if path.is_dir() else [path.parent]


def _concerns(path: Path, changed: Path) -> bool:
    if not path.is_dir():
        return changed == path
    return changed.is_relative_to(path) and is_part(changed.relative_to(path)) and not changed.is_dir()


def _times(path: Path) -> dict[Path, tuple[int, int]]:
    found: dict[Path, tuple[int, int]] = {}
    for folder in _folders(path):
        try:
            for file in folder.iterdir():
                if _concerns(path, file):
                    status = file.stat()
                    found[file] = (status.st_mtime_ns, status.st_size)
        except OSError:
            continue  # gone between two looks
    return found
