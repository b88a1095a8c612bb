"""The ways in which a consumer is loaded, unloaded and asked how it is."""

from mgpu.consumers.factory import make_controller
from mgpu.consumers.wire import control_session

__all__ = ["control_session", "make_controller"]
