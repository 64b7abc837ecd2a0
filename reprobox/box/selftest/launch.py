"""Starts the self-test as a plain script: ``python launch.py [OPTIONS]``, with the package found beside it."""

import os
import sys

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
    # In front only while our own modules are found: another reprobox may be installed, and torch's libraries are not ours.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(here))))
    from reprobox.box.selftest.runner import main

    del sys.path[0]
    raise SystemExit(main())
