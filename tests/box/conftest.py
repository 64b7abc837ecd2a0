"""Programs under the recipe on this machine, through the real CLI."""

from __future__ import annotations

import pytest
from support.cli import Cli


@pytest.fixture
def local(tmp_path):
    return Cli(tmp_path, "local")
