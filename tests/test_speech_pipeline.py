"""Other languages from documents to checked speech: passages, spoken form, voice, word times, transcript, error rate."""

import json

import pytest

import store
from salad.data.corpora import audio_of
from salad.data.interleaving import units
from salad.passes.synthesise import jobs_of, synthesise
from salad.prepare import TextOptions, prepare_text
from salad.speech import SAMPLE_RATE, Word, load_tts
from salad.speech.check import check_many, load_recogniser
from salad.speech.languages import LANGUAGES
from salad.speech.spoken import spoken_form
from salad.speech.words import runs
from tests.tools import real_model

DOCUMENTS = {
    "de": "Im Jahr 1998 kostete das Brot 3 Mark, und der Zug fuhr um 14:30 Uhr ab. Das Haus ist groß, und der Hund schläft im "
    "Garten. Am 3. Oktober kamen 1.500 Menschen, d. h. mehr als die Hälfte, in die Stadt.",
    "zh": "2020年1月5日，我有2个苹果，天气很好。今天25℃，我们去公园吧，那里有两百多人。他在北京住了十年，现在每天跑步5公里。",
}
SAID = {"de": "neunzehnhundertachtundneunzig kostete das Brot drei Mark", "zh": "二零二零年一月五日，我有两个苹果"}
WORDS = {"de": ["1998", "3", "14:30", "1.500"], "zh": ["2020", "5"]}


@pytest.fixture(scope="module", params=sorted(DOCUMENTS))
def spoken_lab(request, tmp_path_factory):
    """(lab, language, rows of `syntheses`, their texts): one document, in passages, in espeak's voice of the language."""
    code, lab = request.param, tmp_path_factory.mktemp("lab")
    (lab / "documents.jsonl").write_text(json.dumps({"id": "d", "text": DOCUMENTS[code]}, ensure_ascii=False) + "\n")
    counts = prepare_text(lab, lab / "documents.jsonl", "own", TextOptions(language=code, min_s=2, max_s=12))
    assert counts["documents"] == {"read": 1, "kept": 1} and not counts["flags"]
    con = store.connect(lab)
    samples = con.execute("select sample_id, text, spoken, language from samples order by text").fetchall()
    assert any(SAID[code] in spoken for _, _, spoken, _ in samples) and {language for *_, language in samples} == {code}
    texts = {sample_id: text for sample_id, text, *_ in samples}
    synthesise(lab, "own", jobs_of(list(texts.items()), (LANGUAGES[code].espeak,)), load_tts("espeak"), {"test": code})
    con = store.connect(lab)
    found = con.sql("select * from syntheses order by sample_id").to_arrow_table().to_pylist()
    return lab, code, found, texts


def test_each_passage_is_spoken_and_cut_at_the_words_of_the_text(spoken_lab):
    lab, code, rows, texts = spoken_lab
    assert len(rows) == len(texts) >= 1 and all(row["flags"] == [] for row in rows)
    seen = []
    for row in rows:
        text = texts[row["sample_id"]]
        words = [word["word"] for word in row["words"]]
        seen += words
        assert all(text[w["char_start"] : w["char_end"]] == w["word"] for w in row["words"])
        assert len(words) >= 0.6 * len(runs(text))  # a date is one
        cut = units(text, [(i, i + 1) for i in range(len(text))], [Word(**word) for word in row["words"]], row["duration_s"])
        assert len(cut) == len(words)  # no blank is needed between words
    assert all(any(word.startswith(number) for word in seen) for number in WORDS[code])


class Writes:
    """A recogniser's name; what it writes is given."""

    name = "own"

    def transcribe(self, samples, languages):
        raise AssertionError("its transcripts are given")


def test_what_a_recogniser_writes_is_compared_in_the_language_of_the_voice(spoken_lab):
    lab, code, rows, texts = spoken_lab
    written = [texts[row["sample_id"]] for row in rows]
    samples = [audio_of(lab, row, SAMPLE_RATE) for row in rows]
    recogniser = Writes()
    as_said = [spoken_form(text, code).spoken.lower() for text in written]
    for transcripts in (written, as_said):
        checks = check_many(samples, written, recogniser, transcripts=transcripts, languages=[code] * len(written))
        assert [(check.cer, check.wer, check.flags) for check in checks] == [(0, 0, [])] * len(written)
    english = [spoken_form(text, "en").spoken for text in written]  # a voice that was given English numbers
    checks = check_many(samples, written, recogniser, transcripts=english, languages=[code] * len(written))
    assert max(check.cer for check in checks) > 0.1


@pytest.mark.real
def test_a_multilingual_whisper_hears_the_voice_in_its_own_language(spoken_lab):
    lab, code, rows, texts = spoken_lab
    recogniser = load_recogniser(str(real_model("whisper-base")))
    written = [texts[row["sample_id"]] for row in rows]
    checks = check_many([audio_of(lab, row, SAMPLE_RATE) for row in rows], written, recogniser, languages=[code] * len(written))
    mean = sum(check.cer for check in checks) / len(checks)
    assert mean < {"de": 0.3, "zh": 0.9}[code], [(check.cer, check.text_asr) for check in checks]
