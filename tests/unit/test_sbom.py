"""What an image holds, and the documents made of it, from small file systems and locks."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import sys
import tarfile
import uuid

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementMessage

from reprobox.errors import BuildError, EngineError
from reprobox.images.contents import ImageContents, contents_of, when
from reprobox.images.lockmodel import Inputs, Lock, LockedDeb, LockedImage, LockedWheel
from reprobox.images.pins import Pins, pins_of
from reprobox.images.provenance import CONFIG_TYPE, MANIFEST_TYPE, make_statement, statement_text
from reprobox.images.sbom import SERIAL_NAMESPACE, dependencies, make_sbom
from reprobox.images.sources import ImageInput

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u10
Provides: libc-virtual (= 1), libc6-2.36

Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.15-2+b7
Pre-Depends: libc6 (>= 2.36)
Depends: nothing-like-it | libc-virtual, absent, bash:any

Package: removed
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""
COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
License: GPL-3+

Files: lib/*
License: Expat
 Permission is hereby granted
"""
SITE = "opt/venv/lib/python3.11/site-packages"
BOX = "Name: box\nVersion: 2.0+cpu\nLicense-Expression: MIT OR Apache-2.0\nRequires-Dist: Part_Of >=1\n"
BOX += "Requires-Dist: part-of; extra == 'more'\nRequires-Dist: other; python_version < '3.9'\n"
PART = "Name: Part.Of\nVersion: 1.5\nClassifier: License :: OSI Approved :: BSD License\n"
OTHER = "Name: other\nVersion: 3\nLicense: a licence of our own\n"
FILES = {
    "var/lib/dpkg/status": STATUS,
    "usr/lib/os-release": 'NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="12"\n',
    "usr/share/doc/bash/copyright": COPYRIGHT,
    "usr/share/doc/libc6/copyright": "Copied by hand, in no format.\n",
    f"{SITE}/box-2.0+cpu.dist-info/METADATA": BOX,
    f"{SITE}/box-2.0+cpu.dist-info/RECORD": "box.py,sha256=abc,3\n",
    f"{SITE}/part_of-1.5.dist-info/METADATA": PART,
    f"{SITE}/box/_vendor/inner-1.dist-info/METADATA": "Name: inner\nVersion: 1\n",
    "usr/lib/python3/dist-packages/six-1.dist-info/METADATA": "Name: six\nVersion: 1\n",
    "opt/project/other-3.dist-info/METADATA": OTHER,
}
DIGEST = "1" * 64
IMAGE_ID = f"sha256:{DIGEST}"


def archived(files=FILES):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    data = out.getvalue()
    return [data[at : at + 700] for at in range(0, len(data), 700)]


def image(files=FILES, *, image_id=IMAGE_ID, labels=None, **more):
    labels = {"reprobox.variant": "cpu", "reprobox.version": "0.1.0", **(labels or {})}
    found = contents_of(archived(files))
    return ImageContents(
        image_id=image_id, name="reprobox:1", created="2025-01-01T00:00:00Z", labels=labels, **found, **more
    )


def components(text):
    return {one["name"]: one for one in json.loads(text)["components"]}


def locked(**images):
    deb = LockedDeb(
        name="bash", version="5.2.15-2+b7", architecture="amd64", file="f", sha256="d" * 64, platforms=("x86_64",)
    )
    wheel = LockedWheel(
        name="box", version="2.0+cpu", file="f", sha256="e" * 64, variants=("cpu",), platforms=("x86_64",)
    )
    return Lock(inputs=Inputs(), debs=(deb,), wheels=(wheel,), images=images)


BUILT_OF_LOCK = {"reprobox.project-lock": locked().digest("cpu", "x86_64")}


def schema_errors(text):
    return JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)


def test_installed_debian_packages_are_found_and_removed_ones_are_not():
    debs = {deb.name: deb for deb in image().debs}
    assert debs.keys() == {"bash", "libc6"}
    assert debs["libc6"].source == "glibc"
    assert debs["bash"].depends == (("libc6",), ("nothing-like-it", "libc-virtual"), ("absent",), ("bash",))


def test_licences_are_taken_from_machine_readable_copyright_files_alone():
    debs = {deb.name: deb.licences for deb in image().debs}
    assert debs == {"bash": ("Expat", "GPL-3+"), "libc6": ()}


def test_python_distributions_are_found_apart_from_vendored_ones_and_those_of_debian():
    found = {one.name: one for one in image().distributions}
    assert found.keys() == {"box", "Part.Of", "other"}
    assert found["box"].record == hashlib.sha256(FILES[f"{SITE}/box-2.0+cpu.dist-info/RECORD"].encode()).hexdigest()
    assert found["box"].python == "3.11"
    assert found["other"].licences == ("a licence of our own",)
    assert found["Part.Of"].licences == ("BSD License",)


@pytest.mark.parametrize("size", [700, 2100, 512 * 3, 512 * 9])
def test_a_torn_archive_is_an_error_and_no_smaller_image(size):
    whole = b"".join(archived())
    assert size < len(whole.rstrip(b"\0"))
    with pytest.raises(EngineError, match="cannot be read"):
        contents_of([whole[:size]])


def test_an_edge_leads_to_the_first_alternative_there_is_and_never_to_an_extra():
    edges = {ref.partition("?")[0]: [one.partition("?")[0] for one in to] for ref, to in dependencies(image()).items()}
    assert edges["pkg:deb/debian/bash@5.2.15-2%2Bb7"] == ["pkg:deb/debian/libc6@2.36-9%2Bdeb12u10"]
    assert edges["pkg:pypi/box@2.0%2Bcpu"] == ["pkg:pypi/part-of@1.5"]


def test_without_its_provider_a_virtual_package_has_no_edge():
    files = {**FILES, "var/lib/dpkg/status": STATUS.replace("Provides: libc-virtual (= 1), libc6-2.36\n", "")}
    files["var/lib/dpkg/status"] = files["var/lib/dpkg/status"].replace("Pre-Depends: libc6 (>= 2.36)\n", "")
    assert all(to == () for ref, to in dependencies(image(files)).items() if ref.startswith("pkg:deb"))


def test_the_bill_of_materials_is_valid_cyclonedx_1_6():
    text = make_sbom(image(labels=BUILT_OF_LOCK), pins_of(image(labels=BUILT_OF_LOCK), locked()))
    assert schema_errors(text) is None
    assert json.loads(text)["specVersion"] == "1.6"


def test_the_schema_refuses_a_bill_of_materials_with_a_field_that_is_none():
    document = json.loads(make_sbom(image(), Pins()))
    document["components"][0]["purls"] = "?"
    assert schema_errors(json.dumps(document)) is not None


def test_every_component_has_a_purl_a_version_and_what_is_known_of_it():
    found = components(make_sbom(image(labels=BUILT_OF_LOCK), pins_of(image(labels=BUILT_OF_LOCK), locked())))
    assert found["bash"]["purl"] == "pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64&distro=debian-12"
    assert found["bash"]["hashes"] == [{"alg": "SHA-256", "content": "d" * 64}]
    assert found["box"]["hashes"] == [{"alg": "SHA-256", "content": "e" * 64}]
    assert found["box"]["licenses"] == [{"expression": "MIT OR Apache-2.0"}]
    assert "hashes" not in found["libc6"]


def test_the_same_image_gives_the_same_bytes_and_another_image_another_serial_number():
    text, again = make_sbom(image(), Pins()), make_sbom(image(), Pins())
    other = make_sbom(image(image_id=f"sha256:{'2' * 64}"), Pins())
    assert text == again
    assert json.loads(text)["serialNumber"] == f"urn:uuid:{uuid.uuid5(SERIAL_NAMESPACE, IMAGE_ID)}"
    assert json.loads(other)["serialNumber"] != json.loads(text)["serialNumber"]
    assert json.loads(text)["metadata"]["timestamp"].startswith("2025-01-01T00:00:00")


def test_a_machine_that_has_pushed_the_image_writes_the_same_bytes():
    pushed = dataclasses.replace(image(), name="registry/box", repo_digests=(f"registry/box@sha256:{'3' * 64}",))
    assert make_sbom(pushed, Pins()) == make_sbom(image(), Pins())


def test_without_cyclonedx_the_sentence_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "cyclonedx"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cyclonedx", None)
    with pytest.raises(BuildError, match=re.escape("pip install 'reprobox[sbom]'")):
        make_sbom(image(), Pins())


def test_a_project_lock_gives_hashes_only_to_the_image_it_is_of():
    of_it = pins_of(image(labels=BUILT_OF_LOCK), locked())
    by_digest = pins_of(image(), locked(cpu=LockedImage(config_digest=IMAGE_ID)))
    assert [one.sha256 for one in (*of_it.wheels, *of_it.debs)] == ["e" * 64, "d" * 64]
    assert by_digest == of_it
    assert pins_of(image(), locked(cpu=LockedImage(config_digest=f"sha256:{'9' * 64}"))) == Pins()
    assert pins_of(image(labels={"reprobox.project-lock": "0" * 64}), locked()) == Pins()


def test_reproboxs_own_list_gives_hashes_only_to_an_image_that_carries_its_digest():
    text = ImageInput.read("cpu").lock
    labels = {"reprobox.lock": f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"}
    pins = pins_of(image(labels=labels), None)
    assert {one.name for one in pins.wheels} >= {"torch", "numpy"}
    assert all(one.sha256 in text for one in pins.wheels)
    assert pins_of(image(labels={"reprobox.lock": f"sha256:{'0' * 64}"}), None) == Pins()


def parsed(statement):
    """The statement as in-toto's own bindings read it; they refuse a field they do not know."""
    read = json_format.ParseDict(statement, StatementMessage())
    Statement.copy_from_pb(read).validate()
    provenance = json_format.ParseDict(statement["predicate"], Provenance())
    return read, provenance


def test_the_provenance_is_an_in_toto_statement_with_an_slsa_predicate():
    contents = image(labels={**BUILT_OF_LOCK, "reprobox.base": f"bootstrap@sha256:{'b' * 64}"})
    read, provenance = parsed(make_statement(contents, pins_of(contents, locked())))
    assert read.predicate_type == "https://slsa.dev/provenance/v1"
    definition = provenance.build_definition
    assert dict(definition.external_parameters)["variant"] == "cpu"
    digests = {one.uri or one.name: dict(one.digest) for one in definition.resolved_dependencies}
    assert digests == {
        "base": {"sha256": "b" * 64},
        "pkg:deb/debian/bash@5.2.15-2%2Bb7": {"sha256": "d" * 64},
        "pkg:pypi/box@2.0%2Bcpu": {"sha256": "e" * 64},
    }


def test_in_totos_bindings_refuse_a_statement_with_a_field_that_is_none():
    statement = make_statement(image(), Pins())
    statement["predicate"]["buildDefinition"]["parameters"] = {}
    with pytest.raises(json_format.ParseError):
        parsed(statement)


def test_the_statement_is_about_the_config_and_about_what_registries_call_it():
    pushed = dataclasses.replace(image(), repo_digests=(f"127.0.0.1:5000/team/box@sha256:{'3' * 64}",))
    subjects = {one["mediaType"]: one for one in make_statement(pushed, Pins())["subject"]}
    assert subjects[CONFIG_TYPE]["digest"] == {"sha256": DIGEST}
    assert subjects[MANIFEST_TYPE]["name"] == "127.0.0.1:5000/team/box"
    assert subjects[MANIFEST_TYPE]["digest"] == {"sha256": "3" * 64}
    assert MANIFEST_TYPE not in {one["mediaType"] for one in make_statement(image(), Pins())["subject"]}


def test_the_same_image_gives_the_same_statement_whoever_builds_it_when():
    contents = image()
    statement = make_statement(contents, Pins())
    assert statement_text(statement) == statement_text(make_statement(contents, Pins()))
    assert statement["predicate"]["runDetails"]["metadata"]["startedOn"] == "2025-01-01T00:00:00Z"
    named = make_statement(contents, Pins(), builder="https://example.org/builder")
    assert named["predicate"]["runDetails"]["builder"]["id"] == "https://example.org/builder"


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [("2025-01-01T00:00:00Z", 0), ("2025-01-01T00:00:00.5Z", 500000), ("2025-01-01T00:00:00.555104521Z", 555104)],
)
def test_dates_of_engines_are_read_to_the_microsecond(text, microseconds):
    assert when(text).microsecond == microseconds
    assert when(text).utcoffset().total_seconds() == 0
