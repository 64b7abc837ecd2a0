"""Boxes of self-tests: noted while they live, and removed by the next run where their process was killed."""

from __future__ import annotations

import pytest

from reprobox.engines import Exit, ImageInfo
from reprobox.engines.fake import FakeBox, FakeEngine, Script
from reprobox.errors import EngineUnavailable, SelfTestError
from reprobox.gpus import Gpu
from reprobox.recipe import Recipe
from reprobox.selftest.boxes import noted, notes_folder, remove_left
from reprobox.selftest.proof import Subject, carry_out

IMAGE = ImageInfo(engine_id="sha256:e", image_id="sha256:i", repo_digests=(), labels={})
RUN = "selftest-7-1"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class LeftBox(FakeBox):
    """A box that is found again; leaving its block is not what removes it."""

    def remove(self):
        self.do("remove")


class Left(FakeEngine):
    """An engine that still has the box of a self-test, and counts the questions."""

    def __init__(self, *, name="docker", hangs=False):
        super().__init__(name=name)
        self.box = LeftBox(spec=None, script=Script())
        self.found[RUN] = self.box
        self.asked, self.hangs = 0, hangs

    def find(self, run_id):
        self.asked += 1
        if self.hangs:
            raise EngineUnavailable("it hangs")
        return super().find(run_id)


def killed(engine):
    """Leave the note that a process leaves which is killed: nobody holds its lock."""
    with noted(engine, RUN):
        note = next(notes_folder().iterdir())
        text = note.read_text()
    note.write_text(text)


def test_the_box_of_a_killed_self_test_is_removed_once():
    engine = Left()
    killed(engine)
    remove_left(engine)
    assert engine.box.events == ["remove"]
    assert list(notes_folder().iterdir()) == []
    remove_left(engine)
    assert engine.asked == 1


def test_the_box_of_a_living_self_test_is_left_alone():
    engine = Left()
    with noted(engine, RUN):
        remove_left(engine)
    assert (engine.asked, engine.box.events) == (0, [])


def test_without_a_note_no_engine_is_asked():
    engine = Left()
    remove_left(engine)
    with noted(engine, RUN):
        pass
    remove_left(engine)
    assert engine.asked == 0


def test_another_engines_box_is_left_to_that_engine():
    killed(Left(name="podman"))
    engine = Left()
    remove_left(engine)
    assert engine.asked == 0
    assert len(list(notes_folder().iterdir())) == 1


def test_an_engine_that_hangs_is_asked_again_the_next_time():
    engine = Left(hangs=True)
    killed(engine)
    remove_left(engine)
    engine.hangs = False
    remove_left(engine)
    assert engine.box.events == ["remove"]


def test_a_box_that_is_gone_takes_its_note_with_it():
    engine = Left()
    killed(engine)
    engine.found.clear()
    remove_left(engine)
    assert list(notes_folder().iterdir()) == []


def test_a_folder_that_cannot_be_written_keeps_no_self_test_from_running(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with noted(Left(), RUN):
        pass
    remove_left(Left())


def test_a_self_tests_box_is_noted_while_it_lives_and_says_which_gpus_it_has():
    seen = []
    script = Script(
        exit=Exit(code=1), on_start=lambda spec: seen.append([note.name for note in notes_folder().iterdir()])
    )
    engine = FakeEngine(script=script)
    gpus = tuple(Gpu(index=n, uuid=f"GPU-{n}", name="H200", ecc=True, mig=False) for n in range(2))
    with pytest.raises(SelfTestError):
        carry_out(Subject(engine=engine, image=IMAGE, recipe=Recipe(seed=1), gpus=gpus), tier="start")
    spec = engine.boxes[0].spec
    assert seen == [[f"fake.{spec.run_id}"]]
    assert list(notes_folder().iterdir()) == []
    assert spec.labels == {"reprobox.run": spec.run_id, "reprobox.gpus": "GPU-0,GPU-1"}
