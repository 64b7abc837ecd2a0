"""Starts the self-test as a plain script: ``python launch.py [OPTIONS]``, with the package found beside it."""

import os
import sys

NO_TORCH = 3
"""Exit code where this Python has no torch: there is nothing to test."""

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    try:
        import torch  # noqa: F401
    except ImportError:
        raise SystemExit(NO_TORCH) from None
    # In front only while our own modules are found: another reprobox may be installed.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(here))))
    from reprobox.box.selftest.runner import main

    del sys.path[0]
    raise SystemExit(main())
