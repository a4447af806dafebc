"""Evaluation with real weights: SmolLM2, Whisper's encoder and recogniser, PIQA's items spoken by espeak."""

import json

import pytest
import torch
from tools import real_model, shared

import store
from salad.config import AdapterConfig, DataConfig, EncoderConfig, LLMConfig, OptimConfig, RunConfig
from salad.evaluation import statistics
from salad.evaluation.contenders import Ours
from salad.evaluation.run import evaluate
from salad.evaluation.scoring import loglikelihoods
from salad.models.speech_lm import SpeechLM

pytestmark = [pytest.mark.real, pytest.mark.data]


@pytest.fixture(scope="module")
def rows():
    results = [json.loads(line) for line in shared("data/piqa/valid_600.jsonl").read_text().split("\n") if line][:60]
    labels = shared("data/piqa/valid_600.labels").read_text().split()
    return [row | {"label": int(label)} for row, label in zip(results, labels, strict=False)]


@pytest.fixture(scope="module")
def model():
    """A speech LM of real parts whose adapter has learned nothing: it is deaf."""
    torch.set_num_threads(1)
    return SpeechLM.build(RunConfig(
        kind="stage1", contender="stage1", llm=LLMConfig(name=str(real_model("smollm2-135m-instruct")), lora_rank=4),
        encoder=EncoderConfig(name=str(real_model("whisper-tiny.en"))), data=DataConfig(natural=("natural",)),
        adapter=AdapterConfig(layers=1, width=64, mlp=128, heads=4, kv_heads=2, match_embedding_rms=True),
        optim=OptimConfig(steps=2, lr_adapter=1e-3, lr_llm=1e-4),
    )).eval()  # fmt: skip


def test_scores_do_not_depend_on_what_is_asked_together(model, rows):
    prompts = [[f"Question: {row['goal']}\nAnswer:"] for row in rows[:20]]
    choices = [[f" {row['sol1']}", f" {row['sol2']}"] for row in rows[:20]]
    together = loglikelihoods(model, prompts, choices, teacher=True)
    for prompt, some, result in zip(prompts, choices, together, strict=True):
        (alone,) = loglikelihoods(model, [prompt], [some], teacher=True, batch=1)
        assert [s for s, _ in result] == pytest.approx([s for s, _ in alone], abs=1e-4)


def test_a_student_that_has_not_learned_to_hear_shows_no_hearing(model, rows, tmp_path):
    lab = tmp_path / "lab"
    (lab / "tasks").mkdir(parents=True)
    (lab / "tasks" / "piqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:12]))
    ours, recogniser = Ours(model, "stage1", "r000000000001", 2), str(real_model("whisper-tiny.en"))
    evaluate(lab, ours, ["piqa"], ("text", "speech", "cascade", "deaf", "silent"), asr=recogniser)
    fields = {row["modality"]: row for row in statistics.summary(lab, "stage1", "r000000000001", 2)}
    assert {name: row["items"] for name, row in fields.items()} == dict.fromkeys(fields, 12) and len(fields) == 5
    assert "#" in fields["cascade"]["asr"] and fields["speech"]["tts"] == "espeak"
    assert fields["speech"]["hearing"] != "hears"
    con = store.connect(lab)
    own = con.execute("select unnest(syntheses) from evaluations where modality = 'speech' order by 1").fetchall()
    others = con.execute("select unnest(syntheses) from evaluations where modality = 'deaf' order by 1").fetchall()
    assert own == others  # every recording is heard once, by another item
