"""What a command works with: the engine, the image and the GPUs that flags, settings and this machine come to."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reprobox.cli.console import BuildConsole, say, silent
from reprobox.engines import Engine, EngineName, ImageInfo, choose_engine
from reprobox.errors import GpuError, ImageNotFound, LockError, SignatureError, UsageError
from reprobox.gpus import Gpu, GpuRequest, Inventory, take_inventory
from reprobox.project import Project
from reprobox.runs.gpus import GpuRules, GpusOfRun, take_gpus, wanted_gpus
from reprobox.runs.images import choose_image
from reprobox.runs.options import parse_env_file, parse_environment
from reprobox.runs.request import Pull, parse_pull
from reprobox.runs.store import new_run_id
from reprobox.selftest.boxes import remove_left
from reprobox.selftest.proof import Subject
from reprobox.settings import SETTINGS, Origin, Resolved, Settings, switch_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from reprobox.gpus.claims import Claim

__all__ = ["Choice", "Wanted", "choose", "find_subject", "gpu_rules", "setting_texts"]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """An engine, an image (``None`` on the local engine) and GPUs, and what was asked for of them."""

    engine: Engine
    reference: str | None
    image: ImageInfo | None
    gpus: tuple[Gpu, ...]
    inventory: Inventory
    asked: GpuRequest | None
    claim: Claim | None = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked for beside the settings.

    ``claim`` is whether the GPUs are taken, or only looked up; ``signature`` a file to take the image's signature from,
    and ``project`` the folder that holds signatures otherwise.
    """

    run_id: str
    pull: Pull = "missing"
    platform: str | None = None
    rules: GpuRules = field(default_factory=GpuRules)
    claim: bool = True
    command: str = ""
    signature: str | None = None
    project: Path = Path()


@contextlib.contextmanager
def choose(settings: Settings, wanted: Wanted, tell: Callable[[str], None]) -> Iterator[Choice]:
    """Look up what ``settings`` ask for, and claim the GPUs until the end of the ``with`` block.

    :raises ReproboxError: where it is not there: a GPU that was asked for never becomes a run on the CPU.
    """
    asked: GpuRequest | None = settings.value("gpus")
    inventory = take_inventory()
    gpus = wanted_gpus(asked, inventory, wanted.rules)
    engine = settings.resolve("engine")
    backend = choose_engine(engine.value, chosen=engine.origin is not Origin.DEFAULT, say=tell)
    if wanted.claim:
        remove_left(backend)  # one that hangs may have the GPUs
    reference, found = _image_for(backend, settings, gpus, wanted, asked=asked is not None, tell=tell)
    _check_signature(settings, wanted, reference, found, tell)
    if backend.isolates and gpus and not _is_cuda(found):
        if asked is not None:
            raise GpuError(
                f"--gpus {asked.text} was asked for, and {reference} computes on the CPU alone",
                remedy="choose a cuda image, or --gpus none",
            )
        gpus = ()
    taken = GpusOfRun()
    if gpus:
        taken = take_gpus(
            asked,
            wanted.rules,
            backend,
            wanted.run_id,
            tell,
            inventory=inventory,
            command=wanted.command,
            claim=wanted.claim,
        )
    with taken.claim or contextlib.nullcontext():
        yield Choice(
            engine=backend,
            reference=reference,
            image=found,
            gpus=taken.gpus,
            inventory=inventory,
            asked=asked,
            claim=taken.claim,
        )


def gpu_rules(values: Mapping[str, Any]) -> GpuRules:
    """Return what was typed of how GPUs are to be taken."""
    return GpuRules(
        exclusive=bool(values.get("exclusive")),
        wait=bool(values.get("wait_gpus")),
        ignore_allocation=bool(values.get("gpus_ignore_allocation")),
    )


@contextlib.contextmanager
def find_subject(values: Mapping[str, Any]) -> Iterator[Subject]:
    """Give what a self-test with these flags is of; its GPUs are claimed until the end of the ``with`` block."""
    from reprobox.trust import require_trust, setting_requests

    project = Project.find(Path())
    settings = Settings.load(setting_texts(values), project.root)
    entries = [line for path in values["env_file"] or [] for line in parse_env_file(Path(path))]
    environment = parse_environment([*entries, *(values["env"] or [])], os.environ)
    local = settings.value("engine") is EngineName.LOCAL
    require_trust(setting_requests(settings, ["engine" if local else "image"]), project.root)
    wanted = Wanted(
        run_id=f"selftest-{new_run_id()}",
        pull=parse_pull(values.get("pull")),
        rules=gpu_rules(values),
        command="reprobox selftest",
        project=project.root,
    )
    with choose(settings, wanted, say) as choice:
        yield Subject(
            engine=choice.engine,
            image=choice.image,
            recipe=settings.recipe(),
            gpus=choice.gpus,
            driver=choice.inventory.driver,
            environment=environment,
            hides_gpus=choice.engine.isolates or choice.asked is not None,
        )


def setting_texts(values: Mapping[str, Any]) -> dict[str, str | None]:
    """Return what was typed of the settings, each as a text: a setting may come from a variable or a file as well."""
    texts = {}
    for setting in SETTINGS:
        value = values.get(setting.name)
        value = values.get("self_test") if setting.name == "selftest" else value
        texts[setting.name] = switch_text(value) if isinstance(value, bool) else value
    if values.get("quiet") is False:
        texts["quiet"] = None
    return texts


def _check_signature(
    settings: Settings, wanted: Wanted, reference: str | None, image: ImageInfo | None, tell: Callable[[str], None]
) -> None:
    """Refuse an image that has no signature by the key that is required, where one is.

    :raises SignatureError: also on the local engine, which has no image that could be signed.
    """
    required = settings.resolve("require_signed")
    if required.value is None:
        if wanted.signature is not None:
            raise UsageError("--signature says where a required signature is", remedy="add --require-signed KEY.pub")
        return
    if image is None or reference is None:
        raise SignatureError(
            "a signed image is required, and the local engine runs none",
            remedy="choose --engine docker, or --require-signed off",
        )
    from reprobox.images.signatures import check_image, signature_files, signature_folders

    # A project file's path counts from the project, as the file itself does; what was typed, from where it was typed.
    beside = wanted.project if required.origin is Origin.PROJECT else Path()
    files = (
        signature_files(image.image_id, signature_folders(wanted.project))
        if wanted.signature is None
        else [Path(wanted.signature)]
    )
    signed = check_image(image.image_id, reference, beside / required.value, files)
    tell(f"{reference} is signed: {signed.path}")


def _image_for(
    backend: Engine,
    settings: Settings,
    gpus: tuple[Gpu, ...],
    wanted: Wanted,
    *,
    asked: bool,
    tell: Callable[[str], None],
) -> tuple[str | None, ImageInfo | None]:
    """Return the image to run: the lock's where the project has one.

    Where there are GPUs that nobody asked for, the CPU image will do, and that is said.
    """
    given = settings.resolve("image")
    fetch = partial(choose_image, backend, pull=wanted.pull, platform=wanted.platform, say=tell)
    if not backend.isolates:
        # Only what was typed for this run is worth refusing; a project's image is for its other runs.
        return (given.value if given.origin is Origin.FLAG else None), None
    if (wanted.project / "reprobox.lock").exists():
        return _locked(backend, given, wanted, gpus=bool(gpus), asked=asked, tell=tell)
    try:
        return fetch(given.value, "cuda" if gpus else "cpu")
    except ImageNotFound:
        if asked or not gpus or given.value is not None:
            raise
        found = fetch(None, "cpu")
        tell("this machine has GPUs and only the CPU image is built; `reprobox build --variant cuda` builds the other")
        return found


def _locked(
    backend: Engine,
    given: Resolved[str | None],
    wanted: Wanted,
    *,
    gpus: bool,
    asked: bool,
    tell: Callable[[str], None],
) -> tuple[str | None, ImageInfo | None]:
    """Return the lock's image; another one only where it was typed for this run, and that is said."""
    # Most runs have no lock, and do not wait for what reads and builds them.
    from reprobox.images.lockfile import LOCK_NAME, read_lock
    from reprobox.runs.locked_image import LockedChoice, locked_image, locked_variant, refuse_another
    from reprobox.trust import require_trust, sdist_requests

    lock = read_lock(wanted.project / LOCK_NAME)
    if lock is None:
        raise LockError(f"{LOCK_NAME} went away while it was read", remedy="run it again")
    if given.value is not None and given.origin is not Origin.PROJECT:
        reference, found = choose_image(
            backend, given.value, "cpu", pull=wanted.pull, platform=wanted.platform, say=tell
        )
        apart = None if reference is None or found is None else refuse_another(reference, found, lock)
        if apart is not None and given.origin is not Origin.FLAG:
            raise LockError(apart, remedy="unset REPROBOX_IMAGE, or name the image with --image for this run alone")
        if apart is not None:
            tell(f"{apart}; it is used because --image was given")
        return reference, found
    variant = locked_variant(lock, gpus=gpus, asked=asked)
    choice = LockedChoice(
        lock=lock,
        path=wanted.project / LOCK_NAME,
        variant=variant,
        repository=given.value,
        pull=wanted.pull if wanted.claim else "never",
        before_it_is_built=lambda: require_trust(
            sdist_requests(one.name for one in lock.sdists if variant in one.variants), wanted.project
        ),
    )
    with BuildConsole(quiet=tell is silent) as console:
        return locked_image(backend, choice, console)


def _is_cuda(image: ImageInfo | None) -> bool:
    return image is not None and image.labels.get("reprobox.variant", "cuda") == "cuda"
