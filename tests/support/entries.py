"""Entries of a layer, made from as little as a test says of them."""

from __future__ import annotations

import io

from reprobox.images.layers import Entry


def file(name, content=b"content", **options):
    return Entry(
        name=name, kind="file", mode=options.pop("mode", 0o644), size=len(content), content=lambda: io.BytesIO(content),
        **options,
    )  # fmt: skip


def folder(name, mode=0o755, **options):
    return Entry(name=name, kind="folder", mode=mode, **options)
