"""``mgpu serve``: the broker in the foreground."""

from __future__ import annotations

from mgpu import bootstrap
from mgpu.cli.options import DEFAULT_CONFIG, ConfigFile
from mgpu.config.load import load


def serve(*, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Run the broker until it is told to stop."""
    valid = load(config)
    bootstrap.serve(valid)
