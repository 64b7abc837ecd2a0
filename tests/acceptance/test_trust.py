"""A project file that asks for more than its project, and a box that writes one."""

from __future__ import annotations

import json
import re

import pytest
from support.cli import BIN

from reprobox.images import local_tag
from reprobox.images.lockfile import write_lock
from reprobox.images.lockmodel import Inputs, Lock

pytestmark = pytest.mark.engine

SEED = ("--seed", "42")
HASH_LENGTH = 64


def typed(docker, *words, **options):
    """``reprobox run`` as a person types it in a cloned project: no flag but the seed."""
    return docker.call(BIN / "reprobox", "run", *SEED, *words, check=False, **options)


# --- what the box can write -----------------------------------------------------------------------------------------

WRITES = {
    "over": "echo 'engine = \"local\"' > {}",
    "beside and moved": "echo x > new && mv new {}",
    "removed": "rm -f {}",
    "moved away": "mv {} away",
    "through a link": "ln -sf {} link && echo x >> link",
    "through a hard link": "ln -f {} link && echo x >> link",
}


@pytest.mark.parametrize("way", WRITES)
def test_the_box_cannot_write_the_project_file_or_the_lock(docker, way):
    write_lock(docker.folder / "reprobox.lock", Lock(inputs=Inputs(variants=("cpu",))))
    paths = [docker.folder / name for name in ("reprobox.toml", "reprobox.lock")]
    before = [(path.stat().st_ino, path.read_text()) for path in paths]
    script = "; ".join(f"({WRITES[way].format(path.name)}) && echo written" for path in paths)
    done = docker.run("sh", "-c", f"{script}; true", flags=(*SEED, "--image", local_tag("cpu")))
    assert done.stdout == ""
    assert re.search("Read-only file system|Device or resource busy|Invalid cross-device link", done.stderr)
    assert [(path.stat().st_ino, path.read_text()) for path in paths] == before
    assert "project files are not" not in done.stderr


def test_nor_through_a_mount_that_holds_the_project(docker):
    docker.write("reprobox.toml", "")
    done = docker.run("sh", "-c", "echo x > /again/reprobox.toml", flags=(*SEED, "-v", ".:/again"), check=False)
    assert "Read-only file system" in done.stderr
    refused = docker.run("true", flags=(*SEED, "-v", "./reprobox.toml:/x"), check=False)
    assert refused.returncode == 2
    assert "mount it read-only (:ro)" in refused.stderr
    docker.run("cat", "/x", flags=(*SEED, "-v", "./reprobox.toml:/x:ro"))
    docker.write("other.toml", "other")
    done = docker.run("cat", "reprobox.toml", flags=(*SEED, "-v", "./other.toml:/workspace/reprobox.toml"))
    assert done.stdout == "other"


def test_nothing_is_created_to_protect_what_is_not_there(docker):
    (docker.folder / "reprobox.toml").unlink()
    (docker.folder / ".git").mkdir()
    done = docker.run("sh", "-c", "ls; touch reprobox.toml")
    assert done.stdout == ""
    assert "reprobox.toml is new" in done.stderr
    assert not (docker.folder / "reprobox.lock").exists()


def test_a_pyproject_stays_writable_and_a_change_of_its_table_is_told(docker):
    (docker.folder / "reprobox.toml").unlink()
    docker.write("pyproject.toml", "[tool.reprobox]\nseed = 7\n")
    quiet = docker.run("sh", "-c", "echo '[project]' >> pyproject.toml")
    assert "project files" not in quiet.stderr
    told = docker.run("sh", "-c", "echo '[tool.reprobox]\nengine = \"local\"' > pyproject.toml")
    assert "pyproject.toml is changed; look at them before the next run" in told.stderr
    assert docker.manifest()["project_file_changes"] == {"pyproject.toml": "changed"}
    refused = typed(docker, "id")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "engine = local" in refused.stderr


def test_a_project_file_that_a_run_makes_below_is_told_also_where_a_project_file_asks_for_silence(docker):
    docker.write("reprobox.toml", "quiet = true\n")
    nest = "mkdir -p a/b && echo 'engine = \"local\"' > a/b/reprobox.toml"
    told = typed(docker, "sh", "-c", nest)
    assert told.stderr.count("\n") == 1
    assert "a/b/reprobox.toml is new" in told.stderr
    refused = typed(docker, "id", cwd=docker.folder / "a" / "b")
    assert (refused.returncode, refused.stdout) == (2, "")
    silent = docker.run("sh", "-c", "rm a/b/reprobox.toml", flags=(*SEED, "-q"))
    assert silent.stderr == ""
    assert docker.manifest()["project_file_changes"] == {"a/b/reprobox.toml": "gone"}


def test_what_a_run_left_to_itself_changed_is_told_by_who_waits_for_it(docker):
    run = docker.run("sh", "-c", "mkdir a && touch a/reprobox.toml", flags=("-d", *SEED)).stdout.strip()
    docker.reprobox("runs", "wait", run)
    assert docker.manifest()["project_file_changes"] == {"a/reprobox.toml": "new"}


def test_the_box_cannot_allow_its_project_anything(docker):
    state = docker.environment["XDG_STATE_HOME"]
    docker.trust('network = "host"\n')
    forge = f"cd {state}/reprobox/trust && for f in *; do rm $f; done; touch x; mkdir -p {state}/y"
    done = docker.run("sh", "-c", forge, flags=(*SEED, "-v", f"{state}:{state}"), check=False)
    assert done.stderr.count("Read-only file system") == 2
    assert len(json.loads(docker.reprobox("trust", "--list", "--json").stdout)["projects"]) == 1


# --- what holds only once it is allowed -----------------------------------------------------------------------------

PROGRAM = "import os; print(os.path.exists('/x/passwd'), os.getcwd() == '/workspace')"
ASKS = {
    'engine = "local"\nquiet = true\n': ("engine = local", "False False"),
    'mounts = ["/etc:/x"]\n': ("mounts = /etc:/x", "True True"),
    'network = "host"\n': ("network = host", "False True"),
    'shm-size = "64m"\n': ("shm-size = 67108864", "False True"),
}


@pytest.mark.parametrize("text", ASKS)
def test_what_reaches_out_of_the_project_holds_once_it_is_allowed(docker, text):
    docker.write("reprobox.toml", text)
    sentence, output = ASKS[text]
    refused = typed(docker, "python", "-c", PROGRAM)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)
    assert f"and you have not allowed it: {sentence}; see the whole list and allow it with" in refused.stderr
    assert docker.runs() == []
    assert docker.trust().stdout == f"{sentence}\n"
    assert typed(docker, "python", "-c", PROGRAM).stdout.strip() == output


def test_an_image_that_the_project_file_names_is_not_even_looked_for(docker):
    docker.write("reprobox.toml", 'image = "127.0.0.1:1/no/such:1"\n')
    for words in (("run", "true"), ("shell",), ("selftest",)):
        refused = docker.reprobox(*words, check=False, input="")
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "image = 127.0.0.1:1/no/such:1" in refused.stderr
    docker.trust()
    assert docker.reprobox("run", "true", check=False).returncode == 125


def test_the_notice_that_a_run_is_on_this_machine_itself_is_silenced_by_a_person_alone(docker):
    docker.trust('engine = "local"\nquiet = true\n')
    told = typed(docker, "true")
    assert (told.returncode, told.stderr.count("\n")) == (0, 1)
    assert "on this machine itself" in told.stderr
    assert typed(docker, "true", environment={"REPROBOX_QUIET": "on"}).stderr == ""
    assert docker.call(BIN / "reprobox", "run", "-q", *SEED, "true").stderr == ""


def test_a_command_asks_only_about_what_it_follows(docker):
    docker.write(
        "reprobox.toml", 'engine = "local"\nmounts = ["/etc:/x"]\nnetwork = "host"\nallow-sdist = ["antlr4"]\n'
    )
    (docker.folder / "data").mkdir()
    person = ("--engine", "docker", "--network", "none", "-v", "./data:/x")
    done = typed(docker, *person, "python", "-c", PROGRAM)
    assert (done.returncode, done.stdout.strip()) == (0, "False True")
    own = {"REPROBOX_ENGINE": "docker", "REPROBOX_NETWORK": "none"}
    refused = typed(docker, "true", environment=own)
    assert "you have not allowed it: mounts = /etc:/x;" in refused.stderr
    assert "network" not in refused.stderr
    assert docker.call(BIN / "reprobox", "recipe", "--json").returncode == 0


def test_a_list_that_changes_asks_again_and_a_new_dependency_does_not(docker):
    docker.trust('mounts = ["/etc:/x:ro"]\n')
    docker.write("reprobox.toml", 'python = ["einops"]\napt = ["git"]\nseed = 3\nmounts = ["/etc:/x:ro"]\n')
    assert typed(docker, "true").returncode == 0
    docker.write("reprobox.toml", 'mounts = ["/etc:/x:ro", "/usr/share:/y"]\n')
    refused = typed(docker, "true")
    assert refused.returncode == 2
    assert "mounts = /etc:/x:ro, mounts = /usr/share:/y" in refused.stderr


def test_a_hash_in_the_environment_allows_that_list_and_a_change_cannot_allow_itself(docker):
    docker.write("reprobox.toml", 'mounts = ["/etc:/x:ro"]\n')
    printed = docker.reprobox("trust", "--print")
    assert "mounts = /etc:/x:ro" in printed.stderr
    digest = printed.stdout.strip()
    assert len(digest) == HASH_LENGTH
    assert typed(docker, "true").returncode == 2, "printing it allows nothing"
    given = {"REPROBOX_TRUST": digest}
    assert typed(docker, "true", environment=given).returncode == 0
    assert typed(docker, "true").returncode == 2, "and is kept nowhere"
    docker.write("reprobox.toml", 'mounts = ["/etc:/x"]\n')
    refused = typed(docker, "true", environment=given)
    assert refused.returncode == 2
    assert "REPROBOX_TRUST is of another list" in refused.stderr
    for word in ("yes", "1", "all"):
        refused = typed(docker, "true", environment={"REPROBOX_TRUST": word})
        assert refused.returncode == 2
        assert "give the hash that `reprobox trust --print` prints" in refused.stderr


def test_another_folder_does_not_inherit_what_one_was_allowed(docker):
    text = 'mounts = ["/etc:/x:ro"]\n'
    docker.trust(text)
    assert typed(docker, "true").returncode == 0
    for name in ("copy", "copy/below"):
        docker.write(f"{name}/reprobox.toml", text)
        assert typed(docker, "true", cwd=docker.folder / name).returncode == 2
    (docker.folder / "link").symlink_to(docker.folder)
    assert typed(docker, "true", cwd=docker.folder / "link").returncode == 0, "the real path counts"
    docker.reprobox("trust", "--forget")
    assert typed(docker, "true").returncode == 2


def test_a_folder_of_the_project_that_becomes_a_link_out_of_it_asks_again(docker, tmp_path_factory):
    (docker.folder / "data").mkdir()
    docker.write("reprobox.toml", 'mounts = ["./data:/x"]\n')
    assert typed(docker, "rmdir", "data").returncode == 0
    assert typed(docker, "ln", "-s", "/etc", "data", environment={}).returncode == 125, "the source is gone"
    (docker.folder / "data").symlink_to("/etc")
    refused = typed(docker, "true")
    assert refused.returncode == 2
    assert "mounts = ./data:/x (leads to /etc)" in refused.stderr
    docker.trust()
    assert typed(docker, "python", "-c", PROGRAM).stdout.strip() == "True True"
    (docker.folder / "data").unlink()
    (docker.folder / "data").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    assert "leads to" in typed(docker, "true").stderr
