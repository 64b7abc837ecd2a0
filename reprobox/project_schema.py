"""The project file's JSON schema, and the file that ``reprobox init`` writes, both made of the tables of its keys."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from reprobox.engines import EngineName
from reprobox.project_file import PROJECT_KEYS
from reprobox.recipe import Profile, RankSeeds, SelfTest
from reprobox.settings import SETTINGS, Setting

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["SCHEMA_ID", "project_schema", "schema_text", "shipped_schema", "suggestion", "template"]

SCHEMA_ID: Final = "reprobox.project/1"

_CHOICES: Final[dict[str, type[Any]]] = {
    "profile": Profile,
    "rank_seeds": RankSeeds,
    "engine": EngineName,
    "selftest": SelfTest,
}
_NUMBERS: Final = {"seed": (0, 2**32 - 1), "threads": (1, 1024)}
_EXAMPLES: Final = {
    "seed": "42",
    "threads": "8",
    "image": '"registry.example/team/train@sha256:…"',
    "gpus": '"auto:2,mem=20G"',
    "shm_size": '"8g"',
}


def project_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of ``reprobox.toml`` and of the table ``[tool.reprobox]``."""
    properties = {key.name: {"description": key.help, **key.schema} for key in PROJECT_KEYS}
    for setting in SETTINGS:
        properties[setting.name.replace("_", "-")] = {"description": setting.help, **_kind(setting)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "reprobox.toml",
        "description": "The project file of reprobox; the same keys are those of [tool.reprobox] in pyproject.toml.",
        "type": "object",
        "additionalProperties": False,
        "properties": dict(sorted(properties.items())),
    }


def schema_text() -> str:
    """Return the schema as it is shipped."""
    return json.dumps(project_schema(), indent=2) + "\n"


def shipped_schema() -> str:
    """Return the schema file of this installation."""
    return (files("reprobox") / "schemas" / "reprobox.schema.json").read_text(encoding="utf-8")


def template(suggested: dict[str, str] | None = None) -> str:
    """Return a project file with every key in a comment, but for those of ``suggested``: lines of TOML by key."""
    suggested = suggested or {}
    lines = [
        "# The project file of reprobox. Every key may be left out; what a comment shows is an example or the default.",
        "",
        "# What the images hold. After a change: reprobox lock",
        "",
    ]
    for key in PROJECT_KEYS:
        if key.name == "mounts":
            lines += ["# What every run is given, beside its own flags.", ""]
        lines += [f"# {key.help}", suggested.get(key.name, f"# {key.example}"), ""]
    lines += ["# Settings of a run; a flag or a REPROBOX_ variable wins over them.", ""]
    for setting in SETTINGS:
        key_name = setting.name.replace("_", "-")
        lines += [f"# {setting.help}", suggested.get(key_name, f"# {key_name} = {_example(setting)}"), ""]
    return "\n".join(lines).rstrip() + "\n"


def suggestion(folder: Path) -> dict[str, str]:
    """Return what the files of ``folder`` suggest: the list of Python packages that is already there."""
    for name in ("uv.lock", "pylock.toml", "requirements.txt"):
        if (folder / name).is_file():
            return {"python": f'python = "{name}"'}
    return {}


def _kind(setting: Setting[Any]) -> dict[str, Any]:
    if setting.name in _CHOICES:
        return {"enum": [str(choice) for choice in _CHOICES[setting.name]]}
    if setting.name in _NUMBERS:
        least, most = _NUMBERS[setting.name]
        return {
            "anyOf": [{"type": "integer", "minimum": least, "maximum": most}, {"type": "string", "pattern": "^[0-9]+$"}]
        }
    if isinstance(setting.default, bool):
        return {"anyOf": [{"type": "boolean"}, {"enum": ["on", "off"]}]}
    if setting.name in ("gpus", "shm_size"):
        return {"anyOf": [{"type": "string", "minLength": 1}, {"type": "integer", "minimum": 0}]}
    return {"type": "string", "minLength": 1}


def _example(setting: Setting[Any]) -> str:
    if setting.name in _EXAMPLES:
        return _EXAMPLES[setting.name]
    if isinstance(setting.default, bool):
        return str(setting.default).lower()
    return json.dumps(str(setting.default)) if setting.default is not None else '"…"'
