"""A container of ours against an engine that goes away at the worst moment: what is known is kept, what runs is left."""

from __future__ import annotations

import itertools
import threading
import time

import docker.errors
import pytest
import requests.exceptions

from reprobox.engines import docker_box
from reprobox.engines.docker import DockerEngine, identity, image_store
from reprobox.engines.docker_box import DockerBox
from reprobox.engines.splice import Delivered
from reprobox.errors import EngineError, EngineUnavailable

RUNNING = {"Running": True, "Status": "running", "StartedAt": "2026-01-01T00:00:00.123456789Z"}
EXITED = {**RUNNING, "Running": False, "Status": "exited"}
CREATED = {**RUNNING, "Running": False, "Status": "created"}
HUNG = requests.exceptions.ReadTimeout("hung")
RESTARTING = requests.exceptions.ConnectionError("restarting")
GONE = docker.errors.NotFound("no such container")
STUCK = docker.errors.APIError("device or resource busy")


class Api:
    """What docker-py's low-level client does for one container; each answer is a value or an error, the last for ever."""

    def __init__(self, *, states=(RUNNING,), logs=None, code=7, removal=None, config=None):
        self.states = itertools.chain(states, itertools.repeat(states[-1]))
        self.kept = logs or {}
        self.code = code
        self.removal = removal
        self.config = config or {}
        self.calls = []
        self.followed = {"stdout": (), "stderr": ()}

    def inspect_container(self, _id):
        return {"State": said(next(self.states)), "Config": self.config}

    def logs(self, _id, *, stdout, stderr, stream=False, follow=False):
        name = "stdout" if stdout else "stderr"
        return self.followed[name] if stream else said(self.kept.get(name, b""))

    def wait(self, _id, timeout=None):
        return {"StatusCode": said(self.code)}

    def remove_container(self, _id, **options):
        self.calls.append("remove")
        said(self.removal)

    def stop(self, _id, timeout):
        self.calls.append(("stop", timeout))


def said(answer):
    if isinstance(answer, Exception):
        raise answer
    return answer


class Client:
    def __init__(self, api):
        self.api = api


def box_of(api, **options):
    box = DockerBox(Client(api), "abc", **{"terminal": False, "stdin": False, "removal": "docker rm -f rx", **options})
    box._pieces = lambda: iter(())
    return box


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(docker_box, "ENGINE_AWAY_SECONDS", 0.5)


def test_a_found_box_whose_engine_hangs_at_the_first_question_is_not_removed():
    api = Api(states=(HUNG,))
    with pytest.raises(EngineUnavailable), box_of(api, found=True) as box:
        box.started()
    assert api.calls == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError(), EngineError("no")])
def test_a_found_box_is_left_where_its_block_ends_by_an_error_whatever_was_known(error):
    api = Api(states=(EXITED,))
    with pytest.raises(type(error)), box_of(api, found=True) as box:
        box.wait()
        raise error
    assert api.calls == []


def test_a_found_box_that_may_still_run_is_left():
    api = Api()
    with box_of(api, found=True) as box:
        box.started()
    assert api.calls == []


def test_a_found_box_that_was_never_started_is_removed():
    api = Api(states=(CREATED,))
    with box_of(api, found=True) as box:
        assert box.started() is None
    assert api.calls == ["remove"]


def test_a_found_box_that_has_ended_is_removed():
    api = Api(states=(EXITED,))
    with box_of(api, found=True) as box:
        assert box.wait().code == 7
    assert api.calls == ["remove"]


def test_a_found_box_that_runs_is_removed_by_who_says_so():
    api = Api()
    box_of(api, found=True).remove()
    assert api.calls == ["remove"]


def test_a_box_of_ours_is_removed_where_its_block_ends_by_an_error():
    api = Api()
    with pytest.raises(KeyboardInterrupt), box_of(api):
        raise KeyboardInterrupt
    assert api.calls == ["remove"]


@pytest.mark.parametrize("failure", [STUCK, HUNG])
def test_a_box_that_cannot_be_removed_is_an_error_that_says_how_to_remove_it(failure):
    with pytest.raises(EngineError, match="remove it with `docker rm -f rx`"), box_of(Api(removal=failure)):
        pass


@pytest.mark.parametrize("then", [HUNG, RESTARTING, GONE])
def test_an_exit_code_is_kept_where_the_engine_says_nothing_more_of_the_box(then):
    assert box_of(Api(states=(then,), code=3)).wait().code == 3


def test_an_end_by_the_engine_that_goes_away_with_it_is_the_engines():
    assert box_of(Api(states=(RESTARTING,), code=143)).wait().engine_was_away
    assert not box_of(Api(states=(EXITED,), code=143)).wait().engine_was_away


def streamed(box):
    got, lines = [], []
    box.stream(lambda stream, data: got.append((stream, data)), lines.append)
    return got, lines


@pytest.mark.parametrize(
    "log", [b"rest\n", docker.errors.APIError("configured logging driver does not support reading")]
)
def test_an_engine_that_restarts_again_while_its_log_is_read_is_waited_for_again(log, monkeypatch):
    away, here = RESTARTING, RUNNING
    api = Api(states=(away, here, here, away, away, here, here, EXITED), logs={"stdout": log})
    box = box_of(api)
    monkeypatch.setattr(box, "attach", lambda: None)
    got, lines = streamed(box)
    assert sum("waiting for the engine" in line for line in lines) == 2
    assert got == ([("stdout", b"rest\n")] if isinstance(log, bytes) else [])


def test_an_engine_that_stays_away_is_not_waited_for_without_end():
    with pytest.raises(EngineUnavailable, match="may still be running"):
        streamed(box_of(Api(states=(RESTARTING, RUNNING, RUNNING, RESTARTING))))


def test_an_engine_that_answers_and_never_gives_its_log_is_not_waited_for_without_end():
    lines = []
    box = box_of(Api(states=(RESTARTING, RUNNING), logs={"stdout": RESTARTING}))
    with pytest.raises(EngineUnavailable):
        box.stream(lambda *_: None, lines.append)
    assert len(lines) < 8


def test_a_box_whose_log_goes_with_it_is_not_said_to_have_been_run_without_one():
    removing = {**EXITED, "Status": "removing"}
    marked = docker.errors.APIError("can not get logs from container which is dead or marked for removal")
    lines = []
    box = box_of(Api(states=(removing,), logs={"stdout": marked}, code=137), found=True)
    box.catch_up({"stdout": Delivered(), "stderr": Delivered()}, lambda *_: None, lines.append)
    assert lines == []
    assert box.wait().removed


class Followed:
    """A log that goes on saying a line until it is closed."""

    def __init__(self, *, says=b"line\n"):
        self.says, self.closed = says, threading.Event()

    def __iter__(self):
        while not self.closed.wait(0.01):
            if self.says:
                yield self.says

    def close(self):
        self.closed.set()


def test_a_reader_that_has_enough_ends_the_following_and_hears_of_its_own_error():
    api = Api()
    api.followed = {"stdout": Followed(), "stderr": Followed(says=b"")}
    callers = set()

    def write(_stream, _data):
        callers.add(threading.current_thread())
        raise StopIteration

    began = time.monotonic()
    with pytest.raises(StopIteration):
        box_of(api, found=True).catch_up({"stdout": Delivered(), "stderr": Delivered()}, write, print)
    assert time.monotonic() - began < 5
    assert callers == {threading.main_thread()}
    assert all(log.closed.is_set() for log in api.followed.values())


def test_a_box_that_is_left_while_its_log_is_followed_ends_the_following():
    api = Api()
    api.followed = {"stdout": Followed(), "stderr": Followed(says=b"")}
    box = box_of(api, found=True)
    box.catch_up({"stdout": Delivered(), "stderr": Delivered()}, lambda *_: box.leave(), print)
    assert all(log.closed.is_set() for log in api.followed.values())


def test_what_is_followed_comes_once_and_in_order():
    api = Api(states=(RUNNING, EXITED), logs={"stdout": b"a", "stderr": b"x"})
    api.followed = {"stdout": [b"abc", b"d"], "stderr": [b"x", b"yz"]}
    got = {"stdout": b"", "stderr": b""}

    def write(stream, data):
        got[stream] += data
        api.kept = {"stdout": b"abcd", "stderr": b"xyz"} if got["stdout"] == b"abcd" else api.kept

    box_of(api).catch_up({"stdout": Delivered(), "stderr": Delivered()}, write, print)
    assert got == {"stdout": b"abcd", "stderr": b"xyz"}


def test_who_came_late_is_not_given_what_was_said_before_when_the_connection_breaks():
    states, log = (RESTARTING, EXITED), {"stdout": b"said long before\n"}
    assert streamed(box_of(Api(states=states, logs=log), found=True))[0] == []
    assert streamed(box_of(Api(states=states, logs=log)))[0] == [("stdout", b"said long before\n")]


@pytest.mark.parametrize(("config", "seconds"), [({"StopTimeout": 0}, 0), ({"StopTimeout": 3}, 3), ({}, 10)])
def test_a_stop_takes_the_time_that_the_box_was_made_with_and_none_is_a_time_too(config, seconds):
    api = Api(config=config)
    box_of(api).stop()
    assert api.calls == [("stop", seconds)]


def test_an_engine_is_known_by_its_id_and_storage_and_podman_by_its_machine_and_storage():
    docker_info = {"ID": "QDKQ:6PWY", "Name": "m", "DockerRootDir": "/var/lib/docker"}
    assert identity(docker_info) == "QDKQ:6PWY:/var/lib/docker"
    podman_info = {"Name": "m", "DockerRootDir": "/storage", "BuildahVersion": "1.28.2"}
    assert {identity({**podman_info, "ID": made_up}) for made_up in "ab"} == {"m:/storage"}
    assert identity({}) == ""


@pytest.mark.parametrize(
    ("info", "store"),
    [
        ({"Driver": "overlay2", "DriverStatus": [["Backing Filesystem", "extfs"]]}, "graphdriver"),
        ({"Driver": "overlayfs", "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]]}, "containerd"),
        ({"Driver": "overlay", "DriverStatus": None, "BuildahVersion": "1.28.2"}, "podman"),
        ({}, "graphdriver"),
    ],
)
def test_how_an_engine_keeps_images_is_read_from_what_it_says_of_itself(info, store):
    assert image_store(info) == store


def test_a_box_that_an_engine_finds_is_a_found_one():
    class Engine(DockerEngine):
        client = Client(Api())

    Engine.client.api.containers = lambda **_: [{"Id": "abc", "Names": ["/rx-1"]}]
    Engine.client.api.config = {"Tty": False, "OpenStdin": False, "StdinOnce": False}
    box = Engine().find("run")
    assert (box.found, box.removal) == (True, "docker rm -f rx-1")
