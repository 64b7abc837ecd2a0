"""The bill of materials of an image: CycloneDX 1.6 JSON, the same bytes for the same image.

Source: https://cyclonedx.org/docs/1.6/json/ and https://github.com/package-url/purl-spec
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, Final

from packaging.markers import UndefinedEnvironmentName, default_environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from reprobox import __version__
from reprobox.errors import BuildError
from reprobox.images.contents import when

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from collections.abc import Set as AbstractSet

    from cyclonedx.model.component import Component
    from packaging.utils import NormalizedName

    from reprobox.images.contents import Deb, Distribution, ImageContents
    from reprobox.images.pins import PinnedFile, Pins

__all__ = ["SERIAL_NAMESPACE", "dependencies", "make_sbom"]

SERIAL_NAMESPACE: Final = uuid.UUID("13df1024-9b80-54c2-812a-5d57f97cca97")
"""Serial numbers are the version 5 UUIDs of image ids in this namespace."""

_MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


def make_sbom(contents: ImageContents, pins: Pins) -> str:
    """Return the bill of materials of an image as JSON text, ending with a newline.

    The serial number is derived from the image id, the timestamp is the image's own date, and what differs from machine
    to machine (the image's other names, the registries that have it) is left out.

    :param pins: the package files it was made of, which give the components their hashes.
    :raises BuildError: cyclonedx-python-lib is not installed.
    """
    try:
        from cyclonedx.model.bom import Bom
        from cyclonedx.output.json import JsonV1Dot6
    except ImportError as error:
        raise BuildError(
            "a bill of materials needs cyclonedx-python-lib, which is not installed",
            remedy="install it with `pip install 'reprobox[sbom]'`",
        ) from error

    main = _image_component(contents)
    bom = Bom(serial_number=uuid.uuid5(SERIAL_NAMESPACE, contents.image_id))
    bom.metadata.timestamp = when(contents.created)
    bom.metadata.component = main
    bom.metadata.tools.components.add(_tool())
    made = _components(contents, _by_version(pins.wheels), _by_version(pins.debs))
    for component in made.values():
        bom.components.add(component)
    bom.register_dependency(main, made.values())
    for ref, needed in dependencies(contents).items():
        bom.register_dependency(made[ref], [made[one] for one in needed])
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def dependencies(contents: ImageContents) -> dict[str, tuple[str, ...]]:
    """Return, for the ``bom-ref`` of each package, those of the packages in the image that it depends on.

    A dependency's first alternative that is there counts; what is not in the image is left out, and so are extras.
    """
    edges = {}
    installed = {deb.name: deb for deb in contents.debs}
    provided = {name: deb for deb in reversed(contents.debs) for name in deb.provides}
    for deb in contents.debs:
        there = (
            next((found for name in one if (found := installed.get(name) or provided.get(name))), None)
            for one in deb.depends
        )
        edges[_deb_ref(deb, contents)] = _refs(_deb_ref(one, contents) for one in there if one not in (None, deb))
    by_name = {canonicalize_name(one.name): one for one in contents.distributions}
    for distribution in contents.distributions:
        needed = (by_name.get(name) for name in _required(distribution, contents))
        edges[_wheel_ref(distribution)] = _refs(_wheel_ref(one) for one in needed if one not in (None, distribution))
    return edges


def _components(
    contents: ImageContents, wheels: Mapping[tuple[str, str], str], debs: Mapping[tuple[str, str], str]
) -> dict[str, Component]:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    def component(
        ref: str, sha256: str | None, properties: Mapping[str, str], licences: Any, **named: Any
    ) -> Component:
        return Component(
            bom_ref=ref,
            type=ComponentType.LIBRARY,
            purl=PackageURL.from_string(ref),
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)] if sha256 else (),
            properties=[Property(name=name, value=value) for name, value in properties.items() if value],
            licenses=_licences(licences),
            **named,
        )

    made = {}
    for deb in contents.debs:
        ref = _deb_ref(deb, contents)
        properties = {"reprobox:deb:source": deb.source}
        sha256 = debs.get((deb.name, deb.version))
        made[ref] = component(ref, sha256, properties, deb.licences, name=deb.name, version=deb.version)
    for one in contents.distributions:
        ref = _wheel_ref(one)
        properties = {"reprobox:python:folder": f"/{one.folder}", "reprobox:python:record-sha256": one.record}
        sha256 = wheels.get((canonicalize_name(one.name), one.version))
        made[ref] = component(ref, sha256, properties, one.licences, name=one.name, version=one.version)
    return made


def _image_component(contents: ImageContents) -> Component:
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType

    digest = contents.image_id.removeprefix("sha256:")
    labels = {name: value for name, value in contents.labels.items() if name.startswith("reprobox.") and value}
    return Component(
        bom_ref=contents.image_id,
        type=ComponentType.CONTAINER,
        name=contents.labels.get("org.opencontainers.image.title") or "image",
        version=contents.image_id,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
        properties=[Property(name=name, value=value) for name, value in labels.items()],
    )


def _tool() -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(type=ComponentType.APPLICATION, name="reprobox", version=__version__)


def _licences(names: Iterable[str]) -> list[Any]:
    """Return licences as CycloneDX has them: one SPDX expression alone, or ids and names."""
    from cyclonedx.contrib.license.factories import LicenseFactory
    from cyclonedx.spdx import fixup_id

    factory, names = LicenseFactory(), tuple(names)
    if len(names) == 1:
        return [factory.make_from_string(names[0])]
    return [
        factory.make_with_id(known) if (known := fixup_id(name)) else factory.make_with_name(name) for name in names
    ]


def _required(distribution: Distribution, contents: ImageContents) -> Iterator[NormalizedName]:
    """Give the names that a distribution requires in the image, extras apart."""
    environment: dict[str, str | AbstractSet[str]] = {
        **{name: str(value) for name, value in default_environment().items()},
        "sys_platform": "linux",
        "os_name": "posix",
        "platform_system": "Linux",
        "platform_machine": _MACHINES.get(contents.architecture, contents.architecture),
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "extra": "",
    }
    if distribution.python:
        environment |= {"python_version": distribution.python, "python_full_version": f"{distribution.python}.0"}
    for line in distribution.requires:
        try:
            requirement = Requirement(line)
            applies = requirement.marker is None or requirement.marker.evaluate(environment)
        except (InvalidRequirement, UndefinedEnvironmentName):
            continue
        if applies:
            yield canonicalize_name(requirement.name)


def _deb_ref(deb: Deb, contents: ImageContents) -> str:
    from packageurl import PackageURL

    vendor = contents.distro.partition("-")[0]
    qualifiers = {"arch": deb.architecture, "distro": contents.distro}
    return PackageURL("deb", vendor, deb.name, deb.version, qualifiers).to_string()


def _wheel_ref(distribution: Distribution) -> str:
    from packageurl import PackageURL

    name = canonicalize_name(distribution.name)
    return PackageURL("pypi", None, name, distribution.version, None, None).to_string()


def _by_version(files: Iterable[PinnedFile]) -> dict[tuple[str, str], str]:
    return {(one.name, one.version): one.sha256 for one in files}


def _refs(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(found)))
