"""Evaluation: tasks that are wrong are told, items are scored once and the same way for everyone."""

import json

import pytest
from tiny import config, lab

import store
from salad import SaladError
from salad.evaluation import tasks
from salad.evaluation.contenders import Ours
from salad.evaluation.run import evaluate
from salad.evaluation.scoring import loglikelihoods
from salad.evaluation.spoken import as_prompt, context_sample
from salad.models.speech_lm import SpeechLM
from salad.passes.synthesise import jobs_of, synthesise
from salad.speech import load_tts

QUESTIONS = ("What does the otter eat?", "What does Anna carry?", "What is the capital of France?")
CHOICES = ["Fish.", "A book.", "Paris."]
ITEMS = [
    {"item_id": f"t-{n}", "domain": "stories", "context": question, "choices": CHOICES, "answer": n}
    for n, question in enumerate(QUESTIONS)
]


def write(place, name, items):
    (place / "tasks").mkdir(exist_ok=True)
    (place / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


class Heard:
    """A recogniser that hears every text without its mark: what it stands for is the ASR model's place, not ours."""

    name = "test"

    def __init__(self, texts):
        self.texts = list(texts)

    def transcribe(self, samples):
        return [text.rstrip("?") for text in self.texts[: len(samples)]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = lab(tmp_path_factory.mktemp("lab"))
    write(folder, "tiny_questions", ITEMS)
    contexts = [context_sample(item) for item in tasks.load(folder, "tiny_questions")]
    store.publish(folder, "samples", [
        {"sample_id": s, "text": t, "spoken": t, "corpus": c, "domain": "stories", "n_tokens": 6, "flags": []}
        for s, t, c in contexts
    ], {"corpus": "tiny_questions"})  # fmt: skip
    jobs = jobs_of([(s, t) for s, t, _ in contexts], ("en-us",))
    synthesise(folder, "items", jobs, load_tts("espeak"), {"seed": 0}, Heard(job.text for job in jobs))
    return folder


def test_every_modality_is_scored_item_by_item_and_once(place):
    model = SpeechLM.build(config(), place).eval()
    ours = Ours(model, "stage1", "r000000000001", 5)
    evaluate(place, ours, ["tiny_questions"])
    con = store.connect(place)
    rows = con.execute("select modality, item_id, scores, correct, correct_norm, voice from evaluations").fetchall()
    wanted = [(m, f"t-{n}") for m in ("text", "speech", "cascade") for n in range(3)]
    assert sorted((m, i) for m, i, *_ in rows) == sorted(wanted)
    by = {(m, i): (s, c, cn, v) for m, i, s, c, cn, v in rows}
    for n, item in enumerate(ITEMS):
        scores, correct, norm, voice = by["text", f"t-{n}"]
        assert voice is None and by["speech", f"t-{n}"][3] == "en-us"
        assert correct == (scores.index(max(scores)) == n)
        assert norm == (max(range(3), key=lambda i: scores[i] / len(item["choices"][i])) == n)
        # the recogniser hears the text but its mark, which the prompt gives back: the cascade is the text side
        assert by["cascade", f"t-{n}"][0] == pytest.approx(scores, abs=1e-5)
        alone = loglikelihoods(model, [[item["context"]]], [[" " + choice for choice in item["choices"]]])[0]
        assert [score for score, _ in alone] == pytest.approx(scores, abs=1e-4)
    before = sorted(p.name for p in (place / "tables" / "evaluations").rglob("*.parquet"))
    evaluate(place, ours, ["tiny_questions"])
    assert before == sorted(p.name for p in (place / "tables" / "evaluations").rglob("*.parquet"))


def test_a_cascade_takes_the_mark_of_the_prompt():
    assert as_prompt("what does the otter eat.", "What does the otter eat?") == "what does the otter eat?"
    assert as_prompt("  the otter eats,  ", "The otter eats") == "the otter eats"
    assert as_prompt("", "Who?") == "?"


def test_what_is_wrong_with_a_task_is_told_in_one_line(place):
    with pytest.raises(SaladError, match="did you mean 'tiny_questions'"):
        tasks.load(place, "tiny_question")
    for name, change, message in (
        ("few", {"choices": ["Fish."]}, "lacks choices"),
        ("none", {"answer": 3}, "none of its choices"),
        ("silent", {"context": "  "}, "empty context"),
        ("broken", {"choices": None}, "missing or wrong"),
    ):
        write(place, name, [ITEMS[0], ITEMS[1] | change])
        with pytest.raises(SaladError, match=f"line 2.*{message}"):
            tasks.load(place, name)
    model = Ours(SpeechLM.build(config(), place).eval(), "x", "r000000000001", 5)
    with pytest.raises(SaladError, match="no modality 'smell'"):
        evaluate(place, model, ["tiny_questions"], ("smell",))
    with pytest.raises(SaladError, match="none of its contexts was recorded"):
        evaluate(place, model, ["tiny_questions"], ("speech",), voices=["recorded"])
    with pytest.raises(SaladError, match="has no speech side"):
        evaluate(place, Ours(model.model, "teacher", teacher=True), ["tiny_questions"], ("speech",))
