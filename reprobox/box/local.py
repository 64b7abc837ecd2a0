"""The entrypoint on a machine without a box: started by the local engine as a plain script, with ``-I -S``."""

import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the slow imports: Ctrl-C ends the box, without a traceback

from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reprobox.box.entrypoint import main

if __name__ == "__main__":
    raise SystemExit(main(image_environment={}))
