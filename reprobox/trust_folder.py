"""Where the lists are kept that a person has allowed; no box may write there."""

from __future__ import annotations

from pathlib import Path

__all__ = ["trust_folder"]


def trust_folder() -> Path | None:
    """Return the folder in the user's state folder; ``None`` for a user without a home.

    Without one its path would count from the current folder, and that is the project's to fill.
    """
    from platformdirs import user_state_path

    try:
        folder = user_state_path("reprobox") / "trust"
    except RuntimeError:  # platformdirs 4.4 and newer; older ones give a path with ~ in it
        return None
    return folder.resolve() if folder.is_absolute() else None
