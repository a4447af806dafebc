"""Passes: any number of workers, killed at any time and started again, leave the same units and the same Shar."""

import hashlib
import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny
from slurm_here import require_slurm, slurm
from tools import ROUNDS, die_at

import store
from salad import SaladError, passes, training
from salad.data import corpora
from salad.passes import run as running
from salad.passes.check import check
from salad.passes.score import batches, score
from salad.passes.synthesise import Job, synthesise
from salad.runs import Preempted, RunFolder
from salad.speech import load_tts, shar

process = multiprocessing.get_context("forkserver")  # one warm parent, from which every worker is forked
process.set_forkserver_preload(["tiny", "salad.passes.run", "salad.passes.score", "salad.passes.synthesise",
                                "salad.models.speech_lm", "peft", "lhotse.shar.writers.audio"])  # fmt: skip
RUN = "r00000000000a"
TEXTS = [f"{text} {number}" for number in ("One.", "Two.") for text in tiny.TEXTS]
JOBS = [Job(store.ids.sample_id("natural", text), text, "en-us") for text in TEXTS]


class Parrot:
    """A recogniser of one's own: it writes what it was told that each recording, by its length, says."""

    name = "parrot"

    def transcribe(self, samples):
        return ["the otter" if len(s) % 2 else "" for s in samples]


def speak(lab, shard=0, shards=1, recogniser=None, **options):
    return synthesise(
        lab, "natural", JOBS, load_tts("espeak"), {"seed": 0}, recogniser, shard_size=2, shard=shard, shards=shards, **options
    )


def scored(lab, shard=0, shards=1):
    import torch

    from salad.models.speech_lm import SpeechLM

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = SpeechLM.build(tiny.config(), lab).eval()
    spoken = corpora.of_speech(store.connect(lab), ["natural"])
    score(lab, model, RUN, 12, spoken, "natural", shard=shard, shards=shards)


def worker(lab, shard, shards, dies_at=None):
    """Both passes, one after the other, as one shard of several; killed before the `dies_at`-th file it writes."""
    if dies_at:
        die_at(dies_at)
    speak(lab, shard, shards)
    if len(passes.published(lab)) >= 7:  # samples, and all six parts are spoken: by whomever
        scored(lab, shard, shards)


def start(lab):
    tiny.teacher(lab / "models" / "teacher")
    tiny.encoder(lab / "models" / "encoder")
    store.publish(
        lab,
        "samples",
        [{"sample_id": job.sample_id, "text": job.text, "spoken": job.text, "corpus": "natural", "flags": []} for job in JOBS],
        {"corpus": "natural"},
    )
    return lab


def left(lab) -> dict[str, str]:
    """Everything that the passes leave: sha256 of each unit, by table and id, and of each file of speech."""
    units_by_table, damaged = store.units.scan(store.lab_path(lab))
    assert damaged == []
    units = {f"{name} {unit.unit_id}": unit.manifest["sha256"] for name in units_by_table for unit in units_by_table[name]}
    speech = {
        str(path.relative_to(lab)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (Path(lab) / "speech").rglob("*")
        if path.is_file()
    }
    return units | speech


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """A lab in which one worker did everything, undisturbed, and what it left."""
    lab = start(tmp_path_factory.mktemp("clean"))
    speak(lab)
    scored(lab)
    return lab, left(lab)


@pytest.fixture
def lab(clean, tmp_path):
    shutil.copytree(clean[0], tmp_path / "lab")
    return tmp_path / "lab"


def rows(lab, query):
    return store.connect(lab).execute(query).fetchall()


def test_workers_killed_at_any_file_leave_what_a_clean_run_leaves(clean, tmp_path):
    rng = random.Random(2)
    for attempt in range(ROUNDS):
        lab = start(tmp_path / str(attempt))
        killed = 0
        for most in (8, 16, 32):
            both = [process.Process(target=worker, args=(lab, shard, 2, rng.randint(1, most))) for shard in (0, 1)]
            for item in both:
                item.start()
            for item in both:
                item.join()
                killed += item.exitcode == -signal.SIGKILL
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # half a unit is no unit
                assert set(rows(lab, "select synthesis_id, m, d from raw.divergences")) <= set(
                    rows(clean[0], "select synthesis_id, m, d from raw.divergences")
                )
        assert killed >= 2
        for shard in (1, 0):
            worker(lab, shard, 2)
        scored(lab)  # shard 1 may have found the speech of shard 0 missing
        assert left(lab) == clean[1]


def test_two_workers_on_one_shard_leave_one_valid_output(clean, tmp_path):
    lab = start(tmp_path / "lab")
    for _ in range(2):  # the second time everything is there
        both = [process.Process(target=worker, args=(lab, 0, 1)) for _ in range(2)]
        for item in both:
            item.start()
        for item in both:
            item.join()
            assert item.exitcode == 0
    assert left(lab) == clean[1] and shar.Shar(lab, "natural").verify() == []
    assert len(list((lab / "tables" / "divergences").rglob("unit-*.parquet"))) == 6


def test_one_damaged_input_is_named_and_the_others_go_on(clean, lab):
    shutil.rmtree(lab / "tables" / "divergences")
    shutil.rmtree(lab / "tables" / "token_divergences")
    tar = lab / "speech" / "natural" / "recording.000003.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(SaladError, match="recording.000003.tar.*the other parts are done"):
        scored(lab)
    assert rows(lab, "select count(*) from raw.divergences") == [(2 * 10,)]
    speak(lab)  # the pass that made it makes it again
    scored(lab)
    assert left(lab) == clean[1]


def test_units_and_speech_that_are_damaged_are_made_again(clean, lab):
    unit = sorted((lab / "tables" / "token_divergences").rglob("*.parquet"))[2]
    data = bytearray(unit.read_bytes())
    data[len(data) // 2] ^= 4
    unit.write_bytes(data)
    (lab / "speech" / "natural" / "recording.000001.tar").unlink()
    (lab / "speech" / "natural" / "cuts.000002.jsonl").write_text('{"id": "y')
    with pytest.warns(store.DamagedWarning, match=unit.name):
        store.connect(lab)
    speak(lab, 1, 2)
    speak(lab, 0, 2)
    scored(lab)
    assert left(lab) == clean[1]


def test_a_flipped_bit_in_a_recording_is_named_by_verify_and_its_pass_makes_it_again(clean, lab):
    row = store.connect(lab).sql("from syntheses order by synthesis_id limit 1").to_arrow_table().to_pylist()[0]
    tar, rng = lab / row["audio_path"], random.Random(3)
    speak(lab)  # each FLAC is checked once
    for _ in range(ROUNDS):
        stat, data = tar.stat(), bytearray(tar.read_bytes())
        bit = rng.randrange(8 * row["audio_bytes"])
        data[row["audio_offset"] + bit // 8] ^= 1 << bit % 8
        tar.write_bytes(data)
        os.utime(tar, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        damages = store.verify(lab)
        assert [(item.path, row["synthesis_id"] in item.reason) for item in damages] == [(row["audio_path"], True)]
        with pytest.raises(store.StoreError, match="changed"):
            store.audio(store.connect(lab), row["synthesis_id"])
        speak(lab)
        assert store.verify(lab) == [] and left(lab) == clean[1]


def test_a_unit_cut_short_does_not_count_as_done(clean, lab):
    unit = sorted((lab / "tables" / "syntheses").rglob("*.parquet"))[1]
    made_from = json.loads(unit.with_suffix(".json").read_text())["made_from"]
    assert store.exists(lab, "syntheses", made_from)
    os.truncate(unit, unit.stat().st_size - 5)
    assert not store.exists(lab, "syntheses", made_from)
    with pytest.warns(store.DamagedWarning, match=unit.name):
        speak(lab)
    assert store.exists(lab, "syntheses", made_from) and rows(lab, "select count(*) from syntheses") == [(12,)]
    manifest = next((lab / "tables" / "syntheses").rglob(f"{unit.stem}.json"))
    manifest.write_text("{")
    assert not store.exists(lab, "syntheses", made_from)


def test_the_budget_ends_at_the_same_text_with_any_number_of_workers(tmp_path):
    estimated = {job.sample_id: 4.5 for job in JOBS}  # two parts of two will surely be needed
    made = []
    for name, order in (("one", [(0, 1)]), ("three", [(2, 3), (0, 3), (1, 3), (0, 3)])):
        lab = start(tmp_path / name)
        for shard, shards in order:
            results = []
            seconds = speak(lab, shard, shards, budget_s=20.0, estimated_s=estimated,
                            progress=lambda done, total, results=results: results.append((done, total)))  # fmt: skip
            assert not results or results[-1][1] == 20
        made.append((left(lab), seconds))
    assert made[0] == made[1]
    spoken = rows(tmp_path / "one", "select duration_s, sample_id from syntheses")
    in_order = sorted(spoken, key=lambda row: [job.sample_id for job in JOBS].index(row[1]))
    total = np.cumsum([row[0] for row in in_order])
    assert total[-1] >= 20 > total[-2] and made[0][1] == pytest.approx(total[-1])


def test_check_fills_in_what_synthesis_left_open_and_a_second_time_does_nothing(lab):
    before = {row[0]: row for row in rows(lab, "select synthesis_id, duration_s, audio_offset from syntheses")}
    assert rows(lab, "select distinct asr, cer from syntheses") == [(None, None)]
    store.compact(lab, grace_s=0)  # merged or not, a unit is checked under its own id
    check(lab, "natural", "parrot", Parrot, 0, 2)
    check(lab, "natural", "parrot", Parrot, 1, 2)
    rows_read = rows(lab, "select synthesis_id, duration_s, audio_offset from syntheses")
    assert {row[0]: row for row in rows_read} == before and len(rows_read) == 12
    assert rows(lab, "select count(*) from syntheses where asr = 'parrot' and cer > 0") == [(12,)]
    files = {path: path.stat().st_mtime_ns for path in (lab / "tables").rglob("*")}
    check(lab, "natural", "parrot", pytest.fail)
    assert {path: path.stat().st_mtime_ns for path in (lab / "tables").rglob("*")} == files
    with pytest.raises(SaladError, match="no speech in 'nowhere'"):
        check(lab, "nowhere", "parrot", Parrot)


def test_a_lab_that_is_moved_is_not_checked_again(lab, tmp_path):
    class Own(Parrot):
        name = str(lab / "models" / "recogniser")

    (lab / "models" / "recogniser").mkdir(parents=True, exist_ok=True)
    check(lab, "natural", Own.name, Own)
    assert rows(lab, "select distinct asr from syntheses") == [("models/recogniser",)]
    moved = tmp_path / "moved"
    shutil.copytree(lab, moved)
    check(moved, "natural", str(moved / "models" / "recogniser"), pytest.fail)
    # as it was written before: where the lab lay then
    for path in (moved / "tables" / "syntheses").rglob("unit-*.json"):
        made_from, unit = json.loads(path.read_text())["made_from"], path.with_suffix(".parquet")
        before = pq.read_table(unit).to_pylist()
        store.publish(moved, "syntheses", [row | {"asr": "/old/lab/models/recogniser"} for row in before], made_from)
    assert rows(moved, "select distinct asr from syntheses") == [("/old/lab/models/recogniser",)]
    check(moved, "natural", str(moved / "models" / "recogniser"), pytest.fail)
    (tmp_path / "recogniser").mkdir()
    check(moved, "natural", str(tmp_path / "recogniser"), Parrot)  # another one hears it all
    assert rows(moved, "select distinct asr from syntheses") == [("parrot",)]


def test_scores_are_those_of_a_plain_padded_loop_over_logits(lab):
    import torch

    from salad.data.frame_source import FrameSource
    from salad.models.speech_lm import SpeechLM
    from salad.passes.score import score_texts

    path = Path(__file__).parent.parent / "benchmarks" / "scoring.py"
    spec = importlib.util.spec_from_file_location("scoring_benchmark", path)
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    model = SpeechLM.build(tiny.config(), lab).eval()
    with torch.no_grad():  # LoRA starts at nothing: F would be 0
        for name, parameter in model.llm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.1)
    spoken = corpora.of_speech(store.connect(lab), ["natural"])
    encoded = FrameSource(lab, model.prompt, model.encoder)
    result = peer.plain(model, encoded, spoken, seed=3, batch=5)
    divergences, tokens = score_texts(model, encoded, spoken, seed=3)
    results = peer.differences(result, divergences, tokens)
    assert results["missing"] == 0 and results["position"] < 1e-4 and results["sample"] < 1e-4
    assert max(row["f"] for row in divergences.to_pylist()) > 0.01
    top = tokens.to_pylist()[7]["student_top"]
    assert len(top) == 5 and [t["p"] for t in top] == sorted((t["p"] for t in top), reverse=True)


def test_batches_are_of_like_length_and_hold_every_index_once():
    lengths = [5, 90, 7, 6, 88, 300, 5]
    made = batches(lengths, 200)
    assert sorted(i for group in made for i in group) == list(range(7)) and [5] in made
    assert all(max(lengths[i] for i in group) * len(group) <= 200 or len(group) == 1 for group in made)
    assert made == [[0, 6, 3, 2], [4, 1], [5]]


def test_a_pass_or_option_that_is_not_there_is_refused_in_one_line(lab):
    with pytest.raises(SaladError, match="no pass 'dream'"):
        running.prepare(lab, "dream", {})
    with pytest.raises(SaladError, match="has no option colour; it has speech, asr"):
        running.prepare(lab, "check", {"colour": 1})
    with pytest.raises(SaladError, match="no finished stage1 run"):
        running.prepare(lab, "score", {})
    with pytest.raises(SaladError, match="shard 2 of 2"):
        passes.run_parts(lab, [], 2, 2)


def test_work_as_a_run_ends_where_it_tells_of_itself_when_asked_and_begins_again(tmp_path):
    seen, before = [], signal.getsignal(signal.SIGTERM)

    def work(run, progress):
        for done in range(1, 4):
            if done == 2 and len(seen) < 3:
                os.kill(os.getpid(), signal.SIGTERM)
            progress(done, 3)

    def do():
        return passes.run_once(tmp_path, "count", {"pass": "count"}, work, progress=lambda *args: seen.append(args))

    try:
        with pytest.raises(Preempted):
            do()
        assert seen == [(1, 3), (2, 3)]
        (run,) = (tmp_path / "runs").iterdir()
        status = RunFolder.open(tmp_path, run.name).read_status()
        assert (status["state"], status["step"], status["max_steps"]) == ("preempted", 2, 3)
        seen.append("again")
        assert do().read_status()["state"] == "done" and seen[3:] == [(1, 3), (2, 3), (3, 3)]
        assert do().run_id == run.name and len(seen) == 6  # what is done is not done again
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_sentence_model_embeds_in_unit_length_without_an_nll(tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers import models
    from transformers import BertConfig, BertModel

    from salad.passes.embed import embed, of_llm, of_sentences

    lab = start(tmp_path / "lab")
    BertModel(
        BertConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    inner = models.Transformer(str(tmp_path / "bert"))
    sentence_transformers.SentenceTransformer(modules=[inner, models.Pooling(16)]).save(str(tmp_path / "sentence"))
    embed(lab, lambda: of_sentences(str(tmp_path / "sentence")), "natural", "sentence")
    from salad.models.speech_lm import load_llm, load_tokenizer

    llm, tokenizer = load_llm(tiny.config().llm, lab), load_tokenizer("models/teacher", lab)
    embed(lab, lambda: of_llm(llm, tokenizer), "natural", "teacher")
    outcome = store.connect(lab).execute("select model, vector, nll, text from embeddings join samples using (sample_id)")
    by_model = {}
    for model, vector, nll, text in outcome.fetchall():
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        by_model.setdefault(model, []).append((text, nll))
    assert {len(v) for v in by_model.values()} == {12} and all(nll is None for _, nll in by_model["sentence"])
    import torch

    for text, nll in by_model["teacher"][:3]:  # the model's own loss
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        logits = llm(input_ids=ids).logits[0, :-1, : len(tokenizer)]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
        assert nll == pytest.approx(expected, abs=1e-4)
    from safetensors.torch import load_file

    weights = tmp_path / "sentence" / "model.safetensors"
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(SaladError, match="cannot be loaded.*safetensors"):  # a pickle is not opened
        of_sentences(str(tmp_path / "sentence"))


def test_clusters_are_the_same_whether_vectors_lie_in_memory_or_in_a_file(tmp_path):
    from salad.passes.cluster import cluster

    vectors = np.random.default_rng(0).standard_normal((600, 8)).astype(np.float32)
    ids = [store.ids.sample_id("broad", f"text {n}") for n in range(600)]
    made = {}
    for held in (1 << 30, 0):
        lab = tmp_path / str(held)
        store.publish(
            lab,
            "samples",
            [{"sample_id": s, "text": f"otter {n}", "corpus": "broad", "flags": []} for n, s in enumerate(ids)],
            {"corpus": "broad"},
        )
        for start in (300, 0):  # units do not lie in the order of the ids
            some = slice(start, start + 300)
            store.publish(
                lab,
                "embeddings",
                [{"sample_id": s, "model": "m", "vector": v.tolist()} for s, v in zip(ids[some], vectors[some], strict=True)],
                {"part": start},
            )
        name = cluster(lab, None, "m", "broad", 4, 0, held)
        made[held] = {key: sha for key, sha in left(lab).items() if not key.startswith("embeddings")}
        assert [path.name for path in lab.iterdir() if "tmp" in path.name] == []
    assert made[0] == made[1 << 30]
    assert rows(lab, f"select sum(size), min(size) > 100 from clusters where clustering_id = '{name}'") == [(600, True)]
    rows_read = dict(rows(lab, "select sample_id, cluster_id from assignments"))
    unit = vectors - vectors.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    centers, prices = zip(*rows(lab, "select centroid, price from clusters order by cluster_id"), strict=True)
    assert [rows_read[s] for s in ids] == (unit @ np.array(centers, np.float32).T - np.array(prices)).argmax(1).tolist()
    store.publish(lab, "embeddings", [{"sample_id": ids[0], "model": "m", "vector": [1.0]}], {"part": 0})
    with pytest.raises(SaladError, match="not all of . dimensions"):
        cluster(lab, None, "m", "broad", 3, 0)


def trained_on(lab):
    """A short run on the lab's speech and a corpus, so that passes have a checkpoint to ask; nothing scored yet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("divergences", "token_divergences"):
        shutil.rmtree(lab / "tables" / name)
    shutil.rmtree(lab / "log")  # which says that there should be more
    (lab / "corpora" / "broad").mkdir(parents=True)
    pq.write_table(pa.table({"text": tiny.TEXTS}), lab / "corpora" / "broad" / "part-0.parquet")
    optim = tiny.config().optim.model_copy(update={"steps": 2, "warmup": 0, "decay": 1, "checkpoint_every": 2})
    run = training.prepare(lab, tiny.config(optim=optim), "tiny")
    training.train(lab, run.run_id)
    return run


def test_workers_on_an_engine_score_what_one_process_scores_even_if_one_of_them_is_killed(lab):
    trained = trained_on(lab)
    alone = lab.parent / "alone"
    shutil.copytree(lab, alone)
    pass_ = running.prepare(lab, "score", {"speech": "natural"})
    handle = running.launch(pass_, "here", 2)
    until = time.monotonic() + 120
    while time.monotonic() < until:  # one of them gets as far as its work, and is killed there
        marks = [json.loads(p.read_text()) for p in pass_.path.glob("supervisor*.json")]
        children = [m["child"]["pid"] for m in marks if "child" in m]
        if len(children) == 2 and list(pass_.path.glob("status-*.json")):
            os.kill(children[1], signal.SIGKILL)
            break
        time.sleep(0.05)
    status = handle.wait(180)
    assert status["state"] == "failed" and "killed" in status["error"] and sum(status["shards"].values()) == 2
    completed = subprocess.run(
        [sys.executable, "-m", "workbench.cli", "pass", "score", "--run", trained.run_id, "--step", "2", "--speech",
         "natural", "--on", "here", "--workers", "2", "--lab", str(lab)], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert f"natural scored by {trained.run_id}, step 2" in completed.stdout and pass_.run_id in completed.stdout
    status = pass_.read_status()
    assert status["state"] == "done" and status["step"] == status["max_steps"] == 12 and status["shards"] == {"done": 2}
    assert (lab / "store.duckdb").exists()
    running.run_here(running.prepare(alone, "score", {"speech": "natural", "run_id": trained.run_id}))
    assert left(lab) == left(alone) and rows(lab, "select count(*) from raw.divergences") == [(24,)]


@pytest.mark.slurm
def test_score_on_a_slurm_array_is_what_one_process_makes(lab, tmp_path):
    """Two workers through the real command line, on a real Slurm on this machine."""
    require_slurm()
    trained = trained_on(lab)
    alone = lab.parent / "alone"
    shutil.copytree(lab, alone)
    with slurm(tmp_path / "slurm"):
        completed = subprocess.run(
            [sys.executable, "-m", "workbench.cli", "pass", "score", "--run", trained.run_id, "--speech", "natural",
             "--on", "slurm", "--workers", "2", "--lab", str(lab)], capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert len(list((lab / "runs").glob("*/slurm.json"))) == 1  # an array
    running.run_here(running.prepare(alone, "score", {"speech": "natural", "run_id": trained.run_id}))
    assert left(lab) == left(alone) and rows(lab, "select count(*) from raw.divergences") == [(24,)]
