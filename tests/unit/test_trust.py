"""What a project asks for beyond its folder, and that it holds only once a person has allowed that very list."""

from __future__ import annotations

import json
import pwd

import pytest

from reprobox import trust
from reprobox.errors import UsageError
from reprobox.images.lockfile import write_lock
from reprobox.images.lockmodel import Inputs, Lock
from reprobox.project_file import PROJECT_KEYS
from reprobox.settings import Settings, setting_keys
from reprobox.trust import Request, Trusted, digest_of, remember_typed, requests_of, require_trust
from reprobox.trust_folder import trust_folder


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    return folder


def asked(root, text, **files):
    (root / "reprobox.toml").write_text(text)
    for name, content in files.items():
        (root / f"{name}.txt").write_text(content)
    return list(map(str, requests_of(root)))


def refusal(root, *followed, environment=None):
    try:
        require_trust(followed or requests_of(root), root, environment or {})
    except UsageError as error:
        return str(error)
    return None


def allow(root):
    trusted, listed = Trusted.read(root), requests_of(root)
    trusted.lists[digest_of(listed)] = list(listed)
    trusted.keep()


ASKS = {
    'engine = "local"': ["engine = local"],
    'image = "host.example/a/b:1"': ["image = host.example/a/b:1"],
    'network = "host"': ["network = host"],
    'network = "databases"': ["network = databases"],
    'shm-size = "8g"': ["shm-size = 8589934592"],
    'mounts = ["/etc:/x"]': ["mounts = /etc:/x"],
    'mounts = ["/no/such/folder:/x:ro"]': ["mounts = /no/such/folder:/x:ro"],
    'mounts = ["../:/x"]': ["mounts = ../:/x"],
    'mounts = ["./data/../..:/x"]': ["mounts = ./data/../..:/x"],
    'mounts = ["~:/x"]': ["mounts = ~:/x"],
    'mounts = ["volume:/x"]': ["mounts = volume:/x"],
    'allow-sdist = ["Some_Package"]': ["allow-sdist = some-package"],
}


@pytest.mark.parametrize("text", ASKS)
def test_what_reaches_out_of_the_project_is_asked_for(root, text):
    assert asked(root, text) == ASKS[text]


HARMLESS = {
    "seed": "7",
    "profile": '"warn"',
    "rank-seeds": '"same"',
    "threads": "2",
    "fill": "false",
    "portable": "true",
    "force-seed": "true",
    "require-signed": '"team.pub"',
    "gpus": '"all"',
    "selftest": '"off"',
    "quiet": "true",
    "variant": '"cpu"',
    "apt": '["git"]',
    "environment": '{ A = "1" }',
    "outputs": '["weights.pt"]',
    "engine": '"podman"',
    "network": '"none"',
    "mounts": '["./data:/data", "./absent:/a"]',
    "python": '["einops"]',
}


@pytest.mark.parametrize("key", HARMLESS)
def test_what_stays_in_the_project_is_not_asked_for(root, key):
    assert asked(root, f"{key} = {HARMLESS[key]}") == []


def test_every_key_of_the_project_file_is_asked_about_or_harmless_for_a_reason():
    every = {*setting_keys(), *(key.name for key in PROJECT_KEYS)}
    assert every == trust.KEYS | trust.HARMLESS.keys()
    assert not trust.KEYS & trust.HARMLESS.keys()
    assert every == {text.partition(" =")[0] for text in ASKS} | HARMLESS.keys()
    assert all(trust.HARMLESS.values())


def test_an_absolute_mount_inside_the_project_is_not_asked_for(root):
    assert asked(root, f'mounts = ["{root}/data:/data"]') == []


def test_a_link_that_leads_out_of_the_project_is_asked_for_with_where_it_leads(root, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    (root / "link").symlink_to(tmp_path / "one")
    text = f'mounts = ["./link:/a", "{root}/link:/b"]'
    first = asked(root, text)
    assert first == [f"mounts = {way}/link:/{end} (leads to {tmp_path}/one)" for way, end in ((".", "a"), (root, "b"))]
    (root / "link").unlink()
    (root / "link").symlink_to(tmp_path / "other")
    assert asked(root, text) != first
    (root / "link").unlink()
    (root / "link").symlink_to("data")
    assert asked(root, text) == []


def test_indexes_of_requirements_files_are_asked_for_in_one_spelling(root):
    files = {
        "a": "-i https://i.example\n--no-index\n-r b.txt\neinops\n",
        "b": "--extra-index-url=https://u:p@j.example\n",
    }
    assert asked(root, 'python = "a.txt"', **files) == [
        "index = --extra-index-url https://(redacted)@j.example",
        "index = --index-url https://i.example",
    ]
    before = digest_of(requests_of(root))
    asked(root, 'python = "a.txt"', a="-r b.txt\n--index-url   https://i.example\neinops\nnumpy\n")
    assert digest_of(requests_of(root)) == before


def test_source_packages_that_the_lock_names_are_asked_for(root):
    write_lock(root / "reprobox.lock", Lock(inputs=Inputs(variants=("cpu",), sdists=("antlr4",))))
    assert asked(root, "") == ["allow-sdist = antlr4"]


def test_a_request_is_one_line_whatever_is_in_it():
    assert str(Request(key="image", value="a\nreprobox: allowed\x1b[2J")) == r"image = a\nreprobox: allowed\x1b[2J"


# --- the list, allowed ----------------------------------------------------------------------------------------------


def test_only_the_list_that_was_allowed_holds(root):
    asked(root, 'engine = "local"\nimage = "a:1"\n')
    assert "engine = local, image = a:1" in refusal(root)
    allow(root)
    assert refusal(root) is None
    asked(root, 'engine = "local"\nimage = "a:2"\n')
    assert "image = a:2" in refusal(root)


def test_a_new_dependency_and_another_order_do_not_ask_again(root):
    asked(root, 'engine = "local"\nmounts = ["/etc:/a", "/srv:/b"]\n')
    allow(root)
    asked(root, 'mounts = ["/srv:/b", "/etc:/a"]\npython = ["einops"]\nseed = 3\nengine = "local"\n')
    assert refusal(root) is None


def test_a_request_that_the_list_lacks_is_refused_though_the_list_is_allowed(root):
    asked(root, 'engine = "local"')
    allow(root)
    assert "image = a:1" in refusal(root, Request(key="image", value="a:1"))


def test_a_command_that_follows_none_of_it_asks_nothing(root):
    asked(root, 'engine = "local"')
    require_trust([], root, {})


def test_the_hash_in_the_environment_allows_that_list_alone(root):
    asked(root, 'engine = "local"')
    environment = {"REPROBOX_TRUST": digest_of(requests_of(root))}
    assert refusal(root, environment=environment) is None
    asked(root, 'engine = "local"\nnetwork = "host"')
    assert "REPROBOX_TRUST is of another list" in refusal(root, environment=environment)


@pytest.mark.parametrize("text", ["", "yes", "1", "on", "true", "*", "A" * 64, "0" * 63])
def test_a_plain_yes_in_the_environment_is_refused(root, text):
    with pytest.raises(UsageError, match=r"REPROBOX_TRUST cannot be .*trust --print"):
        Settings.load({}, root, {"REPROBOX_TRUST": text})


def test_another_folder_does_not_inherit(root, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for folder in (root, other):
        asked(folder, 'engine = "local"')
    allow(root)
    assert refusal(root) is None
    assert refusal(other)
    below = root / "below"
    below.mkdir()
    asked(below, 'engine = "local"')
    assert refusal(below)


def test_what_was_typed_once_holds_for_its_own_folder_alone(root, tmp_path):
    remember_typed([Request(key="allow-sdist", value="antlr4")], root)
    asked(root, 'allow-sdist = ["antlr4"]')
    assert refusal(root) is None
    asked(root, 'allow-sdist = ["antlr4", "other"]')
    assert refusal(root).endswith("allow-sdist = other; see the whole list and allow it with `reprobox trust`")


def test_forgetting_takes_it_back(root):
    asked(root, 'engine = "local"')
    allow(root)
    assert Trusted.every() == [Trusted.read(root)]
    assert Trusted.read(root).forget()
    assert refusal(root)
    assert not Trusted.read(root).forget()
    assert Trusted.every() == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document | {"project": "/elsewhere"},
        lambda document: document | {"schema": "reprobox.trust/2"},
        lambda document: document | {"lists": {name: [] for name in document["lists"]}},
        lambda document: document | {"lists": [1], "typed": {"a": 1}},
        lambda _document: [],
    ],
)
def test_a_file_that_is_not_what_was_kept_allows_nothing(root, spoil):
    asked(root, 'engine = "local"')
    allow(root)
    (path,) = trust_folder().iterdir()
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    assert refusal(root)
    allow(root)
    assert refusal(root) is None


def test_without_a_home_nothing_that_lies_in_the_project_is_believed(root, monkeypatch):
    asked(root, 'engine = "local"')
    allow(root)

    def nobody(_uid):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.chdir(root)
    assert trust_folder() is None
    assert refusal(root)
    with pytest.raises(UsageError, match="set HOME"):
        allow(root)
