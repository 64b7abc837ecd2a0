"""Certificates: kept, found again by exactly what they were made on, refused when anything is wrong, and compared."""

from __future__ import annotations

import json
import math
import platform
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from reprobox.box import selftest
from reprobox.engines import EngineInfo, ImageInfo
from reprobox.errors import CertificateError
from reprobox.gpus import Gpu
from reprobox.recipe import Profile, Recipe
from reprobox.selftest import certificate as module
from reprobox.selftest.certificate import Certificate, Tolerance, compare, find, keep
from reprobox.selftest.fingerprint import fingerprint, is_certain, relevant_environment

RECIPE = Recipe(seed=1)
IMAGE = ImageInfo(engine_id="sha256:e", image_id="sha256:i", repo_digests=(), labels={})


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "reprobox" / "certificates"


def gpu(index=0, **fields):
    return Gpu(**{"index": index, "uuid": f"GPU-{index}", "name": "H200", "ecc": True, "mig": False, **fields})


def made_on(recipe=RECIPE, environment=None, image=IMAGE, gpus=(), driver=None, engine=None):
    return fingerprint(recipe, environment or {}, image, gpus, driver, engine)


def engine(kernel=None, **details):
    return EngineInfo(name="docker", version="1", details={"kernel": kernel or platform.release(), **details})


def case(name="matmul", value=1.0, **fields):
    numbers = {"norm": value.hex(), "max_abs": value.hex(), "sample": [value.hex()] * 16}
    digest = f"{hash((name, str(value))) & (1 << 64) - 1:032x}"
    base = {"name": name, "device": "cpu", "dtype": "float32", "verdict": "same", "ms": 1.0, "digest": digest}
    return {**base, **numbers, **fields}


def certificate(*cases, on=None, tier="start", threads=4):
    document = {"passed": True, "tier": tier, "cases": list(cases or [case()]), "fingerprint": {"threads": threads}}
    return Certificate.of(document, made_on() if on is None else on)


# --- kept and found again ---------------------------------------------------------------------------------------------


def test_a_certificate_is_read_as_it_was_written(tmp_path):
    made = certificate(case(), case("nan", math.nan), case("inf", math.inf), case("none", verdict="unsupported"))
    made.save(tmp_path / "c.json")
    assert Certificate.read(tmp_path / "c.json") == made


def test_what_is_kept_is_found_for_the_same_fingerprint(home):
    assert find(made_on()) is None
    keep(certificate())
    assert find(made_on()) == certificate_in(home)
    keep(certificate(case("other")))
    assert find(made_on()).cases[0]["name"] == "other"


def certificate_in(home):
    return Certificate.read(next(home.iterdir()))


OTHERS = {
    "recipe": [
        replace(RECIPE, profile=Profile.WARN),
        replace(RECIPE, threads=3),
        replace(RECIPE, fill=False),
        replace(RECIPE, portable=True),
    ],
    "environment": [{"OMP_NUM_THREADS": "3"}, {"NCCL_DEBUG": "INFO"}, {"CUDA_VISIBLE_DEVICES": None}],
    "image": [None, replace(IMAGE, image_id="sha256:j")],
    "gpus": [(gpu(),), (gpu(1),), (gpu(ecc=False),), (gpu(mig=True),), (gpu(name="A100"),), (gpu(), gpu(1))],
    "driver": ["580.1"],
    "engine": [engine("6.0-vm"), engine(host="another"), engine("6.0-vm", host="another")],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in OTHERS.items() for v in values])
def test_nothing_is_found_for_anything_else_that_the_bits_may_depend_on(field, value):
    mine, other = made_on(), made_on(**{field: value})
    keep(certificate())
    assert find(other) is None
    keep(certificate(on=other))
    assert find(other).fingerprint == other
    assert find(mine).fingerprint == mine


@pytest.mark.parametrize("field", list(made_on()))
def test_each_field_of_the_fingerprint_counts(field):
    keep(certificate())
    assert find({**made_on(), field: "another"}) is None
    assert find({k: v for k, v in made_on().items() if k != field}) is None


@pytest.mark.parametrize("here", [engine(), engine(host=platform.node()), EngineInfo(name="local", version="1")])
def test_an_engine_of_this_machine_does_not_count(here):
    keep(certificate())
    assert find(made_on(engine=here)) is not None


@pytest.mark.parametrize(
    ("there", "certain"), [(engine(), True), (engine("6.0-vm"), True), (engine(host="another"), False)]
)
def test_no_certificate_is_trusted_of_an_engine_on_another_machine(there, certain):
    """The CPU in the fingerprint is that of the command line's machine."""
    assert is_certain(made_on(engine=there)) is certain


def test_seed_rank_and_what_no_library_reads_do_not_count():
    keep(certificate())
    same = made_on(replace(RECIPE, seed=7), {"LR": "0.1", "WANDB_PROJECT": "x"})
    assert find(same) is not None


def test_no_secret_is_in_a_fingerprint():
    given = {
        "NVIDIA_API_KEY": "s",
        "TORCH_HUB_TOKEN": "s",
        "NVIDIA_SECRET": "s",
        "OMP_NUM_THREADS": "2",
        "KMP_AFFINITY": "x",
    }
    assert relevant_environment(given) == {"KMP_AFFINITY": "x", "OMP_NUM_THREADS": "2"}


def test_the_local_fingerprint_follows_the_python_its_packages_and_its_libraries(tmp_path, monkeypatch):
    def python(name, *packages):
        folder = tmp_path / name / "lib" / "python3.11" / "site-packages"
        for package in packages:
            (folder / f"{package}.dist-info").mkdir(parents=True)
        binary = tmp_path / name / "bin" / "python"
        binary.parent.mkdir(parents=True)
        binary.touch(mode=0o755)
        monkeypatch.setenv("PATH", str(binary.parent))
        return made_on(image=None)

    monkeypatch.setenv("HOME", str(tmp_path))
    one, two = python("one", "torch-2.13.0"), python("two", "torch-2.14.0")
    assert (one["local"]["torch"], two["local"]["torch"]) == ("torch-2.13.0.dist-info", "torch-2.14.0.dist-info")
    assert one["local"]["packages"] != two["local"]["packages"]
    assert made_on(image=None) == two
    assert made_on(image=None, environment={"LD_PRELOAD": "/lib/omp.so"}) != two
    assert is_certain(two)
    assert is_certain(made_on())
    assert not is_certain(python("three", "numpy-2.0")), "a torch that is not found may change unseen"


@pytest.mark.parametrize("name", ["runner.py", "cases/table.py", "cases/scatter_gather.py"])
def test_the_local_fingerprint_follows_the_self_tests_own_code(tmp_path, monkeypatch, name):
    copy = shutil.copytree(Path(selftest.__file__).parent, tmp_path / "selftest")
    monkeypatch.setattr(selftest, "__file__", str(copy / "__init__.py"))
    before = made_on(image=None)
    assert made_on(image=None) == before
    (copy / name).write_text((copy / name).read_text() + "# changed\n")
    assert made_on(image=None) != before


def test_full_satisfies_start_and_start_does_not_satisfy_full():
    keep(certificate(tier="start"))
    assert find(made_on(), "full") is None
    keep(certificate(case("more"), tier="full"))
    assert find(made_on(), "full").tier == "full"
    assert find(made_on(), "start").tier == "full"


def test_one_of_a_few_chosen_cases_is_never_kept(home):
    keep(certificate(tier="custom"))
    assert not home.exists()


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(CertificateError, match="cannot be made"):
        keep(certificate())
    assert find(made_on()) is None


# --- refused ----------------------------------------------------------------------------------------------------------

WRONG = [
    *(("top", field, None) for field in ("schema", "fingerprint", "box", "tier", "date", "cases")),
    ("top", "schema", "reprobox.certificate/0"),
    ("top", "schema", "reprobox.certificate/2"),
    ("top", "fingerprint", []),
    ("top", "box", "torch"),
    ("top", "tier", "whole"),
    ("top", "date", "yesterday"),
    ("top", "date", 20200220),
    ("top", "cases", []),
    ("top", "cases", {}),
    ("top", "cases", ["matmul"]),
    ("top", "cases", [None]),
    *(
        ("case", f, v)
        for f in ("name", "device", "dtype", "verdict", "digest", "norm", "max_abs", "sample")
        for v in (None, 5, [], {}, "x")
    ),
    *(("case", "verdict", v) for v in ("error", "passed", "different")),
    *(("case", "digest", v) for v in ("0" * 31, "0" * 33, "g" * 32, "A" * 32, " " * 32)),
    *(("case", f, v) for f in ("norm", "max_abs") for v in ("0x", "1.0", True, 1.5, "0x1p99999", " 0x1.0p+0")),
    *(
        ("case", "sample", v)
        for v in (["0x1.0p+0"] * 15, ["0x1.0p+0"] * 17, ["x"] * 16, "0" * 16, [None] * 16, [1.0] * 16)
    ),
]
HARMLESS = [("case", field, "x") for field in ("name", "device", "dtype")]


@pytest.mark.parametrize(("where", "field", "value"), [w for w in WRONG if w not in HARMLESS])
def test_a_corrupted_field_is_refused_and_never_used(home, where, field, value):
    keep(certificate())
    (path,) = home.iterdir()
    document = json.loads(path.read_text())
    (document if where == "top" else document["cases"][0])[field] = value
    path.write_text(json.dumps(document))
    with pytest.raises(CertificateError, match="no certificate of this reprobox"):
        Certificate.read(path)
    assert find(made_on()) is None


@pytest.mark.parametrize("text", ["", "null", "[]", "5", '"x"', "{}", "{" * 100_000, "\x00", '{"schema": 1e999}'])
def test_what_is_no_certificate_is_refused(home, text):
    keep(certificate())
    (path,) = home.iterdir()
    path.write_text(text)
    with pytest.raises(CertificateError):
        Certificate.read(path)
    assert find(made_on()) is None


def test_a_file_cut_at_any_byte_is_refused(home):
    keep(certificate())
    (path,) = home.iterdir()
    whole = path.read_bytes()
    for length in range(len(whole) - 1):  # the last is the final newline
        path.write_bytes(whole[:length])
        assert find(made_on()) is None, length
    path.write_bytes(whole)
    assert find(made_on()) is not None


def test_bytes_that_are_no_text_are_refused(home):
    keep(certificate())
    (path,) = home.iterdir()
    path.write_bytes(b"\xff" + path.read_bytes())
    assert find(made_on()) is None


def test_one_of_another_fingerprint_under_this_name_is_passed_over(home):
    keep(certificate())
    (path,) = home.iterdir()
    certificate(on=made_on(driver="580.1")).save(path)
    assert find(made_on()) is None


def test_one_of_another_tier_under_this_name_is_passed_over(home):
    keep(certificate())
    (path,) = home.iterdir()
    certificate(tier="custom").save(path)
    assert find(made_on()) is None


@pytest.mark.parametrize("document", [{"passed": False, "cases": [case()]}, {}])
def test_a_test_that_failed_has_no_certificate(document):
    with pytest.raises(CertificateError, match="failed"):
        Certificate.of({"fingerprint": {}, "tier": "full", **document}, made_on())


def test_a_case_that_differs_is_a_failure_under_strict_alone():
    warn = made_on(replace(RECIPE, profile=Profile.WARN))
    assert certificate(case(verdict="different"), on=warn).cases[0]["verdict"] == "different"
    with pytest.raises(CertificateError, match="failed"):
        certificate(case(verdict="different"))


@pytest.mark.parametrize("path", ["missing.json", ".", "no/such"])
def test_a_file_that_is_not_there_is_a_sentence(tmp_path, path):
    with pytest.raises(CertificateError, match="cannot be read"):
        Certificate.read(tmp_path / path)
    if path != "missing.json":
        with pytest.raises(CertificateError, match="cannot be written"):
            certificate().save(tmp_path / path)


# --- compared ---------------------------------------------------------------------------------------------------------


def row(mine, other, **tolerance):
    (found,) = compare(certificate(mine), certificate(other), Tolerance(**tolerance)).cases
    assert found[0] == "matmul[float32] cpu"
    return found[1:]


def test_the_same_digest_agrees_and_another_differs():
    assert row(case(), case()) == ("agree", 0.0)
    assert row(case(), case(value=1.5)) == ("differ", 0.5)


def test_unequal_tensors_whose_kept_numbers_are_equal_differ_unless_a_tolerance_is_given():
    other = case(digest="f" * 32)
    assert row(case(), other) == ("differ", 0.0)
    assert row(case(), other, atol=1e-9) == ("close", 0.0)


@pytest.mark.parametrize(
    ("tolerance", "agreement"),
    [
        ({"atol": 0.5}, "close"),
        ({"atol": 0.49}, "differ"),
        ({"rtol": 0.34}, "close"),
        ({"rtol": 0.33}, "differ"),  # relative to theirs: 0.5 / 1.5
        ({"atol": 0.25, "rtol": 0.2}, "close"),
        ({"atol": 0.1, "rtol": 0.2}, "differ"),
    ],
)
def test_close_is_atol_and_rtol_of_theirs(tolerance, agreement):
    assert row(case(value=1.0), case(value=1.5), **tolerance) == (agreement, 0.5)


@pytest.mark.parametrize("field", ["norm", "max_abs", "sample"])
def test_one_number_too_far_differs(field):
    far = (3.0).hex()
    other = case(digest="f" * 32, **{field: [(1.0).hex()] * 15 + [far] if field == "sample" else far})
    assert row(case(), other, atol=1.0) == ("differ", 2.0)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("mine", "other", "expected"),
    [
        (NAN, NAN, ("close", 0.0)),
        (INF, INF, ("close", 0.0)),
        (-INF, INF, ("differ", INF)),
        (NAN, 1.0, ("differ", INF)),
        (1.0, NAN, ("differ", INF)),
        (NAN, INF, ("differ", INF)),
        (INF, 1.0, ("differ", INF)),
        (1.0, INF, ("differ", INF)),
        (1.7e308, -1.7e308, ("differ", INF)),
    ],
)
def test_what_is_not_a_number_is_close_to_itself_alone(mine, other, expected):
    ours, theirs = case(value=mine), {**case(value=other), "digest": "f" * 32}
    assert row(ours, theirs, atol=1.0, rtol=1.0) == expected
    found = compare(certificate(ours), certificate(theirs), Tolerance(atol=1.0)).to_json()
    json.loads(json.dumps(found, allow_nan=False))


def test_unsupported_on_both_sides_is_no_difference_and_on_one_it_is():
    none = case(verdict="unsupported")
    assert row(none, none) == ("unsupported", None)
    assert row(none, case()) == row(case(), none) == ("differ", None)


def test_cases_of_one_side_are_told_and_are_no_difference():
    ours, theirs = certificate(case("a"), case("b")), certificate(case("b"), case("c"))
    found = compare(ours, theirs)
    assert [r[:2] for r in found.cases] == [
        ("a[float32] cpu", "only here"),
        ("b[float32] cpu", "agree"),
        ("c[float32] cpu", "only there"),
    ]
    assert not found.differs


def test_dtypes_and_devices_are_cases_of_their_own():
    ours = certificate(case(), case(dtype="bfloat16"), case(device="cuda:1"))
    assert {agreement for _, agreement, _ in compare(ours, ours).cases} == {"agree"}
    assert len(compare(ours, ours).cases) == 3


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        (case(), False),
        (case(value=1.25), False),
        (case(value=9.0), True),
        (case(verdict="unsupported"), True),
    ],
)
def test_only_a_case_that_differs_makes_a_difference(other, differs):
    found = compare(certificate(case()), certificate(other), Tolerance(atol=0.5))
    assert found.differs is found.to_json()["differs"] is differs


def test_two_with_no_case_in_common_show_nothing_and_are_refused():
    with pytest.raises(CertificateError, match=r"no case in common \(here on cpu, there on cuda:0\); make both"):
        compare(certificate(case()), certificate(case(device="cuda:0")))


def test_what_the_two_were_made_on_is_told_by_name():
    one, two = made_on(), made_on(replace(RECIPE, threads=2), {"MKL_CBWR": "AVX2"}, driver="580.1")
    found = compare(certificate(on=one), certificate(on=two, threads=2))
    assert found.fingerprints == {
        "box.threads": (4, 2),
        "driver": (None, "580.1"),
        "environment.MKL_CBWR": (None, "AVX2"),
        "threads": (4, 2),
    }
    assert found.to_json()["fingerprint_differences"]["threads"] == [4, 2]
    assert compare(certificate(), certificate()).fingerprints == {}


def test_the_number_of_samples_is_the_measures():
    text = (module.Path(module.__file__).parents[1] / "box" / "selftest" / "measure.py").read_text()
    assert f"POSITIONS = {module.SAMPLES}\n" in text  # its module takes torch
