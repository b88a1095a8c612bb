"""The command ``mgpu``."""

from mgpu.cli.app import main

__all__ = ["main"]
