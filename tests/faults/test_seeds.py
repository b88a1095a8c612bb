"""The scheduler under everything at once: two thousand histories, every kind of fault."""

from __future__ import annotations

from collections import Counter

import pytest

from mgpu.core.model import ConsumerPolicy, ConsumerState, Order, Outcome, Policy
from tests.faults.kinds import Fault, label
from tests.faults.planted import ROOT, run_python, run_seeds
from tests.faults.playing import play, shrink, story
from tests.faults.scenario import NAMES, Scenario, Spec, Visit, draw
from tests.faults.world import World

SEEDS, CHUNKS = 2000, 4
"""In processes of their own, so that two workers share them."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS // CHUNKS))
def test_every_promise_holds_on_every_seed(first: int) -> None:
    report = run_seeds(ROOT, first, SEEDS // CHUNKS, timeout_s=290)
    if report.seed is not None:
        failure = play(draw(report.seed))
        assert failure is not None, report.what
        told = story(shrink(failure, tries=200))
        pytest.fail(f"scripts/simulate --seed {report.seed} replays this:\n{told}", pytrace=False)
    assert report.seeds == SEEDS // CHUNKS


@pytest.mark.parametrize("fault", Fault, ids=label)
def test_every_kind_of_fault_is_met_and_survived(fault: Fault) -> None:
    met: Counter[Fault] = Counter()
    for seed in range(300):
        failure = play(draw(seed, kinds=[fault]), met, longest_s=60.0)
        assert failure is None, f"seed {seed} with {label(fault)} alone: {failure.what}"
        if met[fault]:
            return
    pytest.fail(f"{label(fault)} never had an opportunity")


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_hundreds_of_jobs_with_a_dozen_kinds_of_faults(seed: int) -> None:
    kinds = [fault for number, fault in enumerate(Fault) if number % 5 == seed]
    failure = play(draw(seed, jobs=250, kinds=kinds), longest_s=60.0)
    assert failure is None, failure.what


@pytest.mark.parametrize("order", Order)
def test_without_faults_every_job_is_done(order: Order) -> None:
    specs = tuple(
        Spec(
            policy=ConsumerPolicy(
                name=name, footprint_mib=footprint_mib, initially=ConsumerState.ABSENT
            )
        )
        for name, footprint_mib in zip(NAMES, (12000, 5000, 16000, 8000, 2000), strict=True)
    )
    visits = tuple(Visit(n * 1.3, f"j{n}", NAMES[n * n % 5]) for n in range(40))
    policy = Policy(consumers={s.name: s.policy for s in specs}, order=order)
    world = World(Scenario(seed=0, policy=policy, specs=specs, lines=visits))
    world.run()
    assert world.outcomes == {Outcome.DONE: 40}
    assert {consumer.failures for consumer in world.state.consumers.values()} == {0}


def test_the_same_seed_gives_the_same_story_whatever_the_hash_seed() -> None:
    """Sets of names are everywhere: none may decide anything by its order."""
    stories = {
        run_python(
            ROOT, "tests.faults.tell", "7", "11", timeout_s=50, PYTHONHASHSEED=hash_seed
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(stories) == 1
    assert "Grant" in stories.pop()
