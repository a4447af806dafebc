"""The speech LM: frozen encoder → adapter → text LLM, its teacher, its checkpoint folder, and generation.

With LoRA the teacher is the same weights with the adapters switched off, so there is one copy in memory; trained in
full, the teacher is a second, frozen copy of the original.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from salad.config import AdapterConfig, EncoderConfig, LLMConfig, RunConfig
from salad.errors import SaladError
from salad.models.adapter import Adapter
from salad.models.encoders import load_encoder
from salad.models.names import folder_sha256, quiet, resolve
from store import atomic

SETTINGS = "speech_lm.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Teacher:
    """The original text LLM, frozen: what it makes of token ids, and its output head."""

    def __init__(self, llm, switched=contextlib.nullcontext):
        self.llm, self.switched = llm, switched

    @torch.no_grad()
    def hidden(self, ids_BS: torch.Tensor, place_BS: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states [B, S, G] of token ids [B, S], padded on the right, or packed with their places."""
        with self.switched():
            decoder = self.llm.get_decoder()
            return decoder(input_ids=ids_BS, position_ids=place_BS, use_cache=False).last_hidden_state

    @property
    def head(self) -> torch.Tensor:
        """Output head [V, G]."""
        return self.llm.get_output_embeddings().weight.detach()


class SpeechLM(nn.Module):
    """A text LLM that also reads speech. Built by `build` (a new one) or `from_pretrained` (a checkpoint folder).

    `llm` is the causal LM (with LoRA layers where the configuration says so), `adapter` trains, `encoder` is frozen.
    `prefix` is the token id that begins every sequence: the tokenizer's BOS, else its end-of-text token.
    """

    def __init__(self, llm, tokenizer, encoder, adapter, settings: dict, lab: Path | None, original=None, peft=None):
        super().__init__()
        self.llm, self.encoder, self.adapter = llm, encoder, adapter
        self.tokenizer, self.settings, self.lab = tokenizer, settings, lab
        self.prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if self.prefix is None:
            raise SaladError(f"the tokenizer of {settings['llm']['name']!r} has neither a BOS nor an end-of-text token")
        self._beside = {"original": original, "peft": peft}  # no submodules: neither trained nor counted twice

    # --- building, saving, loading ---

    @classmethod
    def build(cls, config: RunConfig, lab: Path | str | None = None) -> "SpeechLM":
        """A student initialised from its teacher, with a new adapter (seeded by `config.seed`)."""
        torch.manual_seed(config.seed)
        settings = {
            "llm": config.llm.model_dump(mode="json"),
            "encoder": config.encoder.model_dump(mode="json"),
            "adapter": config.adapter.model_dump(mode="json"),
            "prompt": config.sequences.prompt,
        }
        return cls._assemble(settings, lab, load_llm(config.llm, lab))

    @classmethod
    def _assemble(cls, settings: dict, lab, llm, folder: Path | None = None) -> "SpeechLM":
        """`llm`: the original weights, or with a full fine-tuning the trained ones."""
        llm_config = LLMConfig(**settings["llm"])
        tokenizer = load_tokenizer(llm_config.name, lab)
        encoder = load_encoder(EncoderConfig(**settings["encoder"]).name, lab)
        embeddings = llm.get_input_embeddings().weight
        adapter = Adapter(
            AdapterConfig(**settings["adapter"]),
            encoder.dim,
            embeddings.shape[1],
            float(embeddings.detach().float().pow(2).mean().sqrt()),
        ).to(embeddings.dtype)
        llm.requires_grad_(llm_config.finetune == "full")
        original = peft = None
        if llm_config.finetune == "full":
            original = load_llm(llm_config, lab).requires_grad_(False)
        elif folder is None:
            peft = add_lora(llm, llm_config)
        else:
            from peft import PeftModel

            peft = PeftModel.from_pretrained(llm, folder / "lora", is_trainable=True, autocast_adapter_dtype=False)
        lab = None if lab is None else Path(lab)
        model = cls(llm, tokenizer, encoder, adapter, settings, lab, original, peft).eval()
        if folder is not None:
            adapter.load_state_dict(load_file(folder / "adapter.safetensors"))
        return model

    def frozen(self) -> dict:
        """Names and SHA-256 of the frozen parts that a checkpoint needs beside it (folders only)."""
        parts = {}
        for part in ("llm", "encoder"):
            name = self.settings[part]["name"]
            folder = resolve(name, self.lab) if ":" not in name and name != "logmel" else name
            parts[part] = {"name": name, "sha256": folder_sha256(folder) if Path(folder).is_dir() else None}
        return parts

    def save_trained(self, folder: Path | str) -> None:
        """The trained tensors (adapter, LoRA or LLM) and the settings; the frozen parts by name and SHA-256."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.adapter.state_dict().items()}, folder / "adapter.safetensors")
        if self.settings["llm"]["finetune"] == "lora":
            self._beside["peft"].save_pretrained(folder / "lora")
        else:
            self.llm.save_pretrained(folder / "llm")
            self.tokenizer.save_pretrained(folder / "llm")
        atomic.write_json(folder / SETTINGS, self.settings | {"frozen": self.frozen()})

    def save_pretrained(self, folder: Path | str) -> None:
        """A folder that stands alone: `base/` (the original LLM), `lora/` (peft) or `llm/` (the trained LLM),
        `adapter.safetensors`, `encoder/`. Loads anywhere with `SpeechLM.from_pretrained(folder)`."""
        folder = Path(folder)
        self.save_trained(folder)
        load_llm(LLMConfig(**self.settings["llm"]), self.lab).save_pretrained(folder / "base")
        self.tokenizer.save_pretrained(folder / "base")
        settings = self.settings | {"llm": self.settings["llm"] | {"name": "base"}}
        if hasattr(self.encoder, "model"):
            self.encoder.model.save_pretrained(folder / "encoder")
            if hasattr(self.encoder, "extractor"):
                self.encoder.extractor.save_pretrained(folder / "encoder")
            settings["encoder"] = {"name": "encoder"}
        atomic.write_json(folder / SETTINGS, settings)

    @classmethod
    def from_pretrained(cls, folder: Path | str, lab: Path | str | None = None) -> "SpeechLM":
        """Load what `save_pretrained` or a run's checkpoint wrote.

        A checkpoint's frozen parts are looked up in `lab` (by default the lab it lies in); one that has changed
        since is refused by its SHA-256. Raises SaladError."""
        folder = Path(folder)
        if not (folder / SETTINGS).is_file():
            raise SaladError(f"{folder} is no speech LM: it has no {SETTINGS}")
        settings = json.loads((folder / SETTINGS).read_text())
        frozen = settings.pop("frozen", None)
        if frozen is None:
            lab = folder
        elif lab is None:
            lab = next((p.parent for p in folder.resolve().parents if p.name == "runs"), None)
        for part in frozen or {}:
            path = Path(resolve(frozen[part]["name"], lab)) if frozen[part]["sha256"] else None
            if path is not None and path.is_dir() and folder_sha256(path) != frozen[part]["sha256"]:
                raise SaladError(f"{folder} was trained with another {path}: its files have changed since")
        config = LLMConfig(**settings["llm"])
        if config.finetune == "full":
            config = config.model_copy(update={"name": str(folder / "llm")})
        return cls._assemble(settings, lab, load_llm(config, lab), folder)

    # --- computing ---

    @property
    def device(self) -> torch.device:
        return self.adapter.into.weight.device

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer really has; the head may be padded beyond them."""
        return len(self.tokenizer)

    @property
    def teacher(self) -> Teacher:
        if self._beside["original"] is not None:
            return Teacher(self._beside["original"].to(self.device))
        return Teacher(self.llm, self._beside["peft"].disable_adapter)

    @property
    def head(self) -> torch.Tensor:
        """Output head [V, H]."""
        return self.llm.get_output_embeddings().weight

    def text_hidden(self, ids_BS: torch.Tensor, place_BS: torch.Tensor | None = None) -> torch.Tensor:
        """The student's last hidden states [B, S, H] of token ids [B, S], padded on the right, or packed."""
        return self.llm.get_decoder()(input_ids=ids_BS, position_ids=place_BS, use_cache=False).last_hidden_state

    def embed(self, batch) -> torch.Tensor:
        """Input vectors [B, T, H] of an interleaved batch (`salad.data.batches.Batch`)."""
        embedded = self.llm.get_input_embeddings()(batch.ids_BT.clamp_min(0))
        if batch.speech_PFD is None:
            return embedded
        speech_MH = self.adapter(batch.speech_PFD.to(embedded.dtype)).flatten(0, 1).to(embedded.dtype)
        picked = speech_MH.index_select(0, batch.frames_BT.clamp_min(0).flatten()).view(embedded.shape)
        return torch.where((batch.frames_BT >= 0).unsqueeze(-1), picked, embedded)

    def hidden(self, batch) -> torch.Tensor:
        """The student's last hidden states [B, T, H] of an interleaved batch."""
        return self.llm.get_decoder()(
            inputs_embeds=self.embed(batch), position_ids=batch.place_BT, use_cache=False
        ).last_hidden_state

    def forward(self, batch, alpha: float = 1.0, reduction: str = "mean", per_position: bool = False):
        """The distillation objective on a batch: `salad.objective.distillation_loss`'s named tuple."""
        from salad.objective import distillation_loss

        teacher = self.teacher
        return distillation_loss(
            self.hidden(batch).flatten(0, 1)[batch.rows_N],
            self.head,
            teacher.hidden(batch.text_ids_BS, batch.text_place_BS).flatten(0, 1)[batch.text_rows_N],
            teacher.head,
            batch.targets_N,
            alpha=alpha,
            vocab_size=self.vocab_size,
            reduction=reduction,
            per_position=per_position,
        )

    # --- answering ---

    def prompt_embeddings(self, prompt: list, llm=None) -> torch.Tensor:
        """[1, T, H] of a prompt: a list of texts (str) and recordings (float32 [T] at the encoder's rate). `llm`: whose
        embeddings a text takes, by default the student's."""
        embed = (llm or self.llm).get_input_embeddings()
        parts = [embed(torch.tensor([[self.prefix]], device=self.device))]
        for part in prompt:
            if isinstance(part, str):
                ids = self.tokenizer(part, add_special_tokens=False)["input_ids"]
                if ids:
                    parts.append(embed(torch.tensor([ids], device=self.device)))
            else:
                samples = torch.as_tensor(np.asarray(part, dtype=np.float32), device=self.device)
                frames = self.encoder(samples)
                if len(frames):
                    parts.append(self.adapter(frames[None].to(parts[0].dtype)))
        return torch.cat(parts, dim=1)

    @torch.no_grad()
    def generate(self, prompts: list[list], max_new_tokens: int = 64, stop: tuple[str, ...] = ("\n",),
                 temperature: float = 0.0, seed: int = 0) -> list[str]:  # fmt: skip
        """Answers to a batch of prompts (see `prompt_embeddings`), greedy at temperature 0.

        An answer ends before the first of the `stop` strings, at the end-of-text token, or at `max_new_tokens`."""
        from transformers import GenerationConfig

        embedded = [self.prompt_embeddings(prompt)[0] for prompt in prompts]
        longest = max(map(len, embedded))
        inputs = embedded[0].new_zeros(len(embedded), longest, embedded[0].shape[1])
        mask = torch.zeros(len(embedded), longest, dtype=torch.long, device=self.device)
        for row, vectors in enumerate(embedded):
            inputs[row, longest - len(vectors) :] = vectors
            mask[row, longest - len(vectors) :] = 1
        torch.manual_seed(seed)
        sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
        settings = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id or self.prefix,
            stop_strings=list(stop) or None,
            suppress_tokens=list(range(self.vocab_size, self.head.shape[0])) or None,  # ids that only pad the head
            **sampling,
        )
        out = self.llm.generate(
            inputs_embeds=inputs, attention_mask=mask, generation_config=settings, tokenizer=self.tokenizer
        )
        texts = self.tokenizer.batch_decode(out, skip_special_tokens=True)
        return [_until(text, stop) for text in texts]

    @torch.no_grad()
    def stream(self, prompt: list, max_new_tokens: int = 64, stop: tuple[str, ...] = ("\n",), temperature: float = 0.0,
               seed: int = 0, teacher: bool = False) -> Iterator[tuple[int, torch.Tensor]]:  # fmt: skip
        """One answer token by token: (token id, log-probabilities [V] float32 it was drawn from).

        Ends like `generate`. With `teacher`, the original LLM answers (its prompt must be text)."""
        generator = torch.Generator(device="cpu").manual_seed(seed)
        source = self.teacher if teacher else Teacher(self.llm)
        llm = source.llm
        with source.switched():
            out = llm(inputs_embeds=self.prompt_embeddings(prompt, llm), use_cache=True, logits_to_keep=1)
            told = []
            for _ in range(max_new_tokens):
                logp = out.logits[0, -1, : self.vocab_size].float().log_softmax(-1)
                if temperature > 0:
                    draw = torch.multinomial((logp / temperature).softmax(-1).cpu(), 1, generator=generator)
                    token = int(draw)
                else:
                    token = int(logp.argmax())
                if token == self.tokenizer.eos_token_id:
                    return
                told.append(token)
                if any(word in self.tokenizer.decode(told) for word in stop):
                    return
                yield token, logp
                out = llm(input_ids=torch.tensor([[token]], device=self.device), use_cache=True,
                          past_key_values=out.past_key_values)  # fmt: skip


def _until(text: str, stop: tuple[str, ...]) -> str:
    return text[: min([text.find(word) for word in stop if word in text], default=len(text))]


def load_tokenizer(name: str, lab: Path | str | None):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(resolve(name, lab))


def load_llm(config: LLMConfig, lab: Path | str | None):
    """The causal LM called `config.name`, from safetensors, in `config.dtype`; a SaladError where it cannot be had."""
    from transformers import AutoModelForCausalLM

    quiet()
    folder = resolve(config.name, lab)
    try:
        llm = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[config.dtype], use_safetensors=True)
    except (OSError, ValueError) as error:
        raise SaladError(f"LLM {config.name!r} cannot be loaded: {str(error).splitlines()[0]}") from None
    return llm.eval()


def add_lora(llm, config: LLMConfig):
    """Put LoRA layers into `llm`, in place, through peft; returns peft's wrapper around it."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=list(config.lora_targets),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llm, lora, autocast_adapter_dtype=False)
