"""The scheduler under everything at once, in virtual time; a failure names its seed.

What holds at any time is checked in ``tests.core.world`` after every event: the invariants, tokens
that grow, nobody overtaken or left waiting past its deadline, nobody idle who could be served, one
load or unload per consumer at a time. At the end every job has come to exactly one end, every
request is answered, and nothing is running, waiting, reserved, locked or timed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpu.core.model import ConsumerPolicy, LockMode, NothingToEvict, Order, Outcome, Policy
from tests.core.playbook import absent, resident
from tests.core.world import Faults, World

FAULTS = Faults(
    load_fails=0.1,
    unload_hangs=0.1,
    unload_frees_nothing=0.1,
    dies=0.02,
    client_leaves=0.1,
    nvml_lost=0.02,
    foreign=0.05,
    unload_by_hand=0.02,
    job_hangs=0.02,
    restart_by_hand=0.02,
    pin_by_hand=0.02,
    pause=0.02,
)
SEEDS = 50


def consumers(gpus: int) -> dict[str, ConsumerPolicy]:
    """Each kind of consumer once: they need 61 GB together, and there are 24 or 48."""
    both = (0, 1) if gpus == 2 else None
    policies = (
        absent("image", 12000, can_load=False, busy_timeout_s=30.0),
        resident("tts", 5000, can_escalate=True, busy_timeout_s=20.0),
        resident(
            "stt", 6000, residual_mib=400, job_timeout_s=20.0, can_coexist_with=frozenset({"tts"})
        ),
        absent(
            "llm", 16000, can_escalate=True, concurrency=3, idle_unload_s=5.0, job_timeout_s=20.0
        ),
        resident(
            "own", 2000, vram_managed=True, job_timeout_s=20.0, can_load=False, can_unload=False
        ),
        absent("big", 20000, gpus=both, priority=1, job_timeout_s=20.0),
    )
    return {policy.name: policy for policy in policies}


def world(seed: int, jobs: int, faults: Faults = FAULTS) -> World:
    """A world whose rules are drawn from the seed too."""
    draw = random.Random(seed)
    gpus = draw.choice([1, 1, 2])
    policy = Policy(
        consumers=consumers(gpus),
        order=draw.choice(list(Order)),
        lock=draw.choice(list(LockMode)),
        when_nothing_to_evict=draw.choice(list(NothingToEvict)),
        max_wait_s=90.0,
        max_overtake_s=draw.choice([5.0, 30.0]),
        max_queue=draw.choice([5, 50]),
        min_resident_s=draw.choice([0.0, 3.0]),
        max_resident=draw.choice([0, 0, 2]),
        prefetch=draw.choice([True, True, False]),
        max_parallel_loads=draw.choice([1, 2, 3]),
    )
    return World(seed, policy, jobs=jobs, span_s=1.0 * jobs, gpus=gpus, faults=faults)


def play(each: World, seed: int) -> World:
    try:
        each.run()
    except AssertionError as error:
        story = "\n".join(each.history)
        raise AssertionError(f"seed {seed}: {error}\nafter\n{story}") from error
    return each


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_thousand_mixed_jobs_come_to_exactly_one_end_each(seed: int) -> None:
    ended = play(world(seed, 1000), seed).ended
    outcomes = Counter(finish.outcome for finish in ended.values())
    assert outcomes.total() == 1000
    assert outcomes[Outcome.DONE] > 150
    assert outcomes.keys() == set(Outcome)


@settings(max_examples=SEEDS, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 10**6), jobs=st.integers(1, 40))
def test_whatever_happens_all_comes_to_an_end(seed: int, jobs: int) -> None:
    play(world(seed, jobs), seed)


@pytest.mark.parametrize("seed", range(4))
def test_without_faults_every_job_is_done(seed: int) -> None:
    rules = Policy(consumers=consumers(1), order=list(Order)[seed % 2])
    calm = World(seed, rules, jobs=40, span_s=200.0, gpus=1, faults=Faults(), patience_s=600.0)
    ended = play(calm, seed).ended.values()
    assert {finish.outcome for finish in ended} == {Outcome.DONE}
    assert {consumer.failures for consumer in calm.state.consumers.values()} == {0}


def test_the_same_seed_gives_the_same_effects_whatever_the_hash_seed() -> None:
    """Sets of names are everywhere: none may decide anything by its order."""
    program = (
        "from tests.core.test_properties import play, world\n"
        "import hashlib\n"
        "print(hashlib.sha256('\\n'.join(play(world(7, 60), 7).trace).encode()).hexdigest())\n"
    )
    root = Path(__file__).parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1
    assert all(digests)
