"""What the box is given to read: who its user is, and the recipe for children that start with an empty environment."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from reprobox.errors import BoxError
from reprobox.runs.plan import BOX_HOME, BOX_RUN_DIR, box_user_name

if TYPE_CHECKING:
    from pathlib import Path

    from reprobox.recipe import Recipe

__all__ = ["box_files", "write_box_files"]


def box_files(recipe: Recipe, owner: tuple[int, int]) -> dict[str, str]:
    """Return the files the box is given read-only: passwd and group with its user in them, and the recipe."""
    uid, gid = owner
    user = box_user_name(uid)
    passwd = {0: "root:x:0:0:root:/root:/bin/sh", 65534: "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"}
    passwd[uid] = f"{user}:x:{uid}:{gid}:{user}:{BOX_HOME}:/bin/sh"
    group = {0: "root:x:0:", 65534: "nogroup:x:65534:"}
    group[gid] = f"{user if gid else 'root'}:x:{gid}:"
    return {
        "passwd": "\n".join(passwd.values()) + "\n",
        "group": "\n".join(group.values()) + "\n",
        "recipe.json": json.dumps(
            {"schema": "reprobox.recipe/1", **recipe.to_json(), "words": recipe.to_words(BOX_RUN_DIR)}, indent=2
        )
        + "\n",
    }


def write_box_files(folder: Path, recipe: Recipe, owner: tuple[int, int]) -> None:
    """Write :func:`box_files` to ``folder``, and the folder ``out`` that the box may write.

    :raises BoxError: when they cannot be written.
    """
    try:
        folder.mkdir()
        for name, text in box_files(recipe, owner).items():
            path = folder / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o444)
        out = folder / "out"
        out.mkdir()
        if owner[0] != os.getuid():
            out.chmod(0o1777)
    except OSError as error:
        raise BoxError(
            f"{folder} cannot be written ({error.strerror})", remedy="make the project folder writable"
        ) from error
