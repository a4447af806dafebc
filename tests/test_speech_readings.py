"""Readings: more of what people write, each with what a person would say, in three languages."""

import re

import pytest

from salad.speech.check import normalise
from salad.speech.spoken import spoken_form

ENGLISH = [
    ("In 1066 and by 2150; 1200 BC", "In ten sixty-six and by twenty-one fifty; twelve hundred BC"),
    ("FY2023, FY21 and 'FY 2021'", "F Y twenty twenty-three, F Y twenty-one and 'F Y twenty twenty-one'"),
    (
        "open Mon-Fri 9:00-17:30, Mon., Fri. and Sat. 5 Jan.",
        "open Monday to Friday nine o'clock to seventeen thirty, Monday, Friday and Saturday the fifth of January.",
    ),
    (
        "7.30pm, 7.30 p.m., 0800 hours, 1630 hours",
        "seven thirty P M, seven thirty P M, zero eight hundred hours, sixteen thirty hours",
    ),
    ("It opened at 5 p.m.", "It opened at five P M."),
    (
        "2020-01-05T10:30:00Z and 2021-12-31T23:05:09+01:00",
        "January fifth, twenty twenty at ten thirty U T C and December thirty-first, twenty twenty-one at "
        "twenty-three oh five and nine seconds U T C plus one",
    ),
    ("on 5/6, 1/1/00, 01/02", "on May sixth, January first, two thousand, zero one slash zero two"),
    ("b. 1950, d. 1990, 19th c. art", "born nineteen fifty, died nineteen ninety, nineteenth century art"),
    ("Genesis 1:1, John 3:16, Psalm 23:4", "Genesis one one, John three sixteen, Psalm twenty-three four"),
    (
        "the 100m dash, a 10m (32ft) passage, another 5 km, every 5 km",
        "the one hundred meter dash, a ten meter (thirty-two feet) passage, another five kilometers, every five kilometers",
    ),
    ("a $5 bill, five $20 bills, a $1 million prize", "a five dollar bill, five twenty dollar bills, a one million dollar prize"),
    ("5 ft 10 in, 12in, 1 in 5, 6 ft 2 in. tall", "five feet ten inches, twelve inches, one in five, six feet two inches tall"),
    (
        "2-1/2 inches, 1/2 mile, 1/2 km/h, 3/4 in., 1/3%",
        "two and a half inches, one half mile, one half kilometer per hour, three quarters of an inch, one third percent",
    ),
    (
        "5 kWh, 10 mAh, 2 fl oz, 3 eV, 5kms",
        "five kilowatt hours, ten milliamp hours, two fluid ounces, three electron volts, five kilometers",
    ),
    (
        "100 kcal/100g, 10 lb/in², 60 beats/min",
        "one hundred kilocalories per one hundred grams, ten pounds per square inch, sixty beats per minute",
    ),
    ("$20/hr, $3/lb, $5/month", "twenty dollars per hour, three dollars per pound, five dollars per month"),
    ("$-5, +$5, +5%, +1, -$5", "minus five dollars, plus five dollars, plus five percent, plus one, minus five dollars"),
    (
        "€1,50, CAD$10, $1 000, $1.000.000, ₹1,00,000",
        "one euro and fifty cents, ten Canadian dollars, one thousand dollars, one million dollars, one hundred thousand rupees",
    ),
    (
        "1.000.000, 1 234 567,89, 1.234.567,89, 1'234'567, 1,5 million, 2,5 km",
        "one million, one million two hundred and thirty-four thousand five hundred and sixty-seven point "
        "eight nine, one million two hundred and thirty-four thousand five hundred and sixty-seven point "
        "eight nine, one million two hundred and thirty-four thousand five hundred and sixty-seven, one point "
        "five million, two point five kilometers",
    ),
    (
        "1.5E10, 1e6, 10^-3, 10^(-3), 10⁻³",
        "one point five times ten to the power of ten, one times ten to the power of six, ten to the power "
        "of minus three, ten to the power of minus three, ten to the power of minus three",
    ),
    (
        "5-3=2, 3 x 4 = 12, 7−2=5, 8÷2, √16, 2x + 1, 3x faster",
        "five minus three equals two, three times four equals twelve, seven minus two equals five, eight "
        "divided by two, square root of sixteen, two x plus one, three times faster",
    ),
    (
        "9.5/10, 4/5 stars, 85/100, 50-50, a 1-800 number",
        "nine point five out of ten, four out of five stars, eighty-five out of one hundred, fifty fifty, "
        "a one eight hundred number",
    ),
    (
        "40.7° N, 74°W, 51°30′26″N",
        "forty point seven degrees north, seventy-four degrees west, fifty-one degrees thirty minutes twenty-six seconds north",
    ),
    ("5% - 10%, $5 - $10", "five percent to ten percent, five dollars to ten dollars"),
    (
        "10.0.0.1:8080, 10.0.0.0/8, 00:1A:2B:3C:4D:5E",
        "one zero dot zero dot zero dot one port eight zero eight zero, one zero dot zero dot zero dot zero "
        "slash eight, 00:1A:2B:3C:4D:5E",
    ),
    ("802.11ac and i7-8700K and 1.5x", "802.11ac and i7-8700K and one point five times"),
    (
        "ZIP 90210, Springfield, IL 62704. Call 911; a 911 call",
        "ZIP nine zero two one zero, Springfield, IL six two seven zero four. Call nine one one; a nine one one call",
    ),
    (
        "(020) 7946 0123, +44 20 7946 0958",
        "zero two zero, seven nine four six, zero one two three, plus four four, two zero, seven nine four "
        "six, zero nine five eight",
    ),
    ("WWII, WW1, MMXXI, MCMXCIX, CD, MIX", "World War two, World War one, twenty twenty-one, nineteen ninety-nine, CD, MIX"),
    ("St John, Mt Fuji, Ft Worth, Prof Lee, 5 Ft", "Saint John, Mount Fuji, Fort Worth, Professor Lee, five Ft"),
    ("the Ford Motor Co. in N.Y.C. and M.Sc.", "the Ford Motor Company in N Y C and M S C."),
    ("v2, V2.1, the 5 W's, 5Ks", "version two, version two point one, the five W's, five Ks"),
    (
        "5m people, 5 m, 120/80 mmHg",
        "five million people, five meters, one hundred and twenty over eighty millimeters of mercury",
    ),
    ("① one ②③, as shown.⁵ Smith⁵, 5㎡, x²", "one one two three, as shown. Smith, five square meters, x squared"),
    ("H̶e̶l̶l̶o̶, 1̶2̶, Zalg̸̡o̷", "Hello, twelve, Zalgo"),
    ("‣ item", "item"),
    ("No.5, Nº 5, N°5", "number five, number five, number five"),
]
GERMAN = [
    ("1.–3. Mai, 1./2. Mai", "erster bis dritter Mai, ersten und zweiten Mai"),
    ("vom 1.5. bis zum 3.10. und", "vom ersten Mai bis zum dritten Oktober und"),
    ("von 9-17 Uhr, um 7 h", "von neun bis siebzehn Uhr, um sieben Uhr"),
    (
        "1 000 000, +5, ±5, +49 221 123456",
        "eine Million, plus fünf, plus minus fünf, plus vier neun, zwei zwei eins, eins zwei drei vier fünf sechs",
    ),
    ("3.50 €, 5,- €, 5,– Euro, 5 ct", "drei Euro fünfzig, fünf Euro, fünf Euro, fünf Cent"),
    (
        "2 1/2, 9/11, 2019/20, 5%ig, 3x, 2x4",
        "zweieinhalb, nine eleven, zweitausendneunzehn zwanzig, fünfprozentig, dreimal, zwei mal vier",
    ),
    ("II. Weltkrieg, Elisabeth II., XX. Jahrhundert", "zweiter Weltkrieg, Elisabeth die Zweite, zwanzigstes Jahrhundert"),
    (
        "20. Jahrhundert, 2. Bundesliga, die 1. und 2. Runde, in der 3. Klasse",
        "zwanzigstes Jahrhundert, zweite Bundesliga, die erste und zweite Runde, in der dritten Klasse",
    ),
    ("1 Jahr, 1 Stunde, 1 Std., Platz 1 Sieger", "ein Jahr, eine Stunde, eine Stunde, Platz eins Sieger"),
    (
        "Mo-Fr, Mo., 5. Mai, 5. u. 6. Mai, s. Abb. 2",
        "Montag bis Freitag, Montag, fünften Mai, fünften und sechsten Mai, siehe Abbildung zwei",
    ),
    ("1. FC Köln e.V., lt. dpa, z.Zt., u.v.m.", "erster FC Köln eingetragener Verein, laut dpa, zurzeit, und vieles mehr."),
    ("@peter, usw.", "at peter, und so weiter."),
]
CHINESE = [
    ("近10年，98年，08年，20年，2020-2021年", "近十年，九八年，零八年，二十年，二零二零到二零二一年"),
    ("2万，12万，2000个，2人，两个", "两万，十二万，两千个，两人，两个"),
    ("5%-10%，.5，+5，±5", "百分之五到百分之十，零点五，正五，正负五"),
    ("RMB 100，100USD，USD 5万", "一百元，一百美元，五万美元"),
    (
        "021 12345678，+86 138 1234 5678，400-800-1234，拨打110，邮编100000",
        "零二幺幺二三四五六七八，加八六幺三八幺二三四五六七八，四零零八零零幺二三四，拨打幺幺零，邮编一零零零零零",
    ),
    ("V1.0，v2.3.4，192.168.1.1，4K", "V一点零，v二点三点四，一九二点一六八点一点一，4K"),
    ("1月-3月，10:00-12:00，8月8日-10日", "一月到三月，十点到十二点，八月八日到十日"),
    ("请看https://example.com/x，谢谢", "请看example 点 com，谢谢"),
    ("5㎡，①②，二〇二〇年，@用户", "五平方米，一 二，二零二零年，艾特用户"),
    ("101室，985高校", "一零一室，九八五高校"),
]
READINGS = {"en": ENGLISH, "de": GERMAN, "zh": CHINESE}
ALL = [(code, text, said) for code, cases in READINGS.items() for text, said in cases]


@pytest.mark.parametrize("code, text, said", ALL)
def test_a_text_is_read_as_a_person_reads_it(code, text, said):
    assert " ".join(spoken_form(text, code).spoken.split()) == said


@pytest.mark.parametrize("code, text, said", ALL)
def test_a_reading_has_no_error_however_a_recogniser_writes_it(code, text, said):
    bare = [] if re.search(r"\d", said) else [re.sub(r"[^\w\s']", " ", said.lower())]
    for written in (text, said, *bare):
        assert normalise(written, code) == normalise(text, code)
