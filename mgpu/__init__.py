"""A GPU broker: one address in front of every service that shares a graphics card."""

__version__ = "0.1.0"
