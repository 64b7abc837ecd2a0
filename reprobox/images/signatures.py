"""Signatures of images: an in-toto statement about an image in a DSSE envelope, made and checked with a key of one's own.

The envelope is what cosign, in-toto and SLSA's tools exchange (https://github.com/secure-systems-lab/dsse). Keys are PEM:
ECDSA on P-256 or Ed25519.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reprobox.errors import SignatureError
from reprobox.files import read_at_most, write_json
from reprobox.folders import data_folder
from reprobox.images.provenance import STATEMENT_TYPE, statement_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from securesystemslib.signer import SSlibKey

__all__ = [
    "FOLDER",
    "Signed",
    "check_image",
    "check_signature",
    "is_encrypted",
    "public_key",
    "sign",
    "signature_files",
    "signature_folders",
]

FOLDER: Final = ".reprobox-signatures"
"""Folder of the project that holds the signatures of its images; teams commit it."""

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"

_LARGEST: Final = 16 << 20
_SCHEMES: Final = ("ecdsa-sha2-nistp256", "ed25519")


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A signature that holds: the envelope's file, the key's id, and the statement that was signed."""

    path: Path
    keyid: str
    statement: dict[str, Any]


def signature_folders(project: Path) -> list[Path]:
    """Return where signatures are looked for: in the project, then among the user's own, for every project."""
    return [project / FOLDER, data_folder() / "signatures"]


def signature_files(image_id: str, folders: Iterable[Path]) -> list[Path]:
    """Return the signature files of an image in ``folders``, those of the first one first."""
    return [path for folder in folders for path in sorted(folder.glob(f"{_hex(image_id)}-*.intoto.json"))]


def sign(statement: dict[str, Any], key: Path, image_id: str, folder: Path, *, password: bytes | None = None) -> Path:
    """Sign ``statement`` with the private key in the file ``key``, write the envelope to ``folder``, return its path.

    :param image_id: the image the statement is about; with the key's id it is the file's name.
    :param password: of an encrypted key.
    :raises SignatureError: the key cannot be used, or the envelope cannot be written.
    """
    signer = _signer(key, password)
    from securesystemslib.dsse import Envelope

    envelope = Envelope(statement_text(statement).encode(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    path = folder / f"{_hex(image_id)}-{signer.public_key.keyid[:8]}.intoto.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, envelope.to_dict())
    except OSError as error:
        raise SignatureError(f"{path} cannot be written ({error.strerror})", remedy="make it writable") from error
    return path


def is_encrypted(key: Path) -> bool:
    """Tell whether a private key needs a password. :raises SignatureError: the file cannot be read."""
    return b"ENCRYPTED" in _read(key, "private key")


def public_key(path: Path) -> SSlibKey:
    """Return the public key in the PEM file ``path``.

    :raises SignatureError: it is none, or of a kind that is not taken.
    """
    _need_library()
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import SSlibKey

    try:
        key = SSlibKey.from_crypto(load_pem_public_key(_read(path, "public key")))
    except (ValueError, TypeError) as error:
        raise SignatureError(
            f"{path} is no public key that reprobox takes",
            remedy="give a PEM file with an ECDSA P-256 or an Ed25519 public key (openssl pkey -pubout)",
            detail=repr(error),
        ) from error
    _check_scheme(key.scheme, path)
    return key


def check_image(image_id: str, name: str, key: Path, files: Iterable[Path]) -> Signed:
    """Return the signature of an image that holds under ``key``; one of ``files`` is enough.

    :raises SignatureError: there is none; the sentence says why the first file that was looked at does not count.
    """
    trusted = public_key(key)
    failures = []
    # Files of this key first, as their names say, so that a failure told is that of the file that should have held.
    for path in sorted(files, key=lambda path: trusted.keyid[:8] not in path.name):
        try:
            return check_signature(path, trusted, image_id)
        except SignatureError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    raise SignatureError(
        f"{name} ({image_id}) has no signature here, and one by {key} is required",
        remedy=f"take a signed image, or sign this one: reprobox sign --key KEY --image {name}",
    )


def check_signature(path: Path, key: SSlibKey, image_id: str) -> Signed:
    """Check that the envelope at ``path`` was signed by ``key`` and is about the image; nothing unsigned is believed.

    :raises SignatureError: with a sentence of its own for a wrong key, an altered statement and another image.
    """
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import UnverifiedSignatureError
    from securesystemslib.signer import Signature

    payload, payload_type, signatures = _envelope(path)
    signed = Envelope(payload, payload_type, {}).pae()
    for _, value in signatures:
        try:
            # By every signature, whatever key it says to be by: that is not signed, and cosign leaves it empty.
            key.verify_signature(Signature(key.keyid, value.hex()), signed)
            break
        except UnverifiedSignatureError:
            continue
    else:
        if any(keyid == key.keyid for keyid, _ in signatures):
            raise SignatureError(
                f"the statement in {path} was altered after it was signed", remedy="restore the file, or sign again"
            )
        raise SignatureError(f"{path} was not signed by the key that is required", remedy="ask who signed it, or why")
    statement = _statement(path, payload, payload_type)
    if not _is_about(statement, image_id):
        raise SignatureError(
            f"the signature in {path} holds, and is for another image than {image_id}",
            remedy="take the image that was signed, or sign this one",
        )
    return Signed(path=path, keyid=key.keyid, statement=statement)


def _signer(path: Path, password: bytes | None) -> Any:
    _need_library()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    try:
        signer = CryptoSigner(load_pem_private_key(_read(path, "private key"), password))
    except TypeError as error:
        why = "is encrypted" if password is None else "is not encrypted"
        raise SignatureError(f"the private key {path} {why}", remedy="give its password, or none") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        wrong = "or the password is wrong" if password is not None else "that reprobox can read"
        raise SignatureError(
            f"{path} is no private key {wrong}",
            remedy="give a PEM file, as `openssl genpkey -algorithm ed25519` makes",
            detail=repr(error),
        ) from error
    _check_scheme(signer.public_key.scheme, path)
    return signer


def _check_scheme(scheme: str, path: Path) -> None:
    if scheme not in _SCHEMES:
        raise SignatureError(f"the key {path} is for {scheme}", remedy="give an ECDSA P-256 or an Ed25519 key")


def _need_library() -> None:
    try:
        import cryptography
        import securesystemslib.signer  # noqa: F401
    except ImportError as error:
        raise SignatureError(
            "signatures need securesystemslib and cryptography, which are not installed",
            remedy="install them with `pip install 'reprobox[sign]'`",
        ) from error
    del cryptography


def _read(path: Path, what: str) -> bytes:
    try:
        return read_at_most(path, _LARGEST)
    except OSError as error:
        why = error.strerror or "unreadable"
        raise SignatureError(f"the {what} {path} cannot be read ({why})", remedy="name a file that is there") from error


def _envelope(path: Path) -> tuple[bytes, str, list[tuple[str, bytes]]]:
    """Return payload, payload type, and key id and value of each signature."""
    try:
        document = json.loads(_read(path, "signature"))
        payload, payload_type = base64.b64decode(document["payload"], validate=True), str(document["payloadType"])
        signatures = [
            (str(one.get("keyid", "")), base64.b64decode(one["sig"], validate=True)) for one in document["signatures"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise SignatureError(
            f"{path} is no DSSE envelope", remedy="give what `reprobox sign` wrote", detail=repr(error)
        ) from error
    return payload, payload_type, signatures


def _statement(path: Path, payload: bytes, payload_type: str) -> dict[str, Any]:
    try:
        statement = json.loads(payload) if payload_type == PAYLOAD_TYPE else None
    except (ValueError, RecursionError):
        statement = None
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise SignatureError(f"what {path} signs is no in-toto statement", remedy="give what `reprobox sign` wrote")
    return statement


def _is_about(statement: dict[str, Any], image_id: str) -> bool:
    subjects = statement.get("subject")
    digests = [one.get("digest") for one in subjects if isinstance(one, dict)] if isinstance(subjects, list) else []
    return any(isinstance(one, dict) and one.get("sha256") == _hex(image_id) for one in digests)


def _hex(image_id: str) -> str:
    return image_id.removeprefix("sha256:")
