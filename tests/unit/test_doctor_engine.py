"""What ``reprobox doctor`` makes of an engine and of an image."""

from __future__ import annotations

import hashlib

import pytest

from reprobox.doctor.builder import judge_builder
from reprobox.doctor.engine import judge_cgroups, judge_space, judge_subordinate, judge_version
from reprobox.doctor.image import cuda_of, judge_lock, own_lock
from reprobox.doctor.patient import EngineFacts
from reprobox.engines import EngineInfo
from reprobox.errors import BuildError

GIB = 1 << 30


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
    finding = judge_space(f"the graph driver {driver}", driver, "/var/lib/docker", free, 2 * GIB, inodes=inodes)
    assert finding.verdict == verdict
    assert (finding.remedy is None) == (verdict == "ok")


def test_the_builder_is_named_and_none_at_all_is_warned_of_with_the_package_to_install():
    buildx, itself = ("/usr/bin/docker", "v0.29.1"), ("/usr/bin/docker", None)
    none = BuildError("BuildKit cannot be used: no docker client is installed", remedy="install buildx: docker-buildx")

    def judged(refused, buildkit):
        finding = judge_builder(refused, buildkit)
        return finding.verdict, finding.seen, finding.remedy

    assert judged(None, buildx) == (
        "ok", "the engine's classic builder; BuildKit through buildx v0.29.1 (/usr/bin/docker)", None,
    )  # fmt: skip
    assert judged(None, itself)[:2] == ("ok", "the engine's classic builder; BuildKit through /usr/bin/docker itself")
    assert judged(None, none)[0] == "ok"
    assert judged("it is gone", buildx)[0::2] == ("ok", None)
    assert judged("it is gone", buildx)[1].startswith("BuildKit through buildx v0.29.1 (/usr/bin/docker); ")
    verdict, seen, remedy = judged("it is gone", none)
    assert (verdict, remedy) == ("warn", "install buildx: docker-buildx")
    assert "(it is gone)" in seen


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
