"""`salad diagnose`: M, D and F of speech LLMs as they are, against logits taken by hand from the real classes at toy sizes."""

import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_speech_llms
import torch
from tools import Lines, real_model
from transformers import AutoModelForCausalLM

import store
from salad import SaladError
from salad.data import corpora
from salad.evaluation import diagnosis, passages, speech_llms
from salad.evaluation.scoring import Recording
from salad.models.speech_lm import SpeechLM
from workbench import diagnosis as shown
from workbench import divergences
from workbench.cli import main

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}"
    "[assistant]{% endif %}"
)  # fmt: skip
PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "diagnose.md"
# voxtral's tokenizer is mistral-common's, which declares numpy < 2.4: its test runs where somebody has put it beside the
# environment (pip install --no-deps mistral-common tiktoken pydantic-extra-types pycountry)
KINDS = [kind for kind in tiny_speech_llms.MODELS if kind != "voxtral" or importlib.util.find_spec("mistral_common")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny.lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def texts(place):
    return passages.read_texts(place, "natural")


@pytest.fixture(scope="module")
def ours(place, tmp_path_factory):
    """A checkpoint folder of ours, whose LoRA has moved the student from its teacher."""
    model = SpeechLM.build(tiny.config(), place).eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    folder = tmp_path_factory.mktemp("ours") / "student"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return tiny_speech_llms.qwen2_audio(tmp_path_factory.mktemp("qwen") / "model")


def kl(q, p):
    """KL(q ‖ p) of two rows of logits, in float64."""
    q, p = (np.asarray(x, np.float64) for x in (q, p))
    log_q, log_p = (x - x.max() - np.log(np.exp(x - x.max()).sum()) for x in (q, p))
    return float((np.exp(log_q) * (log_q - log_p)).sum())


@pytest.fixture
def command(capsys):
    """Runs `salad ARGS` in this process: (exit code, stdout, stderr)."""

    def run(*args):
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        out, err = capsys.readouterr()
        return Lines(stop.value.code, out, err)

    return run


def token_rows(place, run, sample, what="m, d, f, token"):
    found = store.connect(place).execute(
        f"select {what} from token_divergences where run_id = ? and sample_id = ? order by position", [run, sample]
    )
    return found.fetchall()


def sound_of(place, one, rate=16_000):
    (sound,) = one.sounds
    return corpora.audio_of(place, sound.row, rate)[: round(sound.end_s * rate)]


# --- by hand ---


def audio_embeddings(kind, folder, model, samples):
    """What a model's own audio tower and projector make of a recording, [A, H]."""
    from transformers import WhisperFeatureExtractor

    features = WhisperFeatureExtractor.from_pretrained(folder)
    if kind == "voxtral":
        mel = features(samples, sampling_rate=16_000, padding=True, truncation=False, pad_to_multiple_of=480_000,
                       return_tensors="pt")["input_features"]  # fmt: skip
        hidden = model.model.audio_tower(mel).last_hidden_state
        return model.model.multi_modal_projector(hidden.reshape(-1, model.config.audio_config.intermediate_size))
    padding = True if kind == "qwen3-omni" else "max_length"  # a longer silence behind it changes the last frames
    made = features(samples, sampling_rate=16_000, padding=padding, truncation=False, return_attention_mask=True,
                    return_tensors="pt")  # fmt: skip
    mel, n = made["input_features"], int(made["attention_mask"].sum())
    if kind == "qwen2-audio":
        half = (n - 1) // 2 + 1
        keys = torch.arange((mel.shape[-1] - 2) // 2 + 1) < half
        mask = torch.zeros(1, 1, len(keys), len(keys)).masked_fill(~keys, float("-inf"))
        hidden = model.model.audio_tower(mel, attention_mask=mask).last_hidden_state[0, : (half - 2) // 2 + 1]
        return model.model.multi_modal_projector(hidden)
    return model.model.get_audio_features(mel[:, :, :n], made["attention_mask"][:, :n]).last_hidden_state


def by_hand(kind, folder, samples, user, answer):
    """Logits [T, V] of an answer after a chat turn that is a recording (`samples`) or a text (`user`)."""
    import transformers

    known = speech_llms.KINDS[kind]
    model = getattr(transformers, known.model).from_pretrained(folder).eval()
    if kind == "voxtral":
        encode = lambda text: [1000 + byte for byte in text.encode()]  # noqa: E731  its tokenizer knows bytes alone
        before, after = [1, 3] + [25] * (samples is not None), [4]
    else:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if kind == "qwen2-audio" else ""
        head, tail = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
        if samples is not None:
            head += "Audio 1: <|audio_bos|>" if kind == "qwen2-audio" else "<|audio_bos|>"
            tail = ("<|audio_eos|>\n" if kind == "qwen2-audio" else "<|audio_eos|>") + tail
        before, after = encode(system + head), encode(tail)
    ids = encode(answer)
    embed = model.get_input_embeddings()
    with torch.no_grad():
        middle = embed(torch.tensor(encode(user))) if samples is None else audio_embeddings(kind, folder, model, samples)
        parts = [embed(torch.tensor(before)), middle, embed(torch.tensor([*after, *ids]))]
        hidden = model.model.language_model(inputs_embeds=torch.cat(parts)[None], use_cache=False).last_hidden_state
        return model.lm_head(hidden)[0, -len(ids) - 1 : -1]


@pytest.mark.parametrize("kind", KINDS)
def test_m_of_a_transformers_model_is_that_of_logits_taken_by_hand(place, texts, tmp_path, kind):
    folder = tiny_speech_llms.MODELS[kind](tmp_path / "model")
    model = speech_llms.load(str(folder), place)  # its kind is read off its config.json
    assert model.kind == kind
    two = texts._replace(passages=texts.passages[:2])
    done = diagnosis.diagnose(place, model, two, controls=("silent",))
    size = len(model.tokenizer)
    for one in two.passages:
        text = by_hand(kind, folder, None, one.text[0], one.answer.strip())[:, :size]
        silence = np.zeros(len(sound_of(place, one)), np.float32)
        for condition, samples in (("speech", sound_of(place, one)), ("silent", silence)):
            speech = by_hand(kind, folder, samples, None, one.answer.strip())[:, :size]
            found = token_rows(place, done.runs[condition], one.sample_id)
            expected = [kl(a, b) for a, b in zip(text, speech, strict=True)]
            assert [row[0] for row in found] == pytest.approx(expected, rel=2e-3, abs=2e-5)
            assert min(expected) > 1e-4 and all(row[1:3] == (None, None) for row in found)
            assert "".join(row[3] for row in found).strip() == one.answer.strip()


@pytest.mark.parametrize("chat", [False, True])
def test_m_d_and_f_of_our_checkpoint_are_those_of_logits_taken_by_hand(place, texts, ours, tmp_path, chat):
    folder = ours
    if chat:
        from salad.config import LLMConfig, SequenceConfig

        tokenizer = tiny.tokenizer()
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(tiny.teacher(place / "models" / "chatty"))
        made = tiny.config(llm=LLMConfig(name="models/chatty", lora_rank=4), sequences=SequenceConfig(prompt="chat"))
        model = SpeechLM.build(made, place).eval()
        folder = tmp_path / "chat"
        model.save_pretrained(folder)
    model = speech_llms.load(str(folder), place)
    done = diagnosis.diagnose(place, model, texts._replace(passages=texts.passages[:2]), controls=())
    lm = SpeechLM.from_pretrained(folder, place).eval()
    teacher = AutoModelForCausalLM.from_pretrained(place / "models" / ("chatty" if chat else "teacher"))
    for one in texts.passages[:2]:
        answer = one.answer.strip() if chat else one.answer
        ids = lm.tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows = {}
        with torch.no_grad():
            after = lm.llm.get_input_embeddings()(torch.tensor([ids]))
            for name, prompt in (("text", one.text), ("speech", [sound_of(place, one, lm.encoder.sample_rate)])):
                inputs = torch.cat([lm.prompt_embeddings(prompt), after], dim=1)
                rows[name] = lm.llm(inputs_embeds=inputs).logits[0, -len(ids) - 1 : -1, : len(lm.tokenizer)]
                if name == "text":
                    rows["base"] = teacher(inputs_embeds=inputs).logits[0, -len(ids) - 1 : -1, : len(lm.tokenizer)]
        found = token_rows(place, done.runs["speech"], one.sample_id)
        for column, (q, p) in enumerate((("text", "speech"), ("base", "speech"), ("base", "text"))):
            expected = [kl(a, b) for a, b in zip(rows[q], rows[p], strict=True)]
            assert [row[column] for row in found] == pytest.approx(expected, rel=2e-3, abs=2e-6)
            assert chat or max(expected) > 1e-3


def test_a_base_llm_gives_d_and_f_over_the_tokens_that_both_know(place, texts, qwen, tmp_path):
    import transformers

    marks = [mark if mark.startswith("<|im_") else f"<|extra_{n}|>" for n, mark in enumerate(tiny_speech_llms.MARKS)]
    tokenizer = transformers.Qwen2TokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer, eos_token="<end>", pad_token="<pad>", unk_token=None
    )
    speech_tokenizer = transformers.AutoTokenizer.from_pretrained(qwen)
    names = sorted(tiny_speech_llms.MARKS, key=speech_tokenizer.convert_tokens_to_ids)
    tokenizer.add_special_tokens({"additional_special_tokens": [marks[tiny_speech_llms.MARKS.index(name)] for name in names]})
    folder = tiny.teacher(tmp_path / "base", seed=5)
    tokenizer.save_pretrained(folder)
    model = speech_llms.load(f"qwen2-audio:{qwen}", place, "with base")
    base = diagnosis.base_of(str(folder), model, place)
    assert base.left_out == len(names) - 2
    one = texts.passages[0]
    done = diagnosis.diagnose(place, model, texts, base, ())
    ids = model.encode(one.answer)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    whole = (
        speech_tokenizer(f"{system}{one.text[0]}<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"] + ids
    )
    llm = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        q = llm(torch.tensor([whole])).logits[0, -len(ids) - 1 : -1]
    text = by_hand("qwen2-audio", qwen, None, one.text[0], one.answer.strip())
    speech = by_hand("qwen2-audio", qwen, sound_of(place, one), None, one.answer.strip())
    both = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) == speech_tokenizer.convert_ids_to_tokens(i)]
    found = token_rows(place, done.runs["speech"], one.sample_id)
    assert [row[1] for row in found] == pytest.approx([kl(a[both], b[both]) for a, b in zip(q, speech, strict=True)], rel=2e-3)
    assert [row[2] for row in found] == pytest.approx([kl(a[both], b[both]) for a, b in zip(q, text, strict=True)], rel=2e-3)


# --- controls and texts ---


def test_a_deaf_control_hears_another_texts_recording_and_a_silent_one_silence(place, texts, ours):
    heard = {}

    class Listens(speech_llms.CheckpointLLM):
        def logits(self, prompt, ids):
            for part in prompt:
                if isinstance(part, Recording):
                    heard.setdefault(tuple(ids), []).append(part)
            return super().logits(prompt, ids)

    model = Listens(SpeechLM.from_pretrained(ours, place).eval(), "listens")
    diagnosis.diagnose(place, model, texts)
    own = {tuple(model.encode(one.answer)): one for one in texts.passages}
    others = []
    for ids, (speech, deaf, silent) in heard.items():
        assert speech.key.startswith(own[ids].synthesis_id) and not deaf.key.startswith(own[ids].synthesis_id)
        assert not silent.samples.any() and len(silent.samples) == len(speech.samples)
        others.append(deaf.key)
    assert sorted(others) == sorted(speech.key for speech, _, _ in heard.values())  # each is heard once, by another text


def test_a_text_is_divided_in_its_recording_where_its_words_end(place, texts):
    by_text = {one.text[0]: one for one in texts.passages}
    one = by_text["The violin has four strings."]
    (sound,) = one.sounds
    said = [word for word in sound.row["words"] if word["char_end"] <= one.start]
    rest = [word for word in sound.row["words"] if word["char_start"] >= one.start]
    assert said[-1]["word"].startswith("strings") and rest[0]["word"] == "The"
    assert said[-1]["end_s"] <= sound.end_s <= max(rest[0]["start_s"], said[-1]["end_s"])
    assert one.answer == " The whale is 25 m long." and one.start == 29


def test_a_text_with_an_answer_is_spoken_whole_and_shown_with_it(tmp_path):
    answers = {text: "Yes, it is." for text in tiny.TEXTS[:3]}
    place = tiny.lab(tmp_path / "lab", answers)
    found = passages.read_texts(place, "natural")
    whole = {one.text[0]: one for one in found.passages}
    assert set(tiny.TEXTS[:3]) <= set(whole) and len(whole) == 6
    one = whole[tiny.TEXTS[0]]
    assert one.answer == " Yes, it is." and one.speech_s == one.sounds[0].row["duration_s"] and one.start == len(tiny.TEXTS[0])
    model = speech_llms.CheckpointLLM(SpeechLM.build(tiny.config(), place).eval(), "fresh")
    done = diagnosis.diagnose(place, model, found, controls=())
    con = store.connect(place)
    card = divergences.card(con, divergences.ScoredCheckpoint(done.runs["speech"], 0, "fresh"), one.sample_id)
    assert card["text"] == f"{tiny.TEXTS[0]}\n\nYes, it is."
    spelt = "".join(card["text"][token["char_start"] : token["char_end"]] for token in card["tokens"])
    assert spelt == "Yes, it is." and card["tokens"][0]["start_s"] is None


def test_a_tasks_right_choice_is_predicted_after_its_spoken_context(tmp_path, place, ours):
    rows = [
        {"item_id": f"t-{n}", "context": text, "choices": ["Fish.", "A book.", "Paris."], "answer": n, "domain": "stories"}
        for n, text in enumerate(["What does the otter eat?", "What does Anna carry?", "Where does Anna live?"])
    ]
    (place / "tasks").mkdir(exist_ok=True)
    (place / "tasks" / "otters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = passages.read_texts(place, "otters", limit=2)
    assert [(one.text[0], one.answer) for one in found.passages] == [
        ("What does the otter eat?", " Fish."), ("What does Anna carry?", " A book."),
    ]  # fmt: skip
    assert all(one.sounds[-1].row["tts"] == "espeak" for one in found.passages)
    model = speech_llms.load(str(ours), place, "on a task")
    done = diagnosis.diagnose(place, model, found)
    assert done.texts.corpus == "otters" and len(token_rows(place, done.runs["speech"], found.passages[0].sample_id)) > 0
    # an item that was edited is not taken for the one that was diagnosed
    (place / "tasks" / "otters.jsonl").write_text(json.dumps(rows[0] | {"answer": 1}) + "\n" + json.dumps(rows[1]) + "\n")
    with pytest.raises(SaladError, match="diagnosed with another answer.*--name"):
        diagnosis.diagnose(place, model, passages.read_texts(place, "otters"))


def test_an_instruction_stands_before_the_prompt_on_both_sides(place):
    found = passages.read_texts(place, "natural", instruction="Go on.")
    assert found.passages[0].text[0].startswith("Go on.\n") and found.passages[0].pieces[0].sound is None
    assert len(found.passages[0].pieces) == 2


# --- tables, views, pages ---


def test_ours_and_theirs_stand_in_one_table_on_the_same_texts_with_intervals(place, texts, ours, qwen):
    few = texts._replace(passages=texts.passages[:4])
    mine = diagnosis.diagnose(place, speech_llms.load(str(ours), place, "mine"), texts)
    theirs = diagnosis.diagnose(place, speech_llms.load(str(qwen), place, "theirs"), few)
    con = store.connect(place)
    sides = [side for side in shown.diagnosed(con) if side.run_id in (mine.runs["speech"], theirs.runs["speech"])]
    assert {tuple(side.controls) for side in sides} == {("deaf", "silent")} or len(sides[0].controls) == 2
    sides.sort(key=lambda side: side.label)
    table = shown.compared(con, sides)
    assert table.model.tolist() == ["mine", "theirs"] and table.texts.tolist() == [4, 4]
    ids = [one.sample_id for one in few.passages]
    for row, run in zip(table.to_dict("records"), (mine.runs, theirs.runs), strict=True):
        total, n, chars, deaf = 0.0, 0, 0, 0.0
        for one in few.passages:
            m = [value for (value,) in token_rows(place, run["speech"], one.sample_id, "m")]
            total, n = total + sum(m), n + len(m)
            chars += len(one.answer) if row["model"] == "mine" else len(one.answer)
            deaf += sum(value for (value,) in token_rows(place, run["deaf"], one.sample_id, "m"))
        assert row["m"] == pytest.approx(total / n) and row["tokens"] == n and row["m_low"] < row["m"] < row["m_high"]
        assert row["per_char"] == pytest.approx(total / chars) and row["deaf"] == pytest.approx(deaf / n)
        assert row["heard"] == pytest.approx(1 - total / deaf) and row["heard_low"] <= row["heard"] <= row["heard_high"]
    first, second = table.to_dict("records")
    assert second["difference"] == pytest.approx(second["per_char"] - first["per_char"])
    assert second["difference_low"] < second["difference"] < second["difference_high"]
    assert first["d"] > 0 and first["f"] > 0 and np.isnan(second["d"])
    assert len(shown.compared(con, sides, ids[:2])) == 2 and shown.compared(con, sides, ids[:2]).texts.tolist() == [2, 2]


def test_views_show_diagnoses_beside_scorings_in_whatever_spans_the_lab_compares(tmp_path, ours):
    place = tiny.lab(tmp_path / "lab")
    (place / "study.json").write_text(json.dumps({"scoring": {"span_units": [2, 3]}}))
    from salad.passes.score import score

    lm = SpeechLM.from_pretrained(ours, place).eval()
    for spans in ((1, 4), (2, 3)):
        score(place, lm, "r00000000000a", 5, corpora.of_speech(store.connect(place), ["natural"]), "natural", span_units=spans)
    done = diagnosis.diagnose(place, speech_llms.CheckpointLLM(lm, "mine"), passages.read_texts(place, "natural"), controls=())
    con = store.connect(place)
    seen = con.execute("select distinct run_id, span_min, span_max from misalignment order by all").fetchall()
    assert seen == sorted([("r00000000000a", 2, 3), (done.runs["speech"], 0, 0)])
    listed = divergences.checkpoints(con)
    assert listed.diagnosis.tolist() == [False, True] and " · diagnosis · " in listed.label.iloc[1]
    assert divergences.two(listed) == (listed.label.iloc[0], listed.label.iloc[0])
    scored = divergences.read(con, [divergences.ScoredCheckpoint(done.runs["speech"], 0, "mine")])
    assert divergences.facts(con, scored, "m").n_texts.tolist() == [6]
    assert set(divergences.by_kind(con, scored, "m").kind) <= set(divergences.KINDS) - {"end of turn"}


def test_a_lab_of_diagnoses_alone_has_a_report_clusters_and_a_page_to_listen_to(tmp_path, ours, command):
    place = tiny.lab(tmp_path / "lab")
    found = command("diagnose", str(ours), "--texts", "natural", "--k", "2", "--lab", str(place))
    assert found.code == 0, found.err
    assert "student" in found.out and "heard share" in found.out and "where student hears worst" in found.out
    page = Path(re.search(r"listen: (.*)", found.out)[1]).read_text()
    assert page.count("data:audio/flac;base64,") == 2 and page.count("<section>") == 2
    con = store.connect(place)
    (side,) = shown.diagnosed(con)
    worst = shown.worst_clusters(con, side)
    assert worst.m.is_monotonic_decreasing and worst.texts.sum() == 6 and worst.deaf.notna().all()
    told = command("report", "--lab", str(place))
    assert told.code == 0 and "Diagnosed models" in told.out
    assert (place / "report" / "diagnoses.tex").is_file() and "hears worst" in (place / "report.md").read_text()
    again = command("diagnose", str(ours), "--texts", "natural", "--lab", str(place))
    assert again.code == 0 and "note:" not in again.out  # the clustering is there, and holds these texts


# --- a class of one's own, from outside ---


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """The how-to page's class in a module of its own, outside the package; its models by a folder of models."""
    source = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    (tmp_path / "my_models.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SALAD_MODELS", str(tmp_path / "models"))
    yield tmp_path
    sys.modules.pop("my_models", None)


def test_a_class_of_ones_own_takes_under_30_lines_by_the_how_to_page(outside, place, texts, command):
    import arena_lab

    folder = tiny.teacher(outside / "models" / "smollm2-135m-instruct")
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    tokenizer.save_pretrained(folder)
    arena_lab.recogniser(outside / "models" / "whisper-tiny.en")
    body = (outside / "my_models.py").read_text().partition("class Cascade")[2]
    assert len([line for line in body.splitlines() if line.strip()]) < 30
    found = command("diagnose", "my_models:Cascade", "--texts", "natural", "--control", "deaf", "--lab", str(place), "--name",
                    "own", "--base", "HuggingFaceTB/SmolLM2-135M-Instruct", "--k", "2")  # fmt: skip
    assert found.code == 0, found.err
    con = store.connect(place)
    (side,) = [side for side in shown.diagnosed(con) if side.label == "own"]
    assert list(side.controls) == ["deaf"]
    import my_models

    own = my_models.Cascade()
    one = texts.passages[0]
    heard = own.recogniser.transcribe([sound_of(place, one)])[0]
    logits = {}
    for name, words in (("text", one.text[0]), ("speech", heard)):
        ids = own.tokenizer(one.answer.strip(), add_special_tokens=False)["input_ids"]
        before = own.tokenizer(f"[{words}]", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits[name] = own.llm(torch.tensor([before + ids])).logits[0, -len(ids) - 1 : -1, : len(own.tokenizer)]
    expected = [kl(a, b) for a, b in zip(logits["text"], logits["speech"], strict=True)]
    rows = token_rows(place, side.run_id, one.sample_id)
    assert [row[0] for row in rows] == pytest.approx(expected, rel=2e-3, abs=1e-6)
    assert [row[1] for row in rows] == pytest.approx(expected, rel=2e-3, abs=1e-6)  # its base is itself: D is M, and F is 0
    assert [row[2] for row in rows] == [0.0] * len(rows)


# --- interrupted, and bad input ---


def test_interrupted_it_goes_on_where_it_was_and_measures_nothing_twice(place, texts, ours, monkeypatch):
    monkeypatch.setattr(diagnosis, "PART", 2)
    calls = []

    class Stops(speech_llms.CheckpointLLM):
        stop = None

        def logits(self, prompt, ids):
            calls.append(tuple(ids))
            if len(calls) == self.stop:
                raise KeyboardInterrupt
            return super().logits(prompt, ids)

    model = Stops(SpeechLM.from_pretrained(ours, place).eval(), "stops")
    model.stop = 11  # in the third text: two are published
    with pytest.raises(KeyboardInterrupt):
        diagnosis.diagnose(place, model, texts, controls=("deaf", "silent"))
    (status,) = store.connect(place).execute(
        "select status from runs where config->>'contender' = 'stops'").fetchone()  # fmt: skip
    assert status == "stopped"
    calls.clear()
    model.stop = None
    done = diagnosis.diagnose(place, model, texts, controls=("deaf", "silent"))
    assert len(set(calls)) == 4 and len(calls) == 4 * 4  # one reading and three hearings of each text that was left
    con = store.connect(place)
    assert con.execute("select status from runs where run_id = ?", [done.runs["speech"]]).fetchone() == ("done",)
    rows = con.execute("select run_id, count(*), count(distinct sample_id) from raw.divergences where run_id in "
                       "(select unnest(?)) group by 1", [list(done.runs.values())]).fetchall()  # fmt: skip
    assert sorted(rows) == sorted((run, 6, 6) for run in done.runs.values())
    calls.clear()
    diagnosis.diagnose(place, model, texts, controls=("deaf", "silent"))
    assert not calls
    whole = diagnosis.diagnose(place, speech_llms.CheckpointLLM(model.model, "whole"), texts, controls=())
    con, rows = store.connect(place), "select sample_id, m, d, f from raw.divergences where run_id = ? order by 1"
    assert con.execute(rows, [done.runs["speech"]]).fetchall() == con.execute(rows, [whole.runs["speech"]]).fetchall()


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Folders that are no speech LLMs."""
    folder = tmp_path_factory.mktemp("odd")
    tiny.teacher(folder / "text-llm")
    (folder / "ultravox").mkdir()
    told = {"model_type": "ultravox", "auto_map": {"AutoConfig": "ultravox_config.UltravoxConfig"}}
    (folder / "ultravox" / "config.json").write_text(json.dumps(told))
    (folder / "own_models.py").write_text(
        "from salad.evaluation.speech_llms import SpeechLLM\nclass NoLogits(SpeechLLM):\n    tokenizer = 1\nclass Other: pass\n"
    )
    return folder


def test_bad_input_is_one_clear_line(place, ours, qwen, odd, tmp_path, monkeypatch, command):
    monkeypatch.syspath_prepend(odd)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "texts.txt").write_text("A text.\n")
    reversed_texts = [text[::-1] for text in tiny.TEXTS]
    monkeypatch.setattr(tiny, "TEXTS", reversed_texts)
    stranger = tiny.teacher(tmp_path / "stranger")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(odd)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = sorted((place / "tables").rglob("*.parquet"))
    for args, told in (
        (["no/such-model", "--texts", "natural"], "model 'no/such-model' cannot be loaded"),
        (["r0123456789ab", "--texts", "natural"], "no run 'r0123456789ab'"),
        ([str(odd / "text-llm"), "--texts", "natural"], "of type qwen2, which has no speech side"),
        ([f"qwen3-omni:{qwen}", "--texts", "natural"], "is no qwen3-omni: it is of type qwen2_audio"),
        ([str(odd / "ultravox"), "--texts", "natural"], "transformers .* has no class for it, and code that comes with a model"),
        (["own_models:Other", "--texts", "natural"], "does not derive from salad.evaluation.speech_llms.SpeechLLM"),
        (["own_models:NoLogits", "--texts", "natural"], "lacks logits"),
        (["own_models:Nothing", "--texts", "natural"], "has no 'Nothing'"),
        ([str(ours), "--texts", "nothing"], "no such corpus, speech folder or task; the lab has .*natural"),
        ([str(ours), "--texts", str(tmp_path / "texts.txt")], "not in the lab yet.*salad prepare text"),
        ([str(ours), "--texts", "natural", "--tts", "nobody"], 'unknown TTS "nobody"'),
        ([str(ours), "--texts", "natural", "--voices", "martian"], "espeak"),
        ([str(ours), "--texts", "natural", "--limit", "0"], "--limit 0"),
        ([str(ours), "--texts", "natural", "--limit", "1"], "no other for the deaf control"),
        ([str(ours), "--texts", "natural", "--control", "blind"], "--control blind: there are deaf, silent and none"),
        ([str(ours), "--texts", "natural", "--base", str(stranger)], "knows the LLM that it was made from"),
        ([str(qwen), "--texts", "natural", "--base", str(stranger)], "its tokenizer is not that of .*: id"),
        ([str(ours)], "texts"),
    ):  # fmt: skip
        found = command("diagnose", *args, "--lab", str(place))
        assert found.code == 2 and len(found.err.strip().splitlines()) == 1, (args, found)
        assert re.search(told, found.err), (args, found.err)
    assert before == sorted((place / "tables").rglob("*.parquet"))  # nothing half-written


def test_recordings_without_transcript_or_word_times_are_named(tmp_path, ours, command):
    place = tiny.lab(tmp_path / "lab")
    con = store.connect(place)
    rows = con.execute("select * from syntheses").to_arrow_table().to_pylist()
    bare = [row | {"synthesis_id": f"y{n:012x}", "speech": "bare", "words": []} for n, row in enumerate(rows)]
    lost = [row | {"synthesis_id": f"y{n + 99:012x}", "speech": "lost", "sample_id": f"s{n:012x}"} for n, row in enumerate(rows)]
    for folder, made in (("bare", bare), ("lost", lost)):
        store.publish(place, "syntheses", made, {"speech": folder})
    for folder, told in (("bare", "6 have no word times.*salad prepare speech"), ("lost", "no.* recordings has a transcript")):
        found = command("diagnose", str(ours), "--texts", folder, "--lab", str(place))
        assert found.code == 2 and re.search(f"{folder} has nothing to diagnose on: .*{told}", found.err), found.err


def test_recordings_that_are_longer_than_a_model_hears_are_left_out_and_told(place, texts, qwen):
    model = speech_llms.load(str(qwen), place, "short ears")
    assert model.longest_s == 30.0  # its processor would cut the rest off in silence
    model.longest_s = 2.0
    long = [one for one in texts.passages if one.speech_s > 2.0]
    done = diagnosis.diagnose(place, model, texts, controls=())
    assert 0 < len(long) < 6 and len(done.texts.passages) == 6 - len(long)
    assert done.texts.notes == [f"{len(long)} recordings are longer than the 2 s that short ears hears: left out"]


def test_weights_that_a_folder_lacks_are_refused_and_never_random(place, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tiny_speech_llms.qwen2_audio(tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lost = next(name for name in weights if "multi_modal_projector" in name)
    save_file({name: value for name, value in weights.items() if name != lost}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SaladError, match="lacks 1 of its class's weights"):
        speech_llms.load(str(folder), place)


# --- real weights ---


@pytest.mark.real
def test_a_speech_lm_of_real_parts_that_has_learned_nothing_is_shown_to_be_deaf(place, tmp_path):
    from salad.config import AdapterConfig, EncoderConfig, LLMConfig

    torch.set_num_threads(1)
    config = tiny.config(
        llm=LLMConfig(name=str(real_model("smollm2-135m-instruct")), lora_rank=4),
        encoder=EncoderConfig(name=str(real_model("whisper-tiny.en"))),
        adapter=AdapterConfig(layers=1, width=64, mlp=128, heads=4, kv_heads=2, match_embedding_rms=True),
    )
    lm = SpeechLM.build(config, place).eval()
    done = diagnosis.diagnose(place, speech_llms.CheckpointLLM(lm, "untrained"), passages.read_texts(place, "natural"))
    con = store.connect(place)
    (side,) = [side for side in shown.diagnosed(con) if side.run_id == done.runs["speech"]]
    row = shown.compared(con, [side]).to_dict("records")[0]
    assert row["m"] > 0.5 and row["f"] == 0.0 and row["d"] == row["m"]  # LoRA is new: on text it is its teacher
    assert row["heard_low"] < 0.1 and "It hears" not in shown.verdict(row)
    assert os.environ.get("HF_HUB_OFFLINE", "1") == "1"
