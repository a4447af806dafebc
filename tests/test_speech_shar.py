"""Speech on disk: what is written is read back, by id and in order; killed and damaged writing is mended."""

import os
import shutil
import signal
import tarfile
import threading

import numpy as np
import pytest

from salad import SaladError
from salad.speech import Utterance, load_tts, shar
from salad.speech.shar import Shar, Speech, damage, decode_flac, folder_of, write

TEXTS = [f"The {animal} lives in the big house." for animal in ("cat", "dog", "whale", "café owl", "fox")]
tts = load_tts("espeak")
made = []


def make(job):
    made.append(job)
    number, text = job
    utterance = tts.speak(text, "en-us+f2", 0)
    return Speech(f"y{number}", f"s{number}", text, utterance, "en-us+f2", "espeak", 0, {"cer": 0.5})


def job_id(job):
    return f"y{job[0]}"


def put(lab, texts=TEXTS, make=make, name="natural"):
    made.clear()
    return write(lab, name, list(enumerate(texts)), make, job_id=job_id, shard_size=2)


def test_samples_words_and_rows_come_back(tmp_path):
    rows = put(tmp_path)
    shar = Shar(tmp_path, "natural")
    assert shar.ids == [row["synthesis_id"] for row in rows] == ["y0", "y1", "y2", "y3", "y4"] and len(shar) == 5
    assert shar.rows() == rows
    for (cut, samples), row, text in zip(shar, rows, TEXTS, strict=True):
        spoken = tts.speak(text, "en-us+f2", 0)
        assert np.abs(samples - spoken.samples).max() <= 1 / 32768 and samples.dtype == np.float32
        assert shar.row(cut.id) == row and np.array_equal(shar[cut.id][1], samples)
        assert [tuple(w.values()) for w in row["words"]] == [tuple(w) for w in spoken.words]
        supervision = cut.supervisions[0]
        assert supervision.text == text and supervision.speaker == "en-us+f2" == row["voice"]
        assert [a.symbol for a in supervision.alignment["word"]] == [w.word for w in spoken.words]
        with open(tmp_path / row["audio_path"], "rb") as file:
            file.seek(row["audio_offset"])
            assert np.array_equal(decode_flac(file.read(row["audio_bytes"]), "here"), samples)
        assert row["cer"] == 0.5 and row["duration_s"] == pytest.approx(spoken.duration_s)


def test_lhotse_reads_the_folder(tmp_path):
    from lhotse import CutSet

    put(tmp_path)
    cuts = list(CutSet.from_shar(in_dir=folder_of(tmp_path, "natural")))
    assert [cut.id for cut in cuts] == ["y0", "y1", "y2", "y3", "y4"]
    assert np.array_equal(cuts[3].load_audio()[0], Shar(tmp_path, "natural").samples("y3"))


def files(lab):
    return {path.name: path.read_bytes() for path in folder_of(lab, "natural").iterdir()}


def test_writing_again_makes_nothing_and_a_grown_list_only_its_last_shard(tmp_path):
    rows, before = put(tmp_path), files(tmp_path)
    assert put(tmp_path) == rows and made == [] and files(tmp_path) == before
    grown = put(tmp_path, [*TEXTS, "One more.", "And another."])
    assert [number for number, _ in made] == [4, 5, 6] and grown[:5] == rows


def test_signs_that_end_a_line_elsewhere_stand_within_texts_and_nothing_is_made_again(tmp_path):
    texts = [f"One{sign}two." for sign in ("\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n", "\0")]
    rows, before = put(tmp_path, texts), files(tmp_path)
    assert put(tmp_path, texts) == rows and made == [] and files(tmp_path) == before
    shar = Shar(tmp_path, "natural")
    assert [cut.supervisions[0].text for cut, _ in shar] == texts and shar.rows() == rows and shar.verify() == []


@pytest.mark.parametrize("odd", ["l[a]b", "100%d", "a b#?", "new\nline", "Grüße*"])
def test_a_lab_under_a_path_of_any_name(tmp_path, odd):
    rows = put(tmp_path / odd, TEXTS[:3])
    assert put(tmp_path / odd, TEXTS[:3]) == rows and made == [] and Shar(tmp_path / odd, "natural").verify() == []


def test_a_ctrl_c_while_sound_is_written_or_read_is_neither_lost_nor_printed(tmp_path, capfd):
    """libsndfile writes into memory through callbacks, whose exceptions are printed and forgotten."""
    long = Utterance(np.random.default_rng(0).uniform(-1, 1, 10 * 60 * 16_000).astype(np.float32), 16_000, [], [], [])

    def soon():
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()

    def slow(job):
        soon()
        return Speech("y0", "s0", "", long, "anyone")

    with pytest.raises(KeyboardInterrupt):
        put(tmp_path, TEXTS[:1], slow)
    assert not list(folder_of(tmp_path, "natural").iterdir())
    put(tmp_path, TEXTS[:1], lambda job: Speech("y0", "s0", "", long, "anyone"))
    flac = next(folder_of(tmp_path, "natural").glob("*.tar")).read_bytes()
    row = Shar(tmp_path, "natural").rows()[0]
    flac = flac[row["audio_offset"] :][: row["audio_bytes"]]
    soon()
    with pytest.raises(KeyboardInterrupt):
        for _ in range(100):
            decode_flac(flac, "here")
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_killed_writer_leaves_whole_shards_and_is_taken_up(tmp_path):
    put(tmp_path / "clean")

    def make_and_die(job):
        if job[0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return make(job)

    child = os.fork()
    if child == 0:
        put(tmp_path / "killed", make=make_and_die)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert sorted(files(tmp_path / "killed")) == ["cuts.000000.jsonl", "recording.000000.tar"]
    assert len(Shar(tmp_path / "killed", "natural")) == 2
    speech = tmp_path / "killed" / "speech"
    assert len(list(speech.iterdir())) == 2  # what it had begun lies hidden beside

    def make_beside_another(job):
        shar._sweep(speech / "natural", "natural", job[0] // 2)  # as a second writer would: this one lives
        assert len(list(speech.iterdir())) == 2
        return make(job)

    put(tmp_path / "killed", make=make_beside_another)
    assert [number for number, _ in made] == [2, 3, 4]
    assert files(tmp_path / "killed") == files(tmp_path / "clean")
    assert list(speech.iterdir()) == [speech / "natural"]


def test_a_shortened_tar_is_named_the_rest_is_read_and_the_same_call_mends_it(tmp_path):
    put(tmp_path)
    before = files(tmp_path)
    tar = folder_of(tmp_path, "natural") / "recording.000001.tar"
    os.truncate(tar, Shar(tmp_path, "natural").row("y3")["audio_offset"] + 500)
    shar = Shar(tmp_path, "natural")
    with pytest.raises(SaladError, match=r"recording\.000001\.tar at y3 is cut short") as error:
        shar["y3"]
    assert "\n" not in str(error.value)
    assert len(shar["y2"][1]) and len(shar["y4"][1])
    assert len(shar.verify()) == 1 and "recording.000001.tar is cut short" in damage(tmp_path, "natural", 1)
    put(tmp_path)
    assert [number for number, _ in made] == [2, 3] and files(tmp_path) == before


def test_a_damaged_flac_is_named(tmp_path):
    put(tmp_path)
    row = Shar(tmp_path, "natural").row("y1")
    path = tmp_path / row["audio_path"]
    data = bytearray(path.read_bytes())
    data[row["audio_offset"] : row["audio_offset"] + row["audio_bytes"] // 2] = bytes(row["audio_bytes"] // 2)
    path.write_bytes(data)
    assert [fault.count("y1") for fault in Shar(tmp_path, "natural").verify()] == [1]


def test_a_missing_tar_or_a_cut_manifest_is_one_line(tmp_path):
    put(tmp_path)
    folder = folder_of(tmp_path, "natural")
    (folder / "recording.000002.tar").unlink()
    assert "missing" in damage(tmp_path, "natural", 2)
    with pytest.raises(SaladError, match="recording.000002.tar cannot be read"):
        Shar(tmp_path, "natural")["y4"]
    os.truncate(folder / "cuts.000000.jsonl", 100)
    with pytest.raises(SaladError, match="cuts.000000.jsonl: its bytes changed"):
        Shar(tmp_path, "natural")
    shutil.rmtree(tmp_path / "log")  # a lab from before there were records
    with pytest.raises(SaladError, match="cuts.000000.jsonl is cut short"):
        Shar(tmp_path, "natural")


def test_other_speech_under_the_same_name_is_refused(tmp_path):
    put(tmp_path)
    with pytest.raises(SaladError, match="holds other speech"):
        write(tmp_path, "natural", [(9, "Nine.")], make, job_id=job_id, shard_size=2)
    with pytest.raises(SaladError, match="no speech in"):
        Shar(tmp_path, "nothing")


def test_what_is_left_out_is_left_out_and_other_rates_are_resampled(tmp_path):
    def some(job):
        if job[0] % 2:
            return None
        speech = make(job)
        speech.utterance.samples = np.repeat(speech.utterance.samples, 3)
        speech.utterance.sample_rate = 48_000
        return speech

    rows = put(tmp_path, make=some)
    assert [row["synthesis_id"] for row in rows] == ["y0", "y2", "y4"]
    assert rows[0]["duration_s"] == pytest.approx(tts.speak(TEXTS[0], "en-us+f2", 0).duration_s, abs=1e-3)
    with tarfile.open(tmp_path / rows[0]["audio_path"]) as tar:
        assert tar.getnames() == ["y0.flac", "y0.json"]
    assert put(tmp_path, make=lambda job: None, name="none") == [] and len(Shar(tmp_path, "none")) == 0
