"""What lets an engine hand out GPUs that are not there: a stand-in for NVIDIA's runtime hook, and for its CDI devices.

A Docker Engine whose PATH has the hook's name on it takes device requests in earnest, and has runc start the hook with
the box's configuration. A CDI specification is the real thing, of devices that are copies of /dev/null.
"""

from __future__ import annotations

import json
import os
import secrets
import stat
import sys
from pathlib import Path

HOOK = "nvidia-container-runtime-hook"
CUDA_TAG = "reprobox-small-cuda:1"

_SCRIPT = """\
#!{python} -IS
import json, os, sys
state = json.load(sys.stdin)
with open(os.path.join(state["bundle"], "config.json")) as file:
    config = json.load(file)
said = {{"arguments": sys.argv[1:], "state": state, "config": config}}
with open({calls!r}, "a") as file:
    file.write(json.dumps(said) + "\\n")
if os.path.exists({failing!r}):
    sys.exit(open({failing!r}).read())
"""


class StandInHook:
    """A program called as NVIDIA's, in ``folder``, that writes down what it is given and does nothing else."""

    def __init__(self, folder):
        self.folder = folder
        self._calls, self._failing = folder / "calls", folder / "failing"
        program = folder / HOOK
        program.write_text(_SCRIPT.format(python=sys.executable, calls=str(self._calls), failing=str(self._failing)))
        program.chmod(0o755)

    @property
    def variables(self):
        """What the environment of a daemon has that is to find it."""
        return {"PATH": f"{self.folder}:{os.environ['PATH']}"}

    def calls(self):
        """What it was given since the last time this was asked: arguments, the OCI state, the box's configuration."""
        lines = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def fail(self, message):
        """Have it write this on its standard error and exit with 1, until :meth:`mend`."""
        self._failing.write_text(message)

    def mend(self):
        self._failing.unlink(missing_ok=True)


def environment_of(call):
    """Return the environment that the box of a hook's call was to have."""
    return dict(entry.split("=", 1) for entry in call["config"]["process"]["env"])


class StandInCdi:
    """A CDI specification of two GPUs and a MIG instance, where engines look for it, until the ``with`` block ends.

    UUIDs are new each time: specifications of several test sessions lie side by side, and beside a machine's own.
    """

    FOLDER = Path("/run/cdi")

    def __init__(self):
        self.mark = secrets.token_hex(4)
        self.gpus = tuple(f"GPU-{self.mark}-0000-4000-8000-00000000000{i}" for i in range(2))
        self.mig = f"MIG-{self.mark}-0000-5000-8000-000000000000"
        self.path = self.FOLDER / f"reprobox-{self.mark}.json"

    def node(self, uuid):
        """Return the device node that stands for a GPU, on this machine and in a box."""
        return f"/dev/reprobox-{self.mark}-{[*self.gpus, self.mig].index(uuid)}"

    def __enter__(self):
        self.FOLDER.mkdir(exist_ok=True)
        for uuid in (*self.gpus, self.mig):
            os.mknod(self.node(uuid), stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.chmod(self.node(uuid), 0o666)
        self.path.write_text(json.dumps(self.specification()))
        self.path.chmod(0o644)
        return self

    def __exit__(self, *_):
        self.path.unlink()
        for uuid in (*self.gpus, self.mig):
            os.unlink(self.node(uuid))

    def specification(self):
        """As ``nvidia-ctk cdi generate --device-name-strategy=uuid`` writes it, and with what tells that it was heeded."""
        devices = [
            {"name": uuid, "containerEdits": {"deviceNodes": [{"path": self.node(uuid)}]}}
            for uuid in (*self.gpus, self.mig)
        ]
        edits = {
            "env": [f"OF_THE_SPECIFICATION={self.mark}", "NVIDIA_VISIBLE_DEVICES=void"],
            "mounts": [
                {
                    "hostPath": str(self.path),
                    "containerPath": "/opt/of-the-specification",
                    "options": ["ro", "nosuid", "nodev", "bind"],
                }
            ],
        }
        return {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": edits}
