"""The login for a registry: configurations and helpers that are broken are named, and none holds a command up."""

from __future__ import annotations

import json
from types import SimpleNamespace

import docker.auth
import pytest

from reprobox.engines import login
from reprobox.errors import RegistryError


@pytest.fixture
def configuration(tmp_path, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


CLIENT = SimpleNamespace(api=SimpleNamespace(_auth_configs=docker.auth.AuthConfig({}), credstore_env={}))
"""As much of docker-py's client as the login is looked up with."""


@pytest.mark.parametrize("text", ["{broken", "[]", "\xff", "[" * 100_000])
def test_a_configuration_that_is_none_is_named_and_no_registry_is_asked_without_a_login(configuration, text):
    configuration.write_text(text, encoding="latin-1")
    with pytest.raises(RegistryError, match=f"the login for ghcr.io cannot be read .*{configuration.name}"):
        login.login_header(CLIENT, "ghcr.io")


def test_without_a_configuration_there_is_no_login(configuration):
    assert login.login_header(CLIENT, "ghcr.io") == {}
    configuration.write_text(json.dumps({"auths": {}}))
    assert login.login_header(CLIENT, "ghcr.io") == {}
