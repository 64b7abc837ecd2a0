"""An engine in memory, for tests of everything above the engines: it runs nothing and behaves as a script says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from reprobox.engines.base import (
    GPUS_LABEL,
    RUN_LABEL,
    Box,
    BoxSpec,
    Engine,
    EngineInfo,
    Exit,
    FoundBox,
    GpuBox,
    ImageInfo,
    Stream,
)
from reprobox.errors import EngineError, ImageNotFound

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from reprobox.engines.store import ImageStore

__all__ = ["FakeBox", "FakeEngine", "Script"]


@dataclass(frozen=True, kw_only=True)
class Script:
    """What a fake box does once it is started.

    ``on_start`` is called as the command would begin (it may write the stage, or send this process a signal);
    ``fail_at`` names a verb that raises an EngineError instead of doing its work.
    """

    output: Sequence[tuple[Stream, bytes]] = ()
    exit: Exit = field(default_factory=lambda: Exit(code=0))
    on_start: Callable[[BoxSpec], None] | None = None
    fail_at: str | None = None


@dataclass(kw_only=True)
class FakeEngine(Engine):
    """Knows the images it is given and makes boxes that follow ``script``; remembers every box it made."""

    name: str = "fake"
    isolates: bool = True
    store: ImageStore | None = None
    script: Script = field(default_factory=Script)
    images: Mapping[str, ImageInfo] = field(default_factory=dict)
    boxes: list[FakeBox] = field(default_factory=list)
    found: dict[str, FoundBox] = field(default_factory=dict)

    def info(self) -> EngineInfo:
        return EngineInfo(name=self.name, version="0")

    def describe(self) -> Mapping[str, Any]:
        return {}

    def refuses_builds(self) -> str | None:
        return None

    def image(self, reference: str) -> ImageInfo:
        if reference not in self.images:
            raise ImageNotFound(f"the image {reference} is not there", remedy="give it to the fake")
        return self.images[reference]

    def pull(self, reference: str, progress: Callable[[str], None], platform: str | None = None) -> ImageInfo:
        del platform
        progress(f"pulling {reference}")
        return self.image(reference)

    def find(self, run_id: str) -> FoundBox | None:
        return self.found.get(run_id)

    def gpu_boxes(self) -> tuple[GpuBox, ...]:
        return tuple(
            GpuBox(
                run_id=box.spec.labels.get(RUN_LABEL, ""),
                gpus=tuple(box.spec.labels[GPUS_LABEL].split(",")),
                state="running" if "start" in box.events else "created",
            )
            for box in self.boxes
            if GPUS_LABEL in box.spec.labels and not box.has_ended
        )

    def create(self, spec: BoxSpec) -> Box:
        box = FakeBox(spec, self.script)
        box.do("create")
        self.boxes.append(box)
        return box


class FakeBox(Box):
    """A box that never was: ``events`` lists the verbs in the order they were called."""

    project: str | None = None

    def __init__(self, spec: BoxSpec, script: Script) -> None:
        self.spec = spec
        self.script = script
        self.events: list[str] = []
        self.signals: list[int] = []
        self.input = b""
        self.size: tuple[int, int] | None = None
        self.left = False

    def do(self, verb: str) -> None:
        self.events.append(verb)
        if self.script.fail_at == verb:
            raise EngineError(f"the fake was told to fail at {verb}")

    @property
    def has_ended(self) -> bool:
        return "wait" in self.events or "remove" in self.events

    def attach(self) -> None:
        self.do("attach")

    def start(self) -> None:
        self.do("start")
        if self.script.on_start is not None:
            self.script.on_start(self.spec)

    def stream(self, write: Callable[[Stream, bytes], None], say: Callable[[str], None]) -> None:
        del say
        self.do("stream")
        for stream, data in self.script.output:
            write(stream, data)

    def signal(self, number: int) -> None:
        self.signals.append(number)

    def feed(self, data: bytes) -> None:
        self.input += data

    def end_input(self) -> None:
        self.events.append("end_input")

    def resize(self, rows: int, columns: int) -> None:
        self.size = (rows, columns)

    def wait(self) -> Exit:
        self.do("wait")
        return self.script.exit

    def leave(self) -> None:
        self.left = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.events.append("leave" if self.left else "remove")
