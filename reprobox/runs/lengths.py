"""How much a command may be given: Linux starts no program whose words or variables are longer (execve(2))."""

from __future__ import annotations

import os
import resource
from types import MappingProxyType
from typing import TYPE_CHECKING

from reprobox.errors import BoxError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from reprobox.engines.base import Ulimit

__all__ = ["LONGEST_BYTES", "refuse_what_is_too_long", "stack_of_a_box", "stack_of_this_process"]

LONGEST_BYTES = 131_072
"""MAX_ARG_STRLEN: one word, or one variable with its name, with the NUL byte that ends it."""

POINTER_BYTES = 8
USUAL_STACK_BYTES = 8 << 20
MOST_BYTES = 6 << 20
LEAST_BYTES = LONGEST_BYTES
"""Altogether a quarter of the stack's limit, of which Linux makes no more than the one and no less than the other."""

OURS_BYTES = 64 << 10
"""What the entrypoint, the image and the recipe add."""


def refuse_what_is_too_long(
    command: Sequence[str],
    environment: Mapping[str, str | None],
    secrets: Mapping[str, bytes],
    inherited: Mapping[str, str] = MappingProxyType({}),
    stack: int = USUAL_STACK_BYTES,
) -> None:
    """Refuse what no program can be started with, before anything is started.

    :param inherited: this machine's variables, where the command gets them too.
    :param stack: the limit of the command's stack in bytes.
    :raises BoxError: naming the word, the variable or the secret.
    """
    words = {f"word {number} of the command": os.fsencode(word) for number, word in enumerate(command, 1)}
    given = {name: value for name, value in environment.items() if value is not None and name not in secrets}
    variables = {f"the variable {name}": os.fsencode(f"{name}={value}") for name, value in given.items()}
    hidden = {f"the secret {name}": name.encode() + b"=" + value.removesuffix(b"\n") for name, value in secrets.items()}
    parts = {what: len(text) + 1 for what, text in {**words, **variables, **hidden}.items()}
    for what, length in parts.items():
        if length > LONGEST_BYTES:
            raise BoxError(
                f"the command cannot be started: {what} is {length - 1} bytes long, and Linux hands over "
                f"{LONGEST_BYTES - 1} at most",
                remedy="give it in a file",
            )
    others = sum(len(os.fsencode(f"{n}={v}")) + 1 + POINTER_BYTES for n, v in inherited.items())
    total = OURS_BYTES + others + sum(length + POINTER_BYTES for length in parts.values())
    most = _most(stack)
    if total > most:
        longest = max(parts, key=lambda what: parts[what])
        raise BoxError(
            f"the command cannot be started: its words and variables are {total} bytes long altogether, and Linux hands "
            f"over {most} at most; {longest} is the longest",
            remedy="give what is long in a file",
        )


def stack_of_this_process() -> int:
    """Return the limit of this process's stack in bytes; the most that counts where there is none."""
    limit, _ = resource.getrlimit(resource.RLIMIT_STACK)
    return 4 * MOST_BYTES if limit == resource.RLIM_INFINITY else limit


def stack_of_a_box(ulimits: Iterable[Ulimit]) -> int:
    """Return the limit of a box's stack in bytes: the one that was asked for, or the usual one."""
    asked = [limit.soft for limit in ulimits if limit.name == "stack"]
    if not asked:
        return USUAL_STACK_BYTES
    return asked[0] if asked[0] >= 0 else 4 * MOST_BYTES


def _most(stack: int) -> int:
    return max(LEAST_BYTES, min(MOST_BYTES, stack // 4))
