"""The machine around the engine: memory for workers, clock, folders, git, buildx, Python, the book of GPU claims."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import reprobox.git
from reprobox.doctor.check import Finding, Verdict, fail, ok, skipped, warn
from reprobox.doctor.gpu import judge_cuda
from reprobox.errors import ReproboxError, UsageError
from reprobox.folders import cache_folder
from reprobox.git import Checkout, ask_git
from reprobox.gpus.inventory import Gpu, Inventory
from reprobox.host_programs import host_environment
from reprobox.project import Project
from reprobox.runs.plan import default_shm_bytes
from reprobox.sizes import human_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reprobox.doctor.patient import Patient

__all__ = [
    "cache",
    "claims",
    "clock",
    "end_python",
    "git",
    "judge_clock",
    "judge_git",
    "judge_python",
    "judge_shm",
    "project",
    "python",
    "shm",
]

LEAST_SHM_BYTES = 1 << 30
"""Docker's default of 64 MiB is known to be too little for data loaders and NCCL; a GiB serves most trainings."""
LEAST_CACHE_BYTES = 1 << 30
APART_SECONDS = 60
"""By how much the engine's clock may differ: a registry's token or certificate is refused beyond some minutes."""
GIT_SECONDS = 4.0
_PROBE = """
import sys

# The current folder, which `-c` puts on the path: what lies there is the project's.
sys.path[:] = [path for path in sys.path if path]
import json, torch
# A line of its own, whatever was said before it.
print("\\n" + json.dumps([torch.__version__, torch.version.cuda]), flush=True)
"""
_SHM = Path("/dev/shm")  # noqa: S108  # it is looked at, and nothing is put there
_UNSYNCHRONISED_MICROSECONDS = 16_000_000
"""From this error on the kernel itself says that the clock is not kept (STA_UNSYNC): adjtimex(2)."""
_FIRST_RELEASE = 2025


def shm(patient: Patient) -> Finding:
    """Look at the memory by which data loaders and NCCL hand over tensors."""
    asked: int | None = patient.settings.value("shm_size")
    boxes = patient.engine is not None and patient.engine.isolates
    size = None
    if _SHM.is_dir() and os.access(_SHM, os.W_OK | os.X_OK):
        there = os.statvfs(_SHM)
        size = there.f_blocks * there.f_frsize
    return judge_shm(asked or default_shm_bytes() if boxes else None, size, 2 * default_shm_bytes())


def judge_shm(box: int | None, host: int | None, memory: int) -> Finding:
    """Judge sizes in bytes: a box's /dev/shm (``None``: there are no boxes), this machine's (``None``: none to use)."""
    larger = "mount it larger: `mount -o remount,size=50% /dev/shm` as root"
    here = "this machine has no /dev/shm to write to" if host is None else f"this machine's has {human_size(host)}"
    if box is None and host is None:
        return fail(here, "mount a tmpfs there with mode 1777: data loaders with workers need it")
    seen = here if box is None else f"a box has {human_size(box)}, {here}"
    if box is not None and box < LEAST_SHM_BYTES:
        return warn(f"{seen}: too little for most data loaders", "give --shm-size 1g or more")
    if box is not None and box > memory:
        return warn(f"{seen}, and all of its memory is {human_size(memory)}", "give a smaller --shm-size")
    if host is None or host < LEAST_SHM_BYTES:
        whose = "" if box is None else ", which --ipc host and --engine local use"
        return warn(f"{seen}{whose}: too little for most data loaders", larger)
    return ok(seen)


def clock(patient: Patient) -> Finding:
    """Look whether the clock is right, as far as that can be told without asking anybody else."""
    said = patient.facts.said.get("SystemTime") if patient.facts is not None else None
    return judge_clock(datetime.now(UTC), _moment(said), _kernels_error())


def judge_clock(now: datetime, engines: datetime | None, error: int | None) -> Finding:
    """Judge the time against the engine's, and the kernel's own estimate of its error in microseconds."""
    seen = f"{now:%Y-%m-%d %H:%M} UTC"
    right = "set it: `timedatectl set-ntp true`, or `date` as root"
    if not _FIRST_RELEASE <= now.year < _FIRST_RELEASE + 50:
        return fail(f"{seen} cannot be now: certificates are refused, and runs are recorded out of order", right)
    if engines is not None and (apart := abs((engines - now).total_seconds())) > APART_SECONDS:
        return warn(
            f"{seen}, and the engine's clock is {apart:.0f} s away: times in records will not agree",
            "set the clock that is wrong; restarting Docker Desktop sets its own",
        )
    if error is not None and error >= _UNSYNCHRONISED_MICROSECONDS:
        return warn(f"{seen}; the kernel knows of nothing that keeps it right (NTP)", "run chrony or systemd-timesyncd")
    return ok(f"{seen}" if error is None else f"{seen}, kept right by NTP")


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text)[:19])
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if str(text).endswith("Z") else None


def _kernels_error() -> int | None:
    """Return the largest error that the kernel says its clock has, in microseconds (``struct timex.maxerror``)."""
    answer = (ctypes.c_long * 64)()  # modes (none: ask alone), offset, freq, maxerror
    try:
        if ctypes.CDLL(None).adjtimex(ctypes.byref(answer)) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return int(answer[3])


def cache(patient: Patient) -> Finding:
    """Look whether certificates, compiled kernels and downloads can be kept."""
    del patient
    return _writable(cache_folder(), "set XDG_CACHE_HOME to a folder of your own")


def project(patient: Patient) -> Finding:
    """Look whether runs can be recorded in the project."""
    try:
        folder = Project.find(patient.directory).root / ".reprobox" / "runs"
    except UsageError as error:
        return warn(f"{error.message}: no run can be made from here", error.remedy)
    return _writable(folder, "change into a folder of your own, or let its owner give you the right to write there")


def _writable(folder: Path, remedy: str) -> Finding:
    """Try to write to ``folder`` as it is, or say whether it could be made; nothing stays there."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    try:
        if there == folder:
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"x")
        elif not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        elif not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        state = os.statvfs(there)
    except OSError as error:
        seen = f"{folder} cannot be written to" if there == folder else f"{folder} cannot be made in {there}"
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return fail(f"{seen} ({error.strerror})", "make room on that disk" if full else remedy)
    free = state.f_bavail * state.f_frsize
    if free < LEAST_CACHE_BYTES:
        return warn(f"{folder}, {human_size(free)} free", "make room on that disk")
    return ok(f"{folder}, {human_size(free)} free")


def git(patient: Patient) -> Finding:
    """Look whether a run can record the commit that it was made of."""
    try:
        root = Project.find(patient.directory).root
    except UsageError:
        return skipped("there is no project here")
    if not (root / ".git").exists():
        return skipped(f"{root} is no git checkout, so that runs record no commit")
    return judge_git(str(root), ask_git(root, seconds=GIT_SECONDS) or Checkout())


def judge_git(root: str, checkout: Checkout) -> Finding:
    """Judge what git tells of the checkout ``root``."""
    match checkout.reason:
        case None:
            return ok(f"{root} at {(checkout.commit or 'no commit yet')[:13]}")
        case reprobox.git.NO_GIT:
            return warn(f"there is no git, so that runs in {root} record no commit", "install git")
        case reprobox.git.TOO_LONG:
            return warn(
                f"git has not told the state of {root} after {GIT_SECONDS:g} s; each run waits for it, half a minute at "
                "most, and then does not record whether files differ from the commit",
                "see what `git status` waits for: `git update-index --untracked-cache` helps large checkouts",
            )
    lacks = "no commit" if checkout.commit is None else "the commit, and not whether files differ from it"
    return warn(
        f"git cannot tell the state of {root}, so that runs record {lacks} ({checkout.reason})",
        "see what `git status` says",
    )


def python(patient: Patient) -> Finding:
    """Look whether the Python that --engine local finds has a torch that loads, and fits this machine."""
    program = shutil.which("python")
    if program is None:
        return judge_python(None, 0, "")
    driver = patient.inventory.driver if patient.inventory is not None and patient.gpus else None
    # A session of its own, so that what a wrapper has started goes with it.
    with subprocess.Popen(
        (program, "-c", _PROBE),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**host_environment(), "PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"},
        start_new_session=True,
    ) as patient.python:
        said, _ = patient.python.communicate()
    return judge_python(program, patient.python.returncode, said.decode(errors="replace"), driver=driver)


def end_python(patient: Patient) -> None:
    """End the Python of a check that was given up."""
    if patient.python is not None and patient.python.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(patient.python.pid, signal.SIGKILL)


def judge_python(program: str | None, code: int, said: str, *, driver: str | None = None) -> Finding:
    """Judge a Python by how it ended importing torch, and what it said.

    :param driver: the NVIDIA driver's version, where there are GPUs that a run may have.
    """
    if program is None:
        return warn("there is no python on PATH", "activate the environment that your programs are to run in")
    lines = [line for line in said.splitlines() if line.strip()]
    if code == 0:
        versions = _versions(lines)
        if versions is None:
            return fail(f"{program} ends well and does not say which torch it has", "see what that program is")
        return _judge_torch(program, *versions, driver)
    last = lines[-1].strip() if lines else f"exit code {code}"
    if "No module named 'torch'" in last:
        return warn(f"{program} has no torch", "install torch there, or activate the environment that has it")
    return fail(f"torch does not load in {program} ({last})", "install torch again in that environment")


def _judge_torch(program: str, torch: str, cuda: str | None, driver: str | None) -> Finding:
    if driver is not None and cuda is None:
        return warn(
            f"{program}, torch {torch} computes on the CPU alone, and this machine has GPUs",
            "install a build of torch for CUDA",
        )
    if driver is not None and (finding := judge_cuda(driver, cuda)).verdict is Verdict.FAIL:
        return fail(finding.seen.replace("the image's", f"torch {torch}'s"), finding.remedy)
    return ok(f"{program}, torch {torch} ({f'CUDA {cuda}' if cuda else 'CPU alone'})")


def _versions(lines: Sequence[str]) -> tuple[str, str | None] | None:
    """Return torch's version and its CUDA's from what the probe said; others may speak before it, and at the exit."""
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        match found:
            case [str() as torch, (str() | None) as cuda]:
                return torch, cuda
    return None


def claims(patient: Patient) -> Finding:
    """Look whether runs on this machine can tell one another which GPUs they have, by claiming one that nobody has."""
    del patient
    from reprobox.gpus.claims import Claims
    from reprobox.gpus.shared_folder import machine_folder

    try:
        book = Claims(patience=1.0)
        run_id = f"doctor-{os.getpid()}-{time.time_ns()}"
        none = Gpu(index=0, uuid=f"GPU-{run_id}", name="none")
        book.take(run_id, lambda _holders: (none,), inventory=Inventory()).release()
        count = len(book.holders())
    except ReproboxError as error:
        return fail(f"{error.message}, so that two runs may get the same", error.remedy)
    return ok(f"{machine_folder()}, {count} run{'' if count == 1 else 's'} with GPUs now")
