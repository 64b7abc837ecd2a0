"""The self-test itself: its cases, what it finds, the knobs it reads back, and the faults it plants for itself."""

from __future__ import annotations

import argparse
import os
from types import SimpleNamespace

import pytest
import torch

from reprobox.box.selftest import canary, collective, measure, runner
from reprobox.box.selftest.case import Bench, Case
from reprobox.box.selftest.cases.table import CASES
from reprobox.recipe import Profile

pytestmark = [pytest.mark.torch, pytest.mark.local]
CPU = torch.device("cpu")

WANTED = """
matmul|matmul[bfloat16]|matmul[float16]|matmul tf32|matmul batched|matmul batched[bfloat16]|matmul batched[float16]
matmul skinny|matmul skinny[bfloat16]|fft|conv1d|conv2d|conv2d[bfloat16]|conv3d|conv transposed|batch norm|layer norm
linear before batch norm|conv before batch norm|lstm|gru|attention math|attention flash[bfloat16]
attention memory-efficient|attention cudnn[bfloat16]|embedding|embedding bag|scatter_add|index_add|index_put accumulate
gather|cumsum|cumsum[bfloat16]|sort with ties|topk|histc|bincount|kthvalue|median|interpolate nearest
interpolate bilinear|interpolate bicubic|grid_sample|max pool|adaptive pool|fractional pool|ctc loss|nll loss 2d|dropout
randn|randperm|multinomial|adamw foreach|adamw fused|training step|compiled block|data loader
""".replace("\n", "|")
WITHOUT_GRADIENT = {"histc", "bincount", "randn", "randperm", "multinomial", "data loader"}
SLOW = {"compiled block"}  # by the acceptance test of the whole self-test


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_every_case_by_a_name_of_its_own():
    wanted = {name if "[" in name else f"{name}[float32]" for name in WANTED.split("|") if name}
    assert {case.id for case in CASES} == wanted
    assert len(CASES) == len(wanted) >= 55
    assert collective.CASE.id not in wanted


def test_the_start_tier_is_small_and_neither_compiles_nor_starts_processes():
    start = {case.name for case in CASES if case.start}
    assert 10 <= sum(case.start for case in CASES) <= 15
    assert not start & {"compiled block", "data loader", collective.CASE.name}
    assert all(case.only is None for case in CASES if case.start)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.only != "cuda" and c.name not in SLOW], ids=lambda case: case.id
)
def test_a_case_gives_results_and_the_gradients_of_its_leaves(monkeypatch, deterministic, case):
    deterministic(Profile.STRICT)
    asked = []
    backward = Bench.backward

    def counted(self, output, *leaves):
        found = backward(self, output, *leaves)
        asked.extend(found[1:])
        assert [g.shape for g in found[1:]] == [leaf.shape for leaf in leaves]
        return found

    monkeypatch.setattr(Bench, "backward", counted)
    tensors = case.compute(CPU)
    assert all(tensor.numel() and not tensor.isnan().any() for tensor in tensors)
    if case.name.startswith("adamw") or case.name == "training step":
        assert all(tensor.dtype == torch.float32 for tensor in tensors)
    elif case.name not in WITHOUT_GRADIENT:
        assert asked
        assert all(gradient.abs().max() > 0 for gradient in asked)
    again = measure.measure(case.compute(CPU))
    assert again == measure.measure(tensors)
    float.fromhex(again.norm)
    assert len(again.sample) == measure.POSITIONS


def test_inputs_do_not_depend_on_the_global_generator():
    torch.manual_seed(1)
    one = Bench(CPU, torch.float32).values(5)
    torch.manual_seed(2)
    assert torch.equal(Bench(CPU, torch.float32).values(5), one)
    assert not torch.equal(Bench(CPU, torch.float32, seed=3).values(5), one)


def options(**given):
    return argparse.Namespace(**{"tier": "full", "repeat": 3, "cases": "", "quiet": True, **given})


@pytest.mark.parametrize(
    ("cases", "found"),
    [
        ("matmul", ["matmul[float32]", "matmul[bfloat16]", "matmul[float16]"]),
        ("matmul[bfloat16]", ["matmul[bfloat16]"]),
        ("attention *", ["attention math[float32]", "attention flash[bfloat16]"]),
        ("gru, fft", ["fft[float32]", "gru[float32]"]),
        ("*[float16]", ["matmul[float16]", "matmul batched[float16]"]),
        ("GRU", []),
    ],
)
def test_cases_are_chosen_by_name_full_name_or_pattern(cases, found):
    assert [case.id for case in runner._choose(options(cases=cases), "cpu")] == found


def test_the_tier_and_the_device_choose():
    assert all(case.start for case in runner._choose(options(tier="start"), "cpu"))
    assert "matmul tf32" not in {case.name for case in runner._choose(options(), "cpu")}
    assert {"matmul tf32", "data loader"} <= {case.name for case in runner._choose(options(), "cuda")}
    assert runner._is_chosen(collective.CASE, options(cases="all-*"))
    assert not runner._is_chosen(collective.CASE, options(cases="matmul"))


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.fixture
def deterministic():
    """Set PyTorch's own switch in this process, and put it back."""

    def choose(profile):
        torch.use_deterministic_algorithms(profile in (Profile.STRICT, Profile.WARN), warn_only=profile is Profile.WARN)

    yield choose
    torch.use_deterministic_algorithms(False)


def put(bench):
    """An op for which PyTorch has no deterministic implementation on any device."""
    x, index = bench.values(100), bench.integers(100, 50)
    return [x.put_(index, bench.values(50), accumulate=False)]


def alternating():
    calls = []

    def run(bench):
        calls.append(None)
        return [bench.values(100) + len(calls) % 2 * 1e-6]

    return run


def unseeded(bench):
    noise = torch.Generator().manual_seed(int.from_bytes(os.urandom(6), "little"))
    return [bench.values(100) + torch.rand(100, generator=noise) * 1e-6]


def alternating_and_told():
    run = alternating()
    return lambda bench: [*put(bench), *run(bench)]


def raising(message):
    def run(bench):
        raise RuntimeError(message)

    return run


def steady(bench):
    return [bench.values(100)]


def result_of(run, name="planted", second=None, repeat=3):
    result = runner._run(Case(name=name, run=run), CPU, repeat)
    if second is None:
        second = {result.key: result.digests[0]} if result.digests else {}
    runner._compare([result], second)
    return result


def failures(result, profile, **given):
    found = runner._document([result], [], [CPU], profile, options(**given))
    assert found["passed"] is not found["failures"]
    return found["failures"]


def test_what_is_steady_is_the_same_and_no_failure():
    result = result_of(steady)
    assert (result.verdict, result.message, len(result.digests)) == ("same", None, 3)
    assert failures(result, Profile.STRICT) == []


@pytest.mark.parametrize("run", [alternating(), unseeded])
def test_what_changes_within_a_process_is_found(run):
    result = result_of(run)
    assert result.verdict == "different"
    assert "repeats of one process" in result.message
    (failure,) = failures(result, Profile.STRICT)
    assert failure.startswith("planted[float32] cpu: ")
    assert failures(result, Profile.WARN)
    assert failures(result, Profile.FAST) == []


def test_what_changes_between_processes_is_found():
    result = result_of(steady, second={"planted[float32] cpu": "0" * 32})
    assert "another process" in result.message
    assert failures(result, Profile.STRICT)
    assert failures(result, Profile.FAST) == []


def test_what_another_process_cannot_compute_is_no_success():
    result = result_of(steady, second={})
    assert result.verdict == "different"
    assert failures(result, Profile.STRICT) == ["planted[float32] cpu: another process could not compute it"]


def test_what_changes_and_another_process_cannot_compute_is_found():
    assert result_of(alternating(), second={}).verdict == "different"


def test_an_op_without_a_deterministic_implementation_is_unsupported_under_strict(deterministic):
    deterministic(Profile.STRICT)
    result = result_of(put)
    assert result.verdict == "unsupported"
    assert "put_ does not have a deterministic implementation" in result.message
    assert failures(result, Profile.STRICT) == []
    assert result.to_json()["digest"] is None


def test_under_warn_it_is_measured_and_may_differ(deterministic):
    deterministic(Profile.WARN)
    same, different, silent = result_of(put), result_of(alternating_and_told()), result_of(alternating())
    assert (same.verdict, same.alerted) == ("same", True)
    assert (different.verdict, different.alerted) == ("different", True)
    assert failures(different, Profile.WARN) == []
    assert failures(different, Profile.STRICT)
    assert not silent.alerted
    assert failures(silent, Profile.WARN), "nothing had said that it may differ"


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        ("x_cuda does not have a deterministic implementation, but you set", "unsupported"),
        ("\"median\" not implemented for 'Half'", "unsupported"),
        ("No available kernel. Aborting execution.", "unsupported"),
        ("CUDA error: an illegal memory access was encountered", "error"),
        (
            "Deterministic behavior was enabled with ..., but this operation is not deterministic because it uses CuBLAS",
            "error",
        ),
    ],
)
def test_an_error_is_unsupported_only_where_pytorch_says_so(message, verdict):
    result = result_of(raising(message))
    assert (result.verdict, result.message) == (verdict, f"RuntimeError: {message}")
    for profile in (Profile.STRICT, Profile.WARN, Profile.FAST):
        assert bool(failures(result, profile)) is (verdict == "error")


def test_nothing_chosen_is_no_success():
    found = runner._document([], [], [CPU], Profile.STRICT, options(cases="nope"))
    assert found["failures"] == ["there is no case 'nope' on this machine", "no case was run"]


def test_a_pattern_that_means_no_case_is_named():
    result = result_of(steady, name="matmul")
    assert failures(result, Profile.STRICT, cases="matmul,convv2d") == ["there is no case 'convv2d' on this machine"]


# --- devices ----------------------------------------------------------------------------------------------------------


def with_gpus(monkeypatch, *uuids):
    gpus = [SimpleNamespace(uuid=uuid, multi_processor_count=132, major=9, minor=0) for uuid in uuids]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpus[device.index])
    return [torch.device(f"cuda:{index}") for index in range(len(gpus))] or [CPU]


@pytest.mark.parametrize(
    ("asked", "seen", "said"),
    [
        ("GPU-a,GPU-b", ["a", "b"], None),
        ("GPU-a", ["GPU-a"], None),
        ("0,1", ["a"], None),  # not by UUID: nothing to hold it against
        ("", [], None),
        (None, ["a"], None),
        ("GPU-a", [], "the GPUs seen are none, and those asked for GPU-a"),
        ("GPU-a,GPU-b", ["a"], "the GPUs seen are GPU-a, and those asked for GPU-a, GPU-b"),
        ("GPU-a,GPU-b", ["b", "a"], "the GPUs seen are GPU-b, GPU-a, and those asked for GPU-a, GPU-b"),
        ("GPU-a", ["c"], "the GPUs seen are GPU-c, and those asked for GPU-a"),
        ("", ["a"], "the GPUs seen are GPU-a, and those asked for none"),
        ("MIG-x", ["MIG-y"], "the GPUs seen are MIG-y, and those asked for MIG-x"),
    ],
)
def test_the_devices_are_those_asked_for(monkeypatch, asked, seen, said):
    if asked is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", asked)
    devices = with_gpus(monkeypatch, *seen)
    found = runner._document([result_of(steady)], [], devices, Profile.STRICT, options())
    assert found["failures"] == ([said] if said else [])


# --- canaries ---------------------------------------------------------------------------------------------------------


def field():
    return Bench(CPU, torch.float32).values(300, 257)


def test_each_planted_fault_changes_a_tensor_and_is_caught():
    clean = field()
    for plant in canary.CANARIES.values():
        assert not torch.equal(plant(clean), clean)
        assert torch.equal(clean, field()), "the tensor itself stays as it is"
    assert list(canary.CANARIES) == ["one ulp", "permutation", "unseeded draw"]
    for _ in range(5):
        assert canary.missed_canaries(clean) == []


@pytest.mark.parametrize(
    ("blind", "missed"),
    [
        (lambda tensors: "always", ["one ulp", "permutation", "unseeded draw"]),
        (lambda tensors: str(sorted(tensors[0].flatten().tolist())), ["permutation"]),
        (lambda tensors: f"{tensors[0].norm():.3f}", ["one ulp", "permutation"]),
        (lambda tensors: f"{float(tensors[0].double().sum()):.2f}", ["one ulp", "permutation"]),
        (lambda tensors: str(tensors[0].half().tolist()), ["one ulp"]),
        (lambda tensors: str(tensors[0].flatten()[:-1].tolist()), ["one ulp", "unseeded draw"]),
    ],
)
def test_a_comparison_that_is_blind_is_found_out(blind, missed):
    assert canary.missed_canaries(field(), blind) == missed


def test_the_digest_sees_every_bit_dtype_and_shape():
    x = torch.zeros(4)
    others = [-x, x.double(), x.reshape(2, 2), x[:3], torch.tensor([0, 0, 0, 1e-45]), x.to(torch.bfloat16), x.int()]
    digests = {measure.measure([tensor]).digest for tensor in [x, *others]}
    assert len(digests) == len(others) + 1
    one, two = torch.zeros(1), torch.ones(1)
    assert measure.measure([one, two]).digest != measure.measure([two, one]).digest


@pytest.mark.parametrize(
    "values", [[float("nan"), 1.0], [float("inf"), 1.0], [0.0], [1e300, 1e300], [1 + 2j], [True, False]]
)
def test_any_numbers_can_be_measured(values):
    found = measure.measure([torch.tensor(values, dtype=torch.float64 if isinstance(values[0], float) else None)])
    for text in (found.norm, found.max_abs, *found.sample):
        assert float.fromhex(text).hex() == text
