"""Rooms: deterministic, in place, audible."""

import numpy as np
import pytest

from salad.speech import Utterance, load_tts
from salad.speech.room import Room, draw, record, response

utterance = load_tts("espeak").speak("What color is the cat? Blue.", "en-us", 0)
QUIET = Room(0.1, 60, 20, 7900, 120, 0.5, -1)


def test_the_same_seed_gives_the_same_recording_and_another_another():
    first, again, other = (record(utterance, seed) for seed in (3, 3, 4))
    assert np.array_equal(first.samples, again.samples) and not np.array_equal(first.samples, other.samples)
    assert draw(3) == draw(3) != draw(4)


@pytest.mark.parametrize("seed", range(5))
def test_length_and_times_stay_and_nothing_is_shifted(seed):
    recorded = record(utterance, seed)
    assert recorded.words == utterance.words and len(recorded.samples) == len(utterance.samples)
    assert recorded.samples.dtype == np.float32
    lags = np.arange(-200, 201)
    inner = utterance.samples[1000:-1000]
    match = [np.dot(recorded.samples[1000 + lag : len(recorded.samples) - 1000 + lag], inner) for lag in lags]
    assert abs(lags[int(np.argmax(np.abs(match)))]) <= 8  # half a millisecond


def test_gain_noise_and_reverberation_are_what_the_room_says():
    assert np.abs(record(utterance, 0, QUIET).samples).max() == pytest.approx(10 ** (-1 / 20), rel=1e-4)
    pause = slice(int((utterance.words[-1].end_s + 0.15) * 16_000), None)
    noisy = record(utterance, 0, Room(0.1, 60, 20, 7900, 10, 0.5, -1)).samples
    clean = record(utterance, 0, QUIET).samples
    assert np.abs(clean[pause]).max() < 1e-3
    snr = 10 * np.log10(np.mean(clean**2) / np.mean(noisy[pause] ** 2))
    assert 8 < snr < 13
    impulse = np.abs(response(Room(0.4, 0, 20, 7900, 60, 0.5, -1), 16_000, 0))
    assert impulse.argmax() == 0 and impulse[800:1600].mean() > 10 * impulse[4800:6400].mean() > 0


def test_no_sound_stays_no_sound():
    empty = Utterance(np.zeros(0, np.float32), 16_000, [], ["empty"])
    assert record(empty, 0).flags == ["empty"]
