"""The sounds of English as a formant synthesiser wants them, under their ARPAbet names.

Vowel formants are the averages over men of G. E. Peterson and H. L. Barney, "Control methods used
in a study of the vowels", J. Acoust. Soc. Am. 24 (1952), table II. Those of consonants follow
D. H. Klatt, "Software for a cascade/parallel formant synthesizer", J. Acoust. Soc. Am. 67 (1980),
table III, whose noise spectra are reduced here to one band a sound.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of sound with one set of targets; amplitudes from 0 to 1."""

    ms: float
    formants_hz: tuple[float, float, float]
    voice: float = 0.0
    """Vocal folds."""
    breath: float = 0.0
    """Noise made at the folds, so that it takes the vowel's formants."""
    hiss: float = 0.0
    """Noise made in the mouth, around ``hiss_hz``."""
    hiss_hz: float = 0.0
    hiss_width_hz: float = 1500.0


_NEUTRAL = (500.0, 1500.0, 2500.0)
PAUSE = Segment(180, _NEUTRAL)
STRETCH_STRESSED = 1.25

_VOWELS: dict[str, tuple[float, float, float]] = {
    "IY": (270, 2290, 3010),
    "IH": (390, 1990, 2550),
    "EH": (530, 1840, 2480),
    "AE": (660, 1720, 2410),
    "AA": (730, 1090, 2440),
    "AO": (570, 840, 2410),
    "UH": (440, 1020, 2240),
    "UW": (300, 870, 2240),
    "AH": (640, 1190, 2390),
    "ER": (490, 1350, 1690),
    "AX": _NEUTRAL,
}
_VOWEL_MS = {"IH": 85, "EH": 95, "UH": 85, "AH": 90, "AX": 60}
_DIPHTHONGS = {
    "EY": ("EH", "IY"),
    "AY": ("AA", "IH"),
    "OY": ("AO", "IH"),
    "AW": ("AA", "UH"),
    "OW": ("AO", "UH"),
}
VOWELS = frozenset(_VOWELS) | frozenset(_DIPHTHONGS)

_SONORANTS = {
    "W": Segment(70, (290, 610, 2150), voice=0.7),
    "Y": Segment(65, (260, 2070, 3020), voice=0.7),
    "R": Segment(75, (310, 1060, 1380), voice=0.75),
    "L": Segment(70, (310, 1050, 2880), voice=0.7),
    "M": Segment(75, (300, 1000, 2130), voice=0.45),
    "N": Segment(70, (300, 1450, 2470), voice=0.45),
    "NG": Segment(80, (300, 1990, 2850), voice=0.42),
    "HH": Segment(60, _NEUTRAL, breath=0.75),
}
_FRICATIVES = {
    "F": Segment(95, (340, 1100, 2080), hiss=0.18, hiss_hz=5200, hiss_width_hz=4500),
    "V": Segment(65, (220, 1100, 2080), 0.5, hiss=0.05, hiss_hz=5200, hiss_width_hz=4500),
    "TH": Segment(85, (320, 1290, 2540), hiss=0.16, hiss_hz=6200, hiss_width_hz=4000),
    "DH": Segment(50, (270, 1290, 2540), 0.55, hiss=0.03, hiss_hz=6200, hiss_width_hz=4000),
    "S": Segment(105, (320, 1390, 2530), hiss=0.42, hiss_hz=6300, hiss_width_hz=1600),
    "Z": Segment(80, (240, 1390, 2530), 0.4, hiss=0.22, hiss_hz=6300, hiss_width_hz=1600),
    "SH": Segment(110, (300, 1840, 2750), hiss=0.42, hiss_hz=3000, hiss_width_hz=900),
    "ZH": Segment(80, (300, 1840, 2750), 0.4, hiss=0.2, hiss_hz=3000, hiss_width_hz=900),
}
_STOPS = {  # formants, then the centre of the burst in Hz
    "P": ((400, 1100, 2150), 900),
    "B": ((200, 1100, 2150), 900),
    "T": ((400, 1600, 2600), 4200),
    "D": ((200, 1600, 2600), 3800),
    "K": ((300, 1990, 2850), 2000),
    "G": ((200, 1990, 2850), 1900),
}
_VOICED_STOPS = frozenset("BDG")
_AFFRICATES = {"CH": ("T", "SH"), "JH": ("D", "ZH")}


def _stop(name: str) -> list[Segment]:
    formants, burst_hz = _STOPS[name]
    voiced = name in _VOICED_STOPS
    closure = Segment(50 if voiced else 60, formants, voice=0.12 if voiced else 0.0)
    burst = Segment(10, formants, hiss=0.8, hiss_hz=burst_hz, hiss_width_hz=900)
    release = Segment(10, formants, 0.5) if voiced else Segment(30, formants, breath=0.5)
    return [closure, burst, release]


def sound(name: str, *, stressed: bool = False) -> list[Segment]:
    """The segments of one phone; ``KeyError`` when there is no phone of that name."""
    if name in _DIPHTHONGS:
        first, last = _DIPHTHONGS[name]
        segments = [Segment(85, _VOWELS[first], 1.0), Segment(75, _VOWELS[last], 0.85)]
    elif name in _VOWELS:
        segments = [Segment(_VOWEL_MS.get(name, 120), _VOWELS[name], 1.0)]
    elif name in _AFFRICATES:
        closure, hiss = _AFFRICATES[name]
        segments = [_stop(closure)[0], replace(_FRICATIVES[hiss], ms=70)]
    elif name in _STOPS:
        segments = _stop(name)
    else:
        segments = [(_SONORANTS | _FRICATIVES)[name]]
    if stressed:
        segments = [replace(segment, ms=segment.ms * STRETCH_STRESSED) for segment in segments]
    return segments
