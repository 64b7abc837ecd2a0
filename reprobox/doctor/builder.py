"""The builder: who would carry out `reprobox build`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reprobox.doctor.check import Finding, ok, warn

if TYPE_CHECKING:
    from reprobox.doctor.patient import Patient
    from reprobox.errors import BuildError

__all__ = ["builder", "judge_builder"]


def builder(patient: Patient) -> Finding:
    """Look who would build: the engine's own builder, or BuildKit through a docker program of this machine."""
    from reprobox.engines.builders import buildkit_client
    from reprobox.errors import BuildError

    assert patient.facts is not None
    assert patient.engine is not None
    if version := patient.facts.said.get("BuildahVersion"):
        return ok(f"Podman's own (Buildah {version})")
    refused = patient.engine.refuses_builds()
    try:
        return judge_builder(refused, buildkit_client())
    except BuildError as error:
        return judge_builder(refused, error)


def judge_builder(refused: str | None, buildkit: tuple[str, str | None] | BuildError) -> Finding:
    """Judge what there is to build with.

    :param refused: why the engine does not build with its classic builder; ``None`` where it does.
    :param buildkit: the docker program that speaks BuildKit and the version of its buildx (``None``: by itself), or why
        there is none.
    """
    if isinstance(buildkit, tuple):
        program, buildx = buildkit
        way = f"BuildKit through buildx {buildx} ({program})" if buildx else f"BuildKit through {program} itself"
        without = None
    else:
        way, without = buildkit.message, buildkit.remedy
    if refused is None:
        return ok(f"the engine's classic builder; {way}")
    seen = f"{way}; the engine refuses its classic builder ({refused})"
    return warn(f"{seen}: `reprobox build` cannot work", without) if without else ok(seen)
