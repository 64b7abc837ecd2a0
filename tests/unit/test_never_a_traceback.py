"""Whatever is typed, set, or written into a project: one sentence with a remedy, a documented code, and no traceback."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import reprobox.cli.run
import reprobox.engines
import reprobox.images
import reprobox.runs.host
import reprobox.runs.later
import reprobox.runs.manifest
from reprobox.cli.app import COMMANDS, run_app
from reprobox.cli.flags import FLAGS
from reprobox.engines import Exit, ImageInfo
from reprobox.engines.fake import FakeEngine, Script
from reprobox.errors import EngineUnavailable
from reprobox.gpus import Gpu, Inventory
from reprobox.images import input_digest, local_tag
from reprobox.runs.manifest import SCHEMA
from reprobox.runs.refused_flags import REFUSED
from reprobox.settings import SETTINGS

EXAMPLES = 5000
GOOD_SHARE = 0.2

# ---------------------------------------------------------------------------------------------- what can be typed

VALID = {
    "seed": ["0", "1", "4294967295"],
    "profile": ["strict", "warn", "fast", "off"],
    "threads": ["1", "1024"],
    "rank_seeds": ["offset", "same"],
    "gpus": ["none"],
    "engine": ["docker", "podman", "local"],
    "image": ["img:1"],
    "pull": ["missing", "always", "never"],
    "secret": ["TOKEN=secret.txt", "HOST_TOKEN"],
    "cache": ["hf", "a.b-c"],
    "volume": ["./data:/data", "./data:/data2:ro", "vol:/vol", "~:/homedir"],
    "env": ["A=1", "A=", "HOST_TOKEN", "MISSING", "KEY=hf_abcdefgh", "A=é\n="],
    "env_file": ["vars.env"],
    "workdir": ["data", "/data", "..", "/"],
    "name": ["box-1", "b0"],
    "shm_size": ["64m", "1g", "1"],
    "network": ["bridge", "none", "host", "my_net"],
    "mount": [
        "type=bind,source=data,target=/m1",
        "type=tmpfs,target=/m2,tmpfs-size=1g",
        "source=vv,target=/m3,readonly",
        'type=bind,"source=data",dst=/m4,ro=false',
    ],
    "tmpfs": ["/scratch", "/scratch2:size=8g,mode=1777"],
    "user": ["0", "1000:1000", "root"],
    "memory": ["6m", "8g"],
    "cpus": ["2.5", ".5"],
    "cpuset_cpus": ["0-3,7"],
    "pids_limit": ["100", "-1"],
    "ulimit": ["nofile=1024:2048", "memlock=-1"],
    "ipc": ["private", "host"],
    "publish": ["8080:80", "127.0.0.1:8000-8001:80-81/udp", "[::1]:1:2"],
    "hostname": ["box", "a.b"],
    "add_host": ["db:10.0.0.1", "g:host-gateway", "v=[::1]"],
    "device": ["/dev/null:/dev/mynull", "/dev/zero:/dev/myzero:r"],
    "group_add": ["video", "44"],
    "cap_add": ["SYS_PTRACE", "cap_net_raw"],
    "cap_drop": ["ALL", "CHOWN"],
    "platform": ["linux/amd64", "linux/arm/v7"],
    "label": ["k=v", "k", "k=é"],
    "stop_timeout": ["0", "5"],
    "input": ["train.py", "data"],
    "output": ["out.bin", "data", "no/such/file"],
}
"""For each option with a value: what it must take."""

BAD = {
    "seed": ["", "-1", "4294967296", "1.0", "9" * 100_000, "١", "0x1"],
    "profile": ["", "strickt", "STRICT"],
    "threads": ["0", "1025", "9" * 100_000],
    "rank_seeds": ["sane"],
    "gpus": ["", "some", "0,0", "-1", "²", "9" * 100_000],
    "engine": ["moby", ""],
    "image": ["", "-rm", "a b", "Img:1", "no:such", "foreign:1", "old:0", "new:9", "words:x", "x" * 100_000],
    "pull": ["", "sometimes"],
    "secret": [
        "",
        "=x",
        "NO_SUCH",
        "T=",
        "T=/no/such",
        "T=\0",
        "T=" + "x" * 300,
        "T=~nobody-at-all/x",
        "T=/dev/zero",
        "T=empty",
        "T=nul",
    ],
    "cache": ["", "../x", "x" * 65, "-x"],
    "volume": [
        *("", ":", "a", "./data:rel", "./no:/x", "./data:/etc", "./data:/", "./data:/a:rx", "a\0b:/x", "./a\0b:/x"),
        *("x" * 300 + ":/x", "./" + "x" * 300 + ":/x", "~nobody-at-all:/x", "data:/x", "/run:/x", "./data:/x\0y"),
        *("./loop:/x", "./data:/x\udcff"),
    ],
    "env": ["", "=x", "1=x", "A B=x", "REPROBOX_SEED=1", "CUDA_VISIBLE_DEVICES=0", "A=\0", "é=1"],
    "env_file": ["", "/no/such", "/dev/zero", "data", "latin.env", "nul.env", "a\0b", "x" * 300],
    "workdir": ["a\0b"],
    "name": ["", "-x", "x", "a b", "é", "a/b"],
    "shm_size": ["", "0", "lots", "-1", "9" * 100_000, "1e9", "9" * 30 + "t"],
    "network": ["", "-x", "a b", "x\0"],
    "mount": [
        *("", "type=bind", "target=/x", "type=npfs,source=a,target=/x", 'type=bind,source="a,target=/x'),
        *(
            "type=bind,source=no,target=/x",
            "type=bind,source=" + "x" * 300 + ",target=/x",
            "type=tmpfs,target=/x,tmpfs-size=a",
        ),
        *("type=bind,source=loop,target=/x", "type=bind,source=~nobody-at-all,target=/x", "source=a b,target=/x", "\n"),
        *('"' * 3, "type=bind,source=" + "x" * 200_000 + ",target=/x"),
    ],
    "tmpfs": ["", "rel", "/etc", "/x:nope", "/x:size=0", "/x\0", "/:size=1g"],
    "user": ["", "nobody", "-1", "1:2:3", "9" * 100_000, "²", ":"],
    "memory": ["", "1m", "-1", "9" * 100_000, "8 g"],
    "cpus": ["", "0", "nan", "inf", "1e2", "9" * 100_000],
    "cpuset_cpus": ["", "3-1", "a", "9" * 100_000, ","],
    "pids_limit": ["", "-2", "9" * 100_000],
    "ulimit": ["", "nofile", "nofile=2:1", "nope=1", "nofile=" + "9" * 100_000, "nofile=1:2:3"],
    "ipc": ["", "container:x", "public"],
    "publish": ["", "0", "65536", "1-2:3", "999.1.1.1:1:1", "[::g]:1:1", "1/ſctp", "9" * 100_000],
    "hostname": ["", "-x", "a b", "x" * 65, "é"],
    "add_host": ["", "a", "a:", "a:1", "a:fe80::1%eth0", "a b:1.1.1.1"],
    "device": [
        "",
        "/dev/sda",
        "null",
        "/dev/no-such",
        "/dev/../etc",
        "/dev/nvidia0",
        "/dev/" + "x" * 300,
        "nvidia.com/gpu=all",
    ],
    "group_add": ["", "-1", "a b", "9" * 100_000],
    "cap_add": ["", "ALL", "SYS_ADMIN", "NOPE"],
    "cap_drop": ["", "NOPE"],
    "platform": ["", "windows/amd64", "linux", "linux/arm/x"],
    "label": ["", "=x", "reprobox.run=1", "a b=c", "k=\0"],
    "stop_timeout": ["", "-1", "1.5", "9" * 100_000],
    "input": ["", ".", "..", "/etc/passwd", "no-such", "a\0b", "x" * 300, "x/" * 3000],
    "output": ["", "..", "/etc/passwd", "a\0b"],
}
"""And what it must refuse."""

JUNK = [
    *(
        "",
        " ",
        "-",
        "--",
        "-1",
        "0",
        "9" * 5000,
        "9" * 100_000,
        "x" * 300,
        "x" * 100_000,
        "x/" * 3000,
        "é",
        "日本",
        "😀",
    ),
    *("\udcff", "a\udc80b", "\0", "a\0b", "\n", "\r\n", "\x1b[31m", "\u2028", "\x7f", "\x85", "\ufeff", "²", "١٢"),
    *(
        "../../../etc",
        "/",
        "/etc/passwd",
        "..",
        ".",
        "~",
        "~nobody-at-all",
        "%s{0}",
        "$(id)",
        "a=b",
        "=",
        ",",
        ":",
        "::",
    ),
    *(
        ";",
        "*",
        "1e9",
        "0x10",
        "nan",
        "true",
        "None",
        '"',
        "'",
        "[",
        "[bold]",
        "[/]",
        "\\",
        "last~1",
        "--seed",
        "-e",
        "/dev/null",
    ),
]
"""What may be given for anything: most of it is wrong almost everywhere."""

SWITCHES = {flag.dest: flag.names for flag in FLAGS if flag.metavar is None}
NAMES = {flag.dest: flag.names for flag in FLAGS if flag.metavar is not None}
MANY = {flag.dest for flag in FLAGS if flag.many}
UNKNOWN = [
    *REFUSED,
    "--nope",
    "--see",
    "-Z",
    "--seed-",
    "---",
    "--no-seed",
    "--fill=x",
    "-é",
    "--\udcff",
    "--x\0",
    "-qZ",
    "-x" * 500,
]

_INTERESTING = [
    "",
    "/nowhere/x",
    "/proc/nowhere",
    "/dev/null",
    "relative",
    ".",
    "~",
    "/",
    "x" * 5000,
    "\udcff",
    "a b",
    "{home}",
    "{root}",
]
_SETTING = {
    s.variable: (VALID.get(s.name, ["on", "off"]), BAD.get(s.name, ["", "yes", "1", "\udcff"])) for s in SETTINGS
}
ENVIRONMENT = {
    **{name: (good, [text for text in bad if "\0" not in text]) for name, (good, bad) in _SETTING.items()},
    "REPROBOX_SEDE": ([], ["1", ""]),
    "REPROBOX_": ([], [""]),
}
"""Variables that are settings: good values, and bad ones that must be refused where nothing stronger is given."""

SURROUNDINGS = {
    "DOCKER_HOST": [
        "",
        "tcp://",
        "unix://",
        "unix:///no/such",
        "ssh://x",
        "http://[::1",
        "nonsense",
        "tcp://h:99999",
        "\udcff",
    ],
    "DOCKER_CONTEXT": ["", "default", "nope", "../../x", "\udcff", "x" * 5000],
    "DOCKER_CONFIG": ["", "/nowhere", "{root}", "{home}"],
    "DOCKER_CLIENT_TIMEOUT": ["", "5", "x", "nan", "-1", "1e999", "9" * 5000, "²"],
    "DOCKER_TLS_VERIFY": ["1"],
    "DOCKER_CERT_PATH": ["/nowhere"],
    "HOME": _INTERESTING,
    "PATH": ["", "/nowhere", "\udcff"],
    "XDG_CACHE_HOME": _INTERESTING,
    "XDG_RUNTIME_DIR": _INTERESTING,
    "XDG_CONFIG_HOME": _INTERESTING,
    "WORLD_SIZE": ["", "1", "2", "0", "-1", "x", "²", "9" * 5000],
    "SLURM_NTASKS": ["", "2", "9" * 100_000],
    "RANK": ["0", "x", "9" * 5000],
    "CUDA_VISIBLE_DEVICES": [
        "",
        "0",
        "1,0",
        "0,0",
        "-1",
        "7",
        "GPU-",
        "GPU-aaaa",
        "²",
        "9" * 5000,
        ",",
        "NoDevFiles",
        "\udcff",
    ],
    "COLUMNS": ["0", "1", "-5", "x", "²", "9" * 100, "9" * 5000],
    "LINES": ["0"],
    "TERM": ["", "dumb", "\udcff"],
    "NO_COLOR": ["", "1"],
    "FORCE_COLOR": ["1"],
    "HOST_TOKEN": ["", "\udcff\udcfe"],
}
"""Everything else a caller's environment may hold."""

# ---------------------------------------------------------------------------------------------- what a project can hold

_TABLE = {
    "seed": "7",
    "profile": '"fast"',
    "threads": "2",
    "fill": "false",
    "network": '"none"',
    "shm-size": '"1g"',
    "quiet": "true",
}
GOOD_TOML = [
    *("", "# nothing\n", "\r\n", 'gpus = "none"'),
    "\n".join(f"{k} = {v}" for k, v in _TABLE.items()),
]
BAD_TOML = [
    *(
        "[tool.reprobox]\nseed = 'x'",
        "tool = 1",
        "seed = '" + "9" * 100_000 + "'",
        "seed =",
        "seed = -1",
        "seed = 1.5",
        "seed = true",
        "seed = []",
        "seed = {}",
        "seed.x = 1",
        "[seed]",
        "[[seed]]",
    ),
    *(
        "seed = 2026-11-21",
        "seed = inf",
        "seed = " + "9" * 5000,
        "seed = 0x" + "f" * 5000,
        "seed = '''\n'''",
        "sede = 1",
        "rank_seeds = 'same'",
        "'' = 1",
    ),
    *(
        "quiet = 1",
        "quiet = 'yes'",
        "fill = []",
        "gpus = [0, 1]",
        "image = 3",
        "image = ''",
        "shm-size = -1",
        "network = false",
    ),
    *(
        "seed = 1\nseed = 2",
        "\0",
        "seed = 1\0",
        "x = " + "[" * 5000,
        "x = " + "[" * 500 + "]" * 500,
        "x" * 100_000,
        "seed = '\x1b'",
    ),
    *(
        "[tool.reprobox]\nseed = 1",
        "shm-size = '" + "9" * 5000 + "'",
        "\ufeffseed = 1",
        'seed = "\\ud800"',
        "a." * 3000 + "b = 1",
    ),
]
PYPROJECT = [
    *(
        "tool = 1",
        "tool = []",
        "tool = 'reprobox'",
        "tool = ['reprobox']",
        "[[tool]]",
        "tool.reprobox = 1",
        "tool.reprobox = 'x'",
    ),
    *(
        "tool.reprobox = []",
        "tool.reprobox = ['seed']",
        "tool.reprobox = true",
        "[[tool.reprobox]]",
        "[tool.reprobox]",
        "[tool]",
    ),
    *("tool.reprobox = 1.5", "tool.reprobox = 2026-11-21", "[tool.reprobox]\nsede = 1", "[tool.reprobox]\nseed = 'x'"),
    *(
        "[tool.reprobox]\nseed = 3",
        "[tool.other]\nx = 1",
        "x = " + "9" * 5000,
        "x = " + "[" * 5000,
        "\0",
        "[",
        "\ufeff",
    ),
    *(f"[tool.reprobox]\n{text}" for text in BAD_TOML[:8]),
]
_RAW = [b"\xff\xfe", b"seed = '\xe9'", b"\xef\xbb\xbfseed = 1", b"\x80" * 1000]

DONE, FAILED, OPEN = "20261121T035544.123-1f3a", "20261121T035545.000-ffff", "20261121T035546.000-0000"


def manifest(run_id, **fields):
    document = {
        "schema": SCHEMA,
        "id": run_id,
        "command": ["train"],
        "project": "{root}",
        "recipe": {"seed": 1},
        "end": "x",
    }
    document |= {
        "engine": {"name": "docker"},
        "outcome": "exited",
        "exit_code": 0,
        "start": "x",
        "outputs": {},
        "options": {},
    }
    return {**document, **fields}


BAD_RECORDS = [
    *(
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        b"9" * 5000,
        b'{"schema": 1}',
        b'{"schema": "reprobox.manifest/1"}',
    ),
    *(
        json.dumps(manifest(OPEN, **fields)).encode()
        for fields in (
            {"engine": "docker", "end": None},
            {"engine": {"name": "moby"}, "end": None},
            {"engine": None, "end": None},
            {"recipe": []},
            {"recipe": "x"},
            {"command": 5},
            {"command": [1, None]},
            {"command": ["\udcff", "\x1b[31m", "[bold]"]},
            {"id": 5},
            {"exit_code": "x"},
            {"exit_code": None},
            {"outputs": [1], "end": None},
            {"outputs": 5, "end": None},
            {"outputs": {"x" * 300: None}, "end": None},
            {"project": 5, "end": None},
            {"options": 5, "end": None},
            {"streams": 5, "end": None},
            {"outcome": {"a": 1}},
            {"\udcff": "\udcff"},
        )
    ),
]
"""A manifest somebody edited, or a disk damaged."""

_EVENT = {"kind": "reseed", "generator": "g", "value": 1, "file": "f", "line": 1}


def receipt(**fields):
    return json.dumps({"schema": "reprobox.receipt/1", "start_ns": 1, **fields}).encode()


REPORTS = [
    *(("receipt-1.json", data) for data in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, b"9" * 5000, receipt())),
    ("receipt-1.json", receipt(events=[_EVENT])),
    ("receipt-1.json", receipt(events=[{**_EVENT, "file": "\udcff\x1b", "value": {}}, {"kind": "pool-draw"}])),
    (
        "receipt-1.json",
        receipt(events=[{"kind": "pool", "pool": 1, "workers": [], "file": 1, "line": 1}, {"kind": "pool-draw"}]),
    ),
    ("receipt-1.json", receipt(events=[{"kind": "unseeded", "generator": [], "file": 1, "line": 1, "origin": "user"}])),
    ("receipt-1.json", receipt(events=5)),
    ("receipt-1.json", receipt(events=None)),
    ("receipt-1.json", receipt(start_method=[])),
    ("receipt-1.json", receipt(start_method={"a": 1})),
    ("receipt-1.json", receipt(complete=True)),
    ("receipt-1.json", receipt(complete=True, generators=[])),
    ("receipt-1.json", receipt(children=[{"pid": 1, "program": 5}])),
    ("ledger", b"hook 1\nmain 2 python x.py\n"),
    ("ledger", b"hook \xb2\nmain \xc2\xb2 x\nhook " + b"9" * 5000 + b"\n"),
    ("ledger", "main ² x\n".encode()),
    ("ledger", b"main 1 \xed\xb3\xbf\x1b[31m\n"),
    ("stage", b"\xff"),
    ("stage", b"nonsense"),
    ("selftest.json", b"{"),
]
"""What a command may leave where the box reports: it can write there."""

GPUS = tuple(Gpu(index=i, uuid=f"GPU-{c * 8}", name="Fake") for i, c in enumerate("ab"))
INVENTORIES = [
    Inventory(missing="there is no NVIDIA driver library", remedy="run with --gpus none"),
    Inventory(gpus=GPUS, driver="1"),
]


def _image(**labels):
    return ImageInfo(
        engine_id="sha256:e", image_id="sha256:i", repo_digests=(), labels={"reprobox.variant": "cuda", **labels}
    )


@functools.cache
def images():
    ours = {
        local_tag(v): _image(**{"reprobox.box-protocol": "1", "reprobox.input": input_digest(v), "reprobox.variant": v})
        for v in ("cpu", "cuda")
    }
    named = {"img:1": "1", "old:0": "-1", "new:9": "9", "words:x": "x"}
    return {**ours, "foreign:1": _image(), **{n: _image(**{"reprobox.box-protocol": p}) for n, p in named.items()}}


# ---------------------------------------------------------------------------------------------- one attempt


@dataclass
class Case:
    """One attempt: what is typed, set and there; ``refused`` says that it must fail."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    below: bool = False
    inventory: Inventory = INVENTORIES[0]
    engine: str = "fake"
    exit_code: int = 0
    fail_at: str | None = None
    report: tuple[str, bytes] | None = None
    refused: bool = False


@dataclass
class Outcome:
    code: int
    out: bytes
    err: bytes
    boxes: list
    trespasses: list[str]


_watched: dict = {"sandbox": None}
_SECRETS = ("/dev/shm/", f"{tempfile.gettempdir()}/")
_WRITES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
}


def _watch(event, arguments):
    """Keep every write inside the sandbox: one outside is refused as by a read-only disk, and noted."""
    if _watched["sandbox"] is None:
        return
    if event == "open":
        path, _mode, flags = arguments
        if not isinstance(path, (str, bytes)) or not (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return
        paths = [path]
    elif event in _WRITES or event == "shutil.rmtree":
        if any(isinstance(a, int) and a >= 0 for a in arguments[-1:]) and event in ("os.remove", "os.rmdir"):
            return  # below a folder that rmtree was checked for
        paths = [
            a for a in arguments[: 2 if event in ("os.rename", "os.link") else 1] if isinstance(a, (str, bytes, Path))
        ]
    else:
        return
    for path in paths:
        text = os.path.abspath(os.fsdecode(path))
        real = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        if real.startswith(_watched["sandbox"]) or text == os.devnull:
            continue
        if re.search(rf"/reprobox-{os.getuid()}-2[^/]*(/|$)", text) and (
            event == "shutil.rmtree" or text.startswith(_SECRETS)
        ):
            continue  # in memory, and looked for afterwards
        if not text.startswith(
            (_watched["named"], os.path.join(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere", "reprobox-"))
        ):
            _watched["trespasses"].append(f"{event} {text[:200]}")
        raise PermissionError(13, "Permission denied", text)


sys.addaudithook(_watch)


class Away(FakeEngine):
    """Podman, where there is none."""

    def info(self):
        raise EngineUnavailable("no podman answers", remedy="install it")

    def image(self, reference):
        return self.info()


class Workplace:
    """A sandbox with a project in it, the fake engine, and this process's streams; one for all examples."""

    def __init__(self, folder, patch):
        self.sandbox = folder.resolve()
        self.root, self.home = self.sandbox / "project", self.sandbox / "home"
        for path in (self.home / ".cache", self.sandbox / "run"):
            path.mkdir(parents=True)
        self.engine = FakeEngine()
        self.stale = False
        self.streams = [os.memfd_create(name) for name in ("out", "err")]
        self._patch(patch)
        self._furnish()

    def _patch(self, patch):
        real_choose, real_open = reprobox.engines.choose_engine, reprobox.engines.open_engine

        def choose(name, *, chosen, say):
            if self.case.engine == "real" and name != "local":
                return real_choose(name, chosen=chosen, say=say)
            return open_engine(name)

        def open_engine(name):
            if self.case.engine == "real":
                return real_open(name) if name == "docker" else Away(name=str(name))
            self.engine.name, self.engine.isolates = str(name), name != "local"
            return self.engine

        def create(engine, spec, original=FakeEngine.create):
            check_spec(spec)
            return original(engine, spec)

        import docker.api.client
        import docker.errors

        def unreachable(client):
            raise docker.errors.DockerException("Error while fetching server API version: FileNotFoundError")

        get_command = typer.main.get_command
        cache = {}
        patch.setattr(typer.main, "get_command", lambda a: cache.get(id(a)) or cache.setdefault(id(a), get_command(a)))
        patch.setattr(docker.api.client.APIClient, "_retrieve_server_version", unreachable)
        patch.setattr(FakeEngine, "create", create)
        patch.setattr(reprobox.engines, "open_engine", open_engine)
        patch.setattr(reprobox.cli.run, "choose_engine", choose)
        patch.setattr(reprobox.runs.later, "open_engine", open_engine)
        patch.setattr(reprobox.cli.run, "take_inventory", lambda: self.case.inventory)
        patch.setattr(reprobox.cli.run, "in_background", lambda work: work(lambda: None))
        for name in ("input_digest", "local_tag"):  # of the same files, each time
            patch.setattr(reprobox.images, name, functools.cache(getattr(reprobox.images, name)))
        facts = reprobox.runs.host.host_facts()
        patch.setattr(reprobox.runs.host, "host_facts", lambda: facts)
        patch.setattr(reprobox.runs.manifest, "host_facts", lambda: facts)
        patch.setattr(os, "fsync", lambda descriptor: None)  # a thousand times as fast, and no test of this
        patch.setattr(sys, "dont_write_bytecode", True)

    def _furnish(self):
        """What every example finds."""
        (self.root / "data").mkdir(parents=True)
        plain = {
            "train.py": b"",
            "secret.txt": b"s3cret-value",
            "empty": b"",
            "nul": b"a\0b",
            "vars.env": b"# c\nA=1\n\nHOST_TOKEN\n",
        }
        for name, data in {**plain, "latin.env": b"A=\xe9\n", "nul.env": b"A=\0\n"}.items():
            (self.root / name).write_bytes(data)
        (self.root / "loop").symlink_to("loop")
        self._furnish_runs()

    def _furnish_runs(self):
        runs = self.root / ".reprobox" / "runs"
        shutil.rmtree(runs, ignore_errors=True)
        for run_id, fields in {
            DONE: {},
            FAILED: {"exit_code": 7},
            OPEN: {"end": None, "start": None, "exit_code": None, "outcome": "planned"},
        }.items():
            (runs / run_id).mkdir(parents=True)
            document = {**manifest(run_id, **fields), "project": str(self.root)}
            (runs / run_id / "manifest.json").write_text(json.dumps(document))
            (runs / run_id / "stdout.log").write_bytes(b"out\xff\n")

    def _clear(self, case):
        """Take away what the example before left, and no more: this is most of the time a run takes."""
        for name in ("reprobox.toml", "pyproject.toml"):
            path = self.root / name
            if path.is_dir():
                path.rmdir()
            path.unlink(missing_ok=True)
        shutil.rmtree(self.root / "data" / ".reprobox", ignore_errors=True)
        if case.arguments[:1] == ["runs"] or self.stale:
            self._furnish_runs()
        for path in (self.root / ".reprobox" / "runs").glob("2*"):
            if path.name not in (DONE, FAILED, OPEN):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.stale = case.arguments[:1] == ["runs"] or any("runs" in name for name in case.files)

    def _fill(self, case):
        for name, data in case.files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if data == b"<folder>":
                path.mkdir()
            else:
                path.write_bytes(data)

    def attempt(self, case):
        self.case = case
        self._clear(case)
        self._fill(case)
        self.engine = FakeEngine(
            images=images(),
            script=Script(
                output=[("stdout", b"from the command\n")],
                exit=Exit(code=case.exit_code),
                fail_at=case.fail_at,
                on_start=self._command,
            ),
        )
        names = {"home": str(self.home), "root": str(self.root)}
        given = {
            name: text.format(**names) if text in ("{home}", "{root}") else text
            for name, text in case.environment.items()
        }
        base = {
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.sandbox / "run"),
            "HOST_TOKEN": "t0ken-value",
            "PATH": "/bin",
        }
        before, folder = dict(os.environ), os.getcwd()
        descriptors = set(os.listdir("/proc/self/fd"))
        kept, saved = (sys.stdout, sys.stderr), [os.dup(1), os.dup(2)]
        for stream in self.streams:
            os.ftruncate(stream, 0)
            os.lseek(stream, 0, os.SEEK_SET)
        try:
            os.environ.clear()
            os.environ.update({**base, **given})
            os.chdir(self.root / "data" if case.below else self.root)
            _watched.update(trespasses=[], named=self._cache_folder())
            for descriptor, stream in zip((1, 2), self.streams, strict=True):
                os.dup2(stream, descriptor)
            sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            _watched["sandbox"] = str(self.sandbox)
            try:
                code = run_app(case.arguments)
            finally:
                _watched["sandbox"] = None
                with contextlib.suppress(ValueError, OSError):
                    sys.stdout.flush()
                    sys.stderr.flush()
        finally:
            sys.stdout, sys.stderr = kept
            for descriptor, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, descriptor)
                os.close(copy)
            os.environ.clear()
            os.environ.update(before)
            os.chdir(folder)
            for descriptor in set(os.listdir("/proc/self/fd")) - descriptors:
                with contextlib.suppress(OSError):
                    os.close(int(descriptor))
        out, err = (os.pread(stream, 1 << 24, 0) for stream in self.streams)
        return Outcome(code=code, out=out, err=err, boxes=self.engine.boxes, trespasses=_watched["trespasses"])

    @staticmethod
    def _cache_folder():
        from platformdirs import user_cache_path

        try:
            return os.path.abspath(user_cache_path("reprobox").parent)
        except (OSError, RuntimeError, ValueError):
            return "/nowhere"

    def _command(self, spec):
        """What the entrypoint does before it hands over, and what a command may leave behind."""
        folder = spec.environment["REPROBOX_RUN_DIR"]
        if self.engine.isolates:
            folder = next(m.source for m in spec.mounts if m.target == "/run/reprobox/run")
        (Path(folder) / "stage").write_text("exec\n")
        if self.case.report is not None:
            name, data = self.case.report
            (Path(folder) / name).write_bytes(data)

    # -------------------------------------------------------------------------------------- what must hold

    def problems(self, case):
        """Everything that is wrong with how ``case`` went: nothing, if all is well."""
        try:
            outcome = self.attempt(case)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return None, [f"{type(error).__name__} escaped: {error}"[:500]]
        return outcome, list(self._wrong(case, outcome))

    def _wrong(self, case, outcome):
        err = outcome.err.decode(errors="replace")
        if "Traceback" in err:
            yield "a traceback"
        if "reprobox itself failed" in err:
            yield err[err.index("reprobox itself failed") :][:600]
            return
        if outcome.trespasses:
            yield f"wrote outside: {outcome.trespasses}"
        yield from self._unfinished()
        started = bool(outcome.boxes) and "wait" in outcome.boxes[-1].events
        passed = {case.exit_code} if started else {7, 125} if case.arguments[:2] == ["runs", "wait"] else set()
        if outcome.code == 0 and case.refused:
            yield "took what it must refuse"
        helped = not case.arguments or "-h" in case.arguments  # help is not a failure
        if outcome.code != 0 and outcome.code not in passed and not helped:
            yield from self._badly_told(case, outcome, err)

    @staticmethod
    def _badly_told(case, outcome, err):
        """What is wrong with how a failure is told."""
        if outcome.code not in (2, 125):
            yield f"ends with {outcome.code}"
        if outcome.out and not outcome.boxes and case.arguments[:2] != ["runs", "logs"]:
            yield f"a failure, and on stdout {outcome.out[:200]!r}"
        *before, last, rest = ["", *err.split("\n")]
        if rest or not last.startswith("reprobox: ") or any(line and not NOTES.match(line) for line in before):
            yield f"not one sentence: {err[:500]!r}"
        elif not REMEDY.search(last) and not last.startswith("reprobox: the fake was told to fail"):
            yield f"no remedy: {last}"[:500]
        if re.search(r"[\x00-\x09\x0b-\x1f\x7f]", err):
            yield f"a control character reaches the terminal: {err[:200]!r}"
        if "  " in err[:200] or err.endswith(".\n"):
            yield f"not a sentence as the others: {err[:200]!r}"

    def _unfinished(self):
        # Without a project file the caller's own folder is the project.
        for folder in (f for home in (self.root, self.root / "data") for f in (home / ".reprobox" / "runs").glob("2*")):
            if folder.name in (DONE, FAILED, OPEN) or not folder.is_dir():
                continue
            with contextlib.suppress(OSError, ValueError):
                end = json.loads((folder / "manifest.json").read_text())["end"]
                if end is None:
                    yield f"a record without an end: {folder.name}"
            if (folder / "box").exists():
                yield "the box's files are left"
            if not (folder / "manifest.json").exists():
                yield "a record without a manifest"
            left = [f"{home}/reprobox-{os.getuid()}-{folder.name}" for home in ("/dev/shm", tempfile.gettempdir())]
            if any(map(os.path.exists, left)):
                yield "secrets are left"


NOTES = re.compile(
    r"reprobox: (run 2\S+ (in|on this machine)|no seed was given, so|--gpus \d+ is GPU number|\S+ is not on this machine; pulling"
    r"|pulling |this machine has GPUs and only|no Docker answers; using|the output's log cannot)"
)
"""What may be said before a failure: it is no part of it."""

REMEDY = re.compile(r"; .+")


def check_spec(spec):
    """What every engine needs of a box: text that JSON can carry, and sources that its daemon can find."""
    document = json.dumps({**asdict(spec), "environment": dict(spec.environment)}, ensure_ascii=False, default=str)
    if spec.image is not None:
        document.encode()
    assert "\\u0000" not in document, "a NUL reaches the engine"
    for mount in spec.mounts:
        assert mount.kind == "volume" or mount.source.startswith("/"), f"the source {mount.source!r} is relative"


# ---------------------------------------------------------------------------------------------- how attempts are made up


def mutated(draw, values):
    """One of ``values`` with something done to it."""
    text = draw(st.sampled_from(values)) if values else ""
    junk = draw(st.sampled_from(JUNK))
    cut = draw(st.integers(0, len(text))) if len(text) < 50 else 0
    return draw(
        st.sampled_from(
            [junk, text + junk, junk + text, text[:cut] + junk + text[cut:], text[:cut], text * 2, text.upper()]
        )
    )


def option(draw, wild):
    """One option as words, whether it must be refused, and which it is."""
    kind = draw(st.integers(0, 19 if wild else 15))
    if kind < 4:
        name = draw(st.sampled_from([n for n in SWITCHES if n != "tty"]))
        return [draw(st.sampled_from(SWITCHES[name][-1].split("/")))], None, name
    if kind == 19:
        word = draw(st.sampled_from(UNKNOWN))
        return [word, *draw(st.sampled_from([[], ["x"]]))], None, word
    name = draw(st.sampled_from(list(NAMES)))
    if not wild or kind < 12:
        text, bad = draw(st.sampled_from(VALID[name])), False
    elif kind < 16:
        text, bad = draw(st.sampled_from(BAD[name])), True
    else:
        text, bad = mutated(draw, VALID[name]), None
    typed = draw(st.sampled_from(NAMES[name]))
    joined = f"{typed}={text}" if typed.startswith("--") else f"{typed}{text}"
    if joined == typed or (not typed.startswith("--") and text.startswith("=")):
        return [typed, text], bad, name
    return ([joined] if draw(st.booleans()) else [typed, text]), bad, name


def run_words(draw, wild):
    verdicts, words = {}, []
    for _ in range(draw(st.integers(0, 4))):
        more, bad, name = option(draw, wild)
        words += more
        if name in MANY:
            verdicts[name] = verdicts.get(name) or bad
        else:
            verdicts[name] = bad
    if wild and draw(st.integers(0, 9)) == 0:
        words.append(
            draw(st.sampled_from(["-qi", "-itq", "-dq", "-t", "-qt", "-ie", "-v", "--seed", "--env", "--json", "-dti"]))
        )
        verdicts.setdefault("quiet", None)
    return words, verdicts


RUNS = ["list", "show", "logs", "wait", "stop", "attach", "rm"]
RUNS_WORDS = [
    *JUNK,
    DONE,
    FAILED,
    OPEN,
    "2",
    "last",
    "last~1",
    "last~0",
    "last~" + "9" * 5000,
    "last~²",
    "--json",
    "-f",
    "-h",
    "-t",
    "5",
    "-t=-1",
]
BUILD = [
    "--variant",
    "--base",
    "--wheelhouse",
    "--tag",
    "--builder",
    "--no-cache",
    "--json",
    "--verbose",
    "-q",
    "-h",
    "--variant=cpu",
    "--tag=",
]
RECIPE = [
    "--json",
    "--seed",
    "--profile",
    "--threads",
    "--rank-seeds",
    "--fill",
    "--no-portable",
    "-h",
    "--seed=1",
    "--profile=off",
    "x",
]


@st.composite
def cases(draw):
    wild = draw(st.booleans())
    kind = draw(st.integers(0, 99))
    case = Case(arguments=[])
    verdicts = {}
    if kind < 78:
        name = "run" if kind < 70 else "shell"
        words, verdicts = run_words(draw, wild)
        tail = (
            []
            if name == "shell"
            else draw(st.sampled_from([["train"], ["train"], ["t", "--seed", "x", ""], ["--", "-x"]]))
        )
        if wild and draw(st.integers(0, 4)) == 0:
            tail = draw(st.lists(st.sampled_from(JUNK), max_size=3))
        case.arguments = [name, *words, *tail]
        if any(word.startswith("-h") or word == "--help" for word in words):
            verdicts = {}
    elif kind < 90:
        words = draw(st.lists(st.sampled_from(RUNS_WORDS), max_size=3))
        case.arguments = ["runs", *draw(st.sampled_from([[], *([name] for name in RUNS)])), *words]
    elif kind < 97:
        name, table = draw(st.sampled_from([("build", BUILD), ("recipe", RECIPE)]))
        case.arguments = [name, *draw(st.lists(st.sampled_from([*table, *table, *JUNK]), max_size=4))]
    else:
        case.arguments = draw(st.lists(st.sampled_from([*COMMANDS, "--help", "--version", "rnu", *JUNK]), max_size=3))
    surround(draw, case, wild, verdicts)
    return case


def surround(draw, case, wild, verdicts):
    """Environment, files, machine and what the box will do."""
    set_badly = {}
    for _ in range(draw(st.integers(0, 2))):
        name = draw(st.sampled_from([*ENVIRONMENT, *SURROUNDINGS, *SURROUNDINGS]))
        set_badly.pop(name, None)
        if name in SURROUNDINGS:
            case.environment[name] = draw(st.sampled_from(SURROUNDINGS[name]))
            continue
        good, bad = ENVIRONMENT[name]
        if good and not (wild and draw(st.booleans())):
            case.environment[name] = draw(st.sampled_from(good))
        else:
            case.environment[name] = draw(st.sampled_from(bad))
            setting = name.removeprefix("REPROBOX_").lower()
            set_badly[name] = not (good and setting in verdicts)
    files = draw(st.integers(0, 9))
    if files == 0:
        case.files["reprobox.toml"] = draw(st.sampled_from(GOOD_TOML)).encode()
    elif files == 1 and wild:
        case.files["reprobox.toml"] = draw(st.sampled_from([*(t.encode() for t in BAD_TOML), *_RAW, b"<folder>"]))
    elif files == 2:
        case.files["pyproject.toml"] = draw(st.sampled_from([*(t.encode() for t in PYPROJECT), *_RAW, b"<folder>"]))
    elif files == 3:
        case.files[f".reprobox/runs/{OPEN}/manifest.json"] = draw(st.sampled_from(BAD_RECORDS))
    elif files == 4 and draw(st.booleans()):
        case.files[f".reprobox/runs/{OPEN[:-1]}1"] = b"a file"
    case.below = draw(st.booleans())
    case.inventory = draw(st.sampled_from(INVENTORIES))
    case.exit_code = draw(st.sampled_from([0, 0, 3, 125, 255]))
    case.report = draw(st.sampled_from([None, *REPORTS]))
    if wild:
        case.engine = draw(st.sampled_from(["fake", "fake", "fake", "fake", "real"]))
        case.fail_at = draw(st.sampled_from([*[None] * 8, "create", "attach", "start", "stream", "wait"]))
    # A setting that was refused is refused for `run` and `shell`; the other commands need none of them.
    case.refused = case.arguments[:1] in (["run"], ["shell"]) and True in [*verdicts.values(), *set_badly.values()]


# ---------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def workplace():
    # In memory where there is such a folder: five thousand projects are made and removed.
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(dir=place, prefix="never-") as folder:
        yield Workplace(Path(folder), patch)


def shown(case):
    return {k: (str(v)[:300] if k != "inventory" else len(v.gpus)) for k, v in vars(case).items() if v}


def run_with(*words, **fields):
    return Case(arguments=["run", *words, "train"], **fields)


def good_options():
    yield from (run_with(f"{NAMES[n][-1]}={text}") for n, texts in VALID.items() for text in texts)
    yield from (
        run_with(name) for n, names in SWITCHES.items() if n not in ("tty", "json") for name in names[-1].split("/")
    )
    yield from (run_with(environment={n: text}) for n, (good, _) in ENVIRONMENT.items() for text in good)
    yield from (run_with(files={"reprobox.toml": text.encode()}) for text in GOOD_TOML)
    yield from (run_with(report=report, exit_code=3) for report in REPORTS)


def bad_options():
    for word in (["run"], ["run", "--engine=local"]):
        for name, texts in BAD.items():
            for text in texts:
                if not (name in ("image", "workdir") and len(word) > 1):
                    yield Case(arguments=[*word, f"{NAMES[name][-1]}={text}", "train"], refused=True)
    yield from (run_with(flag, refused=True) for flag in UNKNOWN)
    yield from (run_with(environment={n: text}, refused=True) for n, (_, bad) in ENVIRONMENT.items() for text in bad)
    yield from (run_with(files={"reprobox.toml": text.encode()}, refused=True) for text in BAD_TOML)


def anything():
    """What may be accepted or refused."""
    yield from (run_with(f"{NAMES[n][-1]}={text}") for n in VALID for text in JUNK)
    yield from (Case(arguments=["run", text]) for text in JUNK)
    yield from (
        Case(arguments=["run", "--engine=local", "--dry-run", *tail])
        for tail in (["a\udcff"], ["[bold]"], ["\x1b"], ["-w", "\udcff", "x"])
    )
    for name, texts in SURROUNDINGS.items():
        for text in texts:
            for engine in ("fake", "real"):
                for inventory in INVENTORIES:
                    yield run_with("-e", "HOST_TOKEN", environment={name: text}, engine=engine, inventory=inventory)
            yield from (
                Case(arguments=words, environment={name: text})
                for words in (["recipe"], ["runs"], ["build"], ["run", "--dry-run", "x"])
            )
    for data in (*(text.encode() for text in (*PYPROJECT, *BAD_TOML)), *_RAW, b"<folder>"):
        for name in ("pyproject.toml", "reprobox.toml"):
            yield from (
                Case(arguments=words, files={name: data}) for words in (["run", "x"], ["recipe", "--json"], ["runs"])
            )


def earlier_runs():
    """Records that were edited or damaged, and every command that reads them."""
    commands = [
        [],
        ["list", "--json"],
        *([name] for name in RUNS),
        ["show", "--json"],
        ["wait", "--json"],
        ["logs", "-f"],
        ["rm", "-f", "last"],
    ]
    for data in BAD_RECORDS:
        for words in commands:
            yield Case(arguments=["runs", *words], files={f".reprobox/runs/{OPEN}/manifest.json": data})
    for words in commands:
        yield Case(arguments=["runs", *words], files={f".reprobox/runs/{OPEN[:-1]}1": b"a file"})
        for name in ("stdout.log", "stdout.log.5", "stdout.log.²", "stdout.log.x", "lock", "box", "stage"):
            yield Case(
                arguments=["runs", *words],
                files={f".reprobox/runs/{OPEN}/{name}": b"<folder>" if name == "box" else b"\xff"},
            )
    for words in RUNS:
        yield from (Case(arguments=["runs", words, text]) for text in RUNS_WORDS)
    yield Case(arguments=["runs", "rm", DONE, DONE])


def together(workplace, cases, *, reaching=False):
    found = {}
    for case in cases:
        outcome, problems = workplace.problems(case)
        if reaching and not problems and not (outcome.boxes or "--dry-run" in case.arguments):
            problems = ["did not reach the engine", outcome.err.decode(errors="replace")]
        if problems:
            found[str(shown(case))] = problems
    return found


@pytest.mark.parametrize("cases", [bad_options, anything, earlier_runs], ids=lambda cases: cases.__name__)
def test_each_thing_alone_ends_in_one_sentence(workplace, cases):
    assert together(workplace, cases()) == {}


def test_each_good_thing_alone_reaches_the_engine(workplace):
    assert together(workplace, good_options(), reaching=True) == {}


def test_every_option_with_a_value_is_tried():
    assert VALID.keys() == BAD.keys() == NAMES.keys()


PROPERTY = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(PROPERTY, max_examples=EXAMPLES)
@given(case=cases())
def test_whatever_is_given_it_ends_in_one_sentence(workplace, case):
    _, problems = workplace.problems(case)
    assert not problems, shown(case)


def test_a_good_share_of_the_examples_reaches_the_engine(workplace):
    reached = []

    @settings(PROPERTY, max_examples=EXAMPLES // 10)
    @given(case=cases())
    def look(case):
        outcome, _ = workplace.problems(case)
        reached.append(bool(outcome and outcome.boxes))

    look()
    assert sum(reached) / len(reached) > GOOD_SHARE
