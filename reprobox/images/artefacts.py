"""The content-addressed cache of package files, and the download that fills it: resumed, verified, never half visible."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from reprobox.errors import ArtefactError
from reprobox.folders import cache_folder
from reprobox.images.wheels import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = ["ArtefactCache", "Downloader", "artefact_folder"]

_CHUNK: Final = 1 << 18
_TRIES: Final = 5
_PATIENCE: Final = (10.0, 60.0)  # seconds to connect, and between two pieces of an answer
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ADDRESSES: Final = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")


def artefact_folder() -> Path:
    """Return the folder of the cache on this machine: ``$XDG_CACHE_HOME/reprobox/artefacts``."""
    return cache_folder() / "artefacts"


@dataclass(frozen=True, kw_only=True)
class ArtefactCache:
    """Files by their SHA-256, at ``sha256/<2 hex>/<sha256>/<file name>`` below ``root``; verified at every use.

    :param say: told of a damaged file, which is then removed.
    """

    root: Path
    say: Callable[[str], None]

    def place(self, sha256: str, file: str) -> Path:
        """Return where the file with this content and name belongs."""
        return self.root / "sha256" / sha256[:2] / sha256 / file

    def find(self, sha256: str, file: str) -> Path | None:
        """Return the file with this content, just verified, or None; another name of the same content will do."""
        place = self.place(sha256, file)
        for path in (place, *(other for other in self.named(sha256) if other != place)):
            if not path.is_file():
                continue
            if sha256_of(path) != sha256:
                self.say(f"the cached {path.name} is damaged and is removed")
                path.unlink(missing_ok=True)
            elif path == place:
                return path
            else:
                return self._linked(path, place)
        return None

    def named(self, sha256: str) -> list[Path]:
        """Return the files the cache has for this content, not verified: their names are what is asked for."""
        folder = self.root / "sha256" / sha256[:2] / sha256
        return sorted(path for path in folder.glob("*") if not path.name.startswith("."))

    def add(self, path: Path, sha256: str, file: str, *, move: bool = False) -> Path | None:
        """Take ``path`` in, where its content is the one named, and return its place; None where it is another.

        The content is read from the cache's own copy, so that nobody can change it between the look and the use.

        :param move: whether the file may be taken away from where it is, which has to be on the same file system.
        :raises ArtefactError: this machine cannot keep it: a full disk, say.
        """
        try:
            return self._added(path, self.place(sha256, file), sha256, move=move)
        except OSError as error:
            raise self.not_kept(file, error) from error

    def not_kept(self, file: str, error: OSError) -> ArtefactError:
        """Return what to tell of a file that this machine cannot keep."""
        if error.errno in _FULL:
            remedy = f"make room for {self.root}, or set XDG_CACHE_HOME to a folder with more; what came is kept"
        else:
            remedy = f"see why {self.root} cannot be written to, or set XDG_CACHE_HOME to another folder"
        return ArtefactError(f"{file} cannot be kept ({error.strerror})", remedy=remedy, detail=str(error))

    @staticmethod
    def _added(path: Path, place: Path, sha256: str, *, move: bool) -> Path | None:
        place.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=place.parent, prefix=".add-", delete=False) as made:
            temporary = Path(made.name)
        try:
            if move:
                path.replace(temporary)
            else:
                shutil.copyfile(path, temporary)
            if sha256_of(temporary) != sha256:
                return None
            temporary.chmod(0o644)
            temporary.replace(place)
        finally:
            temporary.unlink(missing_ok=True)
        return place

    @contextmanager
    def partial(self, sha256: str) -> Iterator[IO[bytes]]:
        """Give the file that a download of this content is written to, locked: it stays when the download is cut off."""
        path = self.root / "partial" / sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with path.open("ab+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # of two processes the second goes on where the first stopped
                if not path.is_file() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                    continue  # the first has moved it away meanwhile
                yield file
                return

    def forget_partial(self, sha256: str) -> None:
        """Remove what is left of a download."""
        (self.root / "partial" / sha256).unlink(missing_ok=True)

    def _linked(self, path: Path, place: Path) -> Path:
        try:
            os.link(path, place)
        except FileExistsError:
            pass
        except OSError:
            shutil.copyfile(path, place)
        return place


class _CutOff(Exception):
    """A download ended before its time; it can go on."""


@dataclass(frozen=True, kw_only=True)
class Downloader:
    """Fetches files by address into a cache, with the caller's proxies, certificates and credentials.

    :param environment: as :func:`reprobox.images.uv.environment_for_uv` makes it; passwords of its indexes are used for
        files on the same host, and a ``.netrc`` is read.
    :param pause: seconds before the second try; each further one waits twice as long.
    """

    cache: ArtefactCache
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    pause: float = 1.0

    def fetch(self, url: str, sha256: str, file: str, progress: Callable[[int], None]) -> Path:
        """Return the file at ``url`` as it lies in the cache, verified.

        A download that is cut off or stalls goes on where it stopped, now or the next time.

        :param progress: told of every so many bytes that came; a negative number takes some back.
        :raises ArtefactError: it cannot be had, or its content is another.
        """
        try:
            parts = urlsplit(url)
            if parts.scheme == "file":
                copied = self._copied(Path(unquote(parts.path)), sha256, file)
                progress(copied.stat().st_size)
                return copied
            placed = self._downloaded(url, sha256, file, progress)
        except OSError as error:  # of this machine: a full disk fails at every write, at the last of them a close
            raise self._not_here(file, error) from error
        if placed is None:
            raise ArtefactError(
                f"{file} came with another content than the lock says",
                remedy="fetch again; if it stays so, the index serves another file under this name",
            )
        return placed

    def size(self, url: str) -> int | None:
        """Return the size in bytes of the file at ``url``, or None where the server does not say."""
        parts = urlsplit(url)
        if parts.scheme == "file":
            path = Path(unquote(parts.path))
            return path.stat().st_size if path.is_file() else None
        import requests

        try:
            with self._session(url) as session:
                answer = session.head(url, timeout=_PATIENCE, allow_redirects=True)
        except requests.RequestException:
            return None
        length = answer.headers.get("Content-Length", "")
        return int(length) if answer.ok and length.isdecimal() else None

    def _copied(self, path: Path, sha256: str, file: str) -> Path:
        placed = self.cache.add(path, sha256, file) if path.is_file() else None
        if placed is None:
            raise ArtefactError(f"{path} is not the {file} of the lock", remedy="fetch it again into that folder")
        return placed

    def _downloaded(self, url: str, sha256: str, file: str, progress: Callable[[int], None]) -> Path | None:
        with self.cache.partial(sha256) as partial:
            placed = self.cache.find(sha256, file)  # another process may have brought it meanwhile
            if placed is not None:
                self.cache.forget_partial(sha256)
                return placed
            self._filled(url, partial, file, progress)
            return self.cache.add(Path(partial.name), sha256, file, move=True)

    def _not_here(self, file: str, error: OSError) -> ArtefactError:
        if error.errno is None:  # requests' own, of a file of certificates that is not there
            return ArtefactError(f"{file} cannot be fetched ({error})", remedy="correct the setting", detail=str(error))
        return self.cache.not_kept(file, error)

    def _filled(self, url: str, partial: IO[bytes], file: str, progress: Callable[[int], None]) -> None:
        import requests

        problem: Exception | None = None
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(self.pause * 2 ** (attempt - 1))
            try:
                with self._session(url) as session:
                    self._receive(session, url, partial, progress)
                return
            except (requests.RequestException, ConnectionError, TimeoutError, _CutOff) as error:
                # A refusal is final; what is busy, or broke off, may come with the next try.
                status = getattr(getattr(error, "response", None), "status_code", None)
                problem = error
                if status is not None and status < 500 and status not in (408, 429):
                    break
        raise ArtefactError(
            f"{file} cannot be fetched ({_in_short(problem)})",
            remedy="try again: what came is kept"
            if os.fstat(partial.fileno()).st_size
            else "check the index and the network",
            detail=str(problem),
        )

    def _receive(self, session: Any, url: str, partial: IO[bytes], progress: Callable[[int], None]) -> None:
        partial.seek(0, os.SEEK_END)
        have = partial.tell()
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
        with session.get(url, headers=headers, stream=True, timeout=_PATIENCE) as answer:
            if answer.status_code == 416:  # nothing follows: the file is whole, or was never this one
                return
            answer.raise_for_status()
            if have and not (
                answer.status_code == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
            ):
                partial.truncate(0)
                have = 0
            progress(have)
            came, expected = 0, answer.headers.get("Content-Length", "")
            try:
                for chunk in answer.iter_content(_CHUNK):
                    partial.write(chunk)
                    came += len(chunk)
                    progress(len(chunk))
                partial.flush()
                _require_all(came, expected)
            except BaseException:
                progress(-have - came)  # the next try counts them again
                partial.flush()
                raise

    def _session(self, url: str) -> Any:
        import requests

        session = requests.Session()
        if proxy := self.environment.get("ALL_PROXY"):
            session.proxies = {"http": proxy, "https": proxy}
        if not {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"} & set(os.environ) and self.environment.get("SSL_CERT_FILE"):
            session.verify = self.environment["SSL_CERT_FILE"]
        if client := self.environment.get("SSL_CLIENT_CERT"):
            session.cert = client
        session.auth = self._credentials(urlsplit(url).netloc.rpartition("@")[2])
        return session

    def _credentials(self, host: str) -> tuple[str, str] | None:
        words = [word for name in _ADDRESSES for word in self.environment.get(name, "").replace(",", " ").split()]
        for word in words:
            address = urlsplit(word.partition("=")[2] if "=" in word.partition("://")[0] else word)
            if address.username and address.netloc.rpartition("@")[2] == host:
                return unquote(address.username), unquote(address.password or "")
        return None


def _require_all(came: int, expected: str) -> None:
    # requests takes a connection that was closed early for the end of the answer.
    if expected.isdecimal() and came < int(expected):
        raise _CutOff(f"{came} of {expected} bytes came")


def _in_short(error: Exception | None) -> str:
    """Return why, without the address: it may hold a password."""
    answer = getattr(error, "response", None)
    if answer is not None:
        return f"the server answers {answer.status_code}"
    if isinstance(error, _CutOff):
        return f"the answer broke off: {error}"
    names = {"ConnectTimeout": "no answer", "ReadTimeout": "it stalled", "ConnectionError": "no connection"}
    return names.get(type(error).__name__, type(error).__name__)
