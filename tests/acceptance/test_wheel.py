"""The wheel stands alone: installed in an empty folder, it builds the image and runs in it."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
import zipfile

import pytest
from support.cli import ROOT, clean_environment

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "-q", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def test_build_and_run_work_from_the_installed_wheel(installed, docker_client, image):
    empty = installed / "empty"
    empty.mkdir()
    (empty / "reprobox.toml").write_text("")
    environment = {**clean_environment(), "PATH": f"{installed}/venv/bin:/usr/bin:/bin"}

    def reprobox(*arguments):
        return subprocess.run(
            ["reprobox", *arguments], cwd=empty, env=environment, capture_output=True, text=True, check=True
        ).stdout

    # With the tag gone the image is really built again, from what the wheel carries; the engine's cache makes it quick.
    ours = docker_client.images.get(image)
    tags = ours.tags
    ours.tag("reprobox-test-keeps", "it")
    try:
        for tag in tags:
            docker_client.images.remove(tag)
        built = json.loads(reprobox("build", "--json"))
        assert built["schema"] == "reprobox.build/1"
        assert not built["reused"]
        program = "import random, torch; print(random.random(), torch.rand(1).item())"
        first = reprobox("run", "--seed", "42", "--", "python", "-c", program)
        assert first == reprobox("run", "--seed", "42", "--", "python", "-c", program)
        assert json.loads(reprobox("build", "--json"))["reused"]
    finally:
        for tag in tags:
            ours.tag(*tag.rsplit(":", 1))
        docker_client.images.remove("reprobox-test-keeps:it")


def test_the_wheel_carries_what_the_image_is_made_of(installed):
    (wheel,) = (installed / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    image = {"Dockerfile", "docker/entrypoint", "docker/make-venv.sh", "docker/locks/cpu.txt", "docker/locks/cuda.txt"}
    assert {f"reprobox/_image/{name}" for name in image} | {"reprobox/box/hook.py"} <= names
    assert not any("__pycache__" in name for name in names)
