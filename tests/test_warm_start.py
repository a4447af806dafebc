"""The adapter's warm start: words are found by their sound, a killed one resumes exactly, and nothing else moves."""

import json
import os
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import config, encoder, lab

from salad import SaladError, recipes, training
from salad.config import WarmStartConfig, apply_overrides
from salad.models.speech_lm import SpeechLM
from salad.runs import Preempted, running
from salad.training import warm_start as module
from salad.training.start import load_data, start_model
from salad.training.warm_start import RESULT, STATE, warm_start


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = lab(tmp_path_factory.mktemp("lab"))
    encoder(folder / "models" / "encoder")
    return folder


def warm(seed: int = 0, **settings):
    given = WarmStartConfig(**{"steps": 60, "spans": 16, "lr": 5e-3, "save_every": 20} | settings)
    return config(adapter=config().adapter.model_copy(update={"warm_start": given}), seed=seed)


def started(place, settings):
    """(model, loader, run) of a configuration, as the loop has them before its first step."""
    torch.set_num_threads(1)
    run = training.prepare(place, settings, "tiny")
    model = start_model(place, settings)
    return model, load_data(place, settings, model), run


def run_warm_start(place, settings, progress=None):
    model, loader, run = started(place, settings)
    result = warm_start(model, loader.sources["natural"], loader.frames, settings, run, progress)
    return model, run, result


def test_words_are_drawn_to_their_embeddings_and_only_the_adapter_moves(place, monkeypatch):
    monkeypatch.setattr(module, "HELD_OUT", 3)
    settings = warm(steps=150)
    fresh = start_model(place, settings)
    results = []
    model, run, result = run_warm_start(
        place, settings, lambda step, steps, values: results.append(values.get("warm_start_loss"))
    )
    losses = [loss for loss in results if loss is not None]
    assert len(losses) == 150 and sum(losses[-10:]) < 0.5 * sum(losses[:10])
    held = result["held_out"]
    assert held["words"] >= held["kinds"] >= 10 and 0 < held["share"] < 1  # a random encoder: some are found
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, fresh.state_dict()[name])}
    assert moved and all(name.startswith("adapter.") for name in moved)
    assert json.loads((run.path / RESULT).read_text()) == result and result["speech_s"] > 10


def test_stopped_and_resumed_it_is_what_an_uninterrupted_one_is(place):
    settings = warm(seed=1)
    whole, run, _ = run_warm_start(place, settings)
    other = training.prepare(place, settings, "tiny", repetition=1)

    def interrupted(step, steps, values):
        if steps == 60 and step == 31:
            raise KeyboardInterrupt

    def asked_to_end(step, steps, values):
        if steps == 60 and step == 45:
            os.kill(os.getpid(), signal.SIGTERM)

    for until, error, saved in ((interrupted, KeyboardInterrupt, "20"), (asked_to_end, Preempted, "45")):
        model, loader, _ = started(place, settings)
        with pytest.raises(error), running(other):
            warm_start(model, loader.sources["natural"], loader.frames, settings, other, until)
        with safe_open(other.path / STATE, framework="pt") as file:
            assert file.metadata()["step"] == saved
        assert not (other.path / RESULT).exists()
    again, loader, _ = started(place, settings)
    with running(other):
        result = warm_start(again, loader.sources["natural"], loader.frames, settings, other)
    for name, tensor in whole.adapter.state_dict().items():
        assert torch.equal(tensor, again.adapter.state_dict()[name]), name
    assert result["steps"] == 60
    assert not any(name.startswith("optimizer.") for name in load_file(other.path / STATE))  # nothing follows


def test_stage_1_begins_from_it_once_and_says_so(place):
    settings = warm(seed=2)
    run = training.prepare(place, settings, "tiny")
    training.train(place, run.run_id)
    assert run.read_status()["state"] == "done"
    text = (run.path / "log.txt").read_text()
    assert text.count("warm start of the adapter: 60 steps") == 1
    cold = training.prepare(place, config(seed=2), "tiny")
    training.train(place, cold.run_id)
    first = [next(row["values"]["loss"] for row in r.metrics() if "loss" in row["values"]) for r in (run, cold)]
    assert first[0] != first[1] and not (cold.path / RESULT).exists()


def test_it_is_off_unless_asked_for_and_natural_speech_without_words_is_one_line(place):
    for name in recipes.names():
        if "135m" not in name:
            assert recipes.get(name).adapter.warm_start.steps == 0
    assert apply_overrides(warm(), {"adapter.warm_start.steps": 7}).adapter.warm_start.steps == 7
    model, loader, run = started(place, warm(seed=3))
    with pytest.raises(SaladError, match="no two words"):
        warm_start(model, [], loader.frames, warm(seed=3), run)
    assert isinstance(model, SpeechLM)


def test_the_ctc_control_learns_without_word_times(place):
    settings = warm(seed=4, steps=60, loss="ctc")
    losses = []
    model, run, result = run_warm_start(place, settings, lambda step, steps, values: losses.extend(values.values()))
    assert len(losses) == 60 and sum(losses[-10:]) < 0.8 * sum(losses[:10]) and result["loss_kind"] == "ctc"
    bank, _ = module._fill(started(place, settings)[1].sources["natural"], started(place, settings)[1].frames, settings, None)
    table_VH = model.llm.get_input_embeddings().weight.detach()
    ids_K = sorted({token for span in bank for ids in span.tokens for token in ids})
    moved = [span._replace(words=[(0, 1)] * len(span.words)) for span in bank[:8]]
    one, other = (
        module._ctc_loss(model.adapter, spans, ids_K, table_VH, table_VH.mean(0), 0.05, "cpu") for spans in (bank[:8], moved)
    )
    assert torch.equal(one, other)


def test_stage_2_goes_on_from_a_stage_1_that_was_warm_started(place):
    settings = warm(seed=5, steps=3)
    parent = training.prepare(place, settings, "tiny")
    training.train(place, parent.run_id)
    child = config(seed=5, kind="stage2", parent=parent.run_id, contender="stage2")  # no warm start of its own
    run = training.prepare(place, child, "tiny")
    training.train(place, run.run_id)
    assert run.read_status()["state"] == "done"
