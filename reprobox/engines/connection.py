"""Reaching a container engine: which address is meant, and why it does not answer; its failures in our words."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

import docker.errors
import requests.exceptions
import urllib3.exceptions
from docker.context.config import get_current_context_name

import docker
from reprobox.errors import EngineError, EngineUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["UNIX_SOCKET", "NoSuchThing", "connect", "engine_errors", "open_client"]

DEFAULT_TIMEOUT_SECONDS = 60.0
CONNECT_TIMEOUT_SECONDS = 20.0

UNIX_SOCKET = "http+docker://localhost"
"""How docker-py writes the address of any unix socket."""
"""An engine that accepts connections and says nothing is hung, not slow."""


_UNAVAILABLE_REMEDY = (
    "start it (systemctl start docker, or dockerd), point DOCKER_HOST at one that runs, "
    "or use --engine podman or --engine local"
)


class NoSuchThing(EngineError):
    """The engine has no such image or container; the caller knows which it asked for."""


def connect() -> docker.DockerClient:
    """Return a client of the Docker Engine at ``DOCKER_HOST``, of the current docker context, or the default socket.

    :raises EngineUnavailable: with the address that was tried, why it failed and what to do.
    """
    context = None if os.environ.get("DOCKER_HOST") else _chosen_context()
    address = os.environ.get("DOCKER_HOST") or (context.Host if context else "unix:///var/run/docker.sock")
    if context is not None:
        return open_client(
            address, lambda **options: docker.DockerClient(base_url=address, tls=context.TLSConfig, **options)
        )
    return open_client(address, docker.from_env)


def open_client(
    address: str, make: Callable[..., docker.DockerClient], remedy: str = _UNAVAILABLE_REMEDY
) -> docker.DockerClient:
    """Return what ``make(version=…, timeout=…)`` returns: a client whose engine has answered.

    The time-out of a request is a minute, or ``DOCKER_CLIENT_TIMEOUT`` seconds.

    :raises EngineUnavailable: naming ``address``, the cause and the ``remedy``.
    """
    timeout = _request_timeout()
    if address.startswith("ssh://") and importlib.util.find_spec("paramiko") is None:
        raise EngineUnavailable(
            f"an engine at {address} is reached through the Python package paramiko, which is not installed",
            remedy="install it beside reprobox (pip install paramiko), or set DOCKER_HOST to another address",
        )
    try:
        client = make(version="auto", timeout=min(timeout, CONNECT_TIMEOUT_SECONDS))
    except docker.errors.TLSParameterError as error:
        raise EngineUnavailable(
            f"the TLS settings for {address} are wrong ({error.msg.rstrip('.')})",
            remedy="see DOCKER_TLS_VERIFY and DOCKER_CERT_PATH, whose folder has ca.pem, cert.pem and key.pem",
            detail=str(error),
        ) from error
    except (docker.errors.DockerException, ValueError) as error:  # urllib refuses a malformed address
        raise EngineUnavailable(_why_unavailable(address, error), remedy=remedy, detail=str(error)) from error
    client.api.timeout = timeout  # type: ignore[assignment]  # requests takes fractions of a second
    return client


def _request_timeout() -> float:
    text = os.environ.get("DOCKER_CLIENT_TIMEOUT", "")
    if not text:
        return DEFAULT_TIMEOUT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0
    if not 0 < seconds < 86400:
        raise UsageError(f"DOCKER_CLIENT_TIMEOUT cannot be {text!r}", remedy="give a number of seconds, or unset it")
    return seconds


def _chosen_context() -> Any:
    """Return the context that DOCKER_CONTEXT or ``docker context use`` chose; ``None`` for the default.

    :raises EngineUnavailable: when there is no such context: another engine must not quietly take its place.
    """
    try:
        name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name() or "default"
        context = None if name == "default" else docker.context.ContextAPI.get_context(name)
    except (docker.errors.DockerException, OSError, ValueError) as error:
        raise EngineUnavailable(
            f"docker's configuration cannot be read ({error})",
            remedy="correct ~/.docker/config.json, or set DOCKER_HOST",
        ) from error
    if name != "default" and context is None:
        raise EngineUnavailable(
            f"there is no docker context {name!r}", remedy="see docker context ls, or set DOCKER_HOST"
        )
    return context


def _why_unavailable(address: str, error: Exception) -> str:
    text = str(error)
    if "PermissionError" in text or "Permission denied" in text:
        return f"the engine at {address} does not let this user in (permission denied)"
    if "FileNotFoundError" in text or "No such file" in text:
        return f"no container engine answers at {address} (there is no such socket)"
    if "ConnectionRefused" in text or "Connection refused" in text:
        return f"no container engine answers at {address} (connection refused: the daemon is not running)"
    if "timed out" in text or "Timeout" in text:
        return f"the engine at {address} accepts connections and does not answer (timed out)"
    return f"no container engine answers at {address}"


@contextlib.contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turn docker-py's and requests' exceptions into ours, with the engine's sentence kept."""
    try:
        yield
    except docker.errors.NotFound as error:
        raise NoSuchThing(_explained(error, doing), detail=str(error)) from error
    except docker.errors.APIError as error:
        raise EngineError(_explained(error, doing), detail=str(error)) from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise EngineUnavailable(
            f"the engine stopped answering while it was to {doing}",
            remedy="see whether its daemon still runs, then try again",
            detail=str(error),
        ) from error
    except (docker.errors.DockerException, ValueError) as error:
        raise EngineError(f"the engine could not {doing} ({error})", detail=str(error)) from error


def _explained(error: docker.errors.APIError, doing: str) -> str:
    explanation = " ".join(str(error.explanation or error).split())
    return f"the engine could not {doing}: {explanation}"
