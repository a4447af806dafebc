"""`salad study`: a study of real models by one command, at toy size and with the smallest models; and with real weights."""

import json
import os
import random
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import pytest
import soundfile
from demo_lab import SALAD, finished, salad
from tools import real_model, shared

import store
from salad import SaladError, lookup, plan, recipes
from salad.config import WarmStartConfig
from salad.runs import read_json
from salad.speech import load_tts
from salad.study import conduct, costs, graph, material, sources, state
from salad.study.config import SpeechSource, Study, TaskSource, TextSource
from salad.study.load import load
from workbench.cli import main

pytestmark = pytest.mark.timeout(1800)


# --- a study of the miniature's models, as a user would write one ---


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """(folder of models, folder of data): the demo's models under plain names, its texts as documents, espeak as recordings."""
    demo = finished(tmp_path_factory)
    folder = tmp_path_factory.mktemp("world")
    models, data = folder / "models", folder / "data"
    models.mkdir(), (data / "audio").mkdir(parents=True)
    for name in ("teacher", "encoder", "recogniser"):
        (models / name).symlink_to(demo.lab / "models" / name)
    con = store.connect(demo.lab)
    rows = con.execute("SELECT text, domain FROM samples WHERE corpus = 'broad' AND len(coalesce(flags, [])) = 0 "
                       "ORDER BY sample_id LIMIT 160").fetchall()  # fmt: skip
    (data / "texts.jsonl").write_text("".join(
        json.dumps({"doc_id": f"d{i}", "text": text, "domain": domain, "licence": "CC0-1.0"}) + "\n"
        for i, (text, domain) in enumerate(rows)))  # fmt: skip
    espeak, listed = load_tts("espeak"), ["path\ttext\tspeaker"]
    natural = con.execute("SELECT text FROM samples WHERE corpus = 'natural' ORDER BY sample_id LIMIT 14").fetchall()
    for i, (text,) in enumerate(natural):
        soundfile.write(data / "audio" / f"{i}.wav", espeak.speak(text, "en-us@rate=195", 0).samples, 16_000)
        listed.append(f"audio/{i}.wav\t{text}\tann")
    (data / "list.tsv").write_text("\n".join(listed) + "\n")
    items = (demo.lab / "tasks").glob("*.jsonl")
    (data / "items.jsonl").write_bytes(b"".join(next(p for p in sorted(items)).read_bytes().splitlines(keepends=True)[:4]))
    return models, data


def toy(**fields) -> Study:
    """The smallest study of the miniature's models on files."""
    small = recipes.miniature().smoke()
    warm = WarmStartConfig(steps=4, spans=4, save_every=2)
    small = small.model_copy(
        update={
            "stage1": small.stage1.model_copy(update={"adapter": small.stage1.adapter.model_copy(update={"warm_start": warm})})
        }
    )
    tiny = {"steps": 6, "warmup": 1, "decay": 2, "checkpoint_every": 2, "batch": 2, "log_every": 1}
    stages = []
    for run in (small.stage1, small.stage2):
        stages.append(run.model_copy(update={
            "optim": run.optim.model_copy(update=tiny), "llm": run.llm.model_copy(update={"name": "teacher"}),
            "encoder": run.encoder.model_copy(update={"name": "encoder"})}))  # fmt: skip
    text = TextSource(path="texts.jsonl", licence="CC0-1.0", min_s=1.0, documents=(0.0, 0.8))
    return Study(**{
        "name": "toy", "text": text, "heldout_text": text.model_copy(update={"documents": (0.8, 1.0)}), "heldout_per_domain": 1,
        "natural": SpeechSource(path="list.tsv", layout="table", rows=(0.0, 0.8), domain="stories", max_cer=50.0),
        "heldout": SpeechSource(path="list.tsv", layout="table", rows=(0.8, 1.0), domain="stories", max_cer=50.0),
        "tasks": (TaskSource(name="facts", path="items.jsonl"),), "recogniser": "recogniser", "n_clusters": 3,
        "probe_per_cluster": 1, "probe_voices": ("en-us@rate=195",), "voices": ("en-us@rate=195",), "budget_h": 0.004,
        "max_cer": 50.0, "workers": {"probe": 2}, "stage1": stages[0], "stage2": stages[1],
    } | fields)  # fmt: skip


def write(path: Path, study: Study) -> Path:
    conduct.save_config(path, study)
    return path


def command(world, spec, lab, *options) -> list[str]:
    models, data = world
    return ["study", str(spec), "--models", models, "--data", data, "--lab", lab, *options]


@pytest.fixture(scope="session")
def whole(world, tmp_path_factory):
    """A toy study with a pause for review, gone through: (lab, file, what it printed before and after the pause)."""
    folder = tmp_path_factory.mktemp("whole")
    spec, lab = write(folder / "toy.json", toy(review=True)), folder / "lab"
    before = salad(*command(world, spec, lab))
    assert before.returncode == 0, before.stderr + before.stdout
    waiting = state.waits_for_review(lab), [r["kind"] for r in _runs(lab)]
    after = salad(*command(world, spec, lab, "--reviewed"))
    assert after.returncode == 0, after.stderr + after.stdout
    return lab, spec, before.stdout, after.stdout, waiting


def _runs(lab) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(Path(lab).glob("runs/r*/config.json"))]


def test_a_study_pauses_for_a_person_before_stage_ii_and_says_where_to_look(whole):
    lab, _, before, after, (waited, kinds) = whole
    assert waited and "stage2" not in kinds and kinds.count("stage1") == 1
    assert "notebooks/selection.py" in before and "--reviewed" in before and "Stage II, active" not in before
    assert not state.waits_for_review(lab) and "Stage II, active" in after
    assert [run["kind"] for run in _runs(lab)].count("stage2") == 2


def test_it_ends_with_everything_measured_and_one_table(whole):
    lab, _, _, after, _ = whole
    con = store.connect(lab)
    found = {tuple(row) for row in con.execute("SELECT DISTINCT contender, modality FROM evaluations").fetchall()}
    sides = ("text", "speech", "cascade", "deaf")
    assert found == {("teacher", "text"), ("teacher", "cascade"),
                     *((c, m) for c in ("stage1", "stage2_active", "stage2_uniform") for m in sides)}  # fmt: skip
    scored = con.execute("SELECT DISTINCT y.speech FROM raw.scored v JOIN syntheses y USING (synthesis_id)").fetchall()
    assert {name for (name,) in scored} == {"probe", "heldout", "heldout_natural"}
    table = (lab / "study.md").read_text()
    assert "stage2_active" in table and "| heard share |" in table and "warm-started before Stage I: 4 steps" in table
    assert "D, seed 0" in table and "D, mean" not in table and "smaller domains" not in table
    assert (lab / "report" / "study-divergences.csv").is_file() and "study.md" in after


def test_held_out_material_shares_no_document_and_no_recording(whole):
    lab, *_ = whole
    con = store.connect(lab)
    shared_texts = "SELECT count(*) FROM samples a JOIN samples b ON a.text = b.text WHERE a.corpus = $1 AND b.corpus = $2"
    assert con.execute(shared_texts, ["broad", "heldout"]).fetchone()[0] == 0
    assert con.execute(shared_texts, ["natural", "heldout_natural"]).fetchone()[0] == 0
    p_web = json.loads((lab / "study.json").read_text())["p_web"]
    assert sum(p_web.values()) == pytest.approx(1) and len(p_web) > 1


def test_the_dry_run_says_that_everything_is_done_and_starts_nothing(whole, world):
    lab, spec, *_ = whole
    before = sorted(path.name for path in (lab / "runs").iterdir())
    told = salad(*command(world, spec, lab, "--dry-run"))
    assert told.returncode == 0 and "to do" not in told.stdout, told.stdout
    count = len(conduct.steps_of(lab, toy(review=True)))
    assert f"{count} of {count} steps are done" in told.stdout
    assert sorted(path.name for path in (lab / "runs").iterdir()) == before


def test_a_clustering_that_a_person_makes_meanwhile_does_not_become_the_studys(whole, tmp_path):
    import shutil

    lab = shutil.copytree(whole[0], tmp_path / "lab")
    before = state.noted(lab, "clustering")
    assert salad("pass", "cluster", "--corpus", "broad", "--k", "2", "--lab", lab).returncode == 0
    assert lookup.newest_clustering(lab) != before
    material.clusters(lambda *_: None, lab, toy(review=True))
    assert state.noted(lab, "clustering") == before


def test_again_trains_a_further_run_beside_the_first(whole, world, tmp_path):
    import shutil

    lab, spec, *_ = whole
    copy = tmp_path / "lab"
    shutil.copytree(lab, copy)
    first = state.noted(copy, "stage2_active")
    told = salad(*command(world, spec, copy, "--only", "stage2_active", "--again", "stage2_active"))
    assert told.returncode == 0, told.stderr + told.stdout
    second = state.noted(copy, "stage2_active")
    assert second[0] != first[0] and (copy / "runs" / first[0] / "checkpoints").is_dir()
    told = salad(*command(world, spec, copy, "--again", "natural"))
    assert told.returncode == 2 and "only a training" in told.stderr and len(told.stderr.splitlines()) == 1


def test_a_pack_holds_what_a_reader_needs_and_repeats_the_study(whole, world, tmp_path):
    lab, spec, *_ = whole
    pack = tmp_path / "toy.zip"
    told = salad(*command(world, spec, lab, "--pack", pack))
    assert told.returncode == 0, told.stderr
    with zipfile.ZipFile(pack) as file:
        names = set(file.namelist())
        ids = json.loads(file.read("ids.json"))
        everything = b"".join(file.read(name) for name in names)
    assert {"study.json", "packages.txt", "ids.json", "licences.json", "tables/answers.csv", "tables/divergences.sql",
            "rows/seed-0/evaluations.parquet", "rows/seed-0/divergences.parquet"} <= names  # fmt: skip
    assert ids["seed-0"]["notes"]["stage1"] == state.noted(lab, "stage1") and ids["models"]["teacher"]
    assert str(world[0]).encode() not in everything and b"RIFF" not in everything
    assert load(str(pack)) == load(str(spec))
    again = salad(*command(world, "", tmp_path / "other", "--from", pack, "--until", "tasks")[2:], "--dry-run")
    assert again.returncode == 2  # a command needs its name
    told = salad("study", "--from", pack, *command(world, "", tmp_path / "other", "--until", "tasks")[2:])
    assert told.returncode == 0, told.stderr
    assert salad(*command(world, spec, lab, "--pack", pack)).returncode == 2  # not written over


def test_another_configuration_is_refused_by_name_and_further_seeds_are_not(whole, world, tmp_path):
    lab, *_ = whole
    other = write(tmp_path / "other.json", toy(review=True, gamma=3.0))
    told = salad(*command(world, other, lab))
    assert told.returncode == 2 and "gamma is 2.0 there, 3.0 asked for" in told.stderr and len(told.stderr.splitlines()) == 1
    graph.claim(lab, toy(review=True, seeds=(0, 1)))
    with pytest.raises(SaladError, match="seeds"):
        graph.claim(lab, toy(review=True, seeds=(1, 0)))


def test_killed_anywhere_and_rerun_it_ends_as_one_that_was_never_killed(whole, world, tmp_path):
    lab, spec, *_ = whole
    other, rng, killed = tmp_path / "lab", random.Random(3), 0
    options = command(world, spec, other, "--reviewed")
    first = command(world, spec, other)
    while killed < 2:
        process = subprocess.Popen([*SALAD, *map(str, first)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                   start_new_session=True)  # fmt: skip
        # after as many steps as it had before, and some more
        wanted = len(list((other / ".study" / "steps").glob("*.json"))) + rng.randint(2, 4)
        while process.poll() is None and len(list((other / ".study" / "steps").glob("*.json"))) < wanted:
            time.sleep(0.05)
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    assert killed == 2
    assert salad(*first).returncode == 0
    told = salad(*options)
    assert told.returncode == 0, told.stderr + told.stdout
    query = "SELECT contender, task, modality, item_id, scores FROM evaluations ORDER BY ALL"
    assert store.connect(other).execute(query).fetchall() == store.connect(lab).execute(query).fetchall()


def test_a_step_that_fails_is_one_line_and_what_does_not_wait_for_it_goes_on(world, tmp_path):
    spec = write(tmp_path / "toy.json", toy(natural=SpeechSource(path="list.tsv", layout="table", rows=(0.0, 0.8), max_cer=1e-9)))
    told = salad(*command(world, spec, tmp_path / "lab"))
    assert told.returncode == 1 and "Traceback" not in told.stderr + told.stdout
    line = next(line for line in told.stdout.splitlines() if "failed:" in line)
    assert line.startswith("Natural speech") and "no recording of list.tsv could be kept" in line
    done = state.records(tmp_path / "lab")
    assert {"text", "heldout", "spoken", "results_teacher"} <= done.keys() and not {"stage1", "clusters"} & done.keys()
    assert len(told.stdout.splitlines()) < 14  # what waits for it is counted, not told one by one


# --- without running anything ---


def test_every_named_study_has_a_graph_that_is_closed(tmp_path):
    for name in recipes.STUDIES:
        steps = conduct.steps_of(tmp_path, recipes.study(name))
        assert len({step.name for step in steps}) == len(steps)
    seeds = recipes.first_cpu().model_copy(update={"seeds": (0, 3)})
    steps = conduct.steps_of(tmp_path, seeds)
    assert {step.lab for step in steps} == {str(tmp_path), str(tmp_path / "studies" / "first_cpu" / "seed-3")}
    assert any(step.name == "3:stage1" and step.own_name == "stage1" for step in steps)


def test_until_takes_what_a_step_needs_and_nothing_else(tmp_path):
    steps = conduct.steps_of(tmp_path, recipes.first_cpu())
    names = {step.name for step in conduct.chosen(steps, until="divergences")}
    assert names == {"tasks", "text", "natural", "stage1", "clusters", "probe", "divergences"}
    with pytest.raises(SaladError, match="did you mean divergences"):
        conduct.chosen(steps, until="divergence")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('base = "first_cpu"\nbudget = 1', "unknown configuration key 'budget'"),
        ('base = "first_gpuu"', "did you mean 'first_gpu'"),
        ('base = "first_cpu"\narms = ["active@gama=5"]', "gama=5"),
        ('base = "first_cpu"\nseeds = [0, 0]', "name one twice"),
        ('base = "first_cpu"\nname = "a b"', "letters, digits"),
        ('base = "first_cpu"\n[engines]\nstage3 = "ssh:x"', "no step that can run elsewhere begins with 'stage3'"),
        ('base = "first_cpu"\n[text]\ndocuments = [0.9, 0.1]', "documents must be (from, to)"),
        ('base = "first_cpu"\n[stage1.data]\nnatural = ["librispeech"]', "natural speech is natural"),
        ('base = "first_cpu"\n[tasks', "cannot be read"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused_in_one_line(tmp_path, capsys, text, why):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["study", str(path), "--dry-run", "--lab", str(tmp_path / "lab")])
    error = capsys.readouterr().err
    assert end.value.code == 2 and why in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "lab").exists()


def test_a_file_begins_from_a_recipe_and_python_gives_one_whole(tmp_path):
    (tmp_path / "a.toml").write_text(
        'base = "first_cpu"\nbudget_h = 1.5\n[stage1.optim]\nsteps = 300\n[engines]\nstage = "slurm"\n'
    )
    made = load(str(tmp_path / "a.toml"))
    assert made.budget_h == 1.5 and made.stage1.optim.steps == 300 and made.engine_of("stage2_active") == "slurm"
    assert made.stage1.llm == recipes.first_cpu().stage1.llm and made.engine_of("probe") == "here"
    (tmp_path / "c.toml").write_text('base = "first_cpu"\n[text]\npath = "mine.jsonl"\n')
    text = load(str(tmp_path / "c.toml")).text
    assert text.get == "" and text.gb == 0 and text.max_domain_share == recipes.first_cpu().text.max_domain_share
    (tmp_path / "b.py").write_text("from salad import recipes\ndef study():\n    return recipes.first_cpu()\n")
    assert load(str(tmp_path / "b.py")) == recipes.first_cpu()
    with pytest.raises(SaladError, match="no function other"):
        load(f"{tmp_path / 'b.py'}:other")


def test_what_is_missing_is_told_with_how_to_get_it_and_how_large_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("SALAD_DATA", str(tmp_path))
    monkeypatch.delenv("SALAD_MODELS", raising=False)
    with pytest.raises(SaladError, match=r"text: .* has no fineweb/000_00000.parquet; get it \(2.2 GB\): hf download"):
        costs.check_present(recipes.first_gpu(), tmp_path / "lab")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = dict(costs.downloads(recipes.first_gpu(), tmp_path / "lab"))
    assert names["Qwen/Qwen2.5-0.5B"] == 1.0 and names["BAAI/bge-large-en-v1.5"] == 1.34
    folder = tmp_path / "models" / "qwen2.5-0.5b"
    folder.mkdir(parents=True)
    monkeypatch.setenv("SALAD_MODELS", str(tmp_path / "models"))
    assert "Qwen/Qwen2.5-0.5B" not in dict(costs.downloads(recipes.first_gpu(), tmp_path / "lab"))


def test_too_little_disk_is_told_before_anything_is_written(world, tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "disk_gb", lambda config, name: 1e6)
    for variable, folder in zip(("SALAD_MODELS", "SALAD_DATA"), world, strict=True):
        monkeypatch.setenv(variable, str(folder))
    with pytest.raises(SaladError, match="GB free; what is left of this study needs"):
        conduct.conduct(tmp_path / "lab", toy(), lambda *_: None)
    assert not (tmp_path / "lab").exists()


def test_a_domain_gives_at_most_its_share():
    cap = sources.caps({"a": 900, "b": 100, "c": 100, "d": 100}, 0.4)
    taken = [min(size, cap) for size in (900, 100, 100, 100)]
    assert taken[0] == pytest.approx(0.4 * sum(taken), rel=1e-6) and cap == pytest.approx(200, rel=1e-3)
    assert sources.caps({"a": 1}, 1.0) == float("inf")
    with pytest.raises(SaladError, match="2 domains cannot each give"):
        sources.caps({"a": 1, "b": 1}, 0.3)


def test_documents_are_taken_by_a_hash_of_their_ids_whatever_their_order(tmp_path, monkeypatch):
    monkeypatch.setenv("SALAD_DATA", str(tmp_path))
    rows = [{"doc_id": f"d{i}", "text": "x" * (10 + i), "domain": "ab"[i % 2]} for i in range(60)]

    def taken(name: str, listed: list[dict], **fields) -> set[str]:
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
        path, words = sources.texts(tmp_path / "lab", TextSource(path="t.jsonl", **fields), name)
        kept = [json.loads(line) for line in path.read_text().splitlines()]
        assert words.startswith(f"{len(kept)} of ")
        return {row["doc_id"] for row in kept}

    one, other = taken("one", rows, documents=(0.0, 0.5)), taken("other", rows, documents=(0.5, 1.0))
    assert not one & other and len(one | other) == 60
    assert taken("again", rows[::-1], documents=(0.0, 0.5)) == one
    few = taken("few", rows, limit=7)
    assert len(few) == 7 and taken("fewer", rows[::-1], limit=5) < few
    many_a = [row | {"domain": "b" if i < 6 else "c" if i < 12 else "a"} for i, row in enumerate(rows)]
    shares = taken("capped", many_a, max_domain_share=0.5)
    size = {row["doc_id"]: (row["domain"], len(row["text"])) for row in many_a}
    of_a = sum(size[name][1] for name in shares if size[name][0] == "a")
    assert of_a <= 0.5 * sum(size[name][1] for name in shares) * 1.1 and {size[name][0] for name in shares} == {"a", "b", "c"}


def test_times_follow_the_size_of_what_is_trained_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(costs, "has_gpu", lambda: True)
    seconds = {}
    for name in ("first_gpu", "salad_3b", "salad_7b"):
        study = recipes.study(name).model_copy(update={"gpus": 1})
        found = {cost.step.name: cost for cost in costs.costs(study, conduct.steps_of(tmp_path / "lab", study))}
        seconds[name] = found["stage1"].seconds
        own = plan.training(tmp_path / "lab", study.stage1)
        assert found["stage1"].seconds == pytest.approx(3600 * own.gpu_hours) and found["stage1"].gb > own.checkpoints_gb * 0.99
    assert seconds["first_gpu"] < 0.01 * seconds["salad_3b"] < 0.01 * seconds["salad_7b"]
    monkeypatch.setattr(costs, "has_gpu", lambda: False)
    study = recipes.study("first_gpu")
    slow = {cost.step.name: cost.seconds for cost in costs.costs(study, conduct.steps_of(tmp_path / "lab", study))}
    assert slow["stage1"] > 20 * seconds["first_gpu"] and not (tmp_path / "lab").exists()


def test_original_files_of_piqa_and_arc_become_items(tmp_path, monkeypatch):
    monkeypatch.setenv("SALAD_DATA", str(tmp_path))
    (tmp_path / "p.jsonl").write_text('{"goal": "g", "sol1": "a", "sol2": "b"}\n{"goal": "h", "sol1": "c", "sol2": "d"}\n')
    (tmp_path / "p.labels").write_text("1\n0\n")
    assert [row["label"] for row in sources.items(TaskSource(name="piqa", path="p.jsonl", format="piqa"))] == [1, 0]
    (tmp_path / "p.labels").write_text("1\n")
    with pytest.raises(SaladError, match="2 items and 1 labels"):
        sources.items(TaskSource(name="piqa", path="p.jsonl", format="piqa"))
    question = {"stem": "What falls?", "choices": [{"text": "rain", "label": "A"}, {"text": "rock", "label": "B"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "q", "question": question, "answerKey": "B"}) + "\n")
    row = sources.items(TaskSource(name="arc_challenge", path="a.jsonl", format="arc"))[0]
    assert row == {
        "id": "q",
        "question": "What falls?",
        "answerKey": "B",
        "choices": {"text": ["rain", "rock"], "label": ["A", "B"]},
    }
    (tmp_path / "a.jsonl").write_text('{"id": "q"}\n')
    with pytest.raises(SaladError, match="not in the format 'arc'"):
        sources.items(TaskSource(name="arc_challenge", path="a.jsonl", format="arc"))


# --- with real weights ---


@pytest.mark.data
@pytest.mark.real
@pytest.mark.onnx
def test_a_real_llm_goes_through_the_whole_study_killed_twice(tmp_path):
    """`salad study first_cpu --smoke` as it stands, with SmolLM2, Whisper, Piper, Kokoro and MiniLM."""
    models = real_model("smollm2-135m-instruct").parent
    shared("data/ljspeech")
    lab = tmp_path / "lab"
    options = ["study", "first_cpu", "--smoke", "--models", str(models), "--lab", str(lab)]
    for steps in (3, 9):
        process = subprocess.Popen(
            [*SALAD, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and len(list((lab / ".study" / "steps").glob("*.json"))) < steps:
            time.sleep(0.2)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    told = salad(*options)
    assert told.returncode == 0, told.stdout + told.stderr
    table = (lab / "study.md").read_text()
    assert "stage2_active" in table and "warm-started" in table and "smoke run" in table
    run_id, step = state.noted(lab, "stage1")
    assert step == 24 and (read_json(lab / "runs" / run_id / "warm-start.json") or {})["steps"] == 20
    names = store.connect(lab).execute("SELECT DISTINCT tts FROM syntheses WHERE tts <> 'recorded'").fetchall()
    assert {name.partition("@")[0] for (name,) in names} == {"piper", "kokoro-onnx"}
    assert str(models) not in (lab / "study.json").read_text()
