"""``--tmpfs`` and ``--mount``: Docker's meaning, or one sentence that names the text."""

from __future__ import annotations

import pytest

from reprobox.engines.base import Mount
from reprobox.errors import BoxError, UsageError
from reprobox.runs.mounts import parse_mount, parse_tmpfs

DEFAULTS = "rw,noexec,nosuid,nodev"


@pytest.mark.parametrize(
    ("text", "target", "options"),
    [
        ("/scratch", "/scratch", DEFAULTS),
        ("/a//b/", "/a/b", DEFAULTS),
        ("/scratch:size=64m,mode=1777", "/scratch", DEFAULTS + ",size=64m,mode=1777"),
        ("/scratch:exec", "/scratch", "rw,exec,nosuid,nodev"),
        ("/scratch:exec,noexec,ro", "/scratch", "ro,noexec,nosuid,nodev"),
        ("/scratch:size=1m,size=50%", "/scratch", DEFAULTS + ",size=50%"),
        ("/scratch:suid,dev,uid=1,gid=2,nr_inodes=10k", "/scratch", "rw,noexec,suid,dev,uid=1,gid=2,nr_inodes=10k"),
    ],
)
def test_a_tmpfs(text, target, options):
    assert parse_tmpfs(text) == (target, options)


@pytest.mark.parametrize(
    "option",
    [
        "",
        "size",
        "size=",
        "size=-1",
        "size=0",
        "size=101%",
        "mode=999",
        "mode=rwx",
        "uid=me",
        "bind",
        "rw=1",
        "mpol=x",
        "EXEC",
        "size=1m:x",
    ],
)
def test_another_option_of_a_tmpfs_is_refused(option):
    with pytest.raises(UsageError, match="no option of a tmpfs"):
        parse_tmpfs(f"/scratch:{option}")


@pytest.mark.parametrize("text", ["scratch", "/etc", "/run", "/a/../proc", "/", ":exec"])
def test_a_tmpfs_over_the_system_is_refused(text):
    with pytest.raises(UsageError, match="--tmpfs"):
        parse_tmpfs(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("type=bind,source={}/data,target=/data", {}),
        ("TYPE=bind,src=./data,dst=/data/", {}),
        ("type=bind,src=data,destination=/data,readonly", {"read_only": True}),
        ("type=bind,src=data,dst=/data,ro=TRUE", {"read_only": True}),
        ("type=bind,src=data,dst=/data,ro=false", {}),
        ('type=bind,"src={}/a,b:c",dst=/data', {"source": "{}/a,b:c"}),
    ],
)
def test_a_bind_mount(text, expected, tmp_path):
    for name in ("data", "a,b:c"):
        (tmp_path / name).mkdir()
    source = expected.get("source", "{}/data").format(tmp_path)
    mount = parse_mount(text.replace("{}", str(tmp_path)), tmp_path)
    assert mount == Mount(source=source, target="/data", read_only=expected.get("read_only", False))


def test_a_volume_is_the_default(tmp_path):
    assert parse_mount("src=cache,dst=/cache,ro", tmp_path) == Mount(
        source="cache", target="/cache", read_only=True, kind="volume"
    )


def test_a_tmpfs_mount(tmp_path):
    assert parse_mount("type=tmpfs,dst=/x", tmp_path) == ("/x", DEFAULTS)
    text = "type=tmpfs,dst=/x,ro,tmpfs-size=1g,tmpfs-mode=0700"
    assert parse_mount(text, tmp_path) == ("/x", "ro,noexec,nosuid,nodev,size=1g,mode=0700")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("type=bind,src=/tmp", "no target"),
        ("type=bind,dst=/x", "to have a source"),
        ("dst=/x", "to have a source"),
        ("type=tmpfs,src=/tmp,dst=/x", "no source"),
        ("type=npipe,src=a,dst=/x", "type cannot be 'npipe'"),
        ("type=bind,src=.,dst=/etc", "cannot be mounted over"),
        ("type=bind,src=.,dst=x", "not absolute"),
        ("type=bind,src=/var/run,dst=/x", "leads to the engine"),
        ("type=bind,src=.,dst=/x,bind-propagation=rshared", "no 'bind-propagation'"),
        ("type=volume,src=a,dst=/x,volume-opt=o=bind", "no 'volume-opt'"),
        ("type=bind,src=.,dst=/x,readnly", "did you mean readonly"),
        ("type=bind,src=.,dst=/x,ro=maybe", "ro cannot be 'maybe'"),
        ("type=bind,src=.,dst=/x,ro=", "ro cannot be"),
        ("type=bind,src=.,source=/tmp,dst=/x", "source is given twice"),
        ("type=bind,src=,dst=/x", "src cannot be ''"),
        ("type=bind,src,dst=/x", "src cannot be ''"),
        ("type=bind,src= .,dst=/x", "src cannot be"),
        ("type=bind, src=.,dst=/x", "no ' src'"),
        ("type=bind,src=.,dst=/x,", "no ''"),
        ("type=bind,src=.,dst=/x,tmpfs-size=1g", "for type=tmpfs alone"),
        ("type=tmpfs,dst=/x,tmpfs-size=1g:exec", "no option of a tmpfs"),
        ('type=tmpfs,dst=/x,"tmpfs-size=1g,exec"', "no option of a tmpfs"),
        ('type=bind,"src=.,dst=/x', "quote"),
        ('type=bind,"src="x,dst=/x', "quote"),
        ('type=bind,src="x",dst=/x', "src cannot be"),
        ("type=volume,src=/tmp,dst=/x", "add type=bind"),
        ("type=volume,src=../x,dst=/x", "no volume's name"),
        ("/tmp:/x", "no '/tmp:/x'"),
    ],
)
def test_a_bad_mount_is_refused(text, words, tmp_path):
    with pytest.raises(UsageError, match=words) as caught:
        parse_mount(text, tmp_path)
    assert caught.value.message.startswith(f"--mount {text}: ")
    assert caught.value.remedy


def test_a_source_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(BoxError, match="does not exist"):
        parse_mount("type=bind,src=nothing,dst=/x", tmp_path)
    assert not (tmp_path / "nothing").exists()
