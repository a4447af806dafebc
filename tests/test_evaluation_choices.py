"""Answers in words: which choice they name, over phrasings made by rule; what can be read in two ways is not read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tools import shared

from salad.evaluation.contenders import parse_choice

CHOICES = ["A small boy", "A brown dog", "A pretty girl", "A grey cat"]
# {L} the letter, {l} in lower case, {W} its words, {w} in lower case; {X}, {V}, {v} another's
NAMES_ONE = """
{L}|{l}|({L})|({l})|[{L}]|{L}.|{L})|{l})|{L}:|**{L}**|"{L}"|'{L}'| {L} |The answer is {L}.|The answer is {L}|the answer is {l}
Answer: {L}|answer: {l}|The answer is: {L}.|Answer is option {L}.|Option {L}|Option {L} seems right.|option ({L})|Choice {L}
I choose {L}.|I'd go with {L}|I would say {L}.|It's {L}.|My answer is ({L}).|The letter is "{L}".|Correct answer: **{L}**
{L}. {W}|{L}) {W}|({L}) {W}|{L}: {W}|{L} - {W}|{L} – {W}|{L}, {w}|{L} {W}|**{L}. {W}**|The answer is {L}. {W}.
The correct answer is {L}: {W}|The correct answer is ({L}) {W}.|So the answer is {L}, {w}.|{W} ({L})|{W}, so {L}.
{W}|{w}|{W}.|It is {w}.|I think it is {w}|Definitely {w}!|{W}, as I said|Therefore, {L}.|Final answer: {L}|\\boxed{{{L}}}
<answer>{L}</answer>|<think>perhaps {X}, perhaps {L}</think>{L}|{L} is correct.|{L} is the best answer|{L} because it fits.
The best choice is {L}, because it fits.|I believe the correct answer is {L}.
"""
NAMES_NONE = """
{L}. {V}|({L}) {V}|The answer is {L}. {V}.|{L} or {X}|Either {L} or {X}.|Both {L} and {X}|{L}, {X}|{L}/{X}|({L}) ({X})
Not {L}.|The answer is not {L}.|It isn't {L}.|{L} is wrong.|{L} is not correct|{W} is incorrect|It is not {w}.|neither {L} nor {X}
{W} or {v}|The answer is {L}, no, {X}.|It could be {L}. It could be {X}.|Between {L} and {X}, hard to say|<think>it is {L}
I am not sure.|None of these.|The answer is E.|E. {W}|We will see|A lot of things|I|2
"""


def phrasings(patterns):
    for pattern in patterns.strip().replace("\n", "|").split("|"):
        for i, letter in enumerate("ABCD"):
            j = (i + 1) % 4
            yield i, pattern.format(L=letter, l=letter.lower(), W=CHOICES[i], w=CHOICES[i].lower(), X="ABCD"[j], V=CHOICES[j],
                                    v=CHOICES[j].lower())  # fmt: skip


def test_every_phrasing_that_names_one_choice_is_read():
    result = list(phrasings(NAMES_ONE))
    assert len(result) > 200
    assert not [(text, want) for want, text in result if parse_choice(text, CHOICES) != want]


def test_letter_and_words_that_disagree_two_names_and_refusals_are_unread():
    result = list(phrasings(NAMES_NONE))
    assert len(result) > 100
    assert not [text for _, text in result if parse_choice(text, CHOICES) is not None]


@pytest.mark.parametrize(
    "answer, choices, want",
    [
        ("It is vitamin D.", ["Vitamin A", "Vitamin C", "Vitamin D", "Vitamin K"], 2),
        ("It is vitamin D.", ["milk", "fish", "sun", "bread"], None),
        ("Hepatitis B is a virus", ["x", "y"], None), ("Grade A milk", ["x", "y"], None), ("We need a plan B.", ["x", "y"], None),
        ("It depends on the B vitamins", ["x", "y"], None), ("A man went home.", ["x", "y"], None),
        ("He was in the U.S.", ["x", "y"], None), ("I'm on the A-team", ["x", "y"], None),
        ("E. coli", ["E. coli", "Yeast", "Mould"], 0), ("C. elegans", ["E. coli", "C. elegans"], 1),
        ("C", ["C", "B", "A"], None),  # by its letter the third, by its words the first
        ("-5", ["5", "-5"], 1), ("5", ["5", "-5"], 0), ("5.5", ["5", "6"], None), ("1,500", ["500", "1"], None),
        ("答案是巴黎", ["伦敦", "巴黎"], 1), ("Ｂ", ["x", "y"], 1),
        ("A small boy and a dog", ["A small boy", "A small boy and a dog"], 1),
    ],
)  # fmt: skip
def test_a_letter_counts_only_where_it_stands_as_one(answer, choices, want):
    assert parse_choice(answer, choices) == want


@pytest.mark.data
def test_the_cases_of_the_wild_are_read_as_a_person_would():
    for line in shared("cases/choices.jsonl").read_text().split("\n"):
        if line:
            case = json.loads(line)
            wanted = {None if part == "null" else int(part) for part in str(case["want"]).split(" or ")}
            assert parse_choice(case["answer"], case["choices"]) in wanted, case["answer"]


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=12), min_size=2, max_size=5))
def test_any_text_is_read_or_not_without_an_error_and_its_own_words_never_as_another(text, choices):
    result = parse_choice(text, choices)
    assert result is None or 0 <= result < len(choices)
