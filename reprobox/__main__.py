"""``python -m reprobox``."""

import sys

if not sys.flags.safe_path:
    # The current folder, which `-m` puts on the path: what lies there is the project's. This package is found by its own.
    del sys.path[0]

from reprobox.cli import main

if __name__ == "__main__":
    main()
