"""What stands in a run's way is told in one clear line, and costs nothing that was already trained."""

import json
import os
import shutil
import signal
import warnings

import pytest
import torch
from tiny import config, lab
from tools import small_disk

import store
from salad import SaladError, training
from salad.config import AugmentConfig, RunConfig, apply_overrides, validate
from salad.models import SpeechLM
from salad.runs import Preempted
from salad.training import checkpoints


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return lab(tmp_path_factory.mktemp("lab"))


def losses(run) -> dict[int, float]:
    return {row["step"]: row["values"]["loss"] for row in run.metrics()}


def trained(place, wanted, repetition: int = 0):
    run = training.prepare(place, wanted, "tiny", repetition)
    training.train(place, run.run_id)
    return run


@pytest.fixture(scope="module")
def whole(place):
    return trained(place, config())


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").mkdir()
    with small_disk(tmp_path / "disk", "24m") as folder:
        yield folder


def fill(disk) -> None:
    """Write until nothing more fits."""
    size = 1 << 20
    with open(disk / "filler", "wb", buffering=0) as file:
        while size:
            try:
                while file.write(b"x" * size):
                    pass
            except OSError:
                size //= 2


@pytest.mark.root
@pytest.mark.parametrize("spare", [0, 100_000])
def test_a_full_disk_is_one_clear_error_and_the_last_checkpoint_stands(place, whole, disk, spare):
    """`spare` bytes left: none, or enough for the metrics but not for a checkpoint."""
    there = disk / "lab"
    shutil.copytree(place, there, ignore=shutil.ignore_patterns("runs"))
    run = training.prepare(there, config(), "tiny")

    def progress(step, steps, means):
        if step == 5:  # a checkpoint of step 4 is there
            fill(disk)
            if spare:
                os.truncate(disk / "filler", (disk / "filler").stat().st_size - spare)

    with pytest.raises(SaladError, match="could not be written.*(No space left|os error 28).*resume the run") as failure:
        training.train(there, run.run_id, progress)
    assert "\n" not in str(failure.value) and str(run.path) in str(failure.value)
    assert checkpoints.latest(run.path).name == "step-4" and not list(run.path.glob("checkpoints/.*"))
    (disk / "filler").unlink()
    training.train(there, run.run_id)
    assert losses(run) == losses(whole) and run.read_status()["state"] == "done"


def test_a_run_does_not_go_on_with_another_configuration(place):
    run = training.prepare(place, config(seed=1), "tiny")
    training.train(place, run.run_id)
    path = run.path / "config.json"
    record = json.loads(path.read_text())
    record["config"]["optim"]["batch"] = 2
    record["config"]["data"]["p_text"] = 0.5
    path.write_text(json.dumps(record))
    with pytest.raises(SaladError, match=r"data.p_text was 0.33\d* and is now 0.5; optim.batch was 3 and is now 2"):
        training.train(place, run.run_id)
    assert checkpoints.latest(run.path).name == "step-12"


def test_a_checkpoint_of_an_earlier_version_still_resumes(place, whole):
    """It knew neither the configuration that it was made with nor the keys that came later."""
    run = training.prepare(place, config(), "tiny", repetition=3)
    training.train(place, run.run_id)
    shutil.rmtree(run.path / "checkpoints" / "step-12")
    folder = run.path / "checkpoints" / "step-8"
    state = json.loads((folder / "state.json").read_text())
    del state["made_by"]
    (folder / "state.json").write_text(json.dumps(state))
    manifest = json.loads((folder / "manifest.json").read_text())
    import hashlib

    manifest["sha256"]["state.json"] = hashlib.sha256((folder / "state.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    record = json.loads((run.path / "config.json").read_text())
    for key in ("keep_gb", "prefetch", "workers", "augment"):
        del record["config"]["data"][key]
    (run.path / "config.json").write_text(json.dumps(record))
    training.train(place, run.run_id)
    assert losses(run) == losses(whole)


class Stop(RuntimeError):
    pass


def broken_off(place, wanted, at: int, repetition: int = 5):
    """A run whose process goes without a word after step `at`, taken up again to its end."""
    run = training.prepare(place, wanted, "tiny", repetition)

    def progress(step, steps, means):
        if step == at:
            raise Stop

    with pytest.raises(Stop):
        training.train(place, run.run_id, progress)
    training.train(place, run.run_id)
    return run


@pytest.mark.parametrize("changes", [
    {"llm": {"dtype": "bfloat16", "lora_dropout": 0.1}},
    {"llm": {"finetune": "full", "dtype": "bfloat16"}, "optim": {"gradient_checkpointing": True}},
    {"optim": {"batch_tokens": 250, "micro_tokens": 100}, "data": {"keep_gb": 0.0, "augment": {"natural": {
        "p_speed": 0.5, "p_room": 0.5, "p_noise": 0.5, "p_codec": 0.5}}}},
], ids=["bf16-lora", "bf16-full", "tokens-from-disk-augmented"])  # fmt: skip
def test_resume_is_exact_in_every_mode(place, changes):
    data = config().model_dump()
    for part, values in changes.items():
        data[part] |= values
    wanted = validate(RunConfig, data)
    run, again = trained(place, wanted), broken_off(place, wanted, at=7)
    assert losses(run) == losses(again) and len(losses(run)) == 12
    last = [checkpoints.latest(r.path) for r in (run, again)]
    for name in json.loads((last[0] / "manifest.json").read_text())["sha256"]:
        if name != "state.json":
            assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
    if wanted.llm.dtype == "bfloat16":
        model = SpeechLM.from_pretrained(last[0] / "model", place)
        assert next(model.llm.parameters()).dtype == torch.bfloat16


def test_micro_batches_gradient_checkpointing_and_reading_from_disk_change_no_loss(place, whole):
    recomputed = {"optim.micro_batch": 1, "optim.gradient_checkpointing": True}
    for changes in (recomputed, {"data.keep_gb": 0.0, "data.prefetch": 0}):
        run = trained(place, apply_overrides(config(), changes))
        assert list(losses(run).values()) == pytest.approx(list(losses(whole).values()), abs=2e-5), changes


def test_training_with_gradient_checkpointing_prints_nothing_of_the_libraries(place, capfd):
    """Through the command line: what a person sees beside the progress are our own lines."""
    from workbench.cli import main

    optim = config().optim.model_copy(update={"gradient_checkpointing": True, "steps": 2, "warmup": 1, "decay": 1})
    run = training.prepare(place, config(optim=optim), "tiny")
    with warnings.catch_warnings(), pytest.raises(SystemExit, match="^0$"):
        warnings.simplefilter("error", FutureWarning)
        main(["train", str(run.path / "config.json"), "--lab", str(place)])
    output = capfd.readouterr()
    assert "deprecated" not in output.err + output.out and "[transformers]" not in output.err + output.out
    assert [line for line in output.out.splitlines() if line] == [f"{run.run_id} done: {run.path}"]


def test_sigterm_within_a_step_gives_the_step_up_and_saves_the_one_before(place, monkeypatch):
    wanted = apply_overrides(config(), {"optim.micro_batch": 1, "optim.checkpoint_every": 12})
    run, seen = training.prepare(place, wanted, "tiny", repetition=6), []
    real = SpeechLM.forward

    def forward(self, batch, **options):
        seen.append(batch)
        if len(seen) == 5 * 3 + 2:  # the second of three forward passes of step 6
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, **options)

    monkeypatch.setattr(SpeechLM, "forward", forward)
    with pytest.raises(Preempted):
        training.train(place, run.run_id)
    assert run.read_status()["state"] == "preempted" and len(seen) == 5 * 3 + 2
    assert checkpoints.latest(run.path).name == "step-5"
    monkeypatch.undo()
    training.train(place, run.run_id)
    assert losses(run) == losses(trained(place, wanted))


def test_a_resumed_run_goes_on_with_the_data_that_it_began_with(place, whole, tmp_path):
    there = tmp_path / "lab"
    shutil.copytree(place, there, ignore=shutil.ignore_patterns("runs"))
    run = training.prepare(there, config(), "tiny")

    def progress(step, steps, means):
        if step == 6:
            raise Stop

    with pytest.raises(Stop):
        training.train(there, run.run_id, progress)
    from salad.passes.synthesise import jobs_of, synthesise
    from salad.speech import load_tts

    text = "One more sentence came later."
    sample = store.ids.sample_id("natural", text)
    row = {"sample_id": sample, "text": text, "spoken": text, "corpus": "natural", "domain": "stories", "n_tokens": 9}
    store.publish(there, "samples", [row | {"flags": []}], {"corpus": "later"})
    jobs = jobs_of([(sample, text)], ("en-us",))
    synthesise(there, "later", jobs, load_tts("espeak"), {"seed": 1}, recorded=True)
    training.train(there, run.run_id)
    assert losses(run) == losses(whole)


def test_speech_without_word_times_is_refused_with_what_makes_them(place, tmp_path):
    there = tmp_path / "lab"
    shutil.copytree(place, there, ignore=shutil.ignore_patterns("runs"))
    row = store.connect(there).execute("select * from syntheses limit 1").to_arrow_table().to_pylist()[0]
    names = {f.name for f in store.schema.TABLES["syntheses"].arrow()}
    row = {k: v for k, v in row.items() if k in names} | {"synthesis_id": "y0123456789ab", "words": []}
    store.publish(there, "syntheses", [row], {"unaligned": 1})
    run = training.prepare(there, config(), "tiny")
    with pytest.raises(SaladError, match="have no word times.*salad prepare speech"):
        training.train(there, run.run_id)


def test_what_the_configuration_cannot_mean_is_refused():
    for changes, message in (
        ({"sequences.span_weights": [1, 1]}, "a weight for each of the 6 lengths"),
        ({"sequences.p_all_text": 0.9}, "add up to more than 1"),
        ({"data.augment": {"elsewhere": {}}}, "neither a folder of `natural` nor `selected`"),
        ({"trackers": ["mlflow"]}, "trackers"),
    ):
        with pytest.raises(SaladError, match=message):
            apply_overrides(config(), changes)


def test_a_tracker_that_is_not_installed_is_named(place):
    from accelerate.tracking import get_available_trackers

    missing = [t for t in ("trackio", "wandb", "tensorboard") if t not in {str(x) for x in get_available_trackers()}]
    if not missing:
        pytest.skip("all of them are installed")
    run = training.prepare(place, config(trackers=(missing[0],)), "tiny")
    with pytest.raises(SaladError, match=f"{missing[0]} is not installed.*pip install"):
        training.train(place, run.run_id)


def test_metrics_tell_each_corpus_both_rates_memory_and_waiting(whole):
    rows = [row["values"] for row in whole.metrics()]
    spoken, text = [r for r in rows if "d_speech" in r], [r for r in rows if "d_text" in r]
    assert spoken and text and all(r["d_natural"] == r["d_speech"] for r in spoken)
    assert all(0 <= r["waiting"] <= 1 and r["memory_gb"] > 0.05 and r["lr"] == r["lr_llm"] for r in rows)
    assert "share_of_peak" not in rows[0]  # nobody knows a CPU's


def test_augmentation_keeps_words_where_they_are_heard():
    import numpy as np

    from salad.data import augmentation
    from salad.data.corpora import SpokenText

    rate = 16_000
    sound = np.zeros(2 * rate, np.float32)
    sound[rate : rate + 800] = np.sin(np.arange(800) * 0.3)  # a word at 1 s
    spoken = SpokenText("s1", "y1", "word", (("word", 0, 4, 1.0, 1.05),), 2.0, "speech/natural/r.tar", 0, 0)
    every = AugmentConfig(p_speed=1, p_room=1, p_noise=1, p_codec=1, snr_db=(20, 20), codecs=("mp3", "vorbis", "gsm"))
    for seed in range(6):
        item = augmentation.draw(np.random.default_rng(seed), every)
        later = augmentation.respoken(spoken, item)
        recorded = augmentation.altered(sound, rate, item)
        assert recorded.dtype == np.float32 and abs(len(recorded) / rate - later.duration_s) < 1e-3
        assert np.array_equal(recorded, augmentation.altered(sound, rate, item))
        loud = np.abs(recorded) > 0.5 * np.abs(recorded).max()
        assert abs(np.flatnonzero(loud)[0] / rate - later.words[0][3]) < 0.03, item
        assert not np.array_equal(recorded[: len(sound)], sound[: len(recorded)])
    assert augmentation.draw(np.random.default_rng(0), AugmentConfig()) is None


class Recorder:
    """A tracker that keeps what it is sent: trackers that users have are packages that are not installed here."""

    requires_logging_directory = True
    made: list = []

    def __init__(self, name, logging_dir):
        self.name, self.folder, self.sent = name, logging_dir, []
        Recorder.made.append(self)

    def start(self):
        self.sent.append("start")

    def store_init_configuration(self, values):
        self.sent.append(values["contender"])

    def log(self, values, step):
        self.sent.append((step, values["loss"]))

    def finish(self):
        self.sent.append("finish")


def test_a_tracker_gets_every_logged_step(place, monkeypatch):
    import accelerate.tracking

    monkeypatch.setitem(accelerate.tracking.LOGGER_TYPE_TO_CLASS, "tensorboard", Recorder)
    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", lambda: ["tensorboard"])
    run = training.prepare(place, config(trackers=("tensorboard",), seed=21), "tiny")
    training.train(place, run.run_id)
    (tracker,) = Recorder.made
    steps = [(row["step"], row["values"]["loss"]) for row in run.metrics()]
    assert tracker.sent == ["start", "stage1", *steps, "finish"] and tracker.folder == str(run.path)
