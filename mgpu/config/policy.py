"""What the scheduler gets of the configuration: rules, without addresses and calls."""

from __future__ import annotations

from mgpu.config.model import Config, ConsumerConfig
from mgpu.config.residency import load_key
from mgpu.core.model import ConsumerPolicy, ConsumerState, Policy


def policy(config: Config) -> Policy:
    """Turn a configuration into the scheduler's rules; consumers keep their order."""
    scheduler = config.scheduler
    return Policy(
        consumers={name: _consumer(name, consumer) for name, consumer in config.consumers.items()},
        cushion_mib=config.gpu.cushion_mib,
        lock=config.gpu.lock,
        order=scheduler.order,
        victims=scheduler.victims,
        when_nothing_to_evict=scheduler.when_nothing_to_evict,
        max_queue=scheduler.max_queue,
        max_wait_s=scheduler.max_wait_s,
        max_overtake_s=scheduler.max_overtake_s,
        min_resident_s=scheduler.min_resident_s,
        max_resident=scheduler.max_resident,
        prefetch=scheduler.prefetch,
        max_parallel_loads=scheduler.max_parallel_loads,
        restore_when_idle=scheduler.restore_when_idle,
        settle_timeout_s=config.gpu.settle_timeout_s,
    )


def _consumer(name: str, config: ConsumerConfig) -> ConsumerPolicy:
    ours = not config.vram_managed
    footprint_mib = 0 if config.footprint_mib == "auto" else config.footprint_mib
    return ConsumerPolicy(
        name=name,
        footprint_mib=footprint_mib,
        learns=config.footprint_mib == "auto",
        load_key=load_key(config),
        tells_residency=config.resident is not None
        or config.is_remembered
        or (config.is_supervised and config.load is None and config.unload is None),
        # A preset knows what its service keeps, and not what this user's model takes.
        residual_mib=config.residual_mib
        if config.footprint_mib == "auto"
        else min(config.residual_mib, footprint_mib),
        gpus=None if config.gpus == "auto" else config.gpus,
        can_coexist_with=frozenset(config.can_coexist_with),
        vram_managed=config.vram_managed,
        can_load=ours and (config.load is not None or config.is_supervised),
        can_unload=ours and (config.unload is not None or config.is_supervised),
        can_escalate=ours and config.unload is not None and config.is_supervised,
        concurrency=config.concurrency,
        max_queue=config.max_queue,
        priority=config.priority,
        pinned=config.pinned,
        idle_unload_s=config.idle_unload_s,
        initially=_initially(config),
        job_timeout_s=config.job_timeout_s,
        busy_timeout_s=config.busy_timeout_s,
    )


def _initially(config: ConsumerConfig) -> ConsumerState:
    """Guess where a consumer's weights are at the start; UNKNOWN: a probe will tell."""
    if config.initially != "auto":
        return ConsumerState(config.initially)
    if config.command is not None:
        return ConsumerState.ABSENT
    if config.vram_managed and config.resident is None:
        return ConsumerState.RESIDENT
    if config.resident is not None or config.is_supervised or config.is_remembered:
        return ConsumerState.UNKNOWN
    lazy = config.unload is not None and config.load is None
    return ConsumerState.ABSENT if lazy else ConsumerState.RESIDENT
