"""A registry, a proxy in front of it, and a bench of images for both."""

from __future__ import annotations

import pytest
from support.bench import Bench
from support.proxy import Proxy
from support.registry import running_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with running_registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
def proxy(registry):
    with Proxy(registry.address) as proxy:
        yield proxy


@pytest.fixture
def bench(docker_client, registry, proxy):
    bench = Bench(docker_client, registry, proxy)
    yield bench
    bench.forget()
