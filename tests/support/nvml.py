"""A stand-in for the NVIDIA driver's library: ``nvml.c``, compiled, and told here what it is to answer.

The real nvidia-ml-py loads it as it loads NVIDIA's own. In a process of its own::

    subprocess.run([...], env={**os.environ, **standin_nvml.environment()})

and in a test that may start no process, a child that is forked off::

    standin_nvml.gpus[3].fail = {"*": 15}
    inventory = standin_nvml.inventory(details=True)
"""

from __future__ import annotations

import copy
import ctypes
import functools
import os
import pickle
import re
import shutil
import subprocess
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from reprobox.gpus import take_inventory

SOURCE = Path(__file__).with_name("nvml.c")
SONAME = "libnvidia-ml.so.1"
GIB = 1 << 30

LOST = 15

FUNCTIONS = frozenset(re.findall(r"^(?:int |SMALL\(|PROCESSES\()(nvml\w+)", SOURCE.read_text(), re.MULTILINE))
"""What the stand-in exports; ``nvmlInit_v2`` in ``fail`` stands for every way to initialise it."""

OLD_DRIVER = frozenset(
    {
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetGraphicsRunningProcesses_v3",
        "nvmlDeviceGetNvLinkRemoteDeviceType",
        "nvmlDeviceGetTemperatureV",
    }
)
"""Functions that NVML got after MIG came: a driver of 2020, for A100."""

ANCIENT_DRIVER = OLD_DRIVER | {
    "nvmlDeviceGetAttributes_v2",
    "nvmlDeviceGetComputeRunningProcesses_v2",
    "nvmlDeviceGetGraphicsRunningProcesses_v2",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetMigDeviceHandleByIndex",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetNvLinkRemotePciInfo_v2",
    "nvmlSystemGetCudaDriverVersion_v2",
}
"""With those that came with MIG, or shortly before: a driver of 2017, for V100."""

# Unit tests refuse to start processes, by putting something else in its place; a compiler is what they may start.
_Popen = subprocess.Popen


@dataclass
class StandInProcess:
    """A process that has memory of a GPU; ``memory`` in bytes, ``None`` where the driver does not tell it."""

    pid: int
    memory: int | None = GIB
    kind: str = "compute"


@dataclass
class StandInMig:
    """A MIG instance. With ``named=False`` its name says nothing of its profile, as older drivers have it."""

    uuid: str
    profile: str = "1g.10gb"
    memory_total: int | None = 10 * GIB
    memory_used: int | None = 0
    slices: tuple[int, int] = (1, 1)
    gpu_instance: int = 7
    compute_instance: int = 0
    place: int = 0
    named: bool = True
    processes: list[StandInProcess] = field(default_factory=list)
    fail: dict[str, int] = field(default_factory=dict)


@dataclass
class StandInGpu:
    """A GPU. ``None`` is a question that it does not support; memory in bytes, power in milliwatts.

    ``ecc`` and ``mig_mode`` are pairs: what is, and what will be after the next reset. ``nvlinks`` are tuples of link
    number, whether it is up, the bus id of what is at its other end (``None``: not told), and that one's type (0 GPU,
    2 switch). ``ancestors`` maps other GPUs' bus ids to ``NVML_TOPOLOGY_*`` levels. ``fail`` maps functions to codes;
    ``"*"`` is every function, and a function named beside it goes first, with code 0 for none.
    """

    uuid: str | None
    bus: str | None
    name: str | None = "NVIDIA H100 80GB HBM3"
    memory_total: int | None = 80 * GIB
    memory_used: int | None = GIB // 2
    utilization: int | None = 0
    temperature: int | None = 30
    fan: int | None = None
    power: int | None = 70_500
    power_limit: int | None = 700_000
    pstate: int | None = 0
    persistence: int | None = 1
    ecc: tuple[int, int] | None = (1, 1)
    ecc_errors: int | None = 0
    compute_mode: int | None = 0
    mig_mode: tuple[int, int] | None = (0, 0)
    mig: list[StandInMig] = field(default_factory=list)
    most_instances: int = 7
    display_active: int | None = 0
    processes: list[StandInProcess] = field(default_factory=list)
    nvlinks: list[tuple[int, int, str | None, int]] = field(default_factory=list)
    ancestors: dict[str, int] = field(default_factory=dict)
    fail: dict[str, int] = field(default_factory=dict)


BUSES = tuple(f"00000000:{bus}:00.0" for bus in ("1B", "43", "52", "61", "9D", "C3", "D1", "DF"))


def eight_gpus():
    """Eight H100, each linked by four NVLinks to every other of its half; a processor has four of them.

    UUIDs differ in their first digit, which is the index.
    """
    gpus = []
    for i, bus in enumerate(BUSES):
        half = [j for j in range(8) if j // 4 == i // 4 and j != i]
        gpus.append(
            StandInGpu(
                uuid=f"GPU-{i}a1b2c3d-0000-4000-8000-00000000000{i}",
                bus=bus,
                temperature=30 + i,
                nvlinks=[(4 * at + n, 1, BUSES[j], 0) for at, j in enumerate(half) for n in range(4)],
                ancestors={BUSES[j]: 40 if j in half else 50 for j in range(8) if j != i},
            )
        )
    return gpus


def switched(gpus, links=18):
    """The same GPUs, each with all its links in a switch, as in a HGX board."""
    gpus = copy.deepcopy(gpus)
    for gpu in gpus:
        gpu.nvlinks = [(n, 1, f"00000000:0{n % 4 + 5}:00.0", 2) for n in range(links)]
    return gpus


def sliced(gpu, *profiles, **fields):
    """Turn the GPU's MIG mode on, with an instance for each profile (``"1g.10gb"``); its UUID ends in its number."""
    gpu.mig_mode = (1, 1)
    gpu.utilization = None
    for at, profile in enumerate(profiles):
        of_gpu, gigabytes = (int(number) for number in re.fullmatch(r"(\d)g\.(\d+)gb", profile).groups())
        gpu.mig.append(
            StandInMig(
                uuid=f"MIG-{gpu.uuid[4:12]}-0000-5000-8000-00000000000{at}",
                profile=profile,
                memory_total=gigabytes * GIB,
                slices=(of_gpu, of_gpu),
                gpu_instance=7 + at,
                place=at,
                **fields,
            )
        )
    return gpu


def busy(gpu, *pids, memory=8 * GIB):
    """Have these processes compute on the GPU."""
    gpu.processes += [StandInProcess(pid=pid, memory=memory) for pid in pids]
    gpu.memory_used = GIB // 2 + memory * len(pids)
    gpu.utilization = 98
    gpu.power = 640_000
    return gpu


def lost(gpu):
    """Let the GPU fall off the bus."""
    gpu.fail["*"] = LOST
    return gpu


class StandIn:
    """The driver: what the library answers from the next ``nvmlInit`` on, everywhere :meth:`environment` was given.

    :param folder: for its state file; made if it is not there.
    :param without: functions that the library does not have at all (:data:`OLD_DRIVER`).

    Change ``gpus``, ``fail`` (of every GPU, or of none), ``trace`` and the versions, then call :meth:`write`, :meth:`environment`
    or :meth:`within`: each of them writes the state, in one piece, so that it can be changed beside running readers.
    """

    def __init__(self, folder, gpus=None, *, without=frozenset()):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state = self.folder / "state"
        self.trace = False
        self.traced = self.folder / "calls"
        self.gpus = eight_gpus() if gpus is None else gpus
        self.driver = "550.54.15"
        self.cuda = 12040
        self.fail = {}
        self.without = frozenset(without)
        self.references = None

    @property
    def library(self):
        return build(self.without) / SONAME

    def environment(self):
        """What a process needs to find the library and its state."""
        self.write()
        return {"LD_LIBRARY_PATH": str(self.library.parent), "STANDIN_NVML": str(self.state)}

    def write(self):
        lines = ["nvml 12.550.54.15", *_lines({"driver": self.driver, "cuda": self.cuda})]
        lines += [f"trace {self.traced}"] if self.trace else []
        lines += _failures(self.fail)
        for gpu in self.gpus:
            lines += _gpu_lines(gpu)
        fresh = self.state.with_name(f"state.{os.getpid()}")
        fresh.write_text("".join(f"{line}\n" for line in lines), errors="surrogateescape")
        fresh.replace(self.state)

    def within(self, function, *arguments, **keywords):
        """Return what ``function`` returns in a child that is forked off, where this library is the driver's.

        No process forgets a library it has loaded, nor reads LD_LIBRARY_PATH again; so each question has its own.
        What the library was left with is in ``references`` afterwards: 0 when each ``nvmlInit`` had its shutdown.
        """
        environment, library = self.environment(), self.library
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            try:
                os.environ.update(environment)
                # The loader answers a later request for the name with what bears it already.
                loaded = ctypes.CDLL(str(library))
                ours = ctypes.CDLL(SONAME)._handle == loaded._handle
                assert ours, "another libnvidia-ml.so.1 is loaded in this process"
                answer = (None, function(*arguments, **keywords), loaded.standin_references())
            except BaseException:
                answer = (traceback.format_exc(), None, None)
            with open(writer, "wb") as pipe:
                pipe.write(pickle.dumps(answer))
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as pipe:
            said = pipe.read()
        os.waitpid(child, 0)
        assert said, "the child ended without an answer"
        failed, answer, self.references = pickle.loads(said)
        if failed:
            pytest.fail(failed)
        return answer

    def inventory(self, *, details=False):
        """Take reprobox's inventory, and see that NVML was shut down."""
        inventory = self.within(take_inventory, details=details)
        assert self.references == 0, "NVML was not shut down"
        return inventory

    def calls(self):
        """Names of the functions called since ``trace`` was set, or since this was asked last, in order."""
        called = self.traced.read_text().split() if self.traced.exists() else []
        self.traced.unlink(missing_ok=True)
        return called


def build(without=frozenset()):
    """Return the folder that holds the compiled library; skipped where there is no C compiler."""
    assert without <= FUNCTIONS, f"nvml.c has no {sorted(without - FUNCTIONS)}"
    return _build(frozenset(without))


@functools.cache
def _build(without):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler for the stand-in NVML: apt-get install gcc libc6-dev")
    folder = Path(_folder().name) / str(_build.cache_info().misses)
    folder.mkdir()
    exports = folder / "exports"
    exports.write_text("{ global: *; local: " + "".join(f"{name}; " for name in sorted(without)) + "};\n")
    options = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}"]
    options += [f"-Wl,--version-script={exports}"] if without else []
    command = [compiler, *options, "-o", folder / SONAME, SOURCE]
    process = _Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    said, _ = process.communicate()
    assert process.returncode == 0, said.decode()
    return folder


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="reprobox-nvml-")


def _gpu_lines(gpu):
    yield "gpu"
    names = ("uuid", "bus", "name", "memory_total", "memory_used", "temperature", "fan", "power", "power_limit")
    names += ("pstate", "persistence", "ecc", "ecc_errors", "compute_mode", "mig_mode", "display_active")
    yield from _lines({name: getattr(gpu, name) for name in names})
    yield from _lines({"utilization": None if gpu.utilization is None else (gpu.utilization, 0)})
    yield from _lines({"most_instances": None if gpu.mig_mode is None else gpu.most_instances})
    for link, up, bus, kind in gpu.nvlinks:
        yield f"nvlink {link} {up} {kind} {bus or '-'}"
    for bus, level in gpu.ancestors.items():
        yield f"ancestor {bus} {level}"
    yield from _processes(gpu.processes)
    yield from _failures(gpu.fail)
    for instance in gpu.mig:
        yield "mig"
        yield from _lines({"name": f"{gpu.name} MIG {instance.profile}" if instance.named else gpu.name})
        names = ("uuid", "memory_total", "memory_used", "slices", "gpu_instance", "compute_instance", "place")
        yield from _lines({name: getattr(instance, name) for name in names})
        yield from _processes(instance.processes)
        yield from _failures(instance.fail)


def _lines(fields):
    for name, value in fields.items():
        if value is not None:
            yield f"{name} " + (" ".join(map(str, value)) if isinstance(value, tuple) else str(value))


def _processes(processes):
    for process in processes:
        assert process.kind in {"compute", "graphics"}
        yield f"process {process.kind} {process.pid} {-1 if process.memory is None else process.memory}"


def _failures(failures):
    for function, code in failures.items():
        assert function == "*" or function in FUNCTIONS, f"nvml.c has no {function}"
        yield f"fail {function} {code}"
