"""Take out of the environment what no training reads: trim-venv.py VENV.

Tests of packages, programs that only test torch, and static libraries. A package's RECORD loses the lines of what was
taken, so that it still lists exactly what is there. docs/images.md has what each weighs.
"""

import csv
import io
import re
import sys
from pathlib import Path

# Paths below site-packages. Headers stay, since extensions are built with them, and so does all of torch.testing, which
# torch itself imports.
LEFT_OUT = re.compile(
    r"""
    torch/test/.*
  | torch/bin/(test_[^/]*|[^/]*Test|protoc[^/]*)
  | torch/lib/lib(torchbind_test|backend_with_compiler|jitbackend_test|aoti_custom_ops)\.so
  | (sympy|networkx|mpmath)/(.*/)?tests/.*
  | triton/backends/amd/lib/.*
  | nvidia/.*\.a
    """,
    re.VERBOSE,
)


def main(venv: Path) -> None:
    """Trim every package that has a RECORD."""
    (site,) = venv.glob("lib/python3.*/site-packages")
    for record in sorted(site.glob("*.dist-info/RECORD")):
        rows = list(csv.reader(record.read_text(encoding="utf-8").splitlines()))
        gone = [row[0] for row in rows if LEFT_OUT.fullmatch(row[0])]
        if not gone:
            continue
        for name in gone:
            (site / name).unlink()
        for folder in sorted({parent for name in gone for parent in (site / name).parents}, reverse=True):
            if site in folder.parents and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        kept = io.StringIO()
        csv.writer(kept, lineterminator="\n").writerows(row for row in rows if row[0] not in set(gone))
        record.write_text(kept.getvalue(), encoding="utf-8")


main(Path(sys.argv[1]))
