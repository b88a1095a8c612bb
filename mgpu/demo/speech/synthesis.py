"""A formant synthesiser: a buzz and two noises, shaped by resonators.

The voice is a pulse train (the derivative of a polynomial glottal pulse, after Klatt and Klatt,
J. Acoust. Soc. Am. 87 (1990)) through four resonators in cascade; frication passes one resonator
beside them. Resonators and their coefficients are those of Klatt, J. Acoust. Soc. Am. 67 (1980).
Targets are set every 5 ms and smoothed, which makes the glides between sounds.
"""

from __future__ import annotations

import math
import random
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from mgpu.demo.speech.letters import spoken_words, to_phones
from mgpu.demo.speech.phones import PAUSE, VOWELS, Segment, sound

RATE_HZ = 22_050
_FRAME = 110
_FRAME_MS = 1000.0 * _FRAME / RATE_HZ
_BANDWIDTHS_HZ = (70.0, 100.0, 150.0, 250.0)
_FOURTH_HZ = 3500.0
_OPEN_SHARE = 0.6
_FORMANT_SMOOTHING = 9
_AMPLITUDE_SMOOTHING = 3
_PITCH_SMOOTHING = 15
_PAUSES_MS = {"": 0.0, ",": 180.0, ".": 320.0, "?": 320.0}
_PEAK = 0.85 * 32767


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker: pitch in Hz, and how much shorter than a man's the vocal tract is."""

    pitch_hz: float
    formant_scale: float


VOICES = {"low": Voice(108.0, 1.0), "high": Voice(196.0, 1.16)}


@dataclass(frozen=True, slots=True)
class Speech:
    """Sound (16 bit, mono, ``RATE_HZ``) and at which sample each spoken word begins."""

    samples: array[int]
    words: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Frame:
    segment: Segment
    pitch: float
    """Relative to the voice's own."""


def speak(text: str, voice: Voice = VOICES["low"]) -> Speech:
    """Say ``text``; the same text always sounds the same."""
    frames: list[_Frame] = []
    words, starts = [], []
    for phrase in _phrases(text):
        begin = len(frames)
        for word, _ in phrase:
            starts.append(len(frames) * _FRAME)
            words.append(word)
            frames += _word_frames(word)
        mark = phrase[-1][1]
        frames[begin:] = _with_melody(frames[begin:], rising=mark == "?")
        frames += [_Frame(PAUSE, 0.85)] * int(_PAUSES_MS[mark or "."] / _FRAME_MS)
    sound_wave = list(_render(frames, voice))
    peak = max((abs(value) for value in sound_wave), default=1.0) or 1.0
    samples = array("h", (int(value / peak * _PEAK) for value in sound_wave))
    return Speech(samples, tuple(words), tuple(starts))


def _phrases(text: str) -> Iterator[list[tuple[str, str]]]:
    phrase: list[tuple[str, str]] = []
    for word, mark in spoken_words(text):
        phrase.append((word, mark))
        if mark:
            yield phrase
            phrase = []
    if phrase:
        yield phrase


def _word_frames(word: str) -> list[_Frame]:
    frames: list[_Frame] = []
    phones = to_phones(word)
    # English stresses the first syllable more often than any other; short words carry no stress.
    stress_at = next((i for i, name in enumerate(phones) if name in VOWELS), -1)
    content = len(word) > 3  # noqa: PLR2004 - longer than "the", "and", "for"
    for i, name in enumerate(phones):
        stressed = content and i == stress_at
        for segment in sound(name, stressed=stressed):
            count = max(1, round(segment.ms / _FRAME_MS))
            frames += [_Frame(segment, 1.16 if stressed else 1.0)] * count
    return frames


def _with_melody(frames: list[_Frame], *, rising: bool) -> list[_Frame]:
    """Let the pitch fall over the phrase, or rise at its end."""
    melody = []
    for i, frame in enumerate(frames):
        along = i / len(frames)
        line = 1.12 - 0.26 * along
        if rising and along > 0.7:  # noqa: PLR2004 - the last third
            line += 1.6 * (along - 0.7)
        melody.append(_Frame(frame.segment, frame.pitch * line))
    return melody


def _smoothed(values: list[float], width: int) -> list[float]:
    """A moving average: steps become ramps of ``width`` frames."""
    half = width // 2
    padded = [values[0]] * (half + 1) + values + [values[-1]] * half
    sums = [0.0]
    for value in padded:
        sums.append(sums[-1] + value)
    return [(sums[i + width + 1] - sums[i + 1]) / width for i in range(len(values))]


def _resonator(frequency_hz: float, bandwidth_hz: float) -> tuple[float, float, float]:
    c = -math.exp(-2.0 * math.pi * bandwidth_hz / RATE_HZ)
    b = (
        2.0
        * math.exp(-math.pi * bandwidth_hz / RATE_HZ)
        * math.cos(2.0 * math.pi * frequency_hz / RATE_HZ)
    )
    return 1.0 - b - c, b, c


def _render(frames: list[_Frame], voice: Voice) -> Iterator[float]:
    if not frames:
        return
    segments = [frame.segment for frame in frames]
    formants = [
        _smoothed([segment.formants_hz[i] for segment in segments], _FORMANT_SMOOTHING)
        for i in range(3)
    ]
    voicing = _smoothed([segment.voice for segment in segments], _AMPLITUDE_SMOOTHING)
    breath = _smoothed([segment.breath for segment in segments], _AMPLITUDE_SMOOTHING)
    hiss = _smoothed([segment.hiss for segment in segments], _AMPLITUDE_SMOOTHING)
    pitch = _smoothed([frame.pitch for frame in frames], _PITCH_SMOOTHING)
    random_number = random.Random(1952).random  # noqa: S311 - noise to be heard
    a1 = a2 = b1 = b2 = c1 = c2 = d1 = d2 = n1 = n2 = 0.0
    phase = 0.0
    for i, segment in enumerate(segments):
        scale = voice.formant_scale
        (p0, p1, p2), (q0, q1, q2), (r0, r1, r2) = (
            _resonator(formants[k][i] * scale, _BANDWIDTHS_HZ[k]) for k in range(3)
        )
        s0, s1, s2 = _resonator(_FOURTH_HZ * scale, _BANDWIDTHS_HZ[3])
        h0, h1, h2 = _resonator(segment.hiss_hz or 4000.0, segment.hiss_width_hz)
        step = voice.pitch_hz * pitch[i] / RATE_HZ
        loud, airy, hissing = voicing[i], breath[i], hiss[i] * 0.9
        for _ in range(_FRAME):
            phase += step
            if phase >= 1.0:
                phase -= 1.0
            noise = random_number() - 0.5
            t = phase / _OPEN_SHARE
            source = (2.0 * t - 3.0 * t * t) * loud if t < 1.0 else 0.0
            source += noise * (airy * 0.5 + loud * 0.04)
            # One resonator after another; each remembers its last two outputs.
            a1, a2 = p0 * source + p1 * a1 + p2 * a2, a1
            b1, b2 = q0 * a1 + q1 * b1 + q2 * b2, b1
            c1, c2 = r0 * b1 + r1 * c1 + r2 * c2, c1
            d1, d2 = s0 * c1 + s1 * d1 + s2 * d2, d1
            n1, n2 = h0 * noise * hissing + h1 * n1 + h2 * n2, n1
            yield d1 + n1


__all__ = ["RATE_HZ", "VOICES", "Speech", "Voice", "speak"]
