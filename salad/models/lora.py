"""LoRA on a text LLM, through peft: which of its layers are adapted, told in a line, and refused where they are too few."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from salad.config import LLMConfig
from salad.errors import SaladError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ALL_LINEAR, BY_ARCHITECTURE = "all-linear", "peft"


def add_lora(llm: "PreTrainedModel", config: LLMConfig, name: str | None = None):
    """Put LoRA layers into `llm`, in place; returns peft's wrapper around it. SaladError where what `config.lora_targets` names
    is not there (`lora_targets`), or where dropout is asked for in front of the output head."""
    targets = lora_targets(llm, config, name)
    head = next((n for n, module in llm.named_modules() if module is llm.get_output_embeddings()), None)
    if config.lora_dropout and any(_named(head or "", target) for target in targets):
        raise SaladError(
            f"llm.lora_targets names the output head ({head}), whose LoRA has no dropout: set llm.lora_dropout=0, or leave it out"
        )
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=cast(int, config.lora_alpha),  # a float is meant, too: it is divided by the rank
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        exclude_modules=_towers(llm, targets) or None,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in llm.modules()),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llm, lora, autocast_adapter_dtype=False)


def lora_targets(llm: "PreTrainedModel", config: LLMConfig, name: str | None = None) -> list[str]:
    """The names of the modules to adapt, as peft matches them (the whole name or its end).

    `config.lora_targets`: names; "all-linear", every linear layer of the decoder; or "peft", what peft's own table has for
    the architecture. The default names are Llama's seven: where an LLM calls its layers otherwise, all linear ones stand for
    them. Raises SaladError where a name is nowhere in the model, or fewer than half of the layers would be adapted."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as TABLE

    name = repr(name or config.name)
    wanted: str | Sequence[str] = config.lora_targets
    linear = _linear_layers(llm)
    if not linear:
        raise SaladError(f"LLM {name}: none of its layers are linear, so there is nothing for LoRA; use llm.finetune=full")
    kinds = list(dict.fromkeys(key.rpartition(".")[2] for key in linear))
    if wanted == BY_ARCHITECTURE:
        kind = llm.config.get_text_config().model_type
        if kind not in TABLE:
            raise SaladError(f"LLM {name}: peft's table has nothing for {kind!r}; set llm.lora_targets=all-linear, or name "
                             f"some of {', '.join(kinds)}")  # fmt: skip
        wanted = TABLE[kind]
        wanted = [key for key in linear if re.fullmatch(wanted, key)] if isinstance(wanted, str) else list(wanted)
    elif wanted == LLMConfig.model_fields["lora_targets"].default and not all(_somewhere(linear, one) for one in wanted):
        wanted = ALL_LINEAR
    if wanted == ALL_LINEAR:
        return kinds
    modules = [key for key, module in llm.named_modules() if not list(module.children())]
    missing = [one for one in wanted if not _somewhere(modules, one)]
    if missing:
        raise SaladError(
            f"llm.lora_targets: {name} has no {', '.join(missing)}; its linear layers are called {', '.join(kinds)}: name some "
            "of them, or set llm.lora_targets=all-linear"
        )
    layers = {_layer(key) for key in linear} - {None}
    adapted = {_layer(key) for key in modules if any(_named(key, one) for one in wanted)} - {None}
    outside = [one for one in wanted if any(_named(key, one) and _layer(key) is None for key in modules)]
    if 2 * len(adapted) < len(layers) and not (outside and len(outside) == len(list(wanted))):
        raise SaladError(
            f"llm.lora_targets: {', '.join(wanted)} are in {len(adapted)} of the {len(layers)} layers of {name}; name what each "
            f"layer has ({', '.join(kinds)}), or set llm.lora_targets=all-linear"
        )
    return list(wanted)


def describe(llm: "PreTrainedModel") -> str:
    """What LoRA adapts in `llm` and how many parameters train, in a line."""
    adapted = [key for key, module in llm.named_modules() if isinstance(module, BaseTunerLayer)]
    kinds = dict.fromkeys(key.rpartition(".")[2] for key in adapted)
    trains = sum(p.numel() for p in llm.parameters() if p.requires_grad)
    total = sum(p.numel() for p in llm.parameters())
    return f"LoRA adapts {len(adapted)} layers ({', '.join(kinds)}): {trains:,} of {total:,} parameters of the LLM train"


def _linear_layers(llm: "PreTrainedModel") -> list[str]:
    """Names of the decoder's linear layers; the output head is none of them."""
    head = llm.get_output_embeddings()
    inside = set(llm.get_decoder().modules())
    return [key for key, module in llm.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head and module in inside]  # fmt: skip


def _towers(llm: "PreTrainedModel", targets: list[str]) -> list[str]:
    """Layers of these names outside of the decoder and the output head: a vision tower's, which reads no text."""
    head, inside = llm.get_output_embeddings(), set(llm.get_decoder().modules())
    return [key for key, module in llm.named_modules()
            if module not in inside and module is not head and any(_named(key, name) for name in targets)]  # fmt: skip


def _layer(key: str) -> str | None:
    """The numbered block that a module is in: "model.layers.3" of "model.layers.3.mlp.up_proj"; None outside of all."""
    match = re.match(r"(?:[^.]+\.)*?\d+(?=\.)", key)
    return match and match.group()


def _named(key: str, target: str) -> bool:
    return key == target or key.endswith(f".{target}")


def _somewhere(keys: list[str], target: str) -> bool:
    return any(_named(key, target) for key in keys)
