"""``python -m reprobox``."""

from reprobox.cli import main

if __name__ == "__main__":
    main()
