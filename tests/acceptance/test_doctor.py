"""``reprobox doctor`` on machines that are really broken, each beside the same machine without the fault."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest
from support.cli import BIN
from support.daemon import TAG, Daemon, full, small_disk
from support.doctor import CLOCK, NOBODY, Doctor, Rewritten, as_user, compiled, cuda_image, give, mounted, seconds

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(os.geteuid() != 0, reason="a daemon, mounts and another user's rights need root"),
]


@pytest.fixture(scope="module")
def the_daemon(small_image):
    with Daemon() as daemon:
        daemon.start().load(small_image)
        daemon.home.chmod(0o755)
        yield daemon


@pytest.fixture
def daemon(the_daemon):
    the_daemon.ensure()
    return the_daemon


@pytest.fixture
def doctor(tmp_path):
    return Doctor(tmp_path)


@pytest.fixture
def on_daemon(doctor, daemon):
    """A doctor whose engine is the daemon, and whose image its small one."""
    doctor.environment |= {**daemon.environment, "REPROBOX_IMAGE": TAG}
    return doctor


def verdicts(checks, *names):
    return [checks[name]["verdict"] for name in names]


def test_a_machine_without_a_fault_and_without_gpus_is_healthy(on_daemon):
    checks, took = seconds(on_daemon.examine)
    assert {check["verdict"] for name, check in checks.items() if name != "clock"} == {"ok", "skipped"}
    assert verdicts(checks, "engine", "image", "storage") == ["ok"] * 3
    of_gpus = ("driver", "gpus", "cuda", "container toolkit", "box with gpus", "daemon-reload", "gpu claims")
    assert verdicts(checks, *of_gpus) == ["skipped"] * 7
    assert all(checks[name]["seen"].startswith("no NVIDIA GPU: ") for name in of_gpus)
    assert took < 15


def test_people_get_a_line_a_check_with_a_word_and_a_sum(on_daemon):
    done = on_daemon.call(SSL_CERT_FILE="/no/such/file")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    failed = next(line for line in lines if " certificates " in line)
    assert failed.startswith("✗ fail ")
    assert "/no/such/file is not there" in failed
    assert "unset SSL_CERT_FILE" in failed
    assert lines[-1].endswith("skipped")
    assert ", 1 failed, " in lines[-1]
    assert len(lines) == 1 + len(on_daemon.examine())
    plain = on_daemon.call(PYTHONIOENCODING="ascii").stdout
    assert plain.isascii()
    assert plain.splitlines()[-1].partition(", ")[0].endswith(" ok")


def test_help_needs_neither_docker_nor_the_checks(doctor):
    program = (
        "import sys; from reprobox.cli.app import run_app; run_app(['doctor', '--help']); "
        "print({'docker', 'torch', 'numpy', 'pynvml', 'rich', 'reprobox.doctor'} & sys.modules.keys())"
    )
    done = subprocess.run([BIN / "python", "-c", program], env=doctor.environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "set()", done.stderr


def test_wrong_usage_is_2_and_a_signal_ends_it(doctor, daemon):
    assert doctor.call("--engine", "dokcer").returncode == 2
    assert doctor.call("--json", "more").returncode == 2
    doctor.environment |= daemon.environment
    with daemon.frozen():
        command = [str(BIN / "reprobox"), "doctor"]
        process = subprocess.Popen(command, cwd=doctor.project, env=doctor.environment, stdout=subprocess.DEVNULL)
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130


def test_no_daemon_at_the_socket_fails_and_what_needs_it_is_skipped(on_daemon, tmp_path):
    checks = on_daemon.examine(DOCKER_HOST=f"unix://{tmp_path}/docker.sock")
    assert checks["engine"]["verdict"] == "fail"
    assert "there is no such socket" in checks["engine"]["seen"]
    assert checks["image"] == {
        "name": "image",
        "verdict": "skipped",
        "seen": "needs engine, which failed",
        "remedy": None,
    }
    assert verdicts(checks, "project", "certificates") == ["ok", "ok"]
    assert on_daemon.examine()["engine"]["verdict"] == "ok"


def test_a_socket_that_a_dead_daemon_left_is_told_from_none(on_daemon, tmp_path):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "s"))
    checks = on_daemon.examine(DOCKER_HOST=f"unix://{tmp_path}/s")
    assert "connection refused: the daemon is not running" in checks["engine"]["seen"]


def test_a_socket_that_this_user_may_not_open_is_a_matter_of_groups(on_daemon, daemon, tmp_path):
    give(tmp_path, NOBODY)
    before = daemon.socket.stat().st_mode
    refused = on_daemon.examine(prefix=as_user(NOBODY))["engine"]
    try:
        daemon.socket.chmod(0o666)
        allowed = on_daemon.examine(prefix=as_user(NOBODY))
    finally:
        daemon.socket.chmod(before)
    assert refused["verdict"] == "fail"
    assert "permission denied" in refused["seen"]
    assert "usermod -aG docker" in refused["remedy"]
    assert verdicts(allowed, "engine", "image") == ["ok", "ok"]


def test_a_daemon_that_hangs_is_found_out_in_half_a_minute(on_daemon, daemon):
    with daemon.frozen():
        checks, took = seconds(on_daemon.examine)
    assert took < 30
    assert checks["engine"]["verdict"] == "fail"
    assert "does not answer" in checks["engine"]["seen"]
    assert "restart it" in checks["engine"]["remedy"]
    assert verdicts(checks, "project", "clock")[0] == "ok"
    assert on_daemon.examine()["engine"]["verdict"] == "ok"


def test_an_engine_without_room_is_warned_of_and_one_that_is_full_fails(doctor, small_image, daemon, tmp_path):
    with small_disk(tmp_path / "disk", 160) as data_root, Daemon(data_root) as small:
        small.start().load(small_image)
        doctor.environment |= {**small.environment, "REPROBOX_IMAGE": TAG}
        little = doctor.examine()["storage"]
        with full(data_root):
            nothing = doctor.examine()["storage"]
    assert (little["verdict"], nothing["verdict"]) == ("warn", "fail")
    assert str(data_root) in little["seen"]
    assert "docker system prune" in nothing["remedy"]
    assert doctor.examine(**daemon.environment)["storage"]["verdict"] == "ok"


def test_an_old_engine_is_told_by_its_api(on_daemon, daemon):
    old_one = {"version": {"ApiVersion": "1.39"}, "info": {"ServerVersion": "18.09.9"}}
    with Rewritten(daemon.socket, **old_one) as lying:
        old = on_daemon.examine(**lying)["engine version"]
    with Rewritten(daemon.socket) as honest:
        new = on_daemon.examine(**honest)["engine version"]
    assert (old["verdict"], new["verdict"]) == ("fail", "ok")
    assert "18.09.9" in old["seen"]


def test_an_engine_that_maps_users_is_warned_of(on_daemon, daemon):
    with Rewritten(daemon.socket, info={"SecurityOptions": ["name=seccomp,profile=default", "name=userns"]}) as mapping:
        found = on_daemon.examine(**mapping)["user mapping"]
    assert found["verdict"] == "warn"
    assert "userns-remap" in found["seen"]
    assert on_daemon.examine()["user mapping"]["verdict"] == "ok"


def test_a_rootless_engine_needs_subordinate_ids_of_its_user(on_daemon, daemon, tmp_path):
    give(tmp_path, NOBODY)
    for name in ("uid", "gid"):
        (tmp_path / f"sub{name}").write_text("somebody:100000:65536\nnobody:200000:65536\n")
    given = mounted(f"mount --bind {tmp_path}/subuid /etc/subuid; mount --bind {tmp_path}/subgid /etc/subgid")
    with Rewritten(daemon.socket, info={"SecurityOptions": ["name=rootless"], "CgroupVersion": "2"}) as rootless:
        without = on_daemon.examine(prefix=as_user(NOBODY), **rootless)
        with_ids = on_daemon.examine(prefix=[*given, *as_user(NOBODY)], **rootless)
    assert without["user mapping"]["verdict"] == "fail"
    assert "nobody has no subordinate ids in /etc/subuid" in without["user mapping"]["seen"]
    assert "--add-subuids" in without["user mapping"]["remedy"]
    assert verdicts(with_ids, "rootless", "user mapping") == ["ok", "ok"]


def test_a_missing_image_and_one_of_a_foreign_protocol_fail(on_daemon, daemon):
    missing = on_daemon.examine("--image", "no-such-image:1")["image"]
    strange = on_daemon.examine("--image", cuda_image(daemon, "strange:1", library=False, protocol="99"))["image"]
    own = on_daemon.examine(REPROBOX_IMAGE="reprobox.invalid/none")["image"]
    del on_daemon.environment["REPROBOX_IMAGE"]
    default = on_daemon.examine()["image"]
    assert {found["verdict"] for found in (missing, strange, own, default)} == {"fail"}
    assert "docker pull no-such-image:1" in missing["remedy"]
    assert "upgrade reprobox" in strange["remedy"]
    assert "reprobox build" in default["remedy"]
    assert on_daemon.examine("--image", TAG)["image"]["verdict"] == "ok"


def test_an_image_of_another_lock_is_warned_of(on_daemon, daemon, small_image):
    with contextlib.closing(daemon.client()) as client:
        container = client.containers.create(TAG, network_mode="none")
        container.commit("other", "1", changes=f"LABEL reprobox.lock=sha256:{'0' * 64}")
        container.remove()
    other = on_daemon.examine("--image", "other:1")["lock"]
    assert other["verdict"] == "warn"
    assert "000000000000" in other["seen"]
    assert on_daemon.examine()["lock"]["verdict"] == "ok"


def test_a_proxy_of_the_engine_alone_and_one_of_the_shell_alone_are_told_apart(on_daemon, monkeypatch):
    proxy = "http://someone:secret@proxy.example:3128"
    exempt = {"NO_PROXY": "localhost,127.0.0.1"}
    shell = on_daemon.examine(HTTPS_PROXY=proxy, **exempt)["proxies"]
    for name, value in {"HTTPS_PROXY": proxy, **exempt}.items():
        monkeypatch.setenv(name, value)
    with Daemon() as behind:
        behind.start()
        of_engine = on_daemon.examine(**behind.environment)["proxies"]
        both = on_daemon.examine(**behind.environment, HTTPS_PROXY=proxy, **exempt)["proxies"]
        all_of_it = on_daemon.examine(**behind.environment, HTTPS_PROXY=proxy)["proxies"]
    assert [found["verdict"] for found in (shell, of_engine, both, all_of_it)] == ["warn", "warn", "ok", "warn"]
    assert "the engine through none" in shell["seen"]
    assert "this shell through none" in of_engine["seen"]
    assert "localhost" in all_of_it["remedy"]
    assert not any("secret" in found["seen"] for found in (shell, of_engine, both, all_of_it))
    assert on_daemon.examine()["proxies"]["verdict"] == "ok"


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_a_bundle_of_certificates_that_is_missing_or_empty_fails(doctor, tmp_path, name):
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    found = [doctor.examine("--engine", "local", **{name: str(file)})["certificates"] for file in (empty, "/no/file")]
    assert [one["verdict"] for one in found] == ["fail", "fail"]
    assert ["holds no certificate" in found[0]["seen"], "is not there" in found[1]["seen"]] == [True, True]
    good = tmp_path / "good.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=x", "-keyout", tmp_path / "key"]
    subprocess.run([*make, "-out", good], check=True, capture_output=True)
    assert doctor.examine("--engine", "local", **{name: str(good)})["certificates"]["verdict"] == "ok"


def test_a_tiny_dev_shm_is_warned_of_and_none_at_all_fails_without_an_engine(doctor):
    tiny = mounted("mount -t tmpfs -o size=8m,mode=1777 none /dev/shm")
    closed = mounted("mount -t tmpfs -o size=2g,mode=1777,ro none /dev/shm")
    roomy = mounted("mount -t tmpfs -o size=2g,mode=1777 none /dev/shm")
    found = [
        doctor.examine("--engine", "local", prefix=prefix)["shared memory"]["verdict"]
        for prefix in (tiny, closed, roomy)
    ]
    assert found == ["warn", "fail", "ok"]


def test_a_wrong_clock_is_seen_in_itself_or_beside_the_engines(on_daemon):
    def shifted(hours):
        return on_daemon.examine(LD_PRELOAD=str(compiled("clock.so", CLOCK, f"SECONDS={hours * 3600}")))["clock"]

    ancient, late, right = shifted(-30 * 365 * 24), shifted(-2), shifted(0)
    assert (ancient["verdict"], late["verdict"]) == ("fail", "warn")
    assert "cannot be now" in ancient["seen"]
    assert re.search(r"the engine's clock is 7[12]\d\d s away", late["seen"])
    assert right["verdict"] != "fail"
    assert "the engine's clock" not in right["seen"]


def test_a_cache_that_cannot_be_written_to_fails(doctor, tmp_path):
    cache = doctor.home / "cache"
    assert doctor.examine("--engine", "local")["cache"]["verdict"] == "ok"
    assert not cache.exists(), "a doctor changes nothing"
    (cache / "reprobox").mkdir(parents=True)
    read_only = mounted(f"mount --bind {cache} {cache}; mount -o remount,ro,bind {cache}")
    assert doctor.examine("--engine", "local", prefix=read_only)["cache"]["verdict"] == "fail"
    assert doctor.examine("--engine", "local")["cache"]["verdict"] == "ok"
    assert list((cache / "reprobox").iterdir()) == []
    shutil.rmtree(cache)
    cache.write_text("a file")
    found = doctor.examine("--engine", "local")["cache"]
    assert found["verdict"] == "fail"
    assert "XDG_CACHE_HOME" in found["remedy"]


def test_a_project_of_somebody_else_fails_and_no_project_is_warned_of(doctor, tmp_path):
    mine = doctor.examine("--engine", "local")["project"]
    theirs = doctor.examine("--engine", "local", prefix=as_user(NOBODY))["project"]
    nowhere = doctor.examine("--engine", "local", HOME=str(doctor.project))
    assert (mine["verdict"], theirs["verdict"]) == ("ok", "fail")
    assert str(doctor.project) in theirs["seen"]
    assert verdicts(nowhere, "project", "git") == ["warn", "skipped"]


def test_a_missing_git_is_warned_of_and_a_checkout_of_another_user_is_told(doctor, tmp_path):
    no_configuration = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}

    def found(**environment):
        return doctor.examine("--engine", "local", **no_configuration, **environment)["git"]

    assert found()["verdict"] == "skipped"
    subprocess.run(["git", "init", "--quiet", doctor.project], check=True)
    assert found()["verdict"] == "ok"
    missing = found(PATH=str(tmp_path))
    assert missing["verdict"] == "warn"
    assert "there is no git" in missing["seen"]
    give(doctor.project, NOBODY)
    assert found()["verdict"] == "ok"


class Registry(http.server.BaseHTTPRequestHandler):
    status = 401

    def do_GET(self):
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_registry_that_does_not_answer_fails_unless_the_image_is_here(on_daemon, daemon):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        image = f"127.0.0.1:{server.server_port}/team/box:1"
        answers = on_daemon.examine("--image", image)["registry"]
        Registry.status = 404
        no_registry = on_daemon.examine("--image", image)["registry"]
        server.shutdown()
    closed = on_daemon.examine("--image", image)["registry"]
    with contextlib.closing(daemon.client()) as client:
        client.images.get(TAG).tag(image.rpartition(":")[0], "1")
    here = on_daemon.examine("--image", image)["registry"]
    unknown = on_daemon.examine("--image", "registry.invalid/team/box:1")["registry"]
    found = (answers, no_registry, closed, here, unknown)
    assert [one["verdict"] for one in found] == ["ok", "fail", "fail", "warn", "fail"]
    assert "401" not in answers["seen"]
    assert "connection refused" in closed["seen"]
    assert "is no registry" in no_registry["seen"]


def test_the_local_engine_wants_a_python_whose_torch_loads(doctor, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    broken = doctor.examine("--engine", "local", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")["python"]
    (tmp_path / "torch.py").write_text("__version__ = '2.9.1'\nclass version: cuda = None")
    whole = doctor.examine("--engine", "local", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")["python"]
    none = doctor.examine("--engine", "local", PATH=str(tmp_path))["python"]
    assert [found["verdict"] for found in (broken, whole, none)] == ["fail", "ok", "warn"]
    assert "libcudart.so.13" in broken["seen"]
