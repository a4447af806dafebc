"""Speech LLMs as `salad diagnose` asks them: logits of an answer after a prompt that is text, or speech, or both.

`load` gives one by what a user calls it: a run of the lab, a checkpoint folder, a model of transformers (a folder or hub
name), or a class of one's own, `package.module:name`, which derives from `SpeechLLM`.
"""

import base64
import io
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import store
from salad import lookup, parts
from salad.errors import SaladError
from salad.evaluation.contenders import fingerprint
from salad.evaluation.scoring import Prompt, Recording, answer_logits
from salad.evaluation.transformers_speech import KINDS, load_model, model_type
from salad.models.names import loading, resolve
from salad.models.speech_lm import SETTINGS, SpeechLM

RUN = re.compile(r"(r[0-9a-f]{12})(?:@(\d+))?")


class SpeechLLM:
    """A speech LLM that can be diagnosed: derive from it, set the attributes below and define `logits`.

    `name` labels the model in tables and figures; `sample_rate` (Hz) is that of the recordings it is given; `tokenizer`
    decodes its ids, and its length is the vocabulary over which divergences are measured. `longest_s`: the longest
    recording in seconds that it takes, None for any. `fingerprint`: a hash of its weights, so that another model of the
    same name is told apart. `decoder`: its text decoder (token ids in, `last_hidden_state` out), whose mean states embed
    texts for clustering; without it `--embedder` names another model.
    """

    name: str
    sample_rate: int = 16_000
    tokenizer: Any
    longest_s: float | None = None
    fingerprint: str | None = None
    decoder: Any = None
    run_id: str | None = None  # of a checkpoint of a run in the lab
    step: int = 0

    def encode(self, answer: str) -> list[int]:
        """The token ids of an answer, the same after every prompt. `answer` may begin with a blank, which a chat drops."""
        return self.tokenizer(answer.strip(), add_special_tokens=False)["input_ids"]

    def logits(self, prompt: Prompt, ids: list[int]) -> torch.Tensor:
        """Logits [T, V] that predict each of the T answer tokens `ids` after `prompt`, teacher-forced: row t is after the
        prompt and ids[:t]. `prompt`: texts (str) and `Recording`s (`samples`, float32 at `sample_rate`), in order."""
        raise NotImplementedError(f"{type(self).__name__}.logits")

    def text_ids(self, prompt: list[str], ids: list[int]) -> list[int]:
        """The whole sequence of token ids that a text prompt and the answer `ids` make: what a base LLM is given."""
        raise SaladError(f"{self.name} does not define text_ids, so a base LLM cannot be given the same tokens")

    def teacher_logits(self, prompt: list[str], ids: list[int]) -> torch.Tensor | None:
        """`logits` of the text LLM that the model was made from; None where it does not know it."""
        return None


class CheckpointLLM(SpeechLLM):
    """A SpeechLM of ours. Its teacher is the original LLM, so D and F are always measured."""

    def __init__(self, model: SpeechLM, name: str, run_id: str | None = None, step: int = 0):
        self.model, self.name, self.run_id, self.step = model, name, run_id, step
        self.tokenizer, self.sample_rate = model.tokenizer, model.encoder.sample_rate

        self.fingerprint, self.decoder = fingerprint(model), model.llm.get_decoder()

    def encode(self, answer: str) -> list[int]:
        return self.model.prompt.units([Recording("", np.zeros(0, np.float32))], [answer])[1][0]

    def logits(self, prompt: Prompt, ids: list[int]) -> torch.Tensor:
        return answer_logits(self.model, prompt, ids)

    def teacher_logits(self, prompt: list[str], ids: list[int]) -> torch.Tensor:
        return answer_logits(self.model, prompt, ids, teacher=True)


class TransformersLLM(SpeechLLM):
    """A speech LLM of transformers, by its own class, chat template and audio processor; the prompt is the user's turn.

    kind: a key of `transformers_speech.KINDS`; name: a folder (in the lab, or anywhere) or a hub name; label: what tables call
    it. Raises SaladError where it cannot be loaded, or has no chat template."""

    def __init__(self, kind: str, name: str, label: str, lab: Path | str | None = None, device: str = "cpu",
                 dtype: torch.dtype | None = None):  # fmt: skip
        self.kind, self.name, self.device = kind, label, device
        self.processor = _processor(kind, name, lab)
        self.model, self.fingerprint = load_model(kind, name, lab, device, dtype)
        self.tokenizer, features = self.processor.tokenizer, self.processor.feature_extractor
        self.sample_rate, self.decoder = features.sampling_rate, self.model.get_decoder()
        # what is longer, these processors cut off in silence; the others cut it into windows
        self.longest_s = features.n_samples / self.sample_rate if kind in ("qwen2-audio", "qwen2.5-omni") else None

    @torch.no_grad()
    def logits(self, prompt: Prompt, ids: list[int]) -> torch.Tensor:
        inputs = {name: value.to(self.device) for name, value in self._inputs(prompt).items()}
        inputs |= {name: value.to(self.model.dtype) for name, value in inputs.items() if value.is_floating_point()}
        answer = torch.tensor([ids], device=self.device)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], answer], dim=1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], torch.ones_like(answer)], dim=1)
        logits = self.model(**inputs, use_cache=False).logits[0]
        return logits[len(logits) - len(ids) - 1 : -1]

    def text_ids(self, prompt: list[str], ids: list[int]) -> list[int]:
        return [*self._inputs(prompt)["input_ids"][0].tolist(), *ids]

    def _inputs(self, prompt: Prompt) -> dict[str, torch.Tensor]:
        """What the model's processor makes of a prompt as the user's turn, up to where its answer begins."""
        if self.kind == "voxtral":  # its template lies in mistral-common's code, and takes whole files
            content = [_audio_file(part, self.sample_rate) if isinstance(part, Recording) else {"type": "text", "text": part}
                       for part in prompt]  # fmt: skip
            turn = [{"role": "user", "content": content}]
            return dict(self.processor.apply_chat_template(turn, tokenize=True, return_dict=True, return_tensors="pt"))
        content = [{"type": "audio", "audio": ""} if isinstance(part, Recording) else {"type": "text", "text": part}
                   for part in prompt]  # fmt: skip
        turn = [{"role": "user", "content": content}]
        text = self.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        sounds = [np.asarray(part.samples, np.float32) for part in prompt if isinstance(part, Recording)]
        given: dict[str, Any] = {"audio": sounds, "sampling_rate": self.sample_rate} if sounds else {}
        return dict(self.processor(text=text, return_tensors="pt", **given))


def _audio_file(recording: Recording, sample_rate: int) -> dict:
    """A part of a conversation with a recording as a WAV file of 32-bit floats, in base64."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.asarray(recording.samples, np.float32), sample_rate, format="WAV", subtype="FLOAT")
    return {"type": "audio", "base64": base64.b64encode(file.getvalue()).decode()}


def _processor(kind: str, name: str, lab: Path | str | None):
    """The model's own processor. Of the omni models without the parts that see: those need torchvision, and see nothing here."""
    import transformers

    cls, folder = getattr(transformers, KINDS[kind].processor), resolve(name, lab)
    if kind == "voxtral" and not transformers.utils.is_mistral_common_available():
        raise SaladError(
            f"voxtral:{name} needs the package mistral-common for its tokenizer and chat template: "
            "pip install --no-deps mistral-common tiktoken pydantic-extra-types pycountry"
        )
    with warnings.catch_warnings(), loading(f"{kind}:{name}: its processor"):
        warnings.simplefilter("ignore")
        if kind in ("qwen2-audio", "voxtral"):
            made = cls.from_pretrained(folder, trust_remote_code=False)
        else:
            template = cls.get_processor_dict(folder)[0].get("chat_template")
            features = transformers.WhisperFeatureExtractor.from_pretrained(folder)
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            made = _hearing_only(cls)(None, None, features, tokenizer, chat_template=template or tokenizer.chat_template)
    if kind != "voxtral" and not made.chat_template:
        raise SaladError(f"{kind}:{name} has no chat template: its folder lacks chat_template.json or chat_template.jinja")
    return made


def _hearing_only(cls: type) -> type:
    """A processor's class that can do without an image and a video processor."""

    def check(self, argument_name, argument):
        return None if argument is None else cls.check_argument_for_proper_class(self, argument_name, argument)

    return type(cls.__name__, (cls,), {"check_argument_for_proper_class": check})


# --- by name ---


def load(spec: str, lab: Path | str, name: str | None = None, device: str = "cpu") -> SpeechLLM:
    """The speech LLM that a user calls `spec`.

    A run (`r0123456789ab`, `r0123456789ab@1500` for a step) or a contender's name (`stage2_active`: its newest finished
    run) of the lab; a folder that `SpeechLM.save_pretrained` wrote; `package.module:name`, a class or function called
    without arguments that gives a `SpeechLLM`; `KIND:NAME` or NAME, a folder or hub name of a model of transformers. `name`:
    what tables call it, by default its own. Raises SaladError for all that is no such thing."""
    found = RUN.fullmatch(spec)
    run = found[1] if found else _newest_of(lab, spec)
    if run is not None:
        model, step = lookup.model_of(lab, run, int(found[2]) if found and found[2] else None)
        return CheckpointLLM(model.to(device), name or _contender(lab, run), run, step)
    for folder in (Path(lab) / spec, Path(spec)):
        if (folder / SETTINGS).is_file():
            return CheckpointLLM(SpeechLM.from_pretrained(folder, lab).eval().to(device), name or folder.resolve().name)
    kind, _, rest = spec.partition(":")
    if rest and kind in KINDS:
        return TransformersLLM(kind, rest, name or spec, lab, device)
    if parts.is_part(spec):
        return _own(spec, name)
    of = model_type(spec, lab)
    kind = next((kind for kind, known in KINDS.items() if of in known.types), "")
    if not kind:
        raise SaladError(
            f"model {spec!r} is of type {of}, which has no speech side that is known here; there are {', '.join(KINDS)}, runs "
            "and checkpoint folders of salad, and a class of your own (docs/how-to/diagnose.md)"
        )
    return TransformersLLM(kind, spec, name or f"{kind}:{Path(spec).name}", lab, device)


def _newest_of(lab: Path | str, contender: str) -> str | None:
    """The id of the newest finished training run of the contender called so; None where there is none."""
    row = store.connect(lab).execute(
        """SELECT run_id FROM runs WHERE config->>'contender' = ? AND kind IN ('stage1', 'stage2') AND status = 'done'
           ORDER BY ended_at DESC NULLS LAST, run_id DESC LIMIT 1""", [contender]
    ).fetchone()  # fmt: skip
    return row[0] if row else None


def _contender(lab: Path | str, run_id: str) -> str:
    from salad.runs import RunFolder

    return RunFolder.open(lab, run_id).config.get("contender") or run_id


def _own(spec: str, name: str | None) -> SpeechLLM:
    """A class of one's own, checked for what a diagnosis asks of it."""
    made = parts.load(spec)()
    if not isinstance(made, SpeechLLM):
        of = "salad.evaluation.speech_llms.SpeechLLM"
        raise SaladError(f"{spec} gives a {type(made).__name__}, which does not derive from {of}")
    made.name = name or getattr(made, "name", None) or spec
    lacking = [what for what in ("tokenizer",) if not hasattr(made, what)]
    lacking += ["logits"] if type(made).logits is SpeechLLM.logits else []
    if lacking:
        raise SaladError(f"{spec} lacks {' and '.join(lacking)}: docs/how-to/diagnose.md says what a class of your own has")
    return made
