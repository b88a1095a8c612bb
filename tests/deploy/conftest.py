import pytest

from tests.support.systemd import Systemd, systemd

__all__ = ["systemd"]


@pytest.fixture(scope="session")
def installed(systemd: Systemd) -> Systemd:
    """A systemd on whose machine the user mgpu has been made as the README says."""
    systemd.run("useradd", "--system", "--no-create-home", "mgpu", check=True)
    return systemd
