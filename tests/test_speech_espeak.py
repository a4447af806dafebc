"""espeak: word events with character offsets, phonemes, voices, determinism."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salad import SaladError
from salad.speech import TTS, espeak, load_tts

tts = load_tts("espeak")


def check(utterance, text):
    """What every caller relies on."""
    words, duration = utterance.words, utterance.duration_s
    for word in words:
        assert text[word.char_start : word.char_end] == word.word and word.word.strip() == word.word != ""
        assert 0 <= word.start_s < word.end_s <= duration + 1e-3
    for before, after in zip(words, words[1:], strict=False):
        assert before.char_end <= after.char_start and before.end_s <= after.start_s
        assert text[before.char_end : after.char_start].isspace()
    if words:
        assert text[: words[0].char_start].strip() == "" and text[words[-1].char_end :].strip() == ""


def test_words_carry_the_characters_of_the_text_and_merged_events_stay_one_word():
    text = "The tail of the cat is in the house."
    utterance = tts.speak(text, "en-us", 0)
    check(utterance, text)
    assert [w.word for w in utterance.words] == ["The", "tail", "of the", "cat", "is", "in the", "house."]
    assert utterance.samples.dtype == np.float32 and utterance.sample_rate == 16_000
    assert 1.5 < utterance.duration_s < 4 and np.abs(utterance.samples).max() <= 1


@pytest.mark.parametrize("text", ["Café naïve 😀 über Straße, 42 ok", "日本 the cat", "e\u0301te\u0301 fini the end"])
def test_offsets_are_characters_and_not_bytes(text):
    utterance = tts.speak(text, "en-us", 0)
    check(utterance, text)
    assert utterance.words[-1].word in text.split()


def test_digits_and_contractions_give_one_word_each():
    text = "It isn't 42 of 1,998 dogs; in 1998, 3.14 km cost $1,000 at 3:30 by 1234567 x."
    utterance = tts.speak(text, "en-us", 0)
    check(utterance, text)
    assert [w.word for w in utterance.words] == text.split()


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("abc xyz THE of in 0123456789 .,;:!?'’-—$%&/()[]<>\n\té😀ß\x01\x00"), max_size=60))
def test_any_text_gives_ordered_disjoint_words(text):
    check(tts.speak(text, "en-us", 0), text)


def test_a_long_text_keeps_its_offsets():
    text = " ".join(f"word{chr(97 + i % 26)} number {i} of the list" for i in range(150))
    utterance = tts.speak(text, "en-us@rate=300", 0)
    check(utterance, text)
    assert len(utterance.words) > 700


def test_a_word_sounds_where_it_says():
    """The pause before the second sentence lies between its words, and is silent."""
    utterance = tts.speak("What color is the cat? Blue.", "en-us", 0)
    cat, blue = utterance.words[-2:]
    assert blue.start_s - cat.end_s > 0.1
    rate = utterance.sample_rate
    pause = utterance.samples[int((cat.end_s + 0.03) * rate) : int((blue.start_s - 0.01) * rate)]
    loud = utterance.samples[int(blue.start_s * rate) : int(blue.end_s * rate)]
    assert np.abs(pause).max() < 0.02 < np.abs(loud).max()
    assert utterance.duration_s - blue.end_s > 0.1  # the final pause is kept


def test_phones_tile_the_sound():
    utterance = tts.speak("Thin cats.", "en-us", 0)
    symbols = [p.symbol for p in utterance.phones]
    assert [s for s in symbols if not s.startswith("_")] == ["T", "I", "n", "k", "a", "t", "s"]
    for before, after in zip(utterance.phones, utterance.phones[1:], strict=False):
        assert before.start_s < before.end_s == after.start_s


def test_the_same_request_gives_the_same_samples_whatever_came_before():
    text = "The cat is in the big house and the dog barks."
    for voice in ("en-us", "en-us+f2@rate=170,pitch=60", "en-us+whisper"):
        first = tts.speak(text, voice, 0)
        tts.speak("Something else, 12 times!", "en-gb-x-rp@range=90", 3)
        again = tts.speak(text, voice, 0)
        assert np.array_equal(first.samples, again.samples) and first.words == again.words


def test_parameters_and_variants_change_the_voice():
    text = "The cat is in the big house."
    plain = tts.speak(text, "en-us", 0)
    assert tts.speak(text, "en-us@rate=300", 0).duration_s < 0.75 * plain.duration_s
    assert tts.speak(text, "en-us@gap=20", 0).duration_s > 1.2 * plain.duration_s
    voices = [tts.speak(text, v, 0).samples.tobytes() for v in tts.voices]
    assert len(set(voices)) == len(voices)


@pytest.mark.parametrize(
    "voice, says",
    [
        ("en-gb", "no voice"),
        ("klingon", "no voice"),
        ("en-us+zzz", 'no variant "zzz"'),
        ("en-us@speed=3", 'no parameter "speed"'),
        ("en-us@rate=9000", "from 80 to 450"),
        ("en-us@rate=fast", "from 80 to 450"),
    ],
)
def test_a_voice_that_is_not_there_is_refused_in_one_line(voice, says):
    with pytest.raises(SaladError, match=says) as error:
        tts.speak("Hello.", voice, 0)
    assert "\n" not in str(error.value)
    assert tts.speak("Hello.", "en-us", 0).words  # and the engine goes on


@pytest.mark.parametrize("text", ["", "  \n", "..."])
def test_text_without_sound_is_flagged(text):
    utterance = tts.speak(text, "en-us", 0)
    assert utterance.flags == ["empty"] and len(utterance.samples) == 0 and utterance.words == []


def _digest(text):
    return tts.speak(text, "en-us", 0).samples.tobytes()


def test_threads_and_forks_get_the_same_samples():
    text = "A short one."
    expected, got = _digest(text), []
    threads = [threading.Thread(target=lambda: got.append(_digest(text))) for _ in range(4)]
    for thread in threads:
        thread.start()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        got += pool.map(_digest, [text] * 4)
    for thread in threads:
        thread.join()
    assert got == [expected] * 8


def test_a_ctrl_c_in_the_middle_of_an_utterance_is_neither_lost_nor_printed(capfd):
    """It is raised where Python runs again: in the callback, whose exceptions ctypes prints and forgets."""
    text, recorded = "The water boils and the kettle sings. " * 40, 0

    def interrupt():
        while not espeak._sound:
            time.sleep(0.0005)
        os.kill(os.getpid(), signal.SIGINT)

    for _ in range(5):
        espeak._sound.clear()
        thread = threading.Thread(target=interrupt)
        thread.start()
        try:
            tts.speak(text, "en-us", 0)
        except KeyboardInterrupt:
            recorded += 1
        thread.join()
    assert recorded == 5 and capfd.readouterr().err == ""
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler and _digest("Again.") == _digest("Again.")


def test_a_tts_of_ones_own_is_loaded_by_name():
    assert isinstance(load_tts("salad.speech.espeak:Espeak"), TTS)
    for spec, says in [("festival", "unknown TTS"), ("salad.nowhere:X", "cannot be"), ("json:JSONEncoder", "lacks")]:
        with pytest.raises(SaladError, match=says):
            load_tts(spec)


def test_another_holder_of_the_library_changes_nothing():
    """Kokoro's phonemizer loads the same file into the process and keeps it."""
    import ctypes

    import espeakng_loader

    alone = load_tts("espeak").speak("The water boils.", "en-us+f2", seed=3).samples
    other = ctypes.CDLL(espeakng_loader.get_library_path())
    other.espeak_Initialize(2, 0, espeakng_loader.get_data_path().encode(), 0x8000)
    other.espeak_SetParameter(1, 400, 0)
    assert np.array_equal(load_tts("espeak").speak("The water boils.", "en-us+f2", seed=3).samples, alone)
