"""Records of earlier runs, and a fake engine that may still have their boxes."""

from __future__ import annotations

import json

from reprobox.cli.app import run_app
from reprobox.engines import EngineName, Exit, ImageInfo
from reprobox.engines.fake import FakeBox, FakeEngine, Script
from reprobox.gpus import Inventory
from reprobox.project import Project
from reprobox.recipe import Recipe
from reprobox.runs.manifest import first_manifest
from reprobox.runs.plan import RunRequest, make_plan
from reprobox.runs.store import RunStore, new_run_id

IMAGE = ImageInfo(engine_id="sha256:e", image_id="sha256:i", repo_digests=(), labels={})


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


class EarlierRuns:
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


def listed(capfd):
    code = run_app(["runs", "list", "--json"])
    out, err = capfd.readouterr()
    assert code == 0, err
    assert "Traceback" not in err
    return {run["id"]: run for run in json.loads(out)["runs"]}
