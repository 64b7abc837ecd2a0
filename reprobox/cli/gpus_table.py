"""The table of ``reprobox gpus``: what nvidia-smi shows, in its order, and who has each GPU."""

from __future__ import annotations

from pathlib import PurePath
from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from reprobox.cli.console import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import OverflowMethod, RenderableType

    from reprobox.gpus import Gpu, GpuProcess
    from reprobox.runs.gpu_overview import GpuState, Overview

__all__ = ["rendered", "state_words"]

_BESIDE_AT = 100
"""From so many columns on, who has a GPU stands beside its readings; below it on a narrower terminal."""

_CLAIM_FITS_AT = 122
"""From so many columns on, ``claimed: run … of alice`` stands on one line, and the rest is for the GPU's name."""

_GAP = 2
_READINGS = (20, 11, 20, 5, 10)
_READINGS_WIDTH = sum(_READINGS) + _GAP * (len(_READINGS) - 1)
_MORE_FOR_THE_NAME = 12
_INSTANCE_GAP = 1
_INSTANCE = (4, 10, 40, 17)
"""Widths of the columns of a GPU's readings and of an instance's; with their gaps, both lines are equally long."""

_INDENT = 4
_NOT_SUPPORTED = "N/A"

_STYLES = {"free": "green", "claimed": "yellow", "busy": "yellow", "divided": "dim", "unusable": "bold red"}

_HEADINGS = (
    ("GPU Name", "Pers.", "Bus-Id          Disp", "ECC", "Compute"),
    ("    Fan  Temp Perf", "Power/cap", "Memory used/total", "Util", "MIG"),
)
_LEGEND = (
    "NV#: so many NVLinks; PIX, PXB: through one, several PCIe switches",
    "PHB: through a host bridge; NODE, SYS: within, between NUMA nodes; N/A: not told",
)


def rendered(overview: Overview, *, width: int, topology: bool = False, unicode: bool = True) -> RenderableType:
    """Return the table for a terminal of ``width`` columns.

    :param topology: with the matrix of how the GPUs are linked.
    :param unicode: whether it may have other than ASCII characters of its own.
    """
    inventory = overview.inventory
    view = _View(width, unicode=unicode)
    versions = (("Driver", inventory.driver), ("CUDA", inventory.cuda))
    parts: list[RenderableType] = [
        view.line("   ".join(f"{name} {value or _NOT_SUPPORTED}" for name, value in versions))
    ]
    if not overview.gpus:
        return Group(*parts, Text(printable(f"no GPUs: {inventory.missing}")), Text(printable(inventory.remedy or "")))
    parts += [
        *view.head(),
        *(row for state in overview.gpus for row in view.gpu(state)),
        Text(),
        view.processes(overview),
    ]
    if topology:
        parts += [Text(), *_matrix([state.gpu for state in overview.gpus])]
    if overview.allotted is not None:
        parts += [Text(), Text(_allotment(overview.allotted))]
    return Group(*parts)


def state_words(state: GpuState) -> tuple[str, str]:
    """Return in one word and in full whether a GPU can be had: ``free``, ``claimed``, ``busy``, ``divided``, ``unusable``."""
    gpu = state.gpu
    if gpu.fault is not None:
        word, why = "unusable", gpu.fault
    elif gpu.mig and gpu.parent is None:
        word, why = "divided", f"{len(state.instances) or 'no'} MIG instance{'s'[: len(state.instances) != 1]}"
    elif state.occupied_by is None:
        word, why = "free", ""
    elif state.claims:
        exclusive = ", exclusively" if any(holder.exclusive for holder in state.claims) else ""
        word, why = "claimed", state.occupied_by + exclusive
    elif gpu.compute_mode == "Prohibited":
        word, why = "unusable", state.occupied_by
    else:
        word, why = "busy", _who_computes(gpu) or state.occupied_by
    text = f"{word}: {why}" if why else word
    return word, text if state.allotted else f"{text} (not allotted)"


class _View:
    """The lines of one table."""

    def __init__(self, width: int, *, unicode: bool) -> None:
        self._width = width
        self._overflow: OverflowMethod = "ellipsis" if unicode else "crop"
        self._stroke = "─" if unicode else "-"
        self._beside = width >= _BESIDE_AT
        spare = width - (_CLAIM_FITS_AT if self._beside else _READINGS_WIDTH)
        self._widths = (_READINGS[0] + min(max(spare, 0), _MORE_FOR_THE_NAME), *_READINGS[1:])

    def line(self, text: str, style: str = "") -> Text:
        return Text(printable(text), style=style, no_wrap=True, overflow=self._overflow)

    def _lines(self, texts: Iterable[str], style: str = "") -> Text:
        return Text("\n", no_wrap=True, overflow=self._overflow).join(self.line(text, style) for text in texts)

    def head(self) -> Iterator[RenderableType]:
        headings = [self._lines(pair, "bold") for pair in zip(*_HEADINGS, strict=True)]
        yield self._row(headings, self._widths, Text("State", style="bold") if self._beside else None)
        yield Text(self._stroke * self._width, style="dim")

    def gpu(self, state: GpuState) -> Iterator[RenderableType]:
        gpu = state.gpu
        first = (
            f"{gpu.index:>3} {gpu.name.removeprefix('NVIDIA ')}",
            _on_off(gpu.persistence_mode),
            f"{_shown(gpu.bus_id):<16} {_on_off(gpu.display_active)}",
            _shown(gpu.ecc_errors),
            _shown(gpu.compute_mode),
        )
        heat = (_shown(gpu.fan_percent, "%"), _shown(gpu.temperature_celsius, "C"), _shown(gpu.performance_state))
        second = (
            " " * _INDENT + "{:<4} {:<4} {}".format(*heat),
            _of(_watts(gpu.power_watts), _watts(gpu.power_limit_watts)),
            _memory(gpu),
            _shown(gpu.utilization_percent, "%"),
            {True: "Enabled", False: "Disabled", None: _NOT_SUPPORTED}[gpu.mig],
        )
        cells = [self._lines(pair) for pair in zip(first, second, strict=True)]
        yield from self._with_state(cells, self._widths, state)
        for number, instance in enumerate(state.instances):
            one = instance.gpu
            profile = one.name.rpartition(" MIG ")[2]
            cells = [self.line(f"{gpu.index}:{number}".rjust(_INSTANCE[0])), self.line(profile)]
            # The UUID is what the instance is chosen by: it is never cut off.
            cells += [Text(printable(one.uuid), overflow="fold"), self.line(_memory(one))]
            extra = self._widths[0] - _READINGS[0]
            yield from self._with_state(cells, (*_INSTANCE[:3], _INSTANCE[3] + extra), instance, _INSTANCE_GAP)

    def _with_state(
        self, cells: list[Text], widths: tuple[int, ...], state: GpuState, gap: int = _GAP
    ) -> Iterator[RenderableType]:
        word, words = state_words(state)
        text = Text(printable(words), style=_STYLES[word])
        yield self._row(cells, widths, text if self._beside else None, gap)
        if not self._beside:
            yield Padding(text, (0, 0, 0, _INDENT))

    def _row(self, cells: list[Text], widths: tuple[int, ...], last: Text | None, gap: int = _GAP) -> Table:
        row = Table.grid(padding=(0, gap, 0, 0))
        for at, width in enumerate(widths):
            row.add_column(width=width + (_GAP - gap if at == len(widths) - 1 else 0))
        if last is not None:
            row.add_column(ratio=1, overflow="fold")
            row.expand = True
            return _add(row, [*cells, last])
        return _add(row, cells)

    def processes(self, overview: Overview) -> RenderableType:
        """Return a line for each process, the GPU or instance it is on first."""
        rows = list(_processes(overview))
        if not rows:
            return Text("No process runs on them.")
        table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold")
        for heading in ("GPU", "PID", "Type", "User", "Command", "Memory", "Run"):
            right = heading in {"PID", "Memory"}
            table.add_column(heading, justify="right" if right else "left", no_wrap=heading != "Command")
        for place, process in rows:
            cells = (
                place,
                str(process.pid),
                "C" if process.kind == "compute" else "G",
                process.user or "?",
                process.command or "?",
                _mebibytes(process.memory_bytes),
                process.run or "-",
            )
            table.add_row(*map(self.line, cells))
        return table


def _add(table: Table, cells: list[Text]) -> Table:
    table.add_row(*cells)
    return table


def _processes(overview: Overview) -> Iterator[tuple[str, GpuProcess]]:
    for state in overview.gpus:
        index = str(state.gpu.index)
        # Where instances tell theirs, the GPU that they are slices of may tell them once more.
        on_instances = {(p.pid, p.kind) for instance in state.instances for p in instance.gpu.processes}
        yield from ((index.rjust(3), p) for p in state.gpu.processes if (p.pid, p.kind) not in on_instances)
        for number, instance in enumerate(state.instances):
            yield from ((f"{index}:{number}".rjust(3), process) for process in instance.gpu.processes)


def _who_computes(gpu: Gpu) -> str | None:
    computing = [process for process in gpu.processes if process.kind == "compute"]
    if not computing:
        return None
    first = computing[0]
    program = PurePath(first.command.split()[0]).name if first.command else "a process"
    more = f" and {len(computing) - 1} more" if len(computing) > 1 else ""
    return f"{program} ({first.user or 'unknown user'}){more}"


def _matrix(gpus: list[Gpu]) -> Iterator[Text]:
    if len(gpus) < 2:
        yield Text("One GPU has no topology.")
        return
    yield Text("     " + "".join(f"{gpu.index:<5}" for gpu in gpus).rstrip(), style="bold")
    for one in gpus:
        near = ("X" if one is other else one.links.get(other.uuid, _NOT_SUPPORTED) for other in gpus)
        yield Text(f"{one.index:>3}  " + "".join(f"{word:<5}" for word in near).rstrip())
    yield from (Text(line, style="dim") for line in _LEGEND)


def _allotment(gpus: Iterable[Gpu]) -> str:
    places = [f"{at} is {'an instance of ' if gpu.parent else ''}GPU {gpu.index}" for at, gpu in enumerate(gpus)]
    if not places:
        return "CUDA_VISIBLE_DEVICES leaves you no GPU."
    return f"CUDA_VISIBLE_DEVICES limits --gpus to what it allots, and counts there: {', '.join(places)}."


def _shown(value: object, unit: str = "") -> str:
    return _NOT_SUPPORTED if value is None else f"{value}{unit}"


def _on_off(value: bool | None) -> str:
    return {True: "On", False: "Off", None: _NOT_SUPPORTED}[value]


def _watts(value: float | None) -> str:
    return _NOT_SUPPORTED if value is None else f"{value:.0f}W"


def _mebibytes(count: int | None) -> str:
    return _NOT_SUPPORTED if count is None else f"{count >> 20}MiB"


def _memory(gpu: Gpu) -> str:
    return _of(_mebibytes(gpu.memory_used_bytes), _mebibytes(gpu.memory_total_bytes))


def _of(used: str, total: str) -> str:
    return _NOT_SUPPORTED if used == total == _NOT_SUPPORTED else f"{used}/{total}"
