"""What of a machine, an image and a recipe a self-test's bits can depend on, told without importing torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import reprobox.box.selftest
from reprobox import __version__
from reprobox.host import host_facts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reprobox.engines import EngineInfo, ImageInfo
    from reprobox.gpus import Gpu
    from reprobox.recipe import Recipe

__all__ = ["differences", "fingerprint", "is_certain", "relevant_environment"]

_RELEVANT = re.compile(
    r"PYTHONHASHSEED|(?:TORCH|TORCHINDUCTOR|PYTORCH|CUDA|CUBLAS|CUBLASLT|CUDNN|NCCL|NVIDIA|NVTE|OMP|MKL|OPENBLAS|KMP|GOMP|ATEN"
    r"|ONEDNN|DNNL|TRITON|FLASH|XLA|ACCELERATE)_\w+"
)
"""Variables that the libraries read: given with -e they go into the self-test's box and into its fingerprint."""

_SECRET = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|KEY(?!S)|AUTH")
"""No number depends on these (NVIDIA_API_KEY), and a certificate is a file that people send to each other."""

_LOADER = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH")
"""Variables by which this machine's own Python, which no image holds, may find other libraries."""


def relevant_environment(environment: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return what of ``environment`` the numbers can depend on."""
    return {
        name: environment[name]
        for name in sorted(environment)
        if _RELEVANT.fullmatch(name) and not _SECRET.search(name)
    }


def fingerprint(
    recipe: Recipe,
    environment: Mapping[str, str | None],
    image: ImageInfo | None,
    gpus: tuple[Gpu, ...],
    driver: str | None,
    engine: EngineInfo | None = None,
) -> dict[str, Any]:
    """Return the fingerprint: equal for two runs whose self-tests must give the same bits.

    :param environment: what the caller gave; without an image, what is inherited as well.
    :param engine: the engine of the box; it counts where its kernel or its machine is another.

    Seed and rank are not in it (the cases have a seed of their own), nor is the number of cores (threads are fixed).
    """
    host = host_facts()
    return {
        "reprobox": __version__,
        "image_id": None if image is None else image.image_id,
        "local": _local_python(environment) if image is None else None,
        "profile": str(recipe.profile),
        "threads": recipe.threads,
        "fill": recipe.fill,
        "portable": recipe.portable,
        "environment": relevant_environment(environment),
        "driver": driver,
        "gpus": [{"name": gpu.name, "uuid": gpu.uuid, "ecc": gpu.ecc, "mig": gpu.mig} for gpu in gpus],
        "machine": host["machine"],
        "cpu": host["cpu"],
        "isa": host["isa"],
        "microcode": host["microcode"],
        "kernel": host["kernel"],
        "engine": None if engine is None else _elsewhere(engine.details, host["kernel"]),
    }


def _elsewhere(details: Mapping[str, str], kernel: str) -> dict[str, str | None] | None:
    """Return on what kernel, and where it is known on what machine, an engine's boxes run that are not on this one."""
    theirs, machine = details.get("kernel") or kernel, details.get("host")
    if machine == platform.node() and theirs == kernel:
        machine = None
    return None if machine is None and theirs == kernel else {"kernel": theirs, "host": machine}


def _local_python(environment: Mapping[str, str | None]) -> dict[str, Any]:
    """Return which Python a command would find on this machine, what is installed for it, and which cases there are."""
    found = shutil.which("python") or shutil.which("python3") or ""
    names = [path.name for folder in _libraries(Path(found)) for path in sorted(folder.glob("*.dist-info"))]
    cases = b"".join(path.read_bytes() for path in sorted(Path(reprobox.box.selftest.__file__).parent.rglob("*.py")))
    return {
        "python": str(Path(found).resolve()),
        "packages": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "torch": next((name for name in names if name.startswith("torch-")), None),
        "cases": hashlib.sha256(cases).hexdigest(),
        "loader": {name: environment[name] for name in _LOADER if environment.get(name)},
    }


def is_certain(document: Mapping[str, Any]) -> bool:
    """Say whether a fingerprint holds enough for an earlier test to count.

    It does not where this machine's own torch was not found, and where the box is on another machine: the CPU that is in
    it is this one's.
    """
    if document["engine"] is not None and document["engine"]["host"] is not None:
        return False
    return document["local"] is None or document["local"]["torch"] is not None


def _libraries(python: Path) -> list[Path]:
    """Return the folders that ``python``, or the one that its venv is of, may have its packages in."""
    if not python.name:
        return []
    prefixes = [python.parent.parent, python.resolve().parent.parent, Path("/usr/local")]
    with contextlib.suppress(RuntimeError):  # a user without HOME and without a passwd entry
        prefixes.append(Path.home() / ".local")
    folders = [
        folder
        for prefix in prefixes
        for kind in ("site-packages", "dist-packages")
        for folder in sorted(prefix.glob(f"lib/python3*/{kind}"))
    ]
    return list(dict.fromkeys(folders))


def key(document: Mapping[str, Any]) -> str:
    """Return a fingerprint's name in the cache."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what two fingerprints say differently, by dotted name."""
    flat = [dict(_flat(document)) for document in (ours, theirs)]
    names = sorted(flat[0].keys() | flat[1].keys())
    return {name: (flat[0].get(name), flat[1].get(name)) for name in names if flat[0].get(name) != flat[1].get(name)}


def _flat(document: Any, prefix: str = "") -> list[tuple[str, Any]]:
    if isinstance(document, dict):
        return [
            pair for name, value in document.items() for pair in _flat(value, f"{prefix}.{name}" if prefix else name)
        ]
    return [(prefix, document)]
