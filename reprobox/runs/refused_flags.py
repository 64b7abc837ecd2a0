"""The flags of ``docker run`` that ``reprobox run`` does not take: why, and what to do instead."""

from __future__ import annotations

from collections.abc import Mapping

from reprobox.errors import UsageError

__all__ = ["REFUSED", "refusal"]

_IO = "a rate of reading or writing cannot be limited yet; use --cpus or --memory, or stage the data on a faster disk"
_HEALTH = "a box is a command with an end, and its exit code is its health; leave it out"
_WINDOWS = "it is for Windows containers; leave it out"
_CFS = "CPU time has one flag here; use --cpus"
_SWAP = "only the memory limit is passed on; use --memory"
_LOG = "the output is passed through, and the engine keeps a copy of bounded size; leave it out"
_DNS = "the engine's own resolver is used; name a host with --add-host, or set dns in the engine's daemon.json"
_ADDRESS = "the engine gives a box its address; publish a port with -p, or choose a network with --network"
_ALIAS = "a box has one name on its network; use --name or --hostname"
_VOLUMES = "what a run sees is written down mount by mount; use -v or --mount"
_OOM = "the kernel must be able to end a box that runs out of memory; set a limit with --memory"
_NAMESPACE = "it would show the box the machine's own; leave it out"

_REFUSED: dict[tuple[str, ...], str] = {
    ("--privileged",): "it would give the box the whole machine; add the one thing with --device or --cap-add",
    ("--security-opt",): "a box always has no-new-privileges and the engine's own profiles; leave it out",
    ("--use-api-socket",): "it would give the box the engine, and with it the whole machine; leave it out",
    ("--entrypoint",): "reprobox's own entrypoint applies the recipe; name the program as the command",
    ("--pid", "--uts", "--cgroupns"): _NAMESPACE,
    ("--userns",): "the user is set by number; use --user",
    ("--cgroup-parent",): "the engine chooses the cgroup of a box; use --memory, --cpus and --pids-limit",
    ("--device-cgroup-rule",): "a rule would open devices that nobody named; name the one with --device",
    ("--runtime",): "the engine's own runtime is used, and --gpus brings the GPUs; use --gpus",
    ("--sysctl",): "the kernel's settings are the machine's; set them there with sysctl",
    ("--read-only",): "a box's file system is read-only as it is; leave it out",
    ("--restart",): "a run is one run of its command; start it again yourself",
    ("--attach", "-a"): "run shows both streams, or neither with -d; use -d, or redirect one in the shell",
    ("--detach-keys",): "the keys cannot be changed; start it with -d to leave it running",
    ("--sig-proxy",): "signals always reach the command; leave it out",
    ("--stop-signal",): "a box is stopped with TERM and then KILL; handle TERM, and set the time with --stop-timeout",
    ("--cidfile",): "the run's record names the container; give it a name with --name",
    ("--annotation",): "only labels are passed on; use --label",
    ("--label-file",): "labels are given one by one; use --label",
    ("--log-driver", "--log-opt"): _LOG,
    ("--cpu-shares", "-c", "--cpu-period", "--cpu-quota", "--cpu-rt-period", "--cpu-rt-runtime"): _CFS,
    ("--cpuset-mems",): "the kernel takes memory near the cores; use --cpuset-cpus",
    ("--memory-swap", "--memory-swappiness", "--memory-reservation", "--kernel-memory"): _SWAP,
    ("--oom-kill-disable", "--oom-score-adj"): _OOM,
    ("--blkio-weight", "--blkio-weight-device", "--device-read-bps", "--device-read-iops"): _IO,
    ("--device-write-bps", "--device-write-iops"): _IO,
    ("--storage-opt",): "a box's file system is read-only, and has no size to set; limit a --tmpfs with size=",
    ("--volume-driver",): "a volume keeps the driver it was made with; make it with `docker volume create` and use -v",
    ("--volumes-from",): _VOLUMES,
    ("--dns", "--dns-opt", "--dns-option", "--dns-search", "--domainname"): _DNS,
    ("--ip", "--ip6", "--link-local-ip", "--mac-address"): _ADDRESS,
    ("--network-alias", "--net-alias"): _ALIAS,
    ("--link",): "links are docker's past; put both containers on one network with --network",
    ("--expose",): "a port that is only exposed reaches nobody; use -p",
    ("--publish-all", "-P"): "only ports that are named are published; name each with -p",
    ("--health-cmd", "--health-interval", "--health-retries", "--health-start-period"): _HEALTH,
    ("--health-start-interval", "--health-timeout", "--no-healthcheck"): _HEALTH,
    ("--disable-content-trust",): "an image is what its digest says; give NAME@sha256:DIGEST to --image",
    ("--isolation", "--cpu-count", "--cpu-percent", "--io-maxbandwidth", "--io-maxiops"): _WINDOWS,
}

REFUSED: Mapping[str, str] = {flag: reason for flags, reason in _REFUSED.items() for flag in flags}
"""Every other flag of ``docker run`` (20.10 to 28): why a box cannot have it, and after the semicolon what to do."""


def refusal(flag: str) -> UsageError | None:
    """Return the error for a flag of ``docker run`` that reprobox does not take; ``None`` for any other word."""
    name = flag.partition("=")[0]
    if name not in REFUSED:
        return None
    reason, _, remedy = REFUSED[name].partition("; ")
    return UsageError(f"run has no {name}: {reason}", remedy=remedy)
