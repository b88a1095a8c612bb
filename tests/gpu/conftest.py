from tests.support.nvml import nvml, nvml_library

__all__ = ["nvml", "nvml_library"]
