"""Speech LLMs of transformers, loaded by their own classes without remote code; two of them as contenders of evaluation.

As a contender, a recording stands in the prompt as the model's own audio tokens between their begin and end marks, and
choices are scored by log-likelihood, as a checkpoint of ours scores them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from salad.errors import SaladError
from salad.models.names import folder_sha256, loading, quiet, resolve
from store.ids import digest


class Kind(NamedTuple):
    """A kind of speech LLM: the model types of its config.json, and transformers' classes for weights and processor."""

    types: tuple[str, ...]
    model: str
    processor: str


KINDS = {  # of the omni models the thinker, which answers in text
    "qwen2-audio": Kind(("qwen2_audio",), "Qwen2AudioForConditionalGeneration", "Qwen2AudioProcessor"),
    "qwen2.5-omni": Kind(("qwen2_5_omni", "qwen2_5_omni_thinker"), "Qwen2_5OmniThinkerForConditionalGeneration",
                         "Qwen2_5OmniProcessor"),
    "qwen3-omni": Kind(("qwen3_omni_moe", "qwen3_omni_moe_thinker"), "Qwen3OmniMoeThinkerForConditionalGeneration",
                       "Qwen3OmniMoeProcessor"),
    "voxtral": Kind(("voxtral",), "VoxtralForConditionalGeneration", "VoxtralProcessor"),
}  # fmt: skip
MARKS = {
    "qwen2-audio": ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"),
    "qwen2.5-omni": ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"),
}


def model_type(name: str, lab: Path | str | None) -> str:
    """The model type in the config.json of a folder or hub name; SaladError where transformers has no class for it."""
    import transformers

    quiet()
    folder = resolve(name, lab)
    try:
        with loading(f"model {name!r}"):
            return transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    except SaladError as error:
        if not any(words in str(error) for words in ("custom code", "does not recognize", "model type")):
            raise
        reason = f"transformers {transformers.__version__} has no class for it, and code that comes with a model is not run"
        raise SaladError(f"model {name!r} cannot be loaded: {reason}") from None


def load_model(kind: str, name: str, lab: Path | str | None, device: str = "cpu",
               dtype: torch.dtype | None = None) -> tuple[Any, str]:  # fmt: skip
    """(the model, ready to be asked; its fingerprint) of a folder or hub name that is of `kind`, a key of KINDS.

    `dtype`: by default float32 on a CPU and bfloat16 elsewhere. The fingerprint is a hash of the folder's files (of a hub's
    model its name and commit) and the type. Raises SaladError where the model is of another kind, cannot be had, or lacks
    weights that its class needs."""
    import transformers

    quiet()
    folder = resolve(name, lab)
    dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
    found = model_type(name, lab)
    if found not in KINDS[kind].types:  # another model's settings would make one of full size and random weights
        raise SaladError(f"{kind}:{name} is no {kind}: it is of type {found}")
    with loading(f"{kind}:{name}"):
        model, loaded = getattr(transformers, KINDS[kind].model).from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    if lacking := sorted(loaded["missing_keys"]):
        raise SaladError(f"{kind}:{name} lacks {len(lacking)} of its class's weights, {lacking[0]} among them")
    weights = folder_sha256(folder) if Path(folder).is_dir() else [name, getattr(model.config, "_commit_hash", None)]
    return model.to(device).eval(), digest({"kind": kind, "weights": weights, "dtype": str(dtype)})


class TransformersSpeech:
    """Qwen2-Audio or Qwen2.5-Omni as a contender. kind: a key of MARKS; name: a folder (in the lab, or anywhere) or a hub
    name; label: what the contender is called. Raises SaladError where it cannot be loaded."""

    scores = True
    modalities = ("text", "speech", "cascade")
    run_id = step = None

    def __init__(self, kind: str, name: str, label: str, lab: Path | str | None = None, device: str = "cpu",
                 dtype: torch.dtype | None = None):  # fmt: skip
        from transformers import AutoTokenizer, WhisperFeatureExtractor

        self.kind, self.name = kind, label
        self.model, self.fingerprint = load_model(kind, name, lab, device, dtype)
        folder = resolve(name, lab)
        with loading(f"{kind}:{name}"):
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.features = WhisperFeatureExtractor.from_pretrained(folder)
        self.device, self.sample_rate = device, self.features.sampling_rate
        self._begin, self._audio, self._end = (self.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS[kind])
        ids, unknown = (self._begin, self._audio, self._end), self.tokenizer.unk_token_id
        if None in ids or unknown in ids:
            raise SaladError(f"{kind}:{name}: its tokenizer lacks {' '.join(MARKS[kind])}: it is no {kind}")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _inputs(self, prompt) -> tuple[list[int], str, dict]:
        """(ids before the last text, that text, the recordings' features) of a prompt."""
        ids: list[Any] = []
        sounds: list[np.ndarray] = []
        tail = ""
        for part in prompt:
            if isinstance(part, str):
                tail += part
                continue
            ids += self._encode(tail) if tail else []
            tail = ""
            sounds.append(np.asarray(part.samples, dtype=np.float32))
            ids += [self._begin, *[self._audio] * self._positions(sounds[-1]), self._end]
        if not sounds:
            return ids, tail, {}
        made = self.features(sounds, sampling_rate=self.sample_rate, return_attention_mask=True, return_tensors="pt",
                             padding="max_length")  # fmt: skip
        found = {"input_features": made["input_features"].to(self.device, self.model.dtype),
                 "feature_attention_mask": made["attention_mask"].to(self.device)}  # fmt: skip
        return ids, tail, found

    def _positions(self, samples: np.ndarray) -> int:
        """Audio tokens that a recording takes: mel frames, halved by the convolutions and again by the pooling."""
        longest = self.features.n_samples
        if len(samples) > longest:
            raise SaladError(f"{self.name} hears at most {longest / self.sample_rate:.0f} s; this recording is longer")
        mel = max(-(-len(samples) // self.features.hop_length), 1)
        return max((((mel - 1) // 2 + 1) - 2) // 2 + 1, 1)

    @torch.no_grad()
    def loglikelihoods(self, prompts, continuations, progress=None):
        results = []
        for number, (prompt, wanted) in enumerate(zip(prompts, continuations, strict=True)):
            results.append(self._score(prompt, wanted))
            if progress is not None:
                progress(number + 1, len(prompts))
        return results

    def _score(self, prompt, continuations: list[str]) -> list[tuple[float, bool]]:
        """A prompt's recordings are encoded and the prompt is run once; its key-value cache serves every choice."""
        ids, tail, sounds = self._inputs(prompt)
        blanks = tail[len(tail.rstrip()) :]
        tail = tail[: len(tail) - len(blanks)]
        context = ids + (self._encode(tail) if tail else [])
        if not context:
            context = [self.tokenizer.bos_token_id or self.tokenizer.eos_token_id]
        length = len(self._encode(tail)) if tail else 0
        after = [self._encode(tail + blanks + continuation)[length:] for continuation in continuations]
        count, width = len(after), max(map(len, after))
        rows = torch.zeros(count, width, dtype=torch.long)
        for row, some in enumerate(after):
            rows[row, : len(some)] = torch.tensor(some)
        rows, read = rows.to(self.device), torch.tensor([context], device=self.device)
        first = self.model(input_ids=read, attention_mask=torch.ones_like(read), use_cache=True, **sounds)
        logits = first.logits[:, -1:].expand(count, -1, -1)
        if width > 1:  # choices end with padding, which what stands before it does not see: no mask is needed
            cache, positions = first.cache, {}
            start = cache.get_seq_length()
            if (moved := getattr(self.model.model, "rope_deltas", None)) is not None:  # Omni's positions have three axes
                at = start + int(moved) + torch.arange(width - 1, device=self.device)
                positions = {"position_ids": at.expand(3, count, -1)}
            cache.batch_repeat_interleave(count)
            rest = self.model(input_ids=rows[:, :-1], cache=cache, use_cache=True, **positions).logits
            logits = torch.cat([logits, rest], dim=1)
        results = []
        for row, some in enumerate(after):
            logp = logits[row, : len(some)].float().log_softmax(-1)
            target = rows[row, : len(some)]
            results.append((float(logp.gather(1, target[:, None]).sum()), bool((logp.argmax(-1) == target).all())))
        return results

    @torch.no_grad()
    def generate(self, prompts, max_new_tokens=64, until=None, temperature=0.0, seed=0):
        until = ("\n",) if until is None else until
        told = []
        for prompt in prompts:
            ids, tail, sounds = self._inputs(prompt)
            ids = torch.tensor([ids + (self._encode(tail) if tail else [])], device=self.device)
            torch.manual_seed(seed)
            sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens,
                stop_strings=list(until) or None, tokenizer=self.tokenizer, **sampling, **sounds,
            )  # fmt: skip
            text = self.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
            told.append(text[: min([text.find(word) for word in until if word in text], default=len(text))].strip())
        return told
