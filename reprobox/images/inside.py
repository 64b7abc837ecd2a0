"""Work that the image's own Python does: in a container of the image with no network, from folders to a folder."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final

from reprobox.engines.digests import patient
from reprobox.errors import BuildError, EngineError
from reprobox.images.layers import entries_of_folder, write_layer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import docker

__all__ = ["Task", "done_inside"]

_TAIL: Final = 30
_LABEL: Final = {"reprobox.stage": "project"}


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
def done_inside(image: str, task: Task, scratch: Path, client: docker.DockerClient) -> Iterator[IO[bytes]]:
    """Carry ``task`` out as root in a container of ``image`` and give its result, a tar whose top is the folder's name.

    The container is gone at the end of the ``with`` block.

    :raises BuildError: the script ended with anything but 0; its last lines are the detail.
    :raises EngineError: the engine failed.
    """
    import docker.errors

    try:
        with (
            patient(client),
            _container(client, image, task.script) as container,
            TemporaryFile(dir=scratch) as result,
        ):
            for path, folder in task.given.items():
                above, _, name = path.rpartition("/")
                with _packed(folder, name, scratch) as tar:
                    container.put_archive(above, tar)
            container.start()
            code = container.wait()["StatusCode"]
            if code != 0:
                said = container.logs(tail=_TAIL).decode(errors="replace")
                raise BuildError(f"{task.name} failed with exit code {code}", remedy=task.remedy, detail=said)
            chunks, _ = container.get_archive(task.back)
            for chunk in chunks:
                result.write(chunk)
            result.seek(0)
            yield result
    except docker.errors.APIError as error:
        raise EngineError(
            f"{task.name} could not be done", remedy="see `reprobox doctor`", detail=str(error)
        ) from error


@contextmanager
def _container(client: docker.DockerClient, image: str, script: str) -> Iterator[Any]:
    container = client.containers.create(
        image, [script], entrypoint=["/bin/sh", "-c"], network_mode="none", user="0:0", labels=_LABEL
    )
    try:
        yield container
    finally:
        container.remove(force=True)


@contextmanager
def _packed(folder: Path, name: str, scratch: Path) -> Iterator[IO[bytes]]:
    """Give ``folder`` as a tar that the engine unpacks as ``name``."""
    with TemporaryDirectory(dir=scratch) as made:
        layer = write_layer(entries_of_folder(folder, at=name), Path(made))
        with layer.open() as tar:
            yield tar
