"""Whether a build repeats: the same image built a second time from nothing, in other surroundings, and compared."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from reprobox.folders import cache_folder
from reprobox.images.archive import saved
from reprobox.images.compare import Difference, first_difference
from reprobox.images.pipeline import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from reprobox.engines.store import ImageStore
    from reprobox.images import BuildRequest, BuildResult, Reporter

_UMASK: Final = 0o077
_ZONE: Final = "Pacific/Chatham"  # 12:45 from UTC: another date for most of the day, and no whole hour


class Built(Protocol):
    """What a build gives: the config digest, and what the engine calls the image."""

    @property
    def image_id(self) -> str:
        """The config digest."""

    @property
    def engine_id(self) -> str:
        """The engine's name of it."""


_Built = TypeVar("_Built", bound=Built)


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What building twice showed; ``difference`` is None where both builds gave one image."""

    same: bool
    other_image_id: str
    difference: Difference | None


def build_verified(
    build: Callable[..., BuildResult], request: BuildRequest, *, store: ImageStore, report: Reporter
) -> BuildResult:
    """Have ``build`` carry out ``request`` twice from nothing; return the first result, ``verification`` filled in.

    The second build has another folder, working folder, umask, time zone and order of its context. These are the
    process's own while it runs, so call this from a program's only thread. The second image goes away again.

    :raises ReproboxError: as :func:`reprobox.images.build`.
    """
    folders = tuple(folder.resolve() for folder in request.wheelhouses)
    asked = replace(request, no_cache=True, wheelhouses=folders)

    def make(within: Surroundings | None) -> BuildResult:
        report.say("building from nothing" + (", a second time in other surroundings" if within else ""))
        return build(asked, store=store, report=report, within=within)

    first, seen = build_twice(make, store=store, scratch=cache_folder() / "contexts")
    verdict: dict[str, Any] = {"same": seen.same, "other_image_id": seen.other_image_id, "difference": None}
    if seen.difference:
        verdict["difference"] = {
            "layer": seen.difference.layer, "path": seen.difference.path, "what": seen.difference.what,
        }  # fmt: skip
    return replace(first, verification=verdict)


def build_twice(
    make: Callable[[Surroundings | None], _Built], *, store: ImageStore, scratch: Path
) -> tuple[_Built, Verification]:
    """Have ``make`` build an image here and once more elsewhere; return the first and what the comparison showed.

    ``make`` is given None the first time. What the second build leaves in the engine is removed, and names it took over
    are the first image's again.
    """
    first = make(None)
    before = _stages(store)
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix="again-") as made, elsewhere(Path(made)) as within:
        second = make(within)
    for left in _stages(store) - before:
        store.remove(left, force=True)
    if first.image_id == second.image_id:
        return first, Verification(same=True, other_image_id=second.image_id, difference=None)
    with saved(store, first.engine_id, scratch) as one, saved(store, second.engine_id, scratch) as other:
        difference = first_difference(one, other)
    for name in store.inspect(second.engine_id).names:
        store.tag(first.engine_id, name)
    store.remove(second.engine_id)
    return first, Verification(same=False, other_image_id=second.image_id, difference=difference)


@contextmanager
def elsewhere(folder: Path) -> Iterator[Surroundings]:
    """Give surroundings in ``folder``, with that working folder, another umask and another time zone."""
    here, zone = Path.cwd(), os.environ.get("TZ")
    umask = os.umask(_UMASK)  # last: nothing may fail between the change and what takes it back
    try:
        os.chdir(folder)
        os.environ["TZ"] = _ZONE
        time.tzset()
        yield Surroundings(scratch=folder, backwards=True)
    finally:
        os.umask(umask)
        os.environ.pop("TZ", None)
        if zone is not None:
            os.environ["TZ"] = zone
        time.tzset()
        os.chdir(here)  # last: the folder may be gone meanwhile


def _stages(store: ImageStore) -> set[str]:
    """Return the ids of what the classic builder left of builds."""
    return set(store.ids(label="reprobox.stage"))
