import io
import wave
from array import array

import pytest

from mgpu.demo.speech.wav import NotAWavError, decode_wav, encode_wav

SAMPLES = array("h", [0, 1000, -1000, 32767, -32768])


def test_what_is_written_is_read_again() -> None:
    recording = decode_wav(encode_wav(SAMPLES, 22_050, "gr\u00fc\u00df dich", (0, 3)))
    assert recording.samples == SAMPLES
    assert recording.text == "gr\u00fc\u00df dich"
    assert recording.cues == (0, 3)
    assert recording.seconds == 5 / 22_050


@pytest.mark.parametrize("text", ["", "a", "ab", "abc"])
def test_other_readers_see_an_ordinary_file(text: str) -> None:
    content = encode_wav(SAMPLES, 22_050, text, (1,))
    assert len(content) % 2 == 0
    assert int.from_bytes(content[4:8], "little") == len(content) - 8
    with wave.open(io.BytesIO(content)) as reader:
        assert reader.getparams()[:4] == (1, 2, 22_050, 5)
        assert reader.readframes(5) == SAMPLES.tobytes()


def test_a_comment_by_another_program_is_not_what_was_said() -> None:
    content = encode_wav(SAMPLES, 22_050, "not said", ()).replace(
        b"mgpu demo tts", b"another prog."
    )
    assert decode_wav(content).text is None


@pytest.mark.parametrize("cut", [0, 11, 30, 43])
def test_a_file_that_ends_too_early_is_refused(cut: int) -> None:
    with pytest.raises(NotAWavError):
        decode_wav(encode_wav(SAMPLES, 22_050, "x", ())[:cut])


def test_eight_bit_samples_are_refused() -> None:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(1)
        writer.setframerate(8_000)
        writer.writeframes(b"\x80" * 8)
    with pytest.raises(NotAWavError, match="8 bits"):
        decode_wav(file.getvalue())
