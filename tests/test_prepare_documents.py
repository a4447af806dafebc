"""Documents of the wild: a bad row, line or file costs itself, texts stay as they stand, and languages are those that work."""

import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import store
from salad import SaladError
from salad.prepare import Benchmarks, describe_counts, documents, near_duplicates, prepare_text
from salad.prepare.overlap import words
from salad.prepare.passages import passages, sentences
from salad.prepare.text import TextOptions
from salad.speech.languages import LANGUAGES
from tests.tools import refuse

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
RIVER = "The river runs through the valley and past the old mill. Many people walk there in the evening and talk about the day. "


def faults(source, **asked):
    return [(document.doc_id, document.fault) for document in documents.read(source, **asked)]


def write(path, rows, encoding="utf-8"):
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_bytes(text.encode(encoding))
    return path


def samples(lab, what="text"):
    return store.connect(lab).execute(f"select {what} from samples order by text").fetchall()


def test_a_bad_row_is_one_document_wherever_it_stands(tmp_path):
    bad = ["{", "[1]", '"x"', "null", '{"id": "s", "text": "\\ud83d"}', '{"text": ["a"]}', '{"text": 5}',
           '{"id": "n", "text": null}', '{"id": "none"}', '{"id": "\\udfff", "text": "x"}', "[" * 80_000]  # fmt: skip
    wanted = ["unreadable"] * 7 + ["empty", "empty"] + ["unreadable"] * 2
    source = write(tmp_path / "d.jsonl", [*bad, "", {"id": "good", "text": RIVER}, *bad])
    rows = faults(source)
    assert [fault for _, fault in rows] == [*wanted, None, *wanted] and rows[11] == ("good", None)
    counts = prepare_text(tmp_path / "lab", source, "c")
    assert counts["documents"] == {"read": 23, "kept": 1, "unreadable": 18, "empty": 4}
    assert "23 documents: 18 unreadable, 4 empty, 1 kept" in describe_counts(counts)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_stay_as_they_stand_in_every_encoding_that_tells_itself(tmp_path, encoding):
    texts = [f"One\u2028more {RIVER}", f"Next\u0085line {RIVER}", f"A nul\0sign {RIVER}", f"Café „so“ \r and \x1c {RIVER}"]
    source = write(tmp_path / "d.jsonl", [{"text": text} for text in texts], encoding)
    assert [document.text for document in documents.read(source)] == texts
    source.write_bytes(source.read_bytes().replace(b"\n", b"\r\n") if encoding.startswith("utf-8") else source.read_bytes())
    prepare_text(tmp_path / "lab", source, "c", TextOptions(near=1.0, min_s=2))
    assert sorted(text.strip() for text in texts) == sorted(text for (text,) in samples(tmp_path / "lab"))


def test_another_encoding_is_refused_by_name_and_a_bad_byte_is_one_document(tmp_path):
    good = {"text": f"Gruß {RIVER}"}
    with pytest.raises(SaladError, match="is not UTF-8 .* looks like Latin-1"):
        faults(write(tmp_path / "l.jsonl", [good] * 3, "latin-1"))
    data = json.dumps(good, ensure_ascii=False).encode()
    (tmp_path / "d.jsonl").write_bytes(b"\n".join([data, data.replace(b"\xc3", b""), data]))
    assert [fault for _, fault in faults(tmp_path / "d.jsonl")] == [None, "not UTF-8", None]
    binary = pa.array([b"good", b"bad \xff", b"good"]).cast(pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, binary.buffers()), "id": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "d.parquet")
    assert [fault for _, fault in faults(tmp_path / "d.parquet")] == [None, "not UTF-8", None]


def test_a_damaged_file_among_others_costs_itself_and_alone_it_is_refused(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    rows = [{"id": f"{n}", "text": RIVER + str(n) * (n % 50)} for n in range(20_000)]
    packed = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    (folder / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "b.jsonl.gz").write_bytes(b"no gzip")
    write(folder / "c.jsonl", rows[:2])
    rows_read = faults(folder)
    assert [fault for _, fault in rows_read if fault] == ["unreadable file"] * 2 and rows_read[-2:] == [("0", None), ("1", None)]
    assert len(rows_read) > 1_000
    for name, why in (("b.jsonl.gz", "cannot be read"), ("none.jsonl", "does not exist")):
        with pytest.raises(SaladError, match=why):
            faults(folder / name)
    pq.write_table(pa.table({"text": [RIVER] * 5}), folder / "d.parquet")
    with pytest.raises(SaladError, match="holds Parquet .*d.parquet.* and JSONL"):
        faults(folder)
    for path in folder.glob("*.json*"):
        path.unlink()
    (folder / "e.parquet").write_bytes((folder / "d.parquet").read_bytes()[:-20])
    assert [fault for _, fault in faults(folder)] == [None] * 5 + ["unreadable file"]
    (folder / "f.jsonl.zst").write_bytes(b"x")
    with pytest.raises(SaladError, match="f.jsonl.zst is compressed"):
        faults(folder)


def test_a_column_is_missing_where_no_row_has_it(tmp_path):
    source = write(tmp_path / "d.jsonl", [{"id": "a"}, {"id": "b", "text": RIVER}])
    assert faults(source) == [("a", "empty"), ("b", None)]
    with pytest.raises(SaladError, match="has no column 'body'; it has id"):
        faults(source, column="body")


def test_corpora_under_paths_of_every_name(tmp_path):
    for odd in ("l[a]b", "100%", "a b#?", "it's", "new\nline", "Grüße*"):
        source = tmp_path / odd / "in"
        source.mkdir(parents=True)
        write(source / f"{odd}.jsonl", [{"text": RIVER + str(n)} for n in range(3)])
        counts = prepare_text(tmp_path / odd / "lab", source, "c", chunk=1)
        assert counts["documents"]["kept"] == 3 and len(samples(tmp_path / odd / "lab")) == 3


# ---------------------------------------------------------------------------------------------- languages

GERMAN = ("Am 3. Mai 1998 kam Dr. Meier z. B. um 5 Uhr an. Er wohnt in der Hauptstr. 5 in Bonn. „Komm herein!“, sagte sie. "
          "Das kostet 1.000 Euro und mehr, denn alles ist teurer geworden, und niemand wundert sich darüber.")  # fmt: skip
CHINESE = ("他说：“你好！”然后就走了。今天天气很好，我们去公园散步。这本书的价格是3.5元，一共有120页。"
           "明天你要不要和我一起去图书馆看书？")  # fmt: skip


def test_german_and_chinese_go_through_and_another_language_is_refused_with_those_that_work(tmp_path):
    source = write(tmp_path / "d.jsonl", [{"text": text} for text in (GERMAN, CHINESE, RIVER)])
    for code, spoken in (("de", "eintausend Euro"), ("zh", "一百二十页"), ("de-AT", "eintausend Euro")):
        counts = prepare_text(tmp_path / code, source, "c", TextOptions(language=code))
        assert counts["documents"] == {"read": 3, "kept": 1, "other language": 2} and counts["passages"]["clean"] == 1, code
        (row,) = samples(tmp_path / code, "text, spoken, language, flags")
        assert spoken in row[1] and row[2] == code[:2] and row[3] == [] and not any(c.isdigit() for c in row[1])
    with pytest.raises(SaladError, match='"fr" does not work here.*' + ".*".join(LANGUAGES)):
        prepare_text(tmp_path / "x", source, "c", TextOptions(language="fr"))
    assert prepare_text(tmp_path / "any", source, "c", TextOptions(language="any"))["documents"]["kept"] == 3


def test_a_name_that_is_no_folder_is_refused(tmp_path):
    source = write(tmp_path / "d.jsonl", [{"text": RIVER}])
    for name in ("", "..", "a/b", "../x", ".hidden", "a\nb"):
        with pytest.raises(SaladError, match="no name for a folder"):
            prepare_text(tmp_path / "lab", source, name)
    assert not (tmp_path / "lab").exists()


def test_sentences_of_german_and_chinese_end_where_they_end():
    assert [GERMAN[a:b] for a, b in sentences(GERMAN, "de")] == [
        "Am 3. Mai 1998 kam Dr. Meier z. B. um 5 Uhr an.", "Er wohnt in der Hauptstr. 5 in Bonn.",
        "„Komm herein!“, sagte sie.",
        "Das kostet 1.000 Euro und mehr, denn alles ist teurer geworden, und niemand wundert sich darüber.",
    ]  # fmt: skip
    assert [CHINESE[a:b] for a, b in sentences(CHINESE, "zh")] == [
        "他说：“你好！”", "然后就走了。", "今天天气很好，我们去公园散步。", "这本书的价格是3.5元，一共有120页。",
        "明天你要不要和我一起去图书馆看书？",
    ]  # fmt: skip
    cut_passages, left = passages(CHINESE * 5, 5, 30, LANGUAGES["zh"].characters_per_s, "zh")
    assert all(5 <= item.seconds <= 30 for item in cut_passages) and not left
    assert sum(item.end - item.start for item in cut_passages) == len(CHINESE * 5)


# ---------------------------------------------------------------------------------------------- one form of Unicode

SAME = ["Don't say \"café\" to the office at No. 12, she said again and again today.",
        "Don’t say “café” to the office at No. 12, she said again and again today.",
        "Don't say \"cafe\u0301\" to the o\ufb03ce at No. １２, she said a\u00adgain and a\u200bgain today."]  # fmt: skip


def test_overlap_and_near_duplicates_are_looked_for_in_one_form_of_unicode():
    assert words(SAME[0]) == words(SAME[1]) == words(SAME[2])
    for n in range(3):
        result = Benchmarks({"task": [[SAME[n]]]})
        assert result.too_short == {} and all(result.overlaps(f"{RIVER}{text} {RIVER}") == ["task"] for text in SAME)
    assert near_duplicates(SAME) == {1: (0, 1.0), 2: (0, 1.0)}
    assert Benchmarks({"task": [[CHINESE]]}).overlaps(f"我记得，{CHINESE[10:30]}") == ["task"]
    assert words("你好 world, it's") == ["你", "好", "world", "it's"]


# ---------------------------------------------------------------------------------------------- everything

LETTERS = st.characters(codec="utf-8") | st.sampled_from("\u2028\u0085\0\r\n. 　。“”\u00ad\u0301abc 12")


@settings(max_examples=int(os.environ.get("SALAD_FUZZ", "4")), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.text(LETTERS, max_size=200), min_size=1, max_size=4), st.sampled_from(["en", "de", "zh", "any"]),
       st.lists(st.integers(0, 255), max_size=3), st.integers(0, 2_000))  # fmt: skip
def test_whatever_a_corpus_holds_its_counts_reconcile(tmp_path_factory, texts, code, noise, at):
    folder = tmp_path_factory.mktemp("fuzz")
    data = "".join(json.dumps({"text": text + RIVER}, ensure_ascii=False) + "\n" for text in texts).encode()
    at %= len(data)
    (folder / "d.jsonl").write_bytes(data[:at] + bytes(noise) + data[at:])
    try:
        counts = prepare_text(folder / "lab", folder / "d.jsonl", "c", TextOptions(language=code, min_s=0.5))
    except SaladError as error:
        assert "\n" not in str(error)
        return
    assert counts["documents"]["read"] >= len(texts) and "documents" in describe_counts(
        counts
    )  # reconciled, or it would have raised
    for text, spoken in samples(folder / "lab", "text, spoken"):
        assert text.strip() == text and isinstance(spoken, str)


CLEAN = {"line-separator": ("en", {"read": 2, "kept": 2}), "nel": ("en", {"read": 1, "kept": 1}),
         "nul": ("en", {"read": 1, "kept": 1}),
         "lone-surrogate": ("en", {"read": 3, "kept": 2, "unreadable": 1}), "german": ("de", {"read": 2, "kept": 2}),
         "long-hex-30k": ("en", {"read": 1, "kept": 1}), "long-hex-60k": ("en", {"read": 1, "kept": 1})}  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("case", sorted(CLEAN))
def test_the_shared_cases_of_texts_come_out_right(tmp_path, case):
    if not CASES.is_dir():
        refuse(f"{CASES} is absent", "data")
    code, wanted = CLEAN[case]
    counts = prepare_text(tmp_path, CASES / f"{case}.jsonl", "c", TextOptions(language=code))
    assert counts["documents"] == wanted
    there = "".join(document.text or "" for document in documents.read(CASES / f"{case}.jsonl"))
    result = samples(tmp_path, "text, spoken, flags")
    assert result and all(text in there for text, *_ in result)
    if case in ("line-separator", "nel", "nul"):
        sign = {"line-separator": "\u2028", "nel": "\u0085", "nul": "\0"}[case]
        assert any(sign in text for text, *_ in result)
    if case == "german":
        assert all(not flags for *_, flags in result) and any(
            "neunzehnhundertachtundneunzig" in spoken for _, spoken, _ in result
        )
    if case.startswith("long-hex"):  # no voice reads it: it is in no passage, and is counted
        assert counts["left over"]["long word"] == 1 and all(max(map(len, text.split())) < 100 for text, *_ in result)
