"""A process of its own that builds a small image as ``reprobox build`` does, and prints the normalised image's id.

``python -m support.small_build BUILDER BASE TAG FOLDER NAME...``: each NAME is a file beside the Dockerfile in FOLDER.
"""

from __future__ import annotations

import sys
from pathlib import Path

from reprobox.engines.connection import connect
from reprobox.engines.docker_store import DockerImageStore
from reprobox.images.context import context_file
from reprobox.images.pipeline import build_normalised
from support.said import Said


def small_build(store, *, builder, base, tag, files, scratch, backwards=False):
    """Build ``files`` (name → content), whose Dockerfile stands on the image ``base``, and normalise what came out."""
    with context_file(files, scratch, backwards=backwards) as context:
        return build_normalised(
            context, {"BASE": base}, builder=builder, base=base, tag=tag, network="none", no_cache=True,
            scratch=scratch, store=store, report=Said(),
        )  # fmt: skip


if __name__ == "__main__":
    builder, base, tag, folder = sys.argv[1:5]
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    print(
        small_build(
            DockerImageStore(connect()), builder=builder, base=base, tag=tag, files=files, scratch=Path.cwd()
        ).image_id
    )
