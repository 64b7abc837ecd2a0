"""Write a lock from a folder of wheels: ``python docker/locks/relock.py WHEELS > docker/locks/cpu.txt``.

The folder holds one wheel per distribution, as ``pip download`` leaves it; each is pinned by its exact version (the
local part, ``+cpu``, included) and the SHA-256 of the file. Nothing of where a wheel came from is written: content is
what the lock names, and where to fetch it is each machine's own configuration.

To move to a new torch: ``pip download --only-binary :all: --dest WHEELS torch==VERSION``, look at what came down, run
this, and commit the lock.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

HEADER = """\
# Python packages of the reprobox image: CPython 3.11, Linux x86_64. Written by docker/locks/relock.py; do not edit.
"""


def main() -> int:
    """Print the lock of the folder named on the command line; exit status 1 when the folder cannot be locked."""
    parser = argparse.ArgumentParser(description="Write a hash-pinned lock from a folder of wheels.")
    parser.add_argument("wheels", type=Path, help="folder with one wheel per distribution")
    folder: Path = parser.parse_args().wheels

    lines: dict[str, str] = {}
    for wheel in sorted(folder.glob("*.whl")):
        try:
            raw_name, version, _build, _tags = parse_wheel_filename(wheel.name)
        except InvalidWheelFilename as error:
            print(f"relock: {error}", file=sys.stderr)
            return 1
        name = canonicalize_name(raw_name)
        if name in lines:
            print(f"relock: two wheels of {name} in {folder}; keep the one that is meant", file=sys.stderr)
            return 1
        with wheel.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        lines[name] = f"{name}=={version} --hash=sha256:{digest}\n"
    if not lines:
        print(f"relock: no wheel in {folder}", file=sys.stderr)
        return 1
    sys.stdout.write(HEADER + "".join(lines[name] for name in sorted(lines)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
