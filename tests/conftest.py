"""Shared by every test: counting what ran on which engine, and no quiet skips in CI."""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
IN_CI = bool(os.environ.get("CI"))


def pytest_collection_modifyitems(items):
    for item in items:
        if "engine" in getattr(item, "fixturenames", ()) or "docker_client" in getattr(item, "fixturenames", ()):
            item.user_properties.append(("needs", "engine"))


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
