"""Contenders behind one interface: the real classes of transformers at toy sizes, and a server that speaks the protocol."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
import torch
from tiny import TEXTS, config, lab, spoken_text

import store
from salad import SaladError
from salad.evaluation import answers, predictions, statistics
from salad.evaluation.contenders import Ours, outside, parse_choice, same_tokenizer
from salad.evaluation.endpoint import KEY, Endpoint
from salad.evaluation.run import evaluate
from salad.evaluation.scoring import Recording
from salad.models.speech_lm import SpeechLM

CHOICES = ["Fish.", "A book.", "Paris.", "In Paris, by the sea."]
ITEMS = [
    {"item_id": f"t-{n}", "context": text, "choices": CHOICES, "answer": n % 4, "domain": "stories"}
    for n, text in enumerate(["What does the otter eat?", "What does Anna carry?", "Where does Anna live?"])
]


def write(place, name, rows):
    (place / "tasks").mkdir(exist_ok=True)
    (place / "tasks" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place / "tasks" / name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = lab(tmp_path_factory.mktemp("lab"))
    write(folder, "questions.jsonl", ITEMS)
    return folder


def rows(place, what, **where):
    names = " and ".join(f"{name} = ?" for name in where) or "true"
    return store.connect(place).execute(f"select {what} from evaluations where {names} order by all", [*where.values()])


# --- an answer in words ---


@pytest.mark.parametrize(
    "answer, message",
    [
        ("B", 1), ("b", 1), ("(C)", 2), ("The answer is B.", 1), ("**D**", 3), ("A.", 0), ("fish", 0), ("It is Fish!", 0),
        ("In Paris, by the sea", 3), ("It was in Paris by the sea.", 3), ("A or B?", None), ("", None), ("no idea", None),
        ("I think a dog", None), ("E", None), ("Fish. Or a book.", None), ("Answer: C. Paris.", 2),
    ],
)  # fmt: skip
def test_an_answer_in_words_names_one_choice_or_none(answer, message):
    assert parse_choice(answer, CHOICES) == message


class Server(ThreadingHTTPServer):
    """A server of OpenAI's chat protocol: it hears how long a recording is and answers by that, from `script`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.fail_first, self.script = [], 0, "B"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers.get("Authorization"), body))
        if self.server.fail_first:
            self.server.fail_first -= 1
            return self._say(503, {"error": "busy"})
        if body["model"] != "talker":
            return self._say(404, {"error": f"no model {body['model']}"})
        self._say(200, {"choices": [{"message": {"role": "assistant", "content": self.server.script}}]})

    def _say(self, code, result):
        data = json.dumps(result).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def server():
    made = Server()
    yield made
    made.shutdown()
    made.server_close()


def test_an_endpoint_hears_the_recording_and_its_answers_are_read_or_count_as_wrong(place, server, monkeypatch):
    monkeypatch.setenv(KEY, "secret")
    who = outside(f"endpoint:{server.url}#talker", "talker-1", place)
    who.pause_s = 0.01
    server.fail_first = 2
    evaluate(place, who, ["questions"], ("text", "speech"))
    assert rows(place, "modality, item_id, correct, prediction, parsed, scores", contender="talker-1").fetchall() == [
        (modality, f"t-{n}", n == 1, "A book.", True, None) for modality in ("speech", "text") for n in range(3)
    ]
    path, key, body = server.seen[-1]
    assert path == "/v1/chat/completions" and key == "Bearer secret" and body["max_tokens"] == 16
    sound, words = body["messages"][0]["content"]
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(sound["input_audio"]["data"])))
    assert rate == 16_000 and len(samples) > 8_000 and sound["input_audio"]["format"] == "wav"
    assert "\nA. Fish.\nB. A book." in words["text"]
    server.script = "It could be anything."
    who = outside(f"endpoint:{server.url}#talker", "talker-2", place)
    evaluate(place, who, ["questions"], ("text",))
    (row,) = statistics.summary(place, "talker-2", None, None)
    assert row["unread"] == 1.0 and row["accuracy"] == 0.0
    before = len(list((place / "tables").rglob("*.parquet")))
    for spec, message in (
        (f"endpoint:{server.url}#nobody", "404.*no model nobody"),
        ("endpoint:http://127.0.0.1:9/v1#talker", "does not answer"),
    ):
        with pytest.raises(SaladError, match=message) as error:
            broken = outside(spec, "x", place)
            broken.pause_s = 0.001
            evaluate(place, broken, ["questions"], ("text",))
        assert "\n" not in str(error.value)
    assert before == len(list((place / "tables").rglob("*.parquet")))  # nothing half-written
    with pytest.raises(SaladError, match="write it as endpoint:"):
        Endpoint("127.0.0.1:9", "x", "x")
    with pytest.raises(SaladError, match="did you mean endpoint"):
        outside("endpiont:http://x#y", None, place)


# --- speech LLMs of transformers ---


def speech_llm(kind, folder):
    """A random model of the real class with its tokenizer and feature extractor, in `folder`."""
    from tiny import tokenizer
    from transformers import (
        Qwen2_5OmniThinkerConfig,
        Qwen2_5OmniThinkerForConditionalGeneration,
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        WhisperFeatureExtractor,
    )

    from salad.evaluation.transformers_speech import MARKS

    tok = tokenizer()
    tok.add_special_tokens({"additional_special_tokens": list(MARKS[kind])})
    tok.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=30).save_pretrained(folder)
    torch.manual_seed(0)
    ids = {mark: tok.convert_tokens_to_ids(mark) for mark in MARKS[kind]}
    text = dict(vocab_size=len(tok), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                intermediate_size=64, initializer_range=0.3, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                pad_token_id=tok.pad_token_id)  # fmt: skip
    audio = dict(d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=16)
    if kind == "qwen2-audio":
        config = Qwen2AudioConfig(
            audio_config=audio, text_config=text | {"model_type": "qwen2"}, audio_token_index=ids["<|AUDIO|>"]
        )
        model = Qwen2AudioForConditionalGeneration(config)
    else:
        rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
        config = Qwen2_5OmniThinkerConfig(
            audio_config=audio | {"output_dim": 32, "n_window": 50},
            vision_config=dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32),
            text_config=text | {"rope_parameters": rope},
            audio_token_id=ids["<|AUDIO|>"], audio_start_token_id=ids["<|audio_bos|>"],
            audio_end_token_id=ids["<|audio_eos|>"], image_token_id=len(tok) - 5, video_token_id=len(tok) - 6,
            vision_start_token_id=len(tok) - 7, vision_end_token_id=len(tok) - 8,
        )  # fmt: skip
        model = Qwen2_5OmniThinkerForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


def unshared(who, prompt, choice) -> tuple[float, bool]:
    """The plain way: prompt, recordings and a choice run through the model together."""
    ids, tail, sounds = who._inputs(prompt)
    context = ids + who._encode(tail)
    row = torch.tensor([context + who._encode(tail + choice)[len(who._encode(tail)) :]])
    with torch.no_grad():
        logits = who.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, **sounds).logits
    logp, wanted = logits[0, len(context) - 1 : -1].log_softmax(-1), row[0, len(context) :]
    return float(logp.gather(1, wanted[:, None]).sum()), bool((logp.argmax(-1) == wanted).all())


@pytest.mark.parametrize("kind", ["qwen2-audio", "qwen2.5-omni"])
def test_choices_of_a_speech_llm_share_their_prompt_and_score_as_without(place, tmp_path, kind):
    who = outside(f"{kind}:{speech_llm(kind, tmp_path / 'model')}", kind, place)
    sounds = [Recording(f"y{n}", spoken_text(TEXTS[n], n)[1]) for n in (0, 1)]
    choices = [" Fish.", " A book and a pear.", " Y", " the the the the"]
    ran = []
    who.model.model.audio_tower.register_forward_hook(lambda *_: ran.append(1))
    for prompt in (
        ["Question: ", sounds[0], "\nAnswer:"],
        [sounds[1], " Who?"],
        ["Is it so?"],
        ["One: ", sounds[0], "\nAnswer: Bob.\n\nTwo: ", sounds[1], "\nAnswer:"],
    ):
        plain = [unshared(who, prompt, choice) for choice in choices]
        ran.clear()
        shared = who.loglikelihoods([prompt], [choices])[0]
        assert len(ran) == (not all(isinstance(part, str) for part in prompt))
        assert [s for s, _ in shared] == pytest.approx([s for s, _ in plain], abs=1e-4)
        assert [g for _, g in shared] == [g for _, g in plain]


@pytest.mark.parametrize("kind", ["qwen2-audio", "qwen2.5-omni"])
def test_a_speech_llm_of_transformers_is_evaluated_by_name(place, tmp_path, kind):
    from transformers import Qwen2AudioProcessor

    who = outside(f"{kind}:{speech_llm(kind, tmp_path / 'model')}", kind, place)
    evaluate(place, who, ["questions"], ("text", "speech"))
    fields = {(m, i): s for m, i, s in rows(place, "modality, item_id, scores", contender=kind).fetchall()}
    assert len(fields) == 6 and all(len(scores) == 4 and np.isfinite(scores).all() for scores in fields.values())
    assert fields["text", "t-0"] != fields["speech", "t-0"]
    # a choice scores as it does alone, and the recording is heard: other sound, other scores
    sound, other = (Recording(f"y{n}", spoken_text(TEXTS[n], n)[1]) for n in (0, 1))
    prompt, wanted = ["Question: ", sound, "\nAnswer:"], [" Fish.", " A book and a pear."]
    both = who.loglikelihoods([prompt], [wanted])[0]
    alone = [who.loglikelihoods([prompt], [[item]])[0][0] for item in wanted]
    assert [s for s, _ in both] == pytest.approx([s for s, _ in alone], abs=1e-4)
    recorded = who.loglikelihoods([["Question: ", other, "\nAnswer:"]], [wanted])[0]
    assert [s for s, _ in recorded] != pytest.approx([s for s, _ in both], abs=1e-4)
    (first, second) = who.generate([prompt, [*prompt[:1], other, prompt[2]]], 6, ())
    assert isinstance(first, str) and who.generate([prompt], 6, ()) == [first]
    if kind == "qwen2-audio":  # its own processor lays the prompt out in the same way
        processor = Qwen2AudioProcessor(who.features, who.tokenizer)
        made = processor(text="Question: <|audio_bos|><|AUDIO|><|audio_eos|>\nAnswer:", audio=[sound.samples],
                         sampling_rate=16_000, return_tensors="pt")  # fmt: skip
        ids, tail, result = who._inputs(prompt)
        assert made["input_ids"][0].tolist() == ids + who._encode(tail)
        assert torch.equal(made["feature_attention_mask"], result["feature_attention_mask"])
    with pytest.raises(SaladError, match="hears at most 30 s"):
        who.loglikelihoods([[Recording("long", np.zeros(31 * 16_000, np.float32))]], [[" x"]])


def test_a_folder_that_is_no_speech_llm_is_refused_in_one_line(place):
    with pytest.raises(SaladError, match="cannot be loaded|is no qwen2-audio") as error:
        outside(f"qwen2-audio:{place / 'models' / 'encoder'}", None, place)
    assert "\n" not in str(error.value)


# --- predictions of others ---


def test_predictions_of_others_are_checked_whole_and_then_imported(place, tmp_path):
    def line(n, **change):
        fields = {"contender": "theirs", "task": "questions", "item": f"t-{n}", "modality": "speech", "text": "B"}
        return {key: value for key, value in (fields | change).items() if value is not None}

    good = [line(0), line(1), line(2, text=None, scores=[-4.0, -9.0, -1.0, -8.0]), line(0, modality="text", text="?")]
    before = len(list((place / "tables").rglob("*.parquet")))
    for change, fields in (
        ({"item": "q-9"}, "questions has no item 'q-9'; its items are called like 't-0'"),
        ({"task": "question"}, "did you mean 'questions'"),
        ({"modality": "smell"}, "no modality 'smell'"),
        ({"text": None, "scores": [1.0]}, "has 4 choices, and needs a number for each"),
        ({"text": None}, "either scores or text"),
        ({"contender": None}, "lacks 'contender'"),
        ({"item": "t-0"}, "predicted already, on line 1"),
    ):
        path = write(tmp_path, "bad.jsonl", [good[0], line(1, **change)])
        with pytest.raises(SaladError, match=fields) as error:
            predictions.import_predictions(place, path)
        assert "line 2" in str(error.value) or "task" in change
    assert before == len(list((place / "tables").rglob("*.parquet")))
    path = write(tmp_path, "good.jsonl", good)
    fields = predictions.import_predictions(place, path)
    assert fields.splitlines() == [
        "theirs, questions, speech: 3 of 3 items, 66.7 % right, 0.0 % cannot be read and count as wrong",
        "theirs, questions, text: 1 of 3 items, 0.0 % right, 100.0 % cannot be read and count as wrong",
    ]
    assert predictions.import_predictions(place, path) == fields  # the same file again changes nothing
    assert rows(place, "count(*)", contender="theirs").fetchone() == (4,)
    with pytest.raises(SaladError, match="has answers of theirs"):
        predictions.import_predictions(place, write(tmp_path, "other.jsonl", good[:1]))
    bad = tmp_path / "tasks" / "torn.jsonl"
    bad.write_text('{"contender": "x"')
    with pytest.raises(SaladError, match="line 1 is no JSON object"):
        predictions.import_predictions(place, bad)


# --- ours: tokenizers, open answers, transcription ---


def test_a_checkpoint_of_another_tokenizer_is_refused(place, tmp_path, monkeypatch):
    import tiny
    from tiny import encoder, teacher

    monkeypatch.setattr(tiny, "TEXTS", [text[::-1] for text in TEXTS])  # which its tokenizer is trained on
    teacher(tmp_path / "models" / "teacher")
    encoder(tmp_path / "models" / "encoder")
    model = SpeechLM.build(config(), tmp_path)
    with pytest.raises(SaladError, match="run r1.*tokenizers are not the same.*lab of its own teacher") as error:
        same_tokenizer(model, place, "run r1, step 5")
    assert "\n" not in str(error.value)
    same_tokenizer(model, tmp_path, "run r1, step 5")


def test_open_questions_are_answered_as_text_and_as_speech_with_the_same_seed(place, tmp_path):
    path = tmp_path / "asked.txt"
    path.write_text('What does the otter eat?\n\n{"question": "Who bakes bread?", "id": "bread", "reference": "Clara"}\n')
    asked = answers.read_questions(path)
    ours = Ours(SpeechLM.build(config(), place).eval(), "stage1", "r000000000001", 5)
    result = answers.answer(place, ours, asked, max_new_tokens=8, temperature=1.0, seed=3)
    assert [(row["question_id"], row["modality"]) for row in result[2:]] == [("bread", "text"), ("bread", "speech")]
    stored = store.connect(place).execute(
        "select question_id, modality, text, reference, seed, voice is null from answers where task = 'questions' order by all"
    ).fetchall()  # fmt: skip
    assert sorted(stored) == sorted(
        (row["question_id"], row["modality"], row["text"], row["reference"], 3, row["modality"] == "text") for row in result
    )
    # asked alone, with what was answered before left as it is: the same answers, and another seed gives others
    alone = answers.answer(place, ours, asked[1:], max_new_tokens=8, temperature=1.0, seed=3)
    assert [row["text"] for row in alone] == [row["text"] for row in result[2:]]
    assert store.connect(place).execute("select count(*) from answers where task = 'questions'").fetchone() == (4,)
    fresh = ours.generate([["Who bakes bread?"]], 8, ("\n",), 1.0, 3)
    assert fresh == [result[2]["text"]]
    other = answers.answer(place, ours, asked, max_new_tokens=8, temperature=1.0, seed=4)
    assert [row["text"] for row in other] != [row["text"] for row in result]
    for text, message in (("", "holds no question"), ('{"ask": 1}', "line 1: write"), ("Who?\nWho?", "twice")):
        path.write_text(text)
        with pytest.raises(SaladError, match=message):
            answers.read_questions(path)


def test_transcription_is_scored_word_by_word_and_kept(place):
    import jiwer

    ours = Ours(SpeechLM.build(config(), place).eval(), "stage1", "r000000000001", 5)
    wer = answers.transcribe(place, ours, "natural", count=3)
    outcome = (
        store.connect(place)
        .execute("select reference, text, wer from answers where task = 'transcription' order by answer_id")
        .fetchall()
    )
    assert len(outcome) == 3 and all(each == pytest.approx(jiwer.wer(*map(answers_normal, (r, t)))) for r, t, each in outcome)
    assert answers.transcribe(place, ours, "natural", count=3) == wer > 0  # kept: not asked again
    with pytest.raises(SaladError, match="no speech in nowhere"):
        answers.transcribe(place, ours, "nowhere")


def answers_normal(text):
    from salad.speech.check import normalise

    return normalise(text)
