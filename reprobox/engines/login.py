"""The login for a registry, as docker's configuration and its credential helpers know it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final

import docker.auth
import docker.errors
from docker.utils.config import find_config_file

from reprobox.errors import RegistryError

if TYPE_CHECKING:
    import docker

__all__ = ["login_header"]

HELPER_SECONDS: Final = 30.0
"""How long a credential helper may take; one that asks for a password has nobody to ask."""


def login_header(client: docker.DockerClient, host: str) -> dict[str, str]:
    """Return the header that carries the login for the registry ``host``; empty where there is none.

    :raises RegistryError: the configuration cannot be read, or a helper is missing, fails or does not answer; without it,
        the registry's answer would only mislead.
    """
    _check_configuration(host)
    found: list[str | bytes | None] = []
    failed: list[Exception] = []

    def ask() -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a helper that is missing: the error says it
                found.append(docker.auth.get_config_header(client.api, host))
        except (docker.errors.DockerException, OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            failed.append(error)  # docker-py trusts what a helper answers

    before = _children()
    asking = threading.Thread(target=ask, name="reprobox-login", daemon=True)
    asking.start()
    asking.join(HELPER_SECONDS)
    if asking.is_alive():
        for helper in _children() - before:
            with contextlib.suppress(ProcessLookupError):
                os.kill(helper, signal.SIGKILL)
        raise _unreadable(host, f"its credential helper has not answered for {HELPER_SECONDS:g} s")
    if failed:
        raise _unreadable(host, str(failed[0])) from failed[0]
    header = found[0]
    return {"X-Registry-Auth": header.decode() if isinstance(header, bytes) else header} if header else {}


def _check_configuration(host: str) -> None:
    """Refuse a configuration that is no JSON: docker-py passes over it, and asks the registry without a login."""
    found = find_config_file()
    if found is None:
        return
    place = str(found)
    try:
        document = json.loads(Path(place).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(host, f"{place}: {error}") from error
    if not isinstance(document, dict):
        raise _unreadable(host, f"{place} holds no JSON object")


def _unreadable(host: str, why: str) -> RegistryError:
    return RegistryError(
        f"the login for {host} cannot be read ({why})",
        remedy=f"see credHelpers and credsStore in docker's config.json, or log in again: docker login {host}",
    )


def _children() -> set[int]:
    """Return the programs that this process has started: docker-py gives no hold of the helper that it runs."""
    found: set[int] = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found.update(map(int, children.read_text(encoding="ascii").split()))
    return found
