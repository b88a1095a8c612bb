import cmath
import math

import pytest

from mgpu.demo.speech.synthesis import RATE_HZ, VOICES, Speech, speak


def level(speech: Speech, low_hz: int, high_hz: int) -> float:
    """The mean magnitude of a band, in steps of 50 Hz, over the whole of a recording."""
    samples = speech.samples
    band = range(low_hz, high_hz, 50)
    turns = [cmath.exp(-2j * math.pi * hz / RATE_HZ) for hz in band]
    total = 0.0
    for turn in turns:
        phasor, sum_ = 1 + 0j, 0j
        for value in samples:
            sum_ += value * phasor
            phasor *= turn
        total += abs(sum_)
    return total / len(turns)


def test_the_same_text_always_sounds_the_same() -> None:
    assert speak("A quiet harbour.") == speak("A quiet harbour.")


def test_nothing_to_say_is_no_sound() -> None:
    assert len(speak("").samples) == 0
    assert len(speak("***").samples) == 0


def test_the_loudest_sample_comes_close_to_full_scale_and_not_over_it() -> None:
    assert 25_000 < max(map(abs, speak("Hello.").samples)) < 32_767


def test_an_ee_has_its_energy_higher_than_an_ah() -> None:
    # Second formants of Peterson and Barney: 2290 Hz and 1090 Hz.
    ee, ah = speak("ee"), speak("ah")
    assert level(ee, 2100, 2500) > level(ee, 900, 1300)
    assert level(ah, 900, 1300) > level(ah, 2100, 2500)


def test_an_s_hisses_and_an_m_does_not() -> None:
    hiss, hum = speak("s"), speak("m")
    assert level(hiss, 5500, 7000) > level(hiss, 100, 1000)
    assert level(hum, 100, 1000) > 20 * level(hum, 5500, 7000)


@pytest.mark.parametrize(("name", "voice"), VOICES.items())
def test_a_vowel_repeats_itself_at_the_voices_pitch(name: str, voice: object) -> None:
    samples = speak("ee", VOICES[name]).samples[440:1900]

    def likeness(lag: int) -> float:
        return sum(a * b for a, b in zip(samples, samples[lag:], strict=False))

    lags = range(RATE_HZ // 260, RATE_HZ // 80)
    pitch_hz = RATE_HZ / max(lags, key=likeness)
    assert pitch_hz == pytest.approx(VOICES[name].pitch_hz, rel=0.2)


def test_words_begin_one_after_the_other() -> None:
    speech = speak("one two, three")
    assert speech.words == ("one", "two", "three")
    assert speech.starts[0] == 0
    assert list(speech.starts) == sorted(set(speech.starts))
    assert speech.starts[-1] < len(speech.samples)
