"""``reprobox gpus`` as it is read: its document and its table, on a machine whose GPUs no other test claims."""

from __future__ import annotations

import json
import os
import pwd
import secrets

NOT_LOADED = 9
"""What NVML answers where the driver is not loaded."""

ME = pwd.getpwuid(os.getuid()).pw_name


def with_uuids_of_its_own(driver):
    """Claims are the machine's: those of other tests on the same UUIDs must not be seen here."""
    mark = secrets.token_hex(3)
    for i, gpu in enumerate(driver.gpus):
        gpu.uuid = f"GPU-{i:02x}{mark}-0000-4000-8000-00000000000{i}"
    return driver


def told(cli, *flags, **options):
    done = cli.reprobox("gpus", "--json", *flags, **options)
    assert done.stderr == ""
    document = json.loads(done.stdout)
    assert document["schema"] == "reprobox.gpus/1"
    return document


def states(text):
    """The last column, of each line that has one of a GPU's."""
    words = ("free", "claimed", "busy", "divided", "unusable")
    found = [next((line.find(f"  {word}") for word in words if f"  {word}" in line), -1) for line in text.splitlines()]
    return [line[at:].strip() for line, at in zip(text.splitlines(), found, strict=True) if at >= 0]
