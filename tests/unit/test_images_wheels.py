import hashlib
import io
import runpy
import sys
from pathlib import Path

import pytest
from support.said import Said

from reprobox.errors import ArtefactError
from reprobox.images import sources, wheels
from reprobox.images.wheels import Pin, collect, parse_lock

A, B = "a" * 64, "b" * 64


def wheel(folder, name="thing-1.0-py3-none-any.whl", content=b"content"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return Pin(name="thing", version="1.0", hashes=(hashlib.sha256(content).hexdigest(),))


def test_a_lock_is_read_with_comments_continuations_and_several_hashes():
    pins = parse_lock(
        f"# header\n\ntorch==2.13.0+cpu --hash=sha256:{A}  # why\nTyping_Extensions==4.16.0 \\\n"
        f"    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n",
        source="cpu.txt",
    )
    assert pins == (
        Pin(name="torch", version="2.13.0+cpu", hashes=(A,)),
        Pin(name="typing-extensions", version="4.16.0", hashes=(A, B)),
    )
    assert pins[0].requirement() == f"torch==2.13.0+cpu --hash=sha256:{A}"


@pytest.mark.parametrize(
    "line",
    [
        "torch", "torch==2.13.0", f"torch>=2 --hash=sha256:{A}", "torch==2 --hash=md5:00", f"torch==2 --hash=sha256:{A[1:]}",
        f"torch==2 --hash=sha256:{A} --hash=sha1:00", "--index-url https://example.org", "-e .",
        f"torch @ https://example.org/t.whl --hash=sha256:{A}",
    ],
)  # fmt: skip
def test_a_line_that_does_not_pin_by_hash_is_refused_and_quoted(line):
    with pytest.raises(ArtefactError) as refusal:
        parse_lock(line, source="cpu.txt")
    assert repr(line) in str(refusal.value)


def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(ArtefactError, match="names a-b twice"):
        parse_lock(f"a-b==1 --hash=sha256:{A}\nA_b==1 --hash=sha256:{A}\n", source="cpu.txt")


@pytest.mark.parametrize("variant", ["cpu", "cuda"])
def test_the_locks_that_ship_pin_torch_and_say_nothing_of_where_from(variant):
    text = sources.ImageInput.read(variant).lock
    pins = parse_lock(text, source=variant)
    assert "torch" in {pin.name for pin in pins}
    assert all(len(pin.hashes) == 1 for pin in pins)
    assert [pin.name for pin in pins] == sorted(pin.name for pin in pins)
    assert "://" not in text


def test_relock_writes_a_lock_that_reads_back(tmp_path, monkeypatch, capsys):
    wheel(tmp_path / "wheels", "thing-1.0+cpu-py3-none-any.whl", b"x")
    script = sources.image_root() / "docker" / "locks" / "relock.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path / "wheels")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0
    (pin,) = parse_lock(capsys.readouterr().out, source="new")
    assert pin == Pin(name="thing", version="1.0+cpu", hashes=(hashlib.sha256(b"x").hexdigest(),))


def test_a_wheelhouse_is_used_where_it_is_and_before_anything_else(tmp_path, no_pip):
    pin = wheel(tmp_path / "house")
    found = collect([pin], wheelhouses=[tmp_path / "house"], cache=tmp_path / "cache", report=Said())
    assert found == {"thing-1.0-py3-none-any.whl": tmp_path / "house" / "thing-1.0-py3-none-any.whl"}


def test_a_wheel_of_the_right_name_and_the_wrong_content_is_not_taken(tmp_path, no_pip):
    pin = wheel(tmp_path / "house")
    wheel(tmp_path / "house", content=b"another")
    with pytest.raises(PipAskedError):
        collect([pin], wheelhouses=[tmp_path / "house"], cache=tmp_path / "cache", report=Said())


def test_a_verified_cached_wheel_needs_no_pip(tmp_path, no_pip):
    cache = tmp_path / "cache"
    pin = wheel(tmp_path / "new")
    placed = wheels.place(tmp_path / "new" / "thing-1.0-py3-none-any.whl", pin.hashes[0], cache)
    assert collect([pin], wheelhouses=[], cache=cache, report=Said()) == {placed.name: placed}


def test_a_damaged_cached_wheel_is_said_and_fetched_again(tmp_path, monkeypatch):
    cache, said = tmp_path / "cache", Said()
    pin = wheel(tmp_path / "new")
    placed = wheels.place(tmp_path / "new" / "thing-1.0-py3-none-any.whl", pin.hashes[0], cache)
    placed.write_bytes(b"damaged")

    def pip(command, pins, report, scratch):
        wheel(Path(command[command.index("--dest") + 1]))

    monkeypatch.setattr(wheels, "_run_pip", pip)
    found = collect([pin], wheelhouses=[], cache=cache, report=said)
    assert found[placed.name].read_bytes() == b"content"
    assert any("damaged" in line for line in said.lines)
    assert [path.name for path in cache.iterdir()] == [pin.hashes[0]]


def test_a_wheel_pip_brought_with_another_content_never_reaches_the_cache(tmp_path, monkeypatch):
    pin = wheel(tmp_path / "new")
    monkeypatch.setattr(
        wheels, "_run_pip", lambda command, *_: wheel(Path(command[command.index("--dest") + 1]), content=b"bad")
    )
    with pytest.raises(ArtefactError, match="thing==1"):
        collect([pin], wheelhouses=[], cache=tmp_path / "cache", report=Said())
    assert list((tmp_path / "cache").iterdir()) == []


def test_pip_is_asked_for_the_missing_wheel_only_by_hash_and_for_the_images_python(tmp_path, monkeypatch):
    asked = {}
    present = wheel(tmp_path / "house")
    absent = Pin(name="other", version="2", hashes=(A,))

    def pip(command, pins, report, scratch):
        asked["command"] = command
        asked["requirements"] = Path(command[-1]).read_text()
        raise PipAskedError

    monkeypatch.setattr(wheels, "_run_pip", pip)
    with pytest.raises(PipAskedError):
        collect([present, absent], wheelhouses=[tmp_path / "house"], cache=tmp_path / "cache", report=Said())
    assert asked["requirements"] == f"other==2 --hash=sha256:{A}\n"
    assert {"--require-hashes", "--no-deps", "manylinux_2_28_x86_64", "cp311"} <= set(asked["command"])
    assert not any("index" in word for word in asked["command"])


def test_without_pip_the_wheel_is_named_and_the_way_out_too(tmp_path, monkeypatch):
    monkeypatch.setattr(wheels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArtefactError, match=r"other==2.*--wheelhouse"):
        collect([Pin(name="other", version="2", hashes=(A,))], wheelhouses=[], cache=tmp_path, report=Said())


class FailedPip(io.BytesIO):
    stdout = ("Collecting first==1\n", "ERROR: No matching distribution found for other==2\n")
    returncode = 1


def test_when_pip_fails_the_wheel_is_named_with_pips_own_words(monkeypatch, tmp_path):
    monkeypatch.setattr(wheels, "child", lambda *_, **__: FailedPip())
    pins = [Pin(name="first", version="1", hashes=(A,)), Pin(name="other", version="2", hashes=(A,))]
    with pytest.raises(ArtefactError) as failure:
        wheels._run_pip(["pip"], pins, Said(), tmp_path)
    assert "could not fetch other==2 as" in failure.value.message
    assert "index-url" in str(failure.value)
    assert "No matching distribution" in failure.value.detail


def test_a_wheelhouse_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(ArtefactError, match="nowhere"):
        collect([], wheelhouses=[tmp_path / "nowhere"], cache=tmp_path, report=Said())


class PipAskedError(Exception):
    pass


@pytest.fixture
def no_pip(monkeypatch):
    def asked(*_):
        raise PipAskedError

    monkeypatch.setattr(wheels, "_run_pip", asked)
