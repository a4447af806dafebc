"""The passes by name, over a lab's own tables: what `salad pass NAME` runs.

Each is a function of (lab, shard, shards, …); doing it again skips what is done.
"""

from pathlib import Path

import store
from salad import checkpoints
from salad.config import RunConfig, validate
from salad.data import corpora
from salad.errors import SaladError
from salad.passes import Progress, as_run
from salad.runs import RunFolder


def checkpoint_of(lab: Path | str, run_id: str, step: int | None = None) -> tuple[Path, int]:
    """The folder and step of a run's checkpoint; by default its last whole one."""
    run = RunFolder.open(lab, run_id)
    if step is None:
        found = checkpoints.latest(run.path)
        if found is None:
            raise SaladError(f"run {run_id} has no checkpoint yet")
        return found, int(found.name.partition("-")[2])
    return checkpoints.at(run.path, step), step


def model_of(lab: Path | str, run_id: str, step: int | None = None):
    """(SpeechLM, step) of a run's checkpoint."""
    from salad.models.speech_lm import SpeechLM

    folder, step = checkpoint_of(lab, run_id, step)
    return SpeechLM.from_pretrained(folder / "model", lab).eval(), step


def newest(lab: Path | str, kind: str) -> str:
    """The newest finished run of a kind."""
    row = store.connect(lab).execute(
        "select run_id from runs where kind = ? and status = 'done' order by ended_at desc, run_id limit 1", [kind]
    ).fetchone()  # fmt: skip
    if row is None:
        raise SaladError(f"{lab} has no finished {kind} run; name one with --run")
    return row[0]


def newest_clustering(lab: Path | str) -> str:
    """The clustering whose pass ended last."""
    row = store.connect(lab).execute(
        """select c.clustering_id from (select distinct clustering_id, run_id from clusters) c
           left join runs r using (run_id) order by r.ended_at desc nulls last, 1 desc limit 1"""
    ).fetchone()
    if row is None:
        raise SaladError(f"{lab} has no clustering; make one with `salad pass cluster`")
    return row[0]


def score(lab, run_id: str | None = None, step: int | None = None, speech: str = "heldout", seed: int = 0,
          shard: int = 0, shards: int = 1, progress: Progress | None = None) -> str:  # fmt: skip
    """M, F and D of the speech folder `speech` under a checkpoint (by default the newest Stage I's last)."""
    from salad.passes.score import score as work

    run_id = run_id or newest(lab, "stage1")
    _, step = checkpoint_of(lab, run_id, step)
    told = {"pass": "score", "run_id": run_id, "step": step, "speech": [speech], "seed": seed, "shard": [shard, shards]}

    def do(run):
        model, _ = model_of(lab, run_id, step)
        spoken = corpora.of_speech(store.connect(lab), [speech])
        work(lab, model, run_id, step, spoken, speech, seed, shard=shard, shards=shards, progress=progress)

    as_run(lab, "score", told, do)
    return f"{speech} scored by {run_id}, step {step}"


def cluster(lab, corpus: str = "broad", k: int = 16, seed: int = 0, progress: Progress | None = None) -> str:
    """Embed a corpus with the newest Stage I's teacher and cluster it into `k` balanced clusters."""
    from salad.models.speech_lm import load_llm, load_tokenizer
    from salad.passes.cluster import cluster as work
    from salad.passes.cluster import embed

    config = validate(RunConfig, RunFolder.open(lab, newest(lab, "stage1")).config)
    told = {"pass": "cluster", "corpus": corpus, "n_clusters": k, "seed": seed, "llm": config.llm.name}
    made = {}

    def do(run):
        llm, tokenizer = load_llm(config.llm, lab), load_tokenizer(config.llm.name, lab)
        embed(lab, llm, tokenizer, corpus, "teacher", progress=progress)
        made["id"] = work(lab, run.run_id, "teacher", corpus, k, seed)

    run = as_run(lab, "cluster", told, do)
    row = store.connect(lab).execute("select any_value(clustering_id) from clusters where run_id = ?", [run.run_id])
    return f"clustering {made.get('id') or row.fetchone()[0]}, {k} clusters"


def synthesise(lab, selection: str, tts: str = "espeak", voices: tuple[str, ...] = ("en-us@rate=195",), seed: int = 0,
               budget_h: float | None = None, progress: Progress | None = None) -> str:  # fmt: skip
    """Speak a selection in draw order up to its budget, skipping what reviewers dropped; checked by the recogniser."""
    from salad.passes.synthesise import jobs_of
    from salad.passes.synthesise import synthesise as work
    from salad.selection import to_synthesise
    from salad.speech import load_tts
    from salad.speech.check import load_recogniser

    texts = to_synthesise(lab, selection)
    asked = store.connect(lab).execute("select budget_h from selections where selection_id = ?", [selection]).fetchone()
    budget_h = asked[0] if budget_h is None else budget_h
    engine, jobs = load_tts(tts), jobs_of(texts, voices, seed)
    made_from = {"seed": seed, "tts": engine.name, "jobs": store.ids.digest([vars(job) for job in jobs])}
    told = {"pass": "synthesise", "selection": selection, "budget_h": budget_h} | made_from
    name = f"{selection}-{store.ids.digest(made_from)[:6]}"
    recogniser = Path(lab) / "models" / "recogniser"
    check = load_recogniser(str(recogniser)) if recogniser.is_dir() else None

    def do(run):
        work(lab, name, jobs, engine, made_from, check, budget_s=budget_h * 3600, progress=progress)

    as_run(lab, "synthesise", told, do)
    row = store.connect(lab).execute("select sum(duration_s) from syntheses where speech = ?", [name]).fetchone()
    return f"{(row[0] or 0) / 3600:.2f} h in lab/speech/{name}"


PASSES = {"score": score, "cluster": cluster, "synthesise": synthesise}
