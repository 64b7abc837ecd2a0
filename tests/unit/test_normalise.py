"""A built image made canonical: what of it stays, what goes, and how two images that still differ are told apart."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from dataclasses import replace

import pytest
from support.entries import file, folder
from support.said import Said

from reprobox.errors import BuildError, EngineError
from reprobox.images.archive import CREATED, Image, archive_of, assemble, read_archive
from reprobox.images.compare import first_difference
from reprobox.images.layers import Entry, Layer, entries_of_tar, write_layer
from reprobox.images.normalise import Tree, in_order, rewritten, settled

DATED, NEVER_CHECKED, CHECKED = (b"\xa7\r\r\n" + bytes([flags, 0, 0, 0]) + bytes(8) for flags in (0, 1, 3))


def on(*below):
    tree = Tree()
    tree.apply(below)
    return tree


def names(entries):
    return [entry.name for entry in entries]


@pytest.mark.parametrize(
    ("volatile", "kept"),
    [
        (b"var/log/apt/term.log", b"opt/var/log/apt/term.log"),
        (b"var/cache/ldconfig/aux-cache", b"var/cache/ldconfig/other"),
        (b"var/cache/apt/pkgcache.bin", b"var/cache/apt/pkgcache.txt"),
        (b"var/cache/apt/archives/a.deb", b"var/cache/a.deb"),
        (b"var/lib/apt/lists/lock", b"var/lib/apt/extended_states"),
        (b"var/lib/dpkg/status-old", b"var/lib/dpkg/status"),
        (b"var/cache/debconf/config.dat-old", b"var/cache/debconf/config.dat"),
        (b"dev/null", b"device"),
        (b"proc/1", b"processes"),
        (b".dockerenv", b"x.dockerenv"),
    ],
)
def test_what_is_made_again_or_tells_of_the_build_goes_and_its_neighbour_stays(volatile, kept):
    assert names(settled([file(volatile)], on())) == []
    assert kept in names(settled([file(kept)], on()))


def test_a_machine_id_is_emptied_and_mount_points_of_the_builder_go_while_they_are_empty():
    found = {entry.name: entry for entry in settled([file(b"etc/machine-id"), file(b"etc/hosts", b"")], on())}
    assert (found[b"etc/machine-id"].size, list(found)) == (0, [b"etc", b"etc/machine-id"])
    assert b"etc/hosts" in names(settled([file(b"etc/hosts", b"10.0.0.1 me")], on()))


def test_a_folder_that_the_engine_mounts_over_is_not_added():
    assert names(settled([folder(b"proc"), folder(b"dev"), folder(b"sys"), folder(b"system")], on())) == [b"system"]


def test_folders_the_builder_only_passed_through_go_and_changed_ones_stay():
    below = [folder(b"etc"), folder(b"tmp", 0o1777), folder(b"opt")]
    passed = [folder(b"etc"), folder(b"tmp", 0o1777), file(b"opt/x")]
    assert names(settled([*passed, folder(b"opt")], on(*below))) == [b"opt", b"opt/x"]
    for changed in (folder(b"etc", 0o700), folder(b"etc", uid=3), folder(b"etc", gid=3), folder(b"new")):
        assert changed.name in names(settled([*passed, changed], on(*below)))


def test_parents_have_the_owner_and_mode_the_layers_below_gave_them():
    below = on(folder(b"tmp", 0o1777), folder(b"home", 0o750, uid=7))
    found = {entry.name: entry for entry in settled([file(b"tmp/x"), file(b"home/y")], below)}
    assert (found[b"tmp"].mode, found[b"home"].mode, found[b"home"].uid) == (0o1777, 0o750, 7)


def test_whiteouts_stay_and_aufs_own_files_go():
    marks = [b"a/.wh.gone", b"b/.wh..wh..opq", b"var/log/.wh.old", b".wh..wh.plnk", b"c/.wh..wh.aufs"]
    kept = names(settled([file(mark, b"") for mark in marks], on()))
    assert kept == [b"a", b"a/.wh.gone", b"b", b"b/.wh..wh..opq", b"var", b"var/log", b"var/log/.wh.old"]


@pytest.mark.parametrize("mark", [b".wh.d", b"d/.wh..wh..opq", b"d"])
def test_a_folder_made_anew_over_a_hidden_one_is_no_folder_passed_through(mark):
    tree = on(folder(b"d"), folder(b"d/e"))
    tree.apply([file(mark, b"")])
    assert b"d/e" in names(settled([folder(b"d/e")], tree))
    assert names(settled([folder(b"d/e")], on(folder(b"d"), folder(b"d/e")))) == []


def test_bytecode_with_a_date_is_an_error_that_names_it():
    with pytest.raises(BuildError, match=r"/x/m\.pyc remembers the date"):
        settled([file(b"x/m.pyc", DATED)], on())
    for good in (NEVER_CHECKED, CHECKED):
        assert b"x/m.pyc" in names(settled([file(b"x/m.pyc", good)], on()))
    with pytest.raises(BuildError, match="remembers"):
        settled([file(b"x/m.pyc", b"short")], on())


def built(tmp_path, *layers, order="abc", **config):
    """An image as a builder leaves it: each layer a list of entries, dated and in any order."""
    made = []
    for number, entries in enumerate(layers):
        path = tmp_path / f"{order}-{number}"
        with tarfile.open(path, "w") as archive:
            for entry in reversed(entries) if order == "cba" else entries:
                info = tarfile.TarInfo(entry.name.decode())
                info.mode, info.size, info.mtime = entry.mode | (0o40000 if order == "cba" else 0), entry.size, number
                info.type = {"file": tarfile.REGTYPE, "folder": tarfile.DIRTYPE}[entry.kind]
                archive.addfile(info, entry.content() if entry.content else None)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        made.append(Layer(diff_id=f"sha256:{digest}", size=path.stat().st_size, path=path))
    whole = {"architecture": "amd64", "os": "linux", "config": {}, **config}
    whole["rootfs"] = {"type": "layers", "diff_ids": [layer.diff_id for layer in made]}
    return Image(config=json.dumps(whole).encode(), layers=tuple(made))


BASE = [folder(b"etc"), folder(b"opt"), file(b"etc/passwd")]
LAYERS = [BASE, [folder(b"opt"), file(b"opt/b"), file(b"opt/a", b"1")], [folder(b"etc")], [file(b"opt/c")]]


def normal(image, tmp_path, below):
    return rewritten(image, [layer.diff_id for layer in below.layers[:1]], tmp_path, Said())


def test_two_builders_dates_orders_and_empty_layers_come_to_one_image_id(tmp_path):
    classic = built(tmp_path, *LAYERS, created="2026-01-01T00:00:00Z", docker_version="20", container="x", order="abc")
    other = [LAYERS[0], LAYERS[1][::-1], LAYERS[3]]
    buildkit = built(
        tmp_path, *other, created="2027-01-01T00:00:00Z", order="xyz", **{"moby.buildkit.buildinfo.v1": "x"}
    )
    buildkit = replace(buildkit, layers=(classic.layers[0], *buildkit.layers[1:]))
    one, two = normal(classic, tmp_path, classic), normal(buildkit, tmp_path, classic)
    assert one.image_id == two.image_id
    assert len(one.layers) == 3
    changed = built(tmp_path, *LAYERS[:3], [file(b"opt/c", b"other")], order="new")
    changed = replace(changed, layers=(classic.layers[0], *changed.layers[1:]))
    assert normal(changed, tmp_path, classic).image_id != one.image_id


def test_the_base_is_left_alone_and_normalising_again_changes_nothing(tmp_path):
    raw = built(tmp_path, *LAYERS)
    once = normal(raw, tmp_path, raw)
    assert once.layers[0] == raw.layers[0]
    assert normal(once, tmp_path, raw).image_id == once.image_id


def test_an_image_on_another_base_is_refused(tmp_path):
    raw = built(tmp_path, *LAYERS)
    with pytest.raises(BuildError, match="does not stand on"):
        rewritten(raw, ["sha256:" + "0" * 64], tmp_path, Said())


def test_the_mode_a_builder_writes_with_the_kind_of_file_in_it_is_the_mode_without(tmp_path):
    one, two = built(tmp_path, *LAYERS, order="abc"), built(tmp_path, *LAYERS, order="cba")
    two = replace(two, layers=(one.layers[0], *two.layers[1:]))
    assert normal(one, tmp_path, one).image_id == normal(two, tmp_path, one).image_id


def test_the_config_keeps_what_a_container_needs_and_nothing_of_the_build():
    parsed = {
        "architecture": "arm64", "variant": "v8", "os": "linux", "created": "2026-05-05T05:05:05Z", "author": "me",
        "docker_version": "20.10", "container": "c0ffee", "container_config": {"Cmd": ["x"]},
        "config": {
            "Hostname": "h", "Image": "sha256:1", "ArgsEscaped": True, "OnBuild": None, "Env": ["B=1", "A=2"],
            "Cmd": ["python"], "Labels": {"z": "1", "a": "2"}, "User": "1000:1000", "Volumes": None,
        },
        "history": [{"created_by": "low"}, {"created_by": "LABEL", "empty_layer": True}],
    }  # fmt: skip
    base = Image(config=json.dumps(parsed).encode(), layers=(Layer(diff_id="sha256:1"),))
    made = assemble(base, [Layer(diff_id="sha256:2")], changes={"Labels": {"b": "3", "z": None}, "Cmd": ["sh"]}).parsed
    assert made == {
        "architecture": "arm64", "variant": "v8", "os": "linux", "created": CREATED,
        "config": {"Env": ["B=1", "A=2"], "Cmd": ["sh"], "Labels": {"a": "2", "b": "3"}, "User": "1000:1000"},
        "history": [{"created": CREATED, "created_by": "low"}, {"created": CREATED, "created_by": "reprobox: a layer"}],
        "rootfs": {"type": "layers", "diff_ids": ["sha256:1", "sha256:2"]},
    }  # fmt: skip


def test_the_order_of_keys_is_of_no_account_and_the_order_of_the_environment_is():
    def made(config):
        text = json.dumps({"architecture": "amd64", "os": "linux", "config": config}).encode()
        return assemble(Image(config=text, layers=()), []).image_id

    assert made({"Env": ["A=1", "B=2"], "User": "1"}) == made({"User": "1", "Env": ["A=1", "B=2"]})
    assert made({"Env": ["A=1", "B=2"], "User": "1"}) != made({"Env": ["B=2", "A=1"], "User": "1"})


def small(tmp_path):
    layers = [write_layer([file(b"a", content)], tmp_path) for content in (b"1", b"2")]
    text = json.dumps({"architecture": "amd64", "os": "linux", "config": {}}).encode()
    return assemble(Image(config=text, layers=()), layers)


def test_the_archive_repeats_and_is_read_back_as_the_same_image(tmp_path):
    image, path = small(tmp_path), tmp_path / "image.tar"
    texts = []
    for _ in range(2):
        with path.open("wb") as out:
            out.writelines(archive_of(image, image.layers, "x:1"))
        texts.append(path.read_bytes())
    assert texts[0] == texts[1]
    read = read_archive(path)
    assert (read.image_id, [layer.diff_id for layer in read.layers]) == (
        image.image_id,
        [layer.diff_id for layer in image.layers],
    )
    with read.layers[1].open() as stream:
        assert entries_of_tar(stream)[0].content().read() == b"2"
    with tarfile.open(path) as archive:
        (listed,) = json.load(archive.extractfile("index.json"))["manifests"]
        blob = archive.extractfile("blobs/" + listed["digest"].replace(":", "/")).read()
    assert hashlib.sha256(blob).hexdigest() == listed["digest"].removeprefix("sha256:")
    assert json.loads(blob)["config"]["digest"] == image.image_id


def save(image, path, *, pack=bytes, link=False):
    """An archive as older engines write it: a folder per layer, a layer that comes twice as a link to the first."""
    with tarfile.open(path, "w") as archive:

        def add(name, content):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for number, layer in enumerate(image.layers):
            if link and number:
                info = tarfile.TarInfo(f"{number}/layer.tar")
                info.type, info.linkname = tarfile.SYMTYPE, "../0/layer.tar"
                archive.addfile(info)
            else:
                add(f"{number}/layer.tar", pack(layer.path.read_bytes()))
        add("c.json", image.config)
        listed = [f"{number}/layer.tar" for number in range(len(image.layers))]
        add("manifest.json", json.dumps([{"Config": "c.json", "Layers": listed}]).encode())
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_engines_archive_is_read_whether_its_layers_are_compressed_or_not(tmp_path, pack):
    image = small(tmp_path)
    read = read_archive(save(image, tmp_path / "x.tar", pack=pack))
    assert read.config == image.config
    assert [b"".join(layer.chunks()) for layer in read.layers] == [layer.path.read_bytes() for layer in image.layers]


def test_a_layer_stored_as_a_link_to_another_is_found(tmp_path):
    image = small(tmp_path)
    read = read_archive(save(image, tmp_path / "x.tar", link=True))
    assert b"".join(read.layers[1].chunks()) == image.layers[0].path.read_bytes()


@pytest.mark.parametrize("damage", [lambda text: text[:3000], lambda _: b"no archive" * 400])
def test_a_broken_archive_is_an_error(tmp_path, damage):
    path = save(small(tmp_path), tmp_path / "x.tar")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(EngineError, match="cannot be read"):
        read_archive(path)


def stack(tmp_path, *layers, **config):
    made = [write_layer(entries, tmp_path) for entries in layers]
    text = json.dumps({"architecture": "amd64", "os": "linux", "config": config}).encode()
    return assemble(Image(config=text, layers=()), made)


COMMON = [file(b"a", b"0123456789"), file(b"b"), Entry(name=b"l", kind="symlink", mode=0o777, link=b"a")]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (file(b"a", b"0123x56789"), "/a: content from byte 4 on"),
        (file(b"a", b"0123456789more"), "/a: content from byte 10 on (10 and 14 bytes)"),
        (file(b"a", b"0123456789", mode=0o600), "/a: mode 0644 and 0600"),
        (file(b"a", b"0123456789", uid=5), "/a: owner 0:0 and 5:0"),
        (file(b"a", b"0123456789", capability=b"\1"), "/a: capability none and 01"),
        (folder(b"a"), "/a: kind file and folder"),
        (Entry(name=b"l", kind="symlink", mode=0o777, link=b"b"), "/l: target a and b"),
        (file(b"c"), "/c: only in the second image"),
    ],
)
def test_the_first_difference_names_layer_path_and_what_differs(tmp_path, changed, said):
    one = stack(tmp_path, [file(b"base")], COMMON)
    other = stack(tmp_path, [file(b"base")], [*(e for e in COMMON if e.name != changed.name), changed])
    assert str(first_difference(one, other)) == f"layer 2: {said}"
    assert first_difference(one, stack(tmp_path, [file(b"base")], COMMON)) is None


def test_the_first_of_several_differences_is_the_one_named(tmp_path):
    one = stack(tmp_path, [file(b"d/z", b"1"), file(b"d-a", b"1"), file(b"x")])
    other = stack(tmp_path, [file(b"d/z", b"2"), file(b"d-a", b"2")])
    assert first_difference(one, other).path == "/d/z"


def test_files_linked_together_differ_from_files_apart(tmp_path):
    apart = stack(tmp_path, [file(b"a"), file(b"b")])
    together = stack(tmp_path, [file(b"a", inode=1), file(b"b", inode=1)])
    assert str(first_difference(apart, together)) == "layer 1: /b: kind file and hardlink"


def test_a_layer_too_many_and_another_config_are_differences(tmp_path):
    one = stack(tmp_path, COMMON, User="1")
    assert str(first_difference(one, stack(tmp_path, COMMON, [file(b"x/y")], User="1"))) == (
        "layer 2: /x/y: only in the second image"
    )
    assert str(first_difference(one, stack(tmp_path, COMMON, User="2"))) == "the config: config.User: '1' and '2'"


def test_a_file_that_is_written_again_as_it_was_goes_and_one_that_differs_in_anything_stays():
    below = on(file(b"opt/a", b"same"), file(b"opt/b", b"same"), file(b"opt/c", b"same"))
    again = [file(b"opt/a", b"same"), file(b"opt/b", b"othr"), replace(file(b"opt/c", b"same"), mode=0o755)]
    assert names(settled(again, below)) == [b"opt", b"opt/b", b"opt/c"]
    assert names(settled([file(b"opt/a", b"same")], below)) == []


def test_a_file_that_a_layer_takes_away_and_brings_back_stays():
    below = on(file(b"opt/a", b"same"))
    for marker in (b"opt/.wh.a", b"opt/.wh..wh..opq", b".wh.opt"):
        assert b"opt/a" in names(settled([file(marker, b""), file(b"opt/a", b"same")], below))


def test_a_file_that_is_gone_or_became_a_folder_is_not_taken_for_there():
    for over in (
        file(b"opt/.wh.a", b""),
        file(b"opt/.wh..wh..opq", b""),
        Entry(name=b"opt/a", kind="folder", mode=0o755),
    ):
        tree = on(file(b"opt/a", b"same"))
        tree.apply([over])
        assert b"opt/a" in names(settled([file(b"opt/a", b"same")], tree))


def test_a_file_with_two_names_stays_with_both():
    pair = [replace(file(name, b"same"), inode=1) for name in (b"opt/a", b"opt/new")]
    assert {b"opt/a", b"opt/new"} <= set(names(settled(pair, on(file(b"opt/a", b"same")))))


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        (["B=1", "A=2", "PATH=/new"], ["PATH=/new", "B=1", "A=2"]),
        (["PATH=/new", "B=1", "A=2"], ["PATH=/new", "B=1", "A=2"]),
        (["HOME=/x", "PATH=/new"], ["PATH=/new", "HOME=/x"]),
        ([], []),
    ],
)
def test_the_bases_variables_keep_their_places_whatever_a_step_sets_them_to(variables, expected):
    assert in_order(variables, ["PATH=/old", "HOME=/root"]) == expected
