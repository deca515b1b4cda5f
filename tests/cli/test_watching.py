"""Changes of files, told by the kernel and found by looking."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lambent.cli import watching
from lambent.cli.watching import changes

PATIENCE_S = 10.0
Watched = Callable[[Path], "queue.Queue[set[Path]]"]


@pytest.fixture(params=["notified", "polled"])
def watched(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    """Changes of a path, as a queue; it looks already."""
    if request.param == "polled":
        monkeypatch.setattr(watching, "_notified", watching._polled)
    stop = threading.Event()
    threads = []

    def begin(path: Path) -> queue.Queue[set[Path]]:
        found: queue.Queue[set[Path]] = queue.Queue()

        def run() -> None:
            for changed in changes(path, stop):
                if changed:
                    found.put(changed)
                started.set()

        started = threading.Event()
        threads.append(threading.Thread(target=run))
        threads[-1].start()
        if request.param == "notified":
            assert started.wait(PATIENCE_S)  # it has told once that something may be new
        else:
            marker = (path if path.is_dir() else path.parent) / "marker.py"
            text = ""
            while found.empty() and path.is_dir():  # its first look is over when it sees a change
                text += "#\n"
                marker.write_text(text)
                stop.wait(0.05)
            drain(found)
        return found

    yield begin
    stop.set()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def drain(found: queue.Queue[set[Path]]) -> None:
    while True:
        try:
            found.get(timeout=0.4)
        except queue.Empty:
            return


def seen(found: queue.Queue[set[Path]], path: Path) -> set[Path]:
    """All that is told until `path` is."""
    told: set[Path] = set()
    while path not in told:
        told |= found.get(timeout=PATIENCE_S)
    return told


def test_saved_created_renamed_deleted(tmp_path: Path, watched: Watched) -> None:
    app = tmp_path / "app.py"
    app.write_text("1")
    found = watched(tmp_path)
    app.write_text("2 2")
    seen(found, app)
    (tmp_path / "new.py").write_text("1")
    seen(found, tmp_path / "new.py")
    temporary = tmp_path / "app.py~"
    temporary.write_text("3 3 3")
    temporary.rename(app)
    told = seen(found, app)
    assert temporary not in told
    app.unlink()
    seen(found, app)


def test_new_folders_are_watched_and_others_are_not(tmp_path: Path, watched: Watched) -> None:
    (tmp_path / "node_modules" / "deep").mkdir(parents=True)
    found = watched(tmp_path)
    ignored = [tmp_path / ".git" / "index", tmp_path / "node_modules" / "deep" / "x.js", tmp_path / ".app.py.swp"]
    for path in ignored:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (tmp_path / "lib").mkdir()
    (tmp_path / "here.py").write_text("x")
    told = seen(found, tmp_path / "here.py")
    drain(found)
    later = tmp_path / "lib" / "later.py"
    later.write_text("x")
    told |= seen(found, later)
    assert not told & set(ignored)


def test_a_burst_is_one_change(tmp_path: Path, watched: Watched) -> None:
    found = watched(tmp_path)
    files = {tmp_path / f"m{number}.py" for number in range(50)}
    for file in files:
        file.write_text("x")
    told, times = set(), 0
    while not files <= told:
        told |= found.get(timeout=PATIENCE_S)
        times += 1
    assert times <= 5


def test_one_file(tmp_path: Path) -> None:
    app, stop = tmp_path / "app.py", threading.Event()
    app.write_text("1")
    found = changes(app, stop)
    assert next(found) == set()
    (tmp_path / "other.py").write_text("1")
    app.write_text("2")
    assert next(each for each in found if each) == {app}
    stop.set()
    assert list(found) == []


def test_gone(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    found = changes(folder, threading.Event())
    next(found)
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        list(found)
