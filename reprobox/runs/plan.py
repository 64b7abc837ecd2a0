"""A run as pure data: made here from settings and options, carried out by :mod:`reprobox.runs.execute`."""

from __future__ import annotations

import os
import posixpath
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprobox.engines import GPUS_LABEL, PROJECT_LABEL, RUN_LABEL, BoxOptions, BoxSpec, EngineName, ImageInfo, Mount
from reprobox.errors import ImageNotFound, UsageError
from reprobox.host import user_name
from reprobox.knobs import environment_of
from reprobox.project import WORKSPACE, Project
from reprobox.recipe import Profile, Recipe, SelfTest, draw_seed, world_size
from reprobox.runs.caches import CACHE_VARIABLES, shared_folders
from reprobox.runs.lengths import refuse_what_is_too_long, stack_of_a_box, stack_of_this_process
from reprobox.runs.mounts import BOX_HOME
from reprobox.runs.project_files import protected_files
from reprobox.runs.redaction import redacted, redacted_words
from reprobox.runs.secrets import SECRETS, secrets_folder
from reprobox.selftest.certificate import certificates_folder
from reprobox.trust_folder import trust_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reprobox.gpus import Gpu

__all__ = ["BOX_HOME", "BOX_RUN_DIR", "RUN_LABEL", "RunPlan", "RunRequest", "kept_from_boxes", "make_plan"]

BOX_RUN_DIR = "/run/reprobox/run"

_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True)
class RunRequest:
    """What a person asked for, parsed: the input of :func:`make_plan`.

    ``directory`` is ``-w`` as typed, or ``None`` for the caller's own folder in the project. ``user`` is the box's user
    and group id, the caller's own by default. ``secrets`` maps names to what no record may hold. ``inputs`` and
    ``outputs`` are paths in the project whose hashes are recorded before and after. ``cache`` names a cache of
    downloaded models and the like that runs share. ``log`` says whether the output is kept beside the record.
    ``selftest`` says when the determinism self-test comes before the command.
    ``container_flags`` are the flags typed that only a container can follow. ``mounts_of_the_file`` are those of
    ``mounts`` that the project file asks for, each with its text there.
    """

    command: tuple[str, ...]
    recipe: Recipe
    engine: EngineName
    project: Project
    image: str | None = None
    directory: str | None = None
    name: str | None = None
    mounts: tuple[Mount, ...] = ()
    mounts_of_the_file: tuple[tuple[str, Mount], ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)
    network: str | None = None
    shm_bytes: int | None = None
    gpus: tuple[Gpu, ...] = ()
    keep_open: tuple[int, ...] = ()
    gpus_were_asked_for: bool = False
    options: BoxOptions = field(default_factory=BoxOptions)
    tmpfs: Mapping[str, str] = field(default_factory=dict)
    user: tuple[int, int] | None = None
    secrets: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    stdin: bool = False
    terminal: bool = False
    detached: bool = False
    writable: bool = False
    cache: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    log: bool = True
    selftest: SelfTest = SelfTest.AUTO
    container_flags: tuple[str, ...] = ()
    quiet: bool = False

    @property
    def owner(self) -> tuple[int, int]:
        """User and group id the command runs as."""
        return self.user or (os.getuid(), os.getgid())


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """Everything that will happen: the recipe with its seed, the box, and what the record says of them.

    ``driver`` is the NVIDIA driver's version. ``caches`` are the folders of this machine that runs share, made if
    missing: what Inductor and Triton compiled, and the named cache. ``secrets`` is where the box's secrets are handed
    over, or ``None`` where there are none.
    """

    run_id: str
    request: RunRequest
    recipe: Recipe
    seed_was_drawn: bool
    image: ImageInfo | None
    box: BoxSpec
    driver: str | None = None
    caches: tuple[Path, ...] = ()
    secrets: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the plan as ``--dry-run`` prints it."""
        box = self.box
        return {
            "schema": "reprobox.plan/1",
            "run_id": self.run_id,
            "engine": str(self.request.engine),
            "image": None if self.image is None else {"reference": self.request.image, "image_id": self.image.image_id},
            "command": redacted_words(box.command, self.request.secrets.values()),
            "directory": box.directory,
            "recipe": self.recipe.to_json(),
            "environment_knobs": environment_of(self.recipe),
            "user": box.user,
            "mounts": [
                {"source": m.source, "target": m.target, "read_only": m.read_only, "kind": m.kind} for m in box.mounts
            ],
            "network": box.network if self.request.engine is not EngineName.LOCAL else None,
            "shm_bytes": box.shm_bytes if self.request.engine is not EngineName.LOCAL else None,
            "gpus": list(box.gpus),
            "environment": sorted(self.request.environment),
            "secrets": sorted(self.request.secrets),
            "options": options_to_json(box, self.request.secrets.values()),
            "self_test": str(self.request.selftest),
        }


def make_plan(
    request: RunRequest, run_id: str, run_folder: Path, image: ImageInfo | None, driver: str | None = None
) -> RunPlan:
    """Turn a request into a plan. Nothing is written or started.

    :param run_folder: where the run's record will be (made before the plan is carried out).
    :param image: the image found for the request; ``None`` on the local engine.
    :raises UsageError: where the request contradicts itself.
    :raises BoxError: where a word, a variable or a secret is longer than a command can be given.
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
        "REPROBOX_RUN_DIR": str(run_folder / "box" / "out") if local else BOX_RUN_DIR,
    }
    if request.gpus or request.gpus_were_asked_for or not local:
        environment |= {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": ",".join(gpu.uuid for gpu in request.gpus),
        }
    name = request.name or f"reprobox-{run_id.lower()}"
    gpus = tuple(gpu.uuid for gpu in request.gpus)
    caches = shared_folders(request, image)
    secrets = secrets_folder(run_id) if request.secrets and not local else None
    stack = stack_of_this_process() if local else stack_of_a_box(request.options.ulimits)
    refuse_what_is_too_long(request.command, environment, request.secrets, os.environ if local else {}, stack)
    if local:
        _refuse_what_local_cannot(request)
        box = BoxSpec(
            run_id=run_id,
            name=name,
            command=request.command,
            directory=_local_directory(request),
            environment={**{name: os.fsdecode(value) for name, value in request.secrets.items()}, **environment},
            gpus=gpus,
            keep_open=request.keep_open,
            stdin=request.stdin,
            terminal=request.terminal,
            detached=request.detached,
        )
    else:
        box = _container(request, run_id, run_folder, name, environment, gpus, image, caches, secrets)
    return RunPlan(
        run_id=run_id,
        request=request,
        recipe=recipe,
        seed_was_drawn=drawn,
        image=image,
        box=box,
        driver=driver,
        caches=tuple(caches.values()),
        secrets=secrets,
    )


def _given(environment: Mapping[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if value is not None}


def _container(
    request: RunRequest,
    run_id: str,
    run_folder: Path,
    name: str,
    environment: dict[str, str | None],
    gpus: tuple[str, ...],
    image: ImageInfo | None,
    caches: Mapping[str, Path],
    secrets: Path | None,
) -> BoxSpec:
    if secrets is not None and image is not None and image.labels.get("reprobox.box-protocol") == "1":
        raise ImageNotFound(
            f"{request.image} was built before boxes could be given secrets",
            remedy="build it again with `reprobox build`",
        )
    uid, gid = request.owner
    user = box_user_name(uid)
    home = {"HOME": BOX_HOME, "USER": user, "LOGNAME": user}
    home |= {name: path for name, path in CACHE_VARIABLES.items() if path.rpartition("/")[0] in caches}
    taken = [mount.target for mount in request.mounts] + list(request.tmpfs)
    if len(set(taken)) < len(taken):
        raise UsageError("two mounts have the same target", remedy="give each mount a target of its own")
    given = run_folder / "box"
    own = [
        Mount(source=str(request.project.root), target=str(WORKSPACE)),
        Mount(source=str(given / "out"), target=BOX_RUN_DIR),
        *(Mount(source=str(given / file), target=f"/etc/{file}", read_only=True) for file in ("passwd", "group")),
        Mount(source=str(given / "recipe.json"), target="/run/reprobox/recipe.json", read_only=True),
        *(Mount(source=str(folder), target=target) for target, folder in caches.items()),
    ]
    if secrets is not None:
        own.append(Mount(source=str(secrets), target=SECRETS, read_only=True))
    mounts = [*(mount for mount in own if mount.target not in taken), *request.mounts]
    mounts += _guarded(mounts, request.mounts, run_folder.parents[1], protected_files(request.project.root))
    # A mount inside another must come after it.
    mounts = sorted(mounts, key=lambda mount: mount.target.count("/"))
    scratch = {path: options for path, options in _scratch(uid, gid).items() if path not in taken}
    box = BoxSpec(
        run_id=run_id,
        name=name,
        image=None if image is None else image.engine_id,
        command=request.command,
        directory=_box_directory(request),
        environment={**home, **environment},
        user=f"{uid}:{gid}",
        mounts=tuple(mounts),
        tmpfs={**scratch, **request.tmpfs},
        network=request.network or "bridge",
        shm_bytes=request.shm_bytes or default_shm_bytes(),
        gpus=gpus,
        labels={
            RUN_LABEL: run_id,
            PROJECT_LABEL: str(request.project.root),
            **({GPUS_LABEL: ",".join(gpus)} if gpus else {}),
        },
        read_only=not request.writable,
        secrets=tuple(sorted(request.secrets)),
        stdin=request.stdin,
        terminal=request.terminal,
        detached=request.detached,
        log=request.log,
        options=request.options,
    )
    _refuse_what_is_no_text(box)
    return box


def kept_from_boxes() -> list[Path]:
    """Return the folders of reprobox's own that no command may write: what they hold, later starts believe."""
    allowed = trust_folder()
    return [certificates_folder(), *([] if allowed is None else [allowed])]


def _guarded(
    mounts: Sequence[Mount], theirs: Sequence[Mount], records: Path, project_files: Sequence[Path]
) -> list[Mount]:
    """Return read-only mounts over what is reprobox's own wherever ``mounts`` would let the command write it.

    Over the runs' records: it could rewrite them, or leave links that lead reprobox's own writes elsewhere. Over the
    project file and the lock: they say what the next run does. And over the certificates and the lists of what a person
    allowed: it could forge what the next start believes.

    :raises UsageError: for a mount of the records, or of these files, themselves.
    """
    for mount in theirs:
        if mount.kind != "bind" or mount.read_only:
            continue
        if Path(mount.source).is_relative_to(records):
            raise UsageError(f"{mount.source} holds the records of runs", remedy="mount it read-only (:ro)")
        if Path(mount.source) in project_files:
            raise UsageError(f"{mount.source} says what runs do", remedy="mount it read-only (:ro)")
    taken = {mount.target for mount in mounts}
    guards = [
        Mount(
            source=str(own),
            target=posixpath.join(mount.target, own.relative_to(mount.source).as_posix()),
            read_only=True,
        )
        for mount in mounts
        for own in (records, *project_files, *kept_from_boxes())
        if mount.kind == "bind" and not mount.read_only and own.is_relative_to(mount.source)
    ]
    return [guard for guard in guards if guard.target not in taken]  # something else already lies there


def _refuse_what_is_no_text(box: BoxSpec) -> None:
    """Refuse what the engine's API, which is JSON, would quietly turn into replacement characters."""
    sources = (mount.source for mount in box.mounts)
    for word in (*box.command, *_given(box.environment).values(), box.directory, *sources):
        if character := _NO_TEXT.search(word):
            what = "a NUL byte" if character[0] == "\0" else "bytes that are no UTF-8"
            raise UsageError(
                f"{word!a} holds {what}, which a container engine cannot hand on",
                remedy="give it in a file, or under another name, or use --engine local",
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
    for flag in request.container_flags:
        raise UsageError(
            f"--engine local has no {flag}: it isolates nothing", remedy=f"drop {flag}, or use --engine docker"
        )


def options_to_json(box: BoxSpec, secrets: Iterable[bytes]) -> dict[str, Any]:
    """Return what Docker's flags set of a box, without what they left alone and without ``secrets``."""
    options = {**asdict(box.options), "labels": redacted(box.options.labels, secrets)}
    given = {name: value for name, value in options.items() if value not in (None, (), {})}
    more = {"tmpfs": dict(box.tmpfs), "writable": not box.read_only, "stdin": box.stdin, "terminal": box.terminal}
    return {**given, **{name: value for name, value in more.items() if value}}


def default_shm_bytes() -> int:
    """Return half of this machine's memory: DataLoader workers hand tensors over in /dev/shm."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def box_user_name(uid: int) -> str:
    """Return the caller's login name, or ``user<uid>`` where the machine has none for it."""
    name = user_name(uid)
    return f"user{name}" if name.isdigit() else name
