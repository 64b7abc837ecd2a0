"""Who builds an image: the engine's own builder, or BuildKit through a docker program, and the error where neither can."""

from __future__ import annotations

import contextlib
import io
import tarfile
from types import SimpleNamespace

import pytest
import requests.exceptions
from support.said import Said

from reprobox.engines import builders, classic
from reprobox.engines.builders import build_buildkit, buildkit_client, choose_builder
from reprobox.engines.store import BuildJob
from reprobox.errors import BuildError, EngineUnavailable

REFUSED = "the legacy builder was removed"
OLD = "Docker version 20.10.24+dfsg1, build x"
NEW = "Docker version 28.2.2, build x"
BUILDX = "github.com/docker/buildx 0.29.1+ds1-4 hash\n"


class Client:
    """An engine that answers ``POST /build`` with a status and a JSON document, or a page."""

    def __init__(self, status=200, json=None, *, fails=None):
        self.asked = []
        self.status, self.json, self.fails = status, json, fails
        self.api = SimpleNamespace(post=self._post, base_url="http://engine", api_version="1.52", timeout=60)

    def _post(self, url, **options):
        self.asked.append((url, options))
        if self.fails:
            raise self.fails
        answer = requests.Response()
        answer.status_code, answer.reason = self.status, "Because"
        answer.json = lambda: self.json if self.json is not None else {}["no JSON"]
        return answer


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Have these docker programs alone on PATH, each with what it says of itself and of its buildx, in this order."""

    def have(*each):
        said = {}
        for number, (version, buildx) in enumerate(each):
            program = tmp_path / str(number) / "docker"
            program.parent.mkdir()
            program.touch(mode=0o755)
            said[str(program)] = {"--version": version, "buildx": buildx}
        monkeypatch.setenv("PATH", ":".join(str(tmp_path / str(number)) for number in range(len(each))))
        monkeypatch.setattr(builders, "_answer", lambda program, word, *_: said.get(program, {}).get(word))
        monkeypatch.setattr(builders.os, "access", lambda program, _mode: program in said)
        return list(said)

    return have


# The question


def test_an_engine_is_asked_for_a_build_of_which_no_image_can_come():
    client = Client()
    assert classic.refusal(client) is None
    ((url, options),) = client.asked
    assert url == "http://engine/v1.52/build"
    assert options["params"]["version"] == "1"
    with tarfile.open(fileobj=io.BytesIO(options["data"])) as context:
        assert context.getnames() == ["Dockerfile"]
        assert b"COPY absent" in context.extractfile("Dockerfile").read()


@pytest.mark.parametrize(
    ("status", "json", "said"),
    [
        (400, {"message": f"{REFUSED}\n"}, REFUSED),
        (403, {"message": "authorization denied\nby plugin"}, "authorization denied by plugin"),
        (404, {"message": "page not found"}, "page not found"),
        (501, {"message": "not implemented"}, "not implemented"),
        (403, None, "403 Because"),
        (502, ["a list"], "502 Because"),
    ],
)
def test_a_refusal_is_told_in_the_words_of_whoever_refuses(status, json, said):
    assert classic.refusal(Client(status, json)) == said


def test_an_engine_that_goes_away_meanwhile_is_no_engine_without_a_builder():
    with pytest.raises(EngineUnavailable):
        classic.refusal(Client(fails=requests.exceptions.ConnectionError("gone")))


# The choice


def test_the_classic_builder_builds_where_the_engine_has_it_whatever_is_installed(programs):
    programs()
    said = Said()
    for wanted in (None, "classic"):
        assert choose_builder(wanted, client=Client(), report=said) == "classic"
    assert said.lines == []


def test_buildkit_builds_where_the_classic_builder_is_refused_and_that_is_said(programs):
    programs((NEW, BUILDX))
    said = Said()
    assert choose_builder(None, client=Client(400, {"message": REFUSED}), report=said) == "buildkit"
    assert len(said.lines) == 1
    assert REFUSED in said.lines[0]
    assert "BuildKit" in said.lines[0]


@pytest.mark.parametrize("installed", [[], [(NEW, None)]])
def test_where_neither_can_one_sentence_says_why_and_the_remedy_names_the_package(programs, installed):
    programs(*installed)
    with pytest.raises(BuildError) as failure:
        choose_builder(None, client=Client(400, {"message": REFUSED}), report=Said())
    assert REFUSED in failure.value.message
    assert ("lacks the buildx plugin" if installed else "no docker client is installed") in failure.value.message
    assert "\n" not in failure.value.message
    assert "docker-buildx " in failure.value.remedy
    assert "docker-buildx-plugin" in failure.value.remedy


def test_a_builder_that_was_asked_for_is_never_replaced_by_the_other(programs):
    programs()
    with pytest.raises(BuildError, match="docker client"):
        choose_builder("buildkit", client=Client(), report=Said())
    programs((NEW, BUILDX))
    with pytest.raises(BuildError, match=REFUSED) as failure:
        choose_builder("classic", client=Client(400, {"message": REFUSED}), report=Said())
    assert "--builder" in failure.value.remedy
    unasked = Client()
    assert choose_builder("buildkit", client=unasked, report=Said()) == "buildkit"
    assert unasked.asked == []


# The docker program


@pytest.mark.parametrize(
    ("installed", "index", "buildx"),
    [
        ([(NEW, BUILDX)], 0, "0.29.1+ds1-4"),
        ([(NEW, "")], 0, "of an unknown version"),
        ([(OLD, None)], 0, None),
        ([(NEW, None), (OLD, None)], 1, None),
        ([(OLD, None), (NEW, BUILDX)], 1, "0.29.1+ds1-4"),
    ],
)
def test_a_docker_client_with_buildx_goes_before_one_that_speaks_buildkit_itself(programs, installed, index, buildx):
    found = programs(*installed)
    assert buildkit_client() == (found[index], buildx)


@pytest.mark.parametrize("installed", [[], [(NEW, None)], [(None, None)]])
def test_without_a_client_that_speaks_buildkit_the_package_is_named(programs, installed):
    programs(*installed)
    with pytest.raises(BuildError, match="BuildKit cannot be used") as failure:
        buildkit_client()
    assert "docker-buildx-plugin" in failure.value.remedy


@pytest.mark.parametrize(
    ("said", "buildx", "advised"),
    [
        ("failed to read downloaded context: open /x/build-context-1: no such file", None, True),
        ("Error response from daemon: client version 1.41 is too old. Minimum is 1.44", None, True),
        ("failed to read downloaded context: open /x/build-context-1: no such file", "v0.29", False),
        ("executor failed running [/bin/sh -c exit 3]: exit code: 3", None, False),
    ],
)
def test_an_old_clients_own_buildkit_that_the_engine_does_not_take_is_a_matter_of_buildx(
    monkeypatch, tmp_path, said, buildx, advised
):
    ended = SimpleNamespace(stdout=[f"#1 something\n{said}\n"], returncode=1)
    monkeypatch.setattr(builders.subprocess, "Popen", lambda *_, **__: contextlib.nullcontext(ended))
    monkeypatch.setattr(builders, "buildkit_client", lambda: ("docker", buildx))
    context = tmp_path / "context.tar"
    context.write_bytes(b"")
    with context.open("rb") as opened, pytest.raises(BuildError) as failure:
        job = BuildJob(context=opened, args={}, tag="x:1", network="none", no_cache=False)
        build_buildkit(job, client=Client(), report=Said())
    assert failure.value.message.endswith(said)
    assert ("docker-buildx" in (failure.value.remedy or "")) == advised
