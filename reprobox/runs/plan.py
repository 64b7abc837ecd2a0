"""A run as pure data: made here from settings and options, carried out by :mod:`reprobox.runs.execute`."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reprobox.engines import BoxSpec, EngineName, ImageInfo, Mount
from reprobox.errors import BoxError, UsageError
from reprobox.project import WORKSPACE, Project
from reprobox.recipe import Profile, Recipe, SelfTest, draw_seed, world_size
from reprobox.runs.options import BOX_HOME, checked_inside_the_project

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from reprobox.gpus import Gpu

__all__ = ["BOX_HOME", "BOX_RUN_DIR", "RUN_LABEL", "RunPlan", "RunRequest", "make_plan"]

BOX_RUN_DIR = "/run/reprobox/run"
BOX_CACHE = "/run/reprobox/cache"
RUN_LABEL = "reprobox.run"
PIDS_LIMIT = 32768
"""Enough for any training, and a fork bomb in the box leaves the machine alive."""


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a person asked for, parsed: the input of :func:`make_plan`.

    ``directory`` is ``-w`` as typed, or ``None`` for the caller's own folder in the project.
    """

    command: tuple[str, ...]
    recipe: Recipe
    engine: EngineName
    project: Project
    image: str | None = None
    directory: str | None = None
    name: str | None = None
    mounts: tuple[Mount, ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)
    network: str | None = None
    shm_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    gpus_were_asked_for: bool = False
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that will happen: the recipe with its seed, the box, and what the record says of them.

    ``compile_cache`` is the folder of this machine that the box's Inductor and Triton caches live in, made if missing.
    """

    run_id: str
    request: RunRequest
    recipe: Recipe
    seed_was_drawn: bool
    image: ImageInfo | None
    box: BoxSpec
    compile_cache: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as ``--dry-run`` prints it."""
        box = self.box
        return {
            "schema": "reprobox.plan/1",
            "run_id": self.run_id,
            "engine": str(self.request.engine),
            "image": None if self.image is None else {"reference": self.request.image, "image_id": self.image.image_id},
            "command": list(box.command),
            "directory": box.directory,
            "recipe": self.recipe.to_json(),
            "environment_knobs": self.recipe.environment(),
            "user": box.user,
            "mounts": [
                {"source": m.source, "target": m.target, "read_only": m.read_only, "kind": m.kind} for m in box.mounts
            ],
            "network": box.network if self.request.engine is not EngineName.LOCAL else None,
            "shm_bytes": box.shm_bytes if self.request.engine is not EngineName.LOCAL else None,
            "gpus": list(box.gpus),
            "environment": sorted(self.request.environment),
        }


def make_plan(request: RunRequest, run_id: str, run_folder: Path, image: ImageInfo | None) -> RunPlan:
    """Turn a request into a plan. Nothing is written or started.

    :param run_folder: where the run's record will be (made before the plan is carried out).
    :param image: the image found for the request; ``None`` on the local engine.
    :raises UsageError: where the request contradicts itself.
    """
    drawn = request.recipe.seed is None and request.recipe.profile is not Profile.OFF
    ranks = world_size({**os.environ, **_given(request.environment)})
    if drawn and ranks > 1:
        raise UsageError(
            f"no seed was given and there are {ranks} ranks, which would each draw another",
            remedy="give every rank the same --seed",
        )
    recipe = request.recipe.with_seed(draw_seed()) if drawn else request.recipe
    local = request.engine is EngineName.LOCAL
    environment: dict[str, str | None] = {
        **request.environment,
        **recipe.to_variables(),
        "REPROBOX_QUIET": "on" if request.quiet else "off",
        "REPROBOX_SELFTEST": str(SelfTest.OFF),
        "REPROBOX_RUN_DIR": str(run_folder) if local else BOX_RUN_DIR,
    }
    if request.gpus or request.gpus_were_asked_for or not local:
        environment |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in request.gpus),
        }
    name = request.name or f"reprobox-{run_id.lower()}"
    gpus = tuple(gpu.uuid for gpu in request.gpus)
    cache = None if image is None else compile_cache(image, request.gpus)
    if local:
        box = BoxSpec(
            run_id=run_id,
            name=name,
            command=request.command,
            directory=_local_directory(request),
            environment=environment,
            gpus=gpus,
        )
        _refuse_what_local_cannot(request)
    else:
        box = _container(request, run_id, run_folder, name, environment, gpus, image, cache)
    return RunPlan(
        run_id=run_id,
        request=request,
        recipe=recipe,
        seed_was_drawn=drawn,
        image=image,
        box=box,
        compile_cache=cache,
    )


def _given(environment: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if value is not None}


def compile_cache(image: ImageInfo, gpus: tuple[Gpu, ...]) -> Path:
    """Return where this machine keeps what Inductor and Triton compiled for ``image`` on these GPUs (or this CPU).

    Shared by runs: an autotuner that times kernels anew may choose others, and with them other bits.
    """
    import hashlib

    from platformdirs import user_cache_path

    from reprobox.runs.host import host_facts

    device = sorted(gpu.name for gpu in gpus) or [str(host_facts()["cpu"]), *host_facts()["isa"]]
    key = hashlib.sha256("\0".join([image.image_id, *device]).encode()).hexdigest()
    return user_cache_path("reprobox") / "compile" / key[:24]


def _container(
    request: RunRequest,
    run_id: str,
    run_folder: Path,
    name: str,
    environment: dict[str, str | None],
    gpus: tuple[str, ...],
    image: ImageInfo | None,
    cache: Path | None,
) -> BoxSpec:
    _refuse_what_is_no_text(request)
    uid, gid = os.getuid(), os.getgid()
    user = user_name(uid)
    home = {"HOME": BOX_HOME, "USER": user, "LOGNAME": user}
    taken = {mount.target for mount in request.mounts}
    own = [
        Mount(source=str(request.project.root), target=str(WORKSPACE)),
        Mount(source=str(run_folder), target=BOX_RUN_DIR),
        Mount(source=str(run_folder / "box" / "passwd"), target="/etc/passwd", read_only=True),
        Mount(source=str(run_folder / "box" / "group"), target="/etc/group", read_only=True),
        Mount(source=str(run_folder / "box" / "recipe.json"), target="/run/reprobox/recipe.json", read_only=True),
    ]
    if cache is not None:
        own.append(Mount(source=str(cache), target=BOX_CACHE))
        home |= {"TORCHINDUCTOR_CACHE_DIR": f"{BOX_CACHE}/inductor", "TRITON_CACHE_DIR": f"{BOX_CACHE}/triton"}
    if len(taken) < len(request.mounts):
        raise UsageError("two -v options have the same target", remedy="give each mount a target of its own")
    mounts = [mount for mount in own if mount.target not in taken]
    if str(WORKSPACE) not in taken:
        # The command must not be able to rewrite the records of runs, or to lead reprobox's own writes elsewhere.
        records = run_folder.parents[1]
        mounts.append(Mount(source=str(records), target=str(WORKSPACE / records.name), read_only=True))
    theirs = [checked_inside_the_project(mount, request.project.root) for mount in request.mounts]
    # A mount inside another must come after it.
    mounts = sorted([*mounts, *theirs], key=lambda mount: mount.target.count("/"))
    return BoxSpec(
        run_id=run_id,
        name=name,
        image=None if image is None else image.engine_id,
        command=request.command,
        directory=_box_directory(request),
        environment={**home, **environment},
        user=f"{uid}:{gid}",
        mounts=tuple(mounts),
        tmpfs={path: options for path, options in _scratch(uid, gid).items() if path not in taken},
        network=request.network or "bridge",
        shm_bytes=request.shm_bytes or default_shm_bytes(),
        gpus=gpus,
        labels={RUN_LABEL: run_id, "reprobox.project": str(request.project.root)},
        pids_limit=PIDS_LIMIT,
    )


def _refuse_what_is_no_text(request: RunRequest) -> None:
    """Refuse what the engine's API, which is JSON, would quietly turn into replacement characters."""
    for word in [*request.command, *_given(request.environment).values()]:
        if any("\ud800" <= character <= "\udfff" for character in word):
            raise UsageError(
                f"{word!a} holds bytes that are no UTF-8, which a container engine cannot hand on",
                remedy="give it in a file, or use --engine local",
            )


def _scratch(uid: int, gid: int) -> dict[str, str]:
    """The box's writable folders; exec, because torch.compile loads from there what it has just built."""
    return {
        "/tmp": "rw,exec,nosuid,nodev,mode=1777",
        BOX_HOME: f"rw,exec,nosuid,nodev,mode=0700,uid={uid},gid={gid}",
    }


def _box_directory(request: RunRequest) -> str:
    if request.directory is None:
        return str(request.project.box_directory)
    return posixpath.normpath(posixpath.join(str(request.project.box_directory), request.directory))


def _local_directory(request: RunRequest) -> str:
    if request.directory is None:
        return str(request.project.directory)
    return str((request.project.directory / request.directory).absolute())


def _refuse_what_local_cannot(request: RunRequest) -> None:
    for given, flag in (
        (request.name, "--name"),
        (request.mounts, "-v"),
        (request.image, "--image"),
        (request.shm_bytes, "--shm-size"),
        (request.network, "--network"),
    ):
        if given:
            raise UsageError(
                f"--engine local has no {flag}: it isolates nothing", remedy=f"drop {flag}, or use --engine docker"
            )


def default_shm_bytes() -> int:
    """Return half of this machine's memory: DataLoader workers hand tensors over in /dev/shm."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def user_name(uid: int) -> str:
    """Return the caller's login name, or ``user<uid>`` where the machine has none for it."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user{uid}"


def box_files(recipe: Recipe) -> dict[str, str]:
    """Return the files the box is given read-only: passwd and group with the caller in them, and the recipe."""
    import json

    uid, gid = os.getuid(), os.getgid()
    user = user_name(uid)
    passwd = {0: "root:x:0:0:root:/root:/bin/sh", 65534: "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"}
    passwd[uid] = f"{user}:x:{uid}:{gid}:{user}:{BOX_HOME}:/bin/sh"
    group = {0: "root:x:0:", 65534: "nogroup:x:65534:"}
    group[gid] = f"{user if gid else 'root'}:x:{gid}:"
    return {
        "passwd": "\n".join(passwd.values()) + "\n",
        "group": "\n".join(group.values()) + "\n",
        "recipe.json": json.dumps(
            {"schema": "reprobox.recipe/1", **recipe.to_json(), "words": recipe.to_words(BOX_RUN_DIR)}, indent=2
        )
        + "\n",
    }


def write_box_files(folder: Path, recipe: Recipe) -> None:
    """Write :func:`box_files` to ``folder``, readable by every user of the box. :raises BoxError: when it cannot."""
    try:
        folder.mkdir()
        for name, text in box_files(recipe).items():
            path = folder / name
            path.write_text(text, encoding="utf-8")
            path.chmod(0o444)
    except OSError as error:
        raise BoxError(
            f"{folder} cannot be written ({error.strerror})", remedy="make the project folder writable"
        ) from error
