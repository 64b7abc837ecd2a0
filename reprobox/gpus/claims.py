"""Which run has which GPU: claims that all users of a machine see, and that end with their run however it ends.

A claim is a file of a :class:`~reprobox.gpus.shared_folder.SharedFolder`. It is advice among runs of reprobox: nothing
keeps a process from a GPU, and who made the folder can remove what is in it.

Two that choose at the same time never get the same GPU. Each first publishes its claim, then looks who else is there:
of any two, the one that published later sees the other, since what is published stays until it is withdrawn. One that
sees a claim it did not know of when it chose withdraws its own and chooses again, so that a claim is only ever held by
one that saw none beside it. That they do not withdraw for ever: of those that see each other, the one whose claim has
the smallest name withdraws last. It waits for the others, each of which sees it and gives way at its next look, and only
withdraws where one does not within :data:`_YIELD_SECONDS`: that one holds its claim already, and is known from then on.
A lock on the folder makes all of that rare, and nothing depends on it: who cannot have it within ``patience`` seconds
goes on without it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeGuard

from reprobox.errors import ClaimError, GpusTaken
from reprobox.gpus.shared_folder import FolderMissing, SharedFolder, machine_folder
from reprobox.host import user_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from reprobox.gpus.inventory import Gpu, Inventory
    from reprobox.gpus.shared_folder import LiveFile, OpenFolder

__all__ = ["Claim", "Claims", "Holder", "Ticket", "by_gpu"]

CLAIM_SCHEMA = "reprobox.claim/1"
TICKET_SCHEMA = "reprobox.ticket/1"

_RUN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_CLAIM = re.compile(rf"claim-({_RUN})_[0-9a-f]{{8}}\.json")
_TICKET = re.compile(rf"wait-[0-9]{{20}}-({_RUN})\.json")
_UUID = re.compile(r"[A-Za-z0-9][A-Za-z0-9/-]{0,95}")
_MOST_GPUS = 256
_COMMAND_LENGTH = 200
_PATIENCE_SECONDS = 10.0
_YIELD_SECONDS = 0.5
_ATTEMPTS = 50


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A run that has GPUs, and how that is known. ``user`` is who owns the claim's file; the rest is that user's word.

    ``gpus`` are UUIDs. ``exclusive``: it will not share them. ``source``: its claim, its running box, or a process that
    NVML lists.
    """

    run: str
    gpus: tuple[str, ...]
    user: str | None = None
    pid: int | None = None
    since: datetime | None = None
    exclusive: bool = False
    command: str | None = None
    source: Literal["claim", "box", "process"] = "claim"


def by_gpu(holders: Iterable[Holder], inventory: Inventory) -> dict[str, tuple[Holder, ...]]:
    """Return who has each GPU and MIG instance that somebody has, by UUID.

    Who has a MIG instance has something of the GPU it is a slice of, and who has a GPU has every instance on it.
    """
    related: dict[str, set[str]] = {}
    for gpu in inventory.gpus:
        # In a scheduler's allocation a MIG instance can stand for itself.
        for parent, instance in [(gpu.uuid, i.uuid) for i in gpu.mig_instances] + [(gpu.parent, gpu.uuid)]:
            if parent and instance:
                related.setdefault(parent, set()).add(instance)
                related.setdefault(instance, set()).add(parent)
    found: dict[str, list[Holder]] = {}
    for holder in holders:
        for uuid in dict.fromkeys(other for own in holder.gpus for other in (own, *sorted(related.get(own, ())))):
            found.setdefault(uuid, []).append(holder)
    return {uuid: tuple(having) for uuid, having in found.items()}


class _Minded:
    """A live file of our own. It is never given up by being forgotten: a forked process may mind it from then on."""

    def __init__(self, folder: Path, name: str, descriptor: int) -> None:
        self.path = folder / name
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the descriptor that keeps it alive, for a child to inherit: it then lives as long as the child does too."""
        return self._descriptor

    def release(self) -> None:
        """Give it up, for every process that minds it."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.leave()

    def leave(self) -> None:
        """Mind it no more in this process; it lives on where a child minds it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Claim(_Minded):
    """GPUs that a run has until :meth:`release`, or until the last process is gone that has its descriptor."""

    def __init__(self, folder: Path, name: str, descriptor: int, gpus: tuple[Gpu, ...]) -> None:
        super().__init__(folder, name, descriptor)
        self.gpus = gpus


class Ticket(_Minded):
    """A place in the line of those that wait for GPUs."""

    def __init__(self, folder: SharedFolder, name: str, descriptor: int) -> None:
        super().__init__(folder.path, name, descriptor)
        self._folder = folder
        self._place = (os.fstat(descriptor).st_ctime_ns, name)

    def ahead(self) -> int:
        """Return how many came before and still wait. One that was stopped (Ctrl-Z) does not hold up the others.

        The order is that of the kernel's clock at which a ticket got its name (``st_ctime``), which no user can set back.

        :raises ClaimError: when the folder cannot be used any more.
        """
        try:
            with self._folder.opened(make=False) as folder:
                tickets = folder.live(_TICKET)
        except FolderMissing:
            return 0
        return sum((ticket.born_ns, ticket.name) < self._place and not _is_stopped(ticket) for ticket in tickets)

    def turn(self) -> bool:
        """Say whether it is this one's turn to choose."""
        return self.ahead() == 0


class Claims:
    """The claims on this machine's GPUs.

    :param folder: where they are, instead of where all users of the machine meet.
    :param patience: for how many seconds others that choose are waited for.
    """

    def __init__(self, folder: Path | None = None, *, patience: float = _PATIENCE_SECONDS) -> None:
        self._folder = SharedFolder(folder or machine_folder())
        self._patience = patience

    def holders(self) -> tuple[Holder, ...]:
        """Return who claims GPUs now. :raises ClaimError: when the folder cannot be trusted or read."""
        try:
            with self._folder.opened(make=False) as folder:
                return tuple(_holders(folder).values())
        except FolderMissing:
            return ()

    def take(
        self,
        run_id: str,
        choose: Callable[[tuple[Holder, ...]], Sequence[Gpu]],
        *,
        inventory: Inventory,
        exclusive: bool = False,
        command: str = "",
    ) -> Claim:
        """Choose GPUs and claim them, so that nobody chooses the same ones in between.

        :param choose: given who claims GPUs, returns at least one, which may be a claimed one; or raises. Called again
            where somebody claimed one of them meanwhile. Others wait while it works: it should be quick.
        :param inventory: which MIG instance is on which GPU.
        :param exclusive: tell others that these GPUs are not to be shared.
        :param command: what the run does, for others to see; cut short where it is long.
        :raises ClaimError: when nothing can be claimed on this machine.
        :raises GpusTaken: when others were faster each time.
        :raises Exception: whatever ``choose`` raises.
        """
        until = time.monotonic() + self._patience
        content = {"run": run_id, "exclusive": exclusive, "command": command[:_COMMAND_LENGTH]}
        for attempt in range(_ATTEMPTS):
            with contextlib.suppress(FolderMissing), self._folder.opened(make=True) as folder:
                folder.lock(until=until)
                known = _holders(folder)
                gpus = tuple(choose(tuple(known.values())))
                claim = self._published(folder, run_id, gpus, content)
                try:
                    if _stands(claim, folder, known, inventory):
                        return claim
                except BaseException:
                    claim.release()
                    raise
                claim.release()
            time.sleep(random.uniform(0, 0.005 * (attempt + 1)))  # noqa: S311 - no secret: others withdrew as well
        raise GpusTaken("other runs were faster to claim these GPUs each time", remedy="run it again")

    def _published(
        self, folder: OpenFolder, run_id: str, gpus: tuple[Gpu, ...], content: Mapping[str, object]
    ) -> Claim:
        name = f"claim-{run_id}_{os.urandom(4).hex()}.json"
        uuids = [gpu.uuid for gpu in gpus]
        # Others would not see what they pass over as no claim.
        assert _CLAIM.fullmatch(name), f"{run_id!r} cannot be the id of a run"
        assert _is_list_of_gpus(uuids), f"{uuids} are no GPUs"
        document = {"schema": CLAIM_SCHEMA, "gpus": uuids, **_maker(), **content}
        return Claim(self._folder.path, name, folder.publish(name, document), gpus)

    def wait_in_line(self, run_id: str) -> Ticket:
        """Take a place behind all who wait for GPUs. :raises ClaimError: when that is not possible on this machine."""
        name = f"wait-{time.time_ns():020}-{run_id}.json"
        assert _TICKET.fullmatch(name), f"{run_id!r} cannot be the id of a run"
        document = {"schema": TICKET_SCHEMA, "run": run_id, **_maker()}
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(FolderMissing), self._folder.opened(make=True) as folder:
                return Ticket(self._folder, name, folder.publish(name, document))
        raise ClaimError(f"{self._folder.path} is removed again and again", remedy="see who removes it")


def _maker() -> dict[str, object]:
    return {"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}


def _stands(claim: Claim, folder: OpenFolder, known: Mapping[str, Holder], inventory: Inventory) -> bool:
    """Say whether nobody but those ``known`` when it was chosen claims a GPU of this claim.

    Why that is enough, and why somebody always gets through: see the head of this module.
    """
    mine = claim.path.name
    until = time.monotonic() + _YIELD_SECONDS
    while True:
        unknown = {name: holder for name, holder in _holders(folder).items() if name != mine and name not in known}
        taken = by_gpu(unknown.values(), inventory)
        if not any(gpu.uuid in taken for gpu in claim.gpus):
            return True
        in_the_way = {holder for gpu in claim.gpus for holder in taken.get(gpu.uuid, ())}
        first = min(name for name, holder in unknown.items() if holder in in_the_way)
        if first < mine or time.monotonic() >= until:
            return False
        time.sleep(0.002)


def _holders(folder: OpenFolder) -> dict[str, Holder]:
    """Return who claims GPUs, by the name of the claim, the oldest run first."""
    files = sorted(folder.live(_CLAIM), key=lambda file: file.name)
    return {file.name: holder for file in files if (holder := _holder(file)) is not None}


def _holder(file: LiveFile) -> Holder | None:
    """Read a claim, or return ``None`` where it is none: any user can write one, and anything into it."""
    match = _CLAIM.fullmatch(file.name)
    document = file.document
    gpus = document.get("gpus")
    if match is None or document.get("run") != match[1] or not _is_list_of_gpus(gpus):
        return None
    pid, command = document.get("pid"), document.get("command")
    return Holder(
        run=match[1],
        gpus=tuple(gpus),
        user=user_name(file.uid),
        pid=pid if _is_pid(pid) else None,
        since=_moment(document.get("since")),
        exclusive=document.get("exclusive") is True,
        command=_printable(command) if isinstance(command, str) else None,
    )


def _is_list_of_gpus(value: object) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list)
        and 0 < len(value) <= _MOST_GPUS
        and all(isinstance(uuid, str) and _UUID.fullmatch(uuid) for uuid in value)
    )


def _is_pid(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _moment(value: object) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _printable(text: str) -> str:
    """Return what can be shown on a terminal: another user wrote it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_COMMAND_LENGTH])


def _is_stopped(ticket: LiveFile) -> bool:
    """Say whether the process that waits was stopped. Where /proc does not tell, or tells of somebody else's, it was not."""
    pid = ticket.document.get("pid")
    if not _is_pid(pid):
        return False
    process = Path(f"/proc/{pid}")
    try:
        state = (process / "stat").read_bytes().rpartition(b")")[2].split()[0]
        return state in {b"T", b"t"} and process.stat().st_uid == ticket.uid
    except (OSError, IndexError):
        return False
