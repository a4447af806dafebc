"""Files of questions, items and predictions as people write them: encodings, line ends, characters within texts."""

import json

import pytest
from test_evaluation import CHOICES, write
from tiny import lab
from tools import shared

from salad import SaladError
from salad.evaluation import answers, harness, items, predictions, tasks

ODD = ["What does\u2028Ben carry?", "What does\u0085Tom carry?", "A nul\0within?", "Vertical\x0btab, form\x0cfeed?", "A 😀?"]


@pytest.fixture
def place(tmp_path):
    folder = lab(tmp_path / "lab")
    (folder / "tasks").mkdir(exist_ok=True)
    return folder


def lines_of(rows, raw=True):
    return [json.dumps(row, ensure_ascii=not raw) for row in rows]


WAYS = {
    "plain": lambda lines: "\n".join(lines).encode() + b"\n", "no last newline": lambda lines: "\n".join(lines).encode(),
    "bom": lambda lines: b"\xef\xbb\xbf" + "\n".join(lines).encode(), "crlf": lambda lines: "\r\n".join(lines).encode() + b"\r\n",
    "empty lines": lambda lines: ("\n\n  \n".join(lines) + "\n\n\r\n").encode(),
    "utf-16": lambda lines: "\n".join(lines).encode("utf-16"), "utf-16, crlf": lambda lines: "\r\n".join(lines).encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("raw", [True, False])
def test_one_row_a_line_and_the_text_as_it_stands(place, way, raw):
    made = [{"item_id": str(n), "context": text, "choices": CHOICES, "answer": 1} for n, text in enumerate(ODD)]
    path = place / "tasks" / "odd.jsonl"
    path.write_bytes(WAYS[way](lines_of(made, raw)))
    assert [item.context for item in tasks.load(place, "odd")] == ODD
    assert [item.context for item in harness.load(place, "odd").items] == [text.strip() for text in ODD]
    asked = place / "questions.jsonl"
    asked.write_bytes(WAYS[way](lines_of([{"question": text, "id": n} for n, text in enumerate(ODD)], raw)))
    assert answers.read_questions(asked) == [(str(n), text, None) for n, text in enumerate(ODD)]
    result = [{"contender": "theirs", "task": "odd", "item": str(n), "modality": "text", "text": "B"} for n in range(len(ODD))]
    (place / "told.jsonl").write_bytes(WAYS[way](lines_of(result, raw)))
    assert [row["correct"] for row in predictions.read(place, place / "told.jsonl")] == [True] * len(ODD)


@pytest.mark.parametrize("way", WAYS)
def test_a_list_of_questions_is_one_a_line(place, way):
    plain = [text for text in ODD if "\0" not in text]
    (place / "questions.txt").write_bytes(WAYS[way](plain))
    assert [question for _, question, _ in answers.read_questions(place / "questions.txt")] == plain


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"question": "a', "line 2: it is not JSON"), ('{"question": 1, "x": "\\ud83d"}', "line 2: .*surrogate"),
        ('{"query": "x"}', 'line 2: write {"question"'), ('{"question": " "}', "line 2: the question is empty"),
        ("[" * 50_000, None),
    ],
)  # fmt: skip
def test_a_line_that_is_no_question_is_named(place, line, message):
    path = place / "q.jsonl"
    path.write_text('{"question": "first"}\n' + line + "\n")
    if message is None:  # no object: it is a question as it stands
        assert len(answers.read_questions(path)) == 2
        return
    with pytest.raises(SaladError, match=message) as error:
        answers.read_questions(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["latin-1", "nowhere", "folder", "empty"])
def test_a_file_that_cannot_be_read_is_one_line(place, what):
    path = place / "x.jsonl"
    if what == "latin-1":
        path.write_bytes('{"question": "Où est le café?"}\n{"question": "très près"}\n'.encode("latin-1"))
    elif what == "folder":
        path.mkdir()
    elif what == "empty":
        path.write_bytes(b"\xef\xbb\xbf\r\n")
    for read in (answers.read_questions, lambda p: predictions.read(place, p), items.rows):
        with pytest.raises(SaladError, match="cannot be read|iconv|holds no") as error:
            read(path)
        assert "\n" not in str(error.value) and "x.jsonl" in str(error.value)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"choices": "abc"}, "choices are a list"), ({"context": 3}, "context is a text"),
        ({"answer": "1"}, "right one's number"),
        ({"answer": True}, "right one's number"), ({"answer": 9}, "none of its choices"), ({"context": "  "}, "empty context"),
    ],
)  # fmt: skip
def test_an_item_of_another_form_is_named_with_its_line(place, change, message):
    good = {"item_id": "a", "context": "What?", "choices": CHOICES, "answer": 0}
    path = place / "tasks" / "forms.jsonl"
    path.write_text(json.dumps(good) + "\n\n" + json.dumps(good | {"item_id": "b"} | change) + "\n")
    with pytest.raises(SaladError, match=f"line 3.*{message}"):
        tasks.load(place, "forms")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"contender": 3}, "contender is 3"), ({"task": ["x"]}, "task is"), ({"voice": 1}, "voice is 1"),
        ({"scores": 3}, "number for each"),
        ({"scores": [1, 2, True]}, "number for each"), ({"scores": [1, 2, 1e999]}, "number for each"),
        ({"scores": {"a": 1, "b": 2, "c": 3}}, "number for each"),
    ],
)  # fmt: skip
def test_a_prediction_of_another_form_is_named_with_its_line(place, change, message):
    write(place, "forms", [{"item_id": "a", "context": "What?", "choices": CHOICES, "answer": 0}])
    row = {"contender": "theirs", "task": "forms", "item": "a", "modality": "text", "scores": [1, 2, 3]} | change
    (place / "p.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(SaladError, match=f"line 1.*{message}"):
        predictions.read(place, place / "p.jsonl")


@pytest.mark.data
def test_the_cases_of_the_wild_are_read(place):
    for name in ("questions-bom.jsonl", "questions-bom.txt"):
        asked = [question for _, question, _ in answers.read_questions(shared(f"cases/{name}"))]
        assert asked == ["What does Ben carry?", "What does Tom carry?"]
    ((_, question, _),) = answers.read_questions(shared("cases/questions-line-separator.jsonl"))
    assert question == "What\u2028does Ben carry?"
    for name in ("task-bom", "task-crlf-empty-line", "task-line-separator"):
        (place / "tasks" / "wild.jsonl").write_bytes(shared(f"cases/{name}.jsonl").read_bytes())
        result = tasks.load(place, "wild")
        assert result[0].context == "What does\u2028Ben carry?" and len(result) == 1 + (name == "task-line-separator")
