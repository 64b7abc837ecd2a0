"""The options of a run as they were typed, as plain data: every bad value is found before anything is done."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from reprobox.engines import EngineName, Mount
from reprobox.errors import RecipeError, UsageError
from reprobox.recipe import parse_choice
from reprobox.runs.docker_flags import DOCKER_FLAGS, parse_options, parse_user
from reprobox.runs.hashes import parse_artefact
from reprobox.runs.mounts import Tmpfs, checked_inside_the_project, parse_mount, parse_tmpfs, parse_volume
from reprobox.runs.options import parse_env_file, parse_environment, parse_name
from reprobox.runs.plan import RunRequest
from reprobox.runs.redaction import looks_secret
from reprobox.runs.secrets import parse_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reprobox.project import Project
    from reprobox.settings import Settings

__all__ = ["Pull", "parse_pull", "parse_request"]

Pull = Literal["missing", "always", "never"]

_CACHE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OPTION_NAMES = {name.lstrip("-") for flag in DOCKER_FLAGS for name in flag.names if name.startswith("--")}


def parse_request(
    command: tuple[str, ...],
    values: Mapping[str, Any],
    settings: Settings,
    project: Project,
    container_flags: tuple[str, ...],
) -> RunRequest:
    """Return what a person asked for; image and GPUs are yet to be looked up.

    :param values: what was typed, by option: a text, a list of texts, or a bool; ``None`` where it was not given.
    :param container_flags: the flags typed that only a container can follow.
    :raises UsageError: for a bad value, naming it and what it may be.
    """

    def texts(name: str) -> list[str]:
        return values.get(name) or []

    local = settings.value("engine") is EngineName.LOCAL
    entries = [f"{name}={value}" for name, value in settings.project.environment.items()]
    entries += [line for path in texts("env_file") for line in parse_env_file(Path(path))] + texts("env")
    environment = parse_environment(entries, os.environ)
    secrets = parse_secrets(texts("secret"), os.environ, project.directory)
    hidden = {name: value for name, value in environment.items() if value and looks_secret(name, value)}
    mounts: list[tuple[str, Mount | Tmpfs]] = [
        *((f"-v {text}", parse_volume(text, project.directory)) for text in texts("volume")),
        *((f"--mount {text}", parse_mount(text, project.directory)) for text in texts("mount")),
        *((f"--tmpfs {text}", parse_tmpfs(text)) for text in texts("tmpfs")),
    ]
    taken = {mount.target for _, mount in mounts}
    of_the_file = () if local else _mounts_of_the_project(settings, project, taken)
    mounts = [*((f"mounts {text}", mount) for text, mount in of_the_file), *mounts]
    for given, mount in mounts:
        checked_inside_the_project(mount.target, project.root, given)
    terminal = bool(values.get("tty"))
    if terminal and not os.isatty(0) and not values.get("detach"):
        raise UsageError(
            "-t gives the command your terminal, and standard input is none", remedy="leave -t out, or use -i alone"
        )
    request = RunRequest(
        command=command,
        recipe=settings.recipe(),
        engine=settings.value("engine"),
        project=project,
        directory=values.get("workdir"),
        name=None if values.get("name") is None else parse_name(values["name"]),
        mounts=tuple(mount for _, mount in mounts if isinstance(mount, Mount)),
        mounts_of_the_file=of_the_file,
        tmpfs=dict(mount for _, mount in mounts if isinstance(mount, Tmpfs)),
        environment={name: value for name, value in environment.items() if name not in {*secrets, *hidden}},
        secrets={**{name: os.fsencode(value) for name, value in hidden.items()}, **secrets},
        network=None if local else settings.value("network"),
        shm_bytes=None if local else settings.value("shm_size"),
        options=parse_options(_docker_options(values)),
        user=_user(values.get("user")),
        stdin=bool(values.get("interactive")),
        terminal=terminal,
        detached=bool(values.get("detach")),
        writable=bool(values.get("writable")),
        cache=_cache(values.get("cache")),
        inputs=tuple(_input(text, project) for text in texts("input")),
        outputs=_outputs(texts("output"), settings, project),
        log=values.get("log") is not False,
        selftest=settings.value("selftest"),
        container_flags=container_flags,
        quiet=settings.value("quiet"),
    )
    if not local:
        _refuse_what_has_no_effect(request, shm_size=values.get("shm_size"))
    return request


def parse_pull(text: str | None) -> Pull:
    """Return when an image is fetched from its registry. :raises UsageError: for an unknown word."""
    try:
        return parse_choice("missing" if text is None else text, "--pull", ("missing", "always", "never"))  # type: ignore[return-value]
    except RecipeError as error:
        raise UsageError(error.message, remedy=error.remedy) from error


def _mounts_of_the_project(settings: Settings, project: Project, taken: set[str]) -> tuple[tuple[str, Mount], ...]:
    """Return what the project file mounts, but for targets that the command line gives to something else."""
    given = [(text, parse_volume(text, project.root, "mounts")) for text in settings.project.mounts]
    return tuple((text, mount) for text, mount in given if mount.target not in taken)


def _outputs(typed: list[str], settings: Settings, project: Project) -> tuple[str, ...]:
    from_root = replace(project, directory=project.root)
    named = [parse_artefact(text, from_root, "outputs") for text in settings.project.outputs]
    return tuple(dict.fromkeys([*named, *(parse_artefact(text, project, "--output") for text in typed)]))


def _refuse_what_has_no_effect(request: RunRequest, *, shm_size: str | None) -> None:
    ipc, capabilities, uid = request.options.ipc, request.options.cap_add, request.owner[0]
    if shm_size is not None and ipc in ("none", "host"):
        what = "has no /dev/shm" if ipc == "none" else "is the machine's own /dev/shm, whose size is set there"
        raise UsageError(f"--shm-size {shm_size} has no effect: --ipc {ipc} {what}", remedy="leave one of them out")
    if capabilities and uid != 0:
        raise UsageError(f"--cap-add {capabilities[0]} has no effect for the user {uid}", remedy="add -u 0")


def _docker_options(values: Mapping[str, Any]) -> dict[str, list[str]]:
    given = {name: values.get(name.replace("-", "_")) for name in _OPTION_NAMES}
    return {name: value if isinstance(value, list) else [value] for name, value in given.items() if value is not None}


def _user(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    uid, gid = parse_user(text)
    return uid, os.getgid() if gid is None and uid == os.getuid() else gid or 0


def _cache(text: str | None) -> str | None:
    if text is not None and not _CACHE_NAME.fullmatch(text):
        raise UsageError(f"--cache cannot be {text!r}", remedy="give a name of letters, digits, dots and dashes")
    return text


def _input(text: str, project: Project) -> str:
    path = parse_artefact(text, project, "--input")
    if not os.path.exists(project.root / path):  # noqa: PTH110  # a name that is too long is no error to it
        raise UsageError(f"--input {text!r}: there is no such file", remedy="name a file or folder of the project")
    return path
