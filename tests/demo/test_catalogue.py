import pytest

from mgpu.demo.catalogue import CATALOGUE, Kind

CARD_MIB = 24 * 1024
CUSHION_MIB = 256


def test_every_kind_has_a_profile() -> None:
    assert {kind: profile.name for kind, profile in CATALOGUE.items()} == {k: k for k in Kind}


def test_they_do_not_fit_together_on_a_24_gib_card() -> None:
    assert sum(profile.footprint_mib for profile in CATALOGUE.values()) > CARD_MIB


@pytest.mark.parametrize("kind", Kind)
def test_each_fits_on_a_24_gib_card_beside_what_the_others_leave_behind(kind: Kind) -> None:
    left_behind = sum(profile.residual_mib for profile in CATALOGUE.values())
    assert CATALOGUE[kind].footprint_mib + left_behind + CUSHION_MIB <= CARD_MIB


def test_scaling_changes_times_and_nothing_else() -> None:
    profile, half = CATALOGUE[Kind.LANGUAGE], CATALOGUE[Kind.LANGUAGE].scaled(0.5)
    assert half.scaled(2.0) == profile
    assert half.load_s == profile.load_s / 2
    assert half.footprint_mib == profile.footprint_mib
