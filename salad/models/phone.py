"""A small causal phone encoder and a CTC recogniser over it, as Hugging Face models.

Importing this module registers both with transformers, so that `AutoModel.from_pretrained(folder)`,
`AutoModelForCTC.from_pretrained(folder)` and `AutoProcessor.from_pretrained(folder)` load them offline and
without remote code. `salad/miniature/encoder.py` and `recogniser.py` train them.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCTC,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)
from transformers.audio_utils import mel_filter_bank
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

from salad.errors import SaladError


class PhoneConfig(PreTrainedConfig):
    """Sizes of the encoder and, where there is one, of the recogniser's head.

    Times follow from `sampling_rate` (Hz), `hop_length` and `window_length` (samples): the trunk runs at one
    step per two hops (50 Hz) and `frames_stacked` steps make one frame (12.5 Hz, 1,280 samples).
    """

    model_type = "salad_phone"

    sampling_rate: int = 16000
    window_length: int = 400
    hop_length: int = 160
    n_fft: int = 512
    n_mels: int = 40
    width: int = 128
    kernel_size: int = 5
    dilations: list[int] | tuple[int, ...] = (1, 1, 2, 2)
    bottleneck: int = 32
    frames_stacked: int = 4
    n_phones: int = 48
    phones: list[str] | tuple[str, ...] | None = None
    # the recogniser's head
    vocab_size: int = 32
    pad_token_id: int | None = 0
    head_width: int = 128
    head_kernel: int = 5
    head_layers: int = 5
    head_dropout: float = 0.1
    # how late the head fires, seconds: word starts, word ends (salad.speech.align.delays)
    word_delay_s: list[float] | tuple[float, ...] | None = None

    @property
    def hidden_size(self) -> int:
        """Width of a frame."""
        return self.bottleneck * self.frames_stacked

    @property
    def samples_per_frame(self) -> int:
        return 2 * self.hop_length * self.frames_stacked

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sampling_rate / self.samples_per_frame

    @property
    def inputs_to_logits_ratio(self) -> int:
        """Samples for one step of the CTC head (transformers' name)."""
        return 2 * self.hop_length


class CausalLogMel(nn.Module):
    """Log-mel energies [B, T // hop, n_mels] of samples [B, T]: window k ends at sample (k + 1) * hop.

    A centred STFT would hear half a window of what comes next; this one pads on the left only.
    """

    mean: torch.Tensor
    std: torch.Tensor
    filters: torch.Tensor
    window: torch.Tensor

    def __init__(self, config: PhoneConfig):
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.window_length, periodic=False))
        self.register_buffer("filters", torch.empty(config.n_fft // 2 + 1, config.n_mels))
        self.register_buffer("mean", torch.zeros(config.n_mels))
        self.register_buffer("std", torch.ones(config.n_mels))
        self.reset()

    def reset(self):
        config = self.config
        filters = mel_filter_bank(config.n_fft // 2 + 1, config.n_mels, 50.0, config.sampling_rate / 2, config.sampling_rate)
        with torch.no_grad():
            self.filters.copy_(torch.from_numpy(filters))
            self.window.copy_(torch.hann_window(config.window_length, periodic=False))
            self.mean.zero_()
            self.std.fill_(1.0)

    def forward(self, samples_BT: torch.Tensor) -> torch.Tensor:
        config = self.config  # float32 throughout: a Fourier transform has no bfloat16
        padded = F.pad(samples_BT.float(), (config.window_length - config.hop_length, 0))
        windows = padded.unfold(-1, config.window_length, config.hop_length) * self.window.float()
        power = torch.fft.rfft(windows, n=config.n_fft).abs().square()
        return (torch.log(power @ self.filters.float() + 1e-5) - self.mean.float()) / self.std.float()


class CausalConv(nn.Conv1d):
    """A convolution over [B, C, T] whose output at t sees nothing after t."""

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        left = (self.kernel_size[0] - 1) * self.dilation[0]
        return super().forward(F.pad(x_BCT, (left, 0)))


class PhonePreTrainedModel(PreTrainedModel):
    config: PhoneConfig
    config_class = PhoneConfig
    base_model_prefix = "encoder"
    main_input_name = "input_values"

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, CausalLogMel):
            module.reset()
        elif isinstance(module, nn.Conv1d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class PhoneEncoder(PhonePreTrainedModel):
    """Samples at 16 kHz to frames at 12.5 Hz; frame f hears samples before (f + 1) * 1280 and no others.

    A log-mel with windows that end where their frame ends, causal convolutions at 50 Hz down to a bottleneck of
    32, trained to tell phones apart, and four steps of it stacked to one frame of 128.
    """

    def __init__(self, config: PhoneConfig):
        super().__init__(config)
        self.log_mel = CausalLogMel(config)
        self.first = CausalConv(2 * config.n_mels, config.width, config.kernel_size)
        self.blocks = nn.ModuleList(
            CausalConv(config.width, config.width, config.kernel_size, dilation=d) for d in config.dilations
        )
        self.bottleneck = CausalConv(config.width, config.bottleneck, 1)
        self.phone_head = nn.Linear(config.bottleneck, config.n_phones)
        self.post_init()

    def n_frames(self, n_samples):
        """Frames of a recording of `n_samples` samples: floor(seconds * 12.5). Takes an int or a tensor."""
        return n_samples // self.config.samples_per_frame

    def mel(self, samples_BT: torch.Tensor) -> torch.Tensor:
        """Pairs of log-mel windows [B, 2 * n_mels, 4 F] at 50 Hz, for whole frames only."""
        n_samples = self.n_frames(samples_BT.shape[-1]) * self.config.samples_per_frame
        mel_BTC = self.log_mel(samples_BT[:, :n_samples]).to(self.first.weight.dtype)
        return mel_BTC.reshape(mel_BTC.shape[0], -1, 2 * self.config.n_mels).transpose(1, 2)

    def steps(self, mel_BCT: torch.Tensor) -> torch.Tensor:
        """The bottleneck [B, 4 F, 32] at 50 Hz."""
        x = F.relu(self.first(mel_BCT))
        for block in self.blocks:
            x = x + F.relu(block(x))
        return self.bottleneck(x).transpose(1, 2)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> BaseModelOutput | tuple:
        """Encode `input_values`, float32 [B, T] in [-1, 1] at 16 kHz, to `last_hidden_state` [B, T // 1280, 128].

        `attention_mask` [B, T] (1 for samples, 0 for padding on the right) only sets frames of padding to 0:
        nothing on the right ever reaches a frame before it.
        """
        if input_values.dim() != 2:
            raise SaladError(f"the phone encoder takes samples [batch, time], not {list(input_values.shape)}")
        if input_values.shape[1] < self.config.samples_per_frame:
            frames = input_values.new_zeros(input_values.shape[0], 0, self.config.hidden_size)
        else:
            steps = self.steps(self.mel(input_values))
            frames = steps.reshape(steps.shape[0], -1, self.config.hidden_size)
        if attention_mask is not None:
            frames = frames * frame_mask(self.config, attention_mask, frames.shape[1]).to(frames).unsqueeze(-1)
        return BaseModelOutput(last_hidden_state=frames) if return_dict is not False else (frames,)


def frame_mask(config: PhoneConfig, attention_mask_BT: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Bool [B, n_frames]: which frames are whole within the samples that `attention_mask` [B, T] counts."""
    n_frames_B = attention_mask_BT.long().sum(-1) // config.samples_per_frame
    return torch.arange(n_frames, device=n_frames_B.device) < n_frames_B.unsqueeze(1)


class PhoneForCTC(PhonePreTrainedModel):
    """Characters from the same frozen trunk: a head of convolutions that look both ways, 50 logits a second.

    The head works at 25 Hz and gives two steps at a time, which halves its cost.
    """

    def __init__(self, config: PhoneConfig):
        super().__init__(config)
        self.encoder = PhoneEncoder(config)
        width = config.head_width
        self.head_in = nn.Conv1d(2 * config.bottleneck, width, config.head_kernel, padding="same")
        self.head_blocks = nn.ModuleList(
            nn.Conv1d(width, width, config.head_kernel, padding="same") for _ in range(config.head_layers)
        )
        self.head_norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(1 + config.head_layers))
        self.dropout = nn.Dropout(config.head_dropout)
        self.lm_head = nn.Linear(width, 2 * config.vocab_size)
        self.post_init()

    def logits(self, frames_BFD: torch.Tensor, mask_BF: torch.Tensor | None = None) -> torch.Tensor:
        """CTC logits [B, 4 F, V] of the encoder's frames [B, F, 128]; `mask_BF` is False for padding."""
        batch = frames_BFD.shape[0]
        x = frames_BFD.reshape(batch, -1, 2 * self.config.bottleneck).transpose(1, 2)
        keep = None if mask_BF is None else mask_BF.repeat_interleave(2, dim=1).unsqueeze(1).to(x.dtype)
        # convolutions look into the padding, so it is kept at 0 in front of each of them
        x = x if keep is None else x * keep
        x = F.relu(self.head_norms[0](self.head_in(x)))
        for block, norm in zip(self.head_blocks, self.head_norms[1:], strict=True):
            x = x if keep is None else x * keep
            x = x + self.dropout(F.relu(norm(block(x))))
        return self.lm_head(x.transpose(1, 2)).reshape(batch, -1, self.config.vocab_size)

    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> CausalLMOutput | tuple:
        """`logits` [B, 4 F, V] at 50 Hz of `input_values` [B, T]; with `labels` [B, L] (-100 where padded) also
        the CTC loss per character. Blank is `config.pad_token_id`; steps of padding say blank.
        """
        with torch.no_grad():
            frames = self.encoder(input_values, attention_mask).last_hidden_state
        mask = None
        if attention_mask is not None:
            mask = frame_mask(self.config, attention_mask, frames.shape[1])
        logits = self.logits(frames, mask)
        if mask is not None:
            padding = ~mask.repeat_interleave(self.config.frames_stacked, dim=1)
            blank = F.one_hot(torch.tensor(self.config.pad_token_id), self.config.vocab_size).to(logits)
            logits = torch.where(padding.unsqueeze(-1), 100.0 * blank, logits)
        loss = None
        if labels is not None:
            n_frames = mask.sum(1) if mask is not None else torch.full((len(logits),), frames.shape[1])
            loss = ctc_loss(logits, n_frames * self.config.frames_stacked, labels, int(self.config.pad_token_id or 0))
        if return_dict is False:
            return (logits,) if loss is None else (loss, logits)
        return CausalLMOutput(loss=loss, logits=logits)


def ctc_loss(logits_BTV, n_steps_B, labels_BL, blank: int) -> torch.Tensor:
    """CTC loss in nats per character; `labels_BL` holds -100 on the right of each row."""
    n_labels_B = (labels_BL >= 0).sum(1)
    loss = F.ctc_loss(
        logits_BTV.float().log_softmax(-1).transpose(0, 1),
        labels_BL.clamp_min(0),
        n_steps_B,
        n_labels_B,
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )
    return loss / n_labels_B.sum().clamp_min(1)


def feature_extractor(config: PhoneConfig) -> Wav2Vec2FeatureExtractor:
    """Pads raw samples and gives the attention mask; the encoder itself makes the log-mel."""
    return Wav2Vec2FeatureExtractor(sampling_rate=config.sampling_rate, do_normalize=False, return_attention_mask=True)


AutoConfig.register(PhoneConfig.model_type, PhoneConfig, exist_ok=True)
AutoModel.register(PhoneConfig, PhoneEncoder, exist_ok=True)
AutoModelForCTC.register(PhoneConfig, PhoneForCTC, exist_ok=True)
AutoFeatureExtractor.register(PhoneConfig, Wav2Vec2FeatureExtractor, exist_ok=True)
AutoTokenizer.register(PhoneConfig, Wav2Vec2CTCTokenizer, exist_ok=True)
AutoProcessor.register(PhoneConfig, Wav2Vec2Processor, exist_ok=True)
