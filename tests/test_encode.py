"""The pass `encode`: frames that training reads are those that it would compute, and what is damaged is passed over."""

import hashlib
import multiprocessing
import shutil
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from tools import die_at

import store
from salad import SaladError, training
from salad.data import corpora
from salad.data.frames import DamagedFrames, Frames, path_of
from salad.models.encoders import LogMel, SpeechEncoder, fingerprint
from salad.passes import run as running
from salad.passes.encode import encode, parts
from salad.passes.synthesise import Job, synthesise
from salad.speech import load_tts
from workbench.cli import main

process = multiprocessing.get_context("forkserver")
JOBS = [Job(store.ids.sample_id("natural", text), text, "en-us") for text in tiny.TEXTS]


class LooksAhead(SpeechEncoder):
    """An encoder whose frames know the samples behind them."""

    causal, sample_rate, frame_rate, dim = False, 16_000, 12.5, 4


class Wide(LogMel):
    """Of so wide frames that a few recordings take more than any disk holds."""

    def __init__(self):
        super().__init__()
        self.dim = 10**15
        self.look_ahead_s = 0.0  # as if it had been measured: no sound can be encoded so wide


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A lab with speech in three shards."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lab = tmp_path_factory.mktemp("lab")
    tiny.teacher(lab / "models" / "teacher")
    tiny.encoder(lab / "models" / "encoder")
    (lab / "corpora" / "broad").mkdir(parents=True)
    pq.write_table(pa.table({"text": tiny.TEXTS}), lab / "corpora" / "broad" / "part-0.parquet")
    store.publish(
        lab,
        "samples",
        [{"sample_id": job.sample_id, "text": job.text, "spoken": job.text, "corpus": "natural", "flags": []} for job in JOBS],
        {"corpus": "natural"},
    )
    synthesise(lab, "natural", JOBS, load_tts("espeak"), {"seed": 0}, shard_size=2)
    return lab


@pytest.fixture
def lab(made, tmp_path):
    shutil.copytree(made, tmp_path / "lab")
    return tmp_path / "lab"


def kept(lab, dtype="float32", shard=0, shards=1):
    """Do the pass by its parts, as one worker of several; returns (encoder, recordings)."""
    warnings.simplefilter("ignore")
    encoder, spoken = running.to_encode(lab, "natural", None, "models/encoder")
    encode(lab, lambda: encoder, fingerprint(encoder), spoken, dtype, shard, shards)
    return encoder, spoken


def left(lab) -> dict[str, str]:
    return {
        str(path.relative_to(lab)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (lab / "frames").rglob("*")
        if path.is_file() and path.suffix != ".tmp"
    }


def losses(lab, **data) -> list[float]:
    """Of a run of a few steps, in a lab as it is."""
    optim = tiny.config().optim.model_copy(update={"steps": 4, "warmup": 1, "decay": 1, "checkpoint_every": 4})
    wanted = tiny.config(optim=optim, data=tiny.config().data.model_copy(update={"p_text": 0.0, **data}))
    run = training.prepare(lab, wanted, "tiny")
    training.train(lab, run.run_id)
    return [row["values"]["loss"] for row in run.metrics()]


def test_losses_are_the_same_with_and_without_the_frames_on_disk(lab, tmp_path, monkeypatch):
    shutil.copytree(lab, tmp_path / "plain")
    plain = losses(tmp_path / "plain")
    encoder, spoken = kept(lab)
    assert len(left(lab)) == 2 * 3
    for recording in spoken:  # the bits that the encoder gives
        expected = encoder(torch.from_numpy(corpora.audio(lab, recording, encoder.sample_rate))).numpy()
        assert np.array_equal(Frames(lab, encoder).of(recording), expected)
    copies = [tmp_path / name for name in ("kept", "read", "augmented")]
    for copy in copies:
        shutil.copytree(lab, copy)
    taken = []
    real = Frames.of
    monkeypatch.setattr(Frames, "of", lambda self, recording: (taken.append(recording.synthesis_id), real(self, recording))[1])
    for path in [*copies[0].rglob("recording.*.tar"), *copies[1].rglob("recording.*.tar")]:
        forget_sound(path, spoken)  # whoever encodes now, hears nothing that can be decoded
    assert losses(copies[0]) == plain and set(taken) == {recording.synthesis_id for recording in spoken}
    assert losses(copies[1], keep_gb=0.0) == pytest.approx(plain, abs=2e-5)
    taken.clear()
    for keep_gb in (4.0, 0.0):
        losses(copies[2], keep_gb=keep_gb, augment={"natural": {"p_noise": 0.3}})
    assert taken == []


def forget_sound(path: Path, spoken) -> None:
    """Overwrite what follows the header of every recording in a tar."""
    data = bytearray(path.read_bytes())
    for recording in spoken:
        if recording.audio_path.endswith(path.name):
            data[recording.audio_offset + 42 : recording.audio_offset + recording.audio_bytes] = bytes(recording.audio_bytes - 42)
    path.write_bytes(data)


def test_damaged_frames_are_named_once_passed_over_and_made_again(lab, tmp_path):
    shutil.copytree(lab, tmp_path / "plain")
    plain = losses(tmp_path / "plain")
    encoder, spoken = kept(lab)
    before = left(lab)
    paths = sorted({path_of(lab, recording.audio_path, fingerprint(encoder), "float32") for recording in spoken})
    data = bytearray(paths[0].read_bytes())
    data[-3] ^= 4
    paths[0].write_bytes(data)
    paths[1].write_bytes(paths[1].read_bytes()[:-100])
    with pytest.warns(DamagedFrames) as result:
        reader = Frames(lab, encoder)
        assert {recording.audio_path for recording in spoken for _ in "ab" if reader.of(recording) is not None} >= {
            spoken[-1].audio_path
        }
    named = [str(recording.message) for recording in result if issubclass(recording.category, DamagedFrames)]
    assert len(named) == 2 and all(any(str(path) in line for line in named) for path in paths[:2])
    with pytest.warns(DamagedFrames, match=paths[0].name):
        assert losses(lab) == plain
    paths[2].with_suffix(".json").write_text('{"made')
    when = {path: path.stat().st_mtime_ns for path in paths}
    kept(lab)
    assert left(lab) == before
    assert {path: path.stat().st_mtime_ns for path in paths} != when
    when = {path: path.stat().st_mtime_ns for path in paths}
    kept(lab)  # done is done
    assert {path: path.stat().st_mtime_ns for path in paths} == when


def scored(lab, spoken):
    from salad.passes.score import score

    score(lab, training.start_model(lab, tiny.config()), "r0", 0, spoken, "natural")
    return store.connect(lab).execute("select * exclude (clustering_id, cluster_id) from divergences order by all").fetchall()


def test_scoring_takes_the_frames_that_are_there_and_finds_the_same(lab, tmp_path):
    copies = [tmp_path / name for name in ("plain", "half")]
    for copy in copies:
        shutil.copytree(lab, copy)
    encoder, spoken = kept(lab)
    for path in lab.rglob("recording.*.tar"):
        forget_sound(path, spoken)  # nothing can be decoded any more
    plain = scored(copies[0], spoken)
    assert plain and scored(lab, spoken) == plain
    kept(copies[1], "float16")
    assert scored(copies[1], spoken) == plain  # rounded frames are no one's figures


def test_frames_of_another_encoder_or_of_other_sound_are_not_taken(lab):
    encoder, spoken = kept(lab, "float16")
    half = Frames(lab, encoder).of(spoken[0])
    assert half.dtype == np.float32 and np.array_equal(half, half.astype(np.float16))
    kept(lab)
    assert not np.array_equal(Frames(lab, encoder).of(spoken[0]), half)  # float32 comes first
    other = running.to_encode(lab, "natural", None, "models/encoder")[0]
    assert fingerprint(other) == fingerprint(encoder)
    next(other.parameters()).data.flatten()[0] += 1
    assert Frames(lab, other).of(spoken[0]) is None and fingerprint(LogMel()) != fingerprint(encoder)
    tar = Path(lab, spoken[0].audio_path)
    data = bytearray(tar.read_bytes())
    data[spoken[0].audio_offset + 30] ^= 1  # the MD5 of its samples
    tar.write_bytes(data)
    with pytest.warns(DamagedFrames, match="other sound"):
        assert Frames(lab, encoder).of(spoken[0]) is None
    undone = [part for part in parts(lab, lambda: encoder, fingerprint(encoder), spoken) if not part.whole()]
    assert len(undone) == 1
    tar.write_bytes(data[: len(data) // 3])
    shutil.rmtree(lab / "frames")
    with pytest.raises(SaladError, match=f"{tar.name}.*the other parts are done"):
        kept(lab)
    assert len(left(lab)) == 2 * 2


def killed_while_keeping(lab, shard, number):
    die_at(number)
    kept(lab, "float32", shard, 2)


def test_workers_killed_at_any_file_leave_what_a_clean_run_leaves(lab, tmp_path):
    shutil.copytree(lab, tmp_path / "clean")
    kept(tmp_path / "clean")
    process.set_forkserver_preload(["test_encode", "salad.models.phone"])
    killed = 0
    for number in (1, 2, 4):  # of the file before which they are killed
        both = [process.Process(target=killed_while_keeping, args=(lab, shard, number)) for shard in (0, 1)]
        for item in both:
            item.start()
        for item in both:
            item.join()
            killed += item.exitcode == -signal.SIGKILL
        encoder = running.to_encode(lab, "natural", None, "models/encoder")[0]
        with warnings.catch_warnings():
            warnings.simplefilter("error", DamagedFrames)  # half a shard's frames are none
            for item in corpora.of_speech(store.connect(lab), ["natural"]):
                Frames(lab, encoder).of(item)
    assert killed >= 2
    for shard in (1, 0):
        kept(lab, "float32", shard, 2)
    assert left(lab) == left(tmp_path / "clean")


def test_the_size_is_said_first_and_what_cannot_be_kept_is_refused_in_one_line(lab, capsys, monkeypatch):
    with pytest.raises(SaladError, match="LooksAhead' looks ahead: its frames depend on the spans"):
        running.prepare(lab, "encode", {"encoder": "test_encode:LooksAhead"})
    with pytest.raises(SaladError, match="no finished stage1 run"):
        running.prepare(lab, "encode", {})
    messages = []
    with pytest.raises(SaladError, match="would take .* GB in .*; use --yes to proceed"):
        running.prepare(lab, "encode", {"encoder": "test_encode:Wide"}, False, messages.append)
    with pytest.raises(SaladError, match=r"GB more in \S*/frames/natural/\S*, and \S* GB are free there: make room, or"):
        running.prepare(lab, "encode", {"encoder": "test_encode:Wide"}, True, messages.append)  # no disk holds that
    assert len(messages) == 2 and "6 recordings of natural" in messages[0] and not (lab / "frames").exists()
    assert not list((lab / "runs").glob("*"))
    monkeypatch.setattr("salad.passes.encode.ASKED_GB", 1e-9)
    with pytest.raises(SaladError, match="--yes"):
        running.prepare(lab, "encode", {"encoder": "models/encoder"}, False, messages.append)
    running.prepare(lab, "encode", {"encoder": "models/encoder"}, True, messages.append)
    monkeypatch.undo()
    with pytest.raises(SystemExit, match="^0$"):
        main(["pass", "encode", "--speech", "natural", "--encoder", "models/encoder", "--lab", str(lab)])
    encoder, spoken = running.to_encode(lab, "natural", None, "models/encoder")
    size = sum(recording.duration_s for recording in spoken) * encoder.frame_rate * encoder.dim * 4
    output = capsys.readouterr().out.splitlines()
    assert output[0].startswith("6 recordings of natural") and f"in float32: {size / 1e6:.1f} MB in lab/frames" in output[0]
    assert output[-1].endswith(f"lab/frames/natural/{fingerprint(encoder)[:12]}-float32")
    held = sum(path.stat().st_size for path in (lab / "frames").rglob("*.safetensors"))
    assert len(left(lab)) == 2 * 3 and held == pytest.approx(size, rel=0.05)
