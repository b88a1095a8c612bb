from __future__ import annotations

from mgpu.simulation.bus import Bus


def ends(bus: Bus) -> list[tuple[str, float]]:
    found = []
    while (end_s := bus.next_end_s()) is not None:
        found.append((bus.take(end_s), end_s))
    return found


def test_alone_a_load_takes_its_time() -> None:
    bus = Bus(shared=True)
    bus.start("a", 3.0, at_s=1.0)
    assert ends(bus) == [("a", 4.0)]


def test_at_full_speed_loads_do_not_know_of_each_other() -> None:
    bus = Bus(shared=False)
    bus.start("a", 3.0, at_s=0.0)
    bus.start("b", 1.0, at_s=1.0)
    assert ends(bus) == [("b", 2.0), ("a", 3.0)]


def test_two_that_share_from_the_start_take_twice_as_long() -> None:
    bus = Bus(shared=True)
    bus.start("a", 2.0, at_s=0.0)
    bus.start("b", 2.0, at_s=0.0)
    assert ends(bus) == [("a", 4.0), ("b", 4.0)]


def test_what_was_done_alone_is_not_shared_later() -> None:
    bus = Bus(shared=True)
    bus.start("a", 2.0, at_s=0.0)
    bus.start("b", 2.0, at_s=1.0)
    # a has 1 s left at 1 s, at half speed: until 3 s. b has 1 s left then, alone: until 4 s.
    assert ends(bus) == [("a", 3.0), ("b", 4.0)]
