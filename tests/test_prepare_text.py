"""`salad prepare text`: documents to passages that can be spoken, with everything left out counted and explained."""

import gzip
import json
import multiprocessing
import random
import re
import shutil
import signal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tools import ROUNDS, die_at

import store
from salad import SaladError
from salad.prepare import Benchmarks, near_duplicates, prepare_text
from salad.prepare.duplicates import BANDS, ROWS, signatures
from salad.prepare.overlap import words
from salad.prepare.passages import passages, sentences
from salad.prepare.text import TextOptions
from workbench import cli

NOUNS = "river city teacher window garden letter engine forest market summer island doctor kitchen mountain".split()
VERBS = "crosses follows paints remembers watches builds carries forgets measures visits".split()


def prose(seed: int, n: int = 6) -> str:
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        a, b, c, d = rng.sample(NOUNS, 4)
        made.append(f"The old {a} near the {b} {rng.choice(VERBS)} every {c} that a {d} {rng.choice(VERBS)}.")
    return " ".join(made)


def write_jsonl(path, texts, **more):
    path.write_text("".join(json.dumps({"id": f"d{n}", "text": t} | more) + "\n" for n, t in enumerate(texts)))
    return path


def salad(capsys, *args) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in args])
    output = capsys.readouterr()
    return stop.value.code, output.out, output.err


def rows(lab, what="sample_id, text, spoken, licence, flags, reasons, benchmarks, doc_id, language"):
    return store.connect(lab).execute(f"select {what} from samples order by sample_id").fetchall()


# ------------------------------------------------------------------------------------------------ passages


def test_sentences_end_where_they_end():
    text = (
        'Dr. J. Smith paid $1,000.50 to e.g. the U.S. army in 1998. Was it H2O? "Yes!" she said. He left at 5 p.m. '
        "and came back.\nA heading\nThe last one. (Really.) Done"
    )
    assert [text[a:b] for a, b in sentences(text)] == [
        "Dr. J. Smith paid $1,000.50 to e.g. the U.S. army in 1998.",
        "Was it H2O?",
        '"Yes!" she said.',
        "He left at 5 p.m. and came back.",
        "A heading",
        "The last one.",
        "(Really.)",
        "Done",
    ]


@pytest.mark.parametrize("seed", range(5))
def test_passages_are_whole_sentences_of_five_to_thirty_seconds_and_nothing_is_lost(seed):
    rng = random.Random(seed)
    text = " ".join(prose(rng.random(), rng.randint(1, 4)) + rng.choice(["", "\n", " It rained in 1998."]) for _ in range(8))
    spans = sentences(text)
    starts, ends = {a for a, _ in spans}, {b for _, b in spans}
    cut_passages, left = passages(text, 5, 30)
    assert cut_passages and all(5 <= p.seconds <= 30 and p.start in starts and p.end in ends for p in cut_passages)
    assert all(a.end <= b.start for a, b in zip(cut_passages, cut_passages[1:], strict=False))
    inside = sum(any(p.start <= a and b <= p.end for p in cut_passages) for a, b in spans)
    assert inside == len(spans) or left["short"] == 1


def test_a_sentence_that_is_too_long_and_a_rest_that_is_too_short_are_counted():
    endless = "and then " * 100 + "it stopped."
    cut_passages, left = passages(f"{prose(1, 3)} {endless.capitalize()} Short.", 5, 30)
    assert len(cut_passages) == 1 and left == {"long sentence": 1, "short": 1}


# ---------------------------------------------------------------------------------------------- duplicates


def jaccard(a, b):
    def shingles(text):
        w = words(text)
        return {tuple(w[i : i + 3]) for i in range(len(w) - 2)}

    a, b = shingles(a), shingles(b)
    return len(a & b) / len(a | b)


def test_near_duplicates_are_those_that_jaccard_similarity_says():
    rng, texts = random.Random(0), []
    for seed in range(60):
        text = prose(seed, 5)
        w = text.split()
        for _ in range(rng.randint(0, 6)):  # of little to much change
            w[rng.randrange(len(w))] = rng.choice(NOUNS)
        texts += [text, " ".join(w)]
    result = near_duplicates(texts, 0.75)
    true = {(i, j): jaccard(texts[j], texts[i]) for i in range(len(texts)) for j in range(i)}
    for n, (of, similarity) in result.items():
        assert of < n and similarity == pytest.approx(true[n, of], abs=0.16)
    surely = {n for (n, _), s in true.items() if 0.88 <= s < 1}
    surely_not = set(range(len(texts))) - {n for (n, _), s in true.items() if s >= 0.62}
    assert len(surely) > 5 and len(surely_not) > 50
    assert surely - set(result) == {n for n in surely if texts[n] in texts[:n]} and not surely_not & set(result)


def test_signatures_estimate_similarity():
    a, b = prose(0, 8), prose(0, 6)
    first, other = signatures([a, b])
    assert first.shape == (BANDS * ROWS,) and (first == other).mean() == pytest.approx(jaccard(a, b), abs=0.13)


def test_overlap_is_thirteen_words_in_a_row_whatever_the_case_and_punctuation():
    words14 = "if you want to keep the soup warm for longer then use a lid"
    result = Benchmarks({"piqa": [[words14, "too short"]], "arc": [["one two three"], [prose(5)]]})
    assert result.overlaps(f'He said: "{words14.upper().replace(" ", ", ")}!"') == ["piqa"]
    assert result.overlaps(" ".join(words14.split()[1:-1]) + " and more") == []
    assert result.overlaps(prose(5) + " " + words14) == ["arc", "piqa"]
    assert result.too_short == {"arc": 1}


# ------------------------------------------------------------------------------------------------ the command

CASES = {
    "[a](/b/)": ("markup", "Read a before"),
    "$1,000": (None, "Read one thousand dollars before"),
    "H2O": (None, "Read H two O before"),
    "1998": (None, "Read nineteen ninety-eight before"),
    "e.g.": (None, "Read for example before"),
    "https://example.org/a?b=c": ("url", "Read example dot org before"),
    "$x^2 + y = z$": ("formula", "Read"),
}


def test_every_case_is_spoken_or_marked_with_its_reason(tmp_path):
    texts = [f"Read {case} before the night falls. {prose(n, 1)}" for n, case in enumerate(CASES)]
    counts = prepare_text(tmp_path / "lab", write_jsonl(tmp_path / "in.jsonl", texts), "c", TextOptions(min_s=2))
    rows_read = {text: (spoken, flags, json.loads(reasons)) for _, text, spoken, _, flags, reasons, *_ in rows(tmp_path / "lab")}
    assert list(rows_read) and set(rows_read) == set(texts)
    for (case, (flag, spoken)), text in zip(CASES.items(), texts, strict=True):
        statement, flags, reasons = rows_read[text]
        assert statement.startswith(spoken) and flags == ([flag] if flag else []), case
        assert not flag or reasons[flag] in text
    assert counts["passages"] == {"cut": 7, "clean": 4, "flagged": 3, "exact duplicate": 0}
    assert counts["flags"] == {"formula": 1, "markup": 1, "url": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of known kind, and a task that one of them overlaps."""
    texts = [prose(seed, 12) for seed in range(40)]
    texts[7] = texts[3]
    texts[8] = texts[4].replace("The old", "The very old", 1)
    texts[9] = "Der alte Fluss fließt langsam durch die Stadt, und die Kinder sehen ihm zu, weil sie nicht schlafen. " * 3
    texts[10] = " "
    texts[11] = "Too short."
    texts[12] += " See https://www.example.org/page for the rest of it."
    folder = tmp_path_factory.mktemp("corpus")
    item = {"item_id": "0", "context": " ".join(texts[5].split()[2:14]), "choices": [texts[5].split()[14], "no"], "answer": 0}
    (folder / "tasks").mkdir()
    (folder / "tasks" / "piqa.jsonl").write_text(json.dumps(item) + "\n")
    write_jsonl(folder / "in.jsonl", texts)
    with open(folder / "in.jsonl", "a") as file:
        file.write('{"id": "broken", "te')
    return folder


def lab_of(corpus, tmp_path):
    shutil.copytree(corpus / "tasks", tmp_path / "lab" / "tasks")
    return tmp_path / "lab"


def test_the_counts_reconcile_and_say_what_was_left_out(corpus, tmp_path):
    lab = lab_of(corpus, tmp_path)
    options = TextOptions(licence="CC0-1.0")
    counts = prepare_text(lab, corpus / "in.jsonl", "broad", options, chunk=7)
    assert counts["documents"] == {
        "read": 41, "kept": 37, "no passage": 1, "empty": 1, "unreadable": 1, "other language": 1
    }  # fmt: skip
    result = counts["passages"]
    assert result["cut"] == result["clean"] + result["flagged"] + result["exact duplicate"]
    texts = pq.read_table(lab / "corpora" / "broad")
    rows_read = rows(lab)
    assert len(rows_read) == result["clean"] + result["flagged"] and len(texts) == result["clean"]
    by_flag = {flag: [row for row in rows_read if flag in row[4]] for flag in ("near-duplicate", "url", "benchmark overlap")}
    assert result["exact duplicate"] >= 2 and {row[7] for row in by_flag["near-duplicate"]} == {"d8"}
    assert re.fullmatch(r"\d\.\d\d like d4", json.loads(by_flag["near-duplicate"][0][5])["near-duplicate"])
    assert [(row[6], row[7]) for row in by_flag["benchmark overlap"]] == [(["piqa"], "d5")]
    assert {row[7] for row in by_flag["url"]} == {"d12"}
    assert counts["benchmarks"] == {"piqa": 1} and counts["licences"] == {"CC0-1.0": len(rows_read)}
    assert {row[8] for row in rows_read} == {"en"}
    assert set(texts["text"].to_pylist()) == {row[1] for row in rows_read if not row[4]}
    assert json.loads((lab / "corpora" / "broad.json").read_text())["counts"] == counts
    assert sorted(path.name for path in (lab / "corpora").iterdir()) == ["broad", "broad.json"]
    # again: nothing is done; another corpus under this name is refused, in one line
    before = {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()}
    assert prepare_text(lab, corpus / "in.jsonl", "broad", options, chunk=7) == counts
    assert before == {path: path.stat().st_mtime_ns for path in lab.rglob("*") if path.is_file()}
    # what is lost is made again, and what was damaged once it is out of the way
    wanted = {path: path.read_bytes() for path in before if path.suffix == ".parquet"}
    next(path for path in wanted if "corpora" in path.parts).unlink()
    damaged = next(path for path in wanted if "tables" in path.parts)
    damaged.write_bytes(wanted[damaged][:-9])
    store.verify(lab, repair=True)
    assert prepare_text(lab, corpus / "in.jsonl", "broad", options, chunk=7) == counts
    assert wanted == {path: path.read_bytes() for path in wanted}
    with pytest.raises(SaladError, match="licence was 'CC0-1.0'; take another --name"):
        prepare_text(lab, corpus / "in.jsonl", "broad", TextOptions(), chunk=7)


def test_parquet_jsonl_gzip_and_a_saved_dataset_give_the_same_samples(corpus, tmp_path):
    import datasets

    rows_read = [json.loads(line) for line in (corpus / "in.jsonl").read_text().splitlines()[:-1]]
    sources = tmp_path / "sources"
    (sources / "parts").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows_read[:20]), sources / "parts" / "a.parquet")
    pq.write_table(pa.Table.from_pylist(rows_read[20:]), sources / "parts" / "b.parquet")
    with gzip.open(sources / "in.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows_read)
    datasets.Dataset.from_list(rows_read).save_to_disk(sources / "saved")
    results = []
    for name in ("parts", "in.jsonl.gz", "saved"):
        counts = prepare_text(tmp_path / name, sources / name, "c")
        results.append((counts, rows(tmp_path / name, "sample_id, text, flags, doc_id")))
    assert results[0] == results[1] == results[2] and results[0][0]["documents"]["read"] == 40


def test_progress_tells_how_many_documents_there_are(corpus, tmp_path):
    seen = []
    prepare_text(tmp_path, corpus / "in.jsonl", "c", chunk=20, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(20, 41), (40, 41), (41, 41), (1, 3), (2, 3), (3, 3)]  # cut, then published


def _prepare(lab, source, dies_at):
    die_at(dies_at)
    prepare_text(lab, source, "broad", chunk=3)


def test_a_killed_preparation_is_taken_up_and_gives_the_same_bytes(corpus, tmp_path):
    clean = lab_of(corpus, tmp_path / "clean")
    counts = prepare_text(clean, corpus / "in.jsonl", "broad", chunk=3)
    wanted = {p.relative_to(clean): p.read_bytes() for p in clean.rglob("*.parquet")}
    fork, rng = multiprocessing.get_context("fork"), random.Random(0)
    killed = 0
    for n in range(ROUNDS):
        lab = lab_of(corpus, tmp_path / str(n))
        for _ in range(4):
            process = fork.Process(target=_prepare, args=(lab, corpus / "in.jsonl", rng.randint(1, 40)))
            process.start()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        assert prepare_text(lab, corpus / "in.jsonl", "broad", chunk=3) == counts
        assert {p.relative_to(lab): p.read_bytes() for p in lab.rglob("*.parquet")} == wanted
    assert killed >= ROUNDS


def test_two_workers_do_the_same(corpus, tmp_path):
    lab = lab_of(corpus, tmp_path)
    counts = prepare_text(lab, corpus / "in.jsonl", "broad", chunk=10, workers=2)
    alone = lab_of(corpus, tmp_path / "alone")
    assert counts == prepare_text(alone, corpus / "in.jsonl", "broad", chunk=10) and rows(lab) == rows(alone)


def test_the_command_tells_its_counts_and_its_errors_in_a_line(corpus, tmp_path, capsys):
    lab = lab_of(corpus, tmp_path)
    asked = ("--name", "broad", "--licence", "CC0-1.0", "--lab", lab)
    code, out, err = salad(capsys, "prepare", "text", corpus / "in.jsonl", *asked)
    assert code == 0 and err == "", err
    assert "41 documents: 37 kept" in out and "1 unreadable" in out and "near-duplicate" in out and "piqa 1" in out
    for args, message in (
        ((tmp_path / "nothing",), "does not exist"),
        ((corpus / "in.jsonl", "--column", "body"), "has no column 'body'; it has id, text"),
        ((corpus / "in.jsonl", "--min-s", "40"), "the first must be below the second"),
        ((corpus / "in.jsonl", "--tasks", "pika"), "did you mean 'piqa'?"),
    ):
        code, out, err = salad(capsys, "prepare", "text", *args, "--name", "other", "--lab", lab)
        assert code == 2 and message in err and err.count("\n") == 1 and not (lab / "corpora" / "other").exists(), err


# ------------------------------------------------------------------------------------------------ answers


def test_an_answer_keeps_its_text_whole_and_stands_beside_it_in_samples_and_corpus(tmp_path, capsys):
    questions = [prose(1, 1), "Who bakes bread?", prose(2, 12), prose(3, 1), "Why?"]
    answers = ["It does not cross.", "Clara does.", "Too long to be said.", "  ", None]
    source = tmp_path / "asked.jsonl"
    rows_of = [{"id": f"q{n}", "question": q, "answer": a} for n, (q, a) in enumerate(zip(questions, answers, strict=True))]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    lab = tmp_path / "lab"
    result = ("prepare", "text", source, "--name", "asked", "--column", "question", "--lab", lab)
    code, out, _ = salad(capsys, *result, "--answer", "answer")
    assert code == 0 and "2 kept" in out and "2 no answer" in out and "1 long text" in out
    assert dict(rows(lab, "text, answer")) == dict(zip(questions[:2], answers[:2], strict=True))
    corpus = pq.read_table(lab / "corpora" / "asked").to_pylist()
    assert [(row["text"], row["answer"]) for row in corpus] == list(zip(questions[:2], answers[:2], strict=True))
    code, _, err = salad(capsys, *result, "--answer", "reply")
    assert code and "tells of another corpus 'asked': answer was 'answer'" in err
    other = ("prepare", "text", source, "--name", "other", "--column", "question", "--lab", lab)
    code, _, err = salad(capsys, *other, "--answer", "reply")
    assert code and "no column 'reply'; it has id, question, answer. Name it with --answer" in err


def test_an_answer_is_looked_for_among_the_benchmarks_too(tmp_path):
    item = prose(7, 2)
    (tmp_path / "lab" / "tasks").mkdir(parents=True)
    (tmp_path / "lab" / "tasks" / "known.jsonl").write_text(
        json.dumps({"item_id": "1", "context": "Say:", "choices": [item, "no"], "answer": 0}) + "\n"
    )
    source = tmp_path / "asked.jsonl"
    source.write_text(json.dumps({"text": "Tell me about it, please.", "answer": item}) + "\n")
    prepare_text(tmp_path / "lab", source, "asked", TextOptions(answer="answer"))
    assert rows(tmp_path / "lab", "flags, benchmarks") == [(["benchmark overlap"], ["known"])]
