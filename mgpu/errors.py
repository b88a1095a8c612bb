"""Every way in which the broker says no, as one tree.

A class's docstring is its message when no detail is given; its ``code`` is stable and is what a
client sees as ``urn:mgpu:CODE``. HTTP status codes are not chosen here but in ``mgpu.api``.
"""

from __future__ import annotations

import inspect
from typing import ClassVar


class MgpuError(Exception):
    """The broker could not do what was asked.

    ``detail`` says what and where, in one sentence; ``retry_after_s`` is set when trying again
    after that many seconds can help.
    """

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str = "", *, retry_after_s: float | None = None) -> None:
        self.detail = detail or inspect.cleandoc(type(self).__doc__ or "").splitlines()[0]
        self.retry_after_s = retry_after_s
        super().__init__(self.detail)


class ConfigError(MgpuError):
    """The configuration is not valid."""

    code = "bad-config"


class RequestError(MgpuError):
    """The request itself is wrong: sending it again unchanged cannot help."""

    code = "bad-request"


class BadRequest(RequestError):
    """The request is malformed."""

    code = "bad-request"


class BodyTooLarge(RequestError):
    """The request's body is larger than server.max_body_mib."""

    code = "body-too-large"


class UnsupportedMediaType(RequestError):
    """The request's Content-Type is not accepted here."""

    code = "unsupported-media-type"


class WrongHost(RequestError):
    """The Host header is not in server.allowed_hosts."""

    code = "wrong-host"


class Unauthenticated(RequestError):
    """An API key is required."""

    code = "unauthenticated"


class Forbidden(RequestError):
    """It is not allowed from here."""

    code = "forbidden"


class UnknownRoute(RequestError):
    """There is no such route."""

    code = "unknown-route"


class UnknownModel(RequestError):
    """No consumer serves this model."""

    code = "unknown-model"


class UnknownConsumer(RequestError):
    """There is no consumer of this name."""

    code = "unknown-consumer"


class UnknownJob(RequestError):
    """There is no such job."""

    code = "unknown-job"


class AdmissionError(MgpuError):
    """The job could not be given the GPU."""


class QueueFull(AdmissionError):
    """The queue is full."""

    code = "queue-full"


class VramUnavailable(AdmissionError):
    """Not enough VRAM can be freed now."""

    code = "vram-unavailable"


class GpuUnhealthy(AdmissionError):
    """The GPU does not answer, so nothing is admitted to it."""

    code = "gpu-unhealthy"


class ConsumerCooldown(AdmissionError):
    """The consumer failed a moment ago and is left alone for a while."""

    code = "consumer-cooldown"


class Paused(AdmissionError):
    """The broker is paused."""

    code = "paused"


class Draining(AdmissionError):
    """The broker is shutting down."""

    code = "draining"


class WaitExpired(AdmissionError):
    """The job waited for the GPU longer than it was allowed to."""

    code = "wait-expired"


class NeverFits(AdmissionError):
    """The consumer needs more VRAM than any GPU it may use has."""

    code = "never-fits"


class StorageFull(AdmissionError):
    """The job cannot be stored: the disk is full."""

    code = "storage-full"


class ConsumerError(MgpuError):
    """The consumer did not do its part."""


class ConsumerFailed(ConsumerError):
    """The consumer broke off or cannot be reached."""

    code = "consumer-failed"


class LoadFailed(ConsumerError):
    """The consumer could not be loaded."""

    code = "load-failed"


class LoadNotBegun(LoadFailed):
    """The consumer did not take the request to load, so no memory can have been short."""


class UnloadFailed(ConsumerError):
    """The consumer could not be unloaded."""

    code = "unload-failed"


class UnloadDeclined(UnloadFailed):
    """The consumer was not asked to unload, since it computes for somebody else."""


class JobTimeout(ConsumerError):
    """The job ran longer than its consumer's job_timeout_s."""

    code = "job-timeout"


class ClientLeft(MgpuError):
    """The client went away before the job ended."""

    code = "client-left"


class JobCancelled(MgpuError):
    """Somebody cancelled the job."""

    code = "cancelled"


def _leaves(cls: type[MgpuError]) -> list[type[MgpuError]]:
    children = cls.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [cls]


BY_CODE: dict[str, type[MgpuError]] = {leaf.code: leaf for leaf in _leaves(MgpuError)}
"""Every leaf of the tree under its code."""
