"""The folders of this machine that runs share: compiled kernels, and caches that a person names."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from reprobox.folders import cache_folder
from reprobox.host import host_facts

if TYPE_CHECKING:
    from pathlib import Path

    from reprobox.engines import ImageInfo
    from reprobox.runs.plan import RunRequest

__all__ = ["CACHE_VARIABLES", "shared_folders"]

BOX_CACHE = "/run/reprobox/cache"
BOX_NAMED_CACHE = "/run/reprobox/named"

CACHE_VARIABLES = {
    "TORCHINDUCTOR_CACHE_DIR": f"{BOX_CACHE}/inductor",
    "TRITON_CACHE_DIR": f"{BOX_CACHE}/triton",
    "HF_HOME": f"{BOX_NAMED_CACHE}/huggingface",
    "TORCH_HOME": f"{BOX_NAMED_CACHE}/torch",
}
"""Where the libraries in the box are told to keep things."""


def shared_folders(request: RunRequest, image: ImageInfo | None) -> dict[str, Path]:
    """Return where the box has each folder that runs share, and where this machine keeps it.

    Keyed by image and device: an autotuner that times kernels anew may choose others, and with them other bits. What was
    compiled is code that the next run executes, so that it is also keyed by the project; a named cache is shared on purpose.
    """
    if image is None:
        return {}
    device = sorted(gpu.name for gpu in request.gpus) or [str(host_facts()["cpu"]), *host_facts()["isa"]]
    other = "" if request.owner[0] == os.getuid() else f"-{request.owner[0]}"

    def key(*words: str) -> str:
        return hashlib.sha256("\0".join(words).encode(errors="surrogateescape")).hexdigest()[:24] + other

    home = cache_folder()
    project = os.path.realpath(request.project.root)
    caches = {BOX_CACHE: home / "compile" / key(project, image.image_id, *device)}
    if request.cache is not None:
        caches[BOX_NAMED_CACHE] = home / "named" / request.cache / key(image.image_id, *device)
    return caches
