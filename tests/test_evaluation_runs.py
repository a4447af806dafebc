"""Evaluation as a long piece of work: interrupted, in several voices, from recordings of people, compared and told."""

import json
import os
import signal

import numpy as np
import pytest
import soundfile
import torch
from test_evaluation import CHOICES, Heard, write
from tiny import config, lab, spoken_text

import store
from salad import SaladError
from salad.evaluation import harness, spoken, statistics
from salad.evaluation.contenders import Ours
from salad.evaluation.run import evaluate
from salad.models.speech_lm import SpeechLM

NAMES = ("otter", "whale", "violin", "pear", "plum", "bread", "sea", "morning")
ITEMS = [
    {"item_id": f"i-{n}", "context": f"What does the {name} do?", "choices": CHOICES, "answer": n % 3}
    for n, name in enumerate(NAMES)
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = lab(tmp_path_factory.mktemp("lab"))
    write(folder, "names", ITEMS)
    return folder


@pytest.fixture(scope="module")
def ours(place):
    return Ours(SpeechLM.build(config(), place).eval(), "stage1", "r000000000001", 5)


def rows(place, what="modality, voice, item_id, scores, correct, correct_norm", **where):
    names = " and ".join(f"{name} = ?" for name in where) or "true"
    con = store.connect(place)
    return con.execute(f"select {what} from evaluations where {names} order by all", [*where.values()]).fetchall()


def death_at_call(number):
    calls = []

    def progress(done, total):
        calls.append(done)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


def test_a_killed_evaluation_goes_on_where_it_was(place, ours):
    """-9 at every chunk in turn: in the end the same rows as of a run that nobody disturbed, and none twice."""
    torch.set_num_threads(1)
    deaths = 0
    for _ in range(20):
        child = os.fork()
        if child == 0:
            try:  # the third call: in the second chunk, answered but not published
                evaluate(place, ours, ["names"], ("text",), chunk=3, progress=death_at_call(3))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            break
        deaths += 1
        assert len(rows(place, task="names", contender="stage1")) in (3, 6)
    assert deaths >= 1 and os.WEXITSTATUS(status) == 0
    rows_read = rows(place, task="names", contender="stage1")
    assert len(rows_read) == len({row[2] for row in rows_read}) == len(ITEMS)
    calm = Ours(ours.model, "calm", ours.run_id, ours.step)
    evaluate(place, calm, ["names"], ("text",))
    for item, other in zip(rows_read, rows(place, task="names", contender="calm"), strict=True):
        assert item[3] == pytest.approx(other[3], abs=1e-4) and item[4:] == other[4:]


def test_only_what_is_missing_is_answered(place, ours):
    who, result = Ours(ours.model, "little by little", ours.run_id, ours.step), []
    evaluate(place, who, ["names"], ("text",), limit=3, progress=lambda done, total: result.append(total))
    evaluate(place, who, ["names"], ("text",), limit=5, progress=lambda done, total: result.append(total))
    evaluate(place, who, ["names"], ("text",), progress=lambda done, total: result.append(total))
    assert sorted(set(result), reverse=True) == [3, 2] and result[-1] == 3
    assert len(rows(place, contender="little by little")) == 8


def test_contexts_are_spoken_once_in_every_voice_that_is_asked_for(place, ours, monkeypatch):
    recorded = Heard([item["context"] for item in ITEMS])
    monkeypatch.setattr(spoken, "_recogniser", lambda lab, asr=None: recorded)
    voices = ["en-us", "en-us+f3"]
    evaluate(place, ours, ["names"], ("text", "speech", "cascade"), voices=voices)
    rows_read = rows(place, contender="stage1", task="names")
    assert {(m, v) for m, v, *_ in rows_read} == {("text", None)} | {(m, v) for m in ("speech", "cascade") for v in voices}
    scores = {(m, v, i): s for m, v, i, s, *_ in rows_read}
    assert scores["speech", "en-us", "i-0"] != pytest.approx(scores["speech", "en-us+f3", "i-0"], abs=1e-3)
    # the recogniser hears every word, and the mark is the prompt's: the cascade is the text side
    assert scores["cascade", "en-us", "i-0"] == pytest.approx(scores["text", None, "i-0"], abs=1e-4)
    kept = store.connect(place).execute(
        """select voice, count(*), avg(cer) from syntheses where sample_id in (select sample_id from samples where corpus =
           'names') group by 1 order by 1"""
    ).fetchall()  # fmt: skip
    assert kept == [(voice, 8, 0.0) for voice in voices]
    files = sorted(place.rglob("recording.*.tar"))
    evaluate(place, Ours(ours.model, "other", "r000000000002", 5), ["names"], ("speech",))
    assert sorted(place.rglob("recording.*.tar")) == files  # spoken for the first, heard by the second
    assert len(rows(place, contender="other")) == 16
    # an item in two voices counts once: the mean of both
    fields = {row["modality"]: row for row in statistics.summary(place, "stage1", "r000000000001", 5, ["names"])}
    assert (fields["speech"]["items"], fields["speech"]["voices"]) == (8, 2) and fields["speech"]["speech_s"] > 8
    by_item = {}
    for m, _, i, _, _, norm in rows_read:
        if m == "speech":
            by_item.setdefault(i, []).append(norm)
    means = np.array([np.mean(both) for both in by_item.values()])
    assert fields["speech"]["accuracy"] == pytest.approx(means.mean())
    assert fields["speech"]["standard_error"] == pytest.approx(means.std(ddof=1) / np.sqrt(8))


def test_voices_are_listed_with_their_settings():
    listed = ["en-us@rate=150,pitch=40", "en-us+f3", "recorded"]
    assert spoken.listed(",".join(listed)) == listed and spoken.listed(None) is None


def test_recordings_of_a_spoken_data_set_are_heard_as_they_are(place, ours, monkeypatch):
    monkeypatch.setattr(spoken, "_recogniser", lambda lab, asr=None: None)
    questions = ["Who is red?\nA. x\nB. y\nC. z\nD. w", "Who is blue?\nA. x\nB. y\nC. z\nD. w"]
    (place / "tasks" / "clips").mkdir(exist_ok=True)
    for n, text in enumerate(questions):
        soundfile.write(place / "tasks" / "clips" / f"{n}.wav", spoken_text(text, n)[1], 16_000)
    write(place, "mmsu", [{"prompt": text, "reference": "AB"[n], "audio": f"clips/{n}.wav"} for n, text in enumerate(questions)])
    evaluate(place, ours, ["mmsu"], ("speech",))
    assert [(m, v, i) for m, v, i, *_ in rows(place, task="mmsu")] == [("speech", "recorded", "0"), ("speech", "recorded", "1")]
    kept = store.connect(place).execute(
        "select tts, audio_path, duration_s from syntheses where speech like 'mmsu-recorded-%'"
    ).fetchall()  # fmt: skip
    assert len(kept) == 2
    assert all(tts == "recorded" and (place / path).is_file() and seconds > 1 for tts, path, seconds in kept)
    with pytest.raises(SaladError, match="has no transcript: a cascade needs a recogniser"):
        evaluate(place, ours, ["mmsu"], ("cascade",))
    monkeypatch.setattr(spoken, "_recogniser", lambda lab, asr=None: Heard([questions[0]]))
    evaluate(place, ours, ["mmsu"], ("text", "cascade"), limit=1)
    recorded, written = (dict(rows(place, "item_id, scores", task="mmsu", modality=m))["0"] for m in ("cascade", "text"))
    assert recorded == pytest.approx(written, abs=1e-4)  # transcribed now, as it had not been when it was kept
    (place / "tasks" / "clips" / "0.wav").write_bytes(b"no sound")
    write(place, "mmsu", [{"prompt": "Who else?\nA. x\nB. y", "reference": "A", "audio": "clips/0.wav"}])
    with pytest.raises(SaladError, match="its recording cannot be read"):
        evaluate(place, ours, ["mmsu"], ("speech",))


def test_paired_comparisons_are_those_of_the_textbook():
    from scipy.stats import binomtest

    rng = np.random.default_rng(0)
    a = dict(zip(map(str, range(400)), (rng.random(400) < 0.7).astype(float), strict=True))
    b = {item: value if rng.random() < 0.8 else 1 - value for item, value in a.items()}
    result = statistics.compare(a, b)
    only_a = sum(a[i] > b[i] for i in a)
    only_b = sum(a[i] < b[i] for i in a)
    assert result.n == 400 and result.difference == pytest.approx((only_a - only_b) / 400)
    assert result.p == pytest.approx(binomtest(only_a, only_a + only_b).pvalue)
    error = np.std([a[i] - b[i] for i in a], ddof=1) / 20
    assert result.high - result.low == pytest.approx(2 * 1.96 * error, rel=0.1) and result.low < result.difference < result.high
    same = statistics.compare(a, a)
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert statistics.compare(a, {"x": 1.0}) is None
    assert statistics.compare({"0": 0.5}, {"0": 1.0}).p is None  # a mean of voices has no McNemar


def test_a_contender_is_compared_with_another_on_the_items_of_both(place, ours):
    side, other = ("stage1", "r000000000001", 5), ("calm", "r000000000001", 5)
    evaluate(place, Ours(ours.model, "calm", ours.run_id, ours.step), ["names"], ("text",))
    evaluate(place, ours, ["names"], ("text", "speech"), voices=["en-us"])
    result = statistics.comparisons(place, side, other, ["names"])
    assert [(row["modality"], row["n"], row["difference"], row["p"]) for row in result] == [("text", 8, 0.0, 1.0)]
    assert {row["modality"] for row in statistics.modalities(place, side, ["names"])} >= {"speech − text"}
    assert statistics.sides(place, "calm") == other and statistics.sides(place, "calm@r000000000001:5") == other
    for name, message in (("clam", "there are .*calm"), ("calm@r9", "no evaluation of"), ("calm@r1:x", "write it as")):
        with pytest.raises(SaladError, match=message):
            statistics.sides(place, name)


def test_accuracy_without_overlap_stands_beside_the_full_one(place, ours):
    long = "The old lighthouse keeper of the northern island wrote down every ship that passed in the winter"
    write(place, "overlapped", [
        {"item_id": "seen", "context": f"{long}. Why?", "choices": CHOICES, "answer": 0},
        {"item_id": "fresh", "context": "What does nobody know?", "choices": CHOICES, "answer": 1},
    ])  # fmt: skip
    evaluate(place, ours, ["overlapped"], ("text",))
    (row,) = statistics.summary(place, "stage1", "r000000000001", 5, ["overlapped"])
    assert row["items_without_overlap"] is None  # nothing was looked for
    store.publish(place, "samples", [
        {"sample_id": "s000000000abc", "text": f"It is said: {long}, and more.", "corpus": "web", "flags": ["benchmark overlap"],
         "benchmarks": ["overlapped"]}
    ], {"corpus": "web"})  # fmt: skip
    (row,) = statistics.summary(place, "stage1", "r000000000001", 5, ["overlapped"])
    right = dict(rows(place, "item_id, correct_norm", task="overlapped"))
    assert row["items"] == 2 and row["items_without_overlap"] == 1
    assert row["accuracy_without_overlap"] == float(right["fresh"])


def test_a_task_of_ones_own_is_a_yaml_file_of_the_lab(place, ours):
    (place / "tasks" / "mine.yaml").write_text(
        "task: mine\ntest_split: test\noutput_type: multiple_choice\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {json.dumps(str(place / 'tasks' / 'mine.rows'))}\n"
        'doc_to_text: "Q: {{q}}\\nA:"\ndoc_to_choice: "{{c}}"\ndoc_to_target: y\nmetadata:\n  spoken: "{{q}}"\n'
    )
    (place / "tasks" / "mine.rows").write_text(json.dumps({"q": "What is it?", "c": ["A pear.", "A plum."], "y": 1}) + "\n")
    harness._manager.cache_clear()
    task = harness.load(place, "mine")
    assert harness.unmarked(task.requests[0][0].args[0]) == "Q: What is it?\nA:" and task.spoken_in(0) == ["What is it?"]
    evaluate(place, ours, ["mine"], ("text",))
    assert len(rows(place, task="mine")) == 1
