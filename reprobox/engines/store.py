"""What an image store is: where an engine keeps its images, the verbs of it, and an image as the engine describes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from reprobox.engines.transfer import Patience
    from reprobox.reference import Reference

__all__ = ["BuildJob", "Builder", "ImageStore", "Reporter", "Step", "StoredImage"]

Builder = Literal["classic", "buildkit"]


class Reporter(Protocol):
    """Where long work says what it does; the caller decides what a person sees of it."""

    def say(self, line: str) -> None:
        """Take one sentence for the person who asked for the work."""

    def progress(self, label: str, done: int, total: int | None) -> None:
        """Take how far a long step is: ``done`` of ``total`` (None: not known), bytes or steps as ``label`` says."""

    def log(self, line: str) -> None:
        """Take one line of what a tool (the engine, its builder, pip, mmdebstrap) wrote."""


@dataclass(frozen=True, kw_only=True)
class StoredImage:
    """An image as its engine describes it.

    ``engine_id`` is what the engine calls it, which is the image id except with the containerd image store
    (:meth:`ImageStore.image_id`). ``names`` are ``NAME:TAG``, ``repo_digests`` ``NAME@sha256:…`` of registries,
    ``created`` is RFC 3339, ``container`` the config of a container of it (``Env``, ``Labels``, ``Cmd``, …) and
    ``layers`` the digests of its layers, uncompressed, from the lowest up.
    """

    engine_id: str
    names: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    created: str = ""
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    container: Mapping[str, object] = field(default_factory=dict)
    layers: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """Its labels; empty where it has none."""
        labels = self.container.get("Labels")
        return dict(labels) if isinstance(labels, dict) else {}

    @property
    def environment(self) -> tuple[str, ...]:
        """Its variables, each ``NAME=value``, in their order."""
        variables = self.container.get("Env")
        return tuple(map(str, variables)) if isinstance(variables, list) else ()


@dataclass(frozen=True, kw_only=True)
class BuildJob:
    """One build for either builder: the context tar (on disk), the ARGs, the name, the steps' network, the cache.

    ``tag`` must be no other build's, since what was built is found by it.
    """

    context: IO[bytes]
    args: Mapping[str, str]
    tag: str
    network: str
    no_cache: bool


class Step(Protocol):
    """A container of an image in which one command is carried out as root, with no network."""

    def put(self, folder: str, tar: IO[bytes]) -> None:
        """Unpack a tar in a folder of the container, which is there."""

    def run(self) -> int:
        """Carry the command out, however long it is silent, and return its exit code."""

    def said(self, *, last: int | None = None, stderr: bool = True) -> str:
        """Return what the command wrote: its ``last`` lines, all by default."""

    def get(self, path: str) -> Iterator[bytes]:
        """Give a file or folder of the container as a tar, piece by piece."""


class ImageStore(Protocol):
    """Where an engine keeps images. Images are named by ``NAME:TAG``, ``NAME@sha256:…``, image id or engine id.

    Each verb raises :class:`~reprobox.errors.ImageNotFound` for an image that is not there,
    :class:`~reprobox.errors.EngineUnavailable` where the engine does not answer, and
    :class:`~reprobox.errors.EngineError` where it refuses.
    """

    keeps_manifests: bool
    """Whether its ids are manifests' digests (the containerd image store); it takes an archive with every layer only."""

    def inspect(self, name: str) -> StoredImage:
        """Describe an image."""

    def find(self, name: str) -> StoredImage | None:
        """Describe an image, if it is there."""

    def image_id(self, image: StoredImage) -> str:
        """Return the OCI config digest of an image (``sha256:…``), the same on every engine."""

    def note_image_id(self, image: StoredImage, image_id: str) -> None:
        """Remember the config digest of an image where that is known, so that the engine need not be asked for it."""

    def ids(self, *, label: str | None = None, hidden: bool = False) -> tuple[str, ...]:
        """Return the engine ids of its images; of those with no name and this ``label`` alone, where one is given.

        :param hidden: those that only other images stand on as well.
        """

    def history(self, name: str) -> tuple[str, ...]:
        """Return how each layer was made, empty ones included, from the lowest up."""

    def load(self, archive: Iterable[bytes], log: Callable[[str], None]) -> None:
        """Take the images of an archive (``docker save``'s format, an OCI layout as well).

        :param log: is given what the engine says.
        """

    def export(self, name: str) -> Iterator[bytes]:
        """Give an image as such an archive, piece by piece."""

    def files(self, name: str) -> AbstractContextManager[Iterable[bytes]]:
        """Give the file system of an image as a tar, piece by piece; nothing of it is run."""

    def tag(self, name: str, new: str) -> None:
        """Give an image a further name (``NAME:TAG``), which another image may have had until now."""

    def remove(self, name: str, *, force: bool = False) -> None:
        """Take a name away, and the image with its last one; by an id, the image."""

    def choose_builder(self, wanted: Builder | None, report: Reporter) -> Builder:
        """Return who builds: whom a person ``wanted``, or the first of the builders that the engine takes.

        :raises BuildError: the engine refuses the one that is wanted, or there is none.
        """

    def build(self, job: BuildJob, builder: Builder, report: Reporter) -> StoredImage:
        """Carry out a Dockerfile and return what came out.

        :raises BuildError: a step failed, or there is no such builder.
        """

    def step(
        self, image: str, command: Sequence[str], *, environment: Mapping[str, str] | None = None, label: str = ""
    ) -> AbstractContextManager[Step]:
        """Make a container of ``image`` for ``command``; it is removed when the ``with`` block ends."""

    def pull(
        self, wanted: Reference, report: Reporter, *, patience: Patience | None = None, platform: str | None = None
    ) -> str:
        """Fetch an image from its registry and return its digest there; see :func:`reprobox.engines.transfer.pull`."""

    def push(self, wanted: Reference, report: Reporter, *, patience: Patience | None = None) -> str:
        """Send an image to the registry it is named after and return its digest there."""
