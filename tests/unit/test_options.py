"""The text of run's options: accepted as docker has it, refused in one sentence."""

from __future__ import annotations

import pytest

from reprobox.engines import Mount
from reprobox.errors import BoxError, UsageError
from reprobox.runs.options import (
    checked_inside_the_project,
    parse_env_file,
    parse_environment,
    parse_name,
    parse_volume,
)
from reprobox.settings import parse_size


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


@pytest.mark.parametrize("target", ["/workspace/link", "/workspace/link/below", "/workspace/.reprobox"])
def test_a_mount_that_a_link_of_the_project_would_lead_away_is_refused(target, tmp_path):
    (tmp_path / "link").symlink_to("/opt/reprobox")
    mount = parse_volume(f"{tmp_path}:{target}", tmp_path)
    with pytest.raises(UsageError, match="folders are real"):
        checked_inside_the_project(mount, tmp_path)


def test_a_volume_name_that_is_also_a_file_here_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(UsageError, match=r"write \./data"):
        parse_volume("data:/data", tmp_path)


@pytest.mark.parametrize("source", ["/var/run", "/run", "/", "/run/containerd", "/var/lib/docker", "/var/lib"])
def test_a_source_that_holds_the_engines_socket_is_refused(source, tmp_path):
    with pytest.raises(UsageError, match="engine's socket"):
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


@pytest.mark.parametrize(
    ("text", "size"), [("64m", 64 << 20), ("8G", 8 << 30), ("1gb", 1 << 30), ("2GiB", 2 << 30), ("100", 100), ("5b", 5)]
)
def test_a_size(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5g", "g", "8x", "1 g", "9999999999999g"])
def test_a_bad_size_is_refused(text):
    with pytest.raises(UsageError, match="such as 512m"):
        parse_size(text)
