"""``python -m mgpu`` is the command ``mgpu``."""

from mgpu.cli import main

if __name__ == "__main__":
    main()
