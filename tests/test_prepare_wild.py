"""Lists, folders and documents as people bring them: other delimiters, arrays, spellings of names, links, missing values."""

import gzip
import json
import os
import unicodedata

import numpy as np
import pytest
import soundfile

from salad import SaladError
from salad.prepare import documents
from salad.prepare.duplicates import Seen
from salad.prepare.recordings import not_listed, recordings
from salad.speech.audio import Unusable

SOUND = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000).astype(np.float32)


def wav(path, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, SOUND, 16_000, **how)
    return path


def outcome(source) -> list[tuple[str, str]]:
    """(text, seconds or the reason for which it is set aside) of all that a source lists, and of the files that it does not."""
    found, files = [], Seen()
    for row in recordings(source):
        files.add([row.file] if row.file else [])
        try:
            if row.fault:
                raise Unusable(*row.fault)
            samples, rate = row.load(60.0)
            found.append((row.text, f"{len(samples) / rate:g} s"))
        except Unusable as error:
            found.append((row.text, error.args[0]))
    beside = [(row.file, row.fault[0]) for row in not_listed(source, "auto", "en", files)] if source.is_dir() else []
    return found + beside


READ = {
    "semicolons": ("l.csv", "path;text\na.wav;hello, you\n", "hello, you"),
    "excel's separator": ("l.csv", "sep=;\npath;text\na.wav;hello\n", "hello"),
    "excel's comma": ("l.csv", "sep=,\npath,text\na.wav,hello\n", "hello"),
    "bars": ("l.csv", "path|text\na.wav|hello, you\n", "hello, you"),
    "tabs in .csv": ("l.csv", "path\ttext\na.wav\thello, you\n", "hello, you"),
    "commas in .tsv": ("l.tsv", 'path,text\na.wav,"hello, you"\n', "hello, you"),
    "quoted header": ("l.tsv", '"path"\t"text"\n"a.wav"\t"say ""hi"""\n', 'say "hi"'),
    "quotes in a text": ("l.tsv", 'path\ttext\na.wav\t"hi" she said\n', '"hi" she said'),
    "capitals": ("l.tsv", "PATH\tText\na.wav\thello\n", "hello"),
    "DeepSpeech": ("l.csv", "wav_filename,wav_filesize,transcript\na.wav,32044,hello\n", "hello"),
    "blanks around": ("l.tsv", "path \t text\n a.wav \t hello \n", "hello"),
    "an array": ("l.json", json.dumps([{"path": "a.wav", "text": "hello"}], indent=1), "hello"),
    "an array on a line": ("l.json", json.dumps([{"path": "a.wav", "text": "hello"}]), "hello"),
    "datasets' sound": ("metadata.jsonl", '{"audio": {"path": "a.wav", "bytes": null}, "text": "hello"}\n', "hello"),
    "gzip": ("l.tsv.gz", gzip.compress(b"path\ttext\na.wav\thello\n"), "hello"),
    "a file's own dot": ("l.tsv", "path\ttext\n./a.wav\thello\n", "hello"),
}


@pytest.mark.parametrize("case", READ)
def test_a_list_in_another_form_is_read_where_its_header_decides(tmp_path, case):
    name, content, text = READ[case]
    wav(tmp_path / "a.wav")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert outcome(tmp_path / name if name.endswith(".json") else tmp_path) == [(text, "1 s")]


@pytest.mark.parametrize(
    "listed, there",
    [
        ("clips\\a.wav", "clips/a.wav"), (" a.wav", "a.wav"), ("caf\u00e9.wav", "cafe\u0301.wav"),
        ("cafe\u0301.wav", "caf\u00e9.wav"), ("a\nb.wav", "a\nb.wav"), ("50% [x] #1?.wav", "50% [x] #1?.wav"),
        ("日本.wav", "日本.wav"), ("a.wav", "clips/a.wav"), ("\u1112\u1161\u11ab.wav", "한.wav"),
    ],
)  # fmt: skip
def test_a_file_is_found_however_its_name_is_spelled_and_is_counted_once(tmp_path, listed, there):
    wav(tmp_path / there)
    (tmp_path / "l.jsonl").write_text(json.dumps({"path": listed, "text": "hello"}) + "\n")
    assert outcome(tmp_path) == [("hello", "1 s")]


def test_a_file_whose_name_is_as_listed_comes_before_another_spelling(tmp_path):
    wav(tmp_path / "a\\b.wav")
    soundfile.write(wav(tmp_path / "a" / "b.wav"), SOUND[:8_000], 16_000)
    (tmp_path / "l.jsonl").write_text(json.dumps({"path": "a\\b.wav", "text": "hello"}) + "\n")
    assert outcome(tmp_path)[0] == ("hello", "1 s")


def test_missing_values_are_no_texts(tmp_path):
    wav(tmp_path / "a.wav")
    rows = ['{"path": "a.wav", "text": NaN}', '{"path": NaN, "text": "x"}', '{"path": "a.wav", "text": null}',
            '{"path": "a.wav", "start_s": 0.5, "text": "nan", "speaker": NaN}']  # fmt: skip
    (tmp_path / "l.jsonl").write_text("\n".join(rows) + "\n")
    found = list(recordings(tmp_path / "l.jsonl"))
    assert [(row.text, row.speaker) for row in found] == [("", "unknown"), ("x", "unknown"), ("", "unknown"), ("nan", "unknown")]
    assert outcome(tmp_path / "l.jsonl")[1] == ("x", "missing")


def test_a_list_of_carriage_returns_and_one_that_no_delimiter_parts_are_refused(tmp_path):
    for name, content, says in [("l.tsv", "path\ttext\ra.wav\thi\r", "carriage returns alone"),
                                ("m.csv", "LJ1|Hi|Hi\n", "needs a path"),
                                ("n.json", '{"data": [{"path": "a.wav", "text": "x"}]}', "needs a path")]:  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(SaladError, match=says):
            list(recordings(tmp_path / name))


def test_joined_files_with_a_byte_order_mark_each_are_read_whole(tmp_path):
    wav(tmp_path / "a.wav")
    lines = [b'\xef\xbb\xbf{"path": "a.wav", "text": "one"}', b'\xef\xbb\xbf{"path": "a.wav", "start_s": 0.5, "text": "two"}']
    (tmp_path / "l.jsonl").write_bytes(b"\n".join(lines))
    assert outcome(tmp_path) == [("one", "1 s"), ("two", "0.5 s")]


def test_links_to_folders_are_followed_once(tmp_path):
    chapter = tmp_path / "store" / "84" / "1"
    wav(chapter / "84-1-0.flac")
    wav(chapter / "84-1-1.flac")
    (chapter / "84-1.trans.txt").write_text("84-1-0 HELLO\n")
    source = tmp_path / "source"
    source.mkdir()
    os.symlink(tmp_path / "store" / "84", source / "84")
    os.symlink(source, source / "loop")
    assert outcome(source) == [("Hello", "1 s"), ("84/1/84-1-1.flac", "no text")]
    texts = tmp_path / "texts"
    texts.mkdir()
    (tmp_path / "store" / "d.jsonl").write_text('{"text": "words"}\n')
    os.symlink(tmp_path / "store", texts / "more")
    assert [document.text for document in documents.read(texts)] == ["words"]


def test_what_is_no_file_is_missing(tmp_path):
    wav(tmp_path / "sub" / "b.wav")
    os.mkfifo(tmp_path / "fifo.wav")
    os.symlink(tmp_path / "gone.wav", tmp_path / "dangling.wav")
    os.symlink(tmp_path / "round.wav", tmp_path / "round.wav")
    names = ["sub", ".", "..", "fifo.wav", "dangling.wav", "round.wav", "x" * 5_000 + ".wav", "nul\0.wav", "http://host/a.wav"]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps({"path": name, "text": "x"}) + "\n" for name in names))
    assert [reason for text, reason in outcome(tmp_path) if text == "x"] == ["missing"] * len(names)


def test_documents_of_an_array_and_without_ids_are_read(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps([{"text": "one", "id": "a"}, {"text": "two"}, {"text": None}, 5], indent=1))
    found = list(documents.read(tmp_path / "d.json"))
    assert [(row.text, row.fault) for row in found] == [("one", None), ("two", None), (None, "empty"), (None, "unreadable")]
    (tmp_path / "n.jsonl").write_text('{"text": "one", "id": NaN}\n{"text": "two", "id": NaN}\n{"text": NaN}\n')
    found = list(documents.read(tmp_path / "n.jsonl"))
    assert [row.doc_id for row in found[:2]] == ["n:0", "n:1"] and found[2].fault == "unreadable"
    assert unicodedata.is_normalized("NFC", found[0].text)
