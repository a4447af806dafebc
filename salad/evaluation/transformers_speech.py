"""Speech LLMs of transformers as contenders: Qwen2-Audio and Qwen2.5-Omni, by their own classes, no remote code.

A recording stands in the prompt as the model's own audio tokens between their begin and end marks. Choices are scored by
log-likelihood, as ours are."""

from pathlib import Path

import numpy as np
import torch

from salad.errors import SaladError
from salad.models.names import folder_sha256, loading, quiet, resolve
from store.ids import digest

TYPES = {"qwen2-audio": ("qwen2_audio",), "qwen2.5-omni": ("qwen2_5_omni", "qwen2_5_omni_thinker")}
MARKS = {
    "qwen2-audio": ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"),
    "qwen2.5-omni": ("<|audio_bos|>", "<|AUDIO|>", "<|audio_eos|>"),
}


class TransformersSpeech:
    """kind: a key of MARKS; name: a folder (in the lab, or anywhere) or a hub name. Of Qwen2.5-Omni the thinker, which
    answers in text. Raises SaladError where it cannot be loaded."""

    scores = True
    modalities = ("text", "speech", "cascade")
    run_id = step = None

    def __init__(self, kind: str, name: str, told_name: str, lab: Path | str | None = None, device: str = "cpu",
                 dtype=None):  # fmt: skip
        from transformers import (
            AutoConfig,
            AutoTokenizer,
            Qwen2_5OmniThinkerForConditionalGeneration,
            Qwen2AudioForConditionalGeneration,
            WhisperFeatureExtractor,
        )

        quiet()
        self.kind, self.name = kind, told_name
        known = {"qwen2-audio": Qwen2AudioForConditionalGeneration,
                 "qwen2.5-omni": Qwen2_5OmniThinkerForConditionalGeneration}  # fmt: skip
        folder = resolve(name, lab)
        dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
        with loading(f"{kind}:{name}"):
            found = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
            if found not in TYPES[kind]:  # another model's settings would make one of full size and random weights
                raise SaladError(f"{kind}:{name} is no {kind}: it is of type {found}")
            self.model = known[kind].from_pretrained(folder, dtype=dtype, use_safetensors=True).to(device).eval()
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.features = WhisperFeatureExtractor.from_pretrained(folder)
        self.device, self.sample_rate = device, self.features.sampling_rate
        weights = folder_sha256(folder) if Path(folder).is_dir() else [name, getattr(self.model.config, "_commit_hash", None)]
        self.fingerprint = digest({"kind": kind, "weights": weights, "dtype": str(dtype)})
        self._begin, self._audio, self._end = (self.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS[kind])
        ids, unknown = (self._begin, self._audio, self._end), self.tokenizer.unk_token_id
        if None in ids or unknown in ids:
            raise SaladError(f"{kind}:{name}: its tokenizer lacks {' '.join(MARKS[kind])}: it is no {kind}")

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _inputs(self, prompt) -> tuple[list[int], str, dict]:
        """(ids before the last text, that text, the recordings' features) of a prompt."""
        ids, sounds, tail = [], [], ""
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
        told = []
        for number, (prompt, wanted) in enumerate(zip(prompts, continuations, strict=True)):
            told.append(self._score(prompt, wanted))
            if progress is not None:
                progress(number + 1, len(prompts))
        return told

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
        rows, context = rows.to(self.device), torch.tensor([context], device=self.device)
        first = self.model(input_ids=context, attention_mask=torch.ones_like(context), use_cache=True, **sounds)
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
        told = []
        for row, some in enumerate(after):
            logp = logits[row, : len(some)].float().log_softmax(-1)
            target = rows[row, : len(some)]
            told.append((float(logp.gather(1, target[:, None]).sum()), bool((logp.argmax(-1) == target).all())))
        return told

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
