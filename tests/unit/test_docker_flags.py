"""Docker's own flags: each text has Docker's meaning, or is refused in one sentence that names it."""

from __future__ import annotations

import re

import pytest

from reprobox.engines.base import BoxOptions, Port, Ulimit
from reprobox.errors import UsageError
from reprobox.limits import default_processes
from reprobox.runs.docker_flags import (
    _CAPABILITIES,
    DOCKER_FLAGS,
    parse_options,
    parse_user,
)
from reprobox.runs.mounts import parse_mount, parse_tmpfs, parse_volume
from reprobox.runs.refused_flags import REFUSED, refusal


def flags(text):
    return text.split()


DOCKER_RUN_HELP = flags("""
--add-host -a --attach --blkio-weight --blkio-weight-device --cap-add --cap-drop --cgroup-parent --cgroupns --cidfile
--cpu-period --cpu-quota --cpu-rt-period --cpu-rt-runtime -c --cpu-shares --cpus --cpuset-cpus --cpuset-mems -d --detach
--detach-keys --device --device-cgroup-rule --device-read-bps --device-read-iops --device-write-bps --device-write-iops
--disable-content-trust --dns --dns-option --dns-search --domainname --entrypoint -e --env --env-file --expose --gpus
--group-add --health-cmd --health-interval --health-retries --health-start-period --health-timeout --help -h --hostname
--init -i --interactive --ip --ip6 --ipc --isolation --kernel-memory -l --label --label-file --link --link-local-ip
--log-driver --log-opt --mac-address -m --memory --memory-reservation --memory-swap --memory-swappiness --mount --name
--network --network-alias --no-healthcheck --oom-kill-disable --oom-score-adj --pid --pids-limit --platform --privileged
-p --publish -P --publish-all --pull -q --quiet --read-only --restart --rm --runtime --security-opt --shm-size --sig-proxy
--stop-signal --stop-timeout --storage-opt --sysctl --tmpfs -t --tty --ulimit --use-api-socket -u --user --userns --uts -v
--volume --volume-driver --volumes-from -w --workdir
""")
"""What `docker run --help` of 28.2 prints."""

HIDDEN_OR_NEWER = flags("""
--annotation --cpu-count --cpu-percent --dns-opt --health-start-interval --io-maxbandwidth --io-maxiops --net --net-alias
""")
"""What its source has besides: experimental, for Windows, or an old spelling."""

DECLARED_ELSEWHERE = flags("""
-v --volume -e --env --env-file -w --workdir --name --shm-size --network --net -i --interactive -t --tty -d --detach --rm
--pull --init --gpus -q --quiet -h --help
""")
"""The flags of reprobox/cli/run.py itself; -h is help there."""

NO_TEXTS = ["a\0b", "a\nb", "a\rb", "a\x1b[0m", "a\x85", "a\udcff", ""]


@pytest.mark.parametrize("flag", DOCKER_RUN_HELP + HIDDEN_OR_NEWER)
def test_every_flag_of_docker_run_is_taken_or_refused_and_not_both(flag):
    taken = [name for declared in DOCKER_FLAGS for name in declared.names]
    assert [flag in taken, flag in REFUSED, flag in DECLARED_ELSEWHERE].count(True) == 1


def test_no_flag_is_refused_or_taken_that_docker_does_not_have():
    known = {*DOCKER_RUN_HELP, *HIDDEN_OR_NEWER}
    assert REFUSED.keys() <= known
    assert {name for flag in DOCKER_FLAGS for name in flag.names} <= known


@pytest.mark.parametrize("flag", DOCKER_FLAGS, ids=lambda flag: flag.names[-1])
def test_the_help_of_a_flag_is_one_short_sentence(flag):
    assert len(flag.help) <= 60
    assert flag.help.endswith(".")
    assert "\n" not in flag.help


@pytest.mark.parametrize("flag", REFUSED)
def test_a_refusal_says_why_and_what_to_do(flag):
    error = refusal(f"{flag}=x")
    assert isinstance(error, UsageError)
    assert error.message.startswith(f"run has no {flag}: ")
    assert error.remedy
    assert not error.remedy.endswith(".")
    assert REFUSED[flag].count("; ") == 1


@pytest.mark.parametrize("word", ["--volume", "--mount", "--no-such-flag", "privileged", "-", "--", ""])
def test_other_words_are_not_refused_here(word):
    assert refusal(word) is None


@pytest.mark.parametrize("remedy", REFUSED.values())
def test_a_remedy_names_only_flags_that_there_are(remedy):
    there = {name for flag in DOCKER_FLAGS for name in flag.names} | {*DECLARED_ELSEWHERE, "--image"}
    assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", remedy.partition("; ")[2])) <= there


def test_without_flags_the_processes_are_limited_and_every_capability_is_dropped():
    assert parse_options({}) == BoxOptions(pids_limit=default_processes())
    assert parse_options({}).cap_drop == ("ALL",)


def test_of_a_flag_that_is_taken_once_the_last_counts():
    assert parse_options({"memory": ["1g", "2g"]}).memory_bytes == 2 << 30


def test_an_earlier_text_is_checked_all_the_same():
    with pytest.raises(UsageError, match="--cpus"):
        parse_options({"cpus": ["x", "1"]})


def test_a_flag_nobody_declared_is_a_programming_error():
    with pytest.raises(ValueError, match="privileged"):
        parse_options({"privileged": [""]})


GOOD = [
    ("memory", "6m", "memory_bytes", 6 << 20),
    ("memory", "8g", "memory_bytes", 8 << 30),
    ("memory", "1.5g", "memory_bytes", 3 << 29),
    ("cpus", "2.5", "cpus", 2.5),
    ("cpus", ".5", "cpus", 0.5),
    ("cpus", "0.123456789", "cpus", 0.123456789),
    ("cpuset-cpus", "0-3,7", "cpuset", "0-3,7"),
    ("cpuset-cpus", "0", "cpuset", "0"),
    ("pids-limit", "100", "pids_limit", 100),
    ("pids-limit", "-1", "pids_limit", -1),
    ("pids-limit", "0", "pids_limit", -1),
    ("stop-timeout", "0", "stop_timeout", 0),
    ("stop-timeout", "300", "stop_timeout", 300),
    ("ulimit", "nofile=1024", "ulimits", (Ulimit(name="nofile", soft=1024, hard=1024),)),
    ("ulimit", "nofile=1024:2048", "ulimits", (Ulimit(name="nofile", soft=1024, hard=2048),)),
    ("ulimit", "memlock=-1", "ulimits", (Ulimit(name="memlock", soft=-1, hard=-1),)),
    ("ulimit", "stack=8192:-1", "ulimits", (Ulimit(name="stack", soft=8192, hard=-1),)),
    ("ulimit", "core=0", "ulimits", (Ulimit(name="core", soft=0, hard=0),)),
    ("publish", "80", "ports", (Port(box_port=80),)),
    ("publish", ":80", "ports", (Port(box_port=80),)),
    ("publish", "8080:80", "ports", (Port(box_port=80, host_port=8080),)),
    ("publish", "53:53/UDP", "ports", (Port(box_port=53, host_port=53, protocol="udp"),)),
    ("publish", "127.0.0.1::80", "ports", (Port(box_port=80, host_address="127.0.0.1"),)),
    ("publish", "127.0.0.1:1:80", "ports", (Port(box_port=80, host_port=1, host_address="127.0.0.1"),)),
    ("publish", "[0:0::1]:1:80", "ports", (Port(box_port=80, host_port=1, host_address="::1"),)),
    ("publish", "1-2:8-9", "ports", (Port(box_port=8, host_port=1), Port(box_port=9, host_port=2))),
    ("publish", "8-9/tcp", "ports", (Port(box_port=8), Port(box_port=9))),
    ("hostname", "node-1.example", "hostname", "node-1.example"),
    ("add-host", "db:10.0.0.1", "hosts", {"db": "10.0.0.1"}),
    ("add-host", "db=10.0.0.1", "hosts", {"db": "10.0.0.1"}),
    ("add-host", "db:2001:DB8::1", "hosts", {"db": "2001:db8::1"}),
    ("add-host", "db:[::1]", "hosts", {"db": "::1"}),
    ("add-host", "me:host-gateway", "hosts", {"me": "host-gateway"}),
    ("ipc", "private", "ipc", "private"),
    ("ipc", "shareable", "ipc", "shareable"),
    ("ipc", "host", "ipc", "host"),
    ("ipc", "none", "ipc", "none"),
    ("platform", "linux/amd64", "platform", "linux/amd64"),
    ("platform", "linux/arm64/v8", "platform", "linux/arm64/v8"),
    ("cap-add", "SYS_PTRACE", "cap_add", ("SYS_PTRACE",)),
    ("cap-add", "cap_net_admin", "cap_add", ("NET_ADMIN",)),
    ("cap-drop", "ALL", "cap_drop", ("ALL",)),
    ("cap-drop", "MKNOD", "cap_drop", ("ALL",)),
    ("group-add", "video", "groups", ("video",)),
    ("group-add", "044", "groups", ("44",)),
    ("label", "team=a b=c", "labels", {"team": "a b=c"}),
    ("label", "com.example.team", "labels", {"com.example.team": ""}),
]


@pytest.mark.parametrize(("flag", "text", "name", "value"), GOOD)
def test_a_text_has_dockers_meaning(flag, text, name, value):
    given = {} if flag == "pids-limit" else {"pids_limit": default_processes()}
    assert parse_options({flag: [text]}) == BoxOptions(**given, **{name: value})


BAD = [
    ("memory", ["0", "-1", "5m", "6291455", "1.5.g", "lots", "9" * 5000, "99999999999g", "８g"], "8g|6m"),
    (
        "cpus",
        ["0", "-1", "0.001", "1.0000000001", "1e3", "1/2", "inf", "nan", "1.", ".", "9" * 400, "１"],
        "such as 2.5",
    ),
    ("cpuset-cpus", ["3-1", "0,", ",0", "0--1", "-1", "a", "0-3;7", "0 - 3", "8192", "0-7:2/4", "9" * 5000], "0-3,7"),
    ("pids-limit", ["-2", "x", "1.5", "4194305", "9" * 5000, "--1", "+1"], "-1 for no limit"),
    ("stop-timeout", ["-1", "-0.5", "1s", "9999999999"], "from 0 up"),
    (
        "ulimit",
        ["nofile", "nofile=", "nofile=1:", "nofile=1:2:3", "nofile=-2", "nofile=x", "nofile=1g"],
        "nofile=1024:2048",
    ),
    ("ulimit", ["as=1", "=1", "NOFILE=1", "", "--privileged"], "there is no limit|no value"),
    ("ulimit", ["nofile=2:1", "nofile=-1:5"], "above the hard one"),
    (
        "publish",
        ["0", "65536", "0:80", "80:0", "80:65536", "9-8", "80/http", "80/ſctp", "a", "8080:80:", "127.0.0.1:80"],
        "1 to 65535",
    ),
    (
        "publish",
        ["::1:80:80", "[::1]:80", "[fe80::1%eth0]:1:80", "localhost:1:80", "80 ", "1:2:3:4", "-80"],
        "1 to 65535",
    ),
    ("publish", ["8000-8010:80", "1-2:1-3"], "equally long"),
    ("publish", ["8080::80", "127.1:1:80", "256.0.0.1:1:80", "[1]:1:80", "[127.0.0.1]:1:80"], "the address is none"),
    ("hostname", ["-a", "a-", "a_b", "a..b", "a.", ".a", "a" * 65, "é", "--privileged", "a b"], "letters, digits"),
    ("add-host", ["", ":1.2.3.4", "-a:1.2.3.4", "a b:1.2.3.4", "a_b:1.2.3.4"], "no host's name|no value"),
    ("add-host", ["db", "db:", "db:x", "db:1.2.3", "db:1.2.3.4 x", "db:fe80::1%eth0", "db:[1.2.3.4]"], "is no address"),
    ("ipc", ["container:abc", "container:"], "the record knows nothing of"),
    ("ipc", ["Host", "shared", "ns:/proc/1/ns/ipc", "host "], "private, shareable, host or none"),
    ("platform", ["linux", "amd64", "windows/amd64", "linux/x86_64", "linux/arm64/", "linux/arm64/v8/x"], "linux/ARCH"),
    (
        "cap-add",
        ["SYS_PTRAC", "CAP_", "CAP_CAP_CHOWN", "SYS-ADMIN", "--privileged", "ſETUID"],
        "no such capability|would",
    ),
    (
        "cap-add",
        ["ALL", "all", "CAP_ALL", "SYS_ADMIN", "cap_sys_admin", "SYS_MODULE", "SYS_RAWIO", "SYS_BOOT"],
        "would",
    ),
    ("cap-add", ["DAC_READ_SEARCH", "BPF", "MAC_ADMIN", "MAC_OVERRIDE", "SYS_TIME", "AUDIT_CONTROL"], "would"),
    ("cap-drop", ["nothing"], "no such capability"),
    ("group-add", ["-1", "2147483648", "a b", "a:b", "-x", "é"], "group's number"),
    ("label", ["=x", "a b=c", "\u00a0reprobox.run=x", "-x"], "KEY or KEY=VALUE"),
    ("label", ["reprobox.run=x", "reprobox.project"], "choose another key"),
    (
        "device",
        ["sda", "/etc/passwd", "/dev", "/dev/null:x", "/dev/null:/etc/x", "/dev/null:/dev/../etc"],
        "give /dev/NAME",
    ),
    (
        "device",
        ["/dev/a:/dev/b:rwx", "/dev/a:rr", "/dev/a:/dev/b:r:w", "/dev/a:/dev/b:/dev/c", "/dev/a:"],
        "give /dev/NAME",
    ),
    ("device", ["/dev/sda", "/dev/sdb1", "/dev/nvme0n1", "/dev/nvme0", "/dev/vda", "/dev/dm-0"], "the machine itself"),
    ("device", ["/dev/mem", "/dev/kmem", "/dev/kmsg", "/dev/port", "/dev/cpu/0/msr", "/dev/sg0"], "the machine itself"),
    (
        "device",
        ["/dev//sda", "/dev/x/../sda", "/dev/disk/by-id/x", "/dev/mapper/root", "/dev/sda:/dev/x"],
        "the machine itself",
    ),
    ("device", ["/dev/tty1", "/dev/console:/dev/x", "/dev/pts/0:/dev/x", "/dev/input/event0"], "the machine itself"),
    ("device", ["/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm", "nvidia.com/gpu=all"], "--gpus"),
    ("device", ["/dev/null", "/dev/zero:/dev/urandom", "/dev/x:/dev/pts/0", "/dev/x:/dev/shm"], "of its own"),
]


@pytest.mark.parametrize(
    ("flag", "text", "words"), [(flag, text, words) for flag, texts, words in BAD for text in texts]
)
def test_a_bad_text_is_refused_by_name(flag, text, words):
    with pytest.raises(UsageError, match=words) as caught:
        parse_options({flag: [text]})
    assert f"--{flag}" in caught.value.message
    assert caught.value.remedy
    assert text in str(caught.value) or not text.isprintable()


@pytest.mark.parametrize("text", NO_TEXTS)
@pytest.mark.parametrize("flag", [flag.names[-1].removeprefix("--") for flag in DOCKER_FLAGS])
def test_what_is_no_text_is_refused_everywhere(flag, text, tmp_path):
    parsers = {
        "mount": lambda: parse_mount(text, tmp_path),
        "tmpfs": lambda: parse_tmpfs(text),
        "user": lambda: parse_user(text),
    }
    with pytest.raises(UsageError, match=f"^--{flag} ") as caught:
        parsers.get(flag, lambda: parse_options({flag: [text]}))()
    assert str(caught.value).isprintable()
    str(caught.value).encode()


@pytest.mark.parametrize("text", NO_TEXTS)
def test_a_volume_is_text(text, tmp_path):
    with pytest.raises(UsageError, match=r"^-v ") as caught:
        parse_volume(f"./{text}:/data" if text else "", tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("text", ["team=a\nb", "team=a\0", "team=\udcff"])
def test_a_labels_value_is_text_too(text):
    with pytest.raises(UsageError, match="control character"):
        parse_options({"label": [text]})


def test_each_flag_that_is_taken_more_than_once_keeps_its_order():
    options = parse_options(
        {
            "cap-add": ["KILL", "CHOWN", "CAP_KILL"],
            "group-add": ["video", "5", "05"],
            "publish": ["2", "1", "2"],
            "ulimit": ["core=1", "nofile=2", "core=3"],
            "label": ["a=1", "a=2"],
        }
    )
    assert options.cap_add == ("KILL", "CHOWN")
    assert options.groups == ("video", "5")
    assert [port.box_port for port in options.ports] == [2, 1]
    assert [(limit.name, limit.soft) for limit in options.ulimits] == [("core", 3), ("nofile", 2)]
    assert options.labels == {"a": "2"}


def test_a_host_has_one_address():
    assert parse_options({"add-host": ["a:::1", "a=0::1"]}).hosts == {"a": "::1"}
    with pytest.raises(UsageError, match="two addresses"):
        parse_options({"add-host": ["a:1.1.1.1", "a:1.1.1.2"]})


def test_a_capability_is_not_added_and_dropped():
    with pytest.raises(UsageError, match="both name KILL"):
        parse_options({"cap-add": ["KILL"], "cap-drop": ["cap_kill"]})


def test_a_misspelt_capability_is_suggested():
    with pytest.raises(UsageError, match="did you mean SYS_PTRACE"):
        parse_options({"cap-add": ["SYS_PTRAC"]})


def test_the_capabilities_are_linuxs():
    assert len(_CAPABILITIES) == 41  # CAP_LAST_CAP is 40 from Linux 5.9 on


@pytest.mark.parametrize(
    ("text", "user"), [("1000", (1000, None)), ("1000:100", (1000, 100)), ("root", (0, None)), ("0:root", (0, 0))]
)
def test_a_user(text, user):
    assert parse_user(text) == user


@pytest.mark.parametrize(
    "text", ["me", "1000:staff", ":1", "1:", "1:2:3", "-1", "2147483648", "1 ", "１", "root ", "9" * 5000]
)
def test_a_user_by_another_name_is_refused(text):
    with pytest.raises(UsageError, match="give numbers"):
        parse_user(text)
