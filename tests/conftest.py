"""Shared by every test: counting what ran on which engine, and no quiet skips in CI."""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from support.cli import Cli
from support.engine import built_image, connected_client

HERE = Path(__file__).parent
IN_CI = bool(os.environ.get("CI"))


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


def pytest_runtest_makereport(item, call):
    if call.when == "setup":
        item.user_properties.append(("kind", kind_of(item)))


def kind_of(item):
    """Which engine a test really used: a fake or the local engine never counts for Docker."""
    if item.get_closest_marker("engine"):
        return "docker"
    if item.get_closest_marker("local"):
        return "local"
    return "none"


def pytest_terminal_summary(terminalreporter, config):
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        counts[dict(report.user_properties).get("kind", "none")] += 1
    terminalreporter.write_line(
        f"cases per engine: docker {counts['docker']}, local {counts['local']}, none {counts['none']}"
    )


def pytest_sessionfinish(session, exitstatus):
    """In CI a skip is a failure, and so are fewer cases than the committed minimum."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
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
