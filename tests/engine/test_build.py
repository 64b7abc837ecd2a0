"""The image built for real: by both builders, on a base from a registry, and what a failed step leaves."""

from __future__ import annotations

import uuid

import pytest
from support.engine import config_digest
from support.registry import running_registry
from support.said import Said

from reprobox import __version__
from reprobox.engines.digests import config_digest_from_archive
from reprobox.engines.docker_store import DockerImageStore
from reprobox.engines.store import BuildJob
from reprobox.errors import BuildError, EngineError
from reprobox.images import BuildRequest, build, input_digest, pipeline, sources
from reprobox.images.base import choose_base, missing_packages
from reprobox.images.context import EPOCH, context_file
from reprobox.recipe import BOX_PROTOCOL

pytestmark = pytest.mark.engine


@pytest.fixture
def own_name(monkeypatch, docker_client):
    """Another version, and so another local name, that a test may build under and that is removed afterwards."""
    version = f"0.0.0.test{uuid.uuid4().hex[:8]}"
    monkeypatch.setattr(sources, "__version__", version)
    yield version
    for found in docker_client.images.list("reprobox"):
        for tag in found.tags:
            if version in tag:
                docker_client.images.remove(tag)


def run(client, image, script, **options):
    container = client.containers.create(image, ["-c", script], entrypoint="/bin/sh", network_mode="none", **options)
    try:
        container.start()
        status = container.wait()["StatusCode"]
        return status, container.logs(stderr=False).decode(), container.logs(stdout=False).decode()
    finally:
        container.remove(force=True)


def build_small(builder, client, tmp_path, dockerfile):
    """Build a Dockerfile of a line or two under a name of its own; returns the id and that name."""
    name = f"reprobox-test:{uuid.uuid4().hex[:12]}"
    with context_file({"Dockerfile": dockerfile.encode(), "file": b"content"}, tmp_path) as context:
        job = BuildJob(context=context, args={}, tag=name, network="none", no_cache=True)
        return DockerImageStore(client).build(job, builder, Said()).engine_id, name


def test_what_is_built_already_is_returned_without_fetching_a_wheel(docker_client, image, monkeypatch):
    monkeypatch.setattr(pipeline, "collect", lambda *_, **__: pytest.fail("wheels were asked for"))
    result = build(BuildRequest(), store=DockerImageStore(docker_client), report=Said())
    assert result.reused
    assert result.builder is None
    assert result.engine_id == image
    assert result.image_id == config_digest(docker_client, image)


def test_the_labels_say_version_variant_lock_input_and_base(docker_client, image):
    labels = docker_client.images.get(image).labels
    assert labels["reprobox.version"] == labels["org.opencontainers.image.version"] == __version__
    assert labels["reprobox.variant"] == "cpu"
    assert labels["reprobox.box-protocol"] == str(BOX_PROTOCOL)
    assert labels["reprobox.input"] == input_digest("cpu")
    assert labels["reprobox.lock"].startswith("sha256:")
    assert labels["reprobox.base"].endswith(labels["org.opencontainers.image.base.digest"])
    assert f"torch=={labels['reprobox.torch']} " in sources.ImageInput.read("cpu").lock


def test_the_default_user_is_unprivileged_with_a_home_and_nothing_of_the_image_is_his(docker_client, image):
    script = 'id -u; id -un; test -w "$HOME" && test -w /workspace && find /opt -writable ! -type l | head -3'
    status, out, err = run(docker_client, image, script)
    assert (status, out.split()) == (0, ["1000", "box"]), err


def test_bytecode_is_there_for_every_module_and_is_never_checked_against_a_date(docker_client, image):
    script = """/opt/venv/bin/python -IS - <<'END'
import pathlib
flags = {}
for root in ("/opt/venv/lib", "/opt/reprobox/lib"):
    for module in pathlib.Path(root).rglob("*.py"):
        made = module.parent / "__pycache__" / f"{module.stem}.cpython-311.pyc"
        kind = made.read_bytes()[4] if made.exists() else None
        flags.setdefault(kind, []).append(module.name)
print(sorted(flags, key=str), flags.get(None))
END"""
    status, out, err = run(docker_client, image, script)
    assert (status, out) == (0, "[1, None] ['py312_intrinsics.py']\n"), err


def test_torch_compile_finds_its_compiler_with_a_read_only_root(docker_client, image):
    program = "import torch; print(torch.compile(lambda x: (x.sin() * 2).sum())(torch.zeros(64)).item())"
    container = docker_client.containers.create(
        image, ["python", "-c", program], environment={"REPROBOX_SEED": "7", "REPROBOX_SELFTEST": "off"},
        read_only=True, tmpfs={"/tmp": "exec"}, network_mode="none",
    )  # fmt: skip
    try:
        container.start()
        assert container.wait()["StatusCode"] == 0, container.logs().decode()
        assert container.logs(stderr=False) == b"0.0\n"
    finally:
        container.remove(force=True)


def test_the_image_has_one_line_of_history_a_layer_and_nothing_of_the_build(docker_client, image):
    attrs = docker_client.images.get(image).attrs
    history = docker_client.api.history(image)
    assert len(history) == len(attrs["RootFS"]["Layers"]) == len([line for line in history if line["Size"]])
    assert {line["CreatedBy"] for line in history[:-1]} == {"reprobox: a layer"}
    assert {line["Created"] for line in history} == {EPOCH}


def test_every_file_above_the_base_has_the_fixed_date_and_none_is_a_log(docker_client, image):
    script = "find /opt /home /workspace -newermt 2025-01-01T00:00:01 | head -3; find /opt -not -newermt 2024-12-31 | head -3; find /var/log -type f -size +0"
    assert run(docker_client, image, script) == (0, "", "")


@pytest.fixture
def registry(tmp_path):
    """The address of a registry of its own."""
    with running_registry(tmp_path) as registry:
        yield registry.address


def test_the_base_of_a_registry_is_recorded_by_the_digest_it_had(docker_client, image, registry, own_name, tmp_path):
    name = f"{registry}/team/base"
    record = docker_client.images.get(image).labels["reprobox.base"]
    source = record.removeprefix("bootstrap@")
    try:
        docker_client.images.get(source).tag(name, tag="1")
        pushed = [line for line in docker_client.api.push(name, tag="1", stream=True, decode=True) if "aux" in line]
        digest = pushed[-1]["aux"]["Digest"]
        docker_client.images.remove(f"{name}:1")

        result = build(BuildRequest(base=f"{name}:1"), store=DockerImageStore(docker_client), report=Said())
        labels = docker_client.images.get(result.engine_id).labels
        assert result.base == labels["reprobox.base"] == labels["org.opencontainers.image.base.digest"] == digest
        assert labels["org.opencontainers.image.base.name"] == f"{name}:1"
        assert build(BuildRequest(base=f"{name}@{digest}"), store=DockerImageStore(docker_client), report=Said()).reused
    finally:
        for reference in (f"{name}:1", *docker_client.images.get(source).attrs["RepoDigests"]):
            if reference in _names(docker_client, source):
                docker_client.images.remove(reference)


def _names(client, image):
    attrs = client.images.get(image).attrs
    return [name for name in (*attrs["RepoTags"], *attrs["RepoDigests"]) if name.startswith("127.0.0.1:")]


def test_a_base_the_registry_lacks_is_an_error_in_the_registrys_words(docker_client, registry, tmp_path):
    with pytest.raises(EngineError, match="cannot be pulled") as failure:
        choose_base(f"{registry}/team/absent:1", store=DockerImageStore(docker_client), cache=tmp_path, report=Said())
    assert "unknown" in failure.value.detail or "not found" in failure.value.detail


def test_what_a_base_lacks_is_listed_and_the_bootstrapped_base_lacks_nothing(docker_client, image, tmp_path):
    source = docker_client.images.get(image).labels["reprobox.base"].removeprefix("bootstrap@")
    text = f"FROM {source}\nRUN rm /usr/bin/tini /usr/bin/g++\n"
    bare, name = build_small("classic", docker_client, tmp_path, text)
    try:
        chosen = choose_base(bare, store=DockerImageStore(docker_client), cache=tmp_path, report=Said())
        assert chosen.record == bare
        assert missing_packages(chosen, store=DockerImageStore(docker_client)) == "g++ tini"
        assert missing_packages(chosen, store=DockerImageStore(docker_client), compiler=False) == "tini"
        docker_client.images.remove(chosen.source)
    finally:
        docker_client.images.remove(name)
    whole = choose_base(source, store=DockerImageStore(docker_client), cache=tmp_path, report=Said())
    assert missing_packages(whole, store=DockerImageStore(docker_client)) == ""


@pytest.mark.parametrize("builder", ["classic", "buildkit"])
def test_a_failing_step_is_an_error_with_the_tail_of_its_log(docker_client, image, tmp_path, builder):
    tag = docker_client.images.get(image).tags[0]
    with pytest.raises(BuildError) as failure:
        build_small(builder, docker_client, tmp_path, f"FROM {tag}\nRUN echo the-reason >&2; exit 3\n")
    assert "the-reason" in failure.value.detail
    assert "3" in failure.value.message


@pytest.mark.parametrize("builder", ["classic", "buildkit"])
def test_the_config_digest_read_from_the_archive_is_the_engines_id(docker_client, tmp_path, builder):
    built, name = build_small(builder, docker_client, tmp_path, "FROM scratch\nCOPY file /file\nLABEL a=b\n")
    try:
        assert config_digest_from_archive(docker_client.api.get_image(built)) == config_digest(docker_client, built)
        assert config_digest(docker_client, name) == docker_client.images.get(name).id == built
    finally:
        docker_client.images.remove(name)
