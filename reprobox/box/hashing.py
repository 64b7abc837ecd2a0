"""Which hash seed an interpreter really has: seen from a hash, since the environment may have changed after its start."""

import os
import sys

_PROBE = "reprobox"
_MASK = 2**64 - 1
_ROUNDS = {"siphash13": (1, 3), "siphash24": (2, 4)}


def in_force(*seeds):
    """Say whether ``str.__hash__`` follows one of ``seeds`` (numbers, as ``PYTHONHASHSEED`` takes them)."""
    rounds = _ROUNDS.get(sys.hash_info.algorithm)
    if rounds is None or sys.hash_info.width != 64:  # an interpreter built otherwise: its word has to do
        return not sys.flags.ignore_environment and os.environ.get("PYTHONHASHSEED") in map(str, seeds)
    return any(hash(_PROBE) == _hash_under(seed, rounds) for seed in seeds)


def _hash_under(seed, rounds):
    """Return ``hash(_PROBE)`` of an interpreter with this hash seed (CPython: bootstrap_hash.c, pyhash.c)."""
    secret, state = bytearray(), seed
    for _ in range(16):
        state = (state * 214013 + 2531011) % 2**32
        secret.append(state >> 16 & 0xFF)
    if seed == 0:
        secret = bytearray(16)
    low, high = (int.from_bytes(secret[at : at + 8], "little") for at in (0, 8))
    value = _siphash(low, high, _PROBE.encode("ascii"), *rounds)
    value -= 2**64 if value >= 2**63 else 0
    return -2 if value == -1 else value


def _siphash(low, high, data, per_block, at_end):
    """Return SipHash of ``data`` under the key ``low``, ``high`` (https://www.aumasson.jp/siphash/siphash.pdf)."""
    v = [low ^ 0x736F6D6570736575, high ^ 0x646F72616E646F6D, low ^ 0x6C7967656E657261, high ^ 0x7465646279746573]
    whole = len(data) - len(data) % 8
    blocks = [int.from_bytes(data[at : at + 8], "little") for at in range(0, whole, 8)]
    blocks.append(int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56)
    for block in blocks:
        v[3] ^= block
        _mix(v, per_block)
        v[0] ^= block
    v[2] ^= 0xFF
    _mix(v, at_end)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def _mix(v, rounds):
    a, b, c, d = v
    for _ in range(rounds):
        a = (a + b) & _MASK
        b = (b << 13 | b >> 51) & _MASK ^ a
        a = (a << 32 | a >> 32) & _MASK
        c = (c + d) & _MASK
        d = (d << 16 | d >> 48) & _MASK ^ c
        a = (a + d) & _MASK
        d = (d << 21 | d >> 43) & _MASK ^ a
        c = (c + b) & _MASK
        b = (b << 17 | b >> 47) & _MASK ^ c
        c = (c << 32 | c >> 32) & _MASK
    v[:] = a, b, c, d
