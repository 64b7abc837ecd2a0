"""Fetching and pushing an image through the engine, until it is done, has failed for good, or has stalled too often.

docker-py raises neither what goes wrong in the middle (docker-py#2286) nor anything at all on an engine that waits for a
registry for ever. Each try here reads the engine's own stream: an error in it is raised, silence ends it, and what is
worth another try gets one. The engine keeps the layers it has finished, so another try goes on where the last one ended.
"""

from __future__ import annotations

import json
import re
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, assert_never
from urllib.parse import quote

import docker.auth
import docker.errors
import requests.exceptions
import urllib3.exceptions

from reprobox.engines.answers import Trouble, retry_after, trouble_of
from reprobox.engines.connection import NoSuchThing, engine_errors
from reprobox.engines.login import login_header
from reprobox.errors import RegistryError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import docker
    from reprobox.engines.store import Reporter
    from reprobox.reference import Reference

__all__ = ["Patience", "pull", "push"]

CONNECT_SECONDS: Final = 20.0
SLOWEST_DISK: Final = 20e6
"""Bytes a second. The engine may be silent for longer while it unpacks a layer, or while the registry stores one."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to give up: a try after ``stall_seconds`` without progress, the transfer after ``retries`` more tries.

    Between two tries it waits ``first_wait_seconds``, then twice as long each time, or as long as the registry asks; one
    that asks for more than ``longest_wait_seconds`` is not waited for.
    """

    stall_seconds: float = 60.0
    retries: int = 3
    first_wait_seconds: float = 2.0
    longest_wait_seconds: float = 300.0


def pull(
    client: docker.DockerClient,
    wanted: Reference,
    report: Reporter,
    *,
    patience: Patience | None = None,
    platform: str | None = None,
) -> str:
    """Have the engine fetch ``wanted``, and return the digest of what it fetched.

    :param platform: ``linux/arm64`` and the like; the engine's own by default.
    :raises RegistryError: the registry refused, failed too often or stalled, or sent something else.
    :raises EngineUnavailable: the engine went away.
    """
    patience = patience or Patience()
    digest = _fetch(client, wanted, report, patience, platform) or wanted.digest
    if digest is None:
        digest = _one_of(
            _digests_here(client, wanted),
            lambda each: _fetch(client, replace(wanted, tag=None, digest=each), report, patience, platform),
        )
    if digest is None:
        raise RegistryError(f"the engine pulled {wanted} and did not say its digest", remedy="name it by its digest")
    if wanted.digest not in {None, digest}:
        raise RegistryError(
            f"the engine pulled {digest} for {wanted}", remedy="check the registry; do not use the image"
        )
    return digest


def push(client: docker.DockerClient, wanted: Reference, report: Reporter, *, patience: Patience | None = None) -> str:
    """Have the engine push its image ``wanted`` (a name with a tag), and return the digest that the registry gave it.

    :raises RegistryError: the registry refused, or failed or stalled too often.
    :raises EngineUnavailable: the engine went away.
    """
    path = f"/images/{quote(wanted.name, safe='/:')}/push"
    transfer = _Transfer(client, wanted, "push", path, {"tag": wanted.tag or "latest"}, report)
    digest = _until_done(transfer, patience or Patience())
    if digest is None:
        raise RegistryError(f"the engine does not say which digest {wanted} got", remedy="push it again")
    return digest


def _fetch(
    client: docker.DockerClient, wanted: Reference, report: Reporter, patience: Patience, platform: str | None
) -> str | None:
    """Have the engine fetch ``wanted``; return the digest that its stream names (Podman's names none)."""
    parameters = {"fromImage": wanted.name, "tag": wanted.digest or wanted.tag or "latest"}
    if platform:
        parameters["platform"] = platform
    return _until_done(_Transfer(client, wanted, "pull", "/images/create", parameters, report), patience)


def _digests_here(client: docker.DockerClient, wanted: Reference) -> tuple[str, ...]:
    """Return the digests of the image that ``wanted`` names now."""
    try:
        with engine_errors(f"look up {wanted}"):
            names = client.images.get(str(wanted)).attrs.get("RepoDigests") or ()
    except NoSuchThing:
        return ()
    here = (name.partition("@") for name in names)
    return tuple(digest for name, _, digest in here if name == wanted.name)


def _one_of(digests: tuple[str, ...], fetch: Callable[[str], object]) -> str | None:
    """Return a digest that the registry has.

    Podman lists every manifest that an image ever had (a loaded file's, another registry's, another compression's)
    under every one of its names, so where there are several, the registry is asked for each.
    """
    if len(digests) < 2:
        return next(iter(digests), None)
    for digest in digests:
        with suppress(RegistryError):
            fetch(digest)
            return digest
    return None


@dataclass(frozen=True)
class _Transfer:
    """One image on its way: a POST whose answer is a stream of JSON lines."""

    client: docker.DockerClient
    wanted: Reference
    verb: str
    path: str
    parameters: Mapping[str, str]
    report: Reporter

    @property
    def name(self) -> str:
        return str(self.wanted)


class _TryFailed(Exception):  # never leaves this module
    """One try failed with the engine's words, or, where there are none, with its silence.

    ``tried_again`` says that the engine has tried several times itself, with pauses in between.
    """

    def __init__(self, words: str | None, *, tried_again: bool) -> None:
        super().__init__(words)
        self.words = " ".join((words or "").split())
        self.stalled = words is None
        self.trouble = Trouble.TEMPORARY if self.stalled else trouble_of(self.words)
        self.tried_again = tried_again and not self.stalled


def _until_done(transfer: _Transfer, patience: Patience) -> str | None:
    headers = login_header(transfer.client, transfer.wanted.registry)
    for tries in range(patience.retries + 1):
        try:
            with engine_errors(f"{transfer.verb} {transfer.name}"):
                return _one_try(transfer, headers, patience.stall_seconds)
        except _TryFailed as failed:
            wait = _wait_before_next(failed, tries, patience)
            if wait is None:
                raise _final(transfer, failed, tries, patience) from failed
            why = f"no progress for {patience.stall_seconds:g} s" if failed.stalled else failed.words
            again = f"trying again in {wait:g} s ({tries + 1} of {patience.retries})"
            transfer.report.say(f"{transfer.verb} of {transfer.name}: {why}; {again}")
            time.sleep(wait)
    raise AssertionError


def _wait_before_next(failed: _TryFailed, tries: int, patience: Patience) -> float | None:
    """Return the seconds until the next try, or ``None`` where there shall be none."""
    if failed.trouble not in {Trouble.BUSY, Trouble.TEMPORARY} or failed.tried_again or tries == patience.retries:
        return None
    wait = retry_after(failed.words)
    if wait is None:
        wait = patience.first_wait_seconds * 2**tries
    return wait if wait <= patience.longest_wait_seconds else None


def _one_try(transfer: _Transfer, headers: Mapping[str, str], stall_seconds: float) -> str | None:
    api = transfer.client.api
    watch = _Watch(transfer)
    try:
        answer = api.post(
            f"{api.base_url}/v{api.api_version}{transfer.path}",
            params=dict(transfer.parameters),
            headers=dict(headers),
            json={} if transfer.verb == "push" else None,  # an engine looks there for the login that no header carries
            stream=True,
            timeout=(CONNECT_SECONDS, stall_seconds),
        )
        # Closing its connection is how an engine is told to stop.
        with closing(answer):
            if answer.status_code >= 400:
                raise _TryFailed(_message(answer), tried_again=False)
            limit = stall_seconds
            for line in answer.iter_lines(chunk_size=None):
                if line.strip():
                    watch.take(json.loads(line))
                before, limit = limit, stall_seconds + watch.being_stored / SLOWEST_DISK
                if limit != before:
                    _wait_at_most(answer, limit)
    except requests.exceptions.RequestException as error:
        if not _timed_out(error):
            raise
        raise _TryFailed(None, tried_again=watch.tried_again) from error
    return watch.digest


def _message(answer: requests.Response) -> str:
    try:
        return str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason}"


def _timed_out(error: requests.exceptions.RequestException) -> bool:
    """Tell silence from the engine's end: in the middle of a stream, requests calls both a ConnectionError."""
    inner = error.args[0] if error.args else None
    return isinstance(error, requests.exceptions.ReadTimeout) or isinstance(inner, urllib3.exceptions.ReadTimeoutError)


def _wait_at_most(answer: requests.Response, seconds: float) -> None:
    """Limit the wait for the next bytes. The socket lies where docker-py's CancellableStream finds it as well."""
    file = getattr(getattr(answer.raw, "_fp", None), "fp", None)  # gone once the answer is complete
    holder = getattr(file, "raw", None) or getattr(file, "channel", None)
    socket = getattr(holder, "_sock", holder)
    if socket is not None:
        socket.settimeout(seconds)


_DIGEST: Final = re.compile(r"[dD]igest: (sha256:[0-9a-f]{64})\b")
_HERE: Final = {"Download complete", "Pull complete", "Pushed", "Layer already exists", "Already exists"}


@dataclass
class _Watch:
    """What one try's stream has said so far."""

    transfer: _Transfer
    digest: str | None = None
    tried_again: bool = False
    _sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    _stored: dict[str, int] = field(default_factory=dict)

    @property
    def being_stored(self) -> int:
        """How many bytes have come through and are being written to a disk, at this end or the other."""
        return sum(self._stored.values())

    def take(self, message: dict[str, Any]) -> None:
        """Take a line of the stream. :raises _TryFailed: where it is an error."""
        if problem := (message.get("errorDetail") or {}).get("message") or message.get("error"):
            raise _TryFailed(str(problem), tried_again=self.tried_again)
        status, layer = str(message.get("status", "")), str(message.get("id", ""))
        if found := _DIGEST.search(status):
            self.digest = found[1]
        if status.startswith("Retrying in"):
            self.tried_again = True
        elif "progressDetail" in message and layer:
            self._of_layer(layer, status, message["progressDetail"] or {})
        elif status:
            self.transfer.report.log(status)

    def _of_layer(self, layer: str, status: str, detail: Mapping[str, int]) -> None:
        now, size = int(detail.get("current") or 0), int(detail.get("total") or 0)
        self._stored.pop(layer, None)
        if status in {"Extracting", "Verifying Checksum"} or (status == "Pushing" and now >= size):
            self._stored[layer] = size or self._sizes.get(layer, (0, 0))[1]
        before = dict(self._sizes)
        if status in {"Downloading", "Pushing"} and size:
            self._sizes[layer] = (min(now, size), size)
        elif status in _HERE and layer in self._sizes:
            self._sizes[layer] = (self._sizes[layer][1],) * 2
        if self._sizes != before:
            done, total = (sum(column) for column in zip(*self._sizes.values(), strict=True))
            self.transfer.report.progress(f"{self.transfer.verb} of {self.transfer.name}", done, total)


def _final(transfer: _Transfer, failed: _TryFailed, tries: int, patience: Patience) -> RegistryError:
    """Return what a person is told in the end."""
    host, doing, words = transfer.wanted.registry, f"{transfer.verb} {transfer.name}", failed.words
    also = f", also after {tries} more {'try' if tries == 1 else 'tries'}" if tries else ""
    if failed.stalled:
        return RegistryError(
            f"the engine could not {doing}: no progress for {patience.stall_seconds:g} s{also}",
            remedy="check the network and the registry, or allow longer silences (--stall-timeout)",
            detail=f"no progress for {patience.stall_seconds:g} s",
        )
    match failed.trouble:
        case Trouble.CORRUPT:
            why = f"what was sent is not what its digest says, and none of it is used ({words})"
            remedy = "try again; where it stays so, the registry's copy is damaged: push the image again"
        case Trouble.BUSY:
            why = f"{host} takes no more requests now{also} ({words})"
            remedy = f"try again later; `docker login {host}` may allow more"
        case Trouble.TEMPORARY:
            why = f"{words}{also}"
            remedy = "see whether the registry is well, and try again"
        case Trouble.DENIED:
            why = f"{host} does not let you ({words})"
            remedy = f"log in with `docker login {host}`, and check the name and your rights"
        case Trouble.UNKNOWN:
            why = f"{host} has no such image ({words})"
            remedy = "check its name and tag, or push it first"
        case Trouble.OTHER:
            why = words
            remedy = "check its name, your login (docker login) and the network"
        case _:
            assert_never(failed.trouble)
    return RegistryError(f"the engine could not {doing}: {why}", remedy=remedy, detail=words)
