"""Output that is followed: from its first byte to its last, whoever writes it and whoever reads."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading

import pytest
from support.earlier_runs import EndedBox

from reprobox.cli.app import run_app
from reprobox.runs import later, logs


@pytest.fixture
def tiny_logs(monkeypatch):
    for function in (logs.StreamLog.__init__, logs.read_log, logs.read_on):
        for name, size in (("head", 10), ("tail", 8)):
            if name in function.__kwdefaults__:
                monkeypatch.setitem(function.__kwdefaults__, name, size)
    for name, size in (("HEAD_BYTES", 10), ("TAIL_BYTES", 8)):
        monkeypatch.setattr(logs, name, size)
        if hasattr(later, name):
            monkeypatch.setattr(later, name, size)


def followed(record):
    got = []
    later.wait(record, print, lambda stream, data: got.append(data))
    return b"".join(got)


@pytest.mark.parametrize("count", [0, 5, 10, 14, 17, 18])
def test_the_output_of_a_run_whose_minder_was_killed_is_followed_from_its_first_byte(runs, tiny_logs, count):
    output = bytes(range(65, 65 + 26))
    record = runs.run(ended=False)
    killed = logs.RunLogs(record.folder, keep=True, say=print)
    killed.write("stdout", output[:count])
    runs.engine.found[record.id] = EndedBox(output)
    got = followed(record)
    assert got == output


def test_a_follower_that_is_slow_gets_nothing_twice(runs, tiny_logs):
    output = bytes(range(33, 33 + 90))
    record = runs.run(ended=False)
    got = []
    kept = logs.RunLogs(record.folder, keep=True, say=print)
    kept.write("stdout", output[:5])
    held = contextlib.ExitStack()

    def write(_stream, data):
        got.append(data)
        if len(got) == 1:
            kept.write("stdout", output[5:60])
        elif len(got) == 2:
            kept.write("stdout", output[60:])
            kept.close()
            shutil.rmtree(record.box_folder)
            end = {"end": "now", "exit_code": 0, "outcome": "exited", "streams": kept.to_json()}
            record.write(record.manifest() | end)
            held.close()

    with held:
        held.enter_context(record.held())
        later.wait(record, print, write)
    seen = [byte for byte in b"".join(got) if byte not in b"\n[reprobox: 0123456789 bytes are left out here]"]
    assert seen == sorted(seen), "out of order, or twice"
    assert len(seen) == len(set(seen))


def test_a_follower_whose_reader_has_gone_ends(runs):
    record = runs.run(ended=False)
    kept = logs.RunLogs(record.folder, keep=True, say=print)
    reader, writer = os.pipe()
    os.close(reader)
    saved = os.dup(1)
    os.dup2(writer, 1)
    done = threading.Event()
    try:
        with record.held():
            kept.write("stdout", b"a line\n")
            thread = threading.Thread(target=lambda: (run_app(["runs", "logs", "-f"]), done.set()), daemon=True)
            thread.start()
            ended = done.wait(2)
            record.write(record.manifest() | {"end": "now", "exit_code": 0, "outcome": "exited"})
            shutil.rmtree(record.box_folder)
        thread.join(5)
    finally:
        os.dup2(saved, 1)
        for descriptor in (saved, writer):
            os.close(descriptor)
    assert ended, "it went on until the run ended"
