"""``reprobox init`` as a user types it."""

from __future__ import annotations

import json
import tomllib

from support.locking import Place


def test_init_writes_a_project_file_once(tmp_path):
    place = Place(tmp_path / "p", tmp_path / "c")
    done = place.call("init")
    path = place.folder / "reprobox.toml"
    assert done.stdout.strip() == str(path)
    assert tomllib.loads(path.read_text()) == {}
    path.write_text("seed = 1\n")
    assert "there is a reprobox.toml already" in place.call("init", code=2).stderr
    assert path.read_text() == "seed = 1\n"
    assert json.loads(place.call("init", "--force", "--json").stdout) == {
        "schema": "reprobox.init/1",
        "path": str(path),
    }
    assert "# python = " in path.read_text()
