"""How long a process has waited for a processor, while others computed."""

from __future__ import annotations

from pathlib import Path


def waited_s(pid: int) -> float:
    """The seconds that a process's main thread was ready to run and did not, since it began.

    The second figure of ``/proc/PID/task/PID/schedstat``, in nanoseconds:
    Documentation/scheduler/sched-stats.rst in Linux. On a machine with nothing else to do it stands
    still.
    """
    return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1]) * 1e-9
