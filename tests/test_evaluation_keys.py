"""What an evaluation is known by: answers whose number depends on something else are other answers, and stand in no
figure together."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_evaluation import CHOICES, Heard, write
from tiny import config, lab

import store
from salad import SaladError, analysis
from salad.config import LLMConfig
from salad.evaluation import predictions, spoken, statistics
from salad.evaluation.contenders import Ours
from salad.evaluation.run import evaluate
from salad.models.speech_lm import SpeechLM
from salad.runs import RunFolder
from salad.speech.espeak import Espeak
from store.ids import hash_id
from workbench import reports

NAMES = ("otter", "whale", "violin", "pear", "plum", "bread")
ITEMS = [
    {"item_id": f"k-{n}", "context": f"Where is the {name}?", "choices": CHOICES, "answer": n % 3} for n, name in enumerate(NAMES)
]


@pytest.fixture
def place(tmp_path):
    folder = lab(tmp_path / "lab")
    write(folder, "keys", ITEMS)
    return folder


def counted(place, *args, **how) -> int:
    """How many items an evaluation answers."""
    result = [0]
    evaluate(place, *args, **how, progress=lambda done, total: result.append(total))
    return max(result)


def another(model, seed: int = 1):
    """The same parts with other weights in the text LLM's embeddings and the adapter."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.requires_grad:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return model


def told_rows(place, what, **where):
    names = " and ".join(f"{name} = ?" for name in where)
    return store.connect(place).execute(
        f"select {what} from evaluations where {names} order by all", [*where.values()]
    ).fetchall()  # fmt: skip


class OtherEngine(Espeak):
    """Another synthesiser that has a voice of the same name."""

    name = "other-engine"

    def speak(self, text, voice, seed):
        return super().speak(text, "en-us+f3", seed)


def engine():
    return OtherEngine()


def with_other_llm(place):
    """A second text LLM in the lab: the first's folder with other weights."""

    folder = place / "models" / "second"
    shutil.copytree(place / "models" / "teacher", folder)
    torch.manual_seed(7)
    path = folder / "model.safetensors"
    tensors = {name: t + 0.1 * torch.randn_like(t.float()).to(t.dtype) for name, t in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
    return config(llm=LLMConfig(lora_rank=4, name="models/second"))


def test_two_teachers_of_one_lab_are_both_asked_and_each_gap_is_from_its_own(place):
    first = SpeechLM.build(config(), place).eval()
    second = SpeechLM.build(with_other_llm(place), place).eval()
    assert counted(place, Ours(first, "teacher", teacher=True), ["keys"], ("text",)) == 6
    assert counted(place, Ours(second, "teacher", teacher=True), ["keys"], ("text",)) == 6
    assert counted(place, Ours(second, "teacher", teacher=True), ["keys"], ("text",)) == 0
    outcome = store.connect(place).execute(
        "select fingerprint, count(*), sum(scores[1]) from evaluations where contender = 'teacher' group by 1 order by 2"
    ).fetchall()  # fmt: skip
    assert len(outcome) == 2 and outcome[0][2] != pytest.approx(outcome[1][2], abs=1e-3)
    entry, two = Ours(first, "stage1", "r000000000001", 5), Ours(second, "stage1", "r000000000002", 5)
    for who in (entry, two):
        assert counted(place, who, ["keys"], ("text",)) == 6
        (row,) = statistics.summary(place, "stage1", who.run_id, 5)
        assert row["gap"] == row["gap_low"] == row["gap_high"] == 0  # untrained, it is its own teacher
    with pytest.raises(SaladError, match="several contenders called teacher"):
        statistics.summary(place, "teacher", None, None)
    for who in (entry, two):
        (row,) = statistics.summary(place, "teacher", who.teacher_fingerprint, None)
        assert row["items"] == 6
        assert statistics.sides(place, f"teacher@{who.teacher_fingerprint}")[1] == who.teacher_fingerprint


def test_a_checkpoint_is_known_by_its_weights_and_how_it_is_asked(place):
    model = SpeechLM.build(config(), place).eval()
    before = Ours(model, "stage1").fingerprint
    assert Ours(SpeechLM.build(config(), place).eval(), "x").fingerprint == before
    assert Ours(another(model), "stage1").fingerprint != before
    assert Ours(model, "stage1", teacher=True).fingerprint == Ours(model, "stage1").teacher_fingerprint != before
    half = SpeechLM.build(config(llm=LLMConfig(lora_rank=4, dtype="bfloat16")), place).eval()
    assert Ours(half, "x", teacher=True).fingerprint != Ours(model, "x", teacher=True).fingerprint


def test_a_second_recogniser_is_another_cascade(place, monkeypatch):
    ours = Ours(SpeechLM.build(config(), place).eval(), "stage1", "r000000000001", 5)
    recorded = {None: Heard([item["context"] for item in ITEMS]), "test:deafer": Heard(["a pear"] * 20)}
    monkeypatch.setattr(spoken, "_recogniser", lambda lab, asr=None: recorded[asr])
    assert counted(place, ours, ["keys"], ("speech", "cascade")) == 12
    assert counted(place, ours, ["keys"], ("cascade",)) == 0
    assert counted(place, ours, ["keys"], ("cascade",), asr="test:deafer") == 6
    assert counted(place, ours, ["keys"], ("cascade",), asr="test:deafer") == 0
    rows = told_rows(place, "distinct asr", modality="cascade")
    assert rows == [("test",), ("test:deafer",)]
    result = [row for row in statistics.summary(place, "stage1", "r000000000001", 5) if row["modality"] == "cascade"]
    assert [(row["asr"], row["items"]) for row in result] == [("test", 6), ("test:deafer", 6)]
    right = {asr: value for asr, value in store.connect(place).execute(
        "select asr, avg(correct_norm::int) from evaluations where modality = 'cascade' group by 1").fetchall()}  # fmt: skip
    assert {row["asr"]: row["accuracy"] for row in result} == pytest.approx(right)


def test_a_recognisers_folder_is_known_by_its_files(place):
    folder = place / "models" / "ears"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    first = spoken.recogniser_label(str(folder), place)
    assert first.startswith("models/ears#") and spoken.recogniser_label("models/ears", place) == first
    (folder / "config.json").write_text("[]")
    assert spoken.recogniser_label("models/ears", place) != first
    assert spoken.recogniser_label("openai/whisper-tiny", place) == "openai/whisper-tiny"


def test_a_voice_of_another_synthesiser_is_spoken_and_answered_by_itself(place, monkeypatch):
    monkeypatch.setattr(spoken, "_recogniser", lambda lab, asr=None: None)
    ours = Ours(SpeechLM.build(config(), place).eval(), "stage1", "r000000000001", 5)
    assert counted(place, ours, ["keys"], ("speech",), voices=["en-us"], tts="espeak") == 6
    other = "test_evaluation_keys:engine"
    assert counted(place, ours, ["keys"], ("speech",), voices=["en-us"], tts=other) == 6
    assert counted(place, ours, ["keys"], ("speech",), voices=["en-us"], tts=other) == 0
    outcome = store.connect(place).execute(
        "select tts, voice, count(*), sum(scores[1]) from evaluations group by 1, 2 order by 1").fetchall()  # fmt: skip
    assert [row[:3] for row in outcome] == [("espeak", "en-us", 6), ("other-engine", "en-us", 6)]
    assert outcome[0][3] != pytest.approx(outcome[1][3], abs=1e-3)
    assert [row["tts"] for row in statistics.summary(place, "stage1", "r000000000001", 5)] == ["espeak", "other-engine"]
    with pytest.raises(SaladError, match="en-us is one of espeak and of other-engine; name it by --tts"):
        evaluate(place, ours, ["keys"], ("speech",), voices=["en-us"])


def test_settings_of_a_task_never_stand_in_one_figure(place):
    """With examples it is another number: 0 % and 100 % are not 50 %."""
    model = SpeechLM.build(config(), place).eval()
    ours, teacher = Ours(model, "stage1", "r000000000001", 5), Ours(model, "teacher", teacher=True)
    for who in (ours, teacher):
        evaluate(place, who, ["keys", "keys@2"], ("text",))
    right = dict(store.connect(place).execute(
        "select task, avg(correct_norm::int) from evaluations where contender = 'stage1' group by 1").fetchall())  # fmt: skip
    con = store.connect(place)
    con.register("contenders", pd.DataFrame({"contender": ["stage1"], "run_id": ["r000000000001"], "step": [5], "place": [1]}))
    cells = analysis.by_domain(con)
    by_name = {row.domain: row.value for row in cells[cells.measure == "text"].itertuples()}
    assert by_name == pytest.approx({"keys": right["keys"], "keys@2": right["keys@2"]})
    rows = analysis.by_group(con, analysis.read_study(place, con))
    groups = {row.group: row.text for row in rows.itertuples()}
    assert groups[analysis.ALL] == pytest.approx(right["keys"]) and len(groups) == 2
    assert groups[f"{analysis.ALL} (@2)"] == pytest.approx(right["keys@2"])
    both = statistics.comparisons(place, ("stage1", "r000000000001", 5), ("teacher", None, None))
    assert [row["task"] for row in both] == ["keys", "keys@2"]  # and no row over both


def test_an_item_that_was_changed_is_asked_again(place):
    ours = Ours(SpeechLM.build(config(), place).eval(), "stage1", "r000000000001", 5)
    assert counted(place, ours, ["keys"], ("text",)) == 6
    changed = [dict(item) for item in ITEMS]
    changed[2]["choices"] = ["Fish.", "A boat.", "Paris."]
    changed[3]["answer"] = 1
    write(place, "keys", changed)
    other = Ours(ours.model, "other", "r000000000002", 5)
    evaluate(place, other, ["keys"], ("text",), limit=3)  # it knows the edited item 2, not the edited item 3
    side = ("stage1", "r000000000001", 5)
    (row,) = statistics.comparisons(place, side, ("other", "r000000000002", 5))
    assert row["n"] == 2  # an answer to what is no longer asked is compared with none
    assert counted(place, ours, ["keys"], ("text",)) == 2
    (row,) = statistics.summary(place, *side)
    last = dict(store.connect(place).execute(
        "select item_id, correct_norm from evaluations where contender = 'stage1' order by \"at\"").fetchall())  # fmt: skip
    assert row["items"] == 6 and row["accuracy"] == pytest.approx(sum(last.values()) / 6)


def test_rows_of_before_there_were_fingerprints_are_recognised_where_they_mean_the_same(place, monkeypatch):
    monkeypatch.setattr(spoken, "_recogniser", lambda lab, asr=None: Heard([item["context"] for item in ITEMS]))
    model = SpeechLM.build(config(), place).eval()
    ours, teacher = Ours(model, "stage1", "r000000000001", 5), Ours(model, "teacher", teacher=True)
    evaluate(place, Ours(model, "throwaway", "r000000000009", 5), ["keys"], ("speech",))  # so that the speech is there

    def old(who, modality, voice):
        return [{"eval_id": hash_id("e", who.run_id, who.step, who.name, "keys", modality, voice, item["item_id"]),
                 "run_id": who.run_id, "step": who.step, "contender": who.name, "task": "keys", "modality": modality,
                 "voice": voice, "item_id": item["item_id"], "correct": True, "correct_norm": True, "domain": "keys",
                 "scores": [0.0, -1.0, -2.0], "prediction": "x", "answer": "x"} for item in ITEMS]  # fmt: skip

    voice = told_rows(place, "distinct voice", contender="throwaway")[0][0]
    for who, modality, message in (
        (teacher, "text", None),
        (ours, "text", None),
        (ours, "speech", voice),
        (ours, "cascade", voice),
    ):
        store.publish(place, "evaluations", old(who, modality, message), {"old": [who.name, modality]})
    assert counted(place, teacher, ["keys"], ("text",)) == 0
    assert counted(place, ours, ["keys"], ("text", "speech", "cascade")) == 0
    assert counted(place, ours, ["keys"], ("cascade",), asr="test:other") == 6
    fields = {(row["modality"], row["asr"]): row["gap"] for row in statistics.summary(place, "stage1", "r000000000001", 5)}
    assert fields["speech", None] == 0.0 and fields["text", None] == 0.0
    second = Ours(SpeechLM.build(with_other_llm(place), place).eval(), "teacher", teacher=True)
    for name in ("models/teacher", "models/second"):
        RunFolder.get_or_create(place, "stage1", "r", {"contender": "x", "llm": {"name": name}}).status(state="done")
    assert counted(place, second, ["keys"], ("text",)) == 6  # the old rows may be the first's


def test_a_deaf_contender_hears_another_items_recording_and_the_heard_share_is_told(place):
    ours = Ours(SpeechLM.build(config(), place).eval(), "stage1", "r000000000001", 5)
    assert counted(place, ours, ["keys"], ("text", "speech", "deaf", "silent")) == 24
    assert counted(place, ours, ["keys"], ("deaf",)) == 0
    assert counted(place, ours, ["keys"], ("deaf",), seed=1) == 6
    con = store.connect(place)
    pairs = con.execute("""select s.syntheses, d.syntheses, d.seed from evaluations s join evaluations d using (item_id)
        where s.modality = 'speech' and d.modality = 'deaf' order by d.seed""").fetchall()
    assert len(pairs) == 12 and all(own != other for own, other, _ in pairs)
    for seed in (0, 1):
        recorded = [tuple(other) for _, other, of in pairs if of == seed]
        assert len(set(recorded)) == 6  # every recording is someone's
    assert {tuple(o) for _, o, s in pairs if s == 0} == {tuple(o) for _, o, s in pairs if s == 1}
    assert [o for _, o, s in pairs if s == 0] != [o for _, o, s in pairs if s == 1]
    fields = {row["modality"]: row for row in statistics.summary(place, "stage1", "r000000000001", 5)}
    assert set(fields) == {"text", "speech", "deaf", "silent"} and fields["speech"]["hearing"]
    assert fields["silent"]["speech_s"] == pytest.approx(fields["speech"]["speech_s"])


def test_the_heard_share_is_that_of_the_textbook_and_says_where_it_holds_nothing():
    rng = np.random.default_rng(0)
    n = 2000
    names = [str(i) for i in range(n)]
    side = lambda p: dict(zip(names, (rng.random(n) < p).astype(float), strict=True))  # noqa: E731
    text, deaf, speech = side(0.9), side(0.5), side(0.7)
    result = statistics.heard_share(speech, text, deaf)
    mean = lambda x: np.mean([*x.values()])  # noqa: E731
    assert result.share == pytest.approx((mean(speech) - mean(deaf)) / (mean(text) - mean(deaf)))
    assert result.low < result.share < result.high and result.shows_hearing and result.verdict == "hears"
    # Fieller's interval, which needs no resampling
    s, t, d = (np.array([x[i] for i in names]) for x in (speech, text, deaf))
    a, b = s - d, t - d
    cov = np.cov(a, b) / n
    z = 1.96
    qa, qb, qc = b.mean() ** 2 - z**2 * cov[1, 1], -2 * (a.mean() * b.mean() - z**2 * cov[0, 1]), a.mean() ** 2 - z**2 * cov[0, 0]
    root = np.sqrt(qb**2 - 4 * qa * qc)
    assert (result.low, result.high) == pytest.approx(((-qb - root) / (2 * qa), (-qb + root) / (2 * qa)), abs=0.02)
    deafer = statistics.heard_share(deaf, text, side(0.5))
    assert deafer.low < 0 < deafer.high and "the interval holds 0" in deafer.verdict
    hopeless = statistics.heard_share(side(0.5), side(0.5), side(0.5))
    assert hopeless.share is None and "cannot show hearing" in hopeless.verdict
    assert statistics.heard_share(text, text, {"x": 1.0}) is None


def test_predictions_brought_in_are_not_the_answers_of_an_endpoint_of_their_name(place):
    result = [{"contender": "talker", "task": "keys", "item": item["item_id"], "modality": "text", "text": "A"} for item in ITEMS]
    (place / "told.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result))
    predictions.import_predictions(place, place / "told.jsonl")

    class Talker:
        name, run_id, step, modalities, sample_rate, scores, fingerprint = "talker", None, None, ("text",), 16_000, False, "f0"

        def choose(self, prompts, choices, progress=None):
            return ["B"] * len(prompts)

    assert counted(place, Talker(), ["keys"], ("text",)) == 6 and counted(place, Talker(), ["keys"], ("text",)) == 0
    with pytest.raises(SaladError, match="several contenders called talker"):
        statistics.summary(place, "talker", None, None)
    (row,) = statistics.summary(place, "talker", "f0", None)
    assert row["items"] == 6 and row["accuracy"] == pytest.approx(2 / 6)


def published(place, contender, accuracies, run_id="r000000000001", items=400, seed=0, **columns):
    """Rows of a contender that is right in so many of the items of a modality."""
    rng = np.random.default_rng(seed)
    for modality, share in accuracies.items():
        right = rng.random(items) < share
        store.publish(place, "evaluations", [
            {"eval_id": hash_id("e", contender, run_id, modality, n, columns), "run_id": run_id, "step": 5,
             "contender": contender, "task": "keys", "domain": "keys", "modality": modality,
             "voice": None if modality == "text" else "v",
             "tts": None if modality == "text" else "espeak", "item_id": str(n), "correct": bool(r), "correct_norm": bool(r),
             "prediction": "x", "answer": "x", "parsed": True} | columns
            for n, r in enumerate(right)
        ], {"made": [contender, run_id, modality, columns]})  # fmt: skip


def test_reports_and_notebooks_show_the_heard_share_beside_the_gap_and_say_where_it_holds_0(tmp_path):
    place = tmp_path / "lab"
    place.mkdir()
    published(place, "teacher", {"text": 0.9}, "r00000000000a")
    published(place, "hears", {"text": 0.85, "speech": 0.75, "deaf": 0.5})
    published(place, "deafened", {"text": 0.85, "speech": 0.5, "deaf": 0.5}, "r000000000002", seed=1)
    published(place, "easy", {"text": 0.5, "speech": 0.5, "deaf": 0.5}, "r000000000003", seed=2)
    made = reports.report(place)
    shown = reports.shown(made.rows).set_index("contender")["heard share"]
    assert shown["teacher"] == "–" and "holds 0" not in shown["hears"] and shown["hears"].count(" to ") == 1
    assert shown["deafened"].endswith(", holds 0") and shown["easy"] == "text no better than deaf"
    for message in ("heard share", shown["hears"], "nothing shows that the contender hears"):
        assert message in made.markdown
    message = {row["modality"]: row for row in statistics.summary(place, "hears", "r000000000001", 5)}
    first = made.rows[(made.rows.contender == "hears")].iloc[0]
    assert (first.heard, first.heard_low, first.heard_high) == pytest.approx(
        tuple(message["speech"][name] for name in ("heard_share", "heard_low", "heard_high")))  # fmt: skip


def test_two_recognisers_and_two_synthesisers_are_not_averaged_in_a_report(tmp_path):
    place = tmp_path / "lab"
    place.mkdir()
    published(place, "teacher", {"text": 1.0}, "r00000000000a", items=50)
    published(place, "one", {"text": 1.0, "speech": 1.0}, items=50)
    published(place, "one", {"speech": 0.0}, items=40, tts="other")
    published(place, "one", {"cascade": 1.0}, items=50, asr="good")
    published(place, "one", {"cascade": 0.0}, items=40, asr="bad")
    (row,) = [row for row in reports.report(place).rows.to_dict("records") if row["contender"] == "one"]
    assert (row["speech"], row["cascade"], row["gap"]) == (1.0, 1.0, 0.0)
    result = statistics.summary(place, "one", "r000000000001", 5)
    assert [(row["modality"], row["tts"], row["asr"], row["accuracy"]) for row in result] == [
        ("cascade", "espeak", "bad", 0.0), ("cascade", "espeak", "good", 1.0), ("speech", "espeak", None, 1.0),
        ("speech", "other", None, 0.0), ("text", None, None, 1.0),
    ]  # fmt: skip
