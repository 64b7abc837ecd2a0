"""One build from request to result: decide, gather, build, name."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any, assert_never

from reprobox import __version__, reference
from reprobox.engines.digests import config_digest
from reprobox.errors import EngineError, UsageError
from reprobox.images import BuildRequest, BuildResult
from reprobox.images.base import choose_base, missing_packages, same_base
from reprobox.images.builders import BuildJob, build_buildkit, build_classic
from reprobox.images.context import context_file
from reprobox.images.sources import ImageInput
from reprobox.images.wheels import Pin, collect, parse_lock

if TYPE_CHECKING:
    from pathlib import Path

    import docker
    from reprobox.images import Reporter
    from reprobox.images.base import Base


def cache_folder() -> Path:
    """Return the folder of what can be fetched or made again: wheels, bases, contexts being sent."""
    from platformdirs import user_cache_path

    return user_cache_path("reprobox")


def run_build(request: BuildRequest, *, client: docker.DockerClient, report: Reporter) -> BuildResult:
    """Carry out ``request``; see :func:`reprobox.images.build`."""
    started = time.monotonic()
    if request.tag is not None and reference.parse(request.tag).digest:
        raise UsageError(f"the tag {request.tag!r} has a digest", remedy="name the image as NAME:TAG")
    if request.base is not None:
        same_base(request.base, {})  # refuses what is no reference before anything is fetched
    made_of = ImageInput.read(request.variant)
    name = made_of.tag

    present = None if request.no_cache else _present(client, made_of, request, report)
    if present:
        return _result(request, present, made_of=made_of, client=client, started=started, reused=True)

    cache = cache_folder()
    pins = parse_lock(made_of.lock, source=f"docker/locks/{request.variant}.txt")
    wheels = collect(pins, wheelhouses=request.wheelhouses, cache=cache / "wheels", report=report)
    base = choose_base(request.base, client=client, cache=cache / "base", report=report)
    files: dict[str, Path | bytes] = {f"wheels/{wheel}": path for wheel, path in wheels.items()}
    files.update(made_of.files)
    args = _build_args(made_of, base, pins)
    network = _network(base, client, report)
    report.say(f"building {name} with the {_builder_name(request)} builder")
    with context_file(files, cache / "contexts") as context:
        job = BuildJob(context=context, args=args, tag=name, network=network, no_cache=request.no_cache)
        match request.builder:
            case "classic":
                engine_id = build_classic(job, client=client, report=report)
            case "buildkit":
                engine_id = build_buildkit(job, client=client, report=report)
            case _:
                assert_never(request.builder)
    if request.builder == "classic":
        report.say(
            "the stages are kept for the next build; docker image prune --filter label=reprobox.stage frees them"
        )
    built = client.images.get(engine_id).attrs
    return _result(request, built, made_of=made_of, client=client, started=started, reused=False)


def _present(
    client: docker.DockerClient, made_of: ImageInput, request: BuildRequest, report: Reporter
) -> dict[str, Any] | None:
    """Return the engine's description of the local image when it is what ``request`` would build, else None."""
    import docker.errors

    name = made_of.tag
    try:
        found: dict[str, Any] = client.images.get(name).attrs
    except docker.errors.ImageNotFound:
        return None
    except docker.errors.APIError as error:
        raise EngineError(f"the engine could not say whether it has {name}", detail=str(error)) from error
    labels = found["Config"].get("Labels") or {}
    if labels.get("reprobox.input") != made_of.digest:
        report.say(f"the image {name} was made of something else; building it again")
        return None
    if request.base is not None and not same_base(request.base, labels):
        report.say(
            f"the image {name} stands on {labels.get('reprobox.base')}, not on {request.base}; building it again"
        )
        return None
    report.say(f"the image {name} is already there; nothing to build")
    return found


def _result(
    request: BuildRequest,
    image: dict[str, Any],
    *,
    made_of: ImageInput,
    client: docker.DockerClient,
    started: float,
    reused: bool,
) -> BuildResult:
    engine_id, labels = str(image["Id"]), image["Config"]["Labels"]
    if request.tag:
        wanted = reference.parse(request.tag)
        client.api.tag(engine_id, wanted.name, tag=wanted.tag or "latest")
    return BuildResult(
        image_id=config_digest(client, engine_id),
        engine_id=engine_id,
        builder=None if reused else request.builder,
        reused=reused,
        variant=request.variant,
        tag=request.tag or made_of.tag,
        base=labels["reprobox.base"],
        input=made_of.digest,
        lock=labels["reprobox.lock"],
        seconds=time.monotonic() - started,
    )


def _build_args(made_of: ImageInput, base: Base, pins: tuple[Pin, ...]) -> dict[str, str]:
    return {
        "BASE": base.source,
        "BASE_DIGEST": base.digest,
        "BASE_NAME": base.name,
        "BASE_RECORD": base.record,
        "INPUT_DIGEST": made_of.digest,
        "LOCK_DIGEST": _lock_digest(made_of.lock),
        "TORCH": next((pin.version for pin in pins if pin.name == "torch"), "none"),
        "VARIANT": made_of.variant,
        "VERSION": __version__,
    }


def _network(base: Base, client: docker.DockerClient, report: Reporter) -> str:
    missing = missing_packages(base, client=client)
    if not missing:
        return "none"
    report.say(
        f"the base lacks {missing}: the build installs what its own package sources serve today, over the network"
    )
    return "default"


def _lock_digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _builder_name(request: BuildRequest) -> str:
    return "BuildKit" if request.builder == "buildkit" else "classic"
