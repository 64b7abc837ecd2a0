"""What an engine is: the few verbs every back end answers to, and the plain data they take and give."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

from reprobox.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import TracebackType

    from reprobox.engines.splice import Delivered
    from reprobox.engines.store import ImageStore

__all__ = [
    "GPUS_LABEL",
    "PROJECT_LABEL",
    "RUN_LABEL",
    "Box",
    "BoxOptions",
    "BoxSpec",
    "Device",
    "Engine",
    "EngineInfo",
    "Exit",
    "FoundBox",
    "GpuBox",
    "ImageInfo",
    "Mount",
    "Port",
    "Stream",
    "Ulimit",
    "removed_or_told",
]

Stream = Literal["stdout", "stderr"]

RUN_LABEL = "reprobox.run"
"""The label every box carries: the id of its run."""

PROJECT_LABEL = "reprobox.project"
"""The label of a run's box: the folder of its project."""

GPUS_LABEL = "reprobox.gpus"
"""The label of every box that was given GPUs: their UUIDs, in the order asked for, with commas."""

NEVER_STARTED_SECONDS = 120
"""A box that was made longer ago than this and not started never will be: its client was killed in between."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One folder or file of the host inside the box (``kind="bind"``), or an engine-kept volume by name."""

    source: str
    target: str
    read_only: bool = False
    kind: Literal["bind", "volume"] = "bind"


@dataclass(frozen=True, kw_only=True)
class Ulimit:
    """A limit of the box's processes (``nofile``, ``memlock``…); -1 is no limit."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, kw_only=True)
class Device:
    """A device node of the host in the box; ``permissions`` is any of ``r``, ``w`` and ``m``."""

    source: str
    target: str
    permissions: str = "rwm"


@dataclass(frozen=True, kw_only=True)
class Port:
    """A port of the box reached through the host; without ``host_port`` the engine picks a free one."""

    box_port: int
    protocol: Literal["tcp", "udp", "sctp"] = "tcp"
    host_port: int | None = None
    host_address: str = ""


@dataclass(frozen=True, kw_only=True)
class BoxOptions:
    """What Docker's own flags set of a box, with Docker's meaning; ``None`` and empty leave the engine's default.

    ``memory_bytes`` is the limit of memory (swap as Docker sets it), ``cpus`` the share of
    CPU time, ``cpuset`` the cores (``0-3,7``), ``hosts`` lines of /etc/hosts (name to address), ``stop_timeout`` the
    seconds between TERM and KILL when the box is stopped. Every capability is dropped but ``cap_add``.
    """

    memory_bytes: int | None = None
    cpus: float | None = None
    cpuset: str | None = None
    pids_limit: int | None = None
    ulimits: tuple[Ulimit, ...] = ()
    devices: tuple[Device, ...] = ()
    groups: tuple[str, ...] = ()
    ports: tuple[Port, ...] = ()
    hostname: str | None = None
    hosts: Mapping[str, str] = field(default_factory=dict)
    ipc: str | None = None
    platform: str | None = None
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ("ALL",)
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_timeout: int | None = None


@dataclass(frozen=True, kw_only=True)
class BoxSpec:
    """Everything an engine needs to make one box: pure data.

    ``environment`` maps a name to its value, or to ``None`` to remove what the image sets. ``directory`` is entered by
    the entrypoint and not by the engine, which would create it. ``shm_bytes`` is the size of /dev/shm. ``gpus`` are
    UUIDs in the order asked for; ``keep_open`` are file descriptors that a command of this machine inherits, which no
    container can. ``tmpfs`` maps a path to its mount options. ``secrets`` are the names of the files
    under /run/secrets that the entrypoint exports. ``stdin`` keeps the command's input open for :meth:`Box.feed`;
    ``terminal`` gives it a terminal, and with it one output stream; ``detached`` leaves the input to who attaches
    later. ``log`` lets the engine keep a copy of the output, to catch up with after an interruption. ``labels`` are
    reprobox's own, by which a box is found again.
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
    keep_open: tuple[int, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    read_only: bool = True
    secrets: tuple[str, ...] = ()
    stdin: bool = False
    terminal: bool = False
    detached: bool = False
    log: bool = True
    options: BoxOptions = field(default_factory=BoxOptions)


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
    """How the command ended: its exit code, whether the kernel killed for memory, and the engine's own error text.

    ``engine_was_away`` says that the engine stopped answering meanwhile: an end by a signal may be its doing. ``removed``
    says that somebody else removed the box, and with it the command.
    """

    code: int
    out_of_memory: bool = False
    error: str = ""
    engine_was_away: bool = False
    removed: bool = False


@dataclass(frozen=True, kw_only=True)
class GpuBox:
    """A box that holds GPUs, by the labels it carries: the id of its run, and the UUIDs in the order asked for.

    ``container`` is the engine's full id of it, which is in the names of its processes' cgroups.
    """

    run_id: str
    gpus: tuple[str, ...]
    state: Literal["created", "running", "paused", "restarting"]
    container: str = field(default="", compare=False)


class Box(Protocol):
    """One box. Leaving the ``with`` block ends and removes it, however far it came, unless it was left to itself."""

    def attach(self) -> None:
        """Connect to the streams; called before :meth:`start`, so that nothing is lost."""

    def start(self) -> None:
        """Start the command. :raises EngineError: where the engine cannot."""

    def stream(self, write: Callable[[Stream, bytes], None], say: Callable[[str], None]) -> None:
        """Hand every piece of output to ``write``, in order per stream, until both streams end with the command.

        A connection that breaks is made again and what was missed is fetched; ``say`` is told of it.

        :raises EngineUnavailable: when the engine stays away; the box may still run.
        """

    def feed(self, data: bytes) -> None:
        """Give the command input; an end of the command meanwhile is no error."""

    def end_input(self) -> None:
        """Close the command's input: it reads end of file."""

    def resize(self, rows: int, columns: int) -> None:
        """Tell the command's terminal its size in characters; a box that has ended already has none."""

    def signal(self, number: int) -> None:
        """Send a signal to the command; a box that has ended already takes none, and that is no error.

        :raises EngineUnavailable: when the engine does not answer.
        """

    def wait(self) -> Exit:
        """Wait for the end and say how it was."""

    def leave(self) -> None:
        """Leave the box to itself: the ``with`` block will neither end nor remove it, and a blocked stream ends."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class FoundBox(Box, Protocol):
    """A box that was made earlier, perhaps by a process that is no more.

    Leaving the ``with`` block removes it only after a block without an error, and once it is known to have ended
    (:meth:`wait`) or never to have started (:meth:`started`); else it is left to itself.
    """

    project: str | None = None
    """The folder of the project whose run it is, by its label; ``None`` where it has none."""

    @property
    def running(self) -> bool:
        """Whether its command still runs, as the engine says now."""

    def started(self) -> str | None:
        """Return when the command was started (UTC, RFC 3339), or ``None`` where it never was."""

    def catch_up(
        self,
        places: Mapping[Stream, Delivered],
        write: Callable[[Stream, bytes], None],
        say: Callable[[str], None],
    ) -> None:
        """Hand ``write`` the output from ``places`` on, as the engine kept it, until the command's end."""

    def stop(self, seconds: int | None = None) -> None:
        """Send TERM, and KILL after ``seconds`` (the box's own --stop-timeout, or 10)."""

    def remove(self) -> None:
        """End and remove it, whatever its command does; one that somebody else removes is no error."""


_AnyBox = TypeVar("_AnyBox", bound=Box)


@contextlib.contextmanager
def removed_or_told(box: _AnyBox, say: Callable[[str], None]) -> Iterator[_AnyBox]:
    """Be the ``with`` block of ``box``; a removal that fails after a block without an error is told, and no error.

    What the box's command did is known then, and worth more than the box.
    """
    over = False
    try:
        with box:
            yield box
            over = True
    except EngineError as error:
        if not over:
            raise
        say(str(error))


class Engine(Protocol):
    """A back end that can run a box."""

    name: str
    isolates: bool
    """Whether a box has a file system, users and processes of its own (the local engine's has not)."""
    store: ImageStore | None
    """Where it keeps images; ``None`` for an engine that has none."""

    def info(self) -> EngineInfo:
        """Say which engine answers. :raises EngineUnavailable: when none does."""

    def describe(self) -> Mapping[str, Any]:
        """Return all that it says of itself: the answer of a Docker or Podman to ``/info``; empty for other engines."""

    def refuses_builds(self) -> str | None:
        """Return why it does not build images through its API, in its own words; ``None`` where it does."""

    def image(self, reference: str) -> ImageInfo:
        """Look up an image. :raises ImageNotFound: when the engine does not have it."""

    def pull(self, reference: str, progress: Callable[[str], None], platform: str | None = None) -> ImageInfo:
        """Fetch an image from its registry and return exactly what was fetched.

        :param platform: ``linux/arm64`` and the like; this machine's by default.
        :raises EngineError: when it could not be had; an older local image never takes its place.
        """

    def create(self, spec: BoxSpec) -> Box:
        """Make a box and start nothing. :raises EngineError: where the engine refuses; nothing is left behind."""

    def find(self, run_id: str) -> FoundBox | None:
        """Return the box of the run ``run_id``, running or ended, if there still is one."""

    def gpu_boxes(self) -> tuple[GpuBox, ...]:
        """Return every box that was given GPUs and has not ended, whoever made it.

        A box that was made and not started counts for :data:`NEVER_STARTED_SECONDS`.

        :raises EngineUnavailable: when the engine does not answer.
        """
