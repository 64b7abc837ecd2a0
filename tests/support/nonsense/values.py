"""What can be typed and set: good values and bad ones for each option, and junk for anything."""

from __future__ import annotations

from reprobox.cli.flags import FLAGS
from reprobox.runs.refused_flags import REFUSED
from reprobox.settings import SETTINGS

LONG = "x" * 300
"""Too long for a file's name."""

NINES = "9" * 100_000
"""Too long for ``int()``."""

SWITCHES = {flag.dest: flag.names for flag in FLAGS if flag.metavar is None}
NAMES = {flag.dest: flag.names for flag in FLAGS if flag.metavar is not None}
MANY = {flag.dest for flag in FLAGS if flag.many}

VALID = {
    "seed": ["0", "1", "4294967295"],
    "profile": ["strict", "warn", "fast", "off"],
    "threads": ["1", "1024"],
    "rank_seeds": ["offset", "same"],
    "self_test": ["auto", "always", "off"],
    "gpus": ["none"],
    "engine": ["docker", "podman", "local"],
    "image": ["img:1"],
    "require_signed": ["off"],
    "signature": [],
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
        "type=bind,source=data,target=/m1", "type=tmpfs,target=/m2,tmpfs-size=1g", "source=vv,target=/m3,readonly",
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
}  # fmt: skip
"""For each option with a value: what it must take."""

GPUS_OF_A_MACHINE = ["auto", "auto:2,mem=1G", "0,1", "GPU-aa,GPU-bb"]
"""Bad only on a machine that has no GPU."""

BAD = {
    "seed": ["", "-1", "4294967296", "1.0", NINES, "١", "0x1"],
    "profile": ["", "strickt", "STRICT"],
    "threads": ["0", "1025", NINES],
    "rank_seeds": ["sane"],
    "self_test": ["on", "never"],
    "gpus": [*GPUS_OF_A_MACHINE, "", "some", "0,0", "-1", "²", NINES, "auto:0", "auto:-1", "auto:2,mem=", "auto,mem=x", "MIG-", "device="],
    "engine": ["moby", ""],
    "image": ["", "-rm", "a b", "Img:1", "no:such", "foreign:1", "old:0", "new:9", "words:x", "x" * 100_000],
    "require_signed": ["", "no-such.pub", "train.py"],
    "signature": ["", "sig.json"],
    "pull": ["", "sometimes"],
    "secret": [
        "", "=x", "NO_SUCH", "T=", "T=/no/such", "T=\0", f"T={LONG}", "T=~nobody-at-all/x", "T=/dev/zero", "T=empty",
        "T=nul",
    ],
    "cache": ["", "../x", "x" * 65, "-x"],
    "volume": [
        "", ":", "a", "./data:rel", "./no:/x", "./data:/etc", "./data:/", "./data:/a:rx", "a\0b:/x", "./a\0b:/x",
        f"{LONG}:/x", f"./{LONG}:/x", "~nobody-at-all:/x", "data:/x", "/run:/x", "./data:/x\0y", "./loop:/x",
        "./data:/x\udcff",
    ],
    "env": ["", "=x", "1=x", "A B=x", "REPROBOX_SEED=1", "CUDA_VISIBLE_DEVICES=0", "A=\0", "é=1"],
    "env_file": ["", "/no/such", "/dev/zero", "data", "latin.env", "nul.env", "a\0b", LONG],
    "workdir": ["a\0b"],
    "name": ["", "-x", "x", "a b", "é", "a/b"],
    "shm_size": ["", "0", "lots", "-1", NINES, "1e9", "9" * 30 + "t"],
    "network": ["", "-x", "a b", "x\0"],
    "mount": [
        "", "type=bind", "target=/x", "type=npfs,source=a,target=/x", 'type=bind,source="a,target=/x',
        "type=bind,source=no,target=/x", f"type=bind,source={LONG},target=/x",
        "type=tmpfs,target=/x,tmpfs-size=a", "type=bind,source=loop,target=/x",
        "type=bind,source=~nobody-at-all,target=/x", "source=a b,target=/x", "\n", '"' * 3,
        "type=bind,source=" + "x" * 200_000 + ",target=/x",
    ],
    "tmpfs": ["", "rel", "/etc", "/x:nope", "/x:size=0", "/x\0", "/:size=1g"],
    "user": ["", "nobody", "-1", "1:2:3", NINES, "²", ":"],
    "memory": ["", "1m", "-1", NINES, "8 g"],
    "cpus": ["", "0", "nan", "inf", "1e2", NINES],
    "cpuset_cpus": ["", "3-1", "a", NINES, ","],
    "pids_limit": ["", "-2", NINES],
    "ulimit": ["", "nofile", "nofile=2:1", "nope=1", f"nofile={NINES}", "nofile=1:2:3"],
    "ipc": ["", "container:x", "public"],
    "publish": ["", "0", "65536", "1-2:3", "999.1.1.1:1:1", "[::g]:1:1", "1/ſctp", NINES],
    "hostname": ["", "-x", "a b", "x" * 65, "é"],
    "add_host": ["", "a", "a:", "a:1", "a:fe80::1%eth0", "a b:1.1.1.1"],
    "device": [
        "", "/dev/sda", "null", "/dev/no-such", "/dev/../etc", "/dev/nvidia0", f"/dev/{LONG}", "nvidia.com/gpu=all",
    ],
    "group_add": ["", "-1", "a b", NINES],
    "cap_add": ["", "ALL", "SYS_ADMIN", "NOPE"],
    "cap_drop": ["", "NOPE"],
    "platform": ["", "windows/amd64", "linux", "linux/arm/x"],
    "label": ["", "=x", "reprobox.run=1", "a b=c", "k=\0"],
    "stop_timeout": ["", "-1", "1.5", NINES],
    "input": ["", ".", "..", "/etc/passwd", "no-such", "a\0b", LONG, "x/" * 3000],
    "output": ["", "..", "/etc/passwd", "a\0b"],
}  # fmt: skip
"""And what it must refuse."""

JUNK = [
    "", " ", "-", "--", "-1", "0", "9" * 5000, NINES, LONG, "x" * 100_000, "x/" * 3000, "é", "日本", "😀", "\udcff",
    "a\udc80b", "\0", "a\0b", "\n", "\r\n", "\x1b[31m", "\u2028", "\x7f", "\x85", "\ufeff", "²", "١٢", "../../../etc",
    "/", "/etc/passwd", "..", ".", "~", "~nobody-at-all", "%s{0}", "$(id)", "a=b", "=", ",", ":", "::", ";", "*",
    "1e9", "0x10", "nan", "true", "None", '"', "'", "[", "[bold]", "[/]", "\\", "last~1", "--seed", "-e", "/dev/null",
]  # fmt: skip
"""What may be given for anything: most of it is wrong almost everywhere."""

UNKNOWN = [
    *REFUSED, "--nope", "--see", "-Z", "--seed-", "---", "--no-seed", "--fill=x", "-é", "--\udcff", "--x\0", "-qZ",
    "-x" * 500,
]  # fmt: skip
"""Options that there are not."""

_FLAG = {"selftest": "self_test"}
"""The settings whose flag is spelt otherwise."""


_SETTING = {
    s.variable: (
        VALID.get(_FLAG.get(s.name, s.name), ["on", "off"]),
        BAD.get(_FLAG.get(s.name, s.name), ["", "yes", "1", "\udcff"]),
    )
    for s in SETTINGS
}
ENVIRONMENT = {
    **{name: (good, [text for text in bad if "\0" not in text]) for name, (good, bad) in _SETTING.items()},
    "REPROBOX_SEDE": ([], ["1", ""]),
    "REPROBOX_": ([], [""]),
}
"""Variables that are settings: good values, and bad ones that must be refused where nothing stronger is given."""

_FOLDERS = [
    "", "/nowhere/x", "/proc/nowhere", "/dev/null", "relative", ".", "~", "/", "x" * 5000, "\udcff", "a b", "{home}",
    "{root}",
]  # fmt: skip
SURROUNDINGS = {
    "DOCKER_HOST": [
        "", "tcp://", "unix://", "unix:///no/such", "ssh://x", "http://[::1", "nonsense", "tcp://h:99999", "\udcff",
    ],
    "DOCKER_CONTEXT": ["", "default", "nope", "../../x", "\udcff", "x" * 5000],
    "DOCKER_CONFIG": ["", "/nowhere", "{root}", "{home}"],
    "DOCKER_CLIENT_TIMEOUT": ["", "5", "x", "nan", "-1", "1e999", "9" * 5000, "²"],
    "DOCKER_TLS_VERIFY": ["1"],
    "DOCKER_CERT_PATH": ["/nowhere"],
    "HOME": _FOLDERS,
    "PATH": ["", "/nowhere", "\udcff"],
    "XDG_CACHE_HOME": _FOLDERS,
    "XDG_RUNTIME_DIR": _FOLDERS,
    "XDG_CONFIG_HOME": _FOLDERS,
    "WORLD_SIZE": ["", "1", "2", "0", "-1", "x", "²", "9" * 5000],
    "SLURM_NTASKS": ["", "2", NINES],
    "RANK": ["0", "x", "9" * 5000],
    "CUDA_VISIBLE_DEVICES": [
        "", "0", "1,0", "0,0", "-1", "7", "GPU-", "GPU-aaaa", "²", "9" * 5000, ",", "NoDevFiles", "\udcff",
    ],
    "COLUMNS": ["0", "1", "-5", "x", "²", "9" * 100, "9" * 5000],
    "LINES": ["0"],
    "TERM": ["", "dumb", "\udcff"],
    "NO_COLOR": ["", "1"],
    "FORCE_COLOR": ["1"],
    "HOST_TOKEN": ["", "\udcff\udcfe"],
}  # fmt: skip
"""Everything else a caller's environment may hold; ``{root}`` is the project, and ``{home}`` a home."""

DONE, FAILED, OPEN = "20261121T035544.123-1f3a", "20261121T035545.000-ffff", "20261121T035546.000-0000"
"""The runs that are there already; the last has no end yet."""

RUNS = ["list", "show", "logs", "wait", "stop", "attach", "rm"]
RUNS_WORDS = [
    *JUNK, DONE, FAILED, OPEN, "2", "last", "last~1", "last~0", "last~" + "9" * 5000, "last~²",
    "--json", "-f", "-h", "-t", "5", "-t=-1",
]  # fmt: skip
BUILD = [
    "--variant", "--base", "--wheelhouse", "--tag", "--builder", "--no-cache", "--json", "--verbose", "-q", "-h",
    "--variant=cpu", "--tag=",
]  # fmt: skip
RECIPE = [
    "--json", "--seed", "--profile", "--threads", "--rank-seeds", "--fill", "--no-portable", "-h", "--seed=1",
    "--profile=off", "x",
]  # fmt: skip
"""What follows the other commands."""
