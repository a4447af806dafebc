"""The steps by which a real study gets its material and measures it: step(progress, lab, config, …) -> a line that says what
was made. What a command does alone (`salad prepare`, `salad pass`) a step does by the same functions."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import store
from salad.errors import SaladError
from salad.passes import Progress
from salad.passes import run as passes
from salad.passes.cluster import of_each
from salad.passes.synthesise import jobs_of, synthesise
from salad.prepare import SpeechOptions, TextOptions, prepare_speech, prepare_text
from salad.runs import ENDED
from salad.selection import is_frozen, to_synthesise
from salad.speech import load_tts, shar
from salad.speech.check import load_recogniser
from salad.study import sources, state
from salad.study.config import SpeechSource, Study, TextSource
from salad.study.notes import recall, remember
from store import atomic

Lab = Path | str
POLL_S = 1.0


# --- running something on an engine ---


def follow(handle, where: str, progress: Progress) -> None:
    """Wait until a launched run has ended, and bring what it made into this lab. SaladError where it was not done."""
    while True:
        status = handle.status()
        if status.get("max_steps"):
            progress(int(status.get("step") or 0), int(status["max_steps"]))
        if status["state"] in ENDED:
            break
        time.sleep(POLL_S)
    if status["state"] != "done":
        raise SaladError(f"{handle.run_id} on {where} {status['state']}: {status.get('error') or 'see its log'}")
    damaged = handle.fetch()["damaged"]
    if damaged:
        raise SaladError(f"{handle.run_id} on {where}: {len(damaged)} of its files arrived damaged, such as {damaged[0]}; rerun")


def run_pass(progress: Progress, lab: Lab, config: Study, of: str, name: str, /, **options) -> str:
    """Do a pass by name for the step `of`, here or on that step's engine. Returns what the pass says of itself."""
    run = passes.prepare(lab, name, options, yes=True, say=lambda line: None)
    remember(lab, **{f"pass_{of}_{name}" + (f"_{options['speech']}" if "speech" in options else ""): run.run_id})
    where, workers = config.engine_of(of), config.workers_of(of)
    if where == "here" and workers == 1:
        return passes.run_here(run, progress)
    follow(passes.launch(run, where, workers, None if config.gpus is None else str(config.gpus)), where, progress)
    return f"{name} on {where}, {workers} workers"


def _counted(progress: Progress) -> Callable[[int, int | None], None]:
    """A progress that may not know its total, for one that tells nothing then."""

    def count(done: int, total: int | None) -> None:
        if total:
            progress(done, total)

    return count


# --- texts, items, recordings ---


def tasks(progress: Progress, lab: Lab, config: Study) -> str:
    """Write lab/tasks/<name>.jsonl for every task that has a file."""
    counts = []
    for task in config.tasks:
        if not task.path:
            continue
        rows = sources.items(task)
        path = Path(lab) / "tasks" / f"{task.name}.jsonl"
        data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        if path.exists() and path.read_bytes() != data:
            raise SaladError(f"{path} holds other items than {task.path}; move it away, or take another --lab")
        if not path.exists():
            atomic.write_bytes(path, data)
        counts.append(f"{task.name} {len(rows):,}")
    return ", ".join(counts) or "none with a file of its own"


def _text(progress: Progress, lab: Lab, source: TextSource, corpus: str) -> str:
    path, taken = sources.texts(lab, source, corpus)
    options = TextOptions(source.column, source.language, source.min_s, source.max_s, licence=source.licence)
    counts = prepare_text(lab, path, corpus, options, workers=source.workers,
                          progress=_counted(progress))  # fmt: skip
    if not counts["hours"]:
        raise SaladError(f"{corpus}: {source.path} gave no passage that can be spoken ({taken}); see lab/corpora/{corpus}.json")
    return f"{taken}: {counts['passages']['cut']:,} passages, {counts['hours']:,.2f} h of expected speech are clean"


def text(progress: Progress, lab: Lab, config: Study) -> str:
    """The corpus `broad`; and in study.json P_web by domain and which domains natural speech covers."""
    message = _text(progress, lab, config.text, "broad")
    rows = store.connect(lab).execute(
        "SELECT domain, count(*) FROM samples WHERE corpus = 'broad' AND len(coalesce(flags, [])) = 0 AND domain IS NOT NULL "
        "GROUP BY 1 ORDER BY 1"
    ).fetchall()  # fmt: skip
    total = sum(n for _, n in rows)
    coverage = {domain: "covered" if domain == config.natural.domain else "uncovered" for domain, _ in rows}
    state.update(lab, p_web={domain: n / total for domain, n in rows}, coverage=coverage)
    return message


def heldout_text(progress: Progress, lab: Lab, config: Study) -> str:
    """The corpus `heldout`, of documents that `broad` does not have."""
    assert config.heldout_text is not None
    return _text(progress, lab, config.heldout_text, "heldout")


def _recordings(progress: Progress, lab: Lab, config: Study, source: SpeechSource, name: str) -> str:
    report = Path(lab) / "speech" / f"{name}.json"
    if report.exists():
        counts = json.loads(report.read_text())["counts"]
        if all(shar.damage(lab, name, number) is None for number in range(int(counts["shards"]))):
            return f"{counts['kept']:,} recordings, {counts['hours']:,.2f} h"
    path = sources.resolve(source, name)
    options = SpeechOptions(source.layout, source.language, source.max_cer, source.max_s, source.licence, source.domain,
                            source.rows, source.limit)  # fmt: skip
    counts = prepare_speech(lab, path, name, cast(Any, load_recogniser(config.recogniser, _device())), options,
                            progress=_counted(progress))  # fmt: skip
    if not counts["kept"]:
        aside = ", ".join(f"{n} {reason}" for reason, n in counts["set aside"].items())
        raise SaladError(f"{name}: no recording of {source.path} could be kept ({aside}); see lab/speech/{name}.prepared")
    return f"{counts['kept']:,} recordings, {counts['hours']:,.2f} h, {sum(counts['set aside'].values()):,} set aside"


def natural(progress: Progress, lab: Lab, config: Study, name: str = "natural") -> str:
    """A speech folder of natural speech for Stage I, aligned and checked."""
    return _recordings(progress, lab, config, config.natural_speech[name], name)


def heldout(progress: Progress, lab: Lab, config: Study) -> str:
    """Natural speech that is only measured on."""
    assert config.heldout is not None
    return _recordings(progress, lab, config, config.heldout, "heldout_natural")


# --- clusters, probe, divergences, synthesis ---


def clusters(progress: Progress, lab: Lab, config: Study) -> str:
    """Embed the broad corpus and divide it into balanced clusters."""
    run_pass(progress, lab, config, "clusters", "embed", corpus="broad", model=config.embeddings)
    options = {"corpus": "broad", "model": config.embeddings, "k": config.n_clusters, "seed": config.seed}
    run_pass(progress, lab, config.model_copy(update={"engines": {}, "workers": {}}), "clusters", "cluster", **options)
    run_id = recall(lab, "pass_clusters_cluster")
    # by its run, not the newest: a person may have made others in between
    ((name,),) = store.connect(lab).execute("SELECT DISTINCT clustering_id FROM clusters WHERE run_id = ?", [run_id]).fetchall()
    remember(lab, clustering=name)
    return f"{config.n_clusters} clusters, {recall(lab, 'clustering')}"


def probe(progress: Progress, lab: Lab, config: Study) -> str:
    """Speak some texts of each cluster, checked by the recogniser."""
    return run_pass(progress, lab, config, "probe", "probe", clustering=recall(lab, "clustering"), tts=config.tts,
                    per_cluster=config.probe_per_cluster, voices=config.probe_voices, seed=config.seed,
                    asr=config.recogniser)  # fmt: skip


def divergences(progress: Progress, lab: Lab, config: Study, speech: str, note: str) -> str:
    """M, F and D of a speech folder at the checkpoint that is noted under `note`."""
    run_id, step = recall(lab, note)
    low, high = config.scoring_spans
    return run_pass(progress, lab, config, "divergences", "score", run_id=run_id, step=step, speech=speech, seed=config.seed,
                    span_units=(low, high))  # fmt: skip


def _refilled(lab: Lab, selection: str) -> str:
    """The newest selection that a reviewer's refill has drawn from this one, else itself: never a frozen one, which a training
    made of it."""
    con = store.connect(lab)
    found = con.execute("SELECT selection_id FROM lineage WHERE ancestor_id = ? ORDER BY depth DESC, selection_id", [selection])
    return next((name for (name,) in found.fetchall() if not is_frozen(con, name)), selection)


def synthesis(progress: Progress, lab: Lab, config: Study, note: str, budget_h: float) -> str:
    """Speak the selection that is noted under `note`, in draw order up to its budget, without what reviewers dropped."""
    name = _refilled(lab, recall(lab, note))
    remember(lab, **{note: name})
    if not to_synthesise(lab, name):
        raise SaladError(f"selection {name} has no text left to be spoken: every one was dropped; refill it in "
                         "notebooks/selection.py, or take decisions back")  # fmt: skip
    return run_pass(progress, lab, config, "synthesis", "synthesise", selection=name, tts=config.tts, voices=config.voices,
                    seed=config.seed, budget_h=budget_h, asr=config.recogniser)  # fmt: skip


def review(progress: Progress, lab: Lab, config: Study) -> str:
    """What Stage II waits for: that a person has said that the selections are reviewed."""
    if not state.is_reviewed(lab):
        raise SaladError("nobody has said yet that the selections are reviewed")
    dropped = store.connect(lab).execute("SELECT count(*) FROM decisions WHERE verdict = 'drop'").fetchone()
    return f"reviewed; {dropped[0] if dropped else 0} decisions drop texts"


def spoken(progress: Progress, lab: Lab, config: Study) -> str:
    """Held-out passages of each domain in the voices of evaluation, as the speech folder `heldout`."""
    rows = store.connect(lab).execute(
        "SELECT coalesce(domain, ''), sample_id, text FROM samples WHERE corpus = 'heldout' AND len(coalesce(flags, [])) = 0 "
        "ORDER BY 1, 2"
    ).fetchall()  # fmt: skip
    texts = of_each(rows, config.heldout_per_domain, config.seed)
    engine = load_tts(config.eval_tts or config.tts)
    jobs = jobs_of(texts, config.eval_voices or config.voices, config.seed)
    made_from = {"seed": config.seed, "tts": engine.name, "jobs": store.ids.digest([vars(job) for job in jobs])}
    check = load_recogniser(config.recogniser, _device())
    seconds = synthesise(lab, "heldout", jobs, engine, made_from, check, progress=progress)
    return f"{len(texts)} passages of {len({domain for domain, *_ in rows})} domains, {seconds / 60:.1f} minutes"


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
