"""What an engine is: the few verbs every back end answers to, and the plain data they take and give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

__all__ = ["Box", "BoxSpec", "Engine", "EngineInfo", "Exit", "ImageInfo", "Mount", "Stream"]

Stream = Literal["stdout", "stderr"]


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One folder or file of the host inside the box (``kind="bind"``), or an engine-kept volume by name."""

    source: str
    target: str
    read_only: bool = False
    kind: Literal["bind", "volume"] = "bind"


@dataclass(frozen=True, kw_only=True)
class BoxSpec:
    """Everything an engine needs to make one box: pure data.

    ``environment`` maps a name to its value, or to ``None`` to remove what the image sets. ``directory`` is entered by
    the entrypoint and not by the engine, which would create it. ``shm_bytes`` is the size of /dev/shm. ``gpus`` are
    UUIDs in the order asked for. ``tmpfs`` maps a path to its mount options.
    """

    run_id: str
    name: str
    command: tuple[str, ...]
    directory: str
    environment: Mapping[str, str | None]
    image: str | None = None
    user: str | None = None
    mounts: tuple[Mount, ...] = ()
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    network: str = "bridge"
    shm_bytes: int = 64 << 20
    gpus: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    read_only: bool = True
    pids_limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """Which engine answered: recorded in every manifest. ``details`` holds what only some engines know."""

    name: str
    version: str
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageInfo:
    """An image the engine has.

    ``engine_id`` is what the engine calls it; ``image_id`` the OCI config digest, the same for every engine and store.
    """

    engine_id: str
    image_id: str
    repo_digests: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How the command ended: its exit code, whether the kernel killed for memory, and the engine's own error text."""

    code: int
    out_of_memory: bool = False
    error: str = ""


class Box(Protocol):
    """One created box. Leaving the ``with`` block stops it if it runs and removes it, however far it came."""

    def attach(self) -> None:
        """Connect to the streams; called before :meth:`start`, so that nothing is lost."""

    def start(self) -> None:
        """Start the command. :raises EngineError: where the engine cannot."""

    def stream(self, write: Callable[[Stream, bytes], None]) -> None:
        """Hand every piece of output to ``write``, in order per stream, until both streams end."""

    def signal(self, number: int) -> None:
        """Send a signal to the command; a box that has ended already takes none, and that is no error."""

    def wait(self) -> Exit:
        """Wait for the end and say how it was."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Engine(Protocol):
    """A back end that can run a box."""

    name: str
    isolates: bool
    """Whether a box has a file system, users and processes of its own (the local engine's has not)."""

    def info(self) -> EngineInfo:
        """Say which engine answers. :raises EngineUnavailable: when none does."""

    def image(self, reference: str) -> ImageInfo:
        """Look up an image. :raises ImageNotFound: when the engine does not have it."""

    def create(self, spec: BoxSpec) -> Box:
        """Make a box and start nothing. :raises EngineError: where the engine refuses; nothing is left behind."""
