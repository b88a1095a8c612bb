"""The demo's consumers: how much memory each one takes, and how long things take it.

The figures are those of ordinary services on a 24 GiB card, with loading about five times as fast.
All four need 27 GiB, so that they do not fit together and somebody always has to leave.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


class Kind(StrEnum):
    """What a consumer makes, and its name."""

    IMAGE = "image"
    TTS = "tts"
    STT = "stt"
    LANGUAGE = "language"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One consumer's cost in memory (MiB) and time (seconds)."""

    name: Kind
    footprint_mib: int
    residual_mib: int
    """What stays after an unload, while the process lives."""
    load_s: float
    unload_s: float
    """From the request to unload until its answer."""
    lag_s: float
    """From that answer until the memory shows as free."""
    job_s: float
    """The least a job takes."""

    def scaled(self, factor: float) -> Profile:
        """The same with every time multiplied."""
        return replace(
            self,
            load_s=self.load_s * factor,
            unload_s=self.unload_s * factor,
            lag_s=self.lag_s * factor,
            job_s=self.job_s * factor,
        )


CATALOGUE: dict[Kind, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name=Kind.IMAGE,
            footprint_mib=13 * 1024,
            residual_mib=384,
            load_s=2.4,
            unload_s=0.0,
            lag_s=0.4,
            job_s=1.1,
        ),
        Profile(
            name=Kind.TTS,
            footprint_mib=3 * 1024,
            residual_mib=256,
            load_s=0.7,
            unload_s=0.1,
            lag_s=0.15,
            job_s=0.5,
        ),
        Profile(
            name=Kind.STT,
            footprint_mib=2 * 1024,
            residual_mib=0,
            load_s=0.5,
            unload_s=0.0,
            lag_s=0.0,
            job_s=0.4,
        ),
        Profile(
            name=Kind.LANGUAGE,
            footprint_mib=9 * 1024,
            residual_mib=320,
            load_s=1.3,
            unload_s=0.15,
            lag_s=0.25,
            job_s=0.9,
        ),
    )
}
