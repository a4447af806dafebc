"""`salad models check`: what it says is what happens when the model is used."""

import json
import shutil

import pytest
from tiny import tokenizer
from zoo import causal_lm, encoder_of

from salad import SaladError
from salad.config import EncoderConfig, LLMConfig
from salad.models import support
from salad.models.encoders import load_encoder
from salad.models.speech_lm import load_llm
from workbench.cli import main

THINKS = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}{% if add_generation_prompt %}<|assistant|>"
          "{% if enable_thinking is not defined or enable_thinking %}<think>{% endif %}{% endif %}")  # fmt: skip


def run(capsys, *arguments) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["models", *map(str, arguments)])
    out, err = capsys.readouterr()
    return left.value.code, out, err


def lines(findings, role: str) -> dict[str, tuple]:
    return {one.what: (one.ok, one.detail) for one in findings if one.role == role}


def test_a_teacher_is_loaded_and_run(tmp_path, capsys):
    folder = causal_lm(tmp_path / "gemma", "gemma3_text", final_logit_softcapping=2.5)
    told = lines(support.check_model(str(folder)), "teacher")
    assert all(ok for what, (ok, _) in told.items() if what != "chat")
    assert told["head"][1] == "soft cap 2.5" and "sliding windows of 5" in told["packing"][1]
    assert told["tied weights"][1].startswith("input embeddings and output head are one")
    assert told["prefix token"] == (True, "sequences begin with '<s>'") and "q_proj" in told["LoRA"][1]
    assert told["chat"] == (None, "no chat template: sequences.prompt=plain")
    code, out, _ = run(capsys, "check", folder)
    assert code == 0 and f"{folder} works as teacher" in out
    code, out, _ = run(capsys, "check", folder, "--role", "recogniser")
    assert code == 1 and "NO" in out and "gemma3_text is no recogniser that is known here" in out


def test_without_weights_its_configuration_is_read_and_the_rest_is_open(tmp_path):
    folder = causal_lm(tmp_path / "qwen", "qwen3_5_text")
    with_them = lines(support.check_model(str(folder)), "teacher")
    for path in folder.glob("*.safetensors"):
        path.unlink()
    without = lines(support.check_model(str(folder)), "teacher")
    assert without["head"][0] is None and without["weights"][0] is None
    for what in ("packing", "LoRA", "tied weights", "prefix token"):
        assert without[what] == with_them[what], what
    assert "side by side" in without["packing"][1]
    with pytest.raises(SaladError, match="cannot be loaded"):
        load_llm(LLMConfig(name=str(folder)), None)


def test_what_is_refused_when_it_is_loaded_is_refused_here(tmp_path, capsys):
    folder = causal_lm(tmp_path / "ple", "gemma4_text", hidden_size_per_layer_input=8, vocab_size_per_layer_input=400)
    for weights in (True, False):
        found = support.check_model(str(folder), weights=weights)
        assert not support.fits(found) and "embeddings of tokens only" in " ".join(one.detail for one in found)
    assert run(capsys, "check", folder)[0] == 1


def test_a_template_that_thinks_first_is_named_with_what_turns_it_off(tmp_path):
    folder = causal_lm(tmp_path / "thinks", "llama")
    tok = tokenizer()
    tok.chat_template = THINKS
    tok.save_pretrained(folder)
    ok, detail = lines(support.check_model(str(folder)), "teacher")["chat"]
    assert ok and 'sequences.template={"enable_thinking": false}' in detail


@pytest.mark.parametrize("kind", ["voxtral", "wav2vec2-large", "parakeet-ctc", "whisper"])
def test_an_encoder_is_told_with_the_frames_that_it_then_gives(tmp_path, kind):
    folder = encoder_of(tmp_path / kind, kind)
    told = lines(support.check_model(str(folder)), "encoder")
    encoder = load_encoder(EncoderConfig(name=str(folder)))
    assert told["kind"][0] and told["kind"][1].startswith(type(encoder).__name__)
    assert told["frames"][1].startswith(f"{encoder.frame_rate:g} a second of width {encoder.dim}, 16000 Hz; looks ahead")


def test_code_from_outside_pickles_and_nothing_are_one_line_each(tmp_path, capsys):
    folder = causal_lm(tmp_path / "llama", "llama")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "config.json").write_text(json.dumps({"model_type": "strange", "auto_map": {"AutoConfig": "x.Y"}}))
    for name, why in ((foreign, "brings code of its own, and no code from outside"), (tmp_path / "none", "no model folder")):
        code, out, err = run(capsys, "check", name)
        assert code == 2 and why in err and len(err.splitlines()) == 1 and not out
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    code, out, _ = run(capsys, "check", pickled)
    assert code == 1 and "its weights are pickles: only safetensors are loaded" in out
    assert run(capsys, "check")[0] == 2


def test_weights_that_are_missing_and_a_model_that_reads_ahead_are_refused(tmp_path, capsys):
    """An encoder of sentences is in transformers' list of causal LMs: with a random head, and it reads both ways."""
    from safetensors.torch import load_file, save_file

    folder = causal_lm(tmp_path / "half", "qwen3")
    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if "lm_head" not in k}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    both_ways = causal_lm(tmp_path / "bert", "bert")
    for name, why in ((folder, "lack 1 weights of a Qwen3ForCausalLM, such as lm_head.weight"), (both_ways, "no causal LM")):
        with pytest.raises(SaladError, match=why):
            load_llm(LLMConfig(name=str(name)), None)
        code, out, _ = run(capsys, "check", name)
        assert code == 1 and why in out


def test_whisper_is_an_encoder_and_a_recogniser_but_no_teacher(tmp_path):
    found = support.check_model(str(encoder_of(tmp_path / "whisper", "whisper")))
    assert [support.fits(found, role) for role in support.ROLES] == [False, True, True, False]


def test_the_list_has_a_line_for_each_role(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(support.ROLES)
    assert "parakeet_encoder" in out and "moonshine" in out
