"""Images from every kind of source, and the store's promises about them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from lambent.model.errors import ApiError, ResourceNotFound
from lambent.store.code import CodeStore
from lambent.store.images.budget import Budget
from lambent.store.images.errors import Broken, ImageDenied, ImageInvalid, ImageMissing, ImageUnreachable
from lambent.store.images.reference import LocalKind, LocalReference, RegistryReference, parse
from lambent.store.images.registry import parse_challenges
from lambent.store.images.store import ImageSettings, StoredImage

from .image_builder import (
    DOCKER_LIST,
    Image,
    Index,
    Registry,
    digest,
    file,
    folder,
    hard,
    link,
    registry,
    tar_of,
    whiteout,
    write_docker_archive,
    write_layout,
    write_oci_archive,
)

FIRST = tar_of(
    folder("bin"),
    file("bin/app", "#!/bin/sh\n", 0o755),
    file("etc/motd", "old"),
    file("etc/gone", "x"),
    link("app", "bin/app"),
)
SECOND = tar_of(file("etc/motd", "new"), whiteout("etc/gone"), hard("bin/app2", "bin/app"))
PROCESS: dict[str, Any] = {"Entrypoint": ["/bin/app"], "Cmd": ["a", "b"], "Env": ["K=V=W", "E="], "WorkingDir": "/etc"}
IMAGE = Image(FIRST, SECOND, **PROCESS)


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def open_store(tmp_path: Path, *dirs: Path, docker_config: Path | None = None) -> CodeStore:
    none = tmp_path / "no-docker-config"
    return CodeStore(tmp_path / "code", ImageSettings(dirs or (tmp_path,), docker_config or none))


async def find(store: CodeStore, uri: str, architecture: str = "x86_64") -> StoredImage:
    async with store.images.pinned(uri, architecture) as image:
        return image


async def refused(store: CodeStore, uri: str, kind: type[ApiError], architecture: str = "x86_64") -> str:
    async def pull() -> None:
        image = await find(store, uri, architecture)
        await store.ensure_image(image.sha256)

    with pytest.raises(kind) as caught:
        await pull()
    assert os.listdir(store._tmp) == []
    assert os.listdir(store._unpacked) == []
    return caught.value.message


def check_tree(tree: Path) -> None:
    assert (tree / "bin/app").read_text() == "#!/bin/sh\n"
    assert (tree / "bin/app").stat().st_mode & 0o777 == 0o755
    assert (tree / "bin/app2").samefile(tree / "bin/app")
    assert os.readlink(tree / "app") == "bin/app"
    assert (tree / "etc/motd").read_text() == "new"
    assert not (tree / "etc/gone").exists()
    for name in ("proc", "sys", "dev/shm", "tmp", "var/task", "opt"):
        assert (tree / name).is_dir()
    assert (tree / "etc/hosts").is_file()
    assert (tree / "etc/resolv.conf").is_file()


SOURCES: dict[str, Callable[[Path], tuple[str, str]]] = {
    "oci": lambda path: (f"oci:{write_layout(path / 'l', v1=IMAGE)}", IMAGE.digest),
    "oci with a tag": lambda path: (
        f"oci:{write_layout(path / 'l', v1=IMAGE, v2=Image(FIRST))}:v1",
        IMAGE.digest,
    ),
    "oci by digest": lambda path: (f"oci:{write_layout(path / 'l', v1=IMAGE)}@{IMAGE.digest}", IMAGE.digest),
    "oci-archive": lambda path: (f"oci-archive:{write_oci_archive(path / 'a.tar', v1=IMAGE)}:v1", IMAGE.digest),
    "docker-archive": lambda path: (f"docker-archive:{write_docker_archive(path / 'd.tar', IMAGE)}", IMAGE.id),
}


@pytest.mark.parametrize("name", SOURCES)
def test_local_sources(tmp_path: Path, name: str) -> None:
    uri, expected = SOURCES[name](tmp_path)

    async def scenario() -> None:
        store = open_store(tmp_path)
        image = await find(store, uri)
        assert f"sha256:{image.sha256}" == expected
        assert image.uri.endswith(f"@{expected}")
        assert image.settings.entry_point == ("/bin/app",)
        assert image.settings.command == ("a", "b")
        assert image.settings.environment == {"K": "V=W", "E": ""}
        assert image.settings.working_directory == "/etc"
        tree = await store.ensure_image(image.sha256)
        assert tree == store._unpacked / store.image_folder(image.sha256)
        check_tree(tree)
        assert (await find(store, image.uri)) == image
        assert os.listdir(store._tmp) == []
        await store.close()

    run(scenario)


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
def test_compressions(tmp_path: Path, compression: str) -> None:
    if compression == "zstd":
        pytest.importorskip("zstandard")
    image = Image(FIRST, SECOND, compression=compression)

    async def scenario() -> None:
        store = open_store(tmp_path)
        found = await find(store, f"oci:{write_layout(tmp_path / 'l', a=image)}")
        check_tree(await store.ensure_image(found.sha256))
        await store.close()

    run(scenario)


def test_a_plain_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin/app").write_text("x")
    (root / "bin/app").chmod(0o4755)
    (root / "way-out").symlink_to("/etc/passwd")
    os.mkfifo(root / "pipe")

    async def scenario() -> None:
        store = open_store(tmp_path)
        first = await find(store, f"dir:{root}")
        assert (await find(store, f"dir:{root}/")).sha256 == first.sha256
        tree = await store.ensure_image(first.sha256)
        assert (tree / "bin/app").stat().st_mode & 0o7777 == 0o755
        assert os.readlink(tree / "way-out") == "/etc/passwd"
        assert not (tree / "pipe").exists()
        (root / "bin/app").write_text("y")
        second = await find(store, f"dir:{root}")
        assert second.sha256 != first.sha256
        (root / "bin/app").write_text("z")
        with pytest.raises(ImageMissing, match="the folder has changed since"):
            await store.ensure_image(second.sha256)
        await store.close()

    run(scenario)


def test_local_sources_need_the_operator(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "in-no"
    write_layout(inside / "l", a=IMAGE)
    write_layout(outside / "l", a=IMAGE)
    (inside / "linked").symlink_to(outside / "l")
    (inside / "half").mkdir()
    (inside / "half/index.json").symlink_to(outside / "l/index.json")

    async def scenario() -> None:
        store = open_store(tmp_path, inside)
        assert (await find(store, f"oci:{inside}/l")).sha256 == IMAGE.sha256
        for uri in (f"oci:{outside}/l", f"dir:{tmp_path}", "dir:/", "dir:/etc"):
            assert "use --image-dir FOLDER" in await refused(store, uri, ImageInvalid)
        for uri in (f"oci:{inside}/../in-no/l", "oci:relative", "dir:", "oci:"):
            assert "absolute path" in await refused(store, uri, ImageInvalid)
        for uri in (f"oci:{inside}/linked", f"dir:{inside}/linked", f"oci:{inside}/half"):
            assert "symbolic links are not followed" in await refused(store, uri, ImageInvalid)
        uri = f"oci:{inside}/none"
        expected = f"Source image {uri} does not exist. Provide a valid source image."
        assert (await refused(store, uri, ImageMissing)).startswith(expected)
        store.images.settings = ImageSettings()
        assert "(none)" in await refused(store, f"oci:{inside}/l", ImageInvalid)
        await store.close()

    run(scenario)


@pytest.mark.parametrize("media_type", [DOCKER_LIST, "application/vnd.oci.image.index.v1+json"])
def test_the_platform_is_chosen(tmp_path: Path, media_type: str) -> None:
    arm = Image(FIRST, architecture="arm64")
    both = Index(Image(FIRST, architecture="s390x"), IMAGE, arm, media_type=media_type)

    async def scenario() -> None:
        store = open_store(tmp_path)
        layout = write_layout(tmp_path / "l", both=both, arm=arm, windows=Image(FIRST, os="windows"))
        for architecture, expected in (("x86_64", IMAGE), ("arm64", arm)):
            assert (await find(store, f"oci:{layout}:both", architecture)).sha256 == expected.sha256
            with registry() as server:
                assert (await find(store, server.push("a/b:t", both), architecture)).sha256 == expected.sha256
        assert "an image for arm64" in await refused(store, f"oci:{layout}:arm", ImageInvalid)
        assert "an image for windows" in await refused(store, f"oci:{layout}:windows", ImageInvalid)
        assert "several images" in await refused(store, f"oci:{layout}", ImageInvalid)
        assert "has no image other" in await refused(store, f"oci:{layout}:other", ImageMissing)
        await store.close()

    run(scenario)


# --- registries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["", "basic", "token"])
def test_pull_from_a_registry(tmp_path: Path, auth: str) -> None:
    async def scenario(server: Registry) -> None:
        uri = server.push("team/app:v1", IMAGE)
        store = open_store(tmp_path, docker_config=server.docker_config(tmp_path / "config.json"))
        image = await find(store, uri)
        assert image.sha256 == IMAGE.sha256
        assert image.uri == f"{server.host}/team/app@{IMAGE.digest}"
        assert not any(digest(layer) in each for each in server.requests for layer in IMAGE.layers)
        server.tags.clear()  # the digest is what counts from now on
        trees = await asyncio.gather(*(store.ensure_image(image.sha256) for _ in range(5)))
        assert len(set(trees)) == 1
        check_tree(trees[0])
        for layer in IMAGE.layers:
            path = f"GET /v2/team/app/blobs/{digest(layer)}"
            assert 1 <= server.requests.count(path) <= (2 if auth else 1)  # once more with what a 401 asked for
        assert (await find(store, f"{server.host}/team/app:ignored@{IMAGE.digest}")).sha256 == IMAGE.sha256
        with pytest.raises(ImageMissing, match="does not exist"):
            await find(store, uri)
        await store.close()

    with registry(auth) as server:
        run(lambda: scenario(server))


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_registry_that_does_not_know_us(tmp_path: Path, auth: str) -> None:
    async def scenario(server: Registry) -> None:
        uri = server.push("a:v1", IMAGE)
        wrong = tmp_path / "config.json"
        wrong.write_text(json.dumps({"auths": {server.host: {"username": "u", "password": "p"}}}))
        for config in (wrong, tmp_path / "none"):
            store = open_store(tmp_path, docker_config=config)
            message = await refused(store, uri, ImageDenied)
            assert message.startswith("Lambda does not have permission to access the ECR image.")
            await store.close()

    with registry(auth) as server:
        run(lambda: scenario(server))


def test_a_token_that_ends_while_layers_are_pulled(tmp_path: Path) -> None:
    many = Image(*(tar_of(file(str(number), os.urandom(9_000))) for number in range(8)))

    async def scenario(server: Registry) -> None:
        uri = server.push("a:v1", many)
        store = open_store(tmp_path, docker_config=server.docker_config(tmp_path / "config.json"))
        sha256 = (await find(store, uri)).sha256
        before = len(server.requests)

        def renew(path: str) -> None:
            if len(server.requests) - before >= 5:
                server.token = "another"

        server.fault = renew
        tree = await store.ensure_image(sha256)
        assert server.token == "another"
        assert all((tree / str(number)).stat().st_size == 9_000 for number in range(8))
        await store.close()

    with registry("token") as server:
        run(lambda: scenario(server))


def test_what_registries_do_wrong(tmp_path: Path) -> None:
    layer = digest(IMAGE.layers[1])

    async def scenario(server: Registry) -> None:
        store = open_store(tmp_path)
        uri = server.push("a:v1", IMAGE)
        for part, answer, kind, text in (
            (layer, (200, IMAGE.layers[1][:-1]), ImageInvalid, "not what its digest says"),
            (layer, (200, IMAGE.layers[1] + b"x"), ImageInvalid, "longer than it should be"),
            (layer, (200, b"\0" * len(IMAGE.layers[1])), ImageInvalid, "not what its digest says"),
            (layer, (404, b""), ImageMissing, "does not exist"),
            (layer, (403, b""), ImageDenied, "answered 403"),
            (layer, (418, b""), ImageUnreachable, "answered 418"),
            (digest(IMAGE.config), (200, b"{}"), ImageInvalid, "not what its digest says"),
            ("manifests", (200, b"<html>"), ImageInvalid, "can not be read"),
            ("manifests", (200, b'{"schemaVersion":1,"fsLayers":[]}'), ImageInvalid, "kind that is not supported"),
            ("manifests", (200, b"[" * 100_000), ImageInvalid, "can not be read"),
            ("manifests", (200, b" " * (5 << 20)), ImageInvalid, "too large"),
        ):
            server.fault = lambda path, part=part, answer=answer: answer if part in path else None  # type: ignore[misc]
            assert text in await refused(store, uri, kind)
        server.fault = lambda path: None
        check_tree(await store.ensure_image((await find(store, uri)).sha256))
        await store.close()

    with registry() as server:
        run(lambda: scenario(server))


def test_nobody_listens(tmp_path: Path) -> None:
    with registry() as server:
        uri = server.push("a:v1", IMAGE)

    async def scenario() -> None:
        store = open_store(tmp_path)
        assert "does not answer" in await refused(store, uri, ImageUnreachable)
        await store.close()

    run(scenario)


def test_a_password_does_not_go_to_a_realm_without_tls(tmp_path: Path) -> None:
    """Only a registry of this machine may name a realm of plain HTTP."""
    from lambent.store.images.credentials import Credentials
    from lambent.store.images.errors import Denied
    from lambent.store.images.registry import RegistrySource

    reference = RegistryReference("registry.example/a", "registry.example", "a", "latest")
    source = RegistrySource(reference, Credentials("u", "p"))
    with pytest.raises(Denied, match="without TLS"):
        source._authorize('Bearer realm="http://127.0.0.1:1/token"', None)
    source.close()


# --- the store ---------------------------------------------------------------------------------------------


def test_trees_stay_when_the_machine_starts_anew_and_are_pulled_when_lost(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "l", a=IMAGE)

    async def scenario() -> None:
        store = open_store(tmp_path)
        sha256 = (await find(store, f"oci:{layout}")).sha256
        tree = await store.ensure_image(sha256)
        await store.close()

        (tmp_path / "code/boot_id").write_text("another boot")
        store = open_store(tmp_path)
        check_tree(tree)
        assert await store.ensure_image(sha256) == tree
        os.rename(tree, tmp_path / "moved")
        check_tree(await store.ensure_image(sha256))
        os.rename(tree, tmp_path / "moved2")
        os.rename(layout, tmp_path / "elsewhere")
        with pytest.raises(ImageMissing):
            await store.ensure_image(sha256)
        await store.close()

    run(scenario)


def test_delete_unused(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "l", a=IMAGE, b=Image(FIRST))

    async def scenario() -> None:
        store = open_store(tmp_path)
        kept, gone = [(await find(store, f"oci:{layout}:{tag}")).sha256 for tag in "ab"]
        for each in (kept, gone):
            await store.ensure_image(each)
        async with store.images.pinned(f"oci:{layout}:b", "x86_64"):
            assert await store.delete_unused({kept}) == 0
        assert await store.delete_unused({kept}) == 1
        assert os.listdir(store._unpacked) == [store.image_folder(kept)]
        with pytest.raises(ResourceNotFound):
            await store.ensure_image(gone)
        for wrong in ("", "..", "a/b", "A" * 64):
            with pytest.raises(ResourceNotFound):
                store.image_folder(wrong)
        await store.close()

    run(scenario)


def test_closing_gives_up_a_pull(tmp_path: Path) -> None:
    async def scenario(server: Registry) -> None:
        store = open_store(tmp_path)
        sha256 = (await find(store, server.push("a:v1", IMAGE))).sha256
        asked = asyncio.Event()
        loop = asyncio.get_running_loop()

        def stop(path: str) -> None:
            if "/blobs/" in path:
                store.images._stopping.set()
                loop.call_soon_threadsafe(asked.set)

        server.fault = stop
        pull = asyncio.create_task(store.ensure_image(sha256))
        await asked.wait()
        await store.close()
        with pytest.raises(ImageUnreachable, match="stopping"):
            await pull

    with registry() as server:
        run(lambda: scenario(server))


def test_limits() -> None:
    with pytest.raises(Broken, match="larger than 10 bytes"):
        Budget(bytes_max=10).take(11)
    with pytest.raises(Broken, match="larger than"):
        Budget(bytes_max=10).announce(11)
    with pytest.raises(Broken, match="too many files"):
        Budget(entries_max=0).entry()


# --- names -------------------------------------------------------------------------------------------------

SHA = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("alpine", RegistryReference("alpine", "docker.io", "library/alpine", "latest")),
        ("alpine:3", RegistryReference("alpine", "docker.io", "library/alpine", "3")),
        ("me/app", RegistryReference("me/app", "docker.io", "me/app", "latest")),
        ("docker.io/alpine", RegistryReference("docker.io/alpine", "docker.io", "library/alpine", "latest")),
        ("localhost/a:b", RegistryReference("localhost/a", "localhost", "a", "b")),
        ("[::1]:5000/a/b", RegistryReference("[::1]:5000/a/b", "[::1]:5000", "a/b", "latest")),
        ("r.example:5000/a/b:t", RegistryReference("r.example:5000/a/b", "r.example:5000", "a/b", "t")),
        (f"r.example/a:t@{SHA}", RegistryReference("r.example/a", "r.example", "a", None, SHA)),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/x:1",
            RegistryReference(
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com/x",
                "123456789012.dkr.ecr.eu-west-1.amazonaws.com",
                "x",
                "1",
            ),
        ),
        ("oci:/a/b:t", LocalReference(LocalKind.OCI, "/a/b", "t")),
        ("oci:/a:b/c", LocalReference(LocalKind.OCI, "/a:b/c")),
        (f"oci:/a/b@{SHA}", LocalReference(LocalKind.OCI, "/a/b", None, SHA)),
        ("oci-archive:/a.tar:t", LocalReference(LocalKind.OCI_ARCHIVE, "/a.tar", "t")),
        ("docker-archive:/a b:c.tar", LocalReference(LocalKind.DOCKER_ARCHIVE, "/a b:c.tar")),
        ("dir://a//b@c/", LocalReference(LocalKind.DIR, "/a/b@c")),
    ],
)
def test_references(uri: str, expected: object) -> None:
    reference = parse(uri)
    assert reference == expected
    assert parse(reference.pinned(SHA)).digest == SHA


@pytest.mark.parametrize(
    "uri",
    [
        *("", " ", "Alpine", "a b", "a/", "/a", "a//b", "a:", "a:b:c", "a@b", "a@sha256:12", f"a@{SHA}0", "a\n"),
        *("r.example/", "r.example:port/a", "http://r.example/a", "r.example/../a", "a?b", "a" * 5_000, "é"),
        *("oci:", "oci:a", "oci:/a/../b", "dir:.", "oci:/a:b c", "dir:/a\0b"),
    ],
)
def test_names_that_are_none(uri: str) -> None:
    with pytest.raises(Broken):
        parse(uri)


def test_loopback() -> None:
    for host, expected in (("localhost:5000", True), ("127.3.4.5", True), ("[::1]:5", True), ("r.example", False)):
        reference = parse(f"{host}/a")
        assert isinstance(reference, RegistryReference)
        assert reference.is_loopback is expected


def test_challenges() -> None:
    header = 'Bearer realm="https://a.example/t?x=1",service="s, t",scope="repository:a:pull", Basic realm="r"'
    assert parse_challenges(header) == {
        "bearer": {"realm": "https://a.example/t?x=1", "service": "s, t", "scope": "repository:a:pull"},
        "basic": {"realm": "r"},
    }
    assert parse_challenges("") == {}
