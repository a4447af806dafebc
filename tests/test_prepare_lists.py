"""Lists of recordings of the wild: every row is read as it stands, or set aside with its reason, and nothing else is lost."""

import base64
import csv
import gzip
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import store
from salad import SaladError
from salad.prepare import SpeechOptions, describe_counts, prepare_speech
from salad.prepare.recordings import recordings
from salad.prepare.tars import split
from salad.speech.audio import Unusable
from tests.test_prepare_speech import aside, query, recogniser, record, tar_of  # noqa: F401  the fixture
from tests.tones import tones
from tests.tools import refuse

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
TEXTS = ["the cat sat on a mat", "a dog ran over the hill", "we paid for dinner today"]
EVERYTHING = SpeechOptions(max_cer=99)


def rows_of(source, layout="auto", language="en"):
    """id -> seconds, or the reason for which it is set aside, of everything that `source` lists."""
    by_name = {}
    for number, recording in enumerate(recordings(source, layout, language)):
        try:
            if recording.fault:
                raise Unusable(*recording.fault)
            samples, rate = recording.load()
            result = round(len(samples) / rate, 3)
        except Unusable as error:
            result = error.args[0]
        by_name[recording.id if recording.id not in by_name else f"{recording.id}/{number}"] = result
    return by_name


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two sounds of one second each in `a.wav`, one in `b.flac`."""
    made = tmp_path_factory.mktemp("sounds")
    second = 0.5 * np.sin(np.arange(16_000) * 0.3).astype(np.float32)
    soundfile.write(made / "a.wav", np.concatenate([second, second]), 16_000)
    soundfile.write(made / "b.flac", second, 16_000)
    return made


def listing(folder, name, text, encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return folder / name


# ------------------------------------------------------------------------------------------------ numbers, parts


@pytest.mark.parametrize(("value", "outcome"), [
    ("1.0", 1.0), (" 1 ", 1.0), ("1e0", 1.0), ("+1.", 1.0), ("", 2.0), ("0:01.0", "bad number"), ("n/a", "bad number"),
    ("-1", "bad number"), ("nan", "bad number"), ("inf", "bad number"), ("1e999", "bad number"), ("1,0", "bad number"),
    ("1_0", "bad number"), ("١", "bad number"), ("0", "bad number"), ("0x1", "bad number"), ("1 s", "bad number"),
    ("None", "bad number"), ("9", "truncated"),
])  # fmt: skip
def test_a_duration_that_is_no_number_costs_its_row_alone(folder, tmp_path, value, outcome):
    (tmp_path / "a.wav").symlink_to(folder / "a.wav")
    (tmp_path / "b.flac").symlink_to(folder / "b.flac")
    source = listing(tmp_path, "l.tsv", f"path\ttext\tduration\na.wav\tone\t{value}\nb.flac\ttwo\t1.0\n")
    assert rows_of(source) == {"a": outcome, "b": 1.0}


@pytest.mark.parametrize(("row", "outcome"), [
    ({"start_s": 0.5}, 1.5), ({"offset": 0.5, "duration": 1}, 1.0), ({"offset": "0.5"}, 1.5), ({"offset": None}, 2.0),
    ({"start_s": 0.5, "offset": 0.5}, 1.5), ({"start_s": 0.5, "offset": 0.6}, "bad number"), ({"start_time": 1.5}, 0.5),
    ({"offset": 0.5, "end_s": 1.5}, 1.0), ({"start_s": 1.5, "end_time": 0.5}, "bad number"), ({"offset": 5}, "truncated"),
    ({"offset": 0.5, "end_s": 1.5, "duration": 0.3}, "bad number"), ({"offset": float("nan")}, "bad number"),
    ({"offset": -1}, "bad number"), ({"offset": True}, "bad number"), ({"offset": [1]}, "bad number"),
    ({"duration": 10**400}, "bad number"), ({"duration": float("inf")}, "bad number"), ({"start": 8_000}, "unclear column"),
    ({"end_ms": 100}, "unclear column"), ({"channel": 0}, 2.0), ({"channel_selector": 1}, "unreadable"),
    ({"channel_selector": "loud"}, "unclear column"), ({"channel": "News"}, 2.0), ({"channel": True}, "unclear column"),
    ({"text": ["one"]}, "unreadable"), ({"audio_filepath": {"path": "a.wav"}}, "unreadable"),
    ({"audio_filepath": ""}, "missing"),
    ({"speaker": "\ud83d"}, "unreadable"), ({"text": "half \ud83d"}, "unreadable"), ({"text": "nul \0"}, 2.0),
    ({"text": "a\u2028b\u0085c"}, 2.0), ({"audio_filepath": "x" * 300 + ".wav"}, "missing"),
    ({"audio_filepath": "\0"}, "missing"),
])  # fmt: skip
def test_a_row_asks_for_a_part_of_a_sound_or_cannot_be_understood(folder, tmp_path, row, outcome):
    for name in ("a.wav", "b.flac"):
        (tmp_path / name).symlink_to(folder / name)
    result = [{"audio_filepath": "a.wav", "text": "one"} | row, {"audio_filepath": "b.flac", "text": "two"}]
    source = listing(tmp_path, "l.jsonl", "".join(json.dumps(item) + "\n" for item in result))
    first, second = rows_of(source).values()
    assert (first, second) == (outcome, 1.0)


# ------------------------------------------------------------------------------------------------ rows and encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_every_encoding_that_tells_itself_and_every_line_end_give_the_same(folder, tmp_path, encoding, end, kind):
    (tmp_path / "a.wav").symlink_to(folder / "a.wav")
    row = {"path": "a.wav", "text": "Grüße \u2028 aus 文, „x“", "speaker": "José"}
    if kind == "jsonl":
        text = json.dumps(row, ensure_ascii=False) + end + end
    else:
        file = io.StringIO()
        csv.writer(file, delimiter="\t" if kind == "tsv" else ",", lineterminator=end).writerows([row, row.values(), []])
        text = file.getvalue()
    (recording,) = recordings(listing(tmp_path, f"l.{kind}", text, encoding))
    assert (recording.id, recording.text, recording.speaker) == ("a", "Grüße aus 文, „x“", "José") and len(
        recording.load()[0]
    ) == 32_000


def test_fields_that_do_not_fit_the_columns_set_their_row_aside_and_no_column_is_shifted(folder, tmp_path):
    (tmp_path / "a.wav").symlink_to(folder / "a.wav")
    source = listing(tmp_path, "l.tsv", "path\ttext\tspeaker\tlicence\na.wav\tone\ttwo\tS1\tCC0\nb.wav\tone\tS1\n"
                                        "\na.wav\t\"one\tS1\tCC0\n   \nc.wav\n")  # fmt: skip
    listed = list(recordings(source))
    assert [(item.id, item.fault and item.fault[0]) for item in listed] == [
        ("a", "wrong number of fields"), ("b", "wrong number of fields"), ("a", None), ("c", "wrong number of fields")
    ]  # fmt: skip
    assert listed[0].fault[1] == "line 2 has 5 fields under 4 columns" and listed[0].licence is None
    assert (listed[2].text, listed[2].speaker, listed[2].licence) == ('"one', "S1", "CC0")


def test_a_csv_quotes_as_its_standard_says_and_an_unclosed_quote_costs_a_line(tmp_path):
    text = 'path,text\na.wav,"one, ""two""\nthree"\nb.wav,"open\nc.wav,plain\nd.wav,a "b" c\ne.wav,x\n'
    listed = [
        (recording.id, recording.text, recording.fault and recording.fault[0])
        for recording in recordings(listing(tmp_path, "l.csv", text))
    ]
    assert listed == [("a", 'one, "two" three', None), ("l-4", "", "unreadable"), ("c", "plain", None), ("d", 'a "b" c', None),
                     ("e", "x", None)]  # fmt: skip


def test_bad_lines_of_json_cost_themselves_wherever_they_stand(tmp_path):
    good = json.dumps({"path": "a.wav", "text": "one"})
    bad = ["", "{", "[]", "null", '{"text": "no path"}', '{"path": 1e5, "text": "\\ud800"}', "\ufffd", "[" * 70_000]
    source = listing(tmp_path, "l.jsonl", "\n".join([*bad, good, *bad, good.replace("a.wav", "b.wav")]))
    listed = list(recordings(source))
    assert [item.fault is None for item in listed] == [False] * 3 + [True] and False or len(listed) == 16
    assert [item.id for item in listed if item.fault is None and item.file] == ["a", "b"]
    assert all(item.fault or item.file is None or item.file.endswith(".wav") for item in listed)


@pytest.mark.parametrize(("name", "text", "why"), [
    ("l.tsv", "a\tb\n1\t2\n", "a row needs a path"), ("l.jsonl", '{"a": 1}\n', "a row needs a path"),
    ("l.tsv", "path\ttext\ttext\nx\ty\tz\n", "two columns 'text'"),
    ("l.tsv", "path\ttext\na\tJos\xe9\n".encode("latin-1"), "Latin-1"),
    ("l.tsv", "path\ttext\na\tb\n".encode("utf-16-le"), "UTF-16 without a byte order mark"),
])  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused_in_a_line(tmp_path, name, text, why):
    with pytest.raises(SaladError, match=why) as error:
        list(recordings(listing(tmp_path, name, text)))
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_table_that_is_no_list_beside_others_is_passed_over(folder, tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").symlink_to(folder / "a.wav")
    listing(tmp_path, "reported.tsv", "sentence_id\tsentence\treason\nx\ty\tz\n")
    listing(tmp_path, "train.tsv", "client_id\tpath\tsentence\nA\ta.wav\tone\n")
    assert rows_of(tmp_path) == {"a": 2.0}
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(SaladError, match="reported.tsv: a row needs a path"):
        rows_of(tmp_path)


# ------------------------------------------------------------------------------------------------ ids


def kept_ids(lab, name):
    paths = sorted((lab / "speech" / name).glob("cuts.*.jsonl"))
    return [json.loads(line)["supervisions"][0]["custom"]["recording"] for path in paths for line in path.open()]


def test_a_recording_is_its_file_and_its_start(recogniser, tmp_path):  # noqa: F811
    long = np.concatenate([0.5 * tones(text)[0] for text in TEXTS])
    source = tmp_path / "own"
    starts = np.cumsum([0, *(len(tones(text)[0]) for text in TEXTS)]) / 16_000
    for speaker in ("s1", "s2"):
        record(source / speaker / "001.wav", TEXTS[int(speaker[1]) - 1])
    soundfile.write(source / "long.flac", long, 16_000)
    soundfile.write(source / "stereo.wav", np.stack([long[:40_000], long[-40_000:]], 1), 16_000)
    rows = [{"path": f"{speaker}/001.wav", "text": TEXTS[int(speaker[1]) - 1], "speaker": speaker} for speaker in ("s1", "s2")]
    rows += [{"path": "long.flac", "text": text, "offset": a, "duration": b - a}
             for text, a, b in zip(TEXTS, starts, starts[1:], strict=False)]  # fmt: skip
    rows += [{"path": "stereo.wav", "text": "left", "channel": 0}, {"path": "./stereo.wav", "text": "right", "channel": 1}]
    rows += [{"id": "u", "path": "s1/001.wav", "text": TEXTS[0]}, {"id": "u", "path": "s2/001.wav", "text": TEXTS[1]}]
    again = [{"path": "s1/../s2/001.wav", "text": TEXTS[1]}, rows[3], {"id": "u", "path": "s2/001.wav", "text": TEXTS[1]}]
    listing(source, "list.jsonl", "".join(json.dumps(row) + "\n" for row in [*rows, *again]))
    counts = prepare_speech(tmp_path / "lab", source, "own", recogniser, EVERYTHING, shard_size=4)
    assert counts["kept"] == 9 and counts["set aside"] == {"listed twice": 3} and counts["listed"] == 12
    ids = kept_ids(tmp_path / "lab", "own")
    assert ids[:4] == ["001", "s2/001.wav", "long", f"long.flac@{starts[1]:g}"] and len(set(ids)) == 9
    rows_read = query(tmp_path / "lab", "select count(*), count(distinct synthesis_id) from syntheses")
    assert rows_read == [(9, 9)]
    by_text = dict(query(tmp_path / "lab", "select text, duration_s from syntheses join samples using (sample_id)"))
    assert [by_text[text] for text in TEXTS[2:]] == pytest.approx([starts[3] - starts[2]], abs=1e-3)
    assert "12 recordings: 9 kept" in describe_counts(counts) and "3 listed twice" in describe_counts(counts)


def test_what_an_earlier_version_called_listed_twice_is_added_and_nothing_is_doubled(recogniser, tmp_path, monkeypatch):  # noqa: F811
    from salad.prepare import speech

    for n, folder in enumerate(("s1", "s2", "s3")):
        record(tmp_path / "own" / folder / "001.wav", TEXTS[n])
    record(tmp_path / "own" / "other.wav", TEXTS[0])
    rows = "".join(f"s{n + 1}/001.wav\t{text}\n" for n, text in enumerate(TEXTS))
    listing(tmp_path / "own", "list.tsv", f"path\ttext\n{rows}other.wav\t{TEXTS[0]}\n")
    with monkeypatch.context() as patch:  # as it was: the stem alone is the id

        def by_stem(result, size):
            seen, part = set(), []
            for item in result:
                part.append(item if item.id not in seen else speech.replace(item, fault=("listed twice", item.id)))
                seen.add(item.id)
            yield from (part[n : n + size] for n in range(0, len(part), size))

        patch.setattr(speech, "_shards", by_stem)
        before = prepare_speech(tmp_path / "lab", tmp_path / "own", "own", recogniser, EVERYTHING, shard_size=2)
        (tmp_path / "lab" / "speech" / "own.prepared" / "published.json").unlink()  # it had none
    assert before["kept"] == 2 and before["set aside"] == {"listed twice": 2}
    wanted = set(query(tmp_path / "lab", "select synthesis_id from syntheses"))
    counts = prepare_speech(tmp_path / "lab", tmp_path / "own", "own", recogniser, EVERYTHING, shard_size=2)
    assert counts["kept"] == 4 and counts["texts"] == 3
    assert query(tmp_path / "lab", "select count(*), count(distinct synthesis_id) from syntheses") == [(4, 4)]
    assert query(tmp_path / "lab", "select count(*), count(distinct sample_id) from samples") == [(3, 3)]
    assert wanted < set(query(tmp_path / "lab", "select synthesis_id from syntheses")) and store.verify(tmp_path / "lab") == []
    assert prepare_speech(tmp_path / "lab", tmp_path / "own", "own", recogniser, EVERYTHING, shard_size=2) == counts
    record(tmp_path / "own" / "late.wav", TEXTS[2])
    with open(tmp_path / "own" / "list.tsv", "a") as file:  # a list that has grown
        file.write(f"late.wav\t{TEXTS[2]}\n")
    assert prepare_speech(tmp_path / "lab", tmp_path / "own", "own", recogniser, EVERYTHING, shard_size=2)["kept"] == 5
    assert query(tmp_path / "lab", "select count(*), count(distinct synthesis_id) from syntheses") == [(5, 5)]
    assert query(tmp_path / "lab", "select count(*), count(distinct sample_id) from samples") == [(3, 3)]


def test_files_that_no_list_names_are_counted(recogniser, tmp_path):  # noqa: F811
    own = tmp_path / "own"
    record(own / "clips" / "one.wav", TEXTS[0])
    record(own / "two.wav", TEXTS[1])
    record(own / "deep" / "three.FLAC", TEXTS[1], format="FLAC")
    listing(own, "list.tsv", f"path\ttext\none.wav\t{TEXTS[0]}\n")
    counts = prepare_speech(tmp_path / "lab", own, "own", recogniser)
    assert counts["listed"] == 3 and counts["kept"] == 1 and counts["set aside"] == {"no text": 2}
    assert aside(tmp_path / "lab", "own") == {"two": "no text", "deep/three": "no text"}
    chapter = tmp_path / "libri" / "dev" / "1" / "2"
    record(chapter / "1-2-0000.flac", TEXTS[0])
    record(chapter / "1-2-0001.flac", TEXTS[1])
    record(tmp_path / "libri" / "dev" / "1" / "3" / "1-3-0000.flac", TEXTS[1])
    (chapter / "1-2.trans.txt").write_bytes("\ufeff1-2-0000 THE CAT SAT ON A MAT\r\n\r\n1-2-0009 NOT THERE\r\n".encode())
    counts = prepare_speech(tmp_path / "lab", tmp_path / "libri", "libri", recogniser)
    assert counts["kept"] == 1 and counts["set aside"] == {"missing": 1, "no text": 2}
    assert kept_ids(tmp_path / "lab", "libri") == ["1-2-0000"]


# ------------------------------------------------------------------------------------------------ paths


@pytest.mark.parametrize("odd", ["l[a]b", "a b", "100%d", "x#y?z", "new\nline", "Grüße 文", "star*", "{c}", "'q\""])
def test_labs_and_sources_of_every_name_work_to_the_end(recogniser, tmp_path, odd):  # noqa: F811
    lab, own = tmp_path / odd / "lab", tmp_path / odd / "own"
    record(own / f"{odd} 1.wav".replace("\n", " "), TEXTS[0])
    record(own / odd / "2.wav", TEXTS[1])
    rows = [{"path": f"{odd} 1.wav".replace("\n", " "), "text": TEXTS[0]}, {"path": f"{odd}/2.wav", "text": TEXTS[1]}]
    listing(own, "list.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    counts = prepare_speech(lab, own, "own", recogniser, shard_size=1)
    assert counts["kept"] == 2 and counts["texts"] == 2 and not counts["set aside"]
    assert prepare_speech(lab, own, "own", recogniser, shard_size=1) == counts and store.verify(lab) == []


def test_a_name_that_is_no_folder_is_refused(recogniser, tmp_path):  # noqa: F811
    for name in ("", ".", "..", "a/b", "../x", "/x", ".hidden", "a\nb"):
        with pytest.raises(SaladError, match="no name for a folder"):
            prepare_speech(tmp_path, tmp_path, name, recogniser)


# ------------------------------------------------------------------------------------------------ tars


def wav(seconds=1.0):
    file = io.BytesIO()
    soundfile.write(file, 0.5 * np.sin(np.arange(int(16_000 * seconds)) * 0.3), 16_000, format="WAV")
    return file.getvalue()


def test_keys_and_extensions_of_a_tar_are_webdatasets(tmp_path):
    text = json.dumps({"text": "one"}).encode()
    source = tar_of(tmp_path / "a.tar", [
        ("spk1/001.json", text), ("spk1/001.wav", wav(1)), ("spk2/001.wav", wav(2)), ("spk2/001.json", text),
        ("x.WAV", wav(3)), ("x.txt", b"words\n"), ("y.speech.flac", wav(1)), ("y.json", text),
        ("z.a.wav", wav(1)), ("z.json", text), ("z.b.wav", wav(1)), ("__meta__/x.json", text), ("./w.m4a.json", text),
        ("v.wav", wav(1)), ("v.txt", b"\xff"), ("dir.d/u.wav", wav(4)), ("dir.d/u.json", text), (".hidden.wav", wav(1)),
    ])  # fmt: skip
    assert rows_of(source) == {
        "001": 1.0, "001/1": 2.0, "x": 3.0, "y": 1.0, "z": "unclear", "z.b.wav": "unclear", "v": "unreadable", "u": 4.0,
        ".hidden.wav": "no text",
    }  # fmt: skip
    for name, parts in {"a/b.c.D": ("a/b", "c.d"), "a.b/c": ("a.b/c", ""), "a.b/.c": ("a.b/", "c"), "c": ("c", "")}.items():
        assert split(name) == parts


def test_keys_that_begin_again_in_every_tar_are_recordings_of_their_own(recogniser, tmp_path):  # noqa: F811
    for name in ("a", "b"):
        tar_of(tmp_path / "tars" / f"{name}.tar", [("0.json", json.dumps({"text": f"the {name}"}).encode()), ("0.wav", wav())])
    tar_of(tmp_path / "tars" / "c.tar", [("0.json", b'{"text": "x", "duration": "long"}'), ("0.wav", wav()),
                                         ("1.json", b'{"text": "half \\ud83d"}'), ("1.wav", wav()),
                                         ("2.json", b'{"text": "x", "duration": 0.5, "offset": 0.25}'),
                                         ("2.wav", wav())])  # fmt: skip
    (tmp_path / "tars" / "d.tar.gz").write_bytes(gzip.compress(b"nothing"))
    counts = prepare_speech(tmp_path / "lab", tmp_path / "tars", "own", recogniser, EVERYTHING)
    assert counts["kept"] == 3 and kept_ids(tmp_path / "lab", "own") == ["0", "b:0", "2"]
    assert counts["set aside"] == {"bad number": 1, "unreadable": 2} and counts["listed"] == 6
    assert query(tmp_path / "lab", "select min(duration_s) from syntheses") == [(0.5,)]


# ------------------------------------------------------------------------------------------------ cuts


def cut(id="c", channel=0, source=None, supervisions=None, **more):
    recording = {"id": "call", "sources": [source or {"type": "file", "channels": [0, 1], "source": "call.wav"}],
                 "sampling_rate": 16_000, "num_samples": 32_000, "duration": 2.0, "channel_ids": [0, 1]}  # fmt: skip
    fields = {"id": id, "recording_id": "call", "start": 0, "duration": 1.0, "channel": channel, "text": "words", "speaker": "A"}
    made = {"id": id, "start": 0, "duration": 1.0, "channel": channel, "recording": recording, "type": "MonoCut",
            "supervisions": [fields] if supervisions is None else supervisions}  # fmt: skip
    recording |= more.pop("recording", {})
    return made | more


def test_a_cut_is_read_from_its_own_channel_and_what_it_asks_for_is_done_or_named(tmp_path):
    left, right = np.full(32_000, 0.25, np.float32), np.linspace(-0.5, 0.5, 32_000, dtype=np.float32)
    soundfile.write(tmp_path / "call.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "r.wav", right, 16_000, subtype="FLOAT")
    memory = base64.b64encode((tmp_path / "r.wav").read_bytes()).decode()
    both = [{"type": "file", "channels": [0], "source": "call.wav"}, {"type": "file", "channels": [1], "source": "r.wav"}]
    supervision = cut()["supervisions"][0]
    items = [
        cut("left"), cut("right", 1), cut("both", [0, 1], type="MultiCut"),
        cut("of-two", [0, 1], type="MultiCut", supervisions=[supervision | {"id": "of-two", "channel": 1}]),
        cut("two-files", 1, recording={"sources": both}), cut("later", 1, start=1.0), cut("third", 2),
        cut("memory", 1, {"type": "memory", "channels": [1], "source": memory}),
        cut("volume", 1, recording={"transforms": [{"name": "Volume", "kwargs": {"factor": 0.5}}]}),
        cut("unheard-of", 1, recording={"transforms": [{"name": "Sparkle", "kwargs": {}}]}),
        cut("command", 0, {"type": "command", "channels": [0], "source": "touch " + str(tmp_path / "ran")}),
        cut("url", 0, {"type": "url", "channels": [0], "source": "http://localhost:1/a.wav"}),
        cut("shar", 0, {"type": "shar", "channels": [0], "source": ""}),
        cut("mixed", type="MixedCut", tracks=[{"type": "MonoCut", "offset": 0, "cut": cut("t")}]),
        cut("padding", type="PaddingCut"), cut("no-words", supervisions=[]), cut("nan", duration=float("nan")),
        cut("early", start=-1), cut("gone", 0, {"type": "file", "channels": [0], "source": "gone.wav"}),
        cut("beyond", start=1.5), {"id": "odd"}, {"id": "typed", "type": "NoSuchCut"}, 7,
        cut("german", supervisions=[supervision | {"id": "german", "language": "German"}]),
        cut("english", supervisions=[supervision | {"id": "english", "language": "English"}]),
    ]  # fmt: skip
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(item) + "\n" for item in items)
    by_name = {}
    for sample in recordings(tmp_path / "cuts.jsonl.gz"):
        try:
            if sample.fault:
                raise Unusable(*sample.fault)
            by_name[sample.id] = sample.load()[0]
        except Unusable as error:
            by_name[sample.id] = error.args[0]
    wanted = {"left": left, "right": right, "both": (left + right) / 2, "of-two": right, "two-files": right, "memory": right,
              "volume": right / 2, "english": left, "mixed": left}  # fmt: skip
    for id, samples in wanted.items():
        assert by_name.pop(id) == pytest.approx(samples[:16_000], abs=1e-6), id
    assert by_name.pop("later") == pytest.approx(right[16_000:], abs=1e-6)
    assert by_name == {
        "third": "unreadable", "unheard-of": "unreadable", "command": "unsupported", "url": "unsupported", "shar": "missing",
        "padding": "unreadable", "no-words": "no text", "nan": "bad number", "early": "bad number",
        "gone": "missing", "beyond": "truncated", "odd": "unreadable", "typed": "unreadable", "cuts-23": "unreadable",
        "german": "other language",
    }  # fmt: skip
    assert not (tmp_path / "ran").exists()
    assert rows_of(tmp_path / "cuts.jsonl.gz", language="any")["german"] == 1.0


# ------------------------------------------------------------------------------------------------ everything


CELLS = st.text(st.characters(codec=None), max_size=8) | st.sampled_from(["", "a.wav", "1.0", "nan", "-1", '"', "\t", "\r", "0"])
COLUMNS = ["path", "text", "duration", "start_s", "offset", "end_s", "start", "channel", "id", "speaker", "licence", "answer"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | CELLS | st.lists(st.integers(), max_size=2)


@settings(max_examples=int(os.environ.get("SALAD_FUZZ", "40")), deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.dictionaries(st.sampled_from(COLUMNS), VALUES, max_size=6), max_size=5),
    st.lists(st.lists(CELLS, max_size=5), max_size=5),
    st.lists(st.integers(0, 255), max_size=3),
    st.integers(0, 1_000),
)
def test_whatever_a_list_holds_every_row_is_a_recording_or_has_a_reason(folder, tmp_path, rows, cells, noise, at):
    written = "path\ttext\tspeaker\n" + "\n".join("\t".join(row) for row in cells)
    lists = {
        "l.jsonl": "\n".join(map(json.dumps, [*rows, {"path": "a.wav", "text": "last"}])).encode(),
        "l.tsv": written.encode("utf-8", "replace"),
        "l.csv": written.replace("\t", ",").encode("utf-8", "replace"),
    }
    for name, data in lists.items():
        at %= len(data)
        source = listing(tmp_path, name, data[:at] + bytes(noise) + data[at:])
        try:
            listed = list(recordings(source))
        except SaladError as error:
            assert name in str(error) and "\n" not in str(error).replace(str(rows), "")
            continue
        for item in listed:
            assert item.fault is None or (len(item.fault) == 2 and all(isinstance(part, str) for part in item.fault))
            if item.fault is None:
                try:
                    item.load(10.0)
                except Unusable as error:
                    assert len(error.args) == 2


WANTED = {  # case -> (kept: seconds by text's first word and speaker, reasons)
    "bad-numbers": ([6.3025], {"b": "bad number"}), "bad-start": ([], {"a": "bad number"}),
    "cuts-two-channels": ([6.3025, 6.0871], {}), "flac-unknown-length": ([6.3025, 6.0871], {}),
    "nemo-offset": ([6.8218, 6.3025, 6.0871], {}), "segments-of-one-file": ([6.8218, 6.3025, 6.0871], {}),
    "same-stem": ([6.3025, 6.0871], {}), "tar-same-stem": ([6.3025, 6.0871], {}),
    "tab-in-text": ([], {"a": "wrong number of fields"}), "tab-near-end": ([], {"a": "wrong number of fields"}),
    "trans-bom": ([6.3025], {}), "tsv-bom-crlf": ([6.3025], {}), "tsv-unbalanced-quote": ([6.3025, 6.0871], {}),
    "tsv-utf-16": ([6.3025], {}), "wav-gsm610": ([6.3025], {}), "wav-sox-pipe": ([6.3025], {}),
    "wav-pcm16-cut": ([], {"a": "truncated"}),
}  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize("case", sorted(WANTED))
def test_the_shared_cases_of_recordings_come_out_right(recogniser, tmp_path, case):  # noqa: F811
    if not CASES.is_dir():
        refuse(f"{CASES} is absent", "data")
    seconds, reasons = WANTED[case]
    counts = prepare_speech(tmp_path, CASES / case, "case", recogniser, EVERYTHING)
    assert aside(tmp_path, "case") == reasons and counts["listed"] == len(seconds) + len(reasons)
    rows = query(tmp_path, "select duration_s from syntheses join samples using (sample_id) order by text")
    assert [round(item, 4) for (item,) in rows] == seconds
    with pytest.raises(SaladError, match="tsv-latin-1/list.tsv is not UTF-8 .* it looks like Latin-1"):
        prepare_speech(tmp_path, CASES / "tsv-latin-1", "latin", recogniser)


def loaded(source, **more) -> dict:
    """id -> samples, or the reason for which the recording is set aside."""
    found = {}
    for row in recordings(source, **more):
        assert row.id not in found
        try:
            if row.fault:
                raise Unusable(*row.fault)
            found[row.id] = row.load(10.0)[0]
        except Unusable as error:
            found[row.id] = error.args[0]
    return found


def test_a_mix_of_recordings_sounds_as_lhotse_mixes_it_or_is_set_aside_by_name(tmp_path):
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
    from lhotse.utils import fastcopy

    rng = np.random.default_rng(0)
    for name, rate in (("a", 16_000), ("b", 16_000), ("noise", 16_000), ("slow", 8_000)):
        soundfile.write(tmp_path / f"{name}.wav", rng.uniform(-0.3, 0.3, 2 * rate).astype(np.float32), rate, subtype="FLOAT")

    def mono(name, start=0.0, duration=1.0, text=None):
        said = [SupervisionSegment(f"{name}-s", name, 0, duration, 0, text=text, speaker="A")] if text else []
        return MonoCut(name, start, duration, 0, supervisions=said, recording=Recording.from_file(tmp_path / f"{name}.wav"))

    a, b, noise = mono("a", 0.5, 1.0, "first words"), mono("b", 0.0, 1.0, "then more"), mono("noise", 0.0, 0.7)
    cuts = {
        "padded": a.pad(duration=1.5), "padded-left": a.pad(duration=1.5, direction="left"), "noisy": a.mix(noise, snr=10),
        "later-noise": a.mix(noise, offset_other_by=0.2, snr=3), "appended": a.append(b), "both": a.mix(b, offset_other_by=0.5),
        "of-two-rates": a.pad(duration=1.2),
    }  # fmt: skip
    wanted = {id: cut.load_audio().mean(0) for id, cut in cuts.items()}
    slow = mono("slow")
    cuts["of-two-rates"] = fastcopy(cuts["noisy"], tracks=[cuts["noisy"].tracks[0], fastcopy(cuts["noisy"].tracks[1], cut=slow)])
    gone = fastcopy(noise, recording=fastcopy(noise.recording, sources=[fastcopy(noise.recording.sources[0], source="gone.wav")]))
    cuts["gone"] = fastcopy(cuts["noisy"], tracks=[cuts["noisy"].tracks[0], fastcopy(cuts["noisy"].tracks[1], cut=gone)])
    CutSet.from_cuts(fastcopy(cut, id=id) for id, cut in cuts.items()).to_file(tmp_path / "cuts.jsonl.gz")
    text = gzip.open(tmp_path / "cuts.jsonl.gz", "rt").read().replace(f"{tmp_path}/", "")  # paths beside the manifest
    (tmp_path / "mixed_cuts.jsonl").write_text(text)
    (tmp_path / "cuts.jsonl.gz").unlink()
    found = loaded(tmp_path)
    assert found.pop("padded") == pytest.approx(wanted["padded"][:16_000], abs=1e-6)
    assert found.pop("padded-left") == pytest.approx(wanted["padded-left"][8_000:], abs=1e-6)
    for id in ("noisy", "later-noise"):
        assert found.pop(id) == pytest.approx(wanted[id][:16_000], abs=1e-6), id
    assert found.pop("a-s") == pytest.approx(wanted["appended"][:16_000], abs=1e-6)
    assert found.pop("b-s") == pytest.approx(wanted["appended"][16_000:], abs=1e-6)
    assert found == {"both": "unsupported", "of-two-rates": "unsupported", "gone": "missing"}


def test_a_shar_is_read_from_its_tars_and_accounts_for_all_that_they_hold(tmp_path):
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    x = np.linspace(-0.5, 0.5, 48_000, dtype=np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([x, -x], 1), 16_000, subtype="FLOAT")
    whole = Recording.from_file(tmp_path / "a.wav")
    made = []
    for n, id in enumerate(["one.1/x", "two", "three", "dropped", "four"]):
        channel = n % 2
        said = SupervisionSegment(f"s-{n}", "a", 0, 1.0, channel, text=f"words {n}", speaker="A")
        made.append(MonoCut(id, 0.5 * n, 1.0, channel, supervisions=[said], recording=whole))
    shar = tmp_path / "shar"
    shar.mkdir()
    CutSet.from_cuts(made).to_shar(shar, fields={"recording": "wav"}, shard_size=4)
    first = shar / "cuts.000000.jsonl.gz"
    rows = [json.loads(line) for line in gzip.open(first, "rt")]
    said = rows[0]["supervisions"][0] | {"id": "not-in-the-tar"}
    with gzip.open(first, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*rows[:3], rows[0] | {"id": "not-in-the-tar", "supervisions": [said]}])
    (shar / "recording.000001.tar").rename(shar / "recording.000007.tar")  # the last shard's audio is elsewhere
    found = loaded(shar)
    for n in range(3):
        sign = -1 if n % 2 else 1
        assert found.pop(f"s-{n}") == pytest.approx(sign * x[8_000 * n : 8_000 * n + 16_000], abs=1e-4)
    assert found == {"not-in-the-tar": "missing", "dropped": "no text", "s-4": "missing", "recording.000007.tar": "no text"}
