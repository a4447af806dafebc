"""A speech LM of a recipe's real sizes without its weights, on PyTorch's meta device: for parameter counts, for
shapes, and for `salad plan`. The sizes of the LLMs that recipes name lie beside this, in sizes/."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from salad.config import EncoderConfig, RunConfig
from salad.errors import SaladError
from salad.models.encoders import SpeechEncoder, load_encoder, new_tower, tower_config, wrap
from salad.models.names import DTYPES, loading, resolve
from salad.models.speech_lm import SpeechLM, llm_class, new_adapter, settings_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

SIZES = Path(__file__).with_name("sizes")


class TokenizerSizes(NamedTuple):
    """What a model's shapes need of a tokenizer that is not at hand."""

    ids: int
    bos_token_id: int | None
    eos_token_id: int | None
    chat_template: str | None = None

    def __len__(self) -> int:
        return self.ids


def sizes(name: str, lab: Path | str | None = None):
    """(transformers configuration, tokenizer or its sizes) of the LLM `name`: of sizes/, else of its folder or of the
    hub. A SaladError where none is at hand. An instruction-tuned LLM has its base's sizes."""
    from transformers import AutoConfig, AutoTokenizer

    folder = resolve(name, lab)
    path = SIZES / f"{name.replace('/', '--').removesuffix('-Instruct')}.json"
    if Path(folder).is_dir() or not path.is_file():
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            return config, AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception:  # what transformers and tokenizers raise over a file has no common class
            known = ", ".join(sorted(p.stem.replace("--", "/") for p in SIZES.glob("*.json")))
            raise SaladError(f"the sizes of {name!r} are not at hand; name its folder, or one of {known}") from None
    settings = json.loads(path.read_text())
    tokenizer = settings.pop("tokenizer")
    return AutoConfig.for_model(settings.pop("model_type"), **settings), TokenizerSizes(
        tokenizer["ids"], tokenizer["bos"], tokenizer["eos"]
    )


def speech_lm(config: RunConfig, lab: Path | str | None = None, device: str = "meta") -> SpeechLM:
    """The model that `SpeechLM.build(config, lab)` would make, on the meta device: shapes and types, no values. On another
    `device` its weights are random, for measuring speed.

    Raises SaladError where the sizes of its LLM or encoder are not at hand."""
    dtype, settings = DTYPES[config.llm.dtype], settings_of(config)
    llm_config, tokenizer = sizes(config.llm.name, lab)
    if isinstance(tokenizer, TokenizerSizes):  # shapes do not depend on the prompt's format, which needs a template
        settings |= {"prompt": "plain", "system": None, "template": {}}
    with torch.device(device):
        llm = llm_class(llm_config).from_config(llm_config, dtype=dtype, trust_remote_code=False)
        original = None
        if config.llm.finetune == "full" or config.llm.teacher is not None:
            teacher, _ = sizes(config.llm.teacher or config.llm.name, lab)
            original = llm_class(teacher).from_config(teacher, dtype=dtype, trust_remote_code=False)
        encoder = _encoder(config.encoder, lab)
        adapter = new_adapter(config.adapter, encoder.dim, llm)
        return SpeechLM.join(settings, llm, tokenizer, encoder, adapter, original, lab)


def _encoder(config: EncoderConfig, lab: Path | str | None) -> SpeechEncoder:
    from transformers import AutoConfig, MimiConfig, WhisperConfig

    import salad.models.phone  # noqa: F401  (registers the miniature's encoder with transformers)

    if config.name == "logmel" or ":" in config.name:
        return load_encoder(config, lab)
    folder = resolve(config.name, lab)
    if Path(folder).is_dir():
        with loading(f"encoder {config.name!r}"):
            known = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    elif config.name == "kyutai/mimi":
        known = MimiConfig()  # transformers' default is that model
    elif config.name in ("openai/whisper-tiny", "openai/whisper-tiny.en"):
        known = WhisperConfig()  # likewise; the two differ in their vocabulary only
    else:
        known = "kyutai/mimi, openai/whisper-tiny or openai/whisper-tiny.en"
        raise SaladError(f"the sizes of encoder {config.name!r} are not at hand; name its folder, or one of {known}")
    return sketched_encoder(known, config.name, config)


def sketched_encoder(known: "PreTrainedConfig", name: str, config: EncoderConfig | None = None) -> SpeechEncoder:
    """The encoder of a transformers configuration with random weights; on the meta device (`with torch.device("meta")`) its
    class, rate and width, without values."""
    return wrap(new_tower(tower_config(known), DTYPES[(config or EncoderConfig()).dtype]), name, config=config)
