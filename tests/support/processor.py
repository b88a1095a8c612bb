"""How long a process has waited for a processor, while others computed."""

from __future__ import annotations

from pathlib import Path


def waited_s(pid: int) -> float:
    """The seconds that a process's threads were ready to run and did not, since each began.

    The second figure of ``/proc/PID/task/TID/schedstat``, in nanoseconds:
    Documentation/scheduler/sched-stats.rst in Linux. On a machine with nothing else to do it stands
    still.
    """
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[1]) for thread in threads) * 1e-9
