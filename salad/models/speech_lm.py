"""The speech LM: frozen encoder → adapter → text LLM, its teacher, its checkpoint folder, and generation.

With LoRA the teacher is the same weights with the adapters switched off, so there is one copy in memory; trained in
full, the teacher is a second, frozen copy of the original.
"""

import contextlib
import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from salad import parts
from salad.config import AdapterConfig, EncoderConfig, LLMConfig, RunConfig
from salad.errors import SaladError
from salad.models import decoding
from salad.models.adapter import Adapter
from salad.models.encoders import load_encoder
from salad.models.heads import head_of, hidden_of, understand
from salad.models.lora import add_lora
from salad.models.names import DTYPES, is_unchanged, loading, quiet, remembered, resolve
from salad.models.prompts import CHANGED, PromptFormat
from salad.objective.projection import Head
from store import atomic

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SETTINGS = "speech_lm.json"


class Teacher:
    """The original text LLM, frozen: what it makes of token ids, and its output head."""

    def __init__(self, llm, switched=contextlib.nullcontext):
        self.llm, self.switched = llm, switched

    @torch.no_grad()
    def hidden(self, ids_BS: torch.Tensor, place_BS: torch.Tensor | None = None) -> torch.Tensor:
        """Last hidden states [B, S, G] of token ids [B, S], padded on the right, or packed with their places."""
        with self.switched():
            return hidden_of(self.llm, input_ids=ids_BS, position_ids=place_BS)

    @property
    def head(self) -> torch.Tensor:
        """The output head's matrix [V, G]; `output_head` has all that belongs to it."""
        return self.llm.get_output_embeddings().weight.detach()

    @property
    def output_head(self) -> Head:
        """The output head, as `salad.objective` takes it."""
        with self.switched():
            return head_of(self.llm).detach()


class SpeechLM(nn.Module):
    """A text LLM that also reads speech. Built by `build` (a new one) or `from_pretrained` (a checkpoint folder).

    `llm` is the causal LM (with LoRA layers where the configuration says so), `adapter` trains, `encoder` is frozen.
    `prompt` is the PromptFormat it is trained and asked in; `prefix` the token id that begins every plain sequence.
    """

    def __init__(self, llm, tokenizer, encoder, adapter, settings: dict, lab: Path | None, original=None, peft=None):
        super().__init__()
        self.llm, self.encoder, self.adapter = llm, encoder, adapter
        self.tokenizer, self.settings, self.lab = tokenizer, settings, lab
        try:
            name, system = settings.get("prompt", "plain"), settings.get("system")
            self.prompt = PromptFormat(tokenizer, name, system, settings.get("template"))
            if self.prompt.changes_text:
                raise SaladError(CHANGED)
            if settings.setdefault("rendered", self.prompt.rendered()) != self.prompt.rendered():
                raise SaladError(
                    "its chat template renders a question otherwise than when this was trained: "
                    f"{self.prompt.rendered()!r}, and it was {settings['rendered']!r}"
                )
        except SaladError as error:
            raise SaladError(f"{settings['llm']['name']!r}: {error}") from None
        self.prefix = self.prompt.prefix
        self._beside = {"original": original, "peft": peft}  # no submodules: neither trained nor counted twice
        self._frozen: dict = {}
        self._parts: list[nn.Module] = []  # the LLM's modules

    # --- building, saving, loading ---

    @classmethod
    def build(cls, config: RunConfig, lab: Path | str | None = None) -> "SpeechLM":
        """A student initialised from its teacher, with a new adapter (seeded by `config.seed`)."""
        torch.manual_seed(config.seed)
        return cls._load(settings_of(config), lab)

    @classmethod
    def child(cls, folder: Path | str, config: RunConfig, lab: Path | str | None = None) -> "SpeechLM":
        """The student of a run that goes on from the checkpoint in `folder` (its parent's).

        It goes on with the same parts. One change is allowed: where the parent was trained in full, LoRA may be put on
        top of its LLM; the teacher stays the original, which is then loaded beside it. Raises SaladError."""
        settings, wanted = _read_settings(folder), settings_of(config)
        for one in (settings, wanted):  # how the adapter was begun is the parent's, and no difference in what it is
            one["adapter"].pop("warm_start", None)
        for part in ("encoder", "adapter", "prompt", "system", "template"):
            if (settings.get(part) or None) != (wanted.get(part) or None):
                raise SaladError(f"parent {config.parent} was trained with another {part}; a child goes on with the same")
        before, after = LLMConfig(**settings["llm"]), config.llm
        if before == after:
            return cls.from_pretrained(folder, lab)
        on_top = ("finetune", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
        same = before.model_copy(update={name: getattr(after, name) for name in on_top}) == after
        if not same or (before.finetune, after.finetune) != ("full", "lora"):
            raise SaladError(
                f"parent {config.parent} was trained with another llm; a child goes on with the same, or with LoRA on a "
                "parent that was trained in full"
            )
        start = Path(folder).resolve() / "llm"
        if lab is not None and start.is_relative_to(Path(lab).resolve()):
            start = start.relative_to(Path(lab).resolve())
        torch.manual_seed(config.seed)
        model = cls._load(wanted | {"start": str(start)}, lab)
        model.adapter.load_state_dict(load_file(Path(folder) / "adapter.safetensors"))
        return model

    @classmethod
    def _load(cls, settings: dict, lab, folder: Path | None = None) -> "SpeechLM":
        """Read the parts that `settings` name and join them; what was trained comes from the checkpoint `folder`."""
        config = LLMConfig(**settings["llm"])
        if folder is not None:
            parts.check(settings["encoder"]["name"], f"the checkpoint {folder}")
        start = settings.get("start", config.name)  # whose weights the student begins with
        if config.finetune == "full" and folder is not None:
            start = str(folder / "llm")
        llm = load_llm(config, lab, start)
        tokenizer = load_tokenizer(config.name, lab)
        encoder = load_encoder(EncoderConfig(**settings["encoder"]), lab)
        adapter = new_adapter(AdapterConfig(**settings["adapter"]), encoder.dim, llm)
        teacher, original = config.teacher or config.name, None
        if config.finetune == "full" or start != teacher:
            original = load_llm(config, lab, teacher)
        if config.teacher is not None:
            check_same_tokenizer(tokenizer, config.name, load_tokenizer(config.teacher, lab), config.teacher)
        model = cls.join(settings, llm, tokenizer, encoder, adapter, original, lab, folder)
        if folder is not None:
            adapter.load_state_dict(load_file(folder / "adapter.safetensors"))
        return model

    @classmethod
    def join(cls, settings: dict, llm, tokenizer, encoder, adapter, original=None, lab=None, folder=None) -> "SpeechLM":
        """A speech LM of its parts, LoRA put on where the settings say so (new, or that of the checkpoint `folder`).

        `llm`: what the student begins with; `original`: the teacher, where it is not the same weights."""
        config, peft = LLMConfig(**settings["llm"]), None
        llm.requires_grad_(config.finetune == "full")
        if original is not None:
            original.requires_grad_(False)
        if config.finetune == "lora" and folder is None:
            peft = add_lora(llm, config)
        elif config.finetune == "lora":
            from peft import PeftModel

            peft = PeftModel.from_pretrained(llm, folder / "lora", is_trainable=True, autocast_adapter_dtype=False)
        lab = None if lab is None else Path(lab)
        return cls(llm, tokenizer, encoder, adapter, settings, lab, original, peft).eval()

    def frozen(self) -> dict:
        """Names and SHA-256 of the frozen parts that a checkpoint needs beside it (folders only), read once."""
        llm = self.settings["llm"]
        names = {"llm": llm["name"], "encoder": self.settings["encoder"]["name"], "teacher": llm.get("teacher"),
                 "start": self.settings.get("start")}  # fmt: skip
        for part, name in names.items():
            if name is not None and part not in self._frozen:
                folder = resolve(name, self.lab) if ":" not in name and name != "logmel" else name
                there = Path(folder).is_dir()
                self._frozen[part] = remembered(name, folder) if there else {"name": name, "sha256": None}
        return dict(self._frozen)

    def save_trained(self, folder: Path | str, trained: dict[str, torch.Tensor] | None = None) -> None:
        """The trained tensors (adapter, LoRA or LLM) and the settings; the frozen parts by name and SHA-256.

        `trained`: the tensors by their names in this module, for a model whose own are sharded; by default its own."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if trained is None:
            trained = {name: p.detach().contiguous() for name, p in self.named_parameters() if p.requires_grad}
        of = lambda part: {k.removeprefix(part): v for k, v in trained.items() if k.startswith(part)}  # noqa: E731
        save_file(of("adapter."), folder / "adapter.safetensors")
        if self.settings["llm"]["finetune"] == "lora":
            lora = {f"base_model.model.{name}": tensor for name, tensor in of("llm.").items()}
            self._beside["peft"].save_pretrained(folder / "lora", state_dict=lora)
        else:
            self.llm.save_pretrained(folder / "llm", state_dict=of("llm."))
            self.tokenizer.save_pretrained(folder / "llm")
        atomic.write_json(folder / SETTINGS, self.settings | {"frozen": self.frozen()})

    def save_pretrained(self, folder: Path | str) -> None:
        """A folder that stands alone: `base/` (the original LLM), `lora/` (peft) or `llm/` (the trained LLM),
        `adapter.safetensors`, `encoder/`; `start/` where LoRA sits on an LLM that was trained in full, `teacher/` where
        another LLM teaches. Loads anywhere with `SpeechLM.from_pretrained(folder)`."""
        folder, config = Path(folder), LLMConfig(**self.settings["llm"])
        self.save_trained(folder)
        settings, llm = dict(self.settings), {"name": "base"}
        copies = {"base": config.name}
        if config.teacher is not None:
            copies["teacher"], llm["teacher"] = config.teacher, "teacher"
        if "start" in settings:
            copies["start"], settings["start"] = settings["start"], "start"
        for name, source in copies.items():
            load_llm(config, self.lab, source).save_pretrained(folder / name)
            load_tokenizer(config.name, self.lab).save_pretrained(folder / name)
        settings["llm"] = settings["llm"] | llm
        if hasattr(self.encoder, "model"):
            self.encoder.model.save_pretrained(folder / "encoder")
            if hasattr(self.encoder, "extractor"):
                self.encoder.extractor.save_pretrained(folder / "encoder")
            settings["encoder"] = settings["encoder"] | {"name": "encoder"}
        atomic.write_json(folder / SETTINGS, settings)

    @classmethod
    def from_pretrained(cls, folder: Path | str, lab: Path | str | None = None) -> "SpeechLM":
        """Load what `save_pretrained` or a run's checkpoint wrote.

        A checkpoint's frozen parts are looked up in `lab` (by default the lab it lies in); one that has changed
        since is refused by its SHA-256. Raises SaladError."""
        folder, settings = Path(folder), _read_settings(folder)
        with loading(f"the speech LM in {folder}"):
            return cls._restore(folder, settings, lab)

    @classmethod
    def _restore(cls, folder: Path, settings: dict, lab: Path | str | None) -> "SpeechLM":
        frozen = settings.pop("frozen", None)
        if frozen is None:
            lab = folder
        elif lab is None:
            lab = next((p.parent for p in folder.resolve().parents if p.name == "runs"), None)
        for part in frozen or {}:
            path = Path(resolve(frozen[part]["name"], lab)) if frozen[part]["sha256"] else None
            if path is not None and path.is_dir() and not is_unchanged(path, frozen[part]):
                raise SaladError(f"{folder} was trained with another {path}: its files have changed since")
        model = cls._load(settings, lab, folder)
        model._frozen = frozen or {}
        return model

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
        return Teacher(self.llm, self._as_original)

    def source(self, teacher: bool = False) -> Teacher:
        """The LLM that answers: the student, or with `teacher` the original."""
        return self.teacher if teacher else Teacher(self.llm)

    @property
    def original(self):
        """The teacher where it is a second copy beside the student; None where LoRA's base is the teacher."""
        return self._beside["original"]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which it is loaded and computes."""
        return DTYPES[self.settings["llm"]["dtype"]]

    @contextlib.contextmanager
    def _as_original(self) -> Iterator[None]:
        """The LLM as it was before LoRA: adapters switched off, and no dropout though the student trains."""
        trains = self.llm.training
        if not self._parts:  # found once: peft's own `disable_adapter` asks every module for its state each time
            self._parts += self.llm.modules()
        try:
            self._switch_lora(False, training=False)
            yield
        finally:
            self._switch_lora(True, training=trains)

    def _switch_lora(self, on: bool, training: bool) -> None:
        for part in self._parts:
            part.training = training
            if isinstance(part, BaseTunerLayer):
                part.enable_adapters(on)

    @property
    def head(self) -> torch.Tensor:
        """The output head's matrix [V, H]; `output_head` has all that belongs to it."""
        return self.llm.get_output_embeddings().weight

    @property
    def output_head(self) -> Head:
        """The output head, as `salad.objective` takes it."""
        return head_of(self.llm)

    def text_hidden(self, ids_BS: torch.Tensor, place_BS: torch.Tensor | None = None) -> torch.Tensor:
        """The student's last hidden states [B, S, H] of token ids [B, S], padded on the right, or packed."""
        return hidden_of(self.llm, input_ids=ids_BS, position_ids=place_BS)

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
        return hidden_of(self.llm, inputs_embeds=self.embed(batch), position_ids=batch.place_BT)

    def forward(self, batch, alpha: float = 1.0, reduction: str = "mean", per_position: bool = False,
                divergence: str = "forward_kl", teacher_cache=None, compile: bool = False):  # fmt: skip
        """The distillation objective on a batch: `salad.objective.distillation_loss`'s named tuple.

        With a `salad.objective.teacher_cache.TeacherCache` the teacher reads only what that does not hold."""
        from salad.objective import distillation_loss

        if teacher_cache is not None:
            from salad.objective.teacher_cache import cached_distillation_loss

            return cached_distillation_loss(
                self.hidden(batch).flatten(0, 1)[batch.rows_N],
                self.output_head,
                teacher_cache.record(batch, self),
                batch.targets_N,
                alpha=alpha,
                vocab_size=self.vocab_size,
                reduction=reduction,
                per_position=per_position,
            )
        teacher = self.teacher
        return distillation_loss(
            self.hidden(batch).flatten(0, 1)[batch.rows_N],
            self.output_head,
            teacher.hidden(batch.text_ids_BS, batch.text_place_BS).flatten(0, 1)[batch.text_rows_N],
            teacher.output_head,
            batch.targets_N,
            alpha=alpha,
            divergence=divergence,
            compile=compile,
            vocab_size=self.vocab_size,
            reduction=reduction,
            per_position=per_position,
        )

    # --- answering ---

    def prompt_embeddings(self, prompt: list, llm=None) -> torch.Tensor:
        """[1, T, H] of a prompt: a list of texts (str) and recordings (float32 [T] at the encoder's rate). `llm`: whose
        embeddings a text takes, by default the student's."""
        embed = (llm or self.llm).get_input_embeddings()
        parts: list[torch.Tensor] = []
        for ids, some in groupby(self.prompt.units(prompt)[0], key=lambda unit: isinstance(unit, int)):
            if ids:
                parts.append(embed(torch.tensor([list(some)], device=self.device)))
                continue
            for recording in some:
                samples = torch.as_tensor(np.asarray(recording, dtype=np.float32), device=self.device)
                frames = self.encoder(samples)
                if len(frames):
                    parts.append(self.adapter(frames[None].to(embed.weight.dtype)))
        return torch.cat(parts, dim=1)

    @property
    def _stop(self) -> tuple[str, ...]:
        return ("\n",) if self.prompt.name == "plain" else ()

    def generate(self, prompts: list[list], max_new_tokens: int = 64, stop: tuple[str, ...] | None = None,
                 temperature: float = 0.0, seed: int = 0) -> list[str]:  # fmt: skip
        """Answers to a batch of prompts (see `prompt_embeddings`), greedy at temperature 0.

        An answer ends before the first of the `stop` strings (by default a new line in a plain prompt, none in a chat),
        at the token that ends a text or a turn, or at `max_new_tokens`."""
        stop = self._stop if stop is None else stop
        return decoding.generate(self, prompts, max_new_tokens, stop, temperature, seed)

    def stream(self, prompt: list, max_new_tokens: int = 64, stop: tuple[str, ...] | None = None, temperature: float = 0.0,
               seed: int = 0, teacher: bool = False) -> decoding.Decoding:  # fmt: skip
        """One answer token by token (`Streamed`); the texts together are the answer that `generate` gives.

        With `teacher`, the original LLM answers (its prompt must be text)."""
        stop = self._stop if stop is None else stop
        return decoding.Decoding(self, prompt, max_new_tokens, stop, temperature, seed, teacher)


def load_tokenizer(name: str, lab: Path | str | None):
    """The tokenizer of the LLM called `name`; a SaladError where it cannot be had."""
    from transformers import AutoTokenizer

    with loading(f"the tokenizer of {name!r}"):
        return AutoTokenizer.from_pretrained(resolve(name, lab), trust_remote_code=False)


def llm_class(config: "PreTrainedConfig") -> Any:
    """The Auto class of transformers that loads an LLM of this configuration: causal LMs, and those that are published with a
    vision tower (Ministral 3), of which the text half is used."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    seeing = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def load_llm(config: LLMConfig, lab: Path | str | None, name: str | None = None):
    """The causal LM called `name` (by default `config.name`), from safetensors, in `config.dtype`; a SaladError where
    it cannot be had."""
    from transformers import AutoConfig

    quiet()
    name = name or config.name
    folder = resolve(name, lab)
    with loading(f"LLM {name!r}"):
        kind = llm_class(AutoConfig.from_pretrained(folder, trust_remote_code=False))
        llm, info = kind.from_pretrained(folder, dtype=DTYPES[config.dtype], use_safetensors=True, trust_remote_code=False,
                                         output_loading_info=True)  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise SaladError(f"LLM {name!r} cannot be used: its files lack {len(missing)} weights of a {type(llm).__name__}, such as "
                         f"{missing[0]}, which would be random")  # fmt: skip
    understand(llm, name)
    return llm.eval()


def check_same_tokenizer(one, one_name: str, other, other_name: str) -> None:
    """Student and teacher are compared id by id: two tokenizers that differ are a SaladError that says in what."""
    mine, others = one.get_vocab(), other.get_vocab()
    what = None
    if mine != others:
        token = min((t for t in mine.keys() | others.keys() if mine.get(t) != others.get(t)), key=repr)
        what = f"token {token!r} has id {mine.get(token)} in one and {others.get(token)} in the other"
    else:
        cut, other_cut = (json.loads(t.backend_tokenizer.to_str()) for t in (one, other))
        parts = ("normalizer", "pre_tokenizer", "model")
        what = next((f"they differ in their {part}" for part in parts if cut[part] != other_cut[part]), None)
    if what is not None:
        raise SaladError(
            f"{one_name!r} cannot learn from {other_name!r}: their tokenizers are not the same ({what}); a teacher "
            "must read the student's token ids"
        )


def new_adapter(config: AdapterConfig, in_dim: int, llm) -> Adapter:
    """An adapter from frames [.., in_dim] to the input embeddings of `llm`, in their type."""
    embeddings = llm.get_input_embeddings().weight.detach()
    rms = 1.0
    if config.match_embedding_rms and not embeddings.is_meta:
        rms = float(embeddings.float().pow(2).mean().sqrt())
    return Adapter(config, in_dim, embeddings.shape[1], rms).to(embeddings.dtype)


def settings_of(config: RunConfig) -> dict:
    """What a checkpoint says of its parts, in speech_lm.json."""
    return {
        "llm": config.llm.model_dump(mode="json"),
        "encoder": config.encoder.model_dump(mode="json"),
        "adapter": config.adapter.model_dump(mode="json"),
        "prompt": config.sequences.prompt,
        "system": config.sequences.system,
        "template": dict(config.sequences.template),
        "answering": {"shots": config.sequences.shots},
    }


def _read_settings(folder: Path | str) -> dict:
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise SaladError(f"{folder} is no speech LM: it has no {SETTINGS}")
    return atomic.load_json(path)
