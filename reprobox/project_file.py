"""The project file, ``reprobox.toml`` or ``[tool.reprobox]``: its keys in one table, and what it says of the image.

The keys of settings (``seed``, ``gpus``, …) are those of ``settings.py``; here are the others, which no flag of ``run``
carries. The shipped JSON schema and the file that ``reprobox init`` writes are made from both tables.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from reprobox.errors import UsageError, near_miss
from reprobox.files import read_at_most

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["PROJECT_KEYS", "ProjectFile", "ProjectKey", "project_file_path", "read_project_table"]

_LARGEST: Final = 1 << 20
_VARIANTS: Final = ("cpu", "cuda")
_DEBIAN_NAME: Final = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_PYTHON_NAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class ProjectKey:
    """One key of the project file that is no setting.

    :param parse: takes the value and the key's name; raises UsageError.
    :param schema: the value's JSON schema; ``example``: lines of TOML for ``reprobox init``.
    """

    name: str
    default: object
    parse: Callable[[object, str], Any]
    help: str
    schema: Mapping[str, object]
    example: str


def _texts(value: object, name: str, what: str, grammar: re.Pattern[str] | None = None) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) and one for one in value):
        raise UsageError(f"{name} has to be a list of texts, and is {_kind(value)}", remedy=f"give {what}")
    for one in value:
        if grammar and not grammar.fullmatch(one):
            raise UsageError(f"{name} cannot hold {one!r}", remedy=f"give {what}")
    return tuple(value)


def _variant(value: object, name: str) -> str:
    if value not in _VARIANTS:
        close = near_miss(value, _VARIANTS) if isinstance(value, str) else ""
        raise UsageError(
            f"{name} cannot be {value!r}{close}", remedy="give cpu or cuda; without the key both are locked"
        )
    return str(value)


def _python(value: object, name: str) -> str | tuple[str, ...]:
    if isinstance(value, str) and value:
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise UsageError(f"{name} cannot be {value!r}", remedy="name a file inside the project")
        return value
    return _texts(value, name, 'a list of requirements (["einops>=0.8"]) or the name of the file that lists them')


def _environment(value: object, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise UsageError(f"{name} has to be a table, and is {_kind(value)}", remedy='give { NAME = "value" }')
    for key, text in value.items():
        if not _VARIABLE.fullmatch(key):
            raise UsageError(f"{name} cannot hold {key!r}: it is no variable's name", remedy='give { NAME = "value" }')
        if not isinstance(text, str):
            raise UsageError(f"{name}.{key} has to be a text, and is {_kind(text)}", remedy=f'give {key} = "value"')
    return dict(value)


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), f"a {type(value).__name__}")


_LIST_OF_TEXTS: Final = {"type": "array", "items": {"type": "string", "minLength": 1}}

PROJECT_KEYS: tuple[ProjectKey, ...] = (
    ProjectKey(
        name="variant",
        default=None,
        parse=_variant,
        help="image to lock: cpu, or cuda for NVIDIA GPUs; both by default",
        schema={"enum": list(_VARIANTS)},
        example='variant = "cpu"',
    ),
    ProjectKey(
        name="python",
        default=(),
        parse=_python,
        help="Python packages: a list of requirements, or a requirements file, pyproject.toml, uv.lock or pylock.toml",
        schema={"anyOf": [{"type": "string", "minLength": 1}, _LIST_OF_TEXTS]},
        example='python = ["einops>=0.8"]',
    ),
    ProjectKey(
        name="allow-sdist",
        default=(),
        parse=lambda value, name: _texts(value, name, 'names of Python packages (["antlr4"])', _PYTHON_NAME),
        help="Python packages whose source may be taken and built in the box; wheels only by default",
        schema=_LIST_OF_TEXTS,
        example='allow-sdist = ["some-package"]',
    ),
    ProjectKey(
        name="apt",
        default=(),
        parse=lambda value, name: _texts(value, name, 'names of Debian packages (["git"])', _DEBIAN_NAME),
        help="Debian packages beside the image's own",
        schema={"type": "array", "items": {"type": "string", "pattern": f"^{_DEBIAN_NAME.pattern}$"}},
        example='apt = ["libsndfile1"]',
    ),
    ProjectKey(
        name="mounts",
        default=(),
        parse=lambda value, name: _texts(value, name, 'what -v takes (["/data/imagenet:/data:ro"])'),
        help="folders the box is given, written as for -v; a relative source counts from the project",
        schema=_LIST_OF_TEXTS,
        example='mounts = ["/data/imagenet:/data:ro"]',
    ),
    ProjectKey(
        name="environment",
        default={},
        parse=_environment,
        help="environment variables of the command; -e wins",
        schema={
            "type": "object",
            "propertyNames": {"pattern": f"^{_VARIABLE.pattern}$"},
            "additionalProperties": {"type": "string"},
        },
        example='environment = { TOKENIZERS_PARALLELISM = "false" }',
    ),
    ProjectKey(
        name="outputs",
        default=(),
        parse=lambda value, name: _texts(value, name, 'files or folders of the project (["weights.pt"])'),
        help="files and folders whose hashes every run records, as with --output",
        schema=_LIST_OF_TEXTS,
        example='outputs = ["weights.pt"]',
    ),
)
"""Every key of the project file that is no setting."""


@dataclass(frozen=True, kw_only=True)
class ProjectFile:
    """What the project file says beside settings; every field has the meaning of the key of its name."""

    variant: Literal["cpu", "cuda"] | None = None
    python: str | tuple[str, ...] = ()
    allow_sdist: tuple[str, ...] = ()
    apt: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    environment: Mapping[str, str]
    outputs: tuple[str, ...] = ()

    @classmethod
    def parse(cls, table: Mapping[str, object]) -> ProjectFile:
        """Take the keys of this table that are no settings. :raises UsageError: for a bad value, naming its key."""
        values = {
            key.name.replace("-", "_"): key.parse(table[key.name], key.name) if key.name in table else key.default
            for key in PROJECT_KEYS
        }
        return cls(**cast("dict[str, Any]", values))

    @classmethod
    def load(cls, root: Path, *, settings: Iterable[str]) -> ProjectFile:
        """Read the project file at ``root``; ``settings`` are the keys that settings have.

        :raises UsageError: for an unknown key or a bad value.
        """
        return cls.parse(read_project_table(root, settings))


def project_file_path(root: Path) -> Path:
    """Return the path of the project file at ``root``: ``reprobox.toml`` alone counts where it exists."""
    own = root / "reprobox.toml"
    return own if own.is_file() else root / "pyproject.toml"


def read_project_table(root: Path, settings: Iterable[str]) -> dict[str, object]:
    """Return the keys of the project file at ``root``, not yet parsed; empty where there is none.

    :param settings: the keys that settings have.
    :raises UsageError: it cannot be read, is no TOML, or has a key that is neither theirs nor of :data:`PROJECT_KEYS`.
    """
    path = project_file_path(root)
    shared = path.name == "pyproject.toml"
    if not path.is_file():
        return {}
    try:
        document: dict[str, Any] = tomllib.loads(read_at_most(path, _LARGEST).decode())
    except (OSError, ValueError, RecursionError) as error:  # a number too long or nesting too deep is no TOML error
        if shared:
            return {}  # a pyproject.toml that is not TOML is for others to complain about
        what = "cannot be read" if isinstance(error, OSError) else "is not valid TOML"
        raise UsageError(f"{path} {what} ({error})", remedy="correct it") from error
    table: Any = document
    if shared:
        tool = document.get("tool")
        table = tool.get("reprobox", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise UsageError(
            f"tool.reprobox in {path} is no table", remedy="write it as [tool.reprobox] and KEY = VALUE lines"
        )
    keys = [*settings, *(key.name for key in PROJECT_KEYS)]
    for key in table:
        if key not in keys:
            raise UsageError(
                f"{path} has the unknown key {key!r}{near_miss(key, keys)}", remedy=f"the keys are {', '.join(keys)}"
            )
    return table
