"""What each step of the miniature study does, as functions that a process of its own runs: work(progress, lab,
config, …) → what to tell. All of them skip what is done; the work itself lives in training, passes and evaluation."""

import json
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch

import store
from salad import checkpoints, training
from salad import selection as selecting
from salad.config import RunConfig
from salad.data import corpora
from salad.errors import SaladError
from salad.evaluation import tasks
from salad.evaluation.contenders import Ours
from salad.evaluation.run import evaluate
from salad.evaluation.spoken import context_sample
from salad.miniature.faults import Faulty
from salad.miniature.study import Arm, StudyConfig
from salad.models.encoders import fingerprint, load_encoder
from salad.models.speech_lm import SpeechLM, load_llm, load_tokenizer
from salad.passes import as_run
from salad.passes.cluster import cluster, probe_texts
from salad.passes.embed import embed, of_llm
from salad.passes.encode import encode
from salad.passes.score import score
from salad.passes.synthesise import jobs_of, synthesise
from salad.runs import RunFolder
from salad.speech import load_tts
from store import atomic


def _remember(lab, **ids) -> None:
    """Note the ids that later steps need (lab/.study/<name>.json, one file a name)."""
    for name, value in ids.items():
        atomic.write_json(Path(lab) / ".study" / f"{name}.json", value)


def recall(lab, name: str):
    """What `_remember` noted; a SaladError where the step that makes it has not run."""
    path = Path(lab) / ".study" / f"{name}.json"
    if not path.exists():
        raise SaladError(f"{path} is missing; run `salad demo` with this lab again")
    return json.loads(path.read_text())


def _recogniser(lab):
    from salad.speech.check import load_recogniser

    return load_recogniser(str(Path(lab) / "models" / "recogniser"))


# --- preparation ---


def world(progress, lab, config: StudyConfig, user_corpus=None) -> str:
    from salad.miniature.world import build_world
    from salad.prepare import Benchmarks, near_duplicates
    from salad.speech.spoken import speakability, spoken_form

    built = build_world(config.world, lab, user_corpus)
    tokenizer = load_tokenizer("models/tokenizer", lab)
    texts = []
    for corpus in ("natural", "broad", "heldout"):
        rows = pq.read_table(Path(lab) / "corpora" / corpus).to_pylist()
        texts += [(corpus, row["text"], row["domain"], row["licence"], row["planted"]) for row in rows]
    for task in tasks.names(lab):
        texts += [(task, item.context, item.domain, "CC0-1.0", None) for item in tasks.load(lab, task)]
    found: dict[str, dict] = {}
    broad = list(dict.fromkeys(text for corpus, text, *_ in texts if corpus == "broad"))
    near = {broad[n]: (broad[of], similarity) for n, (of, similarity) in near_duplicates(broad).items()}
    benchmarks = Benchmarks.of_lab(lab)
    for corpus, text, domain, licence, planted in texts:
        name = store.ids.sample_id(corpus, text)
        if name in found:
            found[name]["planted"] = found[name]["planted"] or planted
            continue
        reasons, overlaps = speakability(text), []
        if corpus == "broad":
            overlaps = benchmarks.overlaps(text)
            reasons |= {"benchmark overlap": ", ".join(overlaps)} if overlaps else {}
            if text in near:
                other, similarity = near[text]
                reasons["near-duplicate"] = f"{similarity:.2f} like {store.ids.sample_id(corpus, other)}"
        found[name] = {
            "sample_id": name, "text": text, "spoken": spoken_form(text).spoken, "corpus": corpus, "domain": domain,
            "n_tokens": len(tokenizer(text, add_special_tokens=False)["input_ids"]), "licence": licence,
            "flags": sorted(reasons), "reasons": json.dumps(reasons, ensure_ascii=False), "benchmarks": overlaps,
            "planted": planted,
        }  # fmt: skip
    store.publish(lab, "samples", list(found.values()), {"world": built.fingerprint})
    told = Path(lab) / "study.json"
    if told.exists():  # the domains' masses as they came out, the user's texts among them: reports weigh by them
        atomic.write_json(told, json.loads(told.read_text()) | {"p_web": built.p_web})
    documents = ", ".join(f"{count} {name}" for name, count in built.documents.items())
    return f"{documents} documents, {sum(built.items.values())} items"


def _train_run(progress, lab, kind: str, config: dict, steps: int, work) -> RunFolder:
    """A training of the miniature's own parts as a run, its losses in `metrics`. `work(on_step)` trains. It has no
    checkpoint: stopped, it begins again."""

    def train(run: RunFolder, progress) -> None:
        writer = run.metrics_writer(1)

        def on_step(step: int, loss: float) -> None:
            if step % 10 == 0 or step == steps:
                writer.log(step, 0, loss=loss)
                progress(step, steps)

        work(on_step)
        writer.close()

    torch.set_num_threads(1)
    return as_run(lab, f"miniature_{kind}", config, train, kind=kind, progress=progress)


def teacher(progress, lab, config: StudyConfig) -> str:
    from salad.miniature.teacher import train_teacher

    texts = corpora.texts(lab, ["pretrain"])
    tokenizer = load_tokenizer("models/tokenizer", lab)
    told = config.teacher.model_dump(mode="json") | {"texts": store.ids.digest(texts)}
    folder = Path(lab) / "models" / "teacher"
    run = _train_run(progress, lab, "teacher", told, config.teacher.steps,
                     lambda on_step: train_teacher(config.teacher, texts, tokenizer, folder, on_step))  # fmt: skip
    _remember(lab, teacher=run.run_id)
    return f"{config.teacher.steps} steps on {len(texts)} documents"


def encoder(progress, lab, config: StudyConfig) -> str:
    from salad.miniature.encoder import train_encoder

    folder = Path(lab) / "models" / "encoder"
    _train_run(progress, lab, "encoder", config.encoder.model_dump(mode="json"), config.encoder.steps,
               lambda on_step: train_encoder(config.encoder, folder, on_step))  # fmt: skip
    return f"{config.encoder.steps} steps on {config.encoder.utterances} pseudo-word utterances"


def recogniser(progress, lab, config: StudyConfig) -> str:
    from salad.miniature.recogniser import train_recogniser

    texts = corpora.texts(lab, ["pretrain"])[: config.recogniser_texts]
    folder = Path(lab) / "models" / "recogniser"
    told = config.recogniser.model_dump(mode="json") | {"texts": store.ids.digest(texts)}
    _train_run(progress, lab, "recogniser", told, config.recogniser.steps,
               lambda on_step: train_recogniser(config.recogniser, texts, folder, on_step,
                                                encoder=Path(lab) / "models" / "encoder"))  # fmt: skip
    return f"{config.recogniser.steps} steps on {len(texts)} texts"


def _speak(progress, lab, config, name, jobs, recogniser=True, tts=None, faults=0.0, **options) -> float:
    engine = load_tts(tts or config.tts)
    engine = Faulty(engine, faults) if faults else engine
    made_from = {"seed": config.seed, "tts": engine.name, "faults": faults}
    made_from["jobs"] = store.ids.digest([vars(job) for job in jobs])
    check = _recogniser(lab) if recogniser else None
    return synthesise(lab, name, jobs, engine, made_from, check, progress=progress, **options)


def _samples(lab, corpus: str) -> list[tuple[str, str]]:
    con = store.connect(lab)
    return con.execute(
        "select sample_id, text from samples where corpus = ? order by sample_id", [corpus]
    ).fetchall()


def natural(progress, lab, config: StudyConfig) -> str:
    """Speech of many voices in rooms of their own, standing for natural recordings of the covered domain."""
    jobs = jobs_of(_samples(lab, "natural"), config.natural_voices, config.seed)
    seconds = _speak(progress, lab, config, "natural", jobs, recogniser=False, tts="espeak", recorded=True)
    return f"{seconds / 3600:.2f} h in {len(config.natural_voices)} voices"


def encoder_frames(progress, lab, config: StudyConfig, *speech: str) -> str:
    """The frozen encoder's frames of speech folders, which trainings and scorings take instead of encoding them again."""
    encoder = load_encoder(config.stage1.encoder, lab)
    recordings = corpora.of_speech(store.connect(lab), list(speech))
    encode(lab, lambda: encoder, fingerprint(encoder), recordings, progress=progress)
    return f"{len(recordings)} recordings"


def spoken(progress, lab, config: StudyConfig) -> str:
    """Held-out texts, and the contexts of the tasks' items, in the study's synthetic voices."""
    seconds = _speak(progress, lab, config, "heldout", jobs_of(_samples(lab, "heldout"), config.voices, config.seed))
    encoder_frames(progress, lab, config, "heldout")
    contexts = dict(context_sample(item)[:2] for task in tasks.names(lab) for item in tasks.load(lab, task))
    seconds += _speak(progress, lab, config, "items", jobs_of(list(contexts.items()), config.voices, config.seed))
    return f"{seconds / 3600:.2f} h, {len(contexts)} contexts of items"


# --- training, divergences, selection ---


def _trained(progress, lab, config: RunConfig, recipe: str) -> tuple[str, int]:
    run = training.prepare(lab, config, recipe)
    if run.read_status().get("state") != "done":
        training.train(lab, run.run_id, lambda step, steps, _: progress(step, steps))
    return run.run_id, config.optim.steps


def _model(lab, run_id: str, step: int) -> SpeechLM:
    return SpeechLM.from_pretrained(checkpoints.at(Path(lab) / "runs" / run_id, step) / "model", lab)


def stage1(progress, lab, config: StudyConfig) -> str:
    run_id, step = _trained(progress, lab, config.stage1, "miniature_stage1")
    _remember(lab, stage1=[run_id, step])
    return f"run {run_id}, {step} steps"


def clusters(progress, lab, config: StudyConfig) -> str:
    def work(run, progress):
        embedder = partial(of_llm, load_llm(config.stage1.llm, lab), load_tokenizer(config.stage1.llm.name, lab))
        embed(lab, embedder, "broad", "teacher", progress=progress)
        _remember(lab, clustering=cluster(lab, run.run_id, "teacher", "broad", config.n_clusters, config.seed))

    told = {"pass": "cluster", "n_clusters": config.n_clusters, "seed": config.seed, "teacher": recall(lab, "teacher")}
    as_run(lab, "cluster", told, work, progress=progress)
    return f"{config.n_clusters} clusters, {recall(lab, 'clustering')}"


def probe(progress, lab, config: StudyConfig) -> str:
    texts = probe_texts(lab, recall(lab, "clustering"), config.probe_per_cluster, config.seed)
    jobs = jobs_of(texts, config.probe_voices, config.seed, per_text=len(config.probe_voices))
    seconds = _speak(progress, lab, config, "probe", jobs, faults=config.speech_faults)
    return f"{len(texts)} texts in {len(config.probe_voices)} voices, {seconds:.0f} s"


def _score(progress, lab, run_id: str, step: int, speech: str, seed: int) -> SpeechLM:
    model = _model(lab, run_id, step)
    spoken = corpora.of_speech(store.connect(lab), [speech])
    score(lab, model, run_id, step, spoken, speech, seed, progress=progress)
    return model


def stage1_divergences(progress, lab, config: StudyConfig) -> str:
    return _score_probe(progress, lab, *recall(lab, "stage1"), config.seed)


def _score_probe(progress, lab, run_id: str, step: int, seed: int) -> str:
    told = {"pass": "score", "run_id": run_id, "step": step, "speech": ["probe"], "seed": seed}
    as_run(lab, "score", told, lambda run, progress: _score(progress, lab, run_id, step, "probe", seed) and None,
           progress=progress)  # fmt: skip
    return "M, F, D of the probe"


def selection(progress, lab, config: StudyConfig) -> str:
    """What each arm draws from Stage I's divergences: all of it, or its first round."""
    told = []
    for spec in config.arms:
        told.append(f"{config.arm(spec).name} {_draw(lab, config, spec, 1, *recall(lab, 'stage1'))}")
    return ", ".join(told)


def _draw(lab, config: StudyConfig, spec: str, number: int, run_id: str, step: int, parent: str | None = None) -> str:
    arm = config.arm(spec)
    name = selecting.select(
        lab, clustering_id=recall(lab, "clustering"), run_id=run_id, step=step, strategy=arm.strategy, gamma=arm.gamma,
        budget_h=_round(config, arm, number).budget_h, seed=config.seed, max_cer=config.max_cer, speech="probe",
        parent=parent, number=number if arm.rounds > 1 else None,
    )  # fmt: skip
    _remember(lab, **{_of("selection", arm, number): name})
    return name


def _round(config: StudyConfig, arm: Arm, number: int) -> selecting.Round:
    stage2 = config.stage2.model_copy(update={"contender": f"stage2_{arm.name}"})
    return selecting.rounds(stage2, config.budget_h, arm.rounds)[number - 1]


def _of(what: str, arm: Arm, number: int) -> str:
    """The name under which a round's selection or run is remembered; the last round's is the arm's own."""
    return f"{what}_{arm.name}" + (f"_{number}" if number < arm.rounds else "")


def next_round(progress, lab, config: StudyConfig, spec: str, number: int) -> str:
    """The probe measured again after round `number`, and the next round drawn from it."""
    arm = config.arm(spec)
    run_id, step = recall(lab, _of("stage2", arm, number))
    _score_probe(progress, lab, run_id, step, config.seed)
    frozen = RunFolder.open(lab, run_id).record["selection_id"]
    return f"{arm.name} {_draw(lab, config, spec, number + 1, run_id, step, frozen)}"


SURELY = 0.97  # of the budget, by estimated seconds: what the workers may speak before the arms are filled up
SHARES = 4


def synthesis_share(progress, lab, config: StudyConfig, share: int) -> str:
    """A share of what the arms will surely need, each text once, so that the workers speak side by side."""
    texts: dict[str, str] = {}
    for spec in config.arms:
        arm = config.arm(spec)
        name, budget_h = recall(lab, _of("selection", arm, 1)), _round(config, arm, 1).budget_h
        rows = store.connect(lab).execute(
            """select sample_id, sum(estimated_s) over (order by draw) from selected where selection_id = ?""", [name]
        )
        sure = {sample_id for sample_id, spent in rows.fetchall() if spent < SURELY * budget_h * 3600}
        texts |= {sample_id: text for sample_id, text in selecting.to_synthesise(lab, name) if sample_id in sure}
    mine = [(sample_id, texts[sample_id]) for sample_id in sorted(texts) if int(sample_id[-1], 16) % SHARES == share]
    jobs = jobs_of(mine, config.voices, config.seed)
    seconds = _speak(progress, lab, config, f"selected-{share}", jobs, faults=config.speech_faults)
    if jobs:
        encoder_frames(progress, lab, config, f"selected-{share}")
    return f"{len(jobs)} texts, {seconds / 3600:.2f} h"


def synthesis(progress, lab, config: StudyConfig, spec: str, number: int) -> str:
    """The rest of an arm or of its round, in draw order up to the budget."""
    arm = config.arm(spec)
    name = recall(lab, _of("selection", arm, number))
    jobs = jobs_of(selecting.to_synthesise(lab, name), config.voices, config.seed)
    budget_s = _round(config, arm, number).budget_h * 3600
    seconds = _speak(progress, lab, config, name, jobs, budget_s=budget_s, faults=config.speech_faults)
    return f"{seconds / 3600:.2f} h"


def stage2(progress, lab, config: StudyConfig, spec: str, number: int) -> str:
    """Stage II of an arm, or of a round of it: a child of the round before."""
    arm = config.arm(spec)
    parent = recall(lab, "stage1" if number == 1 else _of("stage2", arm, number - 1))[0]
    run = _round(config, arm, number).run.model_copy(
        update={"parent": parent, "selection": recall(lab, _of("selection", arm, number))}
    )
    run_id, step = _trained(progress, lab, run, "miniature_stage2")
    _remember(lab, **{_of("stage2", arm, number): [run_id, step]})
    return f"run {run_id}, {step} steps"


# --- results ---


def _evaluated(lab, model, contender, run_id, step, progress, is_teacher=False) -> None:
    told = {"evaluate": contender, "run_id": run_id, "step": step, "tasks": tasks.names(lab)}
    ours = Ours(model, contender, run_id, step, teacher=is_teacher)
    as_run(lab, "evaluate", told, lambda run, progress: evaluate(lab, ours, tasks.names(lab), progress=progress),
           kind="evaluate", progress=progress)  # fmt: skip


def teacher_results(progress, lab, config: StudyConfig) -> str:
    model = SpeechLM.build(config.stage1, lab).eval()
    _evaluated(lab, model, "teacher", recall(lab, "teacher"), config.teacher.steps, progress, is_teacher=True)
    return "text and cascade"


def stage1_results(progress, lab, config: StudyConfig) -> str:
    return _results(progress, lab, "stage1", *recall(lab, "stage1"), config.seed)


def stage2_results(progress, lab, config: StudyConfig, spec: str) -> str:
    name = f"stage2_{config.arm(spec).name}"
    return _results(progress, lab, name, *recall(lab, name), config.seed)


def _results(progress, lab, contender: str, run_id: str, step: int, seed: int) -> str:
    model = _score(progress, lab, run_id, step, "heldout", seed)
    _evaluated(lab, model, contender, run_id, step, progress)
    return "divergences of held-out text; text, speech and cascade"
