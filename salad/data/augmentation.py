"""Augmentation of recordings before they are encoded, through lhotse: speed, rooms, noise, codecs.

What happens to a recording in an epoch is drawn when its sequence is laid out, for speed moves the words.
"""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from salad import interrupts
from salad.config import AugmentConfig
from salad.data.corpora import SpokenText
from salad.errors import SaladError
from salad.speech import room


class Alteration(NamedTuple):
    """What is done to one recording: `speed` (1 leaves it), a room, noise at `snr_db` below the speech, a codec at
    `compression` in [0, 1]; None leaves a part out. `seed` draws the room, and the noise or where it begins."""

    speed: float
    room: bool
    snr_db: float | None
    codec: str | None
    compression: float
    seed: int


def draw(rng: np.random.Generator, config: AugmentConfig) -> Alteration | None:
    """What happens to a recording; None: nothing."""
    chances = rng.random(4) < (config.p_speed, config.p_room, config.p_noise, config.p_codec)
    speed, snr_db, compression = (rng.uniform(*r) for r in (config.speed, config.snr_db, (0.3, 0.99)))
    codec, seed = config.codecs[rng.integers(len(config.codecs))], int(rng.integers(2**31))
    if not chances.any():
        return None
    return Alteration(
        # in hundredths: lhotse's resampler keeps a filter for every ratio, of gigabytes where the ratio is odd
        speed=round(speed, 2) if chances[0] else 1.0,
        room=bool(chances[1]),
        snr_db=snr_db if chances[2] else None,
        codec=codec if chances[3] else None,
        compression=compression,
        seed=seed,
    )


def respoken(spoken: SpokenText, alteration: Alteration | None) -> SpokenText:
    """The spoken text with its times as they are at the drawn speed."""
    if alteration is None or alteration.speed == 1.0:
        return spoken
    words = tuple((*word[:3], word[3] / alteration.speed, word[4] / alteration.speed) for word in spoken.words)
    return replace(spoken, words=words, duration_s=spoken.duration_s / alteration.speed)


def altered(samples: np.ndarray, rate: int, alteration: Alteration, noise: np.ndarray | None = None) -> np.ndarray:
    """float32 [T] at `rate` → the same, altered; ceil(T / speed) samples. `noise`: float32, at least one sample, repeated
    as needed; white without one."""
    from lhotse.audio.mixer import AudioMixer
    from lhotse.augmentation import Compress, ReverbWithImpulseResponse, Speed

    rng = np.random.default_rng([alteration.seed, 0])
    length = math.ceil(len(samples) / alteration.speed)
    sound: np.ndarray = samples[None].astype(np.float32)
    if alteration.speed != 1.0:
        sound = _exactly(Speed(factor=alteration.speed)(sound, rate), length)
    if alteration.room:  # lhotse's own generator of responses needs torchaudio
        response = room.response(room.draw(alteration.seed), rate, alteration.seed)[None]
        sound = ReverbWithImpulseResponse(rir_generator=lambda nsource=1: response)(sound, rate)
    if alteration.snr_db is not None and np.any(sound):
        if noise is None:
            beside = rng.standard_normal(length).astype(np.float32)
        else:
            beside = np.roll(np.resize(noise, max(length, len(noise))), -int(rng.integers(len(noise))))[:length]
        if np.any(beside):
            mixer = AudioMixer(sound, rate)
            mixer.add_to_mix(beside[None], snr=alteration.snr_db)
            sound = mixer.mixed_audio
    if alteration.codec is not None:
        peak = max(float(np.abs(sound).max()), 1.0)  # codecs clip beyond 1
        with interrupts.held():
            compressed = Compress(alteration.codec, alteration.compression)(sound / peak, rate)
        sound = _exactly(compressed, length) * peak
    return np.ascontiguousarray(sound[0], dtype=np.float32)


def _exactly(sound: np.ndarray, length: int) -> np.ndarray:
    return np.pad(sound[:, :length], ((0, 0), (0, max(length - sound.shape[1], 0))))


class Noise:
    """The recordings of a folder under lab/speech, to be mixed in; decoded when asked for."""

    def __init__(self, lab, name: str):
        from salad.speech.shar import Shar

        self._shar = Shar(lab, name)
        if not len(self._shar):
            raise SaladError(f"augment: lab/speech/{name} contains no noise")
        self._ids = self._shar.ids

    def sample(self, seed: int, rate: int) -> np.ndarray:
        """One of them, float32 [T] at `rate`."""
        import soxr

        from salad.speech import SAMPLE_RATE

        samples = self._shar.samples(self._ids[int(np.random.default_rng([seed, 1]).integers(len(self._ids)))])
        return samples if rate == SAMPLE_RATE else soxr.resample(samples, SAMPLE_RATE, rate)
