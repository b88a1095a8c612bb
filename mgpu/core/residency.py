"""What a consumer is loaded with, and loading it anew for who wants it otherwise.

A load has a key: whatever tells one load of a consumer from another, opaque here (the body of its
load request is in it, ``mgpu.config.residency``). A job may want one, and never computes while its
consumer is loaded with another; one that wants none takes what is there, and the configured one
where nothing is. As at ollama's scheduler (server/sched.go, needsReload), a reload waits until the
consumer is idle.

Among jobs of one consumer and one priority, those go first that can do with what is loaded: A B A B
runs as A A B B and costs one reload. When no such job waits or runs any more, the next in line
decides what is loaded. Priority and ``max_overtake_s`` stand above that, and so does the order
``arrival``.

A consumer that was found resident was loaded nobody knows how: it is loaded anew for the first job
that wants it in a certain way. What it needs is taken to be the same whatever it is loaded with.
"""

from __future__ import annotations

from mgpu.core import admission, unloading
from mgpu.core.jobs import Job
from mgpu.core.state import Consumer
from mgpu.core.step import Step


def choose(step: Step, target: Consumer) -> str | None:
    """What a load that begins now is to be done with: what the job next in line wants."""
    job, _ = target.waiting.head(step.at, step.state.policy.max_overtake_s)
    target.loaded_by = target.policy.load_key
    target.loaded_key = target.policy.load_key if job.load_key is None else job.load_key
    return job.load_key


def found(consumer: Consumer) -> None:
    """A consumer holds its weights, and it was not the broker that said how to load them."""
    consumer.loaded_by = consumer.policy.load_key
    consumer.loaded_key = ""


def make_way(step: Step, consumer: Consumer, job: Job) -> bool:
    """Unload an idle consumer that is loaded otherwise than a job wants; False when it is not idle.

    Where there is no way to load it otherwise the job is refused.
    """
    if not consumer.can_be_reloaded:
        admission.refuse(step, job, admission.loaded_only_so(consumer))
        return True
    if consumer.running or consumer.busy:
        return False
    unloading.begin(step, consumer, "a job wants it loaded otherwise")
    return True
