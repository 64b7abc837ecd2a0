"""Shared by every test: counting what ran on which engine, and no quiet skips in CI."""

from __future__ import annotations

import json
import os
import signal
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from support.cli import Cli
from support.daemon import SmallImage
from support.engine import built_image, connected_client
from support.nvml import StandIn
from support.once import once
from support.podman import PodmanCli, PodmanService, require_podman
from support.proxy import Proxy
from support.record import write_record
from support.registry import running_registry
from xdist.scheduler import LoadFileScheduling

HERE = Path(__file__).parent
IN_CI = bool(os.environ.get("CI"))


def pytest_addoption(parser):
    parser.addoption("--record-engines", action="store_true", help="write docs/reference/engines.json from this run")


def pytest_configure():
    """A shell's background job ignores INT and QUIT, nohup's HUP, and what it starts inherits that: the suite must not."""
    defaults = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGQUIT: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    for number, ours in defaults.items():
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, ours)


@pytest.fixture(scope="session")
def docker_client():
    """A client of the real engine; skipped with the reason where there is none, and never in CI."""
    return connected_client()


@pytest.fixture(scope="session")
def image(docker_client):
    """Engine id of the CPU image, built if it is not there."""
    return built_image(docker_client)


@pytest.fixture
def docker(tmp_path, image):
    """The command line on the Docker engine, in a project of its own."""
    return Cli(tmp_path, "docker")


@pytest.fixture
def local(tmp_path):
    """The command line on the local engine, in a project of its own."""
    return Cli(tmp_path, "local")


@pytest.fixture
def standin_nvml(tmp_path_factory):
    """An NVIDIA driver with eight GPUs, to be changed at will and given to a process as its environment."""
    return StandIn(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="session")
def small_image(docker_client, image, tmp_path_factory):
    """reprobox's image without torch, as an archive for each engine of the tests' own to import."""

    def pack(folder):
        SmallImage.pack(docker_client, image, folder / "small.tar")

    return SmallImage(docker_client, image, once(tmp_path_factory, "small-image", pack) / "small.tar")


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def proxy(registry):
    """A proxy in front of the registry, to which a test can do harm."""
    with Proxy(registry.address) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def podman_image(request):
    """The small image, for each Podman to import; skipped with the reason where there is no Podman."""
    require_podman()
    return request.getfixturevalue("small_image")


@pytest.fixture(scope="session")
def podman_with_root(podman_image):
    with PodmanService(podman_image, rootless=False) as service:
        yield service


@pytest.fixture(scope="session")
def podman_without_root(podman_image):
    with PodmanService(podman_image, rootless=True) as service:
        yield service


@pytest.fixture(params=["with_root", "without_root"])
def podman_service(request):
    """A Podman of the tests' own that runs as root, and one that runs as a user; no container is left there."""
    service = request.getfixturevalue(f"podman_{request.param}")
    yield service
    left = service.containers()
    service.remove_containers()
    assert left == []


@pytest.fixture
def podman(podman_service):
    """The command line on Podman, in a project of its own; every run's record is complete at the end."""
    cli = PodmanCli(podman_service.folder(), podman_service)
    yield cli
    for manifest in cli.folder.rglob("manifest.json"):
        assert json.loads(manifest.read_text())["end"], "a run's record was not completed"
        assert not (manifest.parent / "box").exists()


SPLIT = (
    "acceptance/test_cases",
    "acceptance/test_newer_engines",
    "acceptance/test_podman_cases",
    "acceptance/test_reach",
)
"""Files whose tests take long together and share nothing that a worker would have to make again."""


class _Scheduler(LoadFileScheduling):
    """A file's tests go to one worker, those of long files (:data:`SPLIT`) one by one to whichever is free.

    What waits for boxes comes first, the single tests come last: no worker ends long before another.
    """

    def _split_scope(self, nodeid):
        file = super()._split_scope(nodeid)
        return nodeid if any(long in file for long in SPLIT) else file

    def _assign_work_unit(self, node):
        self.workqueue.move_to_end(min(self.workqueue, key=_turn), last=False)
        super()._assign_work_unit(node)


def _turn(scope):
    folders = ("tests/engine/", "tests/acceptance/", "tests/box/", "tests/unit/")
    return "::" in scope, [not scope.startswith(folder) for folder in folders]


def pytest_xdist_make_scheduler(config, log):
    return _Scheduler(config, log)


def pytest_runtest_makereport(item, call):
    if call.when == "setup":
        item.user_properties.append(("kind", kind_of(item)))


def kind_of(item):
    """Which engine a test really used: a fake or the local engine never counts for Docker."""
    for kind in ("newer", "podman"):
        if item.get_closest_marker(kind):
            return kind
    if item.get_closest_marker("engine"):
        return "docker"
    if item.get_closest_marker("local"):
        return "local"
    return "none"


def pytest_terminal_summary(terminalreporter, config):
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        counts[dict(report.user_properties).get("kind", "none")] += 1
    kinds = ("docker", "podman", "newer", "local", "none")
    terminalreporter.write_line("cases per engine: " + ", ".join(f"{kind} {counts[kind]}" for kind in kinds))


def pytest_sessionfinish(session, exitstatus):
    """In CI a skip is a failure, and so are fewer cases than the committed minimum."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    # A run that failed or was stopped has counted less than there is.
    if exitstatus == 0 and session.config.option.record_engines and not hasattr(session.config, "workerinput"):
        write_record(reporter.stats.get("passed", []))
    if not IN_CI or reporter is None or session.config.option.collectonly or not _whole_suite(session.config):
        return
    skipped = reporter.stats.get("skipped", [])
    counts = Counter(dict(r.user_properties).get("kind", "none") for r in reporter.stats.get("passed", []))
    minimum = tomllib.loads((HERE / "minimum.toml").read_text())["cases"]
    short = {kind: least for kind, least in minimum.items() if counts[kind] < least}
    if skipped or short:
        for report in skipped:
            reporter.write_line(f"skipped in CI: {report.nodeid}: {report.longrepr}")
        for kind, least in short.items():
            reporter.write_line(f"too few cases on {kind}: {counts[kind]} of at least {least}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _whole_suite(config):
    return config.args in ([], [str(HERE)], ["tests"]) and not config.option.keyword and not config.option.markexpr
