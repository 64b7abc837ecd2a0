"""GPUs made up for ``reprobox gpus``, who has them, and what a person is shown of them."""

from __future__ import annotations

import io
import threading

from rich.console import Console

from reprobox.cli.gpus_table import rendered, state_words
from reprobox.engines.fake import FakeEngine
from reprobox.gpus import Gpu, GpuProcess, Inventory, MigInstance
from reprobox.gpus.claims import Holder
from reprobox.runs.gpu_overview import Overview

GIB = 1 << 30
RUN = "20261121T055558.158-fe4a"


def uuid(index):
    return f"GPU-{index:08x}-0000-4000-8000-000000000000"


def mig_uuid(index, place):
    return f"MIG-{index:08x}-0000-5000-8000-00000000000{place}"


def gpu(index=0, **fields):
    given = {
        "uuid": uuid(index),
        "name": "NVIDIA H100 80GB HBM3",
        "mig": False,
        "bus_id": f"00000000:{index + 1:02X}:00.0",
        "memory_total_bytes": 80 * GIB,
        "memory_used_bytes": GIB // 2,
        "persistence_mode": True,
        "compute_mode": "Default",
    }
    return Gpu(index=index, **{**given, **fields})


def process(pid=7, **fields):
    given = {"kind": "compute", "user": "alice", "command": "/usr/bin/python3 train.py", "memory_bytes": GIB}
    return GpuProcess(pid=pid, **{**given, **fields})


def instance(index, place, **fields):
    return MigInstance(uuid=mig_uuid(index, place), profile="1g.10gb", memory_total_bytes=10 * GIB, **fields)


def holder(*uuids, **fields):
    return Holder(**{"run": RUN, "gpus": uuids, "user": "alice", **fields})


def overview(*gpus, holders=(), environment=None, **fields):
    return Overview.of(Inventory(gpus=gpus, driver="550.54.15", cuda="12.4", **fields), holders, environment or {})


def drawn(found, width=100, **options):
    file = io.StringIO()
    Console(file=file, width=width).print(rendered(found, width=width, **options))
    return file.getvalue()


def words(found):
    return [state_words(state)[1] for state in found.gpus]


class EngineOfBoxes(FakeEngine):
    """An engine that answers when it is let."""

    def __init__(self, *boxes):
        super().__init__()
        self.boxes_told, self.asked = boxes, 0
        self.error, self.open = None, threading.Event()
        self.open.set()

    def gpu_boxes(self):
        self.asked += 1
        self.open.wait(30)
        if self.error is not None:
            raise self.error
        return self.boxes_told
