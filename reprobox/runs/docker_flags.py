"""The text of Docker's own flags turned into plain data, with Docker's meaning."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

from reprobox.engines.base import BoxOptions, Device, Port, Ulimit
from reprobox.errors import BoxError, UsageError, near_miss
from reprobox.limits import default_processes
from reprobox.runs.options import checked_text
from reprobox.sizes import parse_size

__all__ = ["DOCKER_FLAGS", "DockerFlag", "parse_options", "parse_user"]

T = TypeVar("T")

MOST_PIDS = 4194304  # the kernel's PID_MAX_LIMIT
MOST_CPUS = 8192
LEAST_MEMORY = 6 << 20
HIGHEST_ID = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class DockerFlag:
    """A flag of ``docker run`` that ``reprobox run`` takes; one without ``metavar`` is a switch."""

    names: tuple[str, ...]
    metavar: str | None
    many: bool = False
    help: str


DOCKER_FLAGS: tuple[DockerFlag, ...] = (
    DockerFlag(names=("--mount",), metavar="SPEC", many=True, help="type=bind,source=PATH,target=PATH[,readonly]."),
    DockerFlag(names=("--tmpfs",), metavar="PATH[:OPTIONS]", many=True, help="Folder in memory: /scratch:size=8g."),
    DockerFlag(names=("-u", "--user"), metavar="UID[:GID]", help="User in the box, by number; you by default."),
    DockerFlag(names=("-m", "--memory"), metavar="SIZE", help="Limit of memory, such as 8g."),
    DockerFlag(names=("--cpus",), metavar="NUMBER", help="Limit of CPU time, such as 2.5 cores' worth."),
    DockerFlag(names=("--cpuset-cpus",), metavar="CORES", help="The cores to run on, such as 0-3,7."),
    DockerFlag(
        names=("--pids-limit",),
        metavar="NUMBER",
        help="Limit of processes (32768 at most), or -1 for none.",
    ),
    DockerFlag(names=("--ulimit",), metavar="NAME=SOFT[:HARD]", many=True, help="A limit of each process; -1 is none."),
    DockerFlag(names=("--ipc",), metavar="MODE", help="private (default), shareable, host or none."),
    DockerFlag(
        names=("-p", "--publish"), metavar="[HOST:]PORT", many=True, help="Reach a port of the box from outside."
    ),
    DockerFlag(names=("--hostname",), metavar="NAME", help="The box's host name."),
    DockerFlag(names=("--add-host",), metavar="NAME:ADDRESS", many=True, help="A line of the box's /etc/hosts."),
    DockerFlag(
        names=("--device",), metavar="SOURCE[:TARGET]", many=True, help="Give the box a device of this machine."
    ),
    DockerFlag(
        names=("--group-add",), metavar="GROUP", many=True, help="One more group, by number or the image's name."
    ),
    DockerFlag(
        names=("--cap-add",), metavar="NAME", many=True, help="A capability for the box's root (-u 0); none by default."
    ),
    DockerFlag(names=("--cap-drop",), metavar="NAME", many=True, help="Accepted; all are dropped anyway."),
    DockerFlag(names=("--platform",), metavar="OS/ARCH", help="Platform of the image, such as linux/arm64."),
    DockerFlag(names=("-l", "--label"), metavar="KEY[=VALUE]", many=True, help="A label of the container."),
    DockerFlag(names=("--stop-timeout",), metavar="SECONDS", help="Time between TERM and KILL when it is stopped."),
)
"""What ``reprobox run`` takes as ``docker run`` does, beside the flags that reprobox declares for itself."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CAPABILITIES = _words(
    "AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE DAC_READ_SEARCH "
    "FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN "
    "NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT "
    "SYS_CHROOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM"
)  # capabilities(7)
_OPEN_THE_BOX = {
    "ALL": "give the box the whole machine",
    "AUDIT_CONTROL": "let it silence the machine's audit log",
    "BPF": "let it put programs into the machine's kernel",
    "DAC_READ_SEARCH": "let it open every file of the machine",
    "MAC_ADMIN": "let it change the machine's security policy",
    "MAC_OVERRIDE": "let it override the machine's security policy",
    "SYS_ADMIN": "give the box the whole machine",
    "SYS_BOOT": "let it restart the machine",
    "SYS_MODULE": "let it load code into the machine's kernel",
    "SYS_RAWIO": "let it write to the machine's memory",
    "SYS_TIME": "let it set the machine's clock",
}
_LIMITS = _words("core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")
_ARCHITECTURES = _words("386 amd64 arm arm64 loong64 mips64le ppc64le riscv64 s390x")

_PUBLISH = re.compile(
    r"(?:(?:(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<v4>[0-9.]+)):)?(?P<host>[0-9]+(?:-[0-9]+)?)?:)?"
    r"(?P<box>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>(?i:tcp|udp|sctp)))?",
    re.ASCII,  # else a long s would do for the s of sctp
)
_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(?:\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")
_CDI = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*=.+")
_GPU = re.compile(r"nvidia([0-9]+|ctl|-uvm.*|-modeset)")
_THE_MACHINES = re.compile(
    r"((sd|hd|vd|xvd)[a-z]|nvme|ng[0-9]|sg[0-9]|bsg|mmcblk|pmem|mtd|dm-|md[0-9]|loop|nbd|disk|block|mapper|raw).*"
    r"|(k?mem|kmsg|port|nvram|cpu|input|uinput|watchdog[0-9]*|console|tty[0-9]*|vcs.*)(/.*)?"
    r"|(pts|ptmx|shm|mqueue|hugepages|fd)(/.*)?"
)
"""Device names below /dev with which a box could read or write the machine itself."""
_THE_BOXS = _words("console fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero")


def parse_options(flags: Mapping[str, Sequence[str]]) -> BoxOptions:
    """Read the texts given to each flag of :data:`DOCKER_FLAGS`, by its long name without dashes.

    Of a flag that Docker takes once the last counts, as there. ``mount``, ``tmpfs`` and ``user`` are not part of the
    result and are left to their own functions.

    :raises UsageError: for a text that is malformed, out of range, or would let the box out.
    :raises BoxError: for a device that is not there or cannot be read.
    """
    if unknown := flags.keys() - {flag.names[-1].removeprefix("--") for flag in DOCKER_FLAGS}:
        raise ValueError(f"not in DOCKER_FLAGS: {sorted(unknown)}")

    def each(name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        return tuple(parse(checked_text(text, f"--{name}")) for text in flags.get(name, ()))

    def last(name: str, parse: Callable[[str], T]) -> T | None:
        values = each(name, parse)
        return values[-1] if values else None

    dropped = each("cap-drop", lambda text: _capability(text, "--cap-drop"))
    added = tuple(dict.fromkeys(each("cap-add", _added_capability)))
    if both := set(added) & set(dropped):
        raise UsageError(f"--cap-add and --cap-drop both name {min(both)}", remedy="give it to one of them")
    pids = last("pids-limit", _pids)
    return BoxOptions(
        memory_bytes=last("memory", _memory),
        cpus=last("cpus", _cpus),
        cpuset=last("cpuset-cpus", _cpuset),
        pids_limit=default_processes() if pids is None else pids,
        ulimits=tuple({limit.name: limit for limit in each("ulimit", _ulimit)}.values()),
        devices=each("device", _device),
        groups=tuple(dict.fromkeys(each("group-add", _group))),
        ports=tuple(dict.fromkeys(port for ports in each("publish", _ports) for port in ports)),
        hostname=last("hostname", _hostname),
        hosts=_hosts(each("add-host", _host)),
        ipc=last("ipc", _ipc),
        platform=last("platform", _platform),
        cap_add=added,
        labels=dict(each("label", _label)),
        stop_timeout=last("stop-timeout", _stop_timeout),
    )


def parse_user(text: str) -> tuple[int, int | None]:
    """Return the UID, and the GID where one was given, of ``--user UID[:GID]``; ``root`` is 0.

    :raises UsageError: for another name: the box's passwd file does not know it.
    """
    checked_text(text, "--user")
    parts = ["0" if part == "root" else part for part in text.split(":")]
    numbers = [_number(part, 0, HIGHEST_ID) for part in parts]
    if len(numbers) > 2 or None in numbers:
        raise _bad("--user", text, "give numbers, as in --user $(id -u):$(id -g); the box knows no names but root")
    return cast("int", numbers[0]), numbers[1] if len(numbers) == 2 else None


def _bad(flag: str, text: str, remedy: str) -> UsageError:
    return UsageError(f"{flag} cannot be {text!r}", remedy=remedy)


def _number(text: str, low: int, high: int) -> int | None:
    if re.fullmatch(r"-?[0-9]{1,19}", text) and low <= int(text) <= high:
        return int(text)
    return None


def _interval(text: str, low: int, high: int) -> range | None:
    """Return the numbers of ``N`` or ``N-M``, both ends included; ``None`` where it is neither or out of range."""
    first, dash, rest = text.partition("-")
    start = _number(first, low, high)
    end = _number(rest, low, high) if dash else start
    return None if start is None or end is None or end < start else range(start, end + 1)


def _memory(text: str) -> int:
    size = parse_size(text, "--memory")
    if size < LEAST_MEMORY:
        raise _bad("--memory", text, "give 6m, which is the engine's least, or more")
    return size


def _cpus(text: str) -> float:
    if re.fullmatch(r"[0-9]{1,4}(?:\.[0-9]{1,9})?|\.[0-9]{1,9}", text) and 0.01 <= float(text) <= MOST_CPUS:
        return float(text)
    raise _bad("--cpus", text, "give a number from 0.01 up, with nine decimals at most, such as 2.5")


def _cpuset(text: str) -> str:
    if None in [_interval(part, 0, MOST_CPUS - 1) for part in text.split(",")]:
        raise _bad("--cpuset-cpus", text, "give cores and ranges of cores, such as 0-3,7")
    return text


def _pids(text: str) -> int:
    number = _number(text, -1, MOST_PIDS)
    if number is None:
        raise _bad("--pids-limit", text, f"give a number up to {MOST_PIDS}, or -1 for no limit")
    return number or -1  # Docker's 0 is no limit too


def _stop_timeout(text: str) -> int:
    number = _number(text, 0, (1 << 31) - 1)
    if number is None:
        raise _bad("--stop-timeout", text, "give whole seconds from 0 up; a stop that waits for ever is none")
    return number


def _ulimit(text: str) -> Ulimit:
    name, _, limits = text.partition("=")
    if name not in _LIMITS:
        remedy = f"give NAME=SOFT[:HARD] with one of {', '.join(sorted(_LIMITS))}"
        raise UsageError(f"--ulimit {text}: there is no limit {name!r}{near_miss(name, _LIMITS)}", remedy=remedy)
    numbers = [_number(limit, -1, (1 << 63) - 1) for limit in limits.split(":")]
    soft, hard = numbers[0], numbers[-1]
    if len(numbers) > 2 or soft is None or hard is None:
        raise _bad("--ulimit", text, f"give numbers, or -1 for no limit, as in {name}=1024:2048")
    if hard != -1 and (soft == -1 or soft > hard):
        raise UsageError(f"--ulimit {text}: the soft limit is above the hard one", remedy="give SOFT:HARD so")
    return Ulimit(name=name, soft=soft, hard=hard)


def _ports(text: str) -> list[Port]:
    """Read one ``--publish``, a range of ports as so many ports; the two ranges of a pair are equally long."""
    import ipaddress

    match = _PUBLISH.fullmatch(text)
    box = _interval(match["box"], 1, 65535) if match else None
    host = _interval(match["host"], 1, 65535) if match and match["host"] else None
    if match is None or box is None or (match["host"] and host is None):
        raise _bad("--publish", text, "give [[ADDRESS:]HOST_PORT:]PORT[/tcp|udp|sctp], with ports from 1 to 65535")
    if host is not None and len(host) != len(box):
        raise UsageError(f"--publish {text}: the ranges are not equally long", remedy="give as many ports on each side")
    try:
        v6, v4 = match["v6"], match["v4"]
        address = str(ipaddress.IPv6Address(v6)) if v6 else str(ipaddress.IPv4Address(v4)) if v4 else ""
    except ValueError as error:
        remedy = "give one of this machine's, IPv6 in brackets, as in 127.0.0.1:8080:80 or [::1]:8080:80"
        raise UsageError(f"--publish {text}: the address is none ({error})", remedy=remedy) from error
    protocol = cast("Literal['tcp', 'udp', 'sctp']", (match["protocol"] or "tcp").lower())
    return [
        Port(box_port=port, protocol=protocol, host_port=host[index] if host else None, host_address=address)
        for index, port in enumerate(box)
    ]


def _hostname(text: str) -> str:
    if len(text) > 64 or not _HOSTNAME.fullmatch(text):
        raise _bad("--hostname", text, "use letters, digits and inner dashes, with dots between, 64 characters at most")
    return text


def _host(text: str) -> tuple[str, str]:
    """Read ``NAME:ADDRESS`` or, as newer Dockers have it, ``NAME=ADDRESS``; IPv6 may stand in brackets."""
    import ipaddress

    name, address = [*re.split("[:=]", text, maxsplit=1), ""][:2]
    if len(name) > 253 or not _HOSTNAME.fullmatch(name):
        raise UsageError(f"--add-host {text}: {name!r} is no host's name", remedy="give NAME:ADDRESS")
    if address == "host-gateway":
        return name, address
    try:
        if "%" not in address:
            inner = address[1:-1] if re.fullmatch(r"\[.*:.*\]", address) else address
            return name, str(ipaddress.ip_address(inner))
    except ValueError:
        pass
    raise UsageError(
        f"--add-host {text}: {address!r} is no address", remedy="give an IPv4 or IPv6 address, or host-gateway"
    )


def _hosts(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    result: dict[str, str] = {}
    for name, address in pairs:
        if result.setdefault(name, address) != address:
            raise UsageError(f"--add-host gives {name} two addresses", remedy="give each name one address")
    return result


def _ipc(text: str) -> str:
    if text.startswith("container:"):
        raise UsageError(
            f"--ipc {text}: a box does not share memory with a container that the record knows nothing of",
            remedy="run both commands in one box, or use --ipc host",
        )
    if text not in ("private", "shareable", "host", "none"):
        raise _bad("--ipc", text, "give private, shareable, host or none")
    return text


def _platform(text: str) -> str:
    system, _, rest = text.partition("/")
    architecture, slash, variant = rest.partition("/")
    known = architecture in _ARCHITECTURES and (not slash or re.fullmatch(r"v[0-9](?:\.[0-9])?", variant))
    if system != "linux" or not known:
        raise _bad(
            "--platform", text, f"give linux/ARCH or linux/ARCH/VARIANT with {', '.join(sorted(_ARCHITECTURES))}"
        )
    return text


def _label(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key or key.startswith("-") or any(character.isspace() for character in key):
        raise _bad("--label", text, "give KEY or KEY=VALUE, with no space in the key")
    if key.startswith("reprobox."):
        raise UsageError(f"--label {text}: labels that begin with reprobox. are its own", remedy="choose another key")
    return key, value


def _group(text: str) -> str:
    number = _number(text, 0, HIGHEST_ID)
    if number is None and not _GROUP.fullmatch(text):
        raise _bad("--group-add", text, "give a group's number, or a name the image knows")
    return text if number is None else str(number)


def _capability(text: str, flag: str) -> str:
    name = text.upper().removeprefix("CAP_")
    if not text.isascii() or (name not in _CAPABILITIES and name != "ALL"):
        raise UsageError(
            f"{flag} {text}: there is no such capability{near_miss(name, _CAPABILITIES)}",
            remedy="see man 7 capabilities",
        )
    return name


def _added_capability(text: str) -> str:
    name = _capability(text, "--cap-add")
    if name in _OPEN_THE_BOX:
        raise UsageError(f"--cap-add {text} would {_OPEN_THE_BOX[name]}", remedy="leave it out")
    return name


def _device(text: str) -> Device:
    """Read ``SOURCE[:TARGET][:PERMISSIONS]``; the source is resolved, so that no link's name hides what it is."""
    if _CDI.fullmatch(text):
        raise UsageError(f"--device {text} names a device of the engine's registry (CDI)", remedy="use --gpus for GPUs")
    source, *rest = text.split(":")
    modes = rest.pop() if rest and re.fullmatch(r"(?!.*(.).*\1)[rwm]{1,3}", rest[-1]) else "rwm"
    target = posixpath.normpath(rest[0] if rest else source)
    if len(rest) > 1 or not source.startswith("/dev/") or not target.startswith("/dev/"):
        raise _bad("--device", text, "give /dev/NAME[:/dev/NAME][:PERMISSIONS], with permissions out of r, w and m")
    if target.split("/")[2] in _THE_BOXS:
        raise UsageError(f"--device {text}: the box has a {target} of its own", remedy="choose another target")
    path = _checked_device(posixpath.normpath(source), f"--device {text}")
    return Device(source=str(path), target=target, permissions=modes)


def _checked_device(source: str, given: str) -> Path:
    """Return the real device, or folder of devices. :raises UsageError: where one of them gives the machine away."""
    _refuse_the_machines(Path(source), given)
    try:
        path = Path(source).resolve(strict=True)
        members = [member.resolve() for member in (path, *path.rglob("*"))]
        blocks = any(member.is_block_device() for member in members)
        devices = [member for member in members if blocks or member.is_char_device()]
    except (OSError, RuntimeError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise BoxError(f"{given}: {source} cannot be had ({why})", remedy="name a device of this machine") from error
    for member in members:
        _refuse_the_machines(member, given)
    if blocks:
        raise UsageError(f"{given}: a disk would give the box every file on it", remedy="mount a folder of it with -v")
    if not devices:
        raise UsageError(f"{given}: {path} is no device", remedy="mount a file or folder with -v")
    return path


def _refuse_the_machines(path: Path, given: str) -> None:
    name = str(path).removeprefix("/dev/")
    if _GPU.fullmatch(name):
        raise UsageError(f"{given}: which GPUs the box sees has a flag of its own", remedy="use --gpus")
    if name == str(path) or ":" in name or _THE_MACHINES.fullmatch(name):
        raise UsageError(
            f"{given}: with {path} the box could read or write the machine itself",
            remedy="mount a folder with -v, or name a device of one purpose",
        )
