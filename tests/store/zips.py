"""Zips for tests: tidy ones, and those that an attacker would write."""

from __future__ import annotations

import io
import stat
import zipfile


def make_zip(files: dict[str, bytes | str] | None = None, **text: str) -> bytes:
    """A zip as `zip -r` on Unix makes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**(files or {}), **text}.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def make_entries(*entries: tuple[str, bytes, int]) -> bytes:
    """A zip of (name, data, mode) with the whole `st_mode` given; names may repeat or be wicked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data, mode in entries:
            info = zipfile.ZipInfo("x", (2024, 5, 17, 12, 30, 20))
            info.filename = name
            info.create_system = 3
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


def file(name: str, data: bytes = b"x", mode: int = 0o644) -> tuple[str, bytes, int]:
    return name, data, stat.S_IFREG | mode


def link(name: str, target: str) -> tuple[str, bytes, int]:
    return name, target.encode(), stat.S_IFLNK | 0o777


def folder(name: str) -> tuple[str, bytes, int]:
    return name + "/", b"", stat.S_IFDIR | 0o755
