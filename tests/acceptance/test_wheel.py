"""The wheel stands alone: installed in an empty folder, it builds the image and runs in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipfile

import pytest
from support.cli import ROOT, clean_environment

from reprobox import __version__

pytestmark = pytest.mark.engine


VERSION = "0.0.1.dev1"
"""Of the wheel made here: its image has a name of its own, beside the one that other tests run in."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(".*", "tests", "__pycache__"))
    init = source / "reprobox" / "__init__.py"
    init.write_text(init.read_text().replace(f'__version__ = "{__version__}"', f'__version__ = "{VERSION}"'))
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder / "dist"), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    assert wheel.name.startswith(f"reprobox-{VERSION}-")
    venv.create(folder / "venv", with_pip=True)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "-q", str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def test_build_and_run_work_from_the_installed_wheel(installed, docker_client, image):
    del image  # the stages of its build are in the engine's cache, which makes this one quick
    empty = installed / "empty"
    empty.mkdir()
    (empty / "reprobox.toml").write_text("")
    environment = {**clean_environment(), "PATH": f"{installed}/venv/bin:/usr/bin:/bin"}

    def reprobox(*arguments):
        return subprocess.run(
            ["reprobox", *arguments], cwd=empty, env=environment, capture_output=True, text=True, check=True
        ).stdout

    built = json.loads(reprobox("build", "--json"))
    try:
        assert built["schema"] == "reprobox.build/1"
        assert not built["reused"]
        assert VERSION in built["tag"]
        program = "import random, torch; print(random.random(), torch.rand(1).item())"
        first = reprobox("run", "--seed", "42", "--", "python", "-c", program)
        assert first == reprobox("run", "--seed", "42", "--", "python", "-c", program)
        assert json.loads(reprobox("build", "--json"))["reused"]
    finally:
        docker_client.images.remove(built["tag"])


def test_the_wheel_carries_what_the_image_is_made_of(installed):
    (wheel,) = (installed / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    image = {"Dockerfile", "docker/entrypoint", "docker/make-venv.sh", "docker/locks/cpu.txt", "docker/locks/cuda.txt"}
    assert {f"reprobox/_image/{name}" for name in image} | {"reprobox/box/hook.py"} <= names
    assert not any("__pycache__" in name for name in names)
