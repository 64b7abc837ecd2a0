"""The project file: its keys, its schema, what init writes, and that a run takes what it says."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from reprobox.cli.flags import FLAGS
from reprobox.errors import BoxError, UsageError
from reprobox.project import Project
from reprobox.project_file import PROJECT_KEYS, ProjectFile
from reprobox.project_schema import project_schema, schema_text, shipped_schema, suggestion, template
from reprobox.runs.request import parse_request
from reprobox.settings import SETTINGS, Settings, load_project_file, setting_keys

EVERYTHING = """\
variant = "cpu"
python = ["einops>=0.8"]
allow-sdist = ["antlr4"]
apt = ["git", "libsndfile1"]
mounts = ["./data:/data:ro"]
environment = { MODE = "fast" }
outputs = ["weights.pt"]
seed = 7
"""


def write(folder, text, name="reprobox.toml"):
    (folder / name).write_text(text)
    return folder


def test_every_key_is_read(tmp_path):
    assert load_project_file(write(tmp_path, EVERYTHING)) == ProjectFile(
        variant="cpu",
        python=("einops>=0.8",),
        allow_sdist=("antlr4",),
        apt=("git", "libsndfile1"),
        mounts=("./data:/data:ro",),
        environment={"MODE": "fast"},
        outputs=("weights.pt",),
    )


def test_a_pyproject_table_says_the_same(tmp_path):
    text = "[project]\nname = 'x'\n[tool.reprobox]\n" + EVERYTHING
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    own, shared = write(tmp_path / "a", EVERYTHING), write(tmp_path / "b", text, "pyproject.toml")
    assert load_project_file(shared) == load_project_file(own)


def test_without_a_project_file_nothing_is_asked_for(tmp_path):
    assert load_project_file(tmp_path) == ProjectFile(environment={})


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("pyhton = []", r"unknown key 'pyhton' \(did you mean python\?\)"),
        ("mount = []", r"'mount' \(did you mean mounts\?\)"),
        ("python = 3", "python has to be a list of texts, and is a number"),
        ("python = [3]", "python has to be a list of texts"),
        ("python = '/etc/requirements.txt'", "inside the project"),
        ("python = '../requirements.txt'", "inside the project"),
        ("variant = 'gpu'", "variant cannot be 'gpu'"),
        ("variant = 'cdua'", r"did you mean cuda\?"),
        ("variant = ['cpu']", "variant cannot be"),
        ("apt = 'git'", "apt has to be a list of texts, and is a text"),
        ("apt = ['git; rm -rf /']", "apt cannot hold"),
        ("allow-sdist = ['-r x']", "allow-sdist cannot hold"),
        ("mounts = { a = 1 }", "mounts has to be a list of texts, and is a table"),
        ("outputs = [true]", "outputs has to be a list of texts"),
        ("environment = ['A=1']", "environment has to be a table, and is a list"),
        ("environment = { A = 1 }", "environment.A has to be a text, and is a number"),
        ("environment = { 'A-B' = '1' }", "'A-B': it is no variable's name"),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence_that_names_the_key(text, named, tmp_path):
    with pytest.raises(UsageError, match=named) as caught:
        load_project_file(write(tmp_path, text))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------------------------------------------------- the schema


def test_the_shipped_schema_is_made_of_the_tables_of_keys():
    assert shipped_schema() == schema_text(), (
        "write it again: python -c 'from reprobox.project_schema import schema_text; print(schema_text(), end=\"\")' "
        "> reprobox/schemas/reprobox.schema.json"
    )


def test_the_schema_has_every_key_and_refuses_others():
    schema = project_schema()
    assert set(schema["properties"]) == {key.name for key in PROJECT_KEYS} | set(setting_keys())
    assert schema["additionalProperties"] is False
    assert all(entry["description"] for entry in schema["properties"].values())


def test_a_key_that_is_added_makes_the_shipped_schema_stale(monkeypatch):
    monkeypatch.setattr("reprobox.project_schema.PROJECT_KEYS", PROJECT_KEYS[1:])
    assert shipped_schema() != schema_text()


def judged(schema, value):
    """Whether ``value`` fits, by the few words of JSON schema that ours uses."""
    if "anyOf" in schema:
        return any(judged(one, value) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"] and not isinstance(value, bool)
    kinds = {"string": str, "boolean": bool, "integer": int, "array": list, "object": dict}
    if not isinstance(value, kinds[schema["type"]]) or (schema["type"] == "integer" and isinstance(value, bool)):
        return False
    if schema["type"] == "boolean":
        return True
    if schema["type"] == "string":
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if schema["type"] == "integer":
        return schema.get("minimum", 0) <= value <= schema.get("maximum", value)
    if schema["type"] == "array":
        return all(judged(schema["items"], one) for one in value)
    if "properties" in schema:
        return all(key in schema["properties"] and judged(schema["properties"][key], v) for key, v in value.items())
    names = schema["propertyNames"]["pattern"]
    return all(re.search(names, key) and judged(schema["additionalProperties"], one) for key, one in value.items())


@pytest.mark.parametrize(
    "text",
    [
        EVERYTHING,
        "python = 'uv.lock'", "python = 3", "python = ['']", "variant = 'gpu'", "apt = ['Git']", "apt = []", "mounts = ''",
        "environment = { A = 1 }", "environment = { 'A-B' = '' }", "outputs = [1]", "seed = -1", "seed = '4'", "seed = true",
        "threads = 0", "threads = 8", "fill = 'on'", "fill = 'yes'", "fill = true", "profile = 'strict'", "profile = 'strickt'",
        "gpus = 1", "gpus = '0,1'", "shm-size = '8g'", "quiet = 1", "selftest = 'off'", "engine = 'rkt'", "sead = 1", "network = ''",
    ],
)  # fmt: skip
def test_the_schema_and_the_reader_agree(text, tmp_path):
    try:
        load_project_file(write(tmp_path, text))
        taken = True
    except UsageError:
        taken = False
    assert judged(project_schema(), tomllib.loads(text)) == taken


# --------------------------------------------------------------------------------------------------------------- init


def test_what_init_writes_says_nothing_yet_and_explains_every_key(tmp_path):
    write(tmp_path, template())
    assert load_project_file(tmp_path) == ProjectFile(environment={})
    for key in [*(key.name for key in PROJECT_KEYS), *setting_keys()]:
        assert re.search(rf"^# {key} = ", template(), re.MULTILINE)


def test_every_example_of_init_is_a_value_that_is_taken(tmp_path):
    examples = re.findall(r"^# ([a-z-]+ = .*)$", template(), re.MULTILINE)
    assert len(examples) == len(PROJECT_KEYS) + len(SETTINGS)
    for example in examples:
        load_project_file(write(tmp_path, example + "\n"))


def test_init_takes_the_list_of_packages_that_is_there(tmp_path):
    assert suggestion(tmp_path) == {}
    (tmp_path / "requirements.txt").touch()
    assert load_project_file(write(tmp_path, template(suggestion(tmp_path)))).python == "requirements.txt"


# ------------------------------------------------------------------------------------------------------- what a run takes


def request(folder, typed=None, *, engine="docker", inside="."):
    values = {flag.dest: None for flag in FLAGS} | (typed or {})
    settings = Settings.load({"engine": engine}, folder, {})
    project = Project(root=folder, directory=folder / inside)
    return parse_request(("true",), values, settings, project, ())


@pytest.fixture
def project(tmp_path):
    for name in ("data", "other", "src"):
        (tmp_path / name).mkdir()
    return write(tmp_path, EVERYTHING)


def test_mounts_environment_and_outputs_of_the_project_file_are_those_of_a_run(project):
    found = request(project)
    assert [(mount.source, mount.target, mount.read_only) for mount in found.mounts] == [
        (str(project / "data"), "/data", True)
    ]
    assert found.environment == {"MODE": "fast"}
    assert found.outputs == ("weights.pt",)


def test_without_the_keys_a_run_has_none_of_them(tmp_path):
    found = request(write(tmp_path, "seed = 7\n"))
    assert (found.mounts, found.environment, found.outputs) == ((), {}, ())


def test_paths_of_the_project_file_count_from_the_project_wherever_one_stands(project):
    found = request(project, inside="src")
    assert found.mounts[0].source == str(project / "data")
    assert found.outputs == ("weights.pt",)


def test_what_is_typed_wins_or_is_added(project):
    typed = {
        "volume": ["./other:/data", "./other:/more"],
        "env": ["MODE=slow", "A=1"],
        "output": ["log.txt", "weights.pt"],
    }
    found = request(project, typed)
    assert [(mount.source, mount.target) for mount in found.mounts] == [
        (str(project / "other"), "/data"),
        (str(project / "other"), "/more"),
    ]
    assert found.environment == {"MODE": "slow", "A": "1"}
    assert found.outputs == ("weights.pt", "log.txt")


def test_a_tmpfs_that_is_typed_wins_over_a_mount_of_the_project_file(project):
    found = request(project, {"tmpfs": ["/data"]})
    assert found.mounts == ()
    assert list(found.tmpfs) == ["/data"]


def test_on_this_machine_itself_nothing_is_mounted_and_the_rest_holds(project):
    found = request(project, engine="local")
    assert found.mounts == ()
    assert found.environment == {"MODE": "fast"}
    assert found.outputs == ("weights.pt",)


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("mounts = ['./gone:/data']", BoxError, "mounts ./gone:/data"),
        ("mounts = ['./data']", UsageError, "mounts cannot be './data'"),
        ("mounts = ['./data:/usr/lib']", UsageError, "mounts ./data:/usr/lib"),
        ("environment = { REPROBOX_SEED = '1' }", UsageError, "REPROBOX_SEED"),
        ("outputs = ['../up']", UsageError, "outputs cannot be '../up'"),
    ],
)
def test_what_a_run_cannot_take_is_refused_by_the_name_of_the_key(text, error, named, project):
    with pytest.raises(error, match=re.escape(named)):
        request(write(project, text))


def test_what_looks_like_a_secret_is_no_plain_variable(project):
    found = request(write(project, "environment = { API_TOKEN = 'hf_abcdefghijkl' }"))
    assert found.environment == {}
    assert found.secrets == {"API_TOKEN": b"hf_abcdefghijkl"}


def test_the_schema_is_json():
    assert json.loads(shipped_schema())["title"] == "reprobox.toml"
