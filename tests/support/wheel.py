"""Small wheels, made here, and their entries of a lock."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import zipfile

from reprobox.images.lockmodel import LockedSdist, LockedWheel


def make_wheel(folder, name, files, *, version="1.0", scripts=()):
    """Write a wheel of these files and return its entry of a lock."""
    info = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if scripts:
        content[f"{info}/entry_points.txt"] = "[console_scripts]\n" + "".join(f"{line}\n" for line in scripts)
    record = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{path},sha256={digest},{len(text.encode())}")
    content[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inside, text in content.items():
            archive.writestr(inside, text)
    return LockedWheel(
        name=name,
        version=version,
        file=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        variants=("cpu", "cuda"),
        platforms=("x86_64", "aarch64"),
    )


def make_sdist(folder, name, files, *, version="1.0", backend="setuptools.build_meta"):
    """Write a source distribution of these files and return its entry of a lock."""
    top = f"{name}-{version}"
    content = {
        **files,
        "pyproject.toml": f'[build-system]\nrequires = []\nbuild-backend = "{backend}"\n',
        "PKG-INFO": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    }
    path = folder / f"{top}.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for inside, text in content.items():
            entry = tarfile.TarInfo(f"{top}/{inside}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return LockedSdist(name=name, version=version, file=path.name, sha256=digest, variants=("cpu", "cuda"))
