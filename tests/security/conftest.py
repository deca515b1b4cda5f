"""The two sandboxes that attacks are tried in: the one that root makes, and the one of an ordinary user."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lambent
from integration.harness import Neighbour, Server
from integration.test_server import AS_NOBODY
from security.attacker import Attacker


def _needs_namespaces(server: Server) -> Server:
    if server.page("health")["sandbox"] != "namespace":
        pytest.skip("this machine does not allow the namespace sandbox; see `lambent doctor`")
    return server


@pytest.fixture(scope="session")
def rootless_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that an ordinary user has started."""
    folder = tmp_path_factory.mktemp("rootless")
    os.chown(folder, 65534, 65534)
    source = Path(lambent.__file__).resolve().parent.parent
    needed = os.pathsep.join(map(str, (sys.prefix, sys.base_prefix, source, folder)))
    started = Server(folder / "data", python=(sys.executable, "-c", AS_NOBODY, needed, str(folder)))
    try:
        yield started
    except BaseException:
        started.kill()
        raise
    assert started.terminate() == 0, started.output


@pytest.fixture(scope="session", params=["root", "rootless"])
def sandboxed(request: pytest.FixtureRequest) -> Server:
    """A server with the namespace sandbox, as root and as an ordinary user."""
    if os.geteuid() == 0 and request.param == "rootless":
        return _needs_namespaces(request.getfixturevalue("rootless_server"))
    if os.geteuid() != 0 and request.param == "root":
        pytest.skip("not started as root")
    return _needs_namespaces(request.getfixturevalue("server"))


@pytest.fixture(scope="module")
def attacker(sandboxed: Server) -> Iterator[Attacker]:
    made = Attacker(sandboxed)
    yield made
    made.delete()


@pytest.fixture
def neighbour(server: Server) -> Iterator[Neighbour]:
    with Neighbour(server) as running:
        yield running


@pytest.fixture
def any_neighbour(sandboxed: Server) -> Iterator[Neighbour]:
    """On the attacker's server."""
    with Neighbour(sandboxed) as running:
        yield running
