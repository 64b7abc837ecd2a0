"""The files an image is made of, found in a checkout or in the installed package, and the digest over them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from reprobox import __version__
from reprobox.errors import BuildError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Variant = Literal["cpu", "cuda"]

NORMALISER: Final = 2
"""Version of the canonical form of an image; a change of it changes every image id, so it is part of the input digest."""

_PACKAGE: Final = Path(__file__).resolve().parent.parent
_BOX_MODULES: Final = ("__init__.py", "errors.py", "knobs.py", "recipe.py")
_LOCKS: Final = "docker/locks"


def image_root(package: Path = _PACKAGE) -> Path:
    """Return the folder that holds ``Dockerfile`` and ``docker/``.

    That is ``reprobox/_image`` in an installed wheel and the parent of the package in a checkout.

    :raises BuildError: neither has a Dockerfile.
    """
    for folder in (package / "_image", package.parent):
        if (folder / "Dockerfile").is_file() and (folder / "docker").is_dir():
            return folder
    raise BuildError(
        f"the Dockerfile that belongs to this reprobox is not beside {package}",
        remedy="install reprobox again: this installation lacks its data files",
    )


def image_files(variant: Variant, *, package: Path = _PACKAGE, root: Path | None = None) -> dict[str, Path]:
    """Return the files of the build context, wheels apart, as sorted names in the context and where they lie.

    Of the locks only this variant's is among them, and ``docker/locks/base.txt`` where there is one.

    :raises BuildError: a file the Dockerfile copies is missing.
    """
    root = root or image_root(package)
    files = {"Dockerfile": root / "Dockerfile"}
    files.update(_tree(root / "docker", "docker", skip=_LOCKS))
    files[f"{_LOCKS}/{variant}.txt"] = root / _LOCKS / f"{variant}.txt"
    base = root / _LOCKS / "base.txt"
    if base.is_file():
        files[f"{_LOCKS}/base.txt"] = base
    files.update({f"reprobox/{name}": package / name for name in _BOX_MODULES})
    files.update({name: path for name, path in _tree(package / "box", "reprobox/box") if name.endswith(".py")})
    for name, path in files.items():
        if not path.is_file():
            raise BuildError(f"{name}, which the image is made of, is missing", remedy="install reprobox again")
    return dict(sorted(files.items()))


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """Everything an image is made of but its base and wheels, read once, so that name and content belong together."""

    variant: Variant
    files: Mapping[str, bytes]
    compiler: bool = True

    @classmethod
    def read(cls, variant: Variant, *, compiler: bool = True) -> ImageInput:
        """Read the files of ``variant`` (about thirty small ones); ``compiler`` False is for an image without one.

        :raises BuildError: this installation lacks one of them.
        """
        files = {name: path.read_bytes() for name, path in image_files(variant).items()}
        return cls(variant=variant, files=files, compiler=compiler)

    @cached_property
    def digest(self) -> str:
        """See :func:`input_digest`."""
        form = f"normaliser {NORMALISER}" if self.compiler else f"normaliser {NORMALISER}, no compiler"
        return digest_of(self.files, f"{__version__}, {form}")

    @property
    def tag(self) -> str:
        """See :func:`local_tag`."""
        return f"reprobox:{__version__.replace('+', '.')}-{self.variant}-{self.digest[:12]}"

    @property
    def lock(self) -> str:
        """Return the text of the hash-pinned list of wheels."""
        return self.files[f"{_LOCKS}/{self.variant}.txt"].decode()


def digest_of(files: Mapping[str, bytes], version: str) -> str:
    """Return the SHA-256, in hex, over the version and the names and contents of ``files``.

    Each part goes in with its length, so that no two sets of files can run together into the same bytes.
    """
    total = hashlib.sha256()
    parts = [("version", version.encode())]
    parts += sorted(files.items())
    for name, content in parts:
        total.update(f"{len(name.encode())}:{name}:{len(content)}:".encode())
        total.update(content)
    return total.hexdigest()


def input_digest(variant: Variant) -> str:
    """Return the SHA-256, in hex, over everything the image of ``variant`` is made of, base and wheels by their pins.

    :raises BuildError: this installation lacks one of the files.
    """
    return ImageInput.read(variant).digest


def local_tag(variant: Variant) -> str:
    """Return the name the local image of this version, variant and input has: ``reprobox:VERSION-VARIANT-INPUT12``.

    A ``+`` of a local version becomes ``.``, since a tag cannot hold one.
    """
    return ImageInput.read(variant).tag


def _tree(folder: Path, prefix: str, skip: str | None = None) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        name = f"{prefix}/{inside.as_posix()}"
        hidden = any(part.startswith(".") or part == "__pycache__" for part in inside.parts)
        if hidden or name.endswith("~") or not path.is_file() or (skip and name.startswith(f"{skip}/")):
            continue
        yield name, path
