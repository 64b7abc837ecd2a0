"""The record of a run: what was asked, on what, and how it ended (``reprobox.manifest/1``)."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from reprobox import __version__
from reprobox.engines import EngineName
from reprobox.git import ask_git
from reprobox.host import host_facts
from reprobox.runs.plan import options_to_json
from reprobox.runs.project_files import project_files
from reprobox.runs.redaction import redacted, redacted_words

if TYPE_CHECKING:
    from reprobox.engines import EngineInfo
    from reprobox.gpus import Inventory
    from reprobox.runs.plan import RunPlan

__all__ = ["SCHEMA", "Outcome", "first_manifest", "now"]

SCHEMA = "reprobox.manifest/1"


class Outcome(StrEnum):
    """How far a run has come, and how it ended."""

    PLANNED = "planned"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    """The command ran and ended by itself or by a signal; ``exit_code`` is its own."""
    OUT_OF_MEMORY = "out-of-memory"
    REFUSED = "refused"
    """The box refused: the stage says where; ``exit_code`` is reprobox's."""
    INTERRUPTED = "interrupted"
    """A signal came before the command was started."""
    FAILED = "failed"
    """The engine, or reprobox itself, failed."""
    ENGINE_STOPPED = "engine-stopped"
    """The engine went away while the command ran, and ended it; ``exit_code`` is what it did to the command."""
    LOST = "lost"
    """Nobody saw the end: reprobox was killed, and the box is gone."""


def now() -> str:
    """Return the time as the manifest writes it: UTC, RFC 3339, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def first_manifest(plan: RunPlan, engine: EngineInfo, inventory: Inventory) -> dict[str, Any]:
    """Return the manifest of a planned run: valid from its first moment, completed as the run goes on.

    Its inputs are hashed when it is on record and a signal can end it: there may be many.
    """
    request, box = plan.request, plan.box
    image = plan.image
    local = request.engine is EngineName.LOCAL
    return {
        "schema": SCHEMA,
        "id": plan.run_id,
        "reprobox": __version__,
        "command": redacted_words(request.command, request.secrets.values()),
        "directory": box.directory,
        "project": str(request.project.root),
        "recipe": {**plan.recipe.to_json(), "seed_was_drawn": plan.seed_was_drawn},
        "threads": plan.recipe.threads,
        "image": None
        if image is None
        else {
            "reference": request.image,
            "image_id": image.image_id,
            "engine_id": image.engine_id,
            "repo_digests": list(image.repo_digests),
            "base": image.labels.get("reprobox.base"),
            "lock": image.labels.get("reprobox.lock"),
            "torch": image.labels.get("reprobox.torch"),
        },
        "engine": {"name": engine.name, "version": engine.version, **engine.details},
        "host": host_facts(),
        "gpus": {
            "driver": inventory.driver,
            "cuda": inventory.cuda,
            "devices": [
                {"index": g.index, "uuid": g.uuid, "name": g.name, "ecc": g.ecc, "mig": g.mig} for g in request.gpus
            ],
        },
        "git": None if (checkout := ask_git(request.project.root)) is None else checkout.to_json(),
        "project_files": project_files(request.project.root),
        "project_file_changes": None,
        "environment": redacted(request.environment, request.secrets.values()),
        "secrets": sorted(request.secrets),
        "mounts": [
            {"source": m.source, "target": m.target, "read_only": m.read_only, "kind": m.kind} for m in box.mounts
        ],
        "caches": [str(folder) for folder in plan.caches],
        "network": None if local else box.network,
        "shm_bytes": None if local else box.shm_bytes,
        "user": box.user or f"{os.getuid()}:{os.getgid()}",
        "options": options_to_json(box, request.secrets.values()),
        "detached": request.detached,
        "self_test": None,
        "inputs": dict.fromkeys(request.inputs),
        "outputs": dict.fromkeys(request.outputs),
        "planned": now(),
        "start": None,
        "end": None,
        "outcome": str(Outcome.PLANNED),
        "stage": None,
        "exit_code": None,
        "exit_code_of": None,
        "message": None,
        "streams": None,
        "receipt": None,
    }
