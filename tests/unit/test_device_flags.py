"""``--device``: what a box may have of this machine, judged by what the name leads to."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from reprobox.engines.base import BoxSpec, Device
from reprobox.engines.creation import create_arguments
from reprobox.errors import BoxError, UsageError
from reprobox.runs import docker_flags
from reprobox.runs.docker_flags import parse_options


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ("/dev/zero:/dev/nothing", Device(source="/dev/zero", target="/dev/nothing")),
        ("/dev/zero:/dev/nothing:r", Device(source="/dev/zero", target="/dev/nothing", permissions="r")),
        ("/dev/zero:/dev/a/../b:mwr", Device(source="/dev/zero", target="/dev/b", permissions="mwr")),
    ],
)
def test_a_device(text, device):
    assert parse_options({"device": [text]}).devices == (device,)


def test_without_a_target_a_device_keeps_its_name_and_may_have_permissions(monkeypatch):
    monkeypatch.setattr(docker_flags, "_checked_device", lambda source, given: Path(source))
    assert parse_options({"device": ["/dev/fuse:rw"]}).devices == (
        Device(source="/dev/fuse", target="/dev/fuse", permissions="rw"),
    )


def test_a_device_is_handed_to_the_engine_in_parts():
    api = SimpleNamespace(create_host_config=lambda **host: host)
    options = parse_options({"device": ["/dev/zero:/dev/nothing:rw"]})
    spec = BoxSpec(run_id="1", name="x", command=("true",), directory="/", environment={}, options=options)
    assert create_arguments(api, spec)["host_config"]["devices"] == [
        {"PathOnHost": "/dev/zero", "PathInContainer": "/dev/nothing", "CgroupPermissions": "rw"}
    ]


def test_a_device_that_is_not_there():
    with pytest.raises(BoxError, match="No such file"):
        parse_options({"device": ["/dev/reprobox-has-no-such"]})


def test_a_device_is_judged_by_what_its_link_leads_to(monkeypatch):
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: Path("/dev/sda"))
    with pytest.raises(UsageError, match="with /dev/sda the box"):
        parse_options({"device": ["/dev/zero:/dev/x"]})


@pytest.mark.parametrize("real", ["/etc", "/dev/by:number"])
def test_a_link_out_of_dev_or_to_a_name_the_engine_would_split_is_refused(real, monkeypatch):
    monkeypatch.setattr(Path, "resolve", lambda self, strict=False: Path(real))
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [])
    with pytest.raises(UsageError, match="the machine itself"):
        parse_options({"device": ["/dev/zero:/dev/x"]})


def test_a_disk_of_any_name_is_refused(monkeypatch):
    monkeypatch.setattr(Path, "is_block_device", lambda self: True)
    with pytest.raises(UsageError, match="every file on it"):
        parse_options({"device": ["/dev/zero:/dev/x"]})


def test_a_folder_of_devices_is_judged_by_each_of_them(monkeypatch):
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: [Path("/dev/null"), Path("/dev/sda")])
    with pytest.raises(UsageError, match="with /dev/sda the box"):
        parse_options({"device": ["/dev/zero:/dev/x"]})
