"""Natural conditions for synthesised speech: a room's response, a microphone, noise and gain, from a seed.

lhotse's own room generator needs torchaudio, so the response is drawn here: a direct path of one and diffuse noise
that decays by 60 dB in `t60_s`, the statistical model of a room (Polack, 1988). It starts with the direct path, so
nothing is shifted and word times stay true.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import signal

from salad.speech.utterance import Utterance


@dataclass(frozen=True)
class Room:
    """t60_s: reverberation time. direct_db: direct over reverberant energy. high_hz, low_hz: where the microphone
    falls off. snr_db: speech over noise. noise_tilt: 0 white … 0.99 rumbling. gain_db: of the loudest sample, re 1."""

    t60_s: float
    direct_db: float
    low_hz: float
    high_hz: float
    snr_db: float
    noise_tilt: float
    gain_db: float


def draw(seed: int) -> Room:
    """A room between a studio and a lively office."""
    rng = np.random.default_rng([seed, 0])
    return Room(
        t60_s=rng.uniform(0.1, 0.4),
        direct_db=rng.uniform(4, 15),
        low_hz=rng.uniform(50, 150),
        high_hz=rng.uniform(5_500, 7_500),
        snr_db=rng.uniform(18, 40),
        noise_tilt=rng.uniform(0.5, 0.98),
        gain_db=rng.uniform(-12, -1),
    )


def response(room: Room, rate: int, seed: int) -> np.ndarray:
    """float32 [t60_s * rate]: the impulse response of room and microphone; the largest sample is the first."""
    rng = np.random.default_rng([seed, 1])
    n = max(int(room.t60_s * rate), 32)
    tail = rng.standard_normal(n) * 10 ** (-3 * np.arange(n) / n)
    tail[: max(int(0.002 * rate), 1)] = 0  # the first reflection comes after the direct path
    tail *= 10 ** (-room.direct_db / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1
    band = signal.butter(1, [room.low_hz, min(room.high_hz, 0.49 * rate)], "bandpass", fs=rate, output="sos")
    return signal.sosfilt(band, tail).astype(np.float32)


def record(utterance: Utterance, seed: int, room: Room | None = None) -> Utterance:
    """The utterance as heard in `room` (by default one drawn from `seed`). Same length, same word and phone times;
    never clips. Deterministic in (utterance, seed, room). About 900 x real time on one core."""
    if len(utterance.samples) == 0:
        return utterance
    room = room or draw(seed)
    rng = np.random.default_rng([seed, 2])
    n, rate = len(utterance.samples), utterance.sample_rate
    reverberant = signal.oaconvolve(utterance.samples, response(room, rate, seed))[:n]
    noise = rng.standard_normal(n, dtype=np.float32)
    noise = signal.lfilter([1.0], [1.0, -room.noise_tilt], noise).astype(np.float32)
    scale = np.sqrt(np.mean(reverberant**2) / max(np.mean(noise**2), 1e-12)) * 10 ** (-room.snr_db / 20)
    reverberant = reverberant + scale * noise
    reverberant *= 10 ** (room.gain_db / 20) / max(np.abs(reverberant).max(), 1e-9)
    return replace(utterance, samples=reverberant.astype(np.float32))
