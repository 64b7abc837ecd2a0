"""What is left out of the image's Python environment, and that a package's RECORD still lists exactly what is there."""

from __future__ import annotations

import csv
import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "trim-venv.py"
GONE = [
    "torch/test/Dict_test",
    "torch/bin/test_jit",
    "torch/bin/FileStoreTest",
    "torch/bin/protoc-3.13.0.0",
    "torch/lib/libtorchbind_test.so",
    "sympy/core/tests/test_args.py",
    "networkx/tests/test_all.py",
    "triton/backends/amd/lib/ocml.bc",
    "nvidia/cu13/lib/libcudart_static.a",
]
KEPT = [
    "torch/__init__.py",
    "torch/bin/torch_shm_manager",
    "torch/lib/libtorch_cpu.so",
    "torch/include/torch/test/x.h",
    "torch/testing/__init__.py",
    "sympy/testing/tests_of_mine.py",
    "triton/backends/amd/driver.py",
    "nvidia/cu13/lib/libcudart.so.13",
    "a,b/tests/odd name.py",
]


@pytest.fixture
def trimmed(tmp_path, monkeypatch):
    """The site-packages of an environment with one package that holds all these files, trimmed."""
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    record = site / "all-1.dist-info" / "RECORD"
    for name in (*GONE, *KEPT, "all-1.dist-info/RECORD"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name)
    with record.open("w", newline="") as out:
        rows = [[name, "sha256=x", "1"] for name in sorted((*GONE, *KEPT))]
        csv.writer(out, lineterminator="\n").writerows([*rows, ["all-1.dist-info/RECORD", "", ""]])
    monkeypatch.setattr("sys.argv", [str(SCRIPT), str(tmp_path)])
    runpy.run_path(str(SCRIPT))
    return site


def test_what_no_training_reads_goes_and_its_neighbours_stay(trimmed):
    there = {str(path.relative_to(trimmed)) for path in trimmed.rglob("*") if path.is_file()}
    assert there == {*KEPT, "all-1.dist-info/RECORD"}


def test_folders_that_are_empty_then_go(trimmed):
    assert [path for path in trimmed.rglob("*") if path.is_dir() and not any(path.iterdir())] == []


def test_the_record_lists_what_is_there(trimmed):
    with (trimmed / "all-1.dist-info" / "RECORD").open(newline="") as record:
        names = [row[0] for row in csv.reader(record)]
    assert names == [*sorted(KEPT), "all-1.dist-info/RECORD"]


def test_trimming_again_changes_nothing(trimmed):
    record = trimmed / "all-1.dist-info" / "RECORD"
    before = record.read_bytes()
    runpy.run_path(str(SCRIPT))
    assert record.read_bytes() == before
