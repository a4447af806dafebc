"""Will a model work here, and as what? `salad models check NAME` says so before a GPU is paid for.

From a folder or a hub name: as teacher LLM, encoder, recogniser or voice. Where the weights are at hand an LLM is loaded and run
on a few tokens; without them its shapes are built on PyTorch's meta device, and what only running can tell is said to be open.
No code from outside is run.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from salad.config import LLMConfig
from salad.errors import SaladError
from salad.models.encoders import INSIDE, KINDS, OWN, tower_config, unknown
from salad.models.heads import form_of
from salad.models.lora import lora_targets
from salad.models.names import quiet, resolve
from salad.models.packing import keeps_documents_apart
from salad.models.prompts import NOT_THINKING, PromptFormat
from salad.models.speech_lm import llm_class, load_llm

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ROLES = ("teacher", "encoder", "recogniser", "voice")
RECURRENT = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "hybrid", "hybrid_mamba"}  # of config.layer_types


class ModelFinding(NamedTuple):
    """One line of the answer. ok: False where it stands in the way, None where it is open or merely told."""

    role: str
    what: str
    ok: bool | None
    detail: str


def check_model(name: str, lab: Path | str | None = None, weights: bool = True) -> list[ModelFinding]:
    """What is found about the model called `name`, role by role; a role that does not fit its kind has one line.

    weights: False looks at its configuration alone. Raises SaladError where nothing of that name can be had."""
    from transformers import AutoConfig

    import salad.models.phone  # noqa: F401  (registers the miniature's models with transformers)

    quiet()
    folder = resolve(name, lab)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        path = Path(folder) / "config.json"
        foreign = path.is_file() and "auto_map" in json.loads(path.read_text())
        why = "it brings code of its own, and no code from outside is run" if foreign else str(error).splitlines()[0]
        raise SaladError(f"model {name!r} cannot be read: {why}") from None
    here = Path(folder).is_dir() and any(Path(folder).glob("*.safetensors"))
    pickled = not here and Path(folder).is_dir() and any(f for end in ("*.bin", "*.pt", "*.pth") for f in Path(folder).glob(end))
    found = [*_teacher(name, folder, config, lab, weights and here), *_encoder(name, config), *_recogniser(name, config)]
    if pickled:
        found = [one if one.ok is False else one._replace(ok=False, detail="its weights are pickles: only safetensors are loaded")
                 for one in found if one.what in ("kind", "weights")]  # fmt: skip
    return found


def fits(findings: list[ModelFinding], role: str | None = None) -> bool:
    """Whether a model of these findings works in `role`, or in any."""
    return any(all(one.ok is not False for one in findings if one.role == r) and any(one.role == r for one in findings)
               for r in ([role] if role else ROLES))  # fmt: skip


def _teacher(name: str, folder: str, config: "PreTrainedConfig", lab: Path | str | None, weights: bool) -> list[ModelFinding]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    def say(what: str, ok: bool | None, detail: str) -> None:
        found.append(ModelFinding("teacher", what, ok, detail))

    found: list[ModelFinding] = []
    known = any(type(config) in mapping for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING))
    if config.is_encoder_decoder or not known:
        say("kind", False, f"{config.model_type} is no causal LM of transformers")
        return found
    try:
        llm = load_llm(LLMConfig(name=name), lab) if weights else _sketched(config)
    except (SaladError, RuntimeError, ValueError, TypeError) as error:
        say("weights", False, str(error).splitlines()[0])
        return found
    text = config.get_text_config()
    size = sum(p.numel() for p in llm.parameters())
    say("kind", True, f"{type(llm).__name__}, {size / 1e6:,.0f} M parameters, width {text.hidden_size}")
    say("weights", True if weights else None, "loaded" if weights else "not at hand: what follows is its configuration's")
    _tokenizer(folder, say)
    tied = llm.get_output_embeddings().weight is llm.get_input_embeddings().weight
    tied = tied if weights else bool(text.tie_word_embeddings)
    say("tied weights", True, "input embeddings and output head are one matrix" if tied else "two matrices")
    if weights:
        form = form_of(llm)
        extras = [f"scaled by {form.scale:g}"] * (form.scale != 1) + [f"soft cap {form.soft_cap}"] * (form.soft_cap is not None)
        say("head", True, ", ".join(extras) or "a plain matrix")
        apart = keeps_documents_apart(llm)
    else:
        say("head", None, "open until its weights are loaded: it is measured by running them")
        layers = set(getattr(text, "layer_types", None) or ())
        apart = not (getattr(llm, "_is_stateful", False) or layers & RECURRENT)
    if not weights and getattr(text, "hidden_size_per_layer_input", None):
        say("speech", False, "it reads the embeddings of tokens only (embeddings for each layer), which speech has none of")
    window = getattr(text, "sliding_window", None) if "sliding_attention" in (getattr(text, "layer_types", None) or ()) else None
    how = f"sliding windows of {window} are masked as well" if window else "by positions"
    say("packing", True, f"documents are kept apart, {how}" if apart else "documents of a row are run side by side: it carries "
        "a state across them, or makes its masks without positions")  # fmt: skip
    try:
        targets = lora_targets(llm, LLMConfig(name=name))
        say("LoRA", True, ", ".join(targets))
    except SaladError as error:
        say("LoRA", False, str(error))
    return found


def _sketched(config: "PreTrainedConfig") -> "PreTrainedModel":
    with torch.device("meta"):
        return llm_class(config).from_config(config, trust_remote_code=False)


def _tokenizer(folder: str, say) -> None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        say("tokenizer", False, f"cannot be loaded: {str(error).splitlines()[0]}")
        return
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if prefix is None:
        say("prefix token", False, "the tokenizer has neither a BOS nor an end-of-text token")
    else:
        say("prefix token", True, f"sequences begin with {tokenizer.convert_ids_to_tokens(prefix)!r}")
    if not tokenizer.chat_template:
        say("chat", None, "no chat template: sequences.prompt=plain")
        return
    refusals = []
    for template in ({}, *NOT_THINKING):
        try:
            PromptFormat(tokenizer, "chat", None, template)
        except SaladError as error:
            refusals.append(str(error))
            continue
        more = f" with --set 'sequences.template={json.dumps(template)}'" if template else ""
        say("chat", True, f"sequences.prompt=chat{more}")
        return
    say("chat", None, f"plain only: {refusals[0]}")


def _encoder(name: str, config: "PreTrainedConfig") -> list[ModelFinding]:
    from salad.models.meta import sketched_encoder

    kind = tower_config(config).model_type
    if kind not in (*OWN, "whisper", *KINDS):
        return [ModelFinding("encoder", "kind", False, unknown(name, kind).partition("; known")[0])]
    with torch.device("meta"):
        made = sketched_encoder(config, name)
    ahead = "causal: a recording is encoded once" if made.causal else "looks ahead: each speech span is encoded alone"
    inside = "" if kind == config.model_type else f", the tower inside of {config.model_type}"
    frames = f"{made.frame_rate:g} a second of width {made.dim}, {made.sample_rate} Hz; {ahead}"
    kind = f"{type(made).__name__}{inside}"
    return [ModelFinding("encoder", "kind", True, kind), ModelFinding("encoder", "frames", True, frames)]


def _recogniser(name: str, config: "PreTrainedConfig") -> list[ModelFinding]:
    from salad.speech.check import class_of

    try:
        found = class_of(config)
    except SaladError as error:
        return [ModelFinding("recogniser", "kind", False, str(error))]
    return [ModelFinding("recogniser", "kind", True, found.__name__)]


def known() -> dict[str, list[str]]:
    """What each role can be, by transformers' model_type or an engine's name: for `salad models list`."""
    from salad.speech.check import BY_TYPE

    return {
        "teacher": ["any causal LM of transformers (docs/models.md lists those that a test has run)"],
        "encoder": [*OWN, "whisper", *KINDS, *INSIDE, "logmel", "package.module:name"],
        "recogniser": ["any CTC model", *BY_TYPE, "package.module:name"],
        "voice": [
            "espeak",
            "kokoro",
            "kokoro-onnx:<folder>",
            "piper:<folder>",
            "openai:<url>#<model>::<recogniser>",
            "package.module:name",
        ],
    }
