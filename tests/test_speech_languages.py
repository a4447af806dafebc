"""Languages: a table, voices by language, words of scripts without blanks, and speech that is cut at them."""

import pytest

from salad import SaladError
from salad.data.interleaving import units
from salad.speech import load_tts
from salad.speech.languages import LANGUAGES, find_language, of_voice
from salad.speech.words import runs


def test_a_language_is_found_by_its_code_and_others_are_refused_with_the_list():
    assert find_language("de-AT").name == "German" and find_language("EN").spacy == "en"
    with pytest.raises(SaladError, match=r'"sw" does not work here: .*en \(English\), de \(German\), zh \(Chinese\) do'):
        find_language("sw")


@pytest.mark.parametrize(
    "tts, voice, code",
    [
        ("espeak", "en-us+f2@rate=170", "en"), ("espeak", "gmw/de", "de"), ("espeak", "de+f3", "de"), ("espeak", "cmn", "zh"),
        ("espeak", "sit/cmn", "zh"), ("espeak", "fr", "en"), ("kokoro", "af_heart", "en"), ("kokoro@1a", "bm_lewis", "en"),
        ("kokoro-onnx:x", "jf_alpha", "en"), ("piper", "de_DE-thorsten-medium", "de"), ("piper", "en_US-joe-medium", "en"),
        ("recorded", "anyone", "en"), ("package.module:name", "de", "en"),
    ],
)  # fmt: skip
def test_the_language_of_a_voice(tts, voice, code):
    assert of_voice(tts, voice) == code


@pytest.mark.parametrize(
    "text, words",
    [
        ("The cat (isn't) here.", ["The", "cat", "(isn't)", "here."]),
        ("今天很好，我们去“公园”吧！", ["今", "天", "很", "好，", "我", "们", "去", "“公", "园”", "吧！"]),
        ("在2020年用iPhone 12看《书》。", ["在", "2020", "年", "用", "iPhone", "12", "看", "《书》。"]),
        ("", []),
    ],
)
def test_words_are_runs_without_blanks_and_characters_of_scripts_that_set_none(text, words):
    assert [text[start:end] for start, end in runs(text)] == words


@pytest.mark.parametrize("code, text", [("de", "Das Haus ist groß und alt."), ("zh", "今天天气很好，我们去公园吧。")])
def test_speech_of_each_language_is_cut_at_its_words(code, text):
    utterance = load_tts("espeak").speak(text, LANGUAGES[code].espeak, 0)
    assert utterance.flags == [] and len(utterance.words) >= 0.6 * len(runs(text))
    for word in utterance.words:
        assert text[word.char_start : word.char_end] == word.word
    offsets = [(i, i + 1) for i in range(len(text))]  # a token a character
    result = units(text, offsets, utterance.words, utterance.duration_s)
    assert len(result) == len(utterance.words)
    for unit, word in zip(result, utterance.words, strict=True):
        start = word.char_start - (text[word.char_start - 1] == " " if word.char_start else 0)
        assert (unit.token_start, unit.start_s) == (start, word.start_s if word.char_start else 0.0)
