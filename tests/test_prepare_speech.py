"""`salad prepare speech`: recordings of every layout to a Shar with word times; what is bad is set aside with its reason."""

import copy
import gzip
import io
import json
import multiprocessing
import random
import signal
import tarfile

import numpy as np
import pytest
import soundfile
from tools import ROUNDS

import store
from salad import SaladError
from salad.prepare import SpeechOptions, prepare_speech
from salad.prepare.recordings import recordings
from salad.speech import shar
from salad.speech.audio import Unusable, decode
from tests.tones import hears_tones, tones
from tests.tools import die_at, shared
from workbench import cli

TEXTS = ["the cat sat on a mat", "a dog ran over the hill", "we paid for dinner today", "old ships sail far away"]


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    return hears_tones(tmp_path_factory.mktemp("ctc"))


def record(path, text, rate=16_000, gain=0.5, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, gain * tones(text, rate=rate)[0], rate, **how)
    return path


def half(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])


def aside(lab, name):
    rows = sorted((lab / "speech" / f"{name}.prepared").glob("aside.*.jsonl"))
    return {row["id"]: row["reason"] for path in rows for row in map(json.loads, path.read_text().splitlines())}


def query(lab, sql):
    return store.connect(lab).execute(sql).fetchall()


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory):
    """A part of LibriSpeech with a recording of every fault."""
    chapter = tmp_path_factory.mktemp("libri") / "dev-clean" / "84" / "121123"
    lines = {}
    for n, text in enumerate(TEXTS):
        lines[f"84-121123-{n:04d}"] = text
        record(chapter / f"84-121123-{n:04d}.flac", text)
    faults = ("missing", "truncated", "unreadable", "empty", "silence", "clipped", "text does not match", "too long")
    for n, fault in enumerate(faults, len(TEXTS)):
        name = f"84-121123-{n:04d}"
        lines[name], path = f"some words about {fault}", chapter / f"84-121123-{n:04d}.flac"
        match fault:
            case "truncated":
                half(record(path, lines[name] * 3))
            case "unreadable":
                path.write_bytes(b"nothing")
            case "empty":
                soundfile.write(path, np.full(300, 0.1, np.float32), 16_000)
            case "silence":
                soundfile.write(path, np.zeros(32_000, np.float32), 16_000)
            case "clipped":
                soundfile.write(path, np.clip(3 * tones(lines[name])[0], -1, 1), 16_000)
            case "text does not match":
                record(path, "quite another thing is heard here")
            case "too long":
                record(path, lines[name] * 40)
    lines["84-121123-0012"] = "..."
    record(chapter / "84-121123-0012.flac", "no text")
    result = "".join(f"{name} {text.upper()}\n" for name, text in lines.items())
    (chapter / "84-121123.trans.txt").write_text(result)
    reasons = dict(zip(list(lines)[4:], [*faults, "no text"], strict=True))
    return chapter.parents[2], reasons


def test_bad_audio_is_set_aside_with_its_reason_and_the_counts_reconcile(librispeech, recogniser, tmp_path):
    source, reasons = librispeech
    options = SpeechOptions(max_s=30)
    counts = prepare_speech(tmp_path, source, "natural", recogniser, options, shard_size=5)
    assert aside(tmp_path, "natural") == reasons
    assert counts["listed"] == 13 == counts["kept"] + sum(counts["set aside"].values()) and counts["kept"] == 4
    assert counts["shards"] == 3 and counts["licences"] == {"CC BY 4.0": 4} and counts["texts"] == 4
    rows = query(tmp_path, "select text, licence, tts, voice, cer, words from syntheses join samples using (sample_id)")
    assert sorted(row[0] for row in rows) == sorted(text.capitalize() for text in TEXTS)
    assert {row[1:4] for row in rows} == {("CC BY 4.0", "recorded", "84")} and all(row[4] < 0.3 for row in rows)
    for text, *_, words in rows:
        true = tones(text)[1]
        assert [w["word"] for w in words] == text.split()
        assert all(abs(w["start_s"] - a) < 0.03 and abs(w["end_s"] - b) < 0.05 for w, (a, b) in zip(words, true, strict=True))
    # the Shar is lhotse's
    from lhotse import CutSet

    cut = next(iter(CutSet.from_shar(in_dir=shar.folder_of(tmp_path, "natural"))))
    assert cut.load_audio().shape[1] == cut.num_samples and cut.sampling_rate == 16_000
    supervision = cut.supervisions[0]
    assert (
        supervision.custom["licence"] == "CC BY 4.0"
        and supervision.custom["as_written"].isupper()
        and supervision.alignment["word"]
    )
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "natural.json"}
    assert prepare_speech(tmp_path, source, "natural", recogniser, options, shard_size=5) == counts
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())
    with pytest.raises(SaladError, match="max_cer was 0.5; take another --name"):
        prepare_speech(tmp_path, source, "natural", recogniser, SpeechOptions(max_cer=0.2, max_s=30), shard_size=5)


def test_blocks_of_a_source_share_no_recording_and_together_are_the_whole(librispeech, recogniser, tmp_path):
    source, seen = librispeech[0], []
    for name, rows in (("first", (0.0, 0.6)), ("rest", (0.6, 1.0))):
        counts = prepare_speech(tmp_path, source, name, recogniser, SpeechOptions(max_s=30, rows=rows))
        cuts = [json.loads(line) for path in (tmp_path / "speech" / name).glob("cuts.*.jsonl") for line in open(path)]
        seen.append({*aside(tmp_path, name), *(cut["supervisions"][0]["custom"]["recording"] for cut in cuts)})
        assert counts["listed"] == counts["kept"] + sum(counts["set aside"].values()) == len(seen[-1])
    assert not seen[0] & seen[1] and seen[0] | seen[1] == {recording.id for recording in recordings(source)}
    counts = prepare_speech(tmp_path, source, "few", recogniser, SpeechOptions(max_s=30, limit=2))
    assert counts["listed"] == 2
    with pytest.raises(SaladError, match="limit was 2"):
        prepare_speech(tmp_path, source, "few", recogniser, SpeechOptions(max_s=30, limit=3))


def test_a_preparation_of_the_whole_keeps_the_name_that_it_had_before_there_were_blocks():
    assert set(SpeechOptions().as_made_from()) == {"layout", "language", "max_cer", "max_s", "licence", "domain"}


def test_libriheavy_cuts_out_of_long_recordings(recogniser, tmp_path):
    first, second = 0.5 * tones(TEXTS[0])[0], 0.5 * tones(TEXTS[1])[0]
    audio = tmp_path / "librilight" / "small" / "100" / "book.flac"
    audio.parent.mkdir(parents=True)
    soundfile.write(audio, np.concatenate([first, second]), 16_000)
    recording = {"id": "small/100/book", "sources": [{"type": "file", "channels": [0],
                 "source": "download/librilight/small/100/book.flac"}], "sampling_rate": 16_000,
                 "num_samples": len(first) + len(second), "duration": (len(first) + len(second)) / 16_000}  # fmt: skip
    with gzip.open(tmp_path / "libriheavy_cuts_small.jsonl.gz", "wt") as file:
        for n, (start, samples, text) in enumerate(((0, first, TEXTS[0]), (len(first), second, TEXTS[1]))):
            file.write(json.dumps({
                "id": f"small/100/book_{n}", "start": start / 16_000, "duration": len(samples) / 16_000, "channel": 0,
                "supervisions": [{"id": f"s{n}", "recording_id": "small/100/book", "start": 0,
                                  "duration": len(samples) / 16_000, "channel": 0, "speaker": "100",
                                  "custom": {"texts": [text.capitalize() + ".", text.upper()]}}],
                "recording": recording, "type": "MonoCut",
            }) + "\n")  # fmt: skip
    counts = prepare_speech(tmp_path / "lab", tmp_path, "heavy", recogniser, SpeechOptions(licence="public domain"))
    assert counts["kept"] == 2 and counts["licences"] == {"public domain": 2}
    rows = query(tmp_path / "lab", "select text, voice, duration_s from syntheses join samples using (sample_id) order by 1")
    assert rows == [(TEXTS[1].capitalize() + ".", "100", len(second) / 16_000),
                     (TEXTS[0].capitalize() + ".", "100", len(first) / 16_000)]  # fmt: skip


def test_emilia_and_tables_of_any_rate_and_format(recogniser, tmp_path):
    raw = tmp_path / "emilia" / "raw" / "EN"
    rows = []
    for n, text in enumerate(TEXTS[:2]):
        record(raw / "EN_B0" / f"W{n}.mp3", text, 48_000)
        rows.append({"id": f"W{n}", "wav": f"EN_B0/W{n}.mp3", "text": " " + text, "duration": 2.0, "speaker": "S",
                     "language": "en", "dnsmos": 3.4})  # fmt: skip
        rows[-1]["duration"] = len(tones(text)[0]) / 16_000
    (raw / "EN_B0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = prepare_speech(tmp_path / "lab", tmp_path / "emilia", "emilia", recogniser)
    assert counts["kept"] == 2 and counts["licences"] == {"CC BY-NC 4.0": 2}
    record(tmp_path / "own" / "clips" / "one.wav", TEXTS[0], 44_100, subtype="PCM_24")
    half(record(tmp_path / "own" / "clips" / "two.wav", TEXTS[1]))
    record(tmp_path / "own" / "three.ogg", TEXTS[0])
    (tmp_path / "own" / "train.tsv").write_text(
        f"client_id\tpath\tsentence\tanswer\nA\tone.wav\t{TEXTS[0]}\tOn a mat.\nB\ttwo.wav\t{TEXTS[1]}\t\n"
        f"C\tthree.ogg\t{TEXTS[0]}\tOn a mat.\n"
    )
    counts = prepare_speech(tmp_path / "lab", tmp_path / "own", "own", recogniser, SpeechOptions(licence="CC0-1.0"))
    assert counts["kept"] == 2 and aside(tmp_path / "lab", "own") == {"two": "truncated"}
    # one text, two voices: one sample
    assert query(tmp_path / "lab", "select text, answer from samples where corpus = 'own'") == [(TEXTS[0], "On a mat.")]
    assert query(tmp_path / "lab", "select count(answer) from samples where corpus = 'emilia'") == [(0,)]
    assert query(tmp_path / "lab", "select voice from syntheses where speech = 'own' order by 1") == [("A",), ("C",)]


def mp3(text, rate=24_000):
    file = io.BytesIO()
    soundfile.write(file, 0.5 * tones(text, rate=rate)[0], rate, format="MP3")
    return file.getvalue()


def tar_of(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def said(key, text, **more):
    """What Emilia's JSON tells of a recording."""
    told = {"id": key, "wav": f"EN_B00000/EN_B00000_S00000/mp3/{key}.mp3", "text": " " + text,
            "duration": len(tones(text)[0]) / 16_000, "speaker": "EN_B00000_S00000", "language": "en",
            "dnsmos": 3.29}  # fmt: skip
    return json.dumps(told | more).encode()


@pytest.fixture(scope="module")
def emilia(tmp_path_factory):
    """amphion/Emilia-Dataset as it is published: both repositories' folders, and every fault that a tar can have."""
    root = tmp_path_factory.mktemp("emilia")
    keys = [f"EN_B00000_S00000_W{n:06d}" for n in range(9)]
    members = []
    for key, text in zip(keys[:4], TEXTS, strict=True):
        members += [(f"{key}.json", said(key, text)), (f"{key}.mp3", mp3(text))]
    members[2:6] = [members[i] for i in (3, 5, 2, 4)]  # the halves of a pair need not be neighbours
    members += [
        (f"{keys[4]}.json", said(keys[4], TEXTS[0])),  # no sound
        (f"{keys[5]}.mp3", mp3(TEXTS[0])),  # no JSON
        (f"{keys[6]}.json", b'{"id": "EN_B00'), (f"{keys[6]}.mp3", mp3(TEXTS[1])),
        (f"{keys[7]}.json", said(keys[7], TEXTS[1], language="de")), (f"{keys[7]}.mp3", mp3(TEXTS[1])),
        (f"{keys[8]}.json", said(keys[8], TEXTS[2])), (f"{keys[8]}.mp3", mp3(TEXTS[2])[:400]),
    ]  # fmt: skip
    tar_of(root / "Emilia" / "EN" / "EN-B000000.tar", members)
    tar_of(root / "Emilia" / "DE" / "DE-B000000.tar", [("DE_1.json", said("DE_1", "nein")), ("DE_1.mp3", mp3("nein"))])
    fields = {"_id": "EN_a-b_W000001", "speaker": "EN_a-b_SPEAKER_00", "phone_count": 30, "dnsmos": 3.1, "language": "en",
            "text": TEXTS[3], "duration": len(tones(TEXTS[3])[0]) / 16_000}  # fmt: skip
    again = keys[0]  # of the other repository's first: the first stays
    yodas = tar_of(root / "Emilia-YODAS" / "EN" / "EN-B000000.tar", [
        ("EN_a-b_W000001.json", json.dumps(fields).encode()), ("EN_a-b_W000001.mp3", mp3(TEXTS[3])),
        (f"{again}.json", said(again, TEXTS[0])), (f"{again}.mp3", mp3(TEXTS[0])),
        ("EN_a-b_W000002.json", json.dumps(fields | {"_id": "EN_a-b_W000002", "text": TEXTS[2]}).encode()),
        ("EN_a-b_W000002.mp3", mp3(TEXTS[2])),
        ("EN_a-b_W000003.json", json.dumps(fields | {"_id": "EN_a-b_W000003"}).encode()),
        ("EN_a-b_W000003.mp3", mp3(TEXTS[3])),
    ])  # fmt: skip
    with tarfile.open(yodas) as tar:
        at = {member.name: member for member in tar.getmembers()}
    data = bytearray(yodas.read_bytes())[: at["EN_a-b_W000003.mp3"].offset_data + 900]  # a download that broke off
    data[at["EN_a-b_W000002.json"].offset + 20] ^= 8  # a flipped bit in a header
    yodas.write_bytes(data)
    reasons = dict(zip(keys[4:], ["missing", "no text", "unreadable", "other language", "truncated"], strict=True))
    return root, reasons | {again: "listed twice", "EN_a-b_W000002": "no text", "EN_a-b_W000003": "truncated",
                            f"EN-B000000@{at['EN_a-b_W000002.json'].offset}": "unreadable"}  # fmt: skip


def test_emilia_as_it_is_published_is_read_out_of_its_tars(emilia, recogniser, tmp_path):
    source, reasons = emilia
    counts = prepare_speech(tmp_path, source, "emilia", recogniser, shard_size=4)
    assert aside(tmp_path, "emilia") == reasons
    assert counts["listed"] == 14 == counts["kept"] + sum(counts["set aside"].values()) and counts["kept"] == 5
    assert counts["licences"] == {"CC BY-NC 4.0": 4, "CC BY 4.0": 1}
    rows = query(tmp_path, "select voice, text from syntheses join samples using (sample_id) order by all")
    assert rows == sorted([*(("EN_B00000_S00000", text) for text in TEXTS), ("EN_a-b_SPEAKER_00", TEXTS[3])])
    cut = next(iter(shar.Shar(tmp_path, "emilia")))[0]
    assert cut.supervisions[0].custom["dnsmos"] == 3.29 and cut.supervisions[0].custom["tar"] == "EN-B000000.tar"
    (tmp_path / "stubs").mkdir()
    (tmp_path / "stubs" / "a.tar").touch()  # a download that never began, and Git LFS's stand-in for a file
    (tmp_path / "stubs" / "b.tar").write_text("version https://git-lfs.github.com/spec/v1")
    assert [recording.fault[0] for recording in recordings(tmp_path / "stubs")] == ["unreadable", "unreadable"]
    german = prepare_speech(tmp_path, source, "german", recogniser, SpeechOptions(language="de", max_cer=2))
    assert german["listed"] == 1 and german["set aside"] == {"other language": 1}  # its JSON says "en"
    with pytest.raises(SaladError, match="no tar in 'fr'; it has DE, EN"):
        prepare_speech(tmp_path, source, "french", recogniser, SpeechOptions(language="fr"))


def test_tars_killed_and_taken_up_again_give_the_same_bytes_and_are_indexed_once(emilia, recogniser, tmp_path):
    source, _ = emilia
    counts = []
    for lab in (tmp_path / "clean", tmp_path / "killed"):
        if lab.name == "killed":
            at = {"dies_at": 1, "name": "texts.000001.parquet"}
            process = multiprocessing.get_context("fork").Process(target=_prepare, args=(lab, source, recogniser), kwargs=at)
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL and not (lab / "speech" / "natural.json").exists()
        indices = {path: path.stat().st_mtime_ns for path in lab.rglob("tars/*.parquet")}
        counts.append(prepare_speech(lab, source, "natural", recogniser, shard_size=2))
        assert all(path.stat().st_mtime_ns == at for path, at in indices.items())
    assert indices and counts[0] == counts[1] and _bytes(lab) == _bytes(tmp_path / "clean")


def test_a_lab_that_is_moved_goes_on_with_its_own_recogniser(recogniser, tmp_path):
    def own(lab):
        (lab / "models" / "recogniser").mkdir(parents=True, exist_ok=True)
        item = copy.copy(recogniser)
        item.name = str(lab / "models" / "recogniser")
        return item

    record(tmp_path / "own" / "one.wav", TEXTS[0])
    (tmp_path / "own" / "train.tsv").write_text(f"path\tsentence\none.wav\t{TEXTS[0]}\n")
    counts = prepare_speech(tmp_path / "lab", tmp_path / "own", "own", own(tmp_path / "lab"))
    assert query(tmp_path / "lab", "select asr from syntheses") == [("models/recogniser",)]
    (tmp_path / "lab").rename(tmp_path / "moved")
    deaf = own(tmp_path / "moved")
    deaf.hear = pytest.fail  # all is done
    assert prepare_speech(tmp_path / "moved", tmp_path / "own", "own", deaf) == counts
    begun = tmp_path / "moved" / "speech" / "own.prepared" / "made_from.json"  # as it was written before
    begun.write_text(begun.read_text().replace("models/recogniser", "/old/lab/models/recogniser"))
    again = own(tmp_path / "moved")
    assert prepare_speech(tmp_path / "moved", tmp_path / "own", "own", again) == counts
    begun.write_text(begun.read_text().replace("/old/lab/models/recogniser", "/old/lab/another"))
    with pytest.raises(SaladError, match="recogniser was '/old/lab/another'"):
        prepare_speech(tmp_path / "moved", tmp_path / "own", "own", again)


def _prepare(lab, source, recogniser, part=(0, 1), dies_at=None, name="*"):
    if dies_at:
        die_at(dies_at, name)
    prepare_speech(lab, source, "natural", recogniser, shard_size=2, part=part)


def _bytes(lab):
    names = ("*.parquet", "cuts.*", "recording.*", "aside.*", "natural.json")
    return {path.relative_to(lab): path.read_bytes() for name in names for path in lab.rglob(name)}


def test_killed_parted_and_repaired_it_gives_the_same_bytes(librispeech, recogniser, tmp_path):
    source, _ = librispeech
    _prepare(tmp_path / "clean", source, recogniser)
    wanted = _bytes(tmp_path / "clean")
    fork, rng, killed = multiprocessing.get_context("fork"), random.Random(0), 0
    for n in range(ROUNDS):
        lab = tmp_path / str(n)
        for _ in range(3):
            process = fork.Process(target=_prepare, args=(lab, source, recogniser, (0, 1), rng.randint(1, 20)))
            process.start()
            process.join()
            killed += process.exitcode == -signal.SIGKILL
        _prepare(lab, source, recogniser)
        assert _bytes(lab) == wanted
    assert killed >= ROUNDS
    lab = tmp_path / "parts"
    _prepare(lab, source, recogniser, (1, 2))
    assert not (lab / "speech" / "natural.json").exists()
    _prepare(lab, source, recogniser, (0, 2))
    assert _bytes(lab) == wanted
    half(lab / "speech" / "natural" / "recording.000001.tar")
    tar = lab / "speech" / "natural" / "recording.000000.tar"
    data = bytearray(tar.read_bytes())
    data[1_500] ^= 16
    tar.write_bytes(data)
    assert len(store.verify(lab)) == 2
    _prepare(lab, source, recogniser)
    assert _bytes(lab) == wanted and store.verify(lab) == []


def test_what_cannot_be_listed_is_an_error_in_a_line(recogniser, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd.tsv").write_text("a\tb\n1\t2\n")
    for source, message in ((tmp_path / "none", "does not exist"), (tmp_path / "empty", "none of the known layouts"),
                         (tmp_path / "odd.tsv", "a row needs a path")):  # fmt: skip
        with pytest.raises(SaladError, match=message):
            list(recordings(source))
    with pytest.raises(SystemExit) as stop:
        cli.main(["prepare", "speech", str(tmp_path), "--name", "x", "--lab", str(tmp_path / "lab")])
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "name a CTC model with --recogniser" in message and message.count("\n") == 1
    (tmp_path / "bare.tsv").write_text("path\ttext\n")
    for source, message in ((tmp_path / "none", "does not exist"), (tmp_path / "bare.tsv", "lists no recording")):
        with pytest.raises(SaladError, match=message):
            prepare_speech(tmp_path / "lab", source, "x", recogniser)
    assert not (tmp_path / "lab" / "speech").exists()  # nothing was begun


@pytest.mark.data
def test_human_recordings_of_every_rate_and_format_are_decoded():
    data, rates = shared("data"), {}
    for path in sorted([*(data / "speech").iterdir(), *(data / "digits").glob("7_*_0.wav")]):
        if path.suffix != ".json":
            samples, rate = decode(path)
            rates[rate] = rates.get(rate, 0) + 1
            assert samples.dtype == np.float32 and len(samples) > 0.1 * rate and 0.01 < np.abs(samples).max() <= 1
    assert rates == {8_000: 6, 16_000: 4, 22_050: 2, 48_000: 1}
    with pytest.raises(Unusable, match="truncated"):
        decode(data / "speech" / "ljspeech__LJ002-0020.wav", 0, 60.0)
