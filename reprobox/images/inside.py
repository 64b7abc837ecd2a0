"""Work that the image's own Python does: in a container of the image with no network, from folders to a folder."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TYPE_CHECKING, Final

from reprobox.errors import BuildError
from reprobox.images.layers import entries_of_folder, write_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from reprobox.engines.store import ImageStore

__all__ = ["Task", "done_inside"]

_TAIL: Final = 30


@dataclass(frozen=True, kw_only=True)
class Task:
    """A shell script, what it is called in an error, and what to do where it fails.

    ``given`` are folders of this machine by the path they get in the container, each below a folder that is there;
    ``back`` is the path of the folder that holds the result.
    """

    script: str
    given: Mapping[str, Path]
    back: str
    name: str
    remedy: str


@contextmanager
def done_inside(image: str, task: Task, scratch: Path, store: ImageStore) -> Iterator[IO[bytes]]:
    """Carry ``task`` out as root in a container of ``image`` and give its result, a tar whose top is the folder's name.

    The container is gone at the end of the ``with`` block.

    :raises BuildError: the script ended with anything but 0; its last lines are the detail.
    :raises EngineError: the engine failed.
    """
    with (
        store.step(image, ["/bin/sh", "-c", task.script], label="project") as step,
        TemporaryFile(dir=scratch) as result,
    ):
        for path, folder in task.given.items():
            above, _, name = path.rpartition("/")
            with _packed(folder, name, scratch) as tar:
                step.put(above, tar)
        if code := step.run():
            raise BuildError(
                f"{task.name} failed with exit code {code}", remedy=task.remedy, detail=step.said(last=_TAIL)
            )
        for chunk in step.get(task.back):
            result.write(chunk)
        result.seek(0)
        yield result


@contextmanager
def _packed(folder: Path, name: str, scratch: Path) -> Iterator[IO[bytes]]:
    """Give ``folder`` as a tar that the engine unpacks as ``name``."""
    with TemporaryDirectory(dir=scratch) as made:
        layer = write_layer(entries_of_folder(folder, at=name), Path(made))
        with layer.open() as tar:
            yield tar
