"""Which image the build stands on, and what is recorded of it: only digests that were seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reprobox import reference
from reprobox.errors import BuildError, EngineError, EngineUnavailable, ImageNotFound, RegistryError
from reprobox.images.bootstrap import COMPILER, PACKAGES, bootstrap, tag_of
from reprobox.images.sources import image_root

if TYPE_CHECKING:
    from pathlib import Path

    from reprobox.engines.store import ImageStore, StoredImage
    from reprobox.images import Reporter
    from reprobox.reference import Reference

BOOTSTRAP: Final = "bootstrap"
SLIM: Final = "debian:bookworm-slim"
_CHECK_FAILED: Final = 3  # what prepare-base.sh --check exits with


@dataclass(frozen=True, kw_only=True)
class Base:
    """The base of one build.

    ``source`` is what FROM is given, ``digest`` the registry's digest or, with no registry, the image id; ``record`` is
    the label ``reprobox.base``; ``name`` the registry's name, empty where there is none.
    """

    source: str
    digest: str
    record: str
    name: str = ""


def choose_base(asked: str | None, *, store: ImageStore, cache: Path, report: Reporter, compiler: bool = True) -> Base:
    """Return the base that ``asked`` names; with None the lock's, else Debian's slim image, else a bootstrapped one.

    Each step is said with its reason. A base that was asked for, or that the lock names, is never replaced. One that is
    bootstrapped has a C++ compiler unless ``compiler`` is False.

    :raises UsageError: ``asked`` is not an image reference.
    :raises EngineError: the base cannot be pulled.
    :raises BuildError: no base can be bootstrapped.
    """
    if asked == BOOTSTRAP:
        report.say("the base is bootstrapped from this machine's apt sources, as asked")
        return _bootstrapped(store, cache, report, compiler=compiler)
    if asked is not None:
        return _named(asked, store=store, report=report)
    locked = locked_base()
    if locked:
        report.say(f"the base is the one the lock names: {locked}")
        return _pulled(locked, store=store, report=report)
    report.say(f"the lock names no base; trying {SLIM}")
    try:
        # Without a network this is to fall back at once.
        return _pulled(reference.parse(SLIM), store=store, report=report, retries=0)
    except EngineUnavailable:
        raise
    except EngineError as error:
        why = (error.detail or error.message).strip()
        report.say(f"{SLIM} cannot be pulled ({why}); bootstrapping the base from this machine's apt sources instead")
    return _bootstrapped(store, cache, report, compiler=compiler)


def locked_base() -> Reference | None:
    """Return the base of ``docker/locks/base.txt``, or None where that file is not.

    :raises BuildError: the file does not hold one reference with a digest.
    """
    path = image_root() / "docker" / "locks" / "base.txt"
    if not path.is_file():
        return None
    parsed = reference.parse(path.read_text(encoding="utf-8").strip())
    if not parsed.digest:
        raise BuildError(
            f"{path} names {parsed} without a digest", remedy="write NAME@sha256:… there, or remove the file"
        )
    return parsed


def same_base(asked: str, labels: dict[str, str]) -> bool:
    """Tell whether an image with these labels stands on the base ``asked`` names, as far as its labels can say.

    A tag is compared by name: the image keeps the digest the tag had when it was built.
    """
    record, name = labels.get("reprobox.base", ""), labels.get("org.opencontainers.image.base.name", "")
    if asked == BOOTSTRAP:
        return record.startswith(f"{BOOTSTRAP}@")
    if reference.is_image_id(asked):
        return record == asked
    parsed = reference.parse(asked)
    if parsed.digest:
        return record == parsed.digest
    return bool(name) and reference.parse(name) == _with_tag(parsed)


def missing_packages(base: Base, *, store: ImageStore, compiler: bool = True) -> str:
    """Return the Debian packages the base lacks, joined by blanks; empty when it has all the box needs.

    A C++ compiler is asked of it unless ``compiler`` is False.

    :raises EngineError: a container of the base does not run.
    """
    script = (image_root() / "docker" / "prepare-base.sh").read_text(encoding="utf-8")
    command = ["/bin/sh", "-c", script, "prepare-base.sh", "--check"]
    with store.step(base.source, command, environment={"COMPILER": str(int(compiler))}) as step:
        status = step.run()
        said = step.said(stderr=status != _CHECK_FAILED).strip()
    if status not in {0, _CHECK_FAILED}:
        raise EngineError(f"the base {base.source} cannot be looked into: /bin/sh exits {status}", detail=said)
    return said


def _named(asked: str, *, store: ImageStore, report: Reporter) -> Base:
    if reference.is_image_id(asked):
        return _local(asked, store=store, report=report)
    parsed = reference.parse(asked)
    present = store.find(str(parsed))
    if present and parsed.digest:
        report.say(f"the base {parsed} is already in the engine")
        return Base(
            source=f"{parsed.name}@{parsed.digest}", digest=parsed.digest, record=parsed.digest, name=str(parsed)
        )
    if present and not _known_to_a_registry(present):
        return _local(str(parsed), store=store, report=report)
    return _pulled(parsed, store=store, report=report, here=present)


def _known_to_a_registry(image: StoredImage) -> bool:
    """Tell whether an image may be had elsewhere; ``localhost/`` is Podman's name for what was built on the machine."""
    return any(not name.startswith("localhost/") for name in image.repo_digests)


def _local(name: str, *, store: ImageStore, report: Reporter) -> Base:
    found = store.find(name)
    if found is None:
        raise ImageNotFound(f"the engine has no image {name} to take as the base", remedy="pull or load it first")
    image_id = store.image_id(found)
    report.say(f"the base {name} is known to no registry; its image id {image_id} is recorded")
    source = tag_of(image_id)
    store.tag(found.engine_id, source)
    return Base(source=source, digest=image_id, record=image_id)


def _bootstrapped(store: ImageStore, cache: Path, report: Reporter, *, compiler: bool) -> Base:
    packages = PACKAGES + COMPILER if compiler else PACKAGES
    image_id = bootstrap(store, cache=cache, report=report, packages=packages)
    return Base(source=tag_of(image_id), digest=image_id, record=f"{BOOTSTRAP}@{image_id}")


def _pulled(
    wanted: Reference,
    *,
    store: ImageStore,
    report: Reporter,
    retries: int | None = None,
    here: StoredImage | None = None,
) -> Base:
    """Have the engine fetch ``wanted``; ``retries`` is how often it is tried again, the usual number by default.

    ``here`` is the image that has the name already. It is never taken unasked, but a failure says how to ask for it: the
    containerd store and Podman give a digest also to an image that no registry has.
    """
    from reprobox.engines.transfer import Patience

    asked = _with_tag(wanted)
    try:
        digest = store.pull(asked, report, patience=None if retries is None else Patience(retries=retries))
    except RegistryError as error:
        if not error.detail:  # not a transfer that failed: another image came, or the login cannot be read
            raise
        raise _not_pulled(asked, error.detail, store.image_id(here) if here else None) from error
    report.say(f"the base {asked} is {digest}")
    return Base(source=f"{asked.name}@{digest}", digest=digest, record=digest, name=str(asked))


def _with_tag(parsed: Reference) -> Reference:
    if parsed.tag or parsed.digest:
        return parsed
    return reference.parse(f"{parsed.name}:latest")


def _not_pulled(asked: Reference, why: str, here: str | None = None) -> EngineError:
    instead = f"--base {here} for the image that has this name here" if here else "--base bootstrap"
    return EngineError(
        f"the base {asked} cannot be pulled",
        remedy=f"check the name, the network and the engine's login, or pass {instead}",
        detail=why,
    )
