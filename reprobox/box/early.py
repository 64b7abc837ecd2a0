"""Installs the hook in interpreters started without ``site`` (``python -S``); the image's ``encodings`` runs it.

``encodings`` is the one module of the standard library that every start imports. The entrypoint itself, which runs with
``-S`` as well, is left alone.
"""

import sys


def _install():
    import os

    here = os.path.dirname(os.path.realpath(__file__))
    name, path = "_reprobox_hook", os.path.join(here, "hook.py")
    module = type(sys)(name)
    module.__file__ = path
    sys.modules[name] = module
    exec(sys.modules["_frozen_importlib_external"].SourceFileLoader(name, path).get_code(name), module.__dict__)
    module.install()


if sys.flags.no_site and "/opt/reprobox/entrypoint" not in sys.orig_argv:
    _install()
