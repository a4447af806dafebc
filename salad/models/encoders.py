"""Frozen speech encoders behind one small interface: samples in, frames out. Of a whole speech LLM or recogniser only the
tower's weights are read.

Long because the classes' module is part of the fingerprint of what they computed, and the table of kinds stands beside them."""

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from salad import parts
from salad.config import EncoderConfig
from salad.errors import SaladError
from salad.models.names import DTYPES, loading, quiet, resolve
from salad.objective import whole_float32

TOGETHER_S = (30.0, 600.0)  # seconds of speech that an encoder with look-ahead takes at a time, on a CPU and on a GPU
ALIKE = 0.8  # of the longest: shorter parts are not encoded beside it, for they would be padding


class SpeechEncoder(nn.Module):
    """What every encoder offers: float32 samples in, float32 frames out. Subclasses set the attributes and define
    `frames`.

    sample_rate: Hz · frame_rate: frames a second · dim: width of a frame · causal: whether frame f depends on no
    sample after (f + 1) / frame_rate · longest_s: the longest window in seconds, or None.
    """

    sample_rate: int
    frame_rate: float
    dim: int
    causal: bool
    longest_s: float | None = None

    @property
    def settings(self) -> dict:
        """What else decides its frames, beside class, configuration and weights; part of its fingerprint."""
        return {}

    @cached_property
    def look_ahead_s(self) -> float:
        """How far beyond its end the sound still changes a frame, in seconds, as it is measured (`look_ahead`)."""
        return look_ahead(self)

    @property
    def is_causal(self) -> bool:
        """Whether a recording may be encoded whole, its spans picked afterwards: the encoder says that it is causal, and it
        is. One that says so and is not has its spans encoded alone, and a warning tells it."""
        if not self.causal or any(t.is_meta for t in (*self.parameters(), *self.buffers())):
            return self.causal
        if self.look_ahead_s > 0 and not self.__dict__.get("_warned"):
            self._warned = True
            ahead = "to the recording's end" if math.isinf(self.look_ahead_s) else f"{1000 * self.look_ahead_s:.0f} ms"
            warnings.warn(f"{type(self).__name__} calls itself causal, but looks ahead {ahead}: each speech span is encoded "
                          "alone", stacklevel=2)  # fmt: skip
        return self.look_ahead_s == 0

    def train(self, mode: bool = True) -> "SpeechEncoder":
        """Frozen: it computes the same whether the model around it trains or not."""
        return super().train(False)

    def frames(self, samples_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] float32 in [-1, 1] → [B, F, dim], of recordings of one length."""
        raise NotImplementedError(f"{type(self).__name__} defines no frames()")

    def each(self, samples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Recordings [T_i] of any lengths → frames [F_i, dim], each as if it were encoded alone."""
        return [self(one) for one in samples]

    @torch.no_grad()
    def forward(self, samples_T: torch.Tensor) -> torch.Tensor:
        """One recording [T] → [floor(T / sample_rate · frame_rate), dim]; longer ones than `longest_s` are split and
        joined, a last frame that the encoder leaves out is filled with zeros."""
        count = math.floor(samples_T.shape[-1] / self.sample_rate * self.frame_rate + 1e-6)
        if count == 0:
            return samples_T.new_zeros(0, self.dim)
        window = samples_T.shape[-1] if self.longest_s is None else int(self.longest_s * self.sample_rate)
        with whole_float32:
            parts = [self.frames(part[None])[0] for part in samples_T.split(window)]
        frames = torch.cat(parts)[:count]
        if len(frames) < count:
            frames = torch.cat([frames, frames.new_zeros(count - len(frames), self.dim)])
        return frames


@torch.no_grad()
def look_ahead(encoder: SpeechEncoder, seconds: float = 4.0, cuts: int = 5) -> float:
    """How far beyond a frame's end the sound still changes that frame, in seconds: 0 for a causal encoder, infinite where the
    first frame hears the end of the recording.

    Measured: noise of `seconds` is encoded, and again with other noise from a cut on; the first frame that differs, by more
    than 1e-6 of the largest value, says how far it reached. `cuts` of them, a part of a frame apart."""
    about = next(iter((*encoder.parameters(), *encoder.buffers())), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    sound, other = (0.1 * torch.randn(int(seconds * encoder.sample_rate), generator=generator).to(about.device) for _ in range(2))
    frames, furthest = encoder(sound), 0.0
    for n in range(cuts):
        at = int((seconds / 2 + (n + n / cuts) / encoder.frame_rate) * encoder.sample_rate)
        changed = (encoder(torch.cat([sound[:at], other[at:]])) - frames).abs().amax(-1) > 1e-6 * frames.abs().max()
        if not changed.any():
            continue
        first = int(changed.int().argmax())
        if first == 0:
            return math.inf
        furthest = max(furthest, (at + 1) / encoder.sample_rate - (first + 1) / encoder.frame_rate)
    return furthest if furthest > 0.5 / encoder.sample_rate else 0.0


def check_layer(about, config: EncoderConfig) -> None:
    """SaladError where `config.layer` names a layer, or weighs layers, that a model of the configuration `about` has not."""
    layers = int(getattr(about, "encoder_layers", None) or getattr(about, "num_hidden_layers", 0) or 0)
    if isinstance(config.layer, int) and not -layers - 1 <= config.layer <= layers:
        raise SaladError(f"encoder.layer={config.layer}: {config.name!r} has {layers} layers, so 0 to {layers}")
    if isinstance(config.layer, tuple) and (len(config.layer) != layers + 1 or sum(config.layer) <= 0):
        raise SaladError(f"encoder.layer: {config.name!r} has {layers} layers, so {layers + 1} weights, of a sum above 0")


def of_layers(output, layer: int | tuple[float, ...] | None) -> torch.Tensor:
    """What a model's layers made [B, P, D]: of the last one (None), of one by its number (0 is what goes into the first), or
    their mean, weighted."""
    if layer is None:
        return output.last_hidden_state
    states = (*output.hidden_states[:-1], output.last_hidden_state)  # some leave out the norm behind the last
    if isinstance(layer, int):
        return states[layer]
    return sum(weight * state for weight, state in zip(layer, states, strict=True)) / sum(layer)


def _convolve(convolution: nn.Conv1d, inputs_BCT: torch.Tensor) -> torch.Tensor:
    """A bfloat16 convolution in float32 on CPUs: oneDNN's own is wrong there for some shapes (16 to 32 channels, stride 6, on
    an Intel CPU with AMX: 82 % off, torch 2.13)."""
    if inputs_BCT.device.type != "cpu" or inputs_BCT.dtype != torch.bfloat16:
        return nn.Conv1d.forward(convolution, inputs_BCT)
    bias = None if convolution.bias is None else convolution.bias.float()
    return convolution._conv_forward(inputs_BCT.float(), convolution.weight.float(), bias).to(inputs_BCT.dtype)


class Pretrained(SpeechEncoder):
    """An encoder that transformers loads, with what it computes kept in `model`."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        for module in self.model.modules():
            if type(module) is nn.Conv1d:
                module.forward = partial(_convolve, module)

    @property
    def dtype(self) -> torch.dtype:
        """In which the model computes."""
        return next(self.model.parameters()).dtype


class Phone(Pretrained):
    """The miniature's causal phone encoder: 16 kHz → 12.5 Hz."""

    causal = True

    def __init__(self, model):
        super().__init__(model)
        config = model.config
        self.sample_rate, self.frame_rate, self.dim = config.sampling_rate, config.frame_rate, config.hidden_size

    def frames(self, samples_BT):
        return self.model(samples_BT).last_hidden_state.float()


class Mimi(Pretrained):
    """Mimi's continuous latents before quantisation: 24 kHz → 12.5 Hz, causal."""

    causal = True

    def __init__(self, model):
        super().__init__(model)
        config = model.config
        self.sample_rate, self.frame_rate, self.dim = config.sampling_rate, config.frame_rate, config.hidden_size

    def frames(self, samples_BT):
        return self.model.encoder(samples_BT[:, None].to(self.dtype)).latents.transpose(1, 2).float()


class LookAhead(Pretrained):
    """Base of encoders that look ahead, which are given each speech span's samples alone.

    `encoder.layer` says which layer's positions these are, where a subclass gives them to `of_layers`.
    A subclass sets `sample_rate`, `longest_s`, its own `positions_per_s` and `width`, and defines `encode`; windows, batches
    and stacking are done here. `stack` neighbouring positions make one frame: Whisper's 50 Hz and a stack of 4 give 12.5 Hz."""

    causal = False
    positions_per_s: float
    width: int

    def __init__(self, model: Any, config: EncoderConfig | None = None):
        super().__init__(model)
        config = config or EncoderConfig()
        self.stack, self.layer = config.stack, config.layer
        check_layer(model.config, config)

    @property
    def settings(self) -> dict:
        return {} if self.layer is None else {"layer": self.layer}

    @property
    def frame_rate(self) -> float:  # type: ignore[override]
        return self.positions_per_s / self.stack

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.width * self.stack

    def encode(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Parts [T_i], none longer than `longest_s` → float32 positions [P_i, width], each as if it were encoded alone."""
        raise NotImplementedError(f"{type(self).__name__} defines no encode()")

    def frames(self, samples_BT):
        return torch.stack(self.each(list(samples_BT)))

    @torch.no_grad()
    def forward(self, samples_T: torch.Tensor) -> torch.Tensor:
        return self.each([samples_T])[0]

    @torch.no_grad()
    def each(self, samples: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Recordings [T_i] → frames [floor(T_i / sample_rate · frame_rate), dim], each as if it were encoded alone.

        Neighbours in length are encoded together, so that little of a batch is padding; a recording longer than
        `longest_s` is split into windows and joined again, and frames that the encoder leaves out are filled with zeros."""
        window = int(cast(float, self.longest_s) * self.sample_rate)
        parts = [(i, part) for i, whole in enumerate(samples) if len(whole) for part in whole.split(window)]
        order = sorted(range(len(parts)), key=lambda n: -len(parts[n][1]))
        encoded: dict[int, torch.Tensor] = {}
        with whole_float32:
            while order:
                longest = len(parts[order[0]][1])
                room = TOGETHER_S[parts[0][1].device.type == "cuda"] * self.sample_rate
                alike = (n for n, k in enumerate(order) if len(parts[k][1]) < ALIKE * longest or (n + 1) * longest > room)
                size = max(1, next(alike, len(order)))
                group, order = order[:size], order[size:]
                encoded |= zip(group, self.encode([parts[n][1] for n in group]), strict=True)
        joined: list[list[torch.Tensor]] = [[] for _ in samples]
        for n, (i, _) in enumerate(parts):
            joined[i].append(encoded[n])
        return [self._stacked(torch.cat(found) if found else sound.new_zeros(0, self.width), len(sound))
                for found, sound in zip(joined, samples, strict=True)]  # fmt: skip

    def _stacked(self, positions_PD: torch.Tensor, n_samples: int) -> torch.Tensor:
        count = math.floor(n_samples / self.sample_rate * self.frame_rate + 1e-6)
        positions_PD = positions_PD[: count * self.stack]
        missing = count * self.stack - len(positions_PD)
        return nn.functional.pad(positions_PD, (0, 0, 0, missing)).reshape(count, self.dim)


class Whisper(LookAhead):
    """Whisper's encoder, and those built like it (Voxtral's): 16 kHz → 50 positions a second, windows of
    at most 30 s.

    `window`: `speech`, as long as the speech, with the positions that it needs (as Ultravox does), many windows at a time;
    or `full`, each padded to 30 s, as Whisper was trained, one by one."""

    sample_rate, positions_per_s, longest_s = 16_000, 50.0, 30.0

    def __init__(self, model: Any, extractor=None, config: EncoderConfig | None = None):
        """model: the encoder alone; extractor: a WhisperFeatureExtractor, or None where nothing is computed."""
        super().__init__(model, config)
        self.extractor, self.window = extractor, "full" if config is None else config.window
        self.width = model.config.d_model

    @property
    def settings(self) -> dict:
        return super().settings | ({} if self.window == "full" else {"window": self.window})

    def encode(self, parts):
        if self.window == "full":
            return [self._full(part)[: math.ceil(len(part) * self.positions_per_s / self.sample_rate)] for part in parts]
        return self._as_long_as_the_speech(parts)

    def _features(self, part: torch.Tensor, **padding) -> torch.Tensor:
        """Log-mel energies [1, mels, T] of one part."""
        shortest = self.extractor.n_fft  # a shorter one cannot be reflected at its ends
        samples = nn.functional.pad(part, (0, max(0, shortest - len(part)))).cpu().numpy()
        return self.extractor(samples, sampling_rate=self.sample_rate, return_tensors="pt", **padding).input_features

    def _full(self, part: torch.Tensor) -> torch.Tensor:
        features = self._features(part).to(part.device, self.dtype)
        return of_layers(self.model(features, output_hidden_states=self.layer is not None), self.layer)[0].float()

    def _as_long_as_the_speech(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """What the encoder's own forward does, for windows of any length side by side: behind a window's end nothing of the
        padding is seen, neither by the convolutions nor by attention."""
        model, device = self.model, parts[0].device
        mels = [self._features(part, padding="longest", truncation=False)[0] for part in parts]
        lengths = torch.tensor([mel.shape[-1] for mel in mels], device=device)
        longest = int(lengths.max()) + int(lengths.max()) % 2
        mel_BMT = torch.stack([nn.functional.pad(mel, (0, longest - mel.shape[-1])) for mel in mels]).to(device, self.dtype)
        heard_BT = torch.arange(longest, device=device) < lengths[:, None]
        hidden = nn.functional.gelu(model.conv1(mel_BMT)) * heard_BT[:, None]
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight[: hidden.shape[1]]
        positions = (lengths + 1) // 2
        unheard_BP = torch.arange(hidden.shape[1], device=device) >= positions[:, None]
        mask = hidden.new_zeros(unheard_BP.shape).masked_fill(unheard_BP, torch.finfo(hidden.dtype).min)
        mask = mask[:, None, None].expand(-1, -1, hidden.shape[1], -1)  # alone, too: attention takes the same way then
        states = [hidden]
        for layer in model.layers:
            hidden = layer(hidden, mask)
            states.append(hidden)
        states[-1] = model.layer_norm(hidden)
        hidden = of_layers(BaseModelOutput(last_hidden_state=states[-1], hidden_states=tuple(states)), self.layer).float()
        return [row[:n] for row, n in zip(hidden, positions.tolist(), strict=True)]


class LogMel(SpeechEncoder):
    """Baseline without learning: causal log-mel energies at 50 Hz, four stacked to 12.5 Hz."""

    causal = True
    sample_rate, frame_rate = 16_000, 12.5

    def __init__(self):
        super().__init__()
        from salad.models.phone import CausalLogMel, PhoneConfig

        config = PhoneConfig()
        self.log_mel = CausalLogMel(config)
        self.stack = config.samples_per_frame // config.hop_length
        self.dim = config.n_mels * self.stack

    def frames(self, samples_BT):
        whole = samples_BT.shape[-1] // 1280 * 1280
        mel_BTM = self.log_mel(samples_BT[:, :whole])
        return mel_BTM.reshape(len(mel_BTM), -1, self.dim)


INSIDE = {  # model_type of a whole model -> where its configuration keeps the tower's
    "voxtral": ("audio_config",), "voxtral_realtime": ("audio_config",), "qwen2_audio": ("audio_config",),
    "qwen2_5_omni": ("thinker_config", "audio_config"), "qwen2_5_omni_thinker": ("audio_config",),
    "qwen3_omni_moe": ("thinker_config", "audio_config"), "qwen3_omni_moe_thinker": ("audio_config",),
    "qwen3_asr": ("audio_config",),
    "parakeet_ctc": ("encoder_config",), "parakeet_tdt": ("encoder_config",), "parakeet_rnnt": ("encoder_config",),
    "canary": ("encoder_config",),
}  # fmt: skip


class Wav2Vec2(LookAhead):
    """wav2vec 2.0, HuBERT, WavLM and their kin: samples at 16 kHz → 50 positions a second.

    A model whose first layer normalises over time (the base sizes) would hear padding, so it encodes one part at a time."""

    sample_rate, longest_s = 16_000, 30.0

    def __init__(self, model: Any, extractor=None, config: EncoderConfig | None = None):
        super().__init__(model, config)
        self.extractor, about = extractor, model.config
        self.positions_per_s = self.sample_rate / math.prod(about.conv_stride)
        self.width = about.hidden_size
        self.normalise = True if extractor is None else bool(extractor.do_normalize)
        self.alone = about.feat_extract_norm == "group"
        reach, step = 1, 1
        for kernel, stride in zip(about.conv_kernel, about.conv_stride, strict=True):
            reach, step = reach + (kernel - 1) * step, step * stride
        self.reach = reach  # samples that one position hears

    def encode(self, parts):
        if self.alone and len(parts) > 1:
            return [self.encode([part])[0] for part in parts]
        step = round(self.sample_rate / self.positions_per_s)
        made = []
        for part in parts:
            if self.normalise:
                part = (part - part.mean()) / (part.var(correction=0) + 1e-7).sqrt()
            made.append(nn.functional.pad(part, (0, max(self.reach - step, self.reach - len(part)))))
        lengths = torch.tensor([len(one) for one in made], device=parts[0].device)
        inputs = nn.utils.rnn.pad_sequence(made, batch_first=True).to(self.dtype)
        mask = None if self.alone else (torch.arange(inputs.shape[1], device=inputs.device) < lengths[:, None]).long()
        out = self.model(inputs, attention_mask=mask, output_hidden_states=self.layer is not None)
        counts = self.model._get_feat_extract_output_lengths(lengths).tolist()
        return [row[:n].float() for row, n in zip(of_layers(out, self.layer), counts, strict=True)]


class FastConformer(LookAhead):
    """NVIDIA's FastConformer, the encoder of Parakeet and Canary: log-mel energies, a position for eight of them."""

    sample_rate, longest_s = 16_000, 30.0
    SHORTEST = 1600  # samples: its features are scaled by their own spread, which a single one has none of

    def __init__(self, model: Any, extractor=None, config: EncoderConfig | None = None):
        super().__init__(model, config)
        self.extractor = extractor
        hop = 160 if extractor is None else extractor.hop_length
        self.positions_per_s = self.sample_rate / hop / model.config.subsampling_factor
        self.width = model.config.hidden_size

    def encode(self, parts):
        padded = [nn.functional.pad(part, (0, max(0, self.SHORTEST - len(part)))).cpu().numpy() for part in parts]
        given = self.extractor(padded, sampling_rate=self.sample_rate, return_tensors="pt").to(parts[0].device)
        out = self.model(given.input_features.to(self.dtype), attention_mask=given.attention_mask,
                         output_hidden_states=self.layer is not None)  # fmt: skip
        counts = out.attention_mask.sum(-1).tolist()
        return [row[:n].float() for row, n in zip(of_layers(out, self.layer), counts, strict=True)]


class Qwen2Audio(Whisper):
    """Qwen2-Audio's tower: Whisper's, with pairs of positions averaged, 25 a second, in windows of 30 s."""

    positions_per_s = 25.0

    def __init__(self, model: Any, extractor=None, config: EncoderConfig | None = None):
        super().__init__(model, extractor, config)
        _only(self, "encoder.window=speech", self.window == "full")
        _only(self, "encoder.layer", self.layer is None)


class QwenOmni(LookAhead):
    """The tower of Qwen2.5-Omni and Qwen3-Omni: log-mel energies in chunks, which attend to their own block only. Parts are
    laid end to end, as the model itself takes them."""

    sample_rate, longest_s = 16_000, 30.0

    def __init__(self, model: Any, extractor=None, config: EncoderConfig | None = None):
        super().__init__(model, config)
        _only(self, "encoder.layer", self.layer is None)
        self.extractor = extractor
        chunk = 2 * model.config.n_window  # of 10 ms
        self.positions_per_s = self.positions(chunk) * 100 / chunk
        self.width = model.config.output_dim

    def positions(self, mels: int) -> int:
        """How many positions the tower makes of a chunk of so many log-mel energies."""
        if self.model.config.model_type == "qwen2_5_omni_audio_encoder":
            return ((mels - 1) // 2 + 1 - 2) // 2 + 1
        for _ in range(3):
            mels = (mels - 1) // 2 + 1
        return mels

    def mels(self, part: torch.Tensor) -> torch.Tensor:
        """Log-mel energies [mels, T] of one part."""
        shortest = max(self.extractor.n_fft, 4 * self.extractor.hop_length)
        samples = nn.functional.pad(part, (0, max(0, shortest - len(part)))).cpu().numpy()
        given = self.extractor(samples, sampling_rate=self.sample_rate, return_tensors="pt", padding="longest", truncation=False)
        return given.input_features[0].to(part.device, self.dtype)

    def encode(self, parts):
        mels, chunk = [self.mels(part) for part in parts], 2 * self.model.config.n_window
        lengths = [mel.shape[1] for mel in mels]
        out = self.forward_tower(mels, torch.tensor(lengths, device=parts[0].device)).float()
        pooled = self.model.config.model_type == "qwen2_5_omni_audio_encoder"  # over the whole part, not chunk by chunk
        rest = [self.positions(n % chunk) if n % chunk else 0 for n in lengths]
        counts = [self.positions(n) if pooled else n // chunk * self.positions(chunk) + more
                  for n, more in zip(lengths, rest, strict=True)]  # fmt: skip
        return list(out.split(counts))

    def forward_tower(self, mels: list[torch.Tensor], lengths: torch.Tensor) -> torch.Tensor:
        """Positions [sum of all, width] of parts [mels, T_i] laid end to end."""
        return self.model(input_features=torch.cat(mels, dim=1), feature_lens=lengths).last_hidden_state


class Qwen3ASR(QwenOmni):
    """Qwen3-ASR's tower: Qwen3-Omni's without the projection behind it."""

    def __init__(self, model: Any, extractor=None, config: EncoderConfig | None = None):
        model.config.output_dim = getattr(model.config, "output_dim", None) or model.config.d_model
        super().__init__(model, extractor, config)
        self.width = model.config.d_model

    def mels(self, part):
        given = self.extractor([part.cpu().numpy()], sampling_rate=self.sample_rate, return_tensors="pt",
                               return_attention_mask=True)  # fmt: skip
        mask = next(value for name, value in given.items() if name.endswith("mask"))
        return given["input_features"][0][:, : int(mask[0].sum())].to(part.device, self.dtype)

    def forward_tower(self, mels, lengths):
        chunk = 2 * self.model.config.n_window
        room = -(-int(lengths.max()) // chunk) * chunk
        padded = torch.stack([nn.functional.pad(mel, (0, room - mel.shape[1])) for mel in mels])
        mask = (torch.arange(room, device=lengths.device) < lengths[:, None]).long()
        return self.model(input_features=padded, input_features_mask=mask).last_hidden_state


class VoxtralRealtime(Pretrained):
    """Voxtral Realtime's causal tower: 16 kHz → 50 positions a second, `encoder.stack` of them a frame.

    Its log-mel windows are centred, so that a position hears 2.5 ms beyond its end: everything is heard 10 ms later here, one
    window's step, and no frame hears beyond its own end (`SpeechEncoder.look_ahead_s` measures it)."""

    sample_rate, causal = 16_000, True

    def __init__(self, model: Any, extractor=None, config: EncoderConfig | None = None):
        super().__init__(model)
        config = config or EncoderConfig()
        _only(self, "encoder.window=speech", config.window == "full")
        check_layer(model.config, config)
        self.extractor, self.stack, self.layer = extractor, config.stack, config.layer
        self.delay = 160 if extractor is None else extractor.hop_length
        self.frame_rate = self.sample_rate / self.delay / 2 / self.stack
        self.dim = model.config.hidden_size * self.stack

    @property
    def settings(self) -> dict:
        return {} if self.layer is None else {"layer": self.layer}

    def frames(self, samples_BT):
        later = nn.functional.pad(samples_BT, (self.delay, max(0, self.extractor.n_fft - samples_BT.shape[1]))).cpu().numpy()
        given = self.extractor(list(later), sampling_rate=self.sample_rate, return_tensors="pt").input_features
        given = given[..., : given.shape[-1] // 2 * 2].to(samples_BT.device, self.dtype)
        out = self.model(given, use_cache=False, output_hidden_states=self.layer is not None)
        positions = of_layers(out, self.layer).float()
        whole = positions.shape[1] // self.stack
        return positions[:, : whole * self.stack].reshape(len(positions), whole, self.dim)


def _only(encoder: nn.Module, what: str, fine: bool) -> None:
    if not fine:
        raise SaladError(f"{what} is not for {type(encoder).__name__}, whose tower has nothing of the kind")


KINDS: dict[str, Callable[..., Pretrained]] = {
    **dict.fromkeys(("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat"), Wav2Vec2),
    "parakeet_encoder": FastConformer,
    "voxtral_encoder": Whisper,
    "qwen2_audio_encoder": Qwen2Audio,
    **dict.fromkeys(("qwen2_5_omni_audio_encoder", "qwen3_omni_moe_audio_encoder"), QwenOmni),
    "qwen3_asr_encoder": Qwen3ASR,
    "voxtral_realtime_encoder": VoxtralRealtime,
}


def tower_config(whole):
    """The configuration of the audio tower inside of a whole model's; the configuration itself where it is a tower's."""
    for name in INSIDE.get(whole.model_type, ()):
        whole = getattr(whole, name)
    return whole


def new_tower(config, dtype: torch.dtype) -> Any:
    """A tower of these sizes with random weights, as transformers builds it."""
    from transformers import AutoModel
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
    from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder

    for unregistered in (Qwen2_5OmniAudioEncoder, Qwen3OmniMoeAudioEncoder):  # AutoModel has no row for them
        if isinstance(config, cast(type, unregistered.config_class)):
            return unregistered._from_config(config, dtype=dtype)
    return AutoModel.from_config(config, dtype=dtype, trust_remote_code=False)


def load_tower(folder: str, whole, config: EncoderConfig) -> nn.Module:
    """The audio tower inside of the whole model in `folder`, which no other weight is read for; SaladError where it has none."""
    from safetensors import safe_open

    place = Path(folder)
    if not place.is_dir():
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors"]
        place = Path(snapshot_download(folder, allow_patterns=patterns))
    index = place / "model.safetensors.index.json"
    if index.is_file():
        where = json.loads(index.read_text())["weight_map"]
    else:
        files = sorted(place.glob("*.safetensors"))
        where = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                where |= dict.fromkeys(opened.keys(), file.name)
    tower = new_tower(tower_config(whole), DTYPES[config.dtype])
    wanted = tower.state_dict()
    first = next(iter(wanted))
    prefixes = [key[: -len(first)] for key in where if key.endswith(first) and ("audio_tower" in key or "encoder" in key)]
    prefix = next((one for one in sorted(prefixes, key=len) if all(one + name in where for name in wanted)), None)
    if prefix is None:
        raise SaladError(f"encoder {config.name!r}: its files hold no whole audio tower of type {tower.config.model_type!r}")
    found: dict[str, torch.Tensor] = {}
    for file in sorted({where[prefix + name] for name in wanted}):
        with safe_open(place / file, framework="pt") as opened:
            found |= {name: opened.get_tensor(prefix + name) for name in wanted if where[prefix + name] == file}
    tower.load_state_dict(found)
    return tower


def load_encoder(config: EncoderConfig, lab: Path | str | None = None) -> SpeechEncoder:
    """The encoder called `config.name`: `logmel`, `package.module:name` (a callable that returns a SpeechEncoder), or a
    folder or hub name of a model that transformers loads (docs/models.md lists them), of which the encoder is taken."""
    name = config.name
    if name == "logmel":
        return LogMel()
    if ":" in name:
        return parts.load(name)()
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    import salad.models.phone  # noqa: F401  (registers the miniature's encoder with transformers)

    quiet()
    folder = resolve(name, lab)
    with loading(f"encoder {name!r}"):
        whole = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        kind = tower_config(whole).model_type
        if kind not in (*OWN, "whisper", *KINDS):
            raise SaladError(unknown(name, kind))
        if whole.model_type == "mimi":  # the half that turns codes into sound is never built, its weights never read
            whole.decoder_config = None
        if kind != whole.model_type:
            model = load_tower(folder, whole, config)
        else:
            model = AutoModel.from_pretrained(
                folder, config=whole, dtype=DTYPES[config.dtype], use_safetensors=True, trust_remote_code=False
            )
        extractor = None if kind in OWN else AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    return wrap(model, name, extractor, config)


def fingerprint(encoder: SpeechEncoder) -> str:
    """SHA-256 of what an encoder computes with: its class, its configuration, its weights and their types.

    The code of an encoder of one's own is not in it: where that changes, its class or its weights must."""
    config = getattr(getattr(encoder, "model", None), "config", None)
    settings = {} if config is None else config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures"):  # of the folder that it came from
        settings.pop(name, None)
    kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    about = [kind, encoder.sample_rate, encoder.frame_rate, encoder.dim, encoder.longest_s, settings]
    about += [encoder.settings] if encoder.settings else []
    total = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


OWN: dict[str, type[Pretrained]] = {"salad_phone": Phone, "mimi": Mimi}  # which hear samples as they are, at their own rate


def unknown(name: str, kind: str) -> str:
    """What is said of an encoder of a type that none is written for."""
    known = ", ".join((*OWN, "whisper", *KINDS))
    return f"encoder {name!r} is of type {kind!r}; known: {known}, logmel, or package.module:name"


def wrap(model: Any, name: str, extractor=None, config: EncoderConfig | None = None) -> SpeechEncoder:
    """The SpeechEncoder around a model of transformers; a type that none is written for is a SaladError, as is a setting of
    `config` that its type does not have."""
    config = config or EncoderConfig(name=name)
    kind = model.config.model_type
    if kind in OWN:
        for setting, fine in (("stack", config.stack == 1), ("window", config.window == "full"), ("layer", config.layer is None)):
            if not fine:
                raise SaladError(f"encoder {name!r}: encoder.{setting} is for encoders that look ahead; {kind} does not")
        return OWN[kind](model)
    if kind == "whisper":
        return Whisper(model.get_encoder(), extractor, config)
    if kind in KINDS:
        return KINDS[kind](model, extractor, config)
    raise SaladError(unknown(name, kind))
