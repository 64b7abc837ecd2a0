"""The image a run would take, and whether it is this version's."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, cast

from reprobox.doctor.check import Finding, ok, skipped, warn
from reprobox.errors import ImageNotFound
from reprobox.images.sources import ImageInput
from reprobox.runs.images import choose_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from reprobox.doctor.patient import Patient
    from reprobox.images import Variant

__all__ = ["cuda_of", "image", "is_cuda", "judge_lock", "lock", "own_lock"]


def image(patient: Patient) -> Finding:
    """Look whether the image is there that a run would take; nothing is pulled."""
    assert patient.engine is not None
    given: str | None = patient.settings.value("image")
    try:
        patient.reference, patient.image = choose_image(patient.engine, given, patient.variant)
    except ImageNotFound:
        if given is not None or patient.variant == "cpu":
            raise
        # As a run does that nobody asked for GPUs.
        patient.reference, patient.image = choose_image(patient.engine, None, "cpu")
        return warn(
            f"{patient.reference} computes on the CPU alone, and there is no other for this machine's GPUs",
            "build the other with `reprobox build --variant cuda`",
        )
    assert patient.image is not None
    labels = patient.image.labels
    if patient.gpus and not is_cuda(labels):
        return warn(
            f"{patient.reference} computes on the CPU alone, and this machine has GPUs",
            "choose a cuda image by --image",
        )
    return ok(f"{patient.reference}, torch {labels.get('reprobox.torch', 'of an unknown version')}")


def is_cuda(labels: Mapping[str, str]) -> bool:
    """Say whether an image with these labels computes on GPUs."""
    return labels.get("reprobox.variant", "cuda") == "cuda"


def lock(patient: Patient) -> Finding:
    """Look whether the image was made of the wheels that this version pins."""
    assert patient.image is not None
    return judge_lock(patient.image.labels, own_lock)


def own_lock(variant: Variant) -> str:
    """Return this installation's hash-pinned list of wheels.

    :raises BuildError: this installation lacks it.
    """
    return ImageInput.read(variant).lock


def judge_lock(labels: Mapping[str, str], read: Callable[[Variant], str]) -> Finding:
    """Judge an image's labels against the lock that ``read`` returns for a variant."""
    variant, made_of = labels.get("reprobox.variant"), labels.get("reprobox.lock")
    if variant not in ("cpu", "cuda") or made_of is None:
        return skipped("the image does not say what it was made of")
    ours = f"sha256:{hashlib.sha256(read(cast('Variant', variant)).encode()).hexdigest()}"
    if made_of == ours:
        return ok(f"the image was made of this version's {variant} lock ({ours[7:19]})")
    return warn(
        f"the image was made of another {variant} lock ({made_of.removeprefix('sha256:')[:12]}) than this version's "
        f"({ours[7:19]}), so bits may differ from those of reprobox's own image",
        "build this version's image with `reprobox build`, or go on using that one everywhere",
    )


def cuda_of(labels: Mapping[str, str], read: Callable[[Variant], str]) -> str | None:
    """Return the version of CUDA that an image was built for (``13.0``), or ``None`` where nothing tells it.

    PyTorch's own builds say it in their version (``2.9.1+cu128``); those of PyPI do not, and there the image's lock does,
    where it is the one that ``read`` returns: PyTorch takes its CUDA runtime from a wheel.
    """
    _, _, build = labels.get("reprobox.torch", "").partition("+cu")
    if build.isdigit() and len(build) >= 3:
        return f"{build[:-1]}.{build[-1]}"
    text = read("cuda")
    if labels.get("reprobox.lock") != f"sha256:{hashlib.sha256(text.encode()).hexdigest()}":
        return None
    for line in text.splitlines():
        name, _, rest = line.partition("==")
        if name.startswith("nvidia-cuda-runtime"):
            return ".".join(rest.split()[0].split(".")[:2])
    return None
