"""What does pre-training buy a small vision transformer? The library behind the workflow."""

from __future__ import annotations

from importlib import metadata

try:
    __version__ = metadata.version("viny")
except metadata.PackageNotFoundError:  # run from a checkout that is on the path but not installed
    __version__ = "0.1.0"
