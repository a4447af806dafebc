"""Corpora, tasks, models and lists of cuts are read by the record that their writer left in the lab's log: what was changed,
cut short or removed afterwards is refused in one line, what has no record is read as it is."""

import json
import os
import random
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import store
from salad.data import corpora
from salad.errors import SaladError
from salad.evaluation import tasks
from salad.miniature.world import WorldConfig, build_world
from salad.models.names import resolve
from salad.prepare import prepare_text
from salad.speech import shar
from salad.speech.utterance import Utterance, Word
from store.errors import UserError
from workbench import cli

ROUNDS = int(os.environ.get("SALAD_FAULT_ROUNDS", "3"))
WORLD = WorldConfig(seed=5, pretrain_per_domain=20, natural={"stories": 10, "family": 4}, broad=60)
CORPUS, TASK = "corpora/mine/part-00000.parquet", "tasks/miniature_music.jsonl"
MODEL, CUTS = "models/tokenizer/tokenizer.json", "speech/said/cuts.000000.jsonl"
READERS = {
    CORPUS: lambda lab: corpora.texts(lab, ["mine"]),
    TASK: lambda lab: tasks.load(lab, "miniature_music"),
    MODEL: lambda lab: resolve("models/tokenizer", lab),
    CUTS: lambda lab: [shar.Shar(lab, "said").rows(), len(shar.Shar(lab, "said"))],
}


def spoken(number: int) -> shar.Speech:
    samples = np.random.default_rng(number).normal(0, 0.1, 8000).astype(np.float32)
    return shar.Speech(f"y{number:012}", f"s{number:012}", "a word", Utterance(samples, 16000, [Word("a", 0, 1, 0.1, 0.2)]), "v")


def source_of(folder):
    sentences = [f"The old garden number {n} lies behind the river and the mill, where the children play." for n in range(40)]
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(sentences)))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A lab with a prepared corpus, the miniature's tasks and tokenizer, and a list of cuts, each recorded by its writer."""
    folder = tmp_path_factory.mktemp("files")
    build_world(WORLD, folder / "lab")
    prepare_text(folder / "lab", source_of(folder), "mine")
    shar.write(folder / "lab", "said", range(3), spoken, job_id=lambda n: f"y{n:012}")
    return folder / "lab"


@pytest.fixture
def lab(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "lab")
    as_new()
    return tmp_path / "lab"


def as_new():
    store.verification.clear_cache()
    store.history.clear_cache()


def damaged(lab):
    return {item.path: item.reason for item in store.verify(lab)}


def test_every_writer_leaves_a_record_and_every_reader_accepts_what_was_written(lab):
    recorded = store.history.read(lab).files
    for name, read in READERS.items():
        assert recorded[name][1]["sha256"] == store.verification.sha256(lab / name) and recorded[name][1]["made_by"]
        assert read(lab)
    assert damaged(lab) == {}


@pytest.mark.parametrize("name", READERS)
def test_a_file_that_was_changed_by_hand_is_refused_in_one_line_when_it_is_read_next(lab, name):
    READERS[name](lab)
    data = (lab / name).read_bytes()
    (lab / name).write_bytes(data.replace(b"river", b"brook") if b"river" in data else data + b" ")
    with pytest.raises(UserError, match="its bytes changed since salad") as error:
        READERS[name](lab)
    assert len(str(error.value).splitlines()) == 1 and name in str(error.value) and f"--accept {name}" in str(error.value)
    assert list(damaged(lab)) == [name]  # verifying does not bless it
    with pytest.raises(UserError):
        READERS[name](lab)
    (lab / name).write_bytes(data)
    assert READERS[name](lab) and damaged(lab) == {}


@pytest.mark.parametrize("name", READERS)
def test_a_flipped_bit_anywhere_in_a_file_is_refused(lab, name):
    rng, data = random.Random(name), (lab / name).read_bytes()
    for _ in range(5 * ROUNDS):
        at = rng.randrange(len(data))
        (lab / name).write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        as_new()
        with pytest.raises(UserError) as error:
            READERS[name](lab)
        assert len(str(error.value).splitlines()) == 1
    (lab / name).write_bytes(data)
    assert READERS[name](lab)


def test_what_verify_finds_changed_is_refused_by_readers_though_size_and_times_stood_still(lab):
    path, data, times = lab / TASK, (lab / TASK).read_bytes(), (lab / TASK).stat()
    READERS[TASK](lab)
    path.write_bytes(data.replace(b"?", b"!", 1))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert list(damaged(lab)) == [TASK]
    with pytest.raises(UserError, match="its bytes changed"):
        READERS[TASK](lab)


def test_a_part_of_a_corpus_that_is_gone_is_missed(lab):
    pq.write_table(pa.table({"text": ["more"]}), lab / "corpora/mine/part-00001.parquet")
    store.files.record(lab, [lab / "corpora/mine"], "a test")
    assert READERS[CORPUS](lab)[-1] == "more"
    (lab / "corpora/mine/part-00001.parquet").unlink()
    with pytest.raises(UserError, match="part-00001.parquet is missing; a test wrote it at"):
        READERS[CORPUS](lab)
    assert list(damaged(lab)) == ["corpora/mine/part-00001.parquet"]
    store.files.record(lab, [lab / "corpora/mine"], "a test")  # written again, with one part
    assert READERS[CORPUS](lab) and damaged(lab) == {}
    shutil.rmtree(lab / "corpora/mine")  # a corpus that was removed as a whole is not missed, and readers name it
    assert damaged(lab) == {}


def test_what_a_user_changed_on_purpose_is_accepted_by_one_command(lab, capsys):
    path = lab / TASK
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    with pytest.raises(UserError):
        READERS[TASK](lab)
    with pytest.raises(SystemExit) as end:
        cli.main(["verify", "--lab", str(lab), "--accept", TASK])
    assert end.value.code == 0 and "nothing is damaged" in capsys.readouterr().out
    assert len(READERS[TASK](lab)) == 3
    (lab / TASK).unlink()
    assert list(damaged(lab)) == [TASK]
    store.files.accept(lab, TASK)
    assert damaged(lab) == {}
    with pytest.raises(store.StoreError, match="no record of 'tasks/none.jsonl'"):
        store.files.accept(lab, "tasks/none.jsonl")


def test_preparing_again_makes_a_changed_corpus_anew(lab, tmp_path):
    before, source = (lab / CORPUS).read_bytes(), source_of(tmp_path)
    os.utime(source, ns=(0, 0))
    prepare_text(lab, source, "again")
    name = "corpora/again/part-00000.parquet"
    made = (lab / name).read_bytes()
    (lab / name).write_bytes(before[:-1])
    with pytest.raises(UserError):
        corpora.texts(lab, ["again"])
    prepare_text(lab, source, "again")
    assert (lab / name).read_bytes() == made and corpora.texts(lab, ["again"]) and damaged(lab) == {}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_changed_list_of_cuts_is_refused_by_its_writer_too_and_made_again_once_it_is_removed(lab, shards):
    how = {"job_id": lambda n: f"y{n:012}", "shard_size": 3 // shards + (shards > 1)}
    shar.write(lab, "more", range(3), spoken, **how)
    path = lab / "speech/more/cuts.000000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"a word", b"a lord"))
    with pytest.raises(SaladError, match="its bytes changed since salad"):
        shar.write(lab, "more", range(3), spoken, **how)
    path.unlink()
    shar.write(lab, "more", range(3), spoken, **how)
    assert b"a word" in path.read_bytes() and damaged(lab) == {}


def test_a_writer_that_was_killed_before_it_logged_leaves_a_readable_file_or_one_that_it_makes_again(tmp_path, monkeypatch):
    lab, source, record = tmp_path / "lab", source_of(tmp_path), store.files.record

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store.files, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_text(lab, source, "mine")
    monkeypatch.setattr(store.files, "record", record)
    assert corpora.texts(lab, ["mine"])
    prepare_text(lab, source, "mine")
    assert CORPUS in store.history.read(lab).files and corpora.texts(lab, ["mine"])


def test_a_lab_without_records_and_a_users_own_files_are_read_as_they_are(lab):
    shutil.rmtree(lab / "log")
    as_new()
    (lab / TASK).write_bytes(b"".join((lab / TASK).read_bytes().splitlines(keepends=True)[:3]))
    assert len(READERS[TASK](lab)) == 3
    assert damaged(lab) == {}  # and logs what it saw
    own = lab / "tasks/own.jsonl"
    own.write_bytes((lab / TASK).read_bytes())
    assert damaged(lab) == {} and len(tasks.load(lab, "own")) == 3
    for path in (own, lab / TASK):  # the time moves with the edit: a user's own edit, not a fault of the disk
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
        os.utime(path, ns=(1, 10**18))
        assert len(tasks.load(lab, path.stem)) == 2 and damaged(lab) == {}
        data, times = path.read_bytes(), path.stat()
        path.write_bytes(data.replace(b"?", b"!", 1))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(UserError, match="its bytes changed since .* while its time did not"):
            tasks.load(lab, path.stem)
        path.write_bytes(data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_lab_under_another_name_is_checked_too(lab, tmp_path):
    (tmp_path / "link").symlink_to(lab)
    (lab / TASK).write_bytes((lab / TASK).read_bytes() + b"\n")
    for name in (tmp_path / "link", lab / ".." / "lab"):
        with pytest.raises(UserError, match="its bytes changed"):
            READERS[TASK](name)
    own = tmp_path / "link" / "tasks/own.jsonl"
    own.write_bytes(b"{}\n")
    store.files.record(tmp_path / "link", [own], "a test")
    store.files.record(lab, [own], "a test")
    assert "tasks/own.jsonl" in store.history.read(lab).files
    with pytest.raises(store.StoreError, match="in none of the folders"):
        store.files.record(lab, [tmp_path / "elsewhere"], "a test")


def test_a_record_of_a_file_outside_the_lab_is_malformed(lab):
    for path in ("../x", "/etc/passwd", "corpora/../../x", "x", "", ".", "a//b", "corpora/./x"):
        store.history.append(lab, [{"op": "file", "path": path, "sha256": "0" * 64, "bytes": 1, "made_by": "eve"}])
    as_new()
    assert not store.history.read(lab).files.keys() & {"../x", "/etc/passwd", "x"}
    assert len([item for item in store.verify(lab) if item.table == "log"]) == 8


def test_records_of_cuts_travel_with_a_bundle(lab, tmp_path):
    store.publish(lab, "syntheses", shar.Shar(lab, "said").rows(), {"a": 1})
    store.export(lab, "syntheses", tmp_path / "bundle")
    other = tmp_path / "other"
    store.import_(other, tmp_path / "bundle")
    assert store.history.read(other).files[CUTS][1]["made_by"] == "salad" and len(shar.Shar(other, "said")) == 3
    (other / CUTS).write_bytes((other / CUTS).read_bytes().replace(b"a word", b"a lord"))
    with pytest.raises(UserError, match="its bytes changed"):
        shar.Shar(other, "said")
    with pytest.raises(store.StoreError, match="its bytes changed"):
        store.export(other, "syntheses", tmp_path / "more")
    with pytest.raises(store.StoreError, match="the bundle is damaged: speech/said/cuts"):
        store.import_(tmp_path / "third", other)


@pytest.mark.parametrize("read", [
    lambda lab, row: shar.Shar(lab, "said").samples(row["synthesis_id"]),
    lambda lab, row: corpora.audio_of(lab, row, 16000),
])  # fmt: skip
def test_a_flipped_bit_anywhere_in_a_recording_is_refused(lab, read):
    rng, row = random.Random(3), shar.Shar(lab, "said").rows()[1]
    path = lab / row["audio_path"]
    data = path.read_bytes()
    read(lab, row)
    places = [rng.randrange(8 * row["audio_bytes"]) for _ in range(30 * ROUNDS)]
    for bit in [*range(8 * 42), *places]:  # every bit of the header, where libsndfile lets some pass
        at = row["audio_offset"] + bit // 8
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << bit % 8]) + data[at + 1 :])
        with pytest.raises(SaladError) as error:
            read(lab, row)
        assert len(str(error.value).splitlines()) == 1
