"""What the paths of control groups say: of a ``/proc/PID/cgroup``, the units and containers.

Sources: cgroups(7), cgroup_namespaces(7); the names of container groups are those that runc and
crun give under systemd (``docker-ID.scope``, ``libpod-ID.scope``, ``cri-containerd-ID.scope``)
and without (``/docker/ID``, ``/libpod_parent/libpod-ID``, ``/kubepods/burstable/podUID/ID``), and
``SLICE:cri-containerd:ID``, which a runtime without systemd makes of a name meant for one with it.
What a whole pod shares (``libpod_pod_ID``) is no container.
"""

from __future__ import annotations

import re

_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?=/|$)")


def paths(text: str) -> tuple[str, ...]:
    """The paths in a ``/proc/PID/cgroup`` that systemd's names are in, of cgroup v2 and v1."""
    lines = [line.split(":", 2) for line in text.splitlines() if line.count(":") >= 2]  # noqa: PLR2004
    return tuple(path for _, kind, path in lines if kind in {"", "name=systemd"})


def is_within(group: str, top: str) -> bool:
    """Whether a control group is another one, or below it; the root and none hold nobody."""
    top = top.rstrip("/")
    return bool(top) and (group == top or group.startswith(f"{top}/"))


def containers(group: str) -> dict[str, str]:
    """The whole ids of the containers that a control group is in, outermost first.

    With each goes the container's own control group, the part of the path that ends in the id.
    """
    return {found[1]: group[: found.end()] for found in _CONTAINER.finditer(group)}
