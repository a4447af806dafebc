"""Frozen speech encoders behind one small interface: samples in, frames out."""

import hashlib
import json
import math
from pathlib import Path

import torch
from torch import nn

from salad.config import EncoderConfig
from salad.errors import SaladError
from salad.models.names import DTYPES, load_object, quiet, resolve
from salad.objective import whole_float32


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

    def train(self, mode: bool = True) -> "SpeechEncoder":
        """Frozen: it computes the same whether the model around it trains or not."""
        return super().train(False)

    def frames(self, samples_BT: torch.Tensor) -> torch.Tensor:
        """[B, T] float32 in [-1, 1] → [B, F, dim], of recordings of one length."""
        raise NotImplementedError(f"{type(self).__name__} defines no frames()")

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


class Pretrained(SpeechEncoder):
    """An encoder that transformers loads, with what it computes kept in `model`."""

    def __init__(self, model):
        super().__init__()
        self.model = model.eval().requires_grad_(False)

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


class Whisper(Pretrained):
    """Whisper's encoder: 16 kHz → 50 Hz, windows of 30 s; looks ahead, so spans are encoded alone."""

    causal = False
    sample_rate, frame_rate, longest_s = 16_000, 50.0, 30.0

    def __init__(self, model, extractor):
        super().__init__(model.get_encoder())
        self.extractor = extractor
        self.dim = model.config.d_model

    def frames(self, samples_BT):
        features = self.extractor(list(samples_BT.cpu().numpy()), sampling_rate=self.sample_rate, return_tensors="pt")
        return self.model(features.input_features.to(samples_BT.device, self.dtype)).last_hidden_state.float()


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
        return load_object(name)()
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel

    import salad.models.phone  # noqa: F401  (registers the miniature's encoder with transformers)

    quiet()
    folder = resolve(name, lab)
    try:
        whole = AutoConfig.from_pretrained(folder)
        if whole.model_type == "mimi":  # the half that turns codes into sound is never built, its weights never read
            whole.decoder_config = None
        model = AutoModel.from_pretrained(folder, config=whole, dtype=DTYPES[config.dtype], use_safetensors=True)
        extractor = AutoFeatureExtractor.from_pretrained(folder) if model.config.model_type == "whisper" else None
    except (OSError, ValueError) as error:
        raise SaladError(f"encoder {name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    return wrap(model, name, extractor)


def fingerprint(encoder: SpeechEncoder) -> str:
    """SHA-256 of what an encoder computes with: its class, its configuration, its weights and their types.

    The code of an encoder of one's own is not in it: where that changes, its class or its weights must."""
    config = getattr(getattr(encoder, "model", None), "config", None)
    told = {} if config is None else config.to_dict()
    for name in ("_name_or_path", "transformers_version", "architectures"):  # of the folder that it came from
        told.pop(name, None)
    kind = f"{type(encoder).__module__}.{type(encoder).__qualname__}"
    about = [kind, encoder.sample_rate, encoder.frame_rate, encoder.dim, encoder.longest_s, told]
    total = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def wrap(model, name: str, extractor=None) -> SpeechEncoder:
    """The SpeechEncoder around a model of transformers; a type that none is written for is a SaladError."""
    kind = model.config.model_type
    if kind == "salad_phone":
        return Phone(model)
    if kind == "mimi":
        return Mimi(model)
    if kind == "whisper":
        return Whisper(model, extractor)
    raise SaladError(
        f"encoder {name!r} is of type {kind!r}; known: salad_phone, mimi, whisper, logmel, or package.module:name"
    )
