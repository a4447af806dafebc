"""Spoken form: what is said, where it stands in the text, and what cannot be spoken."""

import csv
import os
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from salad import SaladError
from salad.speech import load_tts
from salad.speech.speakability import speakability
from salad.speech.spoken import spoken_form, text_words
from tests.tools import shared

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
    "x^2 + y^2 = 9": "x squared plus y squared equals nine",
    "At 3:30 p.m. or 10:05": "At three thirty P M or ten oh five",
    "5 km at -3.14 °C, 20% of 1 kg": "five kilometers at minus three point one four degrees Celsius, "
    "twenty percent of one kilogram",
    "2 14 oz. cans, 3/4 cup, 25/3": "two fourteen ounces cans, three quarters cup, twenty-five over three",
    "the 21st of 10-20": "the twenty-first of ten to twenty",
    "**Bold** and `code` & <b>tags</b> &amp; more": "Bold and code and tags and more",
    "Salt & pepper; R&D": "Salt and pepper; R and D",
    "A plain sentence isn't changed, is it? Café.": "A plain sentence isn't changed, is it? Café.",
    "Since 2020-01-05, 1/2 of [[Rome|the city]] paid -$5": "Since January fifth, twenty twenty, one half "
    "of the city paid minus five dollars",
    "": "",
    # years, decades, plurals
    "In the 1990s, the '90s and the 2010s": "In the nineteen nineties, the nineties and the twenty tens",
    "the 1900s; born in 1905 and 2005": "the nineteen hundreds; born in nineteen oh five and two thousand and five",
    "in her 30s, for 30s, the class of '08": "in her thirties, for thirty seconds, the class of oh eight",
    "Boeing 737s and F-16s": "Boeing seven three sevens and F-sixteens",
    "the 2019-20 season, 1914-1918": "the twenty nineteen to twenty season, nineteen fourteen to nineteen eighteen",
    # times and dates
    "9am-5pm, 12:05 AM, 15:30, 14:00": "nine A M to five P M, twelve oh five A M, fifteen thirty, fourteen hundred",
    "at 7 p.m. at 12:45:20": "at seven P M at twelve forty-five and twenty seconds",
    "Dec. 25, 1999, 5 May 2020 and 3/14/2015": "December twenty-fifth, nineteen ninety-nine, the fifth of May twenty twenty "
    "and March fourteenth, twenty fifteen",
    "25/12/2021, June 5-7, the 4th of July": "December twenty-fifth, twenty twenty-one, June fifth to seventh, the fourth of "
    "July",
    # ordinals, magnitudes, screens, sizes
    "the 2,500th, 22ND and 101st": "the two thousand five hundredth, twenty-second and one hundred and first",
    "5k, 2.5M, 3bn and 250K": "five thousand, two point five million, three billion and two hundred and fifty thousand",
    "720p, a 4K TV, 1920x1080": "seven twenty p, a four K TV, nineteen twenty by one thousand and eighty",
    "10x faster, 100+ people, C++": "ten times faster, one hundred plus people, C plus plus",
    "6'2\" tall, a 5-km run, 3½ cups, 2 1/2 hours": "six foot two tall, a five kilometer run, three and a half cups, "
    "two and a half "
    "hours",
    "10 m², 3 m/s², 60mph, 5–10%": "ten square meters, three meters per second squared, sixty miles per hour, five to ten "
    "percent",
    # money
    "£2.50, €3bn, $1.5m, ¥500, 20€": "two pounds and fifty pence, three billion euros, one point five million dollars, "
    "five hundred yen, twenty euros",
    "$0.99, 5 USD, A$10, a $5 bill, $5-10": "ninety-nine cents, five US dollars, ten Australian dollars, a five dollar bill, "
    "five to ten dollars",
    # names that are numbers
    "call 555-1234 or (212) 555-0100": "call five five five, one two three four or two one two, five five five, zero one zero "
    "zero",
    "192.168.0.1, v2.0, 1.2.3.4.5": "one nine two dot one six eight dot zero dot one, version two point zero, "
    "one point two point three point four point five",
    "ann_b@mail2.com, #MeToo, @ann": "ann underscore b at mail two dot com, hashtag Me Too, at ann",
    # Roman numerals
    "Louis XIV, Chapter IX, Act I, World War I": "Louis the fourteenth, Chapter nine, Act one, World War one",
    "Queen Elizabeth II's, Rocky IV, the XIX century": "Queen Elizabeth the second's, Rocky four, the nineteenth century",
    "I am Malcolm X. Vitamin C, XP, MIX": "I am Malcolm X. Vitamin C, XP, MIX",
    # abbreviations by what stands around them
    "No. 5 and no. 6. No. I said no.": "number five and number six. No. I said no.",
    "St. Mark lives on 5th St. near Oak Dr. with Dr. Ray.": "Saint Mark lives on fifth Street near Oak Drive with Doctor Ray.",
    "It is 5 in. long, put in. Fig. 3 shows a fig.": "It is five inches long, put in. figure three shows a fig.",
    "Mt. Etna, Lt. Dan, vs. Mr Lee, Ph.D., pp. 3-5": "Mount Etna, Lieutenant Dan, versus Mister Lee, P H D, pages three to five",
    # a run of digits is read whole, or left whole
    "1,00 and 12:345 and 3f2a9c": "one comma zero zero and twelve to three hundred and forty-five and 3f2a9c",
    "007, .5, 10 000": "zero zero seven, point five, ten thousand",
}
GERMAN = {
    "Im Jahr 1998 kostete das Brot 3 Mark.": "Im Jahr neunzehnhundertachtundneunzig kostete das Brot drei Mark.",
    "am 3. Oktober 1990 um 14:30 Uhr": "am dritten Oktober neunzehnhundertneunzig um vierzehn Uhr dreißig",
    "der 1.5.2020, 3,50 €, 1.000 km": "der erste Mai zweitausendzwanzig, drei Euro fünfzig, eintausend Kilometer",
    "3,14, -5 °C, 20 %, 10–20 km/h": "drei Komma eins vier, minus fünf Grad Celsius, zwanzig Prozent, "
    "zehn bis zwanzig Kilometer pro Stunde",
    "z. B. Dr. Meier, Nr. 5, S. 3, Hauptstr. 1": "zum Beispiel Doktor Meier, Nummer fünf, Seite drei, Hauptstraße eins",
    "Ludwig XIV., die 1990er, im 19. Jahrhundert": "Ludwig der Vierzehnte, die neunzehnhundertneunziger, im neunzehnten "
    "Jahrhundert",
    "5 Mio. €, 1 h, 1/2, 2½ Liter": "fünf Millionen Euro, eine Stunde, ein halb, zweieinhalb Liter",
}
CHINESE = {
    "2020年1月5日，我有2个苹果。": "二零二零年一月五日，我有两个苹果。",
    "25℃，60%，3.14米，10500人": "二十五摄氏度，百分之六十，三点一四米，一万零五百人",
    "14:30开会，第3名，1/2，10-20公里": "十四点三十分开会，第三名，二分之一，十到二十公里",
    "¥50元，1.5亿，20年代，100001": "五十元，一点五亿，二十年代，十万零一",
    "电话13812345678，iPhone 12": "电话幺三八幺二三四五六七八，iPhone 十二",
}


@pytest.mark.parametrize("text", SAID)
def test_what_is_said(text):
    assert " ".join(spoken_form(text).spoken.split()) == SAID[text]


@pytest.mark.parametrize("text", GERMAN)
def test_what_is_said_in_german(text):
    assert spoken_form(text, "de").spoken == GERMAN[text]


@pytest.mark.parametrize("text", CHINESE)
def test_what_is_said_in_chinese(text):
    assert spoken_form(text, "zh").spoken == CHINESE[text]


def test_a_language_without_rules_is_refused():
    with pytest.raises(SaladError, match='"sw" does not work here'):
        spoken_form("Habari 5", "sw")


def words_only(text):
    return "".join(c for c in unicodedata.normalize("NFC", text).lower() if c.isalnum() or c.isspace()).split()


@pytest.mark.data
def test_the_cases_are_read_as_a_person_reads_them():
    rows = list(csv.reader(shared("cases/spoken.tsv").read_text().splitlines()[1:], delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) >= 20
    for text, wanted in rows:
        text = text.replace("\\u0301 (NFD)", "\u0301")
        wanted = wanted.replace("spoken as café (NFC)", "café").replace("(or flagged)", "")
        assert words_only(spoken_form(text).spoken) == words_only(wanted), text


UNICODE = {
    "cafe\u0301": ("café", []),
    "“Don’t” ‘stop’": ("\"Don't\" 'stop'", []),
    "so\u00adft zero\u200bwidth \u202ebidi\u202c \ufeff": ("soft zerowidth bidi ", ["invisible"] * 5),
    "ﬁne ﬂow １２３ Ａ ٣": ("fine flow one hundred and twenty-three A three", []),
    "I love it 😀!": ("I love it !", ["emoji"]),
    "hot🔥stuff 👨\u200d👩\u200d👧": ("hot stuff ", ["emoji", "emoji", "invisible", "emoji", "invisible", "emoji"]),
    "a\x00b\ud800c\u2028d": ("abc\nd", ["control", "unassigned"]),
    "Acme™ ⌘ **bold**": ("Acme  bold", ["symbol", "symbol", "markup", "markup"]),
    "H₂O, 5 m², Henry Ⅷ, № 5": ("H two O, five square meters, Henry the eighth, number five", []),
}


@pytest.mark.parametrize("text", UNICODE)
def test_characters_are_made_plain_and_what_has_no_sound_is_reported(text):
    spoken = spoken_form(text)
    assert (spoken.spoken, [recording.reason for recording in spoken.dropped]) == UNICODE[text]
    tiles(text, spoken)


def test_words_of_a_text_in_other_characters_stand_where_they_stand():
    text = "“Cafe\u0301” so\u00adft ﬁne 😀 don’t ５ km"
    spoken = spoken_form(text)
    words = text_words(ESPEAK.speak(spoken.spoken, "en-us", 0).words, spoken, text)
    assert [w.word for w in words] == ["“Cafe\u0301”", "so\u00adft", "ﬁne 😀", "don’t", "５ km"]


RANDOM = st.text(
    st.one_of(st.characters(), st.sampled_from("0123456789.,:-/$€%°'\"()*_#@ \n\u0301\u200d\ufe0f\u00ad️Ⅷ½²ﬁ１年个第漢ß😀IVX")),
    max_size=60,
)


@settings(max_examples=int(os.environ.get("SALAD_FUZZ", "400")), deadline=None)
@given(RANDOM, st.sampled_from(["en", "de", "zh"]))
def test_every_character_of_any_text_is_spoken_or_reported(text, language):
    spoken = spoken_form(text, language)
    tiles(text, spoken)
    silent = {i for recording in spoken.dropped for i in range(recording.start, recording.end)}
    for s0, s1, t0, t1 in spoken.char_map:
        assert s1 > s0 or silent.issuperset(range(t0, t1))
    spoken.spoken.encode()  # no lone surrogate is left
    assert all(runs_of_digits_are_whole(text, piece) for piece in spoken.char_map)
    speakability(text, language)


def runs_of_digits_are_whole(text, piece):
    """A piece that is spelled out never begins or ends within a run of the text's digits."""
    _, _, start, end = piece
    cut = lambda at: 0 < at < len(text) and text[at - 1 : at + 1].isdecimal() and text[at - 1 : at + 1].isascii()  # noqa: E731
    return not (cut(start) or cut(end))


@pytest.mark.parametrize("language", ["en", "de", "zh"])
@pytest.mark.parametrize(
    "unit", ["3fa9", "7", "a", "AB", "1,", "1.", "$1", "[", "](", "<a", "&a", "*", "_", "a@", "a.", "I", "1-", "1:", "😀",
    "’", "e\u0301",
             "漢", "Dr. ", "1/2 ", "{", "def (", "|", "\t", "#", "x^", "(555) ", "1 000 ", "年", "http://", "第1", "II "],
)  # fmt: skip
def test_time_is_linear_whatever_the_text(language, unit):
    def spent(length):
        text = unit * (length // len(unit))
        start = time.process_time()
        spoken_form(text, language)
        speakability(text, language)
        return time.process_time() - start

    spent(100)
    short = max(min(spent(2_000), spent(2_000)), 0.002)
    assert spent(32_000) < 60 * short  # 16 x as long: linear about 16, quadratic 256


def tiles(text, spoken):
    statement, stands = 0, 0
    for s0, s1, t0, t1 in spoken.char_map:
        assert s0 == statement and t0 == stands and s1 >= s0 and t1 >= t0
        statement, stands = s1, t1
    assert statement == len(spoken.spoken) and stands == len(text)


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
    statement = [w for w in utterance.words if w.word in ("one", "thousand", "dollars")]
    assert (money.start_s, money.end_s) == (statement[0].start_s, statement[-1].end_s)


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
        ("The key is " + "3fa9" * 20 + ".", "long word"),
    ],
)
def test_what_cannot_be_spoken_is_marked_with_its_reason(text, flag):
    result = speakability(text)
    assert flag in result and result[flag]


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


@pytest.mark.parametrize(
    "language, text",
    [
        ("de", "Der Hund ist nicht in dem Haus und die Katze auch nicht."),
        ("zh", "我昨天用iPhone拍了两张照片，天气很好。"),
        ("zh", "2020年1月5日，我有2个苹果。"),
    ],
)
def test_plain_text_of_another_language_carries_no_flag_there(language, text):
    assert speakability(text, language) == {}


@pytest.mark.parametrize(
    "language, text", [("de", "The dog is not in the house and the cat is not there."), ("zh", "The dog is not in the house.")]
)
def test_english_among_another_language_is_marked(language, text):
    assert "other language" in speakability(text, language)
