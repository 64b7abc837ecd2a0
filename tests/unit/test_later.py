"""A run looked at later: whatever state its files were left in, nothing is a traceback and no other run is hidden."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import threading

import pytest

from reprobox.cli.app import run_app
from reprobox.engines import EngineInfo, EngineName, Exit, ImageInfo
from reprobox.engines.fake import FakeBox, FakeEngine, Script
from reprobox.errors import EngineError, EngineUnavailable, RecordError
from reprobox.gpus import Inventory
from reprobox.project import Project
from reprobox.recipe import Recipe
from reprobox.runs import later, logs, store
from reprobox.runs.manifest import first_manifest
from reprobox.runs.minder import Minder
from reprobox.runs.plan import RunRequest, make_plan
from reprobox.runs.receipts import read_receipts
from reprobox.runs.store import RunStore, new_run_id

IMAGE = ImageInfo(engine_id="sha256:e", image_id="sha256:i", repo_digests=(), labels={})
RECEIPT = {
    "schema": "reprobox.receipt/1",
    "pid": 7,
    "start_ns": 1,
    "start_method": "spawn",
    "seeds": {"random": 1},
    "generators": {"random": "ab"},
    "events": [{"kind": "reseed", "generator": "random", "value": 3, "file": "t.py", "line": 1, "count": 1}],
    "children": [{"pid": 9, "program": "python x"}],
}
ALLOWED = (0, 125)


class EndedBox(FakeBox):
    """A box whose command has ended with 7, having said ``output``."""

    def __init__(self, output=b"", *, running=False, started=True):
        super().__init__(spec=None, script=Script(exit=Exit(code=7)))
        self.running, self._started, self.output = running, started, output

    def started(self):
        return "2026-01-01T00:00:00.000Z" if self._started else None

    def catch_up(self, places, write, say):
        write("stdout", places["stdout"].rest_of(self.output)[0])

    def stop(self, seconds=None):
        self.running = False


class Runs:
    """A project with records of runs, and a fake engine for those that nobody minds any more."""

    def __init__(self, folder):
        (folder / "reprobox.toml").write_text("")
        self.folder = folder
        self.store = RunStore(folder)
        self.engine = FakeEngine()

    def run(self, *, ended=True, **fields):
        project = Project(root=self.folder, directory=self.folder)
        request = RunRequest(
            project=project, command=("train",), recipe=Recipe(seed=1), engine=EngineName.DOCKER, image="img"
        )
        run_id = new_run_id()
        plan = make_plan(request, run_id, self.store.folder / run_id, IMAGE)
        record = self.store.create(run_id)
        manifest = first_manifest(plan, FakeEngine(name="docker").info(), Inventory())
        manifest |= {"outcome": "running", "start": "2026-01-01T00:00:00.000Z", "host": {}}
        if ended:
            manifest |= {"outcome": "exited", "stage": "exec", "end": manifest["start"], "exit_code": 0}
        else:
            record.reports.mkdir(parents=True)
            (record.reports / "stage").write_text("exec\n")
        record.write(manifest | fields)
        return record


@pytest.fixture
def project(tmp_path, monkeypatch):
    made = Runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(later, "open_engine", lambda _name: made.engine)
    monkeypatch.setattr(later, "FOLLOW_SECONDS", 0.005)
    return made


def listed(capfd):
    code = run_app(["runs", "list", "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert "Traceback" not in err
    return {run["id"]: run for run in json.loads(out)["runs"]}


def test_a_manifest_cut_at_any_byte_is_listed_as_unreadable_and_hides_no_other(project, capfd):
    first, cut, last = (project.run() for _ in range(3))
    fields = ("schema", "id", "command", "recipe", "engine", "outcome", "end", "exit_code")
    cut.write({name: value for name, value in cut.manifest().items() if name in fields})
    whole = cut.manifest_path.read_bytes()
    for length in range(len(whole) - 1):
        cut.manifest_path.write_bytes(whole[:length])
        runs = listed(capfd)
        assert list(runs) == [first.id, cut.id, last.id]
        assert runs[cut.id]["outcome"] == "unreadable", length
        assert (runs[first.id]["exit_code"], runs[last.id]["exit_code"]) == (0, 0)
    cut.manifest_path.write_bytes(whole)
    assert listed(capfd)[cut.id]["exit_code"] == 0


def test_a_whole_manifest_cut_at_any_byte_is_a_record_that_cannot_be_read(project):
    record = project.run()
    whole = record.manifest_path.read_bytes()
    for length in range(len(whole) - 1):
        record.manifest_path.write_bytes(whole[:length])
        with pytest.raises(RecordError):
            record.manifest()


@pytest.mark.parametrize("command", [["show"], ["logs"], ["logs", "-f"], ["wait"], ["stop"], ["attach"], ["list"]])
def test_every_command_on_a_cut_manifest_is_one_sentence(project, capfd, command):
    cut = project.run()
    whole = cut.manifest_path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 2):
        cut.manifest_path.write_bytes(whole[:length])
        assert run_app(["runs", *command]) in ALLOWED
        err = capfd.readouterr().err
        assert "itself failed" not in err
        assert err.count("\n") <= 1


def test_a_record_that_cannot_be_read_can_be_removed(project):
    cut = project.run()
    cut.manifest_path.write_bytes(b"{")
    assert run_app(["runs", "rm", "last"]) == 0
    assert not cut.folder.exists()


def test_a_record_that_cannot_be_read_is_not_removed_while_somebody_minds_its_run(project, capfd):
    cut = project.run()
    cut.manifest_path.write_bytes(b"{")
    with cut.held():
        assert run_app(["runs", "rm", "last"]) == 2
        assert "has not ended" in capfd.readouterr().err
        assert run_app(["runs", "rm", "-f", "last"]) == 125
        assert cut.folder.exists()


def damages(name):
    whole = {
        "lock": Minder.this().to_text().encode(),
        "stage": b"exec\n",
        "ledger": b"7 python\n9 python x\n",
        "receipt-7.json": json.dumps(RECEIPT).encode(),
    }[name]
    return [*(whole[:length] for length in range(len(whole) + 1)), b"\xff\xfe\x00", b"\n" * 3, b"[1]", b"null"]


@pytest.mark.parametrize("name", ["lock", "stage", "ledger", "receipt-7.json"])
def test_a_run_that_nobody_minds_is_completed_whatever_byte_its_files_end_at(project, capfd, name):
    other = project.run()
    record = project.run(ended=False)
    keep = project.folder / "keep"
    shutil.copytree(record.folder, keep)
    for damage in damages(name):
        shutil.rmtree(record.folder)
        shutil.copytree(keep, record.folder)
        (record.folder / "lock" if name == "lock" else record.reports / name).write_bytes(damage)
        project.engine.found[record.id] = EndedBox()
        runs = listed(capfd)
        assert list(runs) == [other.id, record.id]
        assert runs[record.id]["exit_code"] == 7, damage
        assert runs[record.id]["end"]
        assert not (record.folder / "lock").exists()
        assert not record.box_folder.exists()
        assert project.engine.found[record.id].events[-1] == "remove"


@pytest.mark.parametrize("name", ["stage", "ledger", "receipt-7.json"])
def test_a_finished_run_is_shown_whatever_byte_its_files_end_at(project, capfd, name):
    record = project.run()
    for damage in damages(name):
        (record.folder / name).write_bytes(damage)
        assert listed(capfd)[record.id]["exit_code"] == 0
        assert record.stage() in (None, *store.STAGES)
        read_receipts(record.folder).summary()
        json.dumps(read_receipts(record.folder).to_json())


def test_a_run_that_somebody_holds_is_running_whatever_its_lock_says(project, capfd):
    record = project.run(ended=False)
    with (record.folder / "lock").open("w+b", buffering=0) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for text in (b"123456\n", *damages("lock")):
            lock.seek(0)
            lock.truncate()
            lock.write(text)
            assert listed(capfd)[record.id]["outcome"] == "running", text
            assert record.holder() is not None, text


def test_a_lock_that_goes_while_it_is_looked_at_is_nobodys(project, monkeypatch):
    record = project.run(ended=False)
    with record.held():
        real = fcntl.flock

        def flock(lock, how):
            try:
                real(lock, how)
            except BlockingIOError:
                (record.folder / "lock").unlink()  # the holder has just finished
                raise

        monkeypatch.setattr(fcntl, "flock", flock)
        assert record.holder() in (None, Minder.this())


def test_one_process_holds_a_run_at_a_time_whoever_waited_for_whom(project):
    record = project.run()
    inside, most = 0, 0
    guard = threading.Lock()

    def hold():
        nonlocal inside, most
        for _ in range(60):
            with record.held():
                with guard:
                    inside += 1
                    most = max(most, inside)
                os.sched_yield()
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_two_that_wait_at_once_both_get_the_end_and_it_is_recorded_once(project):
    record = project.run(ended=False)
    box = project.engine.found[record.id] = EndedBox()
    codes = []
    threads = [threading.Thread(target=lambda: codes.append(later.wait(record, print)["exit_code"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [7] * 4
    assert box.events == ["wait", "remove"]


def test_a_box_that_is_gone_is_a_run_that_is_lost(project, capfd):
    record = project.run(ended=False)
    assert listed(capfd)[record.id]["outcome"] == "lost"
    assert run_app(["runs", "wait"]) == 125
    assert capfd.readouterr() == ("", f"reprobox: {record.manifest()['message']}\n")


class VanishingBox(EndedBox):
    """A running box that somebody removes at the first word about it; the engine lists it for a few questions more."""

    def __init__(self, project, record, *, listed=2):
        super().__init__(running=True)
        project.engine.found = self.found = _Listed({record.id: self}, listed)

    def _vanish(self, *_ignored):
        self.found.vanishing = True
        raise EngineError("look at the box: no such container")

    attach = catch_up = _vanish


class _Listed(dict):
    def __init__(self, boxes, listed):
        super().__init__(boxes)
        self.vanishing, self.listed = False, listed

    def get(self, key, default=None):
        self.listed -= self.vanishing
        return super().get(key, default) if self.listed > 0 else default


@pytest.mark.parametrize("verb", ["attach", "wait"])
def test_a_box_that_is_removed_in_this_moment_is_a_run_that_is_lost(project, capfd, verb):
    record = project.run(ended=False)
    VanishingBox(project, record)
    assert run_app(["runs", verb]) == 125
    assert record.manifest()["outcome"] == "lost"
    assert record.manifest()["end"]
    assert capfd.readouterr().err == f"reprobox: {record.manifest()['message']}\n"


def test_a_failure_of_a_box_that_stays_is_told(project, capfd, monkeypatch):
    monkeypatch.setattr(later, "REMOVAL_SECONDS", 0.2)
    record = project.run(ended=False)
    VanishingBox(project, record, listed=1 << 30)
    assert run_app(["runs", "wait"]) == 125
    assert record.manifest()["end"] is None
    assert capfd.readouterr().err == "reprobox: look at the box: no such container\n"


class StuckBox(EndedBox):
    """A box that has ended and that its engine cannot remove."""

    def __exit__(self, kind, error, traceback):
        super().__exit__(kind, error, traceback)
        if error is None and not self.left:
            raise EngineError("the engine could not remove the box", remedy="remove it with `docker rm -f x`")


@pytest.mark.parametrize(("started", "code"), [(True, 7), (False, 125)])
def test_an_end_is_on_record_although_the_box_cannot_be_removed(project, capfd, monkeypatch, started, code):
    monkeypatch.setattr(later, "REMOVAL_SECONDS", 0.1)
    record = project.run(ended=False, start=None)
    project.engine.found[record.id] = StuckBox(started=started)
    assert run_app(["runs", "wait"]) == code
    assert record.manifest()["exit_code"] == code
    assert "docker rm -f x" in capfd.readouterr().err


def test_an_end_that_cannot_be_recorded_is_told_and_its_box_is_kept_for_the_next_look(project, capfd, monkeypatch):
    record = project.run(ended=False)
    box = project.engine.found[record.id] = EndedBox()
    real = store.write_json

    def full(path, document):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_json", full)
    assert run_app(["runs", "wait"]) == 7
    assert "cannot be written (No space left on device)" in capfd.readouterr().err
    assert box.events[-1] == "leave"
    monkeypatch.setattr(store, "write_json", real)
    assert run_app(["runs", "wait"]) == 7
    assert record.manifest()["exit_code"] == 7


class AnotherEngine(FakeEngine):
    """The engine that answers at the address of today."""

    def info(self):
        return EngineInfo(name=self.name, version="0", details={"id": "another"})


ITS_OWN = {"name": "docker", "version": "0", "id": "its own"}


@pytest.mark.parametrize("verb", [["wait"], ["attach"], ["stop"], ["logs", "-f"], ["rm", "-f"]])
def test_another_engine_that_has_no_such_box_says_nothing_of_the_run(project, capfd, verb):
    project.engine = AnotherEngine()
    record = project.run(ended=False, engine=ITS_OWN)
    assert run_app(["runs", *verb, record.id]) == 125
    err = capfd.readouterr().err
    assert "made by another" in err
    assert "DOCKER_HOST" in err
    assert record.manifest()["outcome"] == "running"
    assert record.box_folder.exists()


@pytest.mark.parametrize("verb", ["show", "list"])
def test_what_is_on_record_is_shown_by_another_engine_too(project, capfd, verb):
    project.engine = AnotherEngine()
    record = project.run(ended=False, engine=ITS_OWN)
    assert run_app(["runs", verb, "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown if verb == "show" else shown["runs"][0])["outcome"] == "running"
    assert record.box_folder.exists()


@pytest.mark.parametrize("engine", [{**ITS_OWN, "id": "another"}, {"name": "docker"}, {"name": "docker", "id": ""}])
def test_the_runs_own_engine_and_one_that_is_not_known_say_that_it_is_lost(project, capfd, engine):
    project.engine = AnotherEngine()
    record = project.run(ended=False, engine=engine)
    assert listed(capfd)[record.id]["outcome"] == "lost"


@pytest.fixture
def sent(monkeypatch):
    """The signals that were sent, and reached nobody."""
    signals = []
    monkeypatch.setattr(later.os, "kill", lambda pid, number: signals.append((pid, number)))
    return signals


@contextlib.contextmanager
def minded(record, text):
    with (record.folder / "lock").open("w+b", buffering=0) as lock:
        lock.write(text)
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


OTHERS = {
    "nothing yet": b"",
    "a number": b"1\n",
    "this process's number": f"{os.getpid()}\n".encode(),
    "another boot": Minder.this().to_text().replace(Minder.this().boot, "another").encode(),
    "another namespace": dataclasses.replace(Minder.this(), namespace=1).to_text().encode(),
    "another start": dataclasses.replace(Minder.this(), started=1).to_text().encode(),
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_a_stop_signals_no_strangers_process(project, capfd, monkeypatch, sent, text):
    monkeypatch.setattr(later, "UNKNOWN_SECONDS", 0.05)
    record = project.run(ended=False)
    with minded(record, text):
        assert run_app(["runs", "stop"]) == 125
    assert sent == []
    err = capfd.readouterr().err
    assert "minded elsewhere" in err
    assert "stop it there" in err


def test_a_stop_signals_the_process_that_minds_the_run_until_it_ends_and_kills_by_the_third(project, sent):
    record = project.run(ended=False)
    with minded(record, Minder.this().to_text().encode()):
        thread = threading.Thread(target=later.stop, args=(record, 0, print), daemon=True)
        thread.start()
        thread.join(0.2)
    thread.join(5)
    assert sent == [(os.getpid(), signal.SIGTERM)] * 3


def test_a_stop_waits_for_a_process_that_has_not_written_down_yet_which_it_is(project, monkeypatch, sent):
    record = project.run(ended=False)
    with minded(record, b""):
        thread = threading.Thread(target=later.stop, args=(record, 0, print), daemon=True)
        thread.start()
        (record.folder / "lock").write_text(Minder.this().to_text())
        thread.join(0.2)
    thread.join(5)
    assert sent


def test_a_stop_between_creation_and_start_reaches_the_process_that_is_about_to_start_it(project, sent):
    record = project.run(ended=False, outcome="created", start=None)
    box = project.engine.found[record.id] = EndedBox(started=False)
    with minded(record, Minder.this().to_text().encode()):
        thread = threading.Thread(target=later.stop, args=(record, 0, print), daemon=True)
        thread.start()
        thread.join(0.2)
    thread.join(5)
    assert sent
    assert box.events == ["remove"]


def test_a_stop_of_a_box_that_runs_is_the_engines_and_nobody_is_signalled(project, sent):
    record = project.run(ended=False)
    project.engine.found[record.id] = EndedBox(running=True)
    assert later.stop(record, 0, print)["exit_code"] == 7
    assert sent == []


def test_a_box_that_was_never_started_is_a_failure_and_is_removed(project, capfd):
    record = project.run(ended=False, outcome="created", start=None)
    box = project.engine.found[record.id] = EndedBox(started=False)
    assert (listed(capfd)[record.id]["outcome"], listed(capfd)[record.id]["exit_code"]) == ("failed", 125)
    assert box.events == ["remove"]


def test_a_run_that_goes_on_is_left_alone_by_the_list(project, capfd):
    record = project.run(ended=False)
    box = project.engine.found[record.id] = EndedBox(running=True)
    assert listed(capfd)[record.id]["outcome"] == "running"
    assert box.events == []


def test_an_engine_that_is_away_hides_nothing_that_is_on_record(project, capfd, monkeypatch):
    record = project.run(ended=False)

    def away(_name):
        raise EngineUnavailable("away")

    monkeypatch.setattr(later, "open_engine", away)
    assert listed(capfd)[record.id]["outcome"] == "running"
    assert run_app(["runs", "wait"]) == 125


def test_a_finished_run_whose_box_folder_could_not_be_removed_keeps_its_end(project, capfd, monkeypatch):
    record = project.run()
    record.box_folder.mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_arguments, **_options: None)  # another user's files are in it
    assert listed(capfd)[record.id]["outcome"] == "exited"
    assert later.wait(record, print)["exit_code"] == 0


def test_removing_a_run_twice_in_one_line_is_no_failure_of_reprobox(project, capfd):
    record = project.run()
    assert run_app(["runs", "rm", record.id, "last"]) in (0, 2)
    assert "itself failed" not in capfd.readouterr().err


def test_attaching_to_a_run_that_is_over_says_so(project):
    with pytest.raises(RecordError, match="no running box"):
        later.attach(project.run(), None, print)


@pytest.fixture
def tiny_logs(monkeypatch):
    for function in (logs.StreamLog.__init__, logs.read_log, logs.read_on):
        for name, size in (("head", 10), ("tail", 8)):
            if name in function.__kwdefaults__:
                monkeypatch.setitem(function.__kwdefaults__, name, size)
    for name, size in (("HEAD_BYTES", 10), ("TAIL_BYTES", 8)):
        monkeypatch.setattr(logs, name, size)
        if hasattr(later, name):
            monkeypatch.setattr(later, name, size)


def followed(record):
    got = []
    later.wait(record, print, lambda stream, data: got.append(data))
    return b"".join(got)


@pytest.mark.parametrize("count", [0, 5, 10, 14, 17, 18])
def test_the_output_of_a_run_whose_minder_was_killed_is_followed_from_its_first_byte(project, tiny_logs, count):
    output = bytes(range(65, 65 + 26))
    record = project.run(ended=False)
    killed = logs.RunLogs(record.folder, keep=True, say=print)
    killed.write("stdout", output[:count])
    project.engine.found[record.id] = EndedBox(output)
    got = followed(record)
    assert got == output


def test_a_follower_that_is_slow_gets_nothing_twice(project, tiny_logs):
    output = bytes(range(33, 33 + 90))
    record = project.run(ended=False)
    got = []
    kept = logs.RunLogs(record.folder, keep=True, say=print)
    kept.write("stdout", output[:5])
    held = contextlib.ExitStack()

    def write(_stream, data):
        got.append(data)
        if len(got) == 1:
            kept.write("stdout", output[5:60])
        elif len(got) == 2:
            kept.write("stdout", output[60:])
            kept.close()
            shutil.rmtree(record.box_folder)
            end = {"end": "now", "exit_code": 0, "outcome": "exited", "streams": kept.to_json()}
            record.write(record.manifest() | end)
            held.close()

    with held:
        held.enter_context(record.held())
        later.wait(record, print, write)
    seen = [byte for byte in b"".join(got) if byte not in b"\n[reprobox: 0123456789 bytes are left out here]"]
    assert seen == sorted(seen), "out of order, or twice"
    assert len(seen) == len(set(seen))


def test_a_follower_whose_reader_has_gone_ends(project):
    record = project.run(ended=False)
    kept = logs.RunLogs(record.folder, keep=True, say=print)
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    done = threading.Event()
    try:
        with record.held():
            kept.write("stdout", b"a line\n")
            thread = threading.Thread(target=lambda: (run_app(["runs", "logs", "-f"]), done.set()), daemon=True)
            thread.start()
            ended = done.wait(2)
            record.write(record.manifest() | {"end": "now", "exit_code": 0, "outcome": "exited"})
            shutil.rmtree(record.box_folder)
        thread.join(5)
    finally:
        os.dup2(saved, 1)
        for descriptor in (saved, writer):
            os.close(descriptor)
    assert ended, "it went on until the run ended"
