"""What each thing seen comes to, and what becomes of a check that breaks, hangs or needs another."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from reprobox.doctor import CHECKS, Check, Finding, Patient, Verdict, examine
from reprobox.doctor.box import judge_box
from reprobox.doctor.check import fail, ok, skipped, warn
from reprobox.doctor.engine import judge_cgroups, judge_space, judge_subordinate, judge_version
from reprobox.doctor.gpu import LEAST_DRIVER, judge_cuda, judge_driver, judge_reload, judge_toolkit
from reprobox.doctor.image import cuda_of, judge_lock, own_lock
from reprobox.doctor.machine import judge_clock, judge_git, judge_python, judge_shm
from reprobox.doctor.network import judge_proxies, judge_registry
from reprobox.doctor.patient import EngineFacts, gpus_to_use
from reprobox.engines import EngineInfo, ImageInfo
from reprobox.engines.fake import FakeEngine
from reprobox.errors import EngineError
from reprobox.gpus.inventory import Gpu, Inventory, MigInstance
from reprobox.settings import Settings

GIB = 1 << 30
GPU = Gpu(index=0, uuid="GPU-1", name="H100")


@pytest.fixture
def patient(tmp_path):
    return Patient(settings=Settings.load({}, tmp_path, {}), directory=tmp_path, environment={})


def found(patient, *checks, **options):
    return {check.name: finding for check, finding in examine(patient, checks, **options)}


# Carrying out


def test_a_check_that_breaks_is_a_failed_one_and_the_next_is_looked_at(patient):
    def breaks(_):
        raise ZeroDivisionError("of the check")

    answers = found(patient, Check(name="a", look=breaks), Check(name="b", look=lambda _: ok("well")))
    assert answers["a"].verdict is Verdict.FAIL
    assert "ZeroDivisionError: of the check" in answers["a"].seen
    assert answers["b"] == ok("well")


def test_an_error_of_ours_is_told_with_its_remedy(patient):
    def refuses(_):
        raise EngineError("it refuses", remedy="ask it nicely")

    assert found(patient, Check(name="a", look=refuses))["a"] == fail("it refuses", "ask it nicely")


def test_a_check_that_hangs_is_given_up_and_what_it_began_is_undone(patient):
    over = threading.Event()
    undone = []
    hangs = Check(
        name="a",
        look=lambda _: over.wait(30),
        seconds=0.2,
        hung=("nobody answers", "knock again"),
        undo=lambda _: undone.append(True),
    )
    began = time.monotonic()
    answer = found(patient, hangs)["a"]
    over.set()
    assert time.monotonic() - began < 5
    assert (answer.verdict, answer.remedy) == (Verdict.FAIL, "knock again")
    assert "nobody answers" in answer.seen
    assert undone == [True]


def test_a_check_that_was_given_up_has_no_say_when_its_undoing_ends_it(patient):
    over = threading.Event()

    def undo(_):
        over.set()
        time.sleep(0.3)

    hangs = Check(name="a", look=lambda _: (over.wait(30), ok("well"))[1], seconds=0.1, undo=undo)
    assert found(patient, hangs)["a"].verdict is Verdict.FAIL


def test_a_check_that_ends_is_not_undone(patient):
    undone = []
    found(patient, Check(name="a", look=lambda _: ok("well"), undo=lambda _: undone.append(True)))
    assert undone == []


def test_all_checks_together_have_a_limit_too(patient):
    over = threading.Event()
    hangs = [Check(name=name, look=lambda _: over.wait(30), seconds=5) for name in "abcd"]
    began = time.monotonic()
    answers = found(patient, *hangs, Check(name="e", look=lambda _: ok("well"), needs=("d",)), altogether=0.3)
    over.set()
    assert time.monotonic() - began < 5
    assert [answers[name].verdict for name in "abcde"] == ["fail", *["skipped"] * 4]
    assert "no time left" in answers["b"].seen
    assert answers["e"].seen == "needs d, which was not looked at"


def test_what_needs_a_failed_check_is_skipped_and_what_needs_a_warned_of_one_is_not(patient):
    checks = [
        Check(name="bad", look=lambda _: fail("broken")),
        Check(name="odd", look=lambda _: warn("odd")),
        Check(name="absent", look=lambda _: skipped("not here")),
        Check(name="a", look=lambda _: ok("well"), needs=("odd", "bad")),
        Check(name="b", look=lambda _: ok("well"), needs=("odd", "absent")),
        Check(name="c", look=lambda _: fail("never asked"), only=lambda _: "it has no such thing", needs=("bad",)),
    ]
    answers = found(patient, *checks)
    assert answers["a"] == skipped("needs bad, which failed")
    assert answers["b"] == ok("well")
    assert answers["c"] == skipped("it has no such thing")


def test_an_interruption_ends_it_at_once_and_undoes_what_was_begun(patient):
    over = threading.Event()
    undone = []

    def interrupt():
        raise KeyboardInterrupt

    hangs = Check(name="a", look=lambda _: over.wait(30), seconds=20, undo=lambda _: undone.append(True))
    with pytest.raises(KeyboardInterrupt):
        found(patient, hangs, interrupt=interrupt)
    over.set()
    assert undone == [True]


def test_the_table_needs_only_what_it_has_looked_at_before():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    for at, check in enumerate(CHECKS):
        assert set(check.needs) <= set(names[:at]), check.name
        assert check.seconds <= 20


def test_the_whole_table_is_carried_out_on_an_engine_that_tells_little(patient, monkeypatch):
    label = {"reprobox.box-protocol": "2", "reprobox.variant": "cpu"}
    engine = FakeEngine(
        images={"small:1": ImageInfo(engine_id="sha256:1", image_id="sha256:1", repo_digests=(), labels=label)}
    )
    monkeypatch.setattr("reprobox.doctor.engine.choose_engine", lambda *_, **__: engine)
    monkeypatch.setattr("reprobox.doctor.gpu.take_inventory", lambda: Inventory(missing="there is no driver"))
    monkeypatch.setattr("reprobox.doctor.gpu._loaded_version", lambda: None)
    monkeypatch.setattr("reprobox.doctor.gpu._count_on_bus", lambda: 0)
    monkeypatch.setattr("reprobox.doctor.machine._answer", lambda *_, **__: (0, ""))
    patient.settings = Settings.load({"image": "small:1"}, patient.directory, {})
    answers = found(patient, *CHECKS)
    assert not [name for name, finding in answers.items() if "itself broke" in finding.seen]
    assert answers["image"].verdict is Verdict.OK
    assert answers["gpus"] == skipped("no NVIDIA GPU: there is no driver")


# The engine


@pytest.mark.parametrize(
    ("name", "number", "api", "verdict"),
    [
        ("docker", "28.2.2", "1.50", "ok"),
        ("docker", "20.10.24+dfsg1", "1.41", "ok"),
        ("docker", "19.03.15", "1.40", "warn"),
        ("docker", "18.09.9", "1.39", "fail"),
        ("docker", "1.9.0", "", "warn"),
        ("podman", "4.3.1", "1.41", "ok"),
        ("podman", "3.4.4", "1.40", "warn"),
        ("podman", "10.0", "1.41", "ok"),
    ],
)
def test_an_engines_version_is_judged_by_its_api(name, number, api, verdict):
    finding = judge_version(name, number, api)
    assert finding.verdict == verdict
    assert number in finding.seen


@pytest.mark.parametrize(
    ("version", "driver", "rootless", "verdict"),
    [
        ("2", "systemd", True, "ok"),
        ("1", "cgroupfs", False, "ok"),
        ("1", "cgroupfs", True, "warn"),
        ("2", "none", True, "warn"),
        ("", "", False, "ok"),
    ],
)
def test_control_groups_that_keep_no_limits_are_warned_of(version, driver, rootless, verdict):
    assert judge_cgroups("podman", version, driver, rootless=rootless).verdict == verdict


@pytest.mark.parametrize(
    ("free", "inodes", "driver", "verdict"),
    [
        (10 * GIB, None, "overlay2", "ok"),
        (2 * GIB, 1 << 20, "overlay2", "ok"),
        (2 * GIB - 1, 1 << 20, "overlay2", "warn"),
        ((64 << 20) - 1, 1 << 20, "overlay2", "fail"),
        (10 * GIB, 999, "overlay2", "fail"),
        (10 * GIB, 1 << 20, "vfs", "warn"),
    ],
)
def test_an_engines_room_is_judged_by_what_it_needs(free, inodes, driver, verdict):
    finding = judge_space(driver, "/var/lib/docker", free, 2 * GIB, inodes=inodes)
    assert finding.verdict == verdict
    assert (finding.remedy is None) == (verdict == "ok")


def test_a_rootless_engines_user_needs_ids_in_both_files_and_a_program():
    ids = "root:1:65536\nada:100000:65536\n"

    def judge(uids, gids, *, program=True):
        return judge_subordinate("ada", uids, gids, has_newuidmap=program)

    assert judge(ids, ids).verdict == "ok"
    assert judge("ada:100000:32768\nada:200000:32768", ids).verdict == "ok"
    assert "has no subordinate ids in /etc/subuid" in judge("bob:100000:65536", ids).seen
    assert "1000 subordinate ids in /etc/subgid" in judge(ids, "ada:1:1000").seen
    assert judge(None, ids).verdict == "fail"
    assert judge("not a line\nada:x:y", ids).verdict == "fail"
    assert "uidmap" in judge(ids, ids, program=False).remedy
    assert judge_subordinate("root", None, None, has_newuidmap=False).verdict == "ok"


def test_what_an_engine_says_of_its_security_is_read_by_name():
    info = EngineInfo(name="docker", version="1")
    options = {"SecurityOptions": ["name=seccomp,profile=default", "name=rootless", "name=userns"]}
    assert EngineFacts(info=info, said=options).security == {"seccomp", "rootless", "userns"}
    assert EngineFacts(info=info, said=options).rootless
    assert EngineFacts(info=info, said={"Rootless": True}).rootless
    assert not EngineFacts(info=info, said={"SecurityOptions": None}).rootless


# The image


def test_the_lock_of_an_image_is_compared_with_this_versions():
    def judge(text, **labels):
        named = {"reprobox.variant": "cpu", **{f"reprobox.{name}": value for name, value in labels.items()}}
        return judge_lock(named, lambda _variant: text)

    digest = f"sha256:{hashlib.sha256(b'torch==1').hexdigest()}"
    assert judge("torch==1", lock=digest).verdict == "ok"
    assert judge("torch==2", lock=digest).verdict == "warn"
    assert judge("torch==1").verdict == "skipped"
    assert judge("torch==1", lock=digest, variant="tpu").verdict == "skipped"


def test_the_cuda_of_an_image_is_read_from_torchs_version_or_from_our_lock():
    ours = own_lock("cuda")
    digest = f"sha256:{hashlib.sha256(ours.encode()).hexdigest()}"

    def cuda(**labels):
        return cuda_of({f"reprobox.{name}": value for name, value in labels.items()}, own_lock)

    assert cuda(torch="2.9.1+cu128") == "12.8"
    assert cuda(torch="2.9.1+cu130", lock="sha256:other") == "13.0"
    assert cuda(torch="2.13.0", lock=digest).startswith("13.")
    assert cuda(torch="2.13.0", lock="sha256:other") is None
    assert cuda(torch="2.13.0+cpu") is None


# GPUs


@pytest.mark.parametrize(
    ("inventory", "loaded", "on_bus", "verdict", "said"),
    [
        (Inventory(missing="no library"), None, 0, "skipped", "no NVIDIA GPU: no library"),
        (Inventory(missing="no library", remedy="install it"), None, 2, "fail", "2 NVIDIA GPUs on the PCI bus"),
        (Inventory(missing="versions differ", remedy="reboot"), "550.1", 0, "fail", "the NVIDIA driver 550.1"),
        (Inventory(gpus=(GPU,), driver="550.1"), "550.1", 1, "ok", "driver 550.1"),
        (Inventory(gpus=(GPU,), driver="550.1", cuda="12.4"), None, 0, "ok", "CUDA 12.4, 1 NVIDIA GPU"),
        (Inventory(gpus=(GPU,), driver="550.1"), "545.1", 1, "fail", "runs the NVIDIA driver 545.1"),
        (Inventory(driver="550.1"), "550.1", 1, "fail", "shows none of 1 NVIDIA GPU"),
        (Inventory(driver="550.1"), "550.1", 0, "skipped", "no NVIDIA GPU"),
    ],
)
def test_a_driver_is_judged_by_what_nvml_the_kernel_and_the_bus_say(inventory, loaded, on_bus, verdict, said):
    finding = judge_driver(inventory, loaded, on_bus)
    assert finding.verdict == verdict
    assert said in finding.seen


@pytest.mark.parametrize(
    ("driver", "needed", "verdict"),
    [
        ("580.65.06", "13.2", "ok"),
        ("580.0", "13.0", "ok"),
        ("579.99.99", "13.0", "fail"),
        ("525.60.13", "12.9", "ok"),
        ("525.60.12", "12.0", "fail"),
        ("450.80.02", "11.8", "ok"),
        ("450.51.06", "11.0", "fail"),
        ("600.1", "12.4", "ok"),
        ("600.1", "14.0", "warn"),
        ("570.1", "14.0", "fail"),
        ("600.1", None, "skipped"),
        ("", "13.0", "skipped"),
        ("600.1", "10.2", "skipped"),
    ],
)
def test_a_driver_is_judged_by_the_major_version_of_the_images_cuda(driver, needed, verdict):
    assert judge_cuda(driver, needed).verdict == verdict


def test_a_cuda_that_this_reprobox_does_not_know_needs_at_least_what_the_newest_known_one_needs():
    newest = max(LEAST_DRIVER)
    assert judge_cuda(LEAST_DRIVER[newest], f"{newest + 1}.0").verdict == "warn"


@pytest.mark.parametrize(
    ("seen", "verdict", "said"),
    [
        ({"has_runtime": True}, "ok", "the runtime nvidia"),
        ({"hook": "/usr/bin/hook"}, "ok", "/usr/bin/hook"),
        ({}, "fail", "neither"),
        ({"here": False}, "skipped", "another machine"),
        ({"by_cdi": True, "devices": frozenset({"GPU-1", "all"})}, "ok", "CDI"),
        ({"by_cdi": True, "devices": frozenset({"0", "all"})}, "fail", "names GPU-1"),
        ({"by_cdi": True}, "fail", "names an NVIDIA GPU"),
        ({"by_cdi": True, "here": False}, "skipped", "another machine"),
    ],
)
def test_the_ways_to_hand_out_gpus_are_judged_by_the_one_that_a_run_takes(seen, verdict, said):
    plain = {"by_cdi": False, "has_runtime": False, "hook": None, "devices": frozenset(), "here": True}
    finding = judge_toolkit(**{**plain, **seen}, wanted=["GPU-1"])
    assert finding.verdict == verdict
    assert said in finding.seen


def test_a_reload_of_systemd_matters_under_systemds_cgroups_without_links_alone():
    assert judge_reload("systemd", ["/dev/nvidia0"]).verdict == "warn"
    assert judge_reload("systemd", []).verdict == "ok"
    assert judge_reload("cgroupfs", ["/dev/nvidia0"]).verdict == "ok"


@pytest.mark.parametrize(
    ("said", "code", "verdict", "seen"),
    [
        ("code 0 devices 2", 0, "ok", "2 GPUs"),
        ("code 0 devices 1", 0, "fail", "was given 2 GPUs has 1"),
        ("code 100 devices 0", 0, "fail", "sees no device"),
        ("code 7 devices 0", 0, "fail", "cuInit: 7"),
        ("no library", 0, "fail", "libcuda.so.1"),
        ("", 127, "fail", "exit code 127"),
        ("code 0 devices 2", 137, "fail", "exit code 137"),
        ("something else", 0, "fail", "exit code 0"),
    ],
)
def test_a_box_is_judged_by_what_cuda_says_in_it(said, code, verdict, seen):
    finding = judge_box(said, code, 2)
    assert finding.verdict == verdict
    assert seen in finding.seen


def test_gpus_are_those_that_a_run_may_have(patient, tmp_path):
    gone = Gpu(index=1, uuid="GPU-2", name="H100", fault="it has fallen off the bus")
    patient.inventory = Inventory(gpus=(GPU, gone), driver="550.1")
    assert patient.gpus == (GPU,)
    patient.environment = {"CUDA_VISIBLE_DEVICES": ""}
    assert patient.gpus == ()
    assert "that a run may have" in gpus_to_use(patient)
    patient.environment = {}
    assert gpus_to_use(patient) is None
    divided = dataclasses.replace(GPU, mig=True, mig_instances=(MigInstance(uuid="MIG-1", profile="1g.10gb"),))
    patient.inventory = Inventory(gpus=(divided,), driver="550.1")
    assert [gpu.uuid for gpu in patient.gpus] == ["MIG-1"]
    patient.settings = Settings.load({"gpus": "none"}, tmp_path, {})
    assert (patient.gpus, patient.variant) == ((), "cpu")


# The machine


@pytest.mark.parametrize(
    ("box", "host", "verdict"),
    [
        (8 * GIB, 16 * GIB, "ok"),
        (64 << 20, 16 * GIB, "warn"),
        (64 * GIB, 16 * GIB, "warn"),
        (8 * GIB, 64 << 20, "warn"),
        (8 * GIB, None, "warn"),
        (None, 16 * GIB, "ok"),
        (None, 64 << 20, "warn"),
        (None, None, "fail"),
    ],
)
def test_shared_memory_is_judged_for_those_who_use_it(box, host, verdict):
    assert judge_shm(box, host, 32 * GIB).verdict == verdict


def test_a_clock_is_judged_by_itself_the_engine_and_the_kernel():
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert judge_clock(now, now + timedelta(seconds=59), 0).verdict == "ok"
    assert judge_clock(now, now - timedelta(seconds=61), 0).verdict == "warn"
    assert judge_clock(now, None, 16_000_000).verdict == "warn"
    assert judge_clock(now, None, None).verdict == "ok"
    assert judge_clock(now.replace(year=1970), now.replace(year=1970), 0).verdict == "fail"
    assert judge_clock(now.replace(year=2100), None, 0).verdict == "fail"


@pytest.mark.parametrize(
    ("code", "said", "verdict", "seen"),
    [
        (0, "# branch.oid 0123456789abcdef\n# branch.head main", "ok", "at 0123456789ab"),
        (0, "# branch.oid (initial)\n", "ok", "no commit yet"),
        (128, "fatal: detected dubious ownership in repository at '/p'\n", "warn", "belongs to somebody else"),
        (128, "fatal: unsafe repository ('/p' is owned by someone else)", "warn", "belongs to somebody else"),
        (128, "fatal: bad config line 1\n", "warn", "bad config line 1"),
        (None, "", "warn", "there is no git"),
    ],
)
def test_git_is_judged_by_how_its_status_ended(code, said, verdict, seen):
    finding = judge_git("/p", code, said)
    assert finding.verdict == verdict
    assert seen in finding.seen


@pytest.mark.parametrize(
    ("program", "code", "said", "verdict"),
    [
        ("/bin/python", 0, 'a warning\n["2.9.1", null]\n', "ok"),
        ("/bin/python", 0, '["2.9.1", "13.0"]', "ok"),
        ("/bin/python", 1, "ModuleNotFoundError: No module named 'torch'", "warn"),
        ("/bin/python", 1, "ImportError: libcudart.so.13", "fail"),
        ("/bin/python", -11, "", "fail"),
        (None, 0, "", "warn"),
    ],
)
def test_a_python_is_judged_by_how_its_torch_loads(program, code, said, verdict):
    assert judge_python(program, code, said).verdict == verdict


def test_a_python_is_judged_by_this_machines_gpus_too():
    whole = '["2.9.1", "13.0"]'
    assert judge_python("/bin/python", 0, whole, driver="580.65.06").verdict == "ok"
    old = judge_python("/bin/python", 0, whole, driver="570.1")
    assert old.verdict == "fail"
    assert "torch 2.9.1's CUDA 13.0" in old.seen
    assert judge_python("/bin/python", 0, '["2.9.1", null]', driver="580.65.06").verdict == "warn"


# The network


@pytest.mark.parametrize(
    ("shell", "engine", "verdict"),
    [
        ({}, {}, "ok"),
        ({}, None, "ok"),
        ({"http": "http://p:1", "no": "localhost"}, None, "ok"),
        ({"http": "http://p:1"}, None, "warn"),
        ({"http": "http://p:1", "no": "*"}, {"http": "http://p:1"}, "ok"),
        ({"https": "http://p:1", "no": ".corp, 127.0.0.1"}, {"https": "http://q:1"}, "ok"),
        ({"https": "http://p:1", "no": "localhost"}, {}, "warn"),
        ({}, {"https": "http://p:1"}, "warn"),
    ],
)
def test_proxies_are_judged_by_whether_all_go_the_same_way(shell, engine, verdict):
    none = dict.fromkeys(("http", "https", "no"), "")
    assert judge_proxies({**none, **shell}, None if engine is None else {**none, **engine}).verdict == verdict


@pytest.mark.parametrize("proxy", ["http://ada:secret@p:1", "ada:secret@p:1"])
def test_a_proxys_password_is_never_shown(proxy):
    finding = judge_proxies({"http": proxy, "https": "", "no": "localhost"}, None)
    assert finding.seen.endswith("p:1")
    assert "secret" not in finding.seen
    assert "ada" not in finding.seen


@pytest.mark.parametrize(
    ("answer", "has_image", "verdict"),
    [
        (200, False, "ok"),
        (401, False, "ok"),
        (404, False, "fail"),
        (429, False, "fail"),
        (503, True, "warn"),
        ("connection refused", False, "fail"),
        ("connection refused", True, "warn"),
    ],
)
def test_a_registry_is_judged_by_its_answer_and_by_whether_it_is_needed(answer, has_image, verdict):
    finding = judge_registry("ghcr.io", answer, has_image=has_image)
    assert finding.verdict == verdict
    assert "ghcr.io" in finding.seen


def test_a_finding_of_failure_always_says_what_to_do():
    assert isinstance(fail("x", "y"), Finding)
    for finding in (judge_box("no library", 0, 1), judge_cuda("400.1", "13.0"), judge_shm(None, None, 1)):
        assert finding.verdict is Verdict.FAIL
        assert finding.remedy


# The documentation


def test_the_reference_has_every_check_in_its_order_and_the_table_of_drivers():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "doctor.md").read_text()
    assert re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE) == [check.name for check in CHECKS]
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \|$", page, re.MULTILINE)
    assert {int(cuda): driver for cuda, driver in rows} == LEAST_DRIVER
