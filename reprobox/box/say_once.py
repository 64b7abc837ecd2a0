"""Says what there is to say of a tree of processes that no entrypoint began, once, when the first of them imports torch.

Every Python of an editor or a build step begins such a tree, and most have nothing to do with training.
"""

import atexit
import os
import sys

_hook = sys.modules["_reprobox_hook"]


def begin():
    """Have the first process of a tree take the mark away at its end."""
    tree = os.environ.get(_hook.SAY, "").partition("\n")[0]
    root = os.getpid()
    if tree.startswith(f"{root}-"):
        atexit.register(_tidy, tree, root)


def apply(name, module, recipe):
    """Say the lines, unless another process of the tree has; called after the import of torch."""
    del name, module, recipe
    tree, *lines = os.environ[_hook.SAY].split("\n")
    os.environ[_hook.SAY] = tree  # what is started from here on has nothing more to say
    if lines and _first(tree):
        sys.stderr.write("".join(f"reprobox: {line}\n" for line in lines))
        sys.stderr.flush()


def _first(tree):
    """Tell whether no other process has said it: processes that share nothing but a folder can agree by a file's name."""
    try:
        os.close(os.open(_mark(tree), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    except FileExistsError:
        return False
    except OSError:
        pass  # no folder to write in: better twice than never
    return True


def _tidy(tree, root):
    if os.getpid() == root:
        try:
            os.unlink(_mark(tree))
        except OSError:
            pass


def _mark(tree):
    return f"/tmp/.reprobox-said-{os.getuid()}-{tree}"  # noqa: S108  its name says all, and nothing is read from it
