"""One build from request to result: decide, gather, build, normalise, name."""

from __future__ import annotations

import hashlib
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Final

from reprobox import __version__
from reprobox.engines.store import BuildJob
from reprobox.errors import EngineError
from reprobox.folders import cache_folder
from reprobox.images import BuildRequest, BuildResult
from reprobox.images.base import choose_base, missing_packages, same_base
from reprobox.images.context import context_file
from reprobox.images.normalise import Normalised, normalise
from reprobox.images.sources import ImageInput
from reprobox.images.wheels import Pin, collect, parse_lock

if TYPE_CHECKING:
    from pathlib import Path

    from reprobox.engines.store import ImageStore, StoredImage
    from reprobox.images import Builder, Reporter
    from reprobox.images.base import Base

_STALE_SECONDS: Final = 86_400  # no build takes a day, so older scratch was left by one that was killed


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What two builds of the same image may differ in without its showing: where the context lies, and its order."""

    scratch: Path
    backwards: bool = False


def run_build(
    request: BuildRequest, *, store: ImageStore, report: Reporter, within: Surroundings | None = None
) -> BuildResult:
    """Carry out ``request``; see :func:`reprobox.images.build`. ``within`` is the cache folder's scratch by default."""
    started = time.monotonic()
    if request.base is not None:
        same_base(request.base, {})  # refuses what is no reference before anything is fetched
    made_of = ImageInput.read(request.variant, compiler=request.compiler)
    name, lock = request.name or made_of.tag, _lock_digest(made_of.lock)
    result = partial(build_result, request, tag=name, made_of=made_of.digest, lock=lock, store=store, started=started)

    present = None if request.no_cache else _present(store, made_of, request, report)
    if present:
        return result(present, reused=True)

    builder = store.choose_builder(request.builder, report)
    cache = cache_folder()
    within = within or Surroundings(scratch=_scratch(cache))
    pins = parse_lock(made_of.lock, source=f"docker/locks/{request.variant}.txt")
    wheels = collect(pins, wheelhouses=request.wheelhouses, cache=cache / "wheels", report=report)
    base = choose_base(request.base, store=store, cache=cache / "base", report=report, compiler=request.compiler)
    files: dict[str, Path | bytes] = {f"wheels/{wheel}": path for wheel, path in wheels.items()}
    files.update(made_of.files)
    args = _build_args(made_of, base, pins)
    network = _network(base, store, report, compiler=request.compiler)
    report.say(f"building {name} with {'BuildKit' if builder == 'buildkit' else 'the classic builder'}")
    with context_file(files, within.scratch, backwards=within.backwards) as context:
        built = build_normalised(
            context, args, builder=builder, base=base.source, tag=name, network=network,
            no_cache=request.no_cache, scratch=within.scratch, store=store, report=report,
        )  # fmt: skip
    if builder == "classic":
        report.say(
            "the stages are kept for the next build; docker image prune --filter label=reprobox.stage frees them"
        )
    return result(store.inspect(built.engine_id), reused=False, builder=builder, image_id=built.image_id)


def build_normalised(
    context: IO[bytes], args: dict[str, str], *, builder: Builder, base: str, tag: str, network: str, no_cache: bool,
    scratch: Path, store: ImageStore, report: Reporter,
) -> Normalised:  # fmt: skip
    """Have ``builder`` build the context on the image ``base``, and leave only the normalised image, named ``tag``.

    :raises BuildError: a step failed, or what was built cannot be normalised.
    :raises EngineError: the engine refused.
    """
    raw = f"reprobox-raw:{uuid.uuid4().hex}"  # so that no other build, and no prune, takes it away meanwhile
    job = BuildJob(context=context, args=args, tag=raw, network=network, no_cache=no_cache)
    try:
        built = store.build(job, builder, report)
        return normalise(store, built.engine_id, base=base, tag=tag, scratch=scratch, report=report)
    finally:
        with suppress(EngineError):
            store.remove(raw)


def _scratch(cache: Path) -> Path:
    """Return the folder for what a build needs on disk until it ends, without what a killed one left there."""
    folder = cache / "contexts"
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.iterdir():
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left)
    return folder


def _present(store: ImageStore, made_of: ImageInput, request: BuildRequest, report: Reporter) -> StoredImage | None:
    """Return the engine's description of the local image when it is what ``request`` would build, else None."""
    name = request.name or made_of.tag
    found = store.find(name)
    if found is None:
        return None
    labels = found.labels
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


def build_result(
    request: BuildRequest,
    image: StoredImage,
    *,
    tag: str,
    made_of: str,
    lock: str,
    store: ImageStore,
    started: float,
    reused: bool,
    builder: Builder | None = None,
    image_id: str | None = None,
) -> BuildResult:
    """Return what became of ``request``, having given the image the further name it asks for.

    :param image: the engine's description of it; ``tag`` what it is called where no further name is asked for.
    :param made_of: the digest of the image's inputs; ``lock`` that of its list of packages.
    :param started: when the build began, of :func:`time.monotonic`.
    :param builder: who carried out a Dockerfile for it, if anybody did.
    :param image_id: the OCI config digest where it is known; the engine is asked by default.
    """
    if request.tag:
        store.tag(image.engine_id, request.tag)
    return BuildResult(
        image_id=image_id or store.image_id(image),
        engine_id=image.engine_id,
        builder=builder,
        way=f"{builder}+normalised" if builder else None,
        reused=reused,
        variant=request.variant,
        tag=request.tag or tag,
        base=image.labels["reprobox.base"],
        input=made_of,
        lock=lock,
        seconds=time.monotonic() - started,
    )


def _build_args(made_of: ImageInput, base: Base, pins: tuple[Pin, ...]) -> dict[str, str]:
    return {
        "BASE": base.source,
        "BASE_DIGEST": base.digest,
        "BASE_NAME": base.name,
        "BASE_RECORD": base.record,
        "COMPILER": str(int(made_of.compiler)),
        "INPUT_DIGEST": made_of.digest,
        "LOCK_DIGEST": _lock_digest(made_of.lock),
        "TORCH": next((pin.version for pin in pins if pin.name == "torch"), "none"),
        "VARIANT": made_of.variant,
        "VERSION": __version__,
    }


def _network(base: Base, store: ImageStore, report: Reporter, *, compiler: bool) -> str:
    missing = missing_packages(base, store=store, compiler=compiler)
    if not missing:
        return "none"
    report.say(
        f"the base lacks {missing}: the build installs what its own package sources serve today, over the network"
    )
    return "default"


def _lock_digest(text: str) -> str:
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
