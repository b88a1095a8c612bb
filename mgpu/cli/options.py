"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CONFIG = Path("broker.yaml")
DEFAULT_URL = "http://127.0.0.1:7070"

ConfigFile = Annotated[Path, typer.Option("-c", "--config", help="The configuration file.")]
Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="MGPU_URL",
        help="The broker's address: http://HOST:PORT or unix:/PATH. "
        "The API key comes from MGPU_API_KEY.",
    ),
]
