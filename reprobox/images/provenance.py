"""What an image was made of, as an in-toto statement with SLSA provenance.

Sources: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance

Written as plain data. The bindings that in-toto publishes (in-toto-attestation) bring protobuf for five fields and had
their last release in 2023; the tests parse every statement with them, where they refuse a field that the formats do not
have.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from reprobox.images.contents import when

if TYPE_CHECKING:
    from reprobox.images.contents import ImageContents
    from reprobox.images.pins import PinnedFile, Pins

__all__ = [
    "BUILD_TYPE",
    "CONFIG_TYPE",
    "LOCAL_BUILDER",
    "MANIFEST_TYPE",
    "PREDICATE_TYPE",
    "STATEMENT_TYPE",
    "make_statement",
    "statement_text",
]

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE: Final = "https://slsa.dev/provenance/v1"
BUILD_TYPE: Final = "urn:reprobox:build-type:image:1"
LOCAL_BUILDER: Final = "urn:reprobox:builder:local"
"""Who built it where nobody says otherwise: ``reprobox build`` on somebody's machine."""

CONFIG_TYPE: Final = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"


def make_statement(contents: ImageContents, pins: Pins, *, builder: str = LOCAL_BUILDER) -> dict[str, Any]:
    """Return the statement: the same for the same image, whenever it is made.

    Its subjects are the image's config and, where a registry has it, its manifests. Both of SLSA's times are the image's
    own date, since the time that a build took is no property of an image that is built again to the same bits.

    :param pins: the package files it was made of.
    :param builder: a URI that says who ran the build.
    """
    labels = contents.labels
    created = when(contents.created).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "_type": STATEMENT_TYPE,
        "subject": _subjects(contents),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "variant": labels.get("reprobox.variant", ""),
                    "lock": labels.get("reprobox.lock", ""),
                },
                "internalParameters": {
                    "input": labels.get("reprobox.input", ""),
                    "architecture": contents.architecture,
                },
                "resolvedDependencies": [*_base(contents), *_packages(contents, pins)],
            },
            "runDetails": {
                "builder": {"id": builder, "version": {"reprobox": labels.get("reprobox.version", "")}},
                "metadata": {"startedOn": created, "finishedOn": created},
            },
        },
    }


def statement_text(statement: dict[str, Any]) -> str:
    """Return a statement as the text that is written and signed."""
    return json.dumps(statement, indent=2, sort_keys=True) + "\n"


def _subjects(contents: ImageContents) -> list[dict[str, Any]]:
    subjects = [{"name": contents.name, "digest": _digest(contents.image_id), "mediaType": CONFIG_TYPE}]
    for one in contents.repo_digests:
        name, _, digest = one.partition("@")
        subjects.append({"name": name, "digest": _digest(digest), "mediaType": MANIFEST_TYPE})
    return subjects


def _base(contents: ImageContents) -> list[dict[str, Any]]:
    recorded = contents.labels.get("reprobox.base", "").rpartition("@")[2]
    if not recorded:
        return []
    name = contents.labels.get("org.opencontainers.image.base.name") or "base"
    return [{"name": name, "digest": _digest(recorded)}]


def _packages(contents: ImageContents, pins: Pins) -> list[dict[str, Any]]:
    made = [_package(f"deb/{contents.distro.partition('-')[0]}", one) for one in pins.debs]
    made += [_package("pypi", one) for one in pins.wheels]
    return sorted(made, key=lambda one: (one["uri"], one["digest"]["sha256"]))


def _package(kind: str, one: PinnedFile) -> dict[str, Any]:
    # A package URL: https://github.com/package-url/purl-spec/blob/main/PURL-SPECIFICATION.rst
    uri = f"pkg:{kind}/{quote(one.name, safe='')}@{quote(one.version, safe=':~')}"
    return {"name": f"{one.name} {one.version}", "uri": uri, "digest": {"sha256": one.sha256}}


def _digest(text: str) -> dict[str, str]:
    algorithm, _, value = text.partition(":")
    return {algorithm: value}
