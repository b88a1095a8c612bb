from __future__ import annotations

import math

import pytest

from mgpu.config.model import SchedulerConfig
from mgpu.core.model import ConsumerState, Order
from mgpu.errors import ConfigError
from mgpu.simulation import policies
from mgpu.simulation.policies import Baseline
from tests.simulation.tiny import ABA, service, trace


def names(settings: policies.Settings) -> list[str]:
    return [candidate.name for candidate in policies.combinations(settings)]


def test_every_order_of_the_configuration_is_compared() -> None:
    configs = [c.scheduler for c in policies.combinations({})]
    assert {config.order for config in configs if config is not None} == set(Order)
    assert len(set(names({}))) == len(configs)


def test_a_policy_is_named_after_its_settings() -> None:
    config = SchedulerConfig(order=Order.ARRIVAL, max_overtake_s=30.0)
    assert policies.name_of(config).startswith("arrival+lru")
    assert policies.name_of(config).endswith("+max_overtake_s=30.0")


def test_a_key_that_is_set_takes_only_those_values() -> None:
    found = names({"scheduler.order": ["arrival"], "scheduler.max_overtake_s": ["30", "60"]})
    assert all(name.startswith("arrival+") for name in found)
    assert {name.rpartition("+")[2] for name in found} == {
        "max_overtake_s=30.0",
        "max_overtake_s=60.0",
    }


def test_the_chosen_policy_is_the_default_with_what_is_set() -> None:
    assert policies.chosen({}) == SchedulerConfig()
    chosen = policies.chosen({"scheduler.order": ["arrival"], "gpu.cushion_mib": ["1"]})
    assert chosen.order is Order.ARRIVAL


def test_baselines_overlap_nothing() -> None:
    strict, resident_first, eager, never = policies.baselines()
    assert strict.scheduler is not None
    assert resident_first.scheduler is not None
    for config in (strict.scheduler, resident_first.scheduler):
        assert not getattr(config, "prefetch", False)
        assert config.victims == "lru"
    assert (eager.baseline, never.baseline) == (Baseline.EAGER, Baseline.NEVER_LOADS)


def test_a_combination_that_is_a_baseline_is_shown_once() -> None:
    rows = policies.unique([*policies.baselines(), *policies.combinations({})])
    shown = [row.name for row in rows]
    assert shown[:4] == ["strict", "resident-first", "eager", "never loads"]
    assert "arrival+lru" not in shown


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scheduler.order", "backwards", "scheduler.order: "),
        ("scheduler.ordr", "arrival", "scheduler.ordr: "),
        ("scheduler.max_overtake_s", "soon", "scheduler.max_overtake_s: "),
    ],
)
def test_a_bad_setting_is_named(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policies.combinations({key: [value]})
    with pytest.raises(ConfigError, match=message):
        policies.chosen({key: [value]})


def test_footprints_and_the_cushion_of_a_trace_can_be_set() -> None:
    changed = policies.apply_to_trace(
        {
            "consumers.a.footprint_mib": ["700"],
            "gpu.cushion_mib": ["99"],
            "scheduler.order": ["arrival"],
        },
        trace(*ABA),
    )
    assert changed.cushion_mib == 99
    assert changed.services["a"].footprint_mib == 700
    assert changed.services["b"].footprint_mib == 600


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("consumers.c.footprint_mib", "1", "the trace has a, b"),
        ("consumers.a.footprint_mib", "-1", "no whole number"),
        ("gpu.cushion_mib", "much", "no whole number"),
        ("gpu.lock", "shared", "what can be set"),
        ("order", "arrival", "what can be set"),
    ],
)
def test_what_cannot_be_set_is_named(key: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        policies.apply_to_trace({key: [value]}, trace(*ABA))


def test_rules_let_every_job_of_the_trace_wait_for_as_long_as_it_takes() -> None:
    services = (service("a", gpus=(1,)), service("b"))
    what = trace(*ABA, total_mib=(1000, 2000), services=services, resident=("b",))
    rules = policies.rules(SchedulerConfig(), what)
    assert rules.max_wait_s == math.inf
    assert (rules.cushion_mib, rules.order) == (0, SchedulerConfig().order)
    assert rules.consumers["a"].gpus == (1,)
    assert rules.consumers["a"].max_queue >= len(what.arrivals)
    assert rules.consumers["a"].initially is ConsumerState.ABSENT
    assert rules.consumers["b"].initially is ConsumerState.RESIDENT


def test_a_longest_wait_that_is_set_counts() -> None:
    assert policies.rules(SchedulerConfig(max_wait_s=5.0), trace(*ABA)).max_wait_s == 5.0
