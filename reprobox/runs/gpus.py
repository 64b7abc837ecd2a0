"""The GPUs of a run: chosen among those that nobody else has, and claimed until its end."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from reprobox.errors import ClaimError, GpuError, GpusTaken
from reprobox.gpus import Gpu, GpuRequest, Inventory, take_inventory
from reprobox.gpus.auto import occupation
from reprobox.gpus.claims import Claim, Claims, Holder, by_gpu
from reprobox.gpus.request import left_to_default

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from reprobox.engines import Engine, GpuBox

__all__ = ["GpuRules", "GpusOfRun", "current_holders", "described", "take_gpus", "wanted_gpus", "with_boxes"]

LOOK_SECONDS = 1.0
"""How often the first in line looks for free GPUs: NVML answers slowly, and the answer seldom changes."""

LONGEST_LOOK_SECONDS = 5.0
SAY_SECONDS = 10.0
SAY_AGAIN_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class GpuRules:
    """How GPUs are taken.

    ``exclusive``: named ones only while nobody else has them. ``wait``: for as long as it takes. ``ignore_allocation``:
    any of this machine, whatever CUDA_VISIBLE_DEVICES allots.
    """

    exclusive: bool = False
    wait: bool = False
    ignore_allocation: bool = False


@dataclass(frozen=True, kw_only=True)
class GpusOfRun:
    """The GPUs a run was given, in the order asked for, the claim on them, and what a person should know of them."""

    gpus: tuple[Gpu, ...] = ()
    claim: Claim | None = None
    notes: tuple[str, ...] = ()


def wanted_gpus(asked: GpuRequest | None, inventory: Inventory, rules: GpuRules) -> tuple[Gpu, ...]:
    """Return the GPUs that a run would have on a machine of its own; where ``auto`` finds too few free ones, any.

    :raises GpuError: when what was asked for is not there at all.
    """
    environment = _universe(rules)
    if asked is None:
        return left_to_default(inventory, environment)[0]
    try:
        return asked.resolve(inventory, environment)
    except GpusTaken:
        return inventory.gpus


def take_gpus(
    asked: GpuRequest | None,
    rules: GpuRules,
    engine: Engine,
    run_id: str,
    say: Callable[[str], None],
    *,
    inventory: Inventory,
    command: str = "",
    claim: bool = True,
) -> GpusOfRun:
    """Choose the GPUs of a run, and claim them so that no other run of this machine chooses them as well.

    Who has a GPU is known from three places: claims, whose holder may be of another engine or user; boxes that still
    run though whoever minded them was killed; and, for ``auto`` and ``exclusive``, NVML's list of processes.

    :param inventory: this machine's GPUs; where it matters who computes on them, NVML is asked again.
    :param claim: ``False`` to say which would be chosen now, and claim nothing.
    :raises GpusTaken: when too few are free, and the rules are not to wait.
    :raises GpuError: when what was asked for is not there; ClaimError where ``exclusive`` cannot be promised.
    """
    choice = _Choice(asked, rules, engine, run_id, inventory)
    claims = Claims()

    def attempt() -> GpusOfRun:
        if not claim:
            return GpusOfRun(gpus=choice.made(_claimed(claims)), notes=tuple(choice.notes))
        try:
            held = claims.take(
                run_id,
                choice.made,
                inventory=inventory,
                exclusive=rules.exclusive,
                command=command,
            )
        except ClaimError as error:
            if rules.exclusive:
                raise  # nobody would know that these GPUs are not to be shared
            gpus = choice.made(())
            return GpusOfRun(gpus=gpus, notes=(*choice.notes, f"these GPUs are not claimed: {error}"))
        return GpusOfRun(gpus=held.gpus, claim=held, notes=tuple(choice.notes))

    taken = _in_line(claims, run_id, attempt, say) if rules.wait and claim else attempt()
    for note in taken.notes:
        say(note)
    return taken


def current_holders(engine: Engine | None) -> tuple[Holder, ...]:
    """Return who has GPUs of this machine by claim, or, where ``engine`` is given, by a box that runs unclaimed.

    :raises ClaimError: when claims cannot be read.
    :raises EngineUnavailable: when the engine does not answer.
    """
    return _with_boxes(Claims().holders(), engine)


def with_boxes(holders: tuple[Holder, ...], boxes: Iterable[GpuBox]) -> tuple[Holder, ...]:
    """Return who has GPUs by claim, and after them who has some by one of these ``boxes`` alone."""
    known = {holder.run for holder in holders}
    return (*holders, *(Holder(run=b.run_id, gpus=b.gpus, source="box") for b in boxes if b.run_id not in known))


def described(holders: tuple[Holder, ...], run_id: str | None = None) -> str:
    """Say in a few words who has a GPU; ``run_id`` is who asks, and is named only where nobody else is there."""
    first = next((holder for holder in holders if holder.run != run_id), holders[0])
    whose = f" of {first.user}" if first.user is not None else ", whose box still runs"
    others = f" and {len(holders) - 1} more" if len(holders) > 1 else ""
    return f"run {first.run}{whose}{others}"


class _Choice:
    """What is chosen, given who has what; where others count, with a fresh look at the GPUs each time."""

    def __init__(
        self, asked: GpuRequest | None, rules: GpuRules, engine: Engine, run_id: str, inventory: Inventory
    ) -> None:
        self.notes: list[str] = []
        self._asked = asked
        self._rules = rules
        self._engine = engine
        self._run_id = run_id
        self._inventory = inventory

    def made(self, holders: tuple[Holder, ...]) -> tuple[Gpu, ...]:
        """Return the GPUs chosen. :raises GpusTaken: when others have them."""
        alone = self._rules.exclusive or self._rules.wait
        matters = alone or (self._asked is not None and self._asked.kind == "auto")
        inventory = take_inventory(details=True) if matters else self._inventory
        having = by_gpu(_with_boxes(holders, self._engine), inventory)
        taken = {uuid: described(those, self._run_id) for uuid, those in having.items()}
        environment = _universe(self._rules)
        if self._asked is None:
            gpus, left_out = left_to_default(inventory, environment)
            self.notes = list(left_out)
            if not gpus:
                raise GpuError("no GPU of this machine is usable any more", remedy="see `reprobox gpus`")
        else:
            gpus = self._asked.resolve(inventory, environment, taken)
            self.notes = []
        if self._asked is None or self._asked.kind != "auto":
            shared = {gpu.index: reason for gpu in gpus if (reason := _shared(gpu, taken, alone=alone)) is not None}
            if shared and alone:
                raise GpusTaken(
                    "; ".join(f"GPU {index} is in use: {reason}" for index, reason in shared.items()),
                    remedy="choose others, add --wait-gpus to wait, or leave --exclusive out to share"
                    if not self._rules.wait
                    else "wait, or choose others",
                )
            self.notes += [f"GPU {index} is in use as well: {reason}" for index, reason in shared.items()]
        return gpus


def _shared(gpu: Gpu, taken: Mapping[str, str], *, alone: bool) -> str | None:
    """Say who else has ``gpu``; processes and memory count only where it is to be had alone."""
    return occupation(gpu, taken) if alone else taken.get(gpu.uuid)


def _universe(rules: GpuRules) -> Mapping[str, str]:
    if not rules.ignore_allocation:
        return os.environ
    return {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}


def _claimed(claims: Claims) -> tuple[Holder, ...]:
    try:
        return claims.holders()
    except ClaimError:
        return ()


def _with_boxes(holders: tuple[Holder, ...], engine: Engine | None) -> tuple[Holder, ...]:
    return with_boxes(holders, () if engine is None else engine.gpu_boxes())


def _in_line(claims: Claims, run_id: str, attempt: Callable[[], GpusOfRun], say: Callable[[str], None]) -> GpusOfRun:
    """Make the attempt when it is this run's turn, until it succeeds; whoever came first is served first."""
    try:
        ticket = claims.wait_in_line(run_id)
    except ClaimError as error:
        say(f"there is no line to wait in: {error}")
        return attempt()
    told, told_at = "", float("-inf")
    with ticket:
        while True:
            ahead = ticket.ahead()
            if ahead == 0:
                try:
                    return attempt()
                except GpusTaken as error:
                    why = error.message
            else:
                why = f"{ahead} came before"
            pause = time.monotonic() - told_at
            if pause >= (SAY_SECONDS if why != told else SAY_AGAIN_SECONDS):
                say(f"waiting for GPUs: {why}")
                told, told_at = why, time.monotonic()
            # Whoever is far back in a long line need not look often; the next one should not lose time.
            time.sleep(min(0.1 * ahead, LONGEST_LOOK_SECONDS) if ahead else LOOK_SECONDS)
