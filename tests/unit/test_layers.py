"""Layers in their canonical form: what is of no account for the bytes, and what is."""

from __future__ import annotations

import io
import itertools
import random
import socket
import tarfile

import pytest
from support.entries import file, folder

from reprobox.errors import BuildError
from reprobox.images.context import EPOCH
from reprobox.images.layers import Entry, clean_name, entries_of_folder, entries_of_tar, header, write_layer

CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000") + b"\xff"


def members(layer):
    with tarfile.open(layer.path, encoding="utf-8", errors="surrogateescape") as archive:
        return {member.name: member for member in archive}


def tar_of(*infos):
    """A tar as tarfile writes it, from (TarInfo fields, content)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for fields, content in infos:
            info = tarfile.TarInfo(fields.pop("name"))
            for key, value in fields.items():
                setattr(info, key, value)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    out.seek(0)
    return out


ENTRIES = [folder(b"a", 0o1777), file(b"a/b", b"1"), file(b"a-b", b"2"), file(b"a/c/d", b"3"), folder(b"e")]


def test_the_order_of_the_entries_is_of_no_account(tmp_path):
    layers = {write_layer(list(order), tmp_path) for order in itertools.permutations(ENTRIES)}
    (layer,) = layers
    assert list(members(layer)) == ["a", "a/b", "a/c", "a/c/d", "a-b", "e"]
    assert layer.path.stat().st_size == layer.size


@pytest.mark.parametrize(
    "other",
    [
        file(b"a/b", b"2"),
        file(b"a/b", b"1", mode=0o600),
        file(b"a/b", b"1", uid=1000),
        file(b"a/b", b"1", gid=1000),
        file(b"a/b", b"1", capability=CAPABILITY),
        file(b"a/B", b"1"),
        Entry(name=b"a/b", kind="symlink", mode=0o777, link=b"1"),
        Entry(name=b"a/b", kind="fifo", mode=0o644),
        Entry(name=b"a/b", kind="char", mode=0o644, device=(1, 3)),
    ],
)
def test_what_an_entry_is_decides_the_bytes(tmp_path, other):
    changed = [other if entry.name == b"a/b" else entry for entry in ENTRIES]
    assert write_layer(ENTRIES, tmp_path).diff_id != write_layer(changed, tmp_path).diff_id


def test_every_date_is_the_fixed_one_and_owners_have_no_names(tmp_path):
    dated = tar_of(({"name": "a", "mtime": 5.25, "uname": "me", "gname": "us", "uid": 7, "gid": 8}, b"x"))
    (member,) = members(write_layer(entries_of_tar(dated), tmp_path)).values()
    assert (member.mtime, member.uname, member.gname, member.uid, member.gid) == (EPOCH, "", "", 7, 8)
    assert member.pax_headers == {}


def test_parents_that_no_entry_names_are_folders_of_root(tmp_path):
    found = members(write_layer([file(b"opt/project/x", uid=5)], tmp_path))
    assert [(each.name, oct(each.mode), each.uid) for each in found.values() if each.isdir()] == [
        ("opt", "0o755", 0),
        ("opt/project", "0o755", 0),
    ]


def linked(*names, content=b"the same"):
    """A tar in which the first name is a file and the others link to it."""
    first, *others = names
    links = [({"name": name, "type": tarfile.LNKTYPE, "linkname": first}, b"") for name in others]
    return tar_of(({"name": first}, content), *links)


def test_one_set_of_hard_links_gives_the_same_bytes_whichever_name_came_first(tmp_path):
    layers = {
        write_layer(entries_of_tar(linked(*order)), tmp_path) for order in itertools.permutations(["a", "b/c", "./d"])
    }
    (layer,) = layers
    found = members(layer)
    assert [found[name].linkname for name in ("a", "b/c", "d")] == ["", "a", "a"]


def test_two_files_with_one_content_are_not_taken_for_hard_links(tmp_path):
    apart = tar_of(({"name": "a"}, b"the same"), ({"name": "b"}, b"the same"))
    as_links = write_layer(entries_of_tar(linked("a", "b")), tmp_path)
    assert write_layer(entries_of_tar(apart), tmp_path).diff_id != as_links.diff_id
    with tarfile.open(as_links.path) as archive:
        assert archive.extractfile("b").read() == b"the same"


def test_a_hard_link_keeps_its_content_when_the_file_it_links_to_comes_again(tmp_path):
    infos = (
        ({"name": "a"}, b"old"),
        ({"name": "b", "type": tarfile.LNKTYPE, "linkname": "a"}, b""),
        ({"name": "a"}, b"new"),
    )
    layer = write_layer(entries_of_tar(tar_of(*infos)), tmp_path)
    with tarfile.open(layer.path) as archive:
        assert [archive.extractfile(name).read() for name in ("a", "b")] == [b"new", b"old"]


def test_a_hard_link_to_what_the_layer_lacks_is_an_error():
    with pytest.raises(BuildError, match="b to a"):
        entries_of_tar(tar_of(({"name": "b", "type": tarfile.LNKTYPE, "linkname": "a"}, b"")))


@pytest.mark.parametrize(
    "name",
    [b"x" * 100, b"x" * 101, b"d/" * 200 + b"x", "größe/数".encode(), b"latin-\xe9", b"new\nline", b"a=b 12"],
)
def test_any_name_comes_back_as_it_was(tmp_path, name):
    link = Entry(name=b"link", kind="symlink", mode=0, link=name)
    layer = write_layer([file(name), link], tmp_path)
    with layer.open() as stream:
        read = {entry.name: entry for entry in entries_of_tar(stream)}
        assert read[name].content().read() == b"content"
        assert (read[b"link"].link, read[b"link"].mode) == (name, 0o777)
        assert write_layer(read.values(), tmp_path) == layer


def test_a_capability_stays_and_other_attributes_go(tmp_path):
    kept = write_layer([file(b"ping", capability=CAPABILITY)], tmp_path)
    with kept.open() as stream:
        assert entries_of_tar(stream)[0].capability == CAPABILITY
    pax = {"SCHILY.xattr.user.comment": "x", "SCHILY.xattr.security.selinux": "y", "atime": "1.5"}
    noisy = tar_of(({"name": "ping", "pax_headers": pax}, b"content"))
    assert write_layer(entries_of_tar(noisy), tmp_path).diff_id == write_layer([file(b"ping")], tmp_path).diff_id
    assert kept.diff_id != write_layer([file(b"ping")], tmp_path).diff_id


def test_a_file_with_holes_is_written_out_with_its_zeroes(tmp_path):
    def octal(number):
        return b"%011o\0" % number

    block = bytearray(tarfile.TarInfo("holes").tobuf(format=tarfile.GNU_FORMAT))
    block[124:136], block[156:157] = octal(4), tarfile.GNUTYPE_SPARSE
    block[386:410] = octal(1000) + octal(4)  # four bytes of data after 1000 of nothing
    block[483:495] = octal(2000)
    block[148:156] = b"%06o\0 " % (sum(block) - sum(block[148:156]) + 8 * 32)
    sparse = io.BytesIO(bytes(block) + b"data".ljust(512, b"\0") + bytes(1024))
    dense = file(b"holes", bytes(1000) + b"data" + bytes(996))
    assert write_layer(entries_of_tar(sparse), tmp_path).diff_id == write_layer([dense], tmp_path).diff_id


@pytest.mark.parametrize(("field", "value"), [("size", 9 * 2**30), ("uid", 3_000_000), ("gid", 2**31)])
def test_a_number_that_a_plain_header_cannot_hold_is_written_in_a_longer_one(field, value):
    raw = header(Entry(name=b"big", kind="file", mode=0o644, **{field: value}))
    assert len(raw) == 3 * 512
    with tarfile.open(fileobj=io.BytesIO(raw + bytes(1024))) as archive:
        assert getattr(archive.next(), field) == value
    assert len(header(Entry(name=b"big", kind="file", mode=0o644, **{field: 5}))) == 512


@pytest.mark.parametrize("length", [*range(85, 95), *range(980, 990)])
def test_the_length_of_a_pax_record_counts_its_own_digits(length):
    raw = header(Entry(name="é".encode() + b"x" * length, kind="file", mode=0o644))
    record = raw[512 : raw.index(b"\n", 512) + 1]
    assert int(record.split(b" ", 1)[0]) == len(record)


def test_a_folder_gives_the_same_layer_whatever_umask_made_it_and_whenever(tmp_path):
    layers = []
    for name, plain, program in (("one", 0o644, 0o755), ("two", 0o600, 0o700)):
        top = tmp_path / name
        (top / "deep").mkdir(parents=True, mode=0o700)
        for path in random.Random(name).sample(["deep/a", "b", "c"], 3):
            (top / path).write_text(path)
            (top / path).chmod(plain)
        (top / "b").chmod(program)
        (top / "link").symlink_to("b")
        (top / "hard").hardlink_to(top / "c")
        layers.append(write_layer(entries_of_folder(top, at="/opt/project/"), tmp_path))
    assert layers[0] == layers[1]
    found = members(layers[0])
    modes = {name: oct(found[f"opt/project/{name}"].mode) for name in ("deep", "deep/a", "b")}
    assert modes == {"deep": "0o755", "deep/a": "0o644", "b": "0o755"}
    assert (found["opt/project/hard"].linkname, found["opt/project/link"].linkname) == ("opt/project/c", "b")
    (tmp_path / "two" / "c").chmod(0o700)
    assert write_layer(entries_of_folder(tmp_path / "two", at="opt/project"), tmp_path) != layers[0]


def test_a_socket_cannot_be_put_into_a_layer(tmp_path, monkeypatch, socket_enabled):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
        with pytest.raises(BuildError, match="neither file"):
            entries_of_folder(tmp_path, at="opt")


def test_a_file_that_grew_or_shrank_meanwhile_is_an_error(tmp_path):
    for size in (3, 5):
        entry = Entry(name=b"f", kind="file", mode=0o644, size=size, content=lambda: io.BytesIO(b"four"))
        with pytest.raises(BuildError, match="/f changed its length"):
            write_layer([entry], tmp_path)


def test_a_name_that_comes_twice_or_leads_out_is_an_error(tmp_path):
    with pytest.raises(BuildError, match="/a twice"):
        write_layer([file(b"a"), folder(b"a")], tmp_path)
    for name in (b"../a", b"a/../../b"):
        with pytest.raises(BuildError, match="leads out"):
            clean_name(name)
    assert clean_name(b"./a//b/./c/") == b"a/b/c"


def test_of_a_name_that_comes_twice_in_a_tar_the_last_counts():
    (entry,) = entries_of_tar(tar_of(({"name": "a"}, b"1"), ({"name": "./a"}, b"22")))
    assert entry.content().read() == b"22"


def test_what_is_no_tar_is_an_error():
    with pytest.raises(BuildError, match="as a tar"):
        entries_of_tar(io.BytesIO(b"no tar" * 500))
