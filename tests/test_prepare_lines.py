"""Text files that people bring: lines end where they end, encodings are told or named, one bad line is one."""

import gzip
import json

import pytest

from store.errors import StoreError
from store.lines import encoding_of, lines, rows

TEXT = "one\u2028still one\u0085and one\x0b\x0c\x1c\r\ntwo é\x00 文\r\n\r\nfour"
WANTED = ["one\u2028still one\u0085and one\x0b\x0c\x1c", "two é\x00 文", "", "four"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_ends_with_a_line_feed_alone_in_every_encoding_that_tells_itself(tmp_path, encoding, packed):
    data = TEXT.encode(encoding) if not encoding.endswith("-bom") else ("\ufeff" + TEXT).encode(encoding[:-4])
    path = tmp_path / ("t.txt.gz" if packed else "t.txt")
    path.write_bytes(gzip.compress(data) if packed else data)
    rows = list(lines(path, encoding_of(path)))
    assert [line.text for line in rows] == WANTED and [line.number for line in rows] == [1, 2, 3, 4]


@pytest.mark.parametrize(("data", "named"), [
    ("a\tJosé\nb\tx\n".encode("latin-1"), "Latin-1"), ("a\t“x”\n".encode("cp1252"), "Latin-1 or Windows-1252"),
    (("path\ttext\n" + "a\tnaïve\n" * 2 + "b\tplain\n" * 50).encode("latin-1"), "Latin-1"),
    ("a\tこんにちは世界\n".encode("shift_jis"), "Shift JIS"), ("a\tпривет мир\n".encode("koi8-r"), "KOI8"),
    ("a\t你好，世界\n".encode("gbk"), "another encoding"), ("a\tb\n".encode("utf-16-le"), "UTF-16 without"),
    ("a\tb\n".encode("utf-32-be"), "UTF-32 without"),
])  # fmt: skip
def test_another_encoding_is_refused_by_name(tmp_path, data, named):
    (tmp_path / "list.tsv").write_bytes(data)
    with pytest.raises(StoreError, match=named) as error:
        encoding_of(tmp_path / "list.tsv")
    assert "list.tsv" in str(error.value) and "\n" not in str(error.value) and "onvert it" in str(error.value)


def test_a_bad_line_among_good_ones_is_one(tmp_path):
    path = tmp_path / "l.jsonl"
    good = b'{"a": "caf\xc3\xa9"}'
    bad = [b'{"a": "\xff\xfe"}', b'{"a": ', b"[1]", b"null", b"7", b'{"a": "\\ud83d"}', b'{"a": {"b": ["\\uDE00x"]}}',
           b"[" * 90_000, b'{"a": ' + b"9" * 6_000 + b"}"]  # fmt: skip
    path.write_bytes(b"\n".join([good, *bad, b"", b'{"a": "\\ud83d\\ude00"}', good]))
    rows_read = list(rows(path, encoding_of(path)))
    assert [row.number for row in rows_read if row.value] == [1, 12, 13] and rows_read[-2].value == {"a": "😀"}
    assert len(rows_read) == len(bad) + 3 and all(row.fault for row in rows_read if row.value is None)
    for n, why in ((1, "0xff"), (2, "not JSON"), (3, "list"), (6, "surrogate")):
        assert why in rows_read[n].fault


def test_a_file_that_breaks_off_gives_what_stands_before(tmp_path):
    whole = b"".join(json.dumps({"n": n, "x": "abc" * (n % 7)}).encode() + b"\n" for n in range(50_000))
    path = tmp_path / "l.jsonl.gz"
    packed = gzip.compress(whole)
    path.write_bytes(packed[: len(packed) // 2])
    rows_read = list(rows(path, encoding_of(path)))
    assert len(rows_read) > 1_000 and all(row.value["n"] == n for n, row in enumerate(rows_read[:-1]))
    assert rows_read[-1].value is None and "from here on" in rows_read[-1].fault
    with pytest.raises(StoreError, match="does not exist"):
        list(lines(tmp_path / "none"))
    (tmp_path / "odd.txt").write_bytes("ab\ncd".encode("utf-16")[:-1])
    assert [line.text for line in lines(tmp_path / "odd.txt", "utf-16")][:1] == ["ab"]
