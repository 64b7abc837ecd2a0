"""The engine: whether it answers, and whether it is one that boxes can live on."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from reprobox.doctor.check import Finding, fail, ok, skipped, warn
from reprobox.doctor.patient import EngineFacts
from reprobox.engines import choose_engine
from reprobox.errors import EngineUnavailable
from reprobox.host import user_name
from reprobox.settings import Origin
from reprobox.sizes import human_size

if TYPE_CHECKING:
    from reprobox.doctor.patient import Patient

__all__ = ["cgroups", "engine", "judge_space", "judge_subordinate", "judge_version", "mapping", "rootless", "storage"]

LEAST_API = (1, 40)
"""Docker 19.03: the first API with device requests, by which a box is given GPUs (docs.docker.com/engine/api)."""
TRIED_API = (1, 41)
"""Docker 20.10, the oldest that reprobox's own tests run on; Podman 3.0 to 4.9 speak it as well."""
TRIED_PODMAN = 4

_STORES = {
    "graphdriver": "the graph driver {driver}",
    "containerd": "the containerd image store with {driver}",
    "podman": "Podman's storage with {driver}",
}
"""How an engine keeps images, in words, by what ``EngineInfo.details`` calls it."""

IMAGE_BYTES = {"cpu": 2 << 30, "cuda": 6 << 30}
"""What an image takes while it is built or pulled, roughly: 1 GB and 5 GB of layers, and the wheels beside them."""
BOX_BYTES = 1 << 30
"""What the engine should have free for boxes, whose logs (40 MB each) and writable layers (--writable) lie there."""
NO_BYTES = 64 << 20
"""With less than this an engine cannot start a box."""
LEAST_IDS = 65536
"""How many subordinate ids a rootless engine needs: an image's own users go up to 65534, ``nobody``."""


def engine(patient: Patient) -> Finding:
    """Look whether the engine answers that a run would take."""
    chosen = patient.settings.resolve("engine")
    notes: list[str] = []
    try:
        patient.engine = choose_engine(chosen.value, chosen=chosen.origin is not Origin.DEFAULT, say=notes.append)
        patient.engine.info()
    except EngineUnavailable as error:
        if "permission denied" not in error.message:
            raise
        return fail(
            error.message,
            f"run `usermod -aG docker {user_name(os.getuid())}` as root and log in again (its members are as good as root), "
            "or use --engine podman, which needs no rights",
        )
    facts = patient.facts = EngineFacts.of(patient.engine, notes[0] if notes else None)
    if not patient.engine.isolates:
        return ok(f"this machine itself, with Python {facts.info.version} ({facts.info.details['python']})")
    named = patient.environment.get("CONTAINER_HOST" if facts.info.name == "podman" else "DOCKER_HOST")
    where = (f" at {named}" if named else "") + ("" if facts.here else ", on another machine")
    return ok(f"{facts.info.name} answers{where}{f' ({facts.note})' if facts.note else ''}")


def _facts(patient: Patient) -> EngineFacts:
    assert patient.facts is not None  # the table says that the engine has answered
    return patient.facts


def version(patient: Patient) -> Finding:
    """Look whether the engine is new enough."""
    info = _facts(patient).info
    return judge_version(info.name, info.version, info.details.get("api", ""))


def judge_version(name: str, number: str, api: str) -> Finding:
    """Judge an engine's version and that of its API."""
    seen = f"{name} {number} (API {api})"
    spoken = tuple(int(part) for part in re.findall(r"\d+", api)[:2])
    if len(spoken) < 2:
        return warn(f"{name} {number}, whose API has the version {api!r}", "see whether this is a Docker or a Podman")
    if spoken < LEAST_API:
        return fail(f"{seen} is too old to give a box GPUs", "upgrade it to Docker 20.10 or newer")
    major = re.match(r"\d+", number)
    if name == "podman" and major and int(major[0]) < TRIED_PODMAN:
        return warn(f"{seen} is older than any that reprobox was tried on", "upgrade it to Podman 4.3 or newer")
    if spoken < TRIED_API:
        return warn(f"{seen} is older than any that reprobox was tried on", "upgrade it to Docker 20.10 or newer")
    return ok(seen)


def rootless(patient: Patient) -> Finding:
    """Say whether the engine runs as root; both are well."""
    facts = _facts(patient)
    return ok(f"{facts.info.name} runs {'as a user, without root' if facts.rootless else 'as root'}")


def mapping(patient: Patient) -> Finding:
    """Look whether the ids of a box's users lead to this user outside."""
    facts = _facts(patient)
    if facts.rootless and facts.here:
        return judge_subordinate(
            user_name(os.getuid()),
            _text(Path("/etc/subuid")),
            _text(Path("/etc/subgid")),
            has_newuidmap=shutil.which("newuidmap") is not None,
        )
    if "userns" in facts.security:
        return warn(
            "the engine gives boxes other user ids (userns-remap): a run cannot write the project as this user",
            "take userns-remap out of the engine's daemon.json, or use another engine",
        )
    return ok(f"a box's user {os.getuid()} is this machine's user {os.getuid()}")


def judge_subordinate(user: str, subuid: str | None, subgid: str | None, *, has_newuidmap: bool) -> Finding:
    """Judge what a rootless engine needs of its user: ranges of subordinate ids, and the program that maps them.

    :param subuid: the text of /etc/subuid; ``None`` where it cannot be read. ``subgid`` likewise. See subuid(5).
    """
    if user == "root":
        return ok("root needs no subordinate ids")
    for file, text in (("/etc/subuid", subuid), ("/etc/subgid", subgid)):
        count = _ids(user, text or "")
        if count < LEAST_IDS:
            has = f"{count} subordinate ids" if count else "no subordinate ids"
            return fail(
                f"{user} has {has} in {file}, and a rootless engine needs {LEAST_IDS}",
                f"run `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}` as root, "
                "and `podman system migrate` where Podman has run before",
            )
    if not has_newuidmap:
        return fail("there is no newuidmap, which maps subordinate ids", "install uidmap (shadow-utils)")
    return ok(f"{user} has subordinate user and group ids")


def _ids(user: str, text: str) -> int:
    ranges = [line.split(":") for line in text.splitlines()]
    names = {user, str(os.getuid())}
    return sum(int(words[2]) for words in ranges if len(words) == 3 and words[0] in names and words[2].isdigit())


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def cgroups(patient: Patient) -> Finding:
    """Look whether limits of memory and CPU can be kept."""
    facts = _facts(patient)
    return judge_cgroups(
        facts.info.name,
        facts.info.details.get("cgroup_version", ""),
        facts.info.details.get("cgroup_driver", ""),
        rootless=facts.rootless,
    )


def judge_cgroups(name: str, number: str, driver: str, *, rootless: bool) -> Finding:
    """Judge an engine's control groups: version (``1``, ``2``, empty) and driver (``systemd``, ``cgroupfs``, ``none``)."""
    seen = f"version {number or 'not told'}, driver {driver or 'not told'}"
    if driver == "none" or (rootless and number == "1"):
        return warn(
            f"{seen}: without root {name} ignores --memory and --cpus here",
            "boot with cgroups of version 2 (systemd.unified_cgroup_hierarchy=1), or use an engine with root",
        )
    return ok(seen)


def storage(patient: Patient) -> Finding:
    """Look whether there is room where the engine keeps images and boxes."""
    facts = _facts(patient)
    details = facts.info.details
    driver = details.get("storage_driver", "")
    store = _STORES.get(details.get("store", ""), "{driver}").format(driver=driver or "a driver it does not tell")
    root = str(facts.said.get("DockerRootDir") or "")
    if not facts.here or not root:
        return skipped(f"{store}; the engine's folder is not on this machine")
    try:
        there = os.statvfs(root)
    except OSError as error:
        return skipped(f"{store} in {root}, which cannot be looked at ({error.strerror})")
    needed = BOX_BYTES if patient.image is not None else IMAGE_BYTES[patient.variant]
    return judge_space(
        store,
        driver,
        root,
        there.f_bavail * there.f_frsize,
        needed,
        inodes=there.f_favail if there.f_files else None,
    )


def judge_space(store: str, driver: str, root: str, free: int, needed: int, *, inodes: int | None = None) -> Finding:
    """Judge the room in an engine's folder: ``free`` and ``needed`` bytes, and files that can still be made.

    :param store: how it keeps images, in words, with the storage ``driver`` that does it.
    """
    seen = f"{store} in {root}, {human_size(free)} free"
    room = "make room: `docker system prune` removes what nothing uses"
    if free < NO_BYTES:
        return fail(f"{seen}: too little to start a box", room)
    if inodes is not None and inodes < 1000:
        return fail(f"{seen}, and it can hold only {inodes} more files", room)
    if free < needed:
        return warn(f"{seen}, and {human_size(needed)} should be", room)
    if driver == "vfs":
        return warn(
            f"{seen}: vfs copies the whole image for every box",
            "use overlay2 (Docker) or overlay with fuse-overlayfs (Podman)",
        )
    return ok(seen)
