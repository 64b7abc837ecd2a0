"""A bench of images for the registry and the proxy in front of it."""

from __future__ import annotations

import pytest
from support.bench import Bench


@pytest.fixture
def bench(docker_client, registry, proxy):
    bench = Bench(docker_client, registry, proxy)
    yield bench
    bench.forget()
