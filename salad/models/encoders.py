"""Frozen speech encoders behind one small interface: samples in, frames out."""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

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

    A subclass sets `sample_rate`, `longest_s`, its own `positions_per_s` and `width`, and defines `encode`; windows, batches
    and stacking are done here. `stack` neighbouring positions make one frame: Whisper's 50 Hz and a stack of 4 give 12.5 Hz."""

    causal = False
    positions_per_s: float
    width: int

    def __init__(self, model, stack: int = 1):
        super().__init__(model)
        self.stack = stack

    @property
    def frame_rate(self) -> float:
        return self.positions_per_s / self.stack

    @property
    def dim(self) -> int:
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
        window = int(self.longest_s * self.sample_rate)
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
    """Whisper's encoder: 16 kHz → 50 positions a second, windows of at most 30 s.

    `window`: `speech`, as long as the speech, with the positions that it needs (as Ultravox does), many windows at a time;
    or `full`, each padded to 30 s, as Whisper was trained, one by one."""

    sample_rate, positions_per_s, longest_s = 16_000, 50.0, 30.0

    def __init__(self, model, extractor, window: str = "full", stack: int = 1):
        super().__init__(model.get_encoder(), stack)
        self.extractor, self.window = extractor, window
        self.width = model.config.d_model

    @property
    def settings(self) -> dict:
        return {} if self.window == "full" else {"window": self.window}

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
        return self.model(features).last_hidden_state[0].float()

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
        for layer in model.layers:
            hidden = layer(hidden, mask)
        hidden = model.layer_norm(hidden).float()
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


def load_encoder(config: EncoderConfig, lab: Path | str | None = None) -> SpeechEncoder:
    """The encoder called `config.name`: `logmel`, `package.module:name` (a callable that returns a SpeechEncoder), or a
    folder or hub name of a type that transformers loads (Mimi, Whisper, the miniature's phone encoder)."""
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
        if whole.model_type == "mimi":  # the half that turns codes into sound is never built, its weights never read
            whole.decoder_config = None
        model = AutoModel.from_pretrained(
            folder, config=whole, dtype=DTYPES[config.dtype], use_safetensors=True, trust_remote_code=False
        )
        extractor = None
        if model.config.model_type == "whisper":
            extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
    return wrap(model, name, extractor, config)


def fingerprint(encoder: SpeechEncoder) -> str:
    """SHA-256 of what an encoder computes with: its class, its configuration, its weights and their types.

    The code of an encoder of one's own is not in it: where that changes, its class or its weights must."""
    config = getattr(getattr(encoder, "model", None), "config", None)
    told = {} if config is None else config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures"):  # of the folder that it came from
        told.pop(name, None)
    kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    about = [kind, encoder.sample_rate, encoder.frame_rate, encoder.dim, encoder.longest_s, told]
    about += [encoder.settings] if encoder.settings else []
    total = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def wrap(model, name: str, extractor=None, config: EncoderConfig | None = None) -> SpeechEncoder:
    """The SpeechEncoder around a model of transformers; a type that none is written for is a SaladError, as is a setting of
    `config` that its type does not have."""
    config = config or EncoderConfig(name=name)
    kind = model.config.model_type
    if kind in ("salad_phone", "mimi") and (config.stack != 1 or config.window != "full"):
        raise SaladError(f"encoder {name!r}: encoder.stack and encoder.window are for encoders that look ahead; {kind} does not")
    if kind == "salad_phone":
        return Phone(model)
    if kind == "mimi":
        return Mimi(model)
    if kind == "whisper":
        return Whisper(model, extractor, config.window, config.stack)
    raise SaladError(f"encoder {name!r} is of type {kind!r}; known: salad_phone, mimi, whisper, logmel, or package.module:name")
