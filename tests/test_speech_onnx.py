"""Piper and Kokoro as ONNX: through tiny graphs of the same inputs and outputs, and (`real`) through real weights."""

import json
import shutil

import numpy as np
import pytest

from salad import SaladError
from salad.speech import load_tts
from salad.speech.phonemes import phonemised
from salad.speech.words import runs
from tests import tools

pytestmark = pytest.mark.onnx
TEXT = "The cat isn't here; it sat (again) on the mat. Then it ran, didn't it?"


@pytest.fixture(autouse=True)
def installed():
    tools.onnx()


def graph(path, tokens, inputs, frames, rate_op):
    """A model of `tokens` [1, N]: each lasts `frames` frames (found behind one `rate_op`), each frame 256 samples of noise."""
    from onnx import TensorProto, helper, save

    node, constant = helper.make_node, lambda name, kind, value: helper.make_tensor(name, kind, [len(value)], value)
    nodes = [
        node("Cast", [tokens], ["float"], to=TensorProto.FLOAT),
        node("Mul", ["float", "zero"], ["nothing"]),
        node("Add", ["nothing", "frames"], ["about"]),
        *(
            [node("Ceil", ["about"], ["durations"])]
            if rate_op == "Ceil"
            else [node("Round", ["about"], ["rounded"]), node("Clip", ["rounded", "one"], ["durations"])]
            if rate_op == "Clip"
            else [node("Abs", ["about"], ["durations"])]
        ),
        node("ReduceSum", ["durations"], ["total"], keepdims=0),
        node("Mul", ["total", "hop"], ["length"]),
        node("Cast", ["length"], ["count"], to=TensorProto.INT64),
        node("ConstantOfShape", ["count"], ["still"]),
        node("RandomNormalLike", ["still"], ["sound"], scale=0.1),
    ]
    kinds = {"int64": TensorProto.INT64, "float": TensorProto.FLOAT}
    made = helper.make_graph(
        nodes,
        "voice",
        [helper.make_tensor_value_info(name, kinds[kind], shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info("sound", TensorProto.FLOAT, ["samples"])],
        [
            constant("zero", TensorProto.FLOAT, [0.0]),
            constant("frames", TensorProto.FLOAT, [frames]),
            helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
            constant("hop", TensorProto.FLOAT, [256.0]),
        ],
    )
    save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), str(path))


PIPER_INPUTS = [("input", "int64", [1, "n"]), ("input_lengths", "int64", [1]), ("scales", "float", [3]), ("sid", "int64", [1])]
KOKORO_INPUTS = [("tokens", "int64", [1, "n"]), ("style", "float", [1, 256]), ("speed", "float", [1])]
LETTERS = "abcdefghijklmnopqrstuvwxyzæðŋɐɑɔəɚɛɜɡɪɹɾʃʊʌʒʔθᵻˈˌːʤʧᵊAIOQTWY"


def piper(folder, stem="en_US-tiny-low", rate_op="Ceil", frames=3.0, **more):
    folder.mkdir(exist_ok=True)
    graph(folder / f"{stem}.onnx", "input", PIPER_INPUTS, frames, rate_op)
    ids = {c: [n] for n, c in enumerate(["_", "^", "$", " ", *".,;:!?", *LETTERS])}
    config = {"audio": {"sample_rate": 22_050}, "espeak": {"voice": "en-us"}, "phoneme_id_map": ids, "num_speakers": 1, **more}
    (folder / f"{stem}.onnx.json").write_text(json.dumps(config))
    return folder


def kokoro(folder, rate_op="Clip"):
    folder.mkdir(exist_ok=True)
    graph(folder / "kokoro.onnx", "tokens", KOKORO_INPUTS, 3.0, rate_op)
    np.savez(folder / "voices.npz", af_one=np.zeros((510, 1, 256), np.float32), bm_two=np.ones((510, 1, 256), np.float32))
    vocabulary = {c: n + 1 for n, c in enumerate([" ", *".,;:!?", *LETTERS])}
    (folder / "vocab.json").write_text(json.dumps({"vocab": vocabulary}))
    return folder


@pytest.fixture(scope="module", params=["piper", "kokoro-onnx"])
def spec(request, tmp_path_factory):
    make = {"piper": piper, "kokoro-onnx": kokoro}[request.param]
    return f"{request.param}:{make(tmp_path_factory.mktemp('voices') / 'some folder')}"


def check_words(utterance, text):
    assert utterance.sample_rate == 16_000 and utterance.samples.dtype == np.float32
    for word in utterance.words:
        assert text[word.char_start : word.char_end] == word.word
        assert 0 <= word.start_s < word.end_s <= utterance.duration_s + 1e-3
    for before, after in zip(utterance.words, utterance.words[1:], strict=False):
        assert before.char_end < after.char_start and before.end_s <= after.start_s


def test_each_word_has_its_time_and_the_same_request_the_same_samples(spec):
    tts = load_tts(spec)
    recording = tts.speak(TEXT, tts.voices[0], 1)
    check_words(recording, TEXT)
    assert [word.word for word in recording.words] == TEXT.split() and recording.flags == []
    tts.speak("Something else.", tts.voices[-1], 7)
    again, other = tts.speak(TEXT, tts.voices[0], 1), tts.speak(TEXT, tts.voices[0], 2)
    assert np.array_equal(recording.samples, again.samples) and recording.words == again.words
    assert len(recording.samples) != len(other.samples) or not np.array_equal(recording.samples, other.samples)
    assert tts.speak(" !? ", tts.voices[0], 0).flags == ["empty"]


def test_engine_names_hold_the_content_and_no_path(spec, tmp_path):
    engine, _, folder = spec.partition(":")
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    (moved / "README.md").write_text("what else lies there")
    name = load_tts(spec).name
    assert name == load_tts(f"{engine}:{moved}").name and name.startswith(f"{engine}@") and len(name.partition("@")[2]) == 8
    model = next(moved.glob("*.onnx"))
    model.write_bytes(model.read_bytes() + b"\n")
    assert load_tts(f"{engine}:{moved}").name != name
    with pytest.raises(SaladError, match=f"known by its content .*, not by where it lies: say {engine}:<folder>"):
        load_tts(name)


def test_what_is_missing_is_named_in_one_line(spec, tmp_path):
    engine, _, folder = spec.partition(":")
    for where, reason in [("", "lacks its folder"), (tmp_path / "none", "no folder"), (tmp_path, "holds? ")]:
        wrong = f"{engine}:{where}"
        with pytest.raises(SaladError, match=reason) as error:
            load_tts(wrong)
        assert "\n" not in str(error.value)
    with pytest.raises(SaladError, match='no voice "nobody" in some folder; it has'):
        load_tts(spec).speak("A cat.", "nobody", 0)
    broken = shutil.copytree(folder, tmp_path / "broken")
    next(broken.glob("*.onnx")).write_bytes(b"no model")
    tts = load_tts(f"{engine}:{broken}")
    with pytest.raises(SaladError, match="is no ONNX model that runs here") as error:
        tts.speak("A cat.", tts.voices[0], 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("engine, make", [("piper", piper), ("kokoro-onnx", kokoro)])
def test_a_model_that_does_not_say_durations_is_refused_without_a_recogniser(tmp_path, engine, make):
    tts = load_tts(f"{engine}:{make(tmp_path / 'voices', rate_op='Abs')}")
    with pytest.raises(SaladError, match=f"how long its phonemes last: name a recogniser .* {engine}:voices::openai"):
        tts.speak("A cat.", tts.voices[0], 0)


def test_a_folder_of_several_voices_and_speakers_lists_all(tmp_path):
    piper(tmp_path / "v")
    piper(tmp_path / "v", "de_DE-two-low", num_speakers=2, speaker_id_map={"anna": 0, "bert": 1})
    tts = load_tts(f"piper:{tmp_path / 'v'}")
    assert tts.voices == ("de_DE-two-low#anna", "de_DE-two-low#bert", "en_US-tiny-low")
    check_words(tts.speak("Das Haus ist alt.", "de_DE-two-low#bert", 0), "Das Haus ist alt.")


def test_more_noise_than_was_drawn_at_first_changes_nothing(tmp_path):
    tts = load_tts(f"piper:{piper(tmp_path / 'v', frames=400.0)}")
    text = "A cat is in the house."
    utterance = tts.speak(text, tts.voices[0], 3)  # 400 frames of 256 samples a phoneme: above the first draw
    check_words(utterance, text)
    assert utterance.duration_s > 2**18 / 22_050


def test_words_without_a_phoneme_of_the_voice_are_flagged(tmp_path):
    folder = piper(tmp_path / "v")
    config = json.loads((folder / "en_US-tiny-low.onnx.json").read_text())
    for c in "kætˈ":
        config["phoneme_id_map"].pop(c)
    (folder / "en_US-tiny-low.onnx.json").write_text(json.dumps(config))
    utterance = load_tts(f"piper:{folder}").speak("The cat sleeps.", "en_US-tiny-low", 0)
    assert utterance.flags == ["skipped words"] and [word.word for word in utterance.words] == ["The cat", "sleeps."]


@pytest.mark.parametrize(
    "text", ["Of the house, on the mat; in the end!", "It's 'the' (only) well-known one - yes.", "on the of the"]
)
def test_each_word_gets_its_own_phonemes_though_espeak_says_some_as_one(text):
    phonemes = phonemised(text, "en-us")
    with_letters = [n for n, (start, end) in enumerate(runs(text)) if any(c.isalnum() for c in text[start:end])]
    assert [item.run for item in phonemes] == with_letters and all(
        item.phonemes and " " not in item.phonemes for item in phonemes
    )


# --- real weights ---


def real(engine):
    name = {"piper": "piper-en_US-joe-medium", "kokoro-onnx": "kokoro-onnx"}[engine]
    return tools.real_model(name)


@pytest.mark.real
@pytest.mark.parametrize("engine", ["piper", "kokoro-onnx"])
def test_real_voices_say_what_they_are_given_and_their_times_fit_their_samples(engine):
    from salad.speech.check import check, load_recogniser

    tts = load_tts(f"{engine}:{real(engine)}")
    text = "The cat sat on the mat. It cost one thousand dollars, and nobody knew why."
    utterance = tts.speak(text, tts.voices[0], 0)
    check_words(utterance, text)
    assert [word.word for word in utterance.words] == text.split() and utterance.flags == []
    checked = check(utterance.samples, text, load_recogniser(str(tools.real_model("whisper-tiny.en"))))
    assert checked.cer <= 0.06 and checked.flags == []

    def levels(start_s, end_s):  # of 20 ms each
        part = utterance.samples[int(start_s * 16_000) : int(end_s * 16_000)]
        return np.sqrt((part[: len(part) // 320 * 320].reshape(-1, 320) ** 2).mean(1))

    loudness = np.mean([levels(word.start_s, word.end_s).mean() for word in utterance.words])
    assert utterance.words[5].word == "mat."
    assert levels(utterance.words[5].end_s - 0.03, utterance.words[6].start_s + 0.03).min() < 0.2 * loudness
    for word in utterance.words:
        assert len(word.word) < 4 or levels(word.start_s, word.end_s + 0.03).max() > 0.3 * loudness


@pytest.mark.real
@pytest.mark.parametrize("engine", ["piper", "kokoro-onnx"])
def test_durations_are_found_in_the_model_itself(engine, tmp_path):
    folder = shutil.copytree(real(engine), tmp_path / "voice")
    with_output = load_tts(f"{engine}:{folder}")
    wanted = with_output.speak("The cat sat.", with_output.voices[0], 0)
    for path in folder.glob("*.durations.onnx"):
        path.unlink()
    alone = load_tts(f"{engine}:{folder}")
    assert alone.speak("The cat sat.", alone.voices[0], 0).words == wanted.words and alone.name == with_output.name
