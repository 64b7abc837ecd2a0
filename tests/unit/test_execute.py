"""A plan carried out on the fake engine: order, codes, records, interruptions."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from reprobox.engines import BoxOptions, EngineName, Exit, ImageInfo
from reprobox.engines.fake import FakeBox, FakeEngine, Script
from reprobox.errors import EngineError, RecordError, UsageError
from reprobox.gpus import Inventory
from reprobox.project import Project
from reprobox.recipe import Recipe, SelfTest
from reprobox.runs import hashes, store
from reprobox.runs.execute import Outside, execute
from reprobox.runs.interrupts import Interrupts
from reprobox.runs.manifest import first_manifest
from reprobox.runs.mounts import parse_volume
from reprobox.runs.plan import RunRequest, make_plan
from reprobox.runs.store import RunStore, new_run_id
from reprobox.runs.streams import Output

IMAGE = ImageInfo(engine_id="sha256:e", image_id="sha256:i", repo_digests=(), labels={})


class Run:
    """One run on the fake engine and everything it left."""

    def __init__(self, folder, script, **fields):
        self.engine = FakeEngine(script=script)
        self.said = []
        project = Project(root=folder, directory=folder)
        values = {
            "command": ("train",),
            "recipe": Recipe(seed=1),
            "engine": EngineName.DOCKER,
            "image": "img",
            "selftest": SelfTest.OFF,
        }
        self.request = RunRequest(project=project, **{**values, **fields})
        store = RunStore(folder)
        run_id = new_run_id()
        self.plan = make_plan(self.request, run_id, store.folder / run_id, IMAGE)
        self.record = store.create(run_id)
        self.manifest = first_manifest(self.plan, self.engine.info(), Inventory())

    def go(self, stdout, stderr, started=None):
        with Interrupts(self.said.append) as interrupts:
            output = Output(stdout, stderr)
            outside = Outside(interrupts=interrupts, say=self.said.append, output=output, started=started)
            return execute(self.plan, self.engine, self.record, self.manifest, outside)


def handed_over(spec):
    """What the entrypoint does just before exec: leave the stage in the run folder."""
    source = next(m.source for m in spec.mounts if m.target == "/run/reprobox/run")
    with open(f"{source}/stage", "w", encoding="ascii") as file:
        file.write("exec\n")


@pytest.fixture
def pipes(tmp_path):
    with open(tmp_path / "out", "wb+") as out, open(tmp_path / "err", "wb+") as err:
        yield out.fileno(), err.fileno()


def written(tmp_path):
    return (tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes()


def test_it_attaches_before_it_starts_and_removes_last(tmp_path, pipes):
    run = Run(tmp_path, Script(on_start=handed_over))
    assert run.go(*pipes) == 0
    assert run.engine.boxes[0].events == ["create", "attach", "start", "stream", "wait", "remove"]


def test_output_is_passed_byte_for_byte_and_streams_stay_apart(tmp_path, pipes):
    everything = bytes(range(256))
    run = Run(
        tmp_path, Script(output=[("stdout", everything), ("stderr", b"e"), ("stdout", b"o")], on_start=handed_over)
    )
    run.go(*pipes)
    assert written(tmp_path) == (everything + b"o", b"e")


@pytest.mark.parametrize("code", [0, 1, 72, 125, 126, 127, 137, 143, 255])
def test_the_commands_own_code_is_passed_through_and_the_manifest_says_whose_it_is(tmp_path, pipes, code):
    run = Run(tmp_path, Script(exit=Exit(code=code), on_start=handed_over))
    assert run.go(*pipes) == code
    manifest = run.record.manifest()
    assert (manifest["outcome"], manifest["exit_code"], manifest["exit_code_of"]) == ("exited", code, "command")
    assert manifest["stage"] == "exec"
    assert manifest["start"] <= manifest["end"]


@pytest.mark.parametrize("code", [125, 126, 127])
def test_a_code_before_the_command_took_over_is_reproboxs(tmp_path, pipes, code):
    run = Run(tmp_path, Script(exit=Exit(code=code)))
    assert run.go(*pipes) == code
    manifest = run.record.manifest()
    assert (manifest["outcome"], manifest["exit_code_of"]) == ("refused", "reprobox")


def test_out_of_memory_is_said_and_recorded(tmp_path, pipes):
    run = Run(tmp_path, Script(exit=Exit(code=137, out_of_memory=True), on_start=handed_over))
    assert run.go(*pipes) == 137
    assert run.record.manifest()["outcome"] == "out-of-memory"
    assert any("out of memory" in line for line in run.said)


def test_out_of_memory_in_a_child_only_is_a_warning(tmp_path, pipes):
    run = Run(tmp_path, Script(exit=Exit(code=0, out_of_memory=True), on_start=handed_over))
    assert run.go(*pipes) == 0
    assert run.record.manifest()["outcome"] == "exited"
    assert any("the command itself went on" in line for line in run.said)


@pytest.mark.parametrize("verb", ["create", "attach", "start", "stream", "wait"])
def test_an_engine_that_fails_leaves_no_box_and_a_complete_record(tmp_path, pipes, verb):
    run = Run(tmp_path, Script(fail_at=verb))
    with pytest.raises(EngineError, match=verb):
        run.go(*pipes)
    assert all(box.events[-1] == "remove" for box in run.engine.boxes)
    manifest = run.record.manifest()
    assert (manifest["outcome"], manifest["exit_code"]) == ("failed", 125)
    assert verb in manifest["message"]
    assert manifest["end"]


class StuckBox(FakeBox):
    """A box that its engine cannot remove."""

    def __exit__(self, kind, error, traceback):
        if error is None:
            raise EngineError("the engine could not remove the box", remedy="remove it with `docker rm -f x`")


def test_a_known_exit_code_is_kept_where_the_box_cannot_be_removed(tmp_path, pipes, monkeypatch):
    run = Run(tmp_path, Script(exit=Exit(code=7), on_start=handed_over))
    monkeypatch.setattr(FakeEngine, "create", lambda engine, spec: StuckBox(spec, engine.script))
    assert run.go(*pipes) == 7
    manifest = run.record.manifest()
    assert (manifest["outcome"], manifest["exit_code"]) == ("exited", 7)
    assert any("docker rm -f x" in line for line in run.said)


@pytest.fixture
def full(monkeypatch):
    """Make the disk full from the moment when a manifest has this outcome."""
    real, state = store.write_json, {"full": False, "from": None}

    def write(path, document):
        state["full"] = state["full"] or document["outcome"] == state["from"]
        if state["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, document)

    monkeypatch.setattr(store, "write_json", write)
    return lambda outcome: state.update({"from": outcome})


@pytest.mark.parametrize("moment", ["created", "running", "exited"])
def test_a_record_that_cannot_be_written_is_told_once_and_the_run_goes_on(tmp_path, pipes, full, moment):
    full(moment)
    run = Run(tmp_path, Script(exit=Exit(code=7), output=[("stdout", b"trained\n")], on_start=handed_over))
    assert run.go(*pipes) == 7
    assert run.engine.boxes[0].events == ["create", "attach", "start", "stream", "wait", "remove"]
    assert sum("cannot be written (No space left on device)" in line for line in run.said) == 1


def test_a_run_that_has_no_record_from_its_beginning_is_not_started(tmp_path, pipes, full):
    full("planned")
    run = Run(tmp_path, Script())
    with pytest.raises(RecordError, match="No space left on device"):
        run.go(*pipes)
    assert run.engine.boxes == []


def test_a_command_that_removes_its_own_record_keeps_its_exit_code(tmp_path, pipes):
    def remove(spec):
        handed_over(spec)
        shutil.rmtree(tmp_path / ".reprobox")

    run = Run(tmp_path, Script(exit=Exit(code=7), output=[("stdout", b"x")], on_start=remove))
    assert run.go(*pipes) == 7
    assert any("cannot be written" in line for line in run.said)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_before_the_start_ends_it_and_nothing_was_started(tmp_path, pipes, number, monkeypatch):
    run = Run(tmp_path, Script())
    original = FakeEngine.create

    def create(engine, spec):
        os.kill(os.getpid(), number)
        return original(engine, spec)

    monkeypatch.setattr(FakeEngine, "create", create)
    assert run.go(*pipes) == 128 + number
    assert run.engine.boxes[0].events == ["create", "attach", "remove"]
    assert run.record.manifest()["outcome"] == "interrupted"


class Entrypoint:
    """A fake's command that takes its time over exec: it holds the stage's lock until ``becomes`` the command or fails."""

    def __init__(self, monkeypatch, *, becomes):
        self.becomes = becomes
        self.begun = []
        monkeypatch.setattr(FakeBox, "stream", lambda box, _write, _say: self.run(box))

    def run(self, box):
        stage = Path(next(m.source for m in box.spec.mounts if m.target == "/run/reprobox/run")) / "stage"
        with (stage.parent / ".stage").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write("exec\n")
            file.flush()
            (stage.parent / ".stage").replace(stage)
            time.sleep(0.1)
            assert self.begun == [], "it was told before the command had begun"
            if not self.becomes:
                (stage.parent / "next").write_text("exec-failed\n")
                (stage.parent / "next").replace(stage)
        if self.becomes:
            until(lambda: self.begun)


def until(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_has_begun_when_the_entrypoint_has_become_the_command(tmp_path, pipes, monkeypatch):
    entrypoint = Entrypoint(monkeypatch, becomes=True)
    assert Run(tmp_path, Script()).go(*pipes, started=lambda: entrypoint.begun.append(1)) == 0
    assert entrypoint.begun == [1]


def test_a_run_whose_command_cannot_be_executed_has_never_begun(tmp_path, pipes, monkeypatch):
    entrypoint = Entrypoint(monkeypatch, becomes=False)
    run = Run(tmp_path, Script(exit=Exit(code=127)))
    assert run.go(*pipes, started=lambda: entrypoint.begun.append(1)) == 127
    assert entrypoint.begun == []
    assert run.record.manifest()["stage"] == "exec-failed"


def test_a_command_that_is_over_before_anybody_looked_has_begun(tmp_path, pipes):
    begun = []
    assert Run(tmp_path, Script(on_start=handed_over)).go(*pipes, started=lambda: begun.append(1)) == 0
    assert begun == [1]


def test_signals_are_forwarded_and_the_third_kills(tmp_path, pipes):
    def three(spec):
        handed_over(spec)
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)

    run = Run(tmp_path, Script(on_start=three, exit=Exit(code=137)))
    assert run.go(*pipes) == 137
    assert run.engine.boxes[0].signals == [signal.SIGTERM, signal.SIGTERM, signal.SIGKILL]


class Hashing:
    """Sends this process a signal at the first MiB that is hashed, and counts them."""

    def __init__(self, monkeypatch, number=signal.SIGTERM):
        self.number, self.pieces = number, 0
        monkeypatch.setattr(hashes.hashlib, "sha256", lambda: self)

    def update(self, _data):
        self.pieces += 1
        if self.number is not None:
            os.kill(os.getpid(), self.number)

    def hexdigest(self):
        return "digest"


def large(path):
    with path.open("wb") as file:
        file.truncate(8 << 20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_inputs_are_hashed_ends_the_run_before_its_box_is_made(tmp_path, pipes, number, monkeypatch):
    large(tmp_path / "in")
    large(tmp_path / "out.bin")
    run = Run(tmp_path, Script(), inputs=("in",), outputs=("out.bin",))
    hashing = Hashing(monkeypatch, number)
    assert run.go(*pipes) == 128 + number
    assert hashing.pieces == 1
    assert run.engine.boxes == []
    manifest = run.record.manifest()
    assert (manifest["outcome"], manifest["inputs"], manifest["outputs"]) == (
        "interrupted",
        {"in": None},
        {"out.bin": None},
    )


def test_a_signal_while_outputs_are_hashed_leaves_the_rest_out_and_says_so(tmp_path, pipes, monkeypatch):
    large(tmp_path / "a")
    large(tmp_path / "b")
    run = Run(tmp_path, Script(on_start=handed_over, exit=Exit(code=3)), outputs=("a", "b"))
    hashing = Hashing(monkeypatch)
    assert run.go(*pipes) == 3
    assert hashing.pieces == 1
    manifest = run.record.manifest()
    assert (manifest["outcome"], manifest["exit_code"], manifest["outputs"]) == ("exited", 3, {"a": None, "b": None})
    assert any("while the outputs were hashed" in line for line in run.said)
    assert run.engine.boxes[0].signals == [], "the box has ended"


def test_a_signal_that_ended_the_command_leaves_its_outputs_hashed(tmp_path, pipes, monkeypatch):
    def ended(spec):
        handed_over(spec)
        os.kill(os.getpid(), signal.SIGTERM)

    large(tmp_path / "a")
    run = Run(tmp_path, Script(on_start=ended, exit=Exit(code=143)), outputs=("a",))
    hashing = Hashing(monkeypatch, number=None)
    assert run.go(*pipes) == 143
    assert (hashing.pieces, run.record.manifest()["outputs"]) == (8, {"a": "digest"})
    assert not any("hashed" in line for line in run.said)


def test_the_handlers_that_were_there_are_put_back(tmp_path, pipes):
    before = signal.getsignal(signal.SIGTERM)
    Run(tmp_path, Script(on_start=handed_over)).go(*pipes)
    assert signal.getsignal(signal.SIGTERM) is before


def test_when_nobody_reads_stdout_the_command_is_ended(tmp_path, pipes):
    reader, writer = os.pipe()
    os.close(reader)
    run = Run(tmp_path, Script(output=[("stdout", b"x")] * 3, on_start=handed_over, exit=Exit(code=143)))
    assert run.go(writer, pipes[1]) == 143
    assert run.engine.boxes[0].signals == [signal.SIGTERM]
    os.close(writer)


def test_the_box_is_closed_down(tmp_path):
    box = Run(tmp_path, Script()).plan.box
    assert box.read_only
    assert box.user == f"{os.getuid()}:{os.getgid()}"
    assert box.environment["HOME"] == "/home/box"
    assert "exec" in box.tmpfs["/tmp"]
    assert box.shm_bytes > 64 << 20
    assert box.labels["reprobox.run"] == box.run_id


def test_the_box_finds_the_caller_in_passwd(tmp_path, pipes):
    seen = {}

    def look(spec):
        for mount in spec.mounts:
            if mount.target.startswith("/etc/"):
                with open(mount.source, encoding="utf-8") as file:
                    seen[mount.target] = file.read()

    run = Run(tmp_path, Script(on_start=look))
    run.go(*pipes)
    assert f":x:{os.getuid()}:{os.getgid()}:" in seen["/etc/passwd"]
    assert f":x:{os.getgid()}:" in seen["/etc/group"]
    assert not (run.record.folder / "box").exists()


def test_a_drawn_seed_is_in_the_plan_and_the_record(tmp_path):
    run = Run(tmp_path, Script(), recipe=Recipe())
    assert run.plan.seed_was_drawn
    assert run.plan.box.environment["REPROBOX_SEED"] == str(run.manifest["recipe"]["seed"])


def test_a_given_secret_is_nowhere_in_the_record(tmp_path, pipes):
    run = Run(
        tmp_path,
        Script(exit=Exit(code=127, error="no such label: k=supersecretvalue")),
        command=("train", "--k=supersecretvalue"),
        environment={"ENDPOINT": "https://h/?k=supersecretvalue", "EPOCHS": "3"},
        options=BoxOptions(labels={"at": "https://h/?k=supersecretvalue", "team": "vision"}),
        secrets={"KEY": b"supersecretvalue\n"},
    )
    assert run.go(*pipes) == 127
    assert "supersecretvalue" not in run.record.manifest_path.read_text()
    manifest = run.record.manifest()
    assert manifest["environment"] == {"ENDPOINT": "(redacted)", "EPOCHS": "3"}
    assert manifest["options"]["labels"] == {"at": "(redacted)", "team": "vision"}
    assert manifest["message"] == "no such label: k=(redacted)"
    assert "supersecretvalue" not in str(run.plan.to_json())


def test_two_mounts_on_one_target_are_refused(tmp_path):
    mount = parse_volume(f"{tmp_path}:/data", tmp_path)
    with pytest.raises(UsageError, match="same target"):
        Run(tmp_path, Script(), mounts=(mount, mount))


def test_a_users_own_mount_takes_the_place_of_the_workspace(tmp_path):
    run = Run(tmp_path, Script(), mounts=(parse_volume(f"{tmp_path}:/workspace:ro", tmp_path),))
    assert [m.read_only for m in run.plan.box.mounts if m.target == "/workspace"] == [True]


def test_the_local_engine_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(UsageError, match="--engine local has no --shm-size"):
        Run(tmp_path, Script(), engine=EngineName.LOCAL, image=None, container_flags=("--shm-size",))
