"""A model's folder that brings code of its own: nothing of it runs, nobody is asked whether it may, and one line says so."""

import ast
import builtins
import json
from pathlib import Path

import pytest

from salad import SaladError
from salad.config import EncoderConfig, LLMConfig
from salad.models import meta
from salad.models.encoders import load_encoder
from salad.models.speech_lm import load_llm, load_tokenizer
from salad.speech.check import load_recogniser

ROOT = Path(__file__).parent.parent
CODE = """
from pathlib import Path
from transformers import PretrainedConfig, PreTrainedModel
Path(__file__).with_name("it ran").touch()
Path({mark!r}).touch()
class Config(PretrainedConfig):
    model_type = "another"
class Model(PreTrainedModel):
    config_class = Config
class Tokenizer:
    from_pretrained = classmethod(lambda cls, *a, **k: cls())
"""


@pytest.mark.parametrize("load", [
    lambda folder: load_recogniser(folder, "cpu"), lambda folder: load_tokenizer(folder, None),
    lambda folder: load_llm(LLMConfig(name=folder), None), lambda folder: load_encoder(EncoderConfig(name=folder), None),
    lambda folder: meta.sizes(folder),
], ids=["recogniser", "tokenizer", "llm", "encoder", "sizes"])  # fmt: skip
def test_code_of_a_models_folder_never_runs_and_nobody_is_asked(load, tmp_path, monkeypatch):
    folder, mark = tmp_path / "model", tmp_path / "it ran"
    folder.mkdir()
    (folder / "theirs.py").write_text(CODE.format(mark=str(mark)))
    kinds = ("AutoModel", "AutoModelForCausalLM", "AutoModelForCTC", "AutoModelForSpeechSeq2Seq")
    known = {"AutoConfig": "theirs.Config", **{kind: "theirs.Model" for kind in kinds}}
    (folder / "config.json").write_text(json.dumps({"model_type": "another", "auto_map": known}))
    reference = {"tokenizer_class": "Theirs", "auto_map": {"AutoTokenizer": ["theirs.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(reference))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("someone was asked"))
    with pytest.raises(SaladError) as refused:
        load(str(folder))
    assert "\n" not in str(refused.value) and not mark.exists()


def test_every_load_by_name_says_that_remote_code_is_not_run():
    silent = []
    for path in sorted((ROOT / "salad").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(call, ast.Call)
                and ast.unparse(call.func).startswith("Auto")
                and (ast.unparse(call.func).endswith((".from_pretrained", ".from_config")))
                and "trust_remote_code=False" not in [ast.unparse(keyword) for keyword in call.keywords]
            ):
                silent.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert not silent
