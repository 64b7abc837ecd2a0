"""Installs reprobox's hook in every Python process whose search path starts with this folder.

The image also links this file into the standard library's folder, where ``-I`` and ``-E`` cannot hide it. CPython
imports ``sitecustomize`` once, under this name, so whichever is found first does the work and the other is never run.
"""

import os
import sys


def _install():
    here = os.path.dirname(os.path.realpath(__file__))
    # The frozen import machinery is loaded already; importlib.util would cost 9 ms in every process.
    external = sys.modules["_frozen_importlib_external"]
    name = "_reprobox_hook"
    if name not in sys.modules:
        path = os.path.join(os.path.dirname(here), "hook.py")
        module = type(sys)(name)
        module.__file__ = path
        sys.modules[name] = module
        exec(external.SourceFileLoader(name, path).get_code(name), module.__dict__)
        module.install()
    sys.modules[name].run_the_users_sitecustomize(os.path.realpath(__file__))


try:
    _install()
except Exception as error:  # the user's program comes first: a broken hook is reported, never fatal
    sys.stderr.write(f"reprobox: the recipe did not reach process {os.getpid()}: {type(error).__name__}: {error}\n")
