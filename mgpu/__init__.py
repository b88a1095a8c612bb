"""A GPU broker: one address in front of every service that shares a graphics card."""

from importlib.metadata import version

__version__ = version("mgpu-broker")
