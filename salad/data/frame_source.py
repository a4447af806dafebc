"""Encoder frames of recordings: from memory, from disk (`salad pass encode`), or encoded now."""

import math
from collections.abc import Container
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from salad.data import augmentation
from salad.data.corpora import SpokenText, audio
from salad.data.frames import Frames
from salad.data.interleaving import Span
from salad.data.layout import Layout, Member, lay_out
from salad.objective import whole_float32

if TYPE_CHECKING:
    import torch

ENCODED_S = 600.0  # seconds of speech, padding included, that a causal encoder takes at a time


class FrameSource:
    """Layouts and encoder frames of spoken texts.

    With `keep` each is made once and kept in memory: frames then depend on the recording alone. Without, recordings are
    read by `workers` threads and a causal encoder hears a batch of them at a time. A causal encoder hears the whole
    recording; one with look-ahead hears each speech span's samples alone, so its frames depend on the pattern.
    """

    def __init__(self, lab, prompt, encoder, keep: bool = True, workers: int = 4, cached: Frames | None = None):
        """`prompt`: the model's PromptFormat. `cached`: frames on disk, which are taken where they are there."""
        self.lab, self.prompt, self.encoder, self.keep, self.cached = lab, prompt, encoder, keep, cached
        self._layouts: dict[str, Layout] = {}
        self._frames: dict[str, np.ndarray] = {}
        self._readers = None if keep else ThreadPoolExecutor(workers, thread_name_prefix="audio")

    def layout(self, spoken: SpokenText) -> Layout:
        """The text laid out beside its recording; once for each, where things are kept."""
        known = self._layouts.get(spoken.synthesis_id)
        if known is not None and known.spoken.duration_s == spoken.duration_s:
            return known
        made = lay_out(self.prompt, spoken, self.encoder.frame_rate, None if known is None else known.prompt_layout)
        if self.keep and known is None:  # at another speed it is a passing one
            self._layouts[spoken.synthesis_id] = made
        return made

    def frames(self, spoken: SpokenText, spans: list[Span], cached: bool = True) -> np.ndarray | None:
        """Encoder frames [F, D] for the speech among `spans`, None where there is none. `cached`: those on disk will do."""
        if not any(span.speech for span in spans):
            return None
        if spoken.synthesis_id in self._frames:
            return self._frames[spoken.synthesis_id]
        frames = self.cached.of(spoken) if cached and self.cached is not None else None
        if frames is None:
            frames = self._encode(audio(self.lab, spoken, self.encoder.sample_rate), spans)
        if self.keep and self.encoder.is_causal:
            self._frames[spoken.synthesis_id] = frames
        return frames

    def frames_of(
        self, members: list[Member], noises: dict[str, augmentation.Noise], augmented: Container[str] = ()
    ) -> list[np.ndarray | None]:
        """Encoder frames [F, D] for each sample of a batch, None for a sample without speech, each sample's augmentation
        applied to its sound first. `noises`: by source; `augmented`: the sources whose frames on disk are not used."""
        rate = self.encoder.sample_rate

        def sound(member: Member) -> np.ndarray:
            samples = audio(self.lab, spoken_of(member), rate)
            if member.alteration is None:
                return samples
            source = noises.get(member.source)
            noise = None if source is None else source.sample(member.alteration.seed, rate)
            return augmentation.altered(samples, rate, member.alteration, noise)

        read = map if self._readers is None else self._readers.map
        speech_members = [i for i, m in enumerate(members) if any(span.speech for span in m.spans)]
        frames_by_member: list[np.ndarray | None] = [None] * len(members)
        if not self.encoder.is_causal:
            sounds = list(read(sound, [members[i] for i in speech_members]))
            for i, frames in zip(
                speech_members, self._encode_spans(sounds, [members[i].spans for i in speech_members]), strict=True
            ):
                frames_by_member[i] = frames
            return frames_by_member
        if self.keep:
            for i in speech_members:
                current = members[i]
                if current.alteration is None:
                    frames_by_member[i] = self.frames(spoken_of(current), current.spans, current.source not in augmented)
                else:
                    frames_by_member[i] = self._encode(sound(current), current.spans)
            return frames_by_member
        if self.cached is not None:
            for i in speech_members:
                if members[i].source not in augmented:
                    frames_by_member[i] = self.cached.of(spoken_of(members[i]))
            speech_members = [i for i in speech_members if frames_by_member[i] is None]
        sounds = list(read(sound, [members[i] for i in speech_members]))
        if self.encoder.longest_s is None:
            for i, frames in zip(speech_members, self._encode_together(sounds), strict=True):
                frames_by_member[i] = frames
        else:
            for i, samples in zip(speech_members, sounds, strict=True):
                frames_by_member[i] = self._encode(samples, members[i].spans)
        return frames_by_member

    def _device(self) -> "torch.device":
        import torch

        return next((p.device for p in self.encoder.parameters()), torch.device("cpu"))

    def _encode(self, sound: np.ndarray, spans: list[Span]) -> np.ndarray:
        """Frames of one recording [T]."""
        import torch

        if not self.encoder.is_causal:
            return self._encode_spans([sound], [spans])[0]
        return self.encoder(torch.from_numpy(sound).to(self._device())).cpu().numpy()

    def _encode_spans(self, sounds: list[np.ndarray], spans: list[list[Span]]) -> list[np.ndarray]:
        """Frames of several recordings under an encoder with look-ahead: each speech span hears its own samples alone, the
        spans of all recordings together."""
        import torch

        encoder, device = self.encoder, self._device()
        parts, places = [], []
        frames = [np.zeros((max(span.frame_end for span in row), encoder.dim), dtype=np.float32) for row in spans]
        for sound, row, into in zip(sounds, spans, frames, strict=True):
            samples = torch.from_numpy(sound).to(device)
            for span in row:
                if span.speech:
                    first, end = (int(f / encoder.frame_rate * encoder.sample_rate) for f in (span.frame_start, span.frame_end))
                    parts.append(samples[first:end])
                    places.append(into[span.frame_start : span.frame_end])
        for place, part in zip(places, encoder.each(parts), strict=True):
            place[: len(part)] = part.cpu().numpy()[: len(place)]
        return frames

    def _encode_together(self, sounds: list[np.ndarray]) -> list[np.ndarray]:
        """Frames of several recordings under a causal encoder, which never hears the padding behind them."""
        import torch

        encoder, device = self.encoder, self._device()
        frames: list[np.ndarray] = [np.zeros((0, encoder.dim), np.float32)] * len(sounds)
        rest = sorted(range(len(sounds)), key=lambda i: -len(sounds[i]))
        while rest:
            longest = max(len(sounds[rest[0]]), 1)
            size = max(1, int(ENCODED_S * encoder.sample_rate / longest))
            group, rest = rest[:size], rest[size:]
            samples = np.zeros((len(group), longest), dtype=np.float32)
            for row, i in enumerate(group):
                samples[row, : len(sounds[i])] = sounds[i]
            with torch.no_grad(), whole_float32:
                frames_BTD = encoder.frames(torch.from_numpy(samples).to(device)).cpu().numpy()
            for row, i in enumerate(group):
                count = math.floor(len(sounds[i]) / encoder.sample_rate * encoder.frame_rate + 1e-6)
                valid_frames = frames_BTD[row, :count]
                frames[i] = np.pad(valid_frames, ((0, count - len(valid_frames)), (0, 0)))
        return frames


def spoken_of(member: Member) -> SpokenText:
    """The recording of a sample that has speech spans."""
    assert member.recording is not None, f"{member.sample_id} has speech spans and no recording"
    return member.recording
