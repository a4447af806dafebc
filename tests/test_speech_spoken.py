"""Spoken form: what is said, where it stands in the text, and what cannot be spoken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salad.speech import load_tts
from salad.speech.spoken import speakability, spoken_form, text_words

SAID = {
    "[a](/b/)": "a",
    "See [the big cat](https://x.org/y) now": "See the big cat now",
    "It cost $1,000!": "It cost one thousand dollars!",
    "$3.50, £1 and €2 million": "three dollars and fifty cents, one pound and two million euros",
    "H2O and CO2 in the A4 sheet": "H two O and C O two in the A4 sheet",
    "In 1998, 1,998 of 2500 cats": "In nineteen ninety-eight, one thousand nine hundred and ninety-eight of "
    "two thousand five hundred cats",
    "Fruit, e.g. pears, i.e. green ones.": "Fruit, for example pears, that is green ones.",
    "Go to https://www.example.com/a/b?c=1.": "Go to example dot com.",
    "x^2 + y^2 = 9": "x two plus y two equals nine",
    "At 3:30 p.m. or 10:05": "At three thirty P M or ten oh five",
    "5 km at -3.14 °C, 20% of 1 kg": "five kilometers at minus three point one four degrees Celsius, "
    "twenty percent of one kilogram",
    "2 14 oz. cans, 3/4 cup, 25/3": "two fourteen ounces cans, three quarters cup, twenty-five over three",
    "the 21st of 10-20": "the twenty-first of ten to twenty",
    "**Bold** and `code` & <b>tags</b> &amp; more": "Bold and code and tags & more",
    "Salt & pepper; R&D": "Salt and pepper; R and D",
    "A plain sentence isn't changed, is it? Café.": "A plain sentence isn't changed, is it? Café.",
    "Since 2020-01-05, 1/2 of [[Rome|the city]] paid -$5": "Since twenty twenty zero one zero five, one half "
    "of the city paid minus five dollars",
    "": "",
}


@pytest.mark.parametrize("text", SAID)
def test_what_is_said(text):
    assert " ".join(spoken_form(text).spoken.split()) == SAID[text]


def tiles(text, spoken):
    said, stands = 0, 0
    for s0, s1, t0, t1 in spoken.char_map:
        assert s0 == said and t0 == stands and s1 >= s0 and t1 >= t0
        said, stands = s1, t1
    assert said == len(spoken.spoken) and stands == len(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab XH2O0159 .,:;$€%&[]()/*_`<>#-+=^|é日\n"), max_size=40))
def test_the_map_tiles_both_texts_and_words_of_the_text_come_out_ordered(text):
    spoken = spoken_form(text)
    tiles(text, spoken)
    utterance = ESPEAK.speak(spoken.spoken, "en-us", 0)
    words = text_words(utterance.words, spoken, text)
    for word in words:
        assert text[word.char_start : word.char_end] == word.word == word.word.strip() != ""
        assert word.start_s < word.end_s
    for before, after in zip(words, words[1:], strict=False):
        assert before.char_end <= after.char_start and before.end_s <= after.start_s


ESPEAK = load_tts("espeak")


def test_word_times_refer_to_the_text():
    text = "It cost $1,000 in 1998, e.g. pears, **big** [cats](/b/) and H2O."
    spoken = spoken_form(text)
    utterance = ESPEAK.speak(spoken.spoken, "en-us", 0)
    words = text_words(utterance.words, spoken, text)
    assert [w.word for w in words] == text.split()
    money = words[2]
    said = [w for w in utterance.words if w.word in ("one", "thousand", "dollars")]
    assert (money.start_s, money.end_s) == (said[0].start_s, said[-1].end_s)


def test_plain_text_maps_to_itself():
    text = "The cat is in the house."
    utterance = ESPEAK.speak(text, "en-us", 0)
    assert text_words(utterance.words, spoken_form(text), text) == utterance.words


@pytest.mark.parametrize(
    "text, flag",
    [
        (r"So \frac{a}{b} is the mean of both.", "formula"),
        ("We know that x^2 + y^2 = 9 holds.", "formula"),
        ("The energy is E = m*c here.", "formula"),
        ("def add(a, b):\n    return a + b\n", "code"),
        ("if (x == 3) { y += 1; }\n", "code"),
        ("Read https://example.com/page for more.", "url"),
        ("Write to someone@example.org today.", "url"),
        ("| name | age |\n| Ann | 3 |\n", "table"),
        ("name\tage\tcity\nAnn\t3\tRome\n", "table"),
        ("Click [here](/there/) now.", "markup"),
        ("<p>The cat sat.</p>", "markup"),
        ("Der Hund ist nicht in dem Haus und die Katze auch nicht.", "other language"),
        ("Le chat est dans la maison et il ne veut pas sortir.", "other language"),
        ("Кошка сидит в доме.", "other language"),
    ],
)
def test_what_cannot_be_spoken_is_marked_with_its_reason(text, flag):
    found = speakability(text)
    assert flag in found and found[flag]


@pytest.mark.parametrize(
    "text",
    [
        "The cat is in the big house, and it isn't happy.",
        "In 1998 it cost $1,000, e.g. for H2O and 3.5 km of pipe.",
        "Question: where does the whale live? The sea.",
        "Let the dough rest; return to the class (see above) at 3:30 p.m.",
        "To cut a grape, use a knife/fork - or well-known tools.",
    ],
)
def test_plain_english_carries_no_flag(text):
    assert speakability(text) == {}
