"""The way out: proxies, certificates, and the registry of the image that was chosen."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from reprobox.doctor.check import Finding, fail, ok, skipped, warn
from reprobox.reference import is_image_id
from reprobox.reference import parse as parse_reference

if TYPE_CHECKING:
    from collections.abc import Mapping

    from reprobox.doctor.patient import Patient

__all__ = ["certificates", "judge_proxies", "judge_registry", "proxies", "registry"]

REGISTRY_SECONDS = 4.0

_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO")
"""Variables by which Python, requests (docker-py, huggingface), curl, pip and git are told whom to trust."""
_HERE = ("localhost", "127.0.0.1")
_API_OF_DOCKER_HUB = "registry-1.docker.io"


def proxies(patient: Patient) -> Finding:
    """Look whether the engine and this shell take the same way out."""
    if patient.facts is None or (patient.engine is not None and not patient.engine.isolates):
        return judge_proxies(_proxies_of(patient.environment), None)
    said = patient.facts.said
    names = {"http": "HttpProxy", "https": "HttpsProxy", "no": "NoProxy"}
    return judge_proxies(
        _proxies_of(patient.environment), {name: str(said.get(key) or "") for name, key in names.items()}
    )


def _proxies_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return ``http``, ``https`` and ``no`` as the shell sets them; small letters go first, as curl and Python read them."""
    return {
        name: environment.get(f"{name}_proxy") or environment.get(f"{name.upper()}_PROXY") or ""
        for name in ("http", "https", "no")
    }


def judge_proxies(shell: Mapping[str, str], engine: Mapping[str, str] | None) -> Finding:
    """Judge proxies: ``http``, ``https`` and ``no``, of the shell and of the engine (``None``: there is none)."""
    for kind in ("https", "http"):
        if engine is None or bool(shell[kind]) == bool(engine[kind]):
            continue
        if shell[kind]:
            return warn(
                f"this shell goes through the {kind} proxy {_without_password(shell[kind])}, and the engine through none: "
                "it may not reach a registry",
                "set it for the daemon as well (the proxies of its daemon.json, or its unit's Environment), and restart it",
            )
        return warn(
            f"the engine goes through the {kind} proxy {_without_password(engine[kind])}, and this shell through none: "
            "wheels may not be reached",
            f"set {kind.upper()}_PROXY in this shell, where it has no other way out",
        )
    used = [_without_password(shell[kind]) for kind in ("https", "http") if shell[kind]]
    if not used:
        return ok("none")
    exempt = [word.strip() for word in shell["no"].split(",")]
    if "*" not in exempt and not any(name in exempt for name in _HERE):
        return warn(
            f"this shell sends even localhost through the proxy {used[0]}: ranks and registries on this machine are not "
            "found",
            "set NO_PROXY=localhost,127.0.0.1,::1, and what else is not to go through it",
        )
    return ok(" and ".join(dict.fromkeys(used)))


def _without_password(proxy: str) -> str:
    """Return a proxy's address without the user that may stand in it; what is found ends in tickets and chats."""
    before, at, after = proxy.rpartition("@")
    return f"{before.partition('://')[0]}://…@{after}" if at and "://" in before else after


def certificates(patient: Patient) -> Finding:
    """Look whether the certificate authorities can be read that this shell names."""
    named = {name: patient.environment[name] for name in _BUNDLES if patient.environment.get(name)}
    for name, file in named.items():
        if name == "REQUESTS_CA_BUNDLE" and Path(file).is_dir():
            continue  # requests takes a folder as well
        if (why := _no_bundle(file)) is not None:
            return fail(
                f"{name}={file} {why}, so that nothing can be fetched by https",
                f"unset {name}, or let it name a file of certificates in PEM (/etc/ssl/certs/ca-certificates.crt)",
            )
    if (folder := patient.environment.get("SSL_CERT_DIR")) and not any(map(os.path.isdir, folder.split(":"))):
        return fail(f"SSL_CERT_DIR={folder} is no folder", "unset it, or let it name the folder of certificates")
    if named:
        by_file = {file: [name for name in named if named[name] == file] for file in named.values()}
        return ok("; ".join(f"{file} ({', '.join(names)})" for file, names in by_file.items()))
    system = ssl.get_default_verify_paths()
    # Either is None where it is not there, whatever the stubs say.
    there = [
        str(path) for path in (system.cafile, system.capath) if path and (Path(path).is_file() or any(os.scandir(path)))
    ]
    if not there:
        return warn("this machine has no certificate authorities", "install ca-certificates")
    return ok(f"those of this machine ({there[0]})")


def _no_bundle(file: str) -> str | None:
    """Say why ``file`` holds no certificates, or return ``None``."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cafile=file)
    except ssl.SSLError:
        return "holds no certificate"
    except OSError as error:
        return "is not there" if error.errno == errno.ENOENT else f"cannot be read ({error.strerror})"
    return None


def registry(patient: Patient) -> Finding:
    """Look whether the registry answers that the image comes from. Docker Hub is asked only where it is named."""
    reference: str | None = patient.settings.value("image")
    if reference is None:
        return skipped("reprobox's own image comes from no registry")
    if is_image_id(reference) or not (host := _registry_of(reference)):
        return skipped(f"{reference} names no registry")
    return judge_registry(host, _ask(host), has_image=patient.image is not None)


def _registry_of(reference: str) -> str:
    host = parse_reference(reference).registry
    if host != "docker.io":
        return host
    return _API_OF_DOCKER_HUB if reference.startswith(("docker.io/", "index.docker.io/")) else ""


def _ask(host: str) -> int | str:
    """Return the status that a registry answers with, or why there is none."""
    # As engines do: what is on this machine need not speak TLS.
    local = urlsplit(f"//{host}").hostname or ""
    schemes = ("https", "http") if local == "localhost" or local.startswith("127.") else ("https",)
    why = ""
    for scheme in schemes:
        try:
            request = urllib.request.Request(f"{scheme}://{host}/v2/", headers={"User-Agent": "reprobox"})  # noqa: S310
            with urllib.request.urlopen(request, timeout=REGISTRY_SECONDS / len(schemes)) as answer:  # noqa: S310
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except urllib.error.URLError as error:
            why = why or _reason(error.reason)
        except (OSError, ValueError) as error:
            why = why or _reason(error)
    return why


def _reason(reason: Any) -> str:
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message}"
    if isinstance(reason, TimeoutError):
        return "it does not answer in time"
    if isinstance(reason, socket.gaierror):
        return "its name is not known"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror.lower()
    return str(reason)


def judge_registry(host: str, answer: int | str, *, has_image: bool) -> Finding:
    """Judge what a registry answered to ``GET /v2/``: a status, or why there is none.

    200 and 401 are those of a registry (OCI Distribution Specification, "Determining support"). Where the image is there
    already, a run does without it.
    """
    judge = warn if has_image else fail
    without = ", and the image is here already" if has_image else ""
    if isinstance(answer, str):
        return judge(
            f"{host} cannot be reached ({answer}){without}", "check its name, the network, proxies and certificates"
        )
    if answer in (200, 401):
        return ok(f"{host} answers" + (" and asks who you are" if answer == 401 else ""))
    if answer in (403, 429) or answer >= 500:
        return judge(f"{host} answers {answer} now{without}", "log in (docker login), or try again later")
    return judge(f"{host} is no registry (it answers {answer} to /v2/){without}", "check the image's name")
