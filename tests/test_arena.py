"""The A/B app: who answers, what an answer and its divergence are, what is refused, and its API through clients."""

import json
import os
import re
import subprocess
import sys
import threading

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
import torch
from arena_lab import FREE, ITEMS, make
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

import store
from salad import SaladError
from salad.runs import RunFolder
from workbench import arena
from workbench.arena import answers, models, pages, questions, safety, service
from workbench.arena.__main__ import main
from workbench.arena.app import HERE, Arena

FILE = {"_type": "gradio.FileData"}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return make(tmp_path_factory.mktemp("arena") / "lab")


@pytest.fixture(scope="module")
def study(lab):
    return service.ArenaService(lab)


@pytest.fixture(scope="module")
def served(lab):
    app = arena.build(lab)
    _, address, _ = app.launch(prevent_thread_lock=True)
    yield app, address.rstrip("/")
    app.close(verbose=False)


@pytest.fixture(scope="module")
def client(served):
    return Client(served[1], verbose=False)


def votes(lab) -> list[dict]:
    with store.connect(lab) as con:
        return con.execute('SELECT * FROM votes ORDER BY "at"').df().to_dict("records")


def asked(study, modality, name="stage2_active", **how) -> answers.Answer:
    question = study.listener.ask(item_id="tiny-0")
    who = models.pick(models.contenders(study.lab), name)
    return answers.Answer(study.models, who, modality, question, study.listener.items, **how).run()


# --- who answers, and how they are asked ---


def test_finished_runs_answer_and_the_teacher_stands_first(lab):
    RunFolder.get_or_create(lab, "stage1", "r", {"contender": "half"}).status(state="running")
    results = models.contenders(lab)
    assert [(c.name, c.step) for c in results] == [("teacher", 5), ("stage2_active", 9), ("stage1", 8), ("stage1", 4)]
    assert results[0].modalities == ("text", "cascade") and results[1].modalities == ("text", "speech", "cascade")
    assert models.pick(results, "stage1").step == 8 and models.pick(results, results[3].key).step == 4
    with pytest.raises(SaladError, match="did you mean stage1"):
        models.pick(results, "stage1x")


def test_a_lab_without_a_model_says_how_to_get_one(tmp_path):
    with pytest.raises(store.UserError, match="salad demo"):
        arena.build(tmp_path)


@pytest.mark.parametrize(("name", "modality"), [("stage2_active", "text"), ("stage2_active", "speech"), ("teacher", "text")])
def test_an_answer_is_what_the_model_streams(study, name, modality):
    """Side by side with others and with the teacher's divergence, it says what the model alone says."""
    answer = asked(study, modality, name)
    model, question, is_teacher = study.models.get(answer.contender), answer.question, name == "teacher"
    prompt = [question.samples if modality == "speech" else question.text]
    alone = [streamed.token for streamed in model.stream(prompt, len(answer.tokens), stop=(), teacher=is_teacher)]
    assert answer.text == model.tokenizer.decode(alone) and answer.tokens
    assert answer.text == "".join(token.text for token in answer.tokens) and 0 < answer.first_s <= answer.total_s
    assert is_teacher or answer.why == "12 tokens"


@torch.no_grad()
def test_divergence_is_the_kl_from_the_teacher_on_the_written_question(study):
    """Against whole forward passes in float64, without a cache; teacher and student see the same answer so far."""
    answer = asked(study, "speech")
    model = study.models.get(answer.contender)
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ids, question = [], answer.question
    for token in answer.tokens:
        after = torch.tensor([[model.prefix, *encode(question.text), *ids]])
        with model.teacher.switched():
            q = model.teacher.llm(input_ids=after, use_cache=False).logits[0, -1]
        recorded = model.prompt_embeddings([question.samples])
        embedded = model.llm.get_input_embeddings()(torch.tensor([ids], dtype=torch.long))
        p = model.llm(inputs_embeds=torch.cat([recorded, embedded], 1), use_cache=False).logits[0, -1]
        q, p = (x[: model.vocab_size].double().log_softmax(-1) for x in (q, p))
        assert token.d == pytest.approx(float((q.exp() * (q - p)).sum()), abs=1e-4)
        assert token.teachers[0][1] == pytest.approx(float(q.exp().max()), abs=1e-4)
        ids.append(int(p.argmax()))
    assert max(token.d for token in answer.tokens) > 0.01
    assert all(token.d == 0 for token in asked(study, "text", "teacher").tokens)


def test_the_cascade_reads_the_transcript_and_the_prompt_comes_from_the_checkpoint(study):
    answer = asked(study, "cascade", "teacher")
    assert answer.question.heard is not None and answer.question.cer > 0
    assert answers.prompt_of({"prompt": "plain"}) == answers.Prompt()
    assert answers.prompt_of({"prompt": "plain", "answering": FREE}).max_new_tokens == 12
    assert answers.prompt_of({}, shots=2).shots == 2
    for wrong in ({"prompt": "poem"}, {"answering": {"shotz": 1}}):
        with pytest.raises(SaladError, match="poem|shotz"):
            answers.prompt_of(wrong)
    shots = answers.shots_before(study.listener.items, ITEMS[0][0], 5, seed=0)
    assert ITEMS[0][0] not in shots and shots.count("\n") == 2 and "France? Rome." in shots
    with pytest.raises(SaladError, match="does not answer speech"):
        asked(study, "speech", "teacher")


def test_a_base_models_recipe_asks_after_answered_items_and_the_miniatures_does_not():
    """A base model continues a question; after answered ones it answers. The checkpoint says how many."""
    from salad import recipes
    from salad.models.speech_lm import settings_of

    shots = {name: answers.prompt_of(settings_of(recipes.get(name))).shots for name in recipes.names()}
    assert {name for name, n in shots.items() if n == 0} == {"miniature_stage1", "miniature_stage2"}
    assert shots["qwen2_5_3b_stage2"] == 5 and answers.prompt_of(settings_of(recipes.get("smollm2_360m_stage1")), 1).shots == 1


def test_sampling_repeats_with_its_seed(study):
    texts = [asked(study, "text", temperature=1.5, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("text", "ends"),
    [(" Bark.", True), (" In St.", False), (" In St. Louis.", True), (' "Yes!"', True), (" Dr.", False),
     (" J.", False), ("", False), (" 98 °C", False), (" Why?", True)],
)  # fmt: skip
def test_where_a_sentence_ends(text, ends):
    assert answers.ends_sentence(text) is ends


def test_an_answer_that_tells_how_it_was_asked_is_noticed():
    for text in ("The audio says hello.", "I heard a beaver.", "As you typed, bark.", "In this recording, fish"):
        assert answers.gives_away(text), text
    for text in ("Bark.", "The beaver hears well.", "An audio book."):
        assert not answers.gives_away(text), text


def test_stopping_ends_an_answer_even_while_it_is_computed(study):
    answer = answers.Answer(
        study.models,
        models.pick(models.contenders(study.lab), "stage2_active"),
        "text",
        study.listener.ask(item_id="tiny-0"),
        [],
    )
    assert answer.step() and answer.step()
    with study.models.lock:
        thread = threading.Thread(target=answer.stop)
        thread.start()
        thread.join(5)
    assert not thread.is_alive() and not answer.step() and len(answer.tokens) == 2 and answer.why == "stopped"


# --- what can be asked ---


def test_recordings_of_any_rate_and_channels_are_converted(tmp_path):
    tone = np.sin(np.arange(96_000) * 440 * 2 * np.pi / 96_000) * 0.5
    soundfile.write(tmp_path / "x.wav", np.repeat(tone[:, None], 8, 1), 96_000)
    samples, notes = questions.read_audio(tmp_path / "x.wav")
    assert len(samples) == 16_000 and samples.dtype == np.float32 and 0.3 < np.abs(samples).max() <= 1
    assert notes == ["8 channels were mixed into one", "96 kHz was converted to 16 kHz"]


def sounds(folder) -> dict:
    """Files that are no question, and what is said of each."""
    noise = np.random.default_rng(0).normal(0, 0.2, 8000 * 600)
    soundfile.write(folder / "silence.wav", np.zeros(32_000), 16_000)
    soundfile.write(folder / "music.flac", noise, 8000)
    soundfile.write(folder / "click.wav", np.ones(100), 16_000)
    soundfile.write(folder / "nan.wav", np.full(32_000, np.nan), 16_000, subtype="FLOAT")
    (folder / "text.wav").write_text("What does the otter eat?")
    (folder / "empty.wav").write_bytes(b"")
    return {"silence.wav": "nothing can be heard", "music.flac": "lasts 600 s; a question may last 30 s",
            "click.wav": "too short", "nan.wav": "nothing can be heard", "text.wav": "not audio",
            "empty.wav": "not audio", "missing.wav": "not audio"}  # fmt: skip


def test_what_is_no_question_is_said_plainly(study, tmp_path):
    for name, message in sounds(tmp_path).items():
        with pytest.raises(SaladError, match=message):
            questions.read_audio(tmp_path / name)
    for text, message in (("", "no question"), ("  \x00\n", "no question"), ("a" * 401, "401 characters")):
        with pytest.raises(SaladError, match=message):
            study.listener.ask(text=text)
    with pytest.raises(SaladError, match="says nothing|short|no words"):
        study.listener.ask(text="___")


def test_typed_items_are_their_items(study):
    result = study.listener.ask(text=ITEMS[1][0])
    assert result.question_id == "tiny-1" and result.voice == "en-us@rate=195" and result.duration_s > 0.5
    other = study.listener.ask(text="Who bakes bread?")
    assert other.question_id[0] == "q" and other.question_id == study.listener.ask(text="Who bakes  bread?").question_id


# --- votes ---


def complete(study, **how) -> service.SideBySide:
    comparison = study.compare(study.listener.ask(item_id="tiny-1"), "teacher/text", "stage2_active/speech", **how)
    for answer in comparison.answers.values():
        answer.run()
    return comparison


def test_a_vote_tells_who_was_on_which_side(study):
    comparison = complete(study, seed=7)
    study.vote(comparison.id, "right", " Ada ")
    row = votes(study.lab)[-1]
    assert (row["left_contender"], row["left_modality"], row["left_step"]) == ("teacher", "text", 5)
    assert (row["right_contender"], row["right_modality"], row["right_step"]) == ("stage2_active", "speech", 9)
    assert row["right_run_id"] == comparison.answers["right"].contender.run_id and row["question_id"] == "tiny-1"
    assert (row["choice"], row["voter"], row["blind"], row["seed"]) == ("right", "Ada", False, 7)
    spent = json.loads(row["latencies"])
    assert spent["right"]["tokens"] == 12 and 0 < spent["left"]["first_s"] <= spent["left"]["total_s"]
    with pytest.raises(store.UserError, match="has its vote already: right"):
        study.vote(comparison.id, "left")


def test_a_blind_vote_needs_the_question_heard_and_whole_answers(study):
    comparison, before = complete(study, blind=True), len(votes(study.lab))
    assert set(comparison.facts(veiled=True)["left"]) == {"text"}
    assert not re.search("stage2|teacher|speech", json.dumps(comparison.facts(veiled=True)["right"]))
    with pytest.raises(store.UserError, match="listen"):
        study.vote(comparison.id, "tie")
    with pytest.raises(store.UserError, match="vote first"):
        study.save(comparison.id)
    comparison.heard = True
    for choice, message in (("maybe", "no choice"), ("tie", None)):
        if message is None:
            study.vote(comparison.id, choice)
        else:
            with pytest.raises(store.UserError, match=message):
                study.vote(comparison.id, choice)
    begun = study.compare(study.listener.ask(item_id="tiny-1"), "teacher/text", "stage1/speech")
    with pytest.raises(store.UserError, match="not complete"):
        study.vote(begun.id, "left")
    for answer in begun.answers.values():
        answer.stop()
    with pytest.raises(store.UserError, match="stopped half-way"):
        study.vote(begun.id, "left")
    assert len(votes(study.lab)) == before + 1


def test_sides_are_shuffled_by_a_seed(study):
    pool = ["teacher/text", "stage2_active/speech"]
    drawn = [study.draw(pool, seed)[:2] for seed in range(40)]
    assert drawn == [study.draw(pool, seed)[:2] for seed in range(40)]
    assert 8 < sum(left == pool[0] for left, _ in drawn) < 32
    with pytest.raises(store.UserError, match="at least two"):
        study.draw(pool[:1] * 2, 0)


def test_saving_keeps_texts_and_no_sound_and_a_link_opens_nothing_else(study):
    name = study.save(complete(study).id)
    kept = study.saved(name)
    assert kept["text"] == ITEMS[1][0] and kept["right"]["tokens"][0]["d"] >= 0 and study.history()[0][0]["comparison"]
    assert (study.lab / "arena" / f"{name}.json").stat().st_size < 60_000
    for wrong in ("../study", "a" * 13, "", "a0123456789ab"):
        with pytest.raises(store.UserError, match="no comparison is saved"):
            study.saved(wrong)


def test_a_recording_becomes_a_test_item_once_and_only_a_recording(study, tmp_path):
    item = study.listener.ask(item_id="tiny-2")
    with pytest.raises(SaladError, match="recorded or uploaded"):
        questions.keep_recording(study.lab, item)
    soundfile.write(tmp_path / "me.wav", item.samples, 16_000)
    question = study.listener.ask(text=ITEMS[2][0], audio=tmp_path / "me.wav")
    name = questions.keep_recording(study.lab, question)
    assert name == questions.keep_recording(study.lab, question)
    free = study.listener.ask(text="Who bakes bread?", audio=tmp_path / "me.wav")
    other = questions.keep_recording(study.lab, free)
    with store.connect(study.lab) as con:
        rows = con.execute(
            "SELECT synthesis_id, voice, tts, text, corpus FROM syntheses JOIN samples USING (sample_id) "
            "WHERE speech = 'recorded' ORDER BY corpus"
        ).fetchall()
        assert rows == [
            (other, "recorded", "recorded", "Who bakes bread?", "asked"),
            (name, "recorded", "recorded", ITEMS[2][0], "tiny"),
        ]
        flac = store.audio(con, name)
    (tmp_path / "kept.flac").write_bytes(flac)
    assert np.abs(soundfile.read(tmp_path / "kept.flac")[0] - question.samples).max() < 1e-3


# --- what is shown ---


def test_nothing_that_was_said_is_markup():
    evil = "<img src=x onerror=alert(1)>"
    token = {"text": evil, "d": 0.5, "ours": [(evil, 0.5)], "teachers": [(evil, 0.5)]}
    facts = {"contender": evil, "run_id": None, "step": None, "modality": "text", "text": evil, "ended": evil,
             "first_s": 0, "total_s": 0, "n_tokens": 1, "d": 0.5, "gives_away": True, "tokens": [token]}  # fmt: skip
    question = {
        "text": evil,
        "heard": evil,
        "cer": 0.1,
        "answer": evil,
        "voice": evil,
        "duration_s": 1,
        "notes": [evil],
    }
    for page in (pages.card(facts, evil), pages.card(facts, evil, veiled=True), pages.question_html(question)):
        assert "<img" not in page and "&lt;img" in page
    assert "--tint:29%" in pages.card(facts, "Left") and "0.500 nats" in pages.card(facts, "Left")


def test_the_page_says_that_the_voices_were_synthetic(study, lab):
    assert "synthetic" not in pages.about(study)
    (lab / "study.json").write_text(json.dumps({"config": {"natural_voices": ["en-us+m1"]}}))
    assert "synthetic voices only" in pages.about(study)


# --- through the API ---


def test_a_script_asks_and_votes(client, lab):
    assert "teacher@" in client.predict(api_name="/contenders")[0]
    reply = client.predict(question=ITEMS[0][0], left="stage1/text", right="stage2_active/speech", cascade=True, api_name="/ask")
    assert reply["left"]["contender"] == "stage1" and reply["cascade"]["modality"] == "cascade" and reply["cer"] >= 0
    result = client.predict(comparison=reply["comparison"], choice="tie", voter="script", api_name="/vote")
    assert result["choice"] == "tie" and votes(lab)[-1]["voter"] == "script"
    blind = client.predict(blind=True, seed=5, api_name="/ask")
    assert set(blind["left"]) == {"text"} and "stage2" not in json.dumps(blind)
    with pytest.raises(AppError, match="listen to the question"):
        client.predict(comparison=blind["comparison"], choice="left", api_name="/vote")
    client.predict(comparison=blind["comparison"], api_name="/heard")
    assert client.predict(comparison=blind["comparison"], choice="left", api_name="/vote")["left"]["contender"]
    assert "too few votes" in client.predict(api_name="/results")[0]


def test_bad_questions_get_one_line_through_the_api(client, tmp_path):
    for name, message in sounds(tmp_path).items():
        if name != "missing.wav":
            with pytest.raises(AppError, match=message):
                client.predict(audio=handle_file(tmp_path / name), api_name="/ask")
    for how, message in (
        ({}, "no question"),
        ({"item": "nope"}, "no item"),
        ({"question": "a", "left": "x"}, "no side"),
        ({"question": "Who?", "right": "stage9/speech"}, "no contender"),
    ):
        with pytest.raises(AppError, match=message) as caught:
            client.predict(**how, api_name="/ask")
        assert "\n" not in str(caught.value)


def test_ten_clients_at_once_lose_no_vote(served, lab):
    before, failures = len(votes(lab)), []

    def visit(number):
        try:
            own = Client(served[1], verbose=False)
            for _ in range(2):
                reply = own.predict(item=f"tiny-{number % 3}", api_name="/ask")
                own.predict(comparison=reply["comparison"], choice="right", voter=f"many-{number}", api_name="/vote")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    new = votes(lab)[before:]
    assert len(new) == 20 and {row["voter"] for row in new} == {f"many-{n}" for n in range(10)}


def test_only_what_was_uploaded_is_read(served, lab, tmp_path):
    soundfile.write(tmp_path / "private.wav", np.sin(np.arange(16_000) / 20) * 0.5, 16_000)
    outside = [str(tmp_path / "private.wav"), "/etc/passwd", "https://example.com/x.wav", "file:///etc/passwd",
               f"{os.environ['GRADIO_TEMP_DIR']}/../../../etc/passwd"]  # fmt: skip
    for path in outside:
        body = {"data": ["", {"path": path, "meta": FILE}, "", "", "", "", False, False, 0, 0]}
        begun = httpx.post(f"{served[1]}/gradio_api/call/ask", json=body).json()["event_id"]
        result = httpx.get(f"{served[1]}/gradio_api/call/ask/{begun}", timeout=60).text
        assert "event: error" in result and "event: complete" not in result, path
        with pytest.raises(gr.Error, match="upload"):
            safety.refuse_foreign_files([{"deep": [{"path": path, "meta": FILE}]}])


def test_only_one_folder_is_served(served, lab):
    app, address = served
    for path in (
        "/etc/passwd",
        f"{lab}/study.json",
        f"{lab}/models/teacher/config.json",
        "../../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "http://example.com/",
        "https%3A//example.com",
        "pyproject.toml",
        str(HERE / "app.py"),
    ):
        assert httpx.get(f"{address}/gradio_api/file={path}").status_code in (403, 404), path
    assert httpx.get(f"{address}/gradio_api/proxy=https://a.hf.space/").status_code == 403
    page = httpx.get(address)
    assert page.status_code == 200 and "default-src 'self'" in page.headers["content-security-policy"]
    assert app.share is False and app.analytics_enabled is False and address.startswith("http://127.0.0.1")


def test_an_upload_is_limited_in_size(served, tmp_path):
    body = b"RIFF" + bytes(21 * 1024 * 1024)
    fields = httpx.post(f"{served[1]}/gradio_api/upload", files={"files": ("big.wav", body)}, timeout=60)
    assert fields.status_code == 413 and "maximum allowed size" in fields.text


def test_another_host_needs_a_password_and_visitors_too(lab, capsys, monkeypatch):
    monkeypatch.delenv("SALAD_ARENA_PASSWORD", raising=False)
    assert main(["--lab", str(lab), "--host", "0.0.0.0"]) == 2
    output = capsys.readouterr().err
    assert "give --password" in output and output.count("\n") == 1
    monkeypatch.setattr(Arena, "block_thread", lambda self: visited.append(httpx.get(self.local_url)))
    visited = []
    assert main(["--lab", str(lab), "--password", "thyme"]) == 0
    assert visited[0].status_code == 200 and '"auth_required":true' in visited[0].text.replace(" ", "")


def test_help_reads_well():
    completed = subprocess.run([sys.executable, "-m", "workbench.arena", "--help"], capture_output=True, text=True)
    assert completed.returncode == 0 and "--password" in completed.stdout and "lab's store" in completed.stdout
