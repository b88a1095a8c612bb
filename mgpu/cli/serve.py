"""``mgpu serve``: the broker in the foreground."""

from __future__ import annotations

from functools import partial

from mgpu.cli.options import DEFAULT_CONFIG, ConfigFile
from mgpu.config.load import load
from mgpu.serving import serve as run


def serve(*, config: ConfigFile = DEFAULT_CONFIG) -> None:
    """Run the broker until it is told to stop; SIGHUP reads the configuration again."""
    run(partial(load, config))
