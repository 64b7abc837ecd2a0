"""Signatures of images, made and checked as a user does, on a real engine; and each way in which one does not hold."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import uuid

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from support.cli import Cli
from support.engine import config_digest

from reprobox.images.contents import ImageContents
from reprobox.images.lockfile import write_lock
from reprobox.images.lockmodel import Inputs, Lock, LockedImage
from reprobox.images.pins import Pins
from reprobox.images.provenance import make_statement
from reprobox.images.signatures import FOLDER, sign

pytestmark = pytest.mark.engine

STATUS = b"Package: base-files\nStatus: install ok installed\nArchitecture: amd64\nVersion: 12.4\n"
MAKE = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}


class Keys:
    """Pairs of keys in a folder: NAME.pem and NAME.pub."""

    def __init__(self, folder):
        self.folder = folder

    def make(self, name, kind="ed25519", password=None):
        private = MAKE[kind]()
        hidden = (
            serialization.BestAvailableEncryption(password) if password is not None else serialization.NoEncryption()
        )
        pem = serialization.Encoding.PEM
        (self.folder / f"{name}.pem").write_bytes(private.private_bytes(pem, serialization.PrivateFormat.PKCS8, hidden))
        public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        (self.folder / f"{name}.pub").write_bytes(public)
        return self.folder / f"{name}.pem", self.folder / f"{name}.pub"


@contextlib.contextmanager
def tiny_image(client, **labels):
    """An image of one Debian package and no program, which says that it is reprobox's."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        entry = tarfile.TarInfo("var/lib/dpkg/status")
        entry.size = len(STATUS)
        archive.addfile(entry, io.BytesIO(STATUS))
    name = f"reprobox-test-signed:{uuid.uuid4().hex[:12]}"
    labels = {"reprobox.box-protocol": "2", "reprobox.variant": "cpu", "test": name, **labels}
    changes = [f"LABEL {key}={json.dumps(value)}" for key, value in labels.items()]
    client.api.import_image_from_data(out.getvalue(), *name.split(":"), changes=changes)
    try:
        yield name
    finally:
        client.images.remove(name, force=True)


@pytest.fixture(scope="module")
def tiny(docker_client):
    with tiny_image(docker_client) as name:
        yield name


@pytest.fixture
def cli(tmp_path, tiny):
    cli = Cli(tmp_path, "docker")
    cli.environment["XDG_DATA_HOME"] = str(tmp_path / "data")
    return cli


@pytest.fixture
def keys(tmp_path):
    return Keys(tmp_path)


@pytest.fixture
def signed(cli, keys, tiny):
    """A project with a key ``team`` and the tiny image's signature by it; the signature's file."""
    private, _ = keys.make("team")
    return cli.folder / cli.reprobox("sign", "--key", private, "--image", tiny).stdout.strip()


def refused(cli, image, *flags, key="team.pub"):
    """The one sentence that a run of ``image`` is refused with."""
    flags = ("--image", image, "--require-signed", key, *flags)
    done = cli.run("true", flags=flags, check=False)
    assert (done.returncode, done.stdout) == (125, "")
    assert cli.runs() == []
    return done.stderr.splitlines()[-1]


def edited(path, change):
    """Rewrite an envelope: ``change`` is given its statement and the envelope, and returns the statement."""
    envelope = json.loads(path.read_text())
    statement = change(json.loads(base64.b64decode(envelope["payload"])), envelope)
    envelope["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    path.write_text(json.dumps(envelope))


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_an_image_that_the_required_key_has_signed_runs(kind, docker, keys, docker_client, image):
    private, _ = keys.make("team", kind)
    image_id = config_digest(docker_client, image)
    contents = ImageContents(image_id=image_id, name=image, created="2025-01-01T00:00:00Z")
    path = sign(make_statement(contents, Pins()), private, image_id, docker.folder / FOLDER)
    flags = ("--image", image, "--seed", "1", "--require-signed", "team.pub")
    done = docker.run("echo", "hello", flags=flags)
    assert done.stdout == "hello\n"
    assert f"is signed: {path}" in done.stderr


def test_an_unsigned_image_is_refused_before_anything_runs(cli, keys, tiny):
    keys.make("team")
    assert "has no signature here, and one by team.pub is required" in refused(cli, tiny)


def test_a_signature_by_another_key_is_refused(cli, keys, tiny, signed):
    keys.make("stranger")
    assert "was not signed by the key that is required" in refused(cli, tiny, key="stranger.pub")


def test_an_altered_statement_is_refused(cli, tiny, signed):
    def change(statement, _):
        statement["predicate"]["buildDefinition"]["externalParameters"]["variant"] = "cuda"
        return statement

    edited(signed, change)
    assert "was altered after it was signed" in refused(cli, tiny)


def test_a_signature_of_another_image_is_refused_whatever_its_file_is_called(cli, tiny, signed, docker_client):
    with tiny_image(docker_client) as other:
        shutil.copy(signed, signed.with_name(f"{config_digest(docker_client, other)[7:]}-copied.intoto.json"))
        assert "holds, and is for another image" in refused(cli, other)
        assert "holds, and is for another image" in refused(cli, other, "--signature", signed)


def test_a_subject_that_was_added_to_the_statement_signs_no_further_image(cli, signed, docker_client):
    with tiny_image(docker_client) as other:
        digest = {"sha256": config_digest(docker_client, other)[7:]}
        edited(signed, lambda statement, _: {**statement, "subject": [*statement["subject"], {"digest": digest}]})
        assert "was altered" in refused(cli, other, "--signature", signed)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("not JSON", "is no DSSE envelope"),
        ("[1]", "is no DSSE envelope"),
        ('{"payload": "e30=", "payloadType": "x", "signatures": {"sig": 1}}', "is no DSSE envelope"),
        ('{"payload": "e30=", "payloadType": "x", "signatures": []}', "was not signed by the key"),
    ],
)
def test_what_is_no_signature_is_refused(text, sentence, cli, tiny, signed):
    signed.write_text(text)
    assert sentence in refused(cli, tiny)


def test_a_payload_that_is_no_statement_is_refused_though_it_is_signed(cli, keys, tiny, docker_client):
    private, _ = keys.make("team")
    sign({"_type": "a letter"}, private, config_digest(docker_client, tiny), cli.folder / FOLDER)
    assert "is no in-toto statement" in refused(cli, tiny)


def test_a_signature_whose_key_id_is_left_empty_as_cosign_does_holds(cli, tiny, signed):
    envelope = json.loads(signed.read_text())
    envelope["signatures"][0]["keyid"] = ""
    signed.write_text(json.dumps(envelope))
    assert cli.reprobox("sign", "--check", "team.pub", "--image", tiny).returncode == 0


def test_the_signature_of_one_of_two_keys_is_enough(cli, keys, tiny, signed):
    second, _ = keys.make("second", "p256")
    cli.reprobox("sign", "--key", second, "--image", tiny)
    assert len(list(signed.parent.iterdir())) == 2
    for key in ("team.pub", "second.pub"):
        assert cli.reprobox("sign", "--check", key, "--image", tiny).returncode == 0


def test_check_exits_0_for_a_signature_that_holds_and_1_for_one_that_does_not(cli, keys, tiny, signed):
    keys.make("stranger")
    held = cli.reprobox("sign", "--check", "team.pub", "--image", tiny)
    assert f"{tiny} is signed" in held.stderr
    assert cli.reprobox("sign", "--check", "stranger.pub", "--image", tiny, check=False).returncode == 1
    signed.unlink()
    assert cli.reprobox("sign", "--check", "team.pub", "--image", tiny, check=False).returncode == 1


def test_a_signature_among_the_users_own_holds_in_every_project(cli, tiny, signed, tmp_path):
    home = tmp_path / "data" / "reprobox" / "signatures"
    home.mkdir(parents=True)
    signed.rename(home / signed.name)
    assert cli.reprobox("sign", "--check", "team.pub", "--image", tiny).returncode == 0


def test_the_project_file_can_require_a_signature_and_a_flag_can_lift_that(cli, keys, tiny, tmp_path):
    keys.make("team")
    cli.write("reprobox.toml", 'require-signed = "team.pub"\n')
    (tmp_path / "inside").mkdir()
    flags = ("--image", tiny, "--seed", "1")
    done = cli.run("true", flags=flags, check=False, cwd=tmp_path / "inside")
    assert "has no signature here" in done.stderr
    dry = ("--dry-run", "--require-signed", "off")
    assert cli.run("true", flags=(*flags, *dry)).returncode == 0


def test_an_environment_variable_can_require_a_signature_of_the_self_test_too(cli, keys, tiny):
    keys.make("team")
    required = {"REPROBOX_REQUIRE_SIGNED": "team.pub"}
    done = cli.reprobox("selftest", "--image", tiny, check=False, environment=required)
    assert done.returncode == 125
    assert "has no signature here" in done.stderr


def test_the_local_engine_runs_no_image_that_could_be_signed(cli, keys):
    keys.make("team")
    cli.engine = "local"
    done = cli.run("true", flags=("--seed", "1", "--require-signed", "team.pub"), check=False)
    assert done.returncode == 125
    assert "the local engine runs none" in done.stderr


def test_a_signature_file_without_a_required_key_is_wrong_usage(cli, tiny):
    done = cli.run("true", flags=("--image", tiny, "--signature", "x", "--seed", "1"), check=False)
    assert done.returncode == 2
    assert "--require-signed" in done.stderr


@pytest.mark.parametrize(
    ("key", "sentence"),
    [("absent.pub", "cannot be read"), ("reprobox.toml", "is no public key"), ("rsa.pub", "is for rsassa")],
)
def test_a_key_that_cannot_be_used_is_refused(key, sentence, cli, keys, tiny):
    keys.make("rsa", "rsa")
    assert sentence in refused(cli, tiny, key=key)


def test_an_encrypted_private_key_is_asked_for_at_a_terminal_alone(cli, keys, tiny):
    private, _ = keys.make("team", password=b"secret")
    done = cli.reprobox("sign", "--key", private, "--image", tiny, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 125
    assert "is encrypted; sign at a terminal" in done.stderr


def pae(envelope):
    """What DSSE signs, by its specification: https://github.com/secure-systems-lab/dsse/blob/master/protocol.md"""
    kind, body = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(body), body)


def test_openssl_finds_the_signature_good_and_that_of_an_altered_statement_bad(cli, keys, tiny, tmp_path):
    private, public = keys.make("team", "p256")
    path = cli.folder / cli.reprobox("sign", "--key", private, "--image", tiny).stdout.strip()
    envelope = json.loads(path.read_text())
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope["signatures"][0]["sig"]))
    for content, code in ((pae(envelope), 0), (pae(envelope).replace(b"cpu", b"gpu"), 1)):
        (tmp_path / "pae").write_bytes(content)
        command = ["openssl", "dgst", "-sha256", "-verify", public, "-signature", tmp_path / "sig", tmp_path / "pae"]
        assert subprocess.run(command, capture_output=True).returncode == code


def test_looking_into_an_image_starts_nothing_and_leaves_nothing(cli, tiny, docker_client):
    done = cli.reprobox("sbom", "--image", tiny)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(done.stdout) is None
    assert [one["name"] for one in json.loads(done.stdout)["components"]] == ["base-files"]
    assert docker_client.containers.list(all=True, filters={"ancestor": tiny}, ignore_removed=True) == []


def test_build_writes_the_bill_of_materials_and_the_provenance_of_what_it_built(docker, image):
    built = docker.reprobox("build", "--sbom", "sbom.json", "--provenance", "provenance.json").stdout.strip()
    sbom = (docker.folder / "sbom.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(sbom) is None
    names = {one["name"]: one for one in json.loads(sbom)["components"]}
    assert {"torch", "numpy", "libc6"} <= names.keys()
    assert names["torch"]["hashes"][0]["alg"] == "SHA-256"
    assert json.loads(sbom)["metadata"]["component"]["version"] == built
    statement = json.loads((docker.folder / "provenance.json").read_text())
    assert built == f"sha256:{statement['subject'][0]['digest']['sha256']}"
    uris = {one.get("uri", "") for one in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert any(uri.startswith("pkg:pypi/torch@") for uri in uris)


def test_an_image_that_is_not_there_has_no_bill_of_materials(cli):
    done = cli.reprobox("sbom", "--image", "reprobox-test:absent", check=False)
    assert done.returncode == 125
    assert re.search("the engine has no image reprobox-test:absent; build, pull or load it first", done.stderr)


def test_no_other_command_pays_for_the_libraries_of_these():
    program = """
import sys, importlib
for name in ("cyclonedx", "securesystemslib", "cryptography", "packageurl"):
    sys.modules[name] = None
from reprobox.cli.app import COMMANDS
for command in COMMANDS:
    importlib.import_module(f"reprobox.cli.{command}")
import cyclonedx
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: import of cyclonedx halted")
    assert 'File "<string>", line 8' in done.stderr


def test_in_a_project_with_a_lock_it_is_the_locks_image_that_is_signed(cli, keys, tiny, docker_client):
    private, _ = keys.make("team")
    image_id = config_digest(docker_client, tiny)
    lock = Lock(inputs=Inputs(variants=("cpu",)), images={"cpu": LockedImage(config_digest=image_id)})
    write_lock(cli.folder / "reprobox.lock", lock)
    path = cli.reprobox("sign", "--key", private).stdout.strip()
    assert image_id[7:] in path
    assert cli.reprobox("sign", "--check", "team.pub").returncode == 0
    absent = LockedImage(config_digest=f"sha256:{'0' * 64}")
    write_lock(cli.folder / "reprobox.lock", Lock(inputs=lock.inputs, images={"cpu": absent}))
    assert cli.reprobox("sign", "--check", "team.pub", check=False).returncode == 125
