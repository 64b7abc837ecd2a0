"""The text of run's options: accepted as docker has it, refused in one sentence."""

from __future__ import annotations

import pytest

from reprobox.engines import Mount
from reprobox.errors import BoxError, UsageError
from reprobox.project import Project
from reprobox.runs.mounts import parse_volume
from reprobox.runs.options import parse_env_file, parse_environment, parse_name
from reprobox.runs.request import parse_request
from reprobox.settings import Settings


def ask(folder, **values):
    """Parse the options of a run typed in `folder`, a project."""
    (folder / "reprobox.toml").touch()
    return parse_request(("true",), values, Settings.load({}, folder, {}), Project.find(folder), ())


def test_a_bind_mount(tmp_path):
    (tmp_path / "data").mkdir()
    expected = Mount(source=str(tmp_path / "data"), target="/data", read_only=True)
    assert parse_volume(f"{tmp_path}/data:/data:ro", tmp_path) == expected
    assert parse_volume("./data:/data/:ro", tmp_path) == expected


def test_a_named_volume(tmp_path):
    assert parse_volume("cache:/cache", tmp_path) == Mount(source="cache", target="/cache", kind="volume")


def test_a_missing_source_is_an_error_and_is_not_created(tmp_path):
    with pytest.raises(BoxError, match="does not exist"):
        parse_volume("./nothing:/data", tmp_path)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("text", ["", "a", ":", "/a:", ":/b", "/a:/b:rw:x", "/:/b:z", "/tmp:relative"])
def test_a_malformed_volume_is_refused(text, tmp_path):
    with pytest.raises(UsageError, match="-v"):
        parse_volume(text, tmp_path)


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/etc",
        "/m/../etc",
        "//etc",
        "/etc/passwd",
        "/proc/x",
        "/sys",
        "/dev",
        "/usr/lib",
        "/opt/reprobox",
        "/run/reprobox",
        "/opt",
        "/opt/venv",
        "/run",
        "/var",
        "/var/run/reprobox",
        "/home",
    ],
)
def test_a_mount_that_reaches_into_the_system_is_refused(target, tmp_path):
    with pytest.raises(UsageError, match="cannot be mounted over"):
        parse_volume(f"{tmp_path}:{target}", tmp_path)


@pytest.mark.parametrize("target", ["/data", "/opt/data", "/home/box", "/home/box/.cache", "/workspace/data", "/mnt"])
def test_a_mount_beside_the_system_is_taken(target, tmp_path):
    assert parse_volume(f"{tmp_path}:{target}", tmp_path).target == target


@pytest.mark.parametrize("target", ["/workspace/link", "/workspace//link/below", "/workspace/.reprobox"])
@pytest.mark.parametrize(
    ("flag", "name", "text"),
    [
        ("-v", "volume", ".:{}"),
        ("-v", "volume", "cache:{}:ro"),
        ("--mount", "mount", "type=bind,src=.,dst={}"),
        ("--mount", "mount", "type=tmpfs,dst={}"),
        ("--tmpfs", "tmpfs", "{}:size=1m"),
    ],
)
def test_a_mount_that_a_link_of_the_project_would_lead_away_is_refused(flag, name, text, target, tmp_path):
    (tmp_path / "link").symlink_to("/opt/reprobox")
    text = text.format(target)
    with pytest.raises(UsageError, match="folders are real") as caught:
        ask(tmp_path, **{name: [text]})
    assert caught.value.message.startswith(f"{flag} {text}: {tmp_path}/")


def test_mounts_in_real_folders_of_the_project_are_taken(tmp_path):
    (tmp_path / "data").mkdir()
    request = ask(
        tmp_path,
        volume=["./data:/workspace/data/a", "cache:/workspace/new"],
        mount=["src=cache,dst=/b", "type=tmpfs,dst=/workspace/c"],
        tmpfs=["/workspace/data/d"],
    )
    assert [mount.target for mount in request.mounts] == ["/workspace/data/a", "/workspace/new", "/b"]
    assert list(request.tmpfs) == ["/workspace/c", "/workspace/data/d"]


@pytest.mark.parametrize("source", ["a" * 300, "./" + "a" * 300, "~nobody-of-that-name/x"])
def test_a_source_that_cannot_be_looked_up_is_an_error(source, tmp_path):
    with pytest.raises(BoxError, match="cannot be read"):
        parse_volume(f"{source}:/data", tmp_path)


def test_a_source_whose_real_path_is_no_utf_8_is_refused(tmp_path):
    folder = tmp_path / "\udcff"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(UsageError, match=r"-v ./link:/data: the source cannot be .*no UTF-8"):
        parse_volume("./link:/data", tmp_path)


@pytest.mark.parametrize("ipc", ["none", "host"])
def test_a_size_of_shared_memory_that_would_have_no_effect_is_refused(ipc, tmp_path):
    with pytest.raises(UsageError, match=f"--shm-size 1g has no effect: --ipc {ipc}"):
        ask(tmp_path, ipc=ipc, shm_size="1g")
    assert ask(tmp_path, ipc=ipc).options.ipc == ipc
    assert ask(tmp_path, ipc="private", shm_size="1g").options.ipc == "private"


def test_a_capability_is_for_root_alone(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="--cap-add CHOWN has no effect for the user 7; add -u 0"):
        ask(tmp_path, cap_add=["CHOWN"], user="7:0")
    assert ask(tmp_path, cap_add=["CHOWN"], user="0").options.cap_add == ("CHOWN",)
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert ask(tmp_path, cap_add=["CHOWN"]).options.cap_add == ("CHOWN",)
    monkeypatch.setattr("os.getuid", lambda: 1000)
    with pytest.raises(UsageError, match="for the user 1000"):
        ask(tmp_path, cap_add=["CHOWN"])


def test_a_volume_name_that_is_also_a_file_here_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=r"write \./data"):
        parse_volume("data:/data", tmp_path)


@pytest.mark.parametrize("source", ["/var/run", "/run", "/", "/run/containerd", "/var/lib/docker", "/var/lib"])
def test_a_source_that_holds_the_engines_socket_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="leads to the engine"):
        parse_volume(f"{source}:/data", tmp_path)


def test_environment_entries():
    host = {"FROM_HOST": "yes"}
    entries = ["A=1", "B=x=y", "C=", "FROM_HOST", "NOT_THERE", "NEWLINE=a\nb"]
    assert parse_environment(entries, host) == {
        "A": "1",
        "B": "x=y",
        "C": "",
        "FROM_HOST": "yes",
        "NOT_THERE": None,
        "NEWLINE": "a\nb",
    }


@pytest.mark.parametrize("entry", ["", "=x", "1A=x", "A B=x", "A-B=1", "é=1", "A=\0"])
def test_a_bad_environment_entry_is_refused(entry):
    with pytest.raises(UsageError):
        parse_environment([entry], {})


def test_the_gpus_have_a_flag_of_their_own():
    with pytest.raises(UsageError, match="--gpus"):
        parse_environment(["CUDA_VISIBLE_DEVICES=0"], {})


def test_a_refused_entry_does_not_show_its_value():
    with pytest.raises(UsageError) as caught:
        parse_environment(["my-token=hunter2"], {})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("entry", ["REPROBOX_SEED=1", "_REPROBOX_RECIPE=x"])
def test_the_recipes_variables_are_not_for_e(entry):
    with pytest.raises(UsageError, match="--seed"):
        parse_environment([entry], {})


def test_an_environment_file(tmp_path):
    path = tmp_path / "env"
    path.write_text("# comment\nA=1\n\n  B=two words \nPAGE=a\x0cb\u2028c\r\nHOME\n")
    assert parse_env_file(path) == ["A=1", "B=two words ", "PAGE=a\x0cb\u2028c", "HOME"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_an_environment_file_that_cannot_be_read(content, tmp_path):
    path = tmp_path / "env"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match="--env-file"):
        parse_env_file(path)


@pytest.mark.parametrize("name", ["", "-rm", "a b", "x", "a/b", "--privileged"])
def test_a_bad_container_name_is_refused(name):
    with pytest.raises(UsageError, match="--name"):
        parse_name(name)
