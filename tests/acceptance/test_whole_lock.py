"""From three requirements to an image that is the same again: locked, fetched, built without a network, built anew."""

from __future__ import annotations

import contextlib

import pytest
from docker.errors import ImageNotFound

from reprobox.images.lockfile import read_lock
from reprobox.images.project_name import project_tag

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1500)]

PROJECT = """\
variant = "cpu"
python = ["einops", "iniconfig", "tomli"]
apt = ["file"]
"""
USES = "import einops, iniconfig, subprocess, tomli; print(subprocess.check_output(['file', '-b', '/opt/project']).decode())"
WITHOUT_A_NETWORK = ("unshare", "--net")


def test_a_locked_project_is_built_offline_twice_by_both_builders_with_one_id(docker, docker_client, tmp_path, image):
    del image
    docker.write("reprobox.toml", PROJECT)
    docker.reprobox("lock", timeout=600)
    docker.reprobox("fetch", timeout=600)
    assert docker.reprobox("lock", "--check").returncode == 0
    lock = read_lock(docker.folder / "reprobox.lock")
    tag = project_tag(lock, "cpu")
    cold = {"TMPDIR": "/tmp", "TZ": "Asia/Tokyo"}
    try:
        command = (*WITHOUT_A_NETWORK, "reprobox", "build", "--offline", "--no-cache")
        first = docker.call(*command, timeout=900)
        done = docker.run("python", "-c", USES, flags=("--seed", "1"))
        assert done.stdout.strip() == "directory"
        docker_client.images.remove(tag, force=True)
        umask = ("sh", "-c", 'umask 077; exec "$@"', "sh")
        again = docker.call(*umask, *command, "--builder", "buildkit", environment=cold, timeout=900)
        assert again.stdout == first.stdout
        assert read_lock(docker.folder / "reprobox.lock").images["cpu"].config_digest == first.stdout.strip()
    finally:
        tags = [name for each in docker_client.api.images() for name in each["RepoTags"] or ()]
        stands_on = [name for name in tags if name.startswith("reprobox:")]
        for name in [tag, *(n for n in stands_on if n.count("-") == 3)]:
            with contextlib.suppress(ImageNotFound):
                docker_client.images.remove(name, force=True)
