"""The entrypoint on a machine without a box: started by the local engine as a plain script, with ``-I -S``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from reprobox.box.entrypoint import main

if __name__ == "__main__":
    raise SystemExit(main(image_environment={}))
