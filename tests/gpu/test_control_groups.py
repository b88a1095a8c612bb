"""What is read out of the paths of control groups; real ones are in test_attribution.py."""

from __future__ import annotations

import pytest

from mgpu.gpu import control_groups

ID = "0123456789abcdef" * 4
OTHER = ID[::-1]


@pytest.mark.parametrize(
    ("path", "ids"),
    [
        (f"/system.slice/docker-{ID}.scope", [ID]),
        (f"/docker/{ID}", [ID]),
        (f"/user.slice/user-1000.slice/user@1000.service/user.slice/docker-{ID}.scope", [ID]),
        (f"/machine.slice/libpod-{ID}.scope", [ID]),
        (f"/machine.slice/libpod-{ID}.scope/container", [ID]),
        (f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope", [ID]),
        (f"/libpod_parent/libpod_pod_{OTHER}/{ID}", [ID]),
        (f"/system.slice/foo.service/libpod-payload-{ID}", [ID]),
        (f"/kubepods.slice/kubepods-burstable.slice/cri-containerd-{ID}.scope", [ID]),
        (f"/kubepods/burstable/pod6f1ff4ae-8d7d-4f5c-b0a5-0a4b0f0b0c0d/{ID}", [ID]),
        (f"/system.slice/containerd.service/kubepods-pod6f.slice:cri-containerd:{ID}", [ID]),
        (f"/../../docker-{ID}.scope", [ID]),
        (f"/../{ID}", [ID]),
        (f"/docker/{OTHER}/docker/{ID}", [OTHER, ID]),
        (f"/docker/{OTHER}/kubelet.slice/cri-containerd-{ID}.scope", [OTHER, ID]),
        ("/system.slice/foo.service", []),
        ("/system.slice/docker-0123.scope", []),
        (f"/system.slice/foo{ID}.service", []),
        ("", []),
    ],
)
def test_the_containers_of_a_control_group_are_found_from_without(
    path: str, ids: list[str]
) -> None:
    assert list(control_groups.containers(path)) == ids


def test_with_each_goes_its_own_control_group() -> None:
    assert control_groups.containers(f"/docker/{OTHER}/system.slice/docker-{ID}.scope/worker") == {
        OTHER: f"/docker/{OTHER}",
        ID: f"/docker/{OTHER}/system.slice/docker-{ID}.scope",
    }


@pytest.mark.parametrize(
    ("group", "within"),
    [
        ("/system.slice/tts.service", True),
        ("/system.slice/tts.service/worker", True),
        ("/system.slice/tts.service2", False),
        ("/system.slice", False),
    ],
)
def test_a_units_processes_are_in_its_group_or_below(group: str, within: bool) -> None:
    assert control_groups.is_within(group, "/system.slice/tts.service") is within


@pytest.mark.parametrize("top", ["", "/"])
def test_the_root_is_nobodys_group(top: str) -> None:
    assert not control_groups.is_within("/system.slice/tts.service", top)


def test_both_versions_of_control_groups_are_read() -> None:
    assert control_groups.paths("0::/a.service\n") == ("/a.service",)
    assert control_groups.paths("4:memory:/m\n1:name=systemd:/b.service\n0::/\n") == (
        "/b.service",
        "/",
    )
