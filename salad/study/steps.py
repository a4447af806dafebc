"""What each step of a study does, as functions that a process of its own runs: step(progress, lab, config, …) -> a line
that says what was made. All of them skip what is done; the work itself lives in training, passes and evaluation."""

from functools import partial
from pathlib import Path
from typing import Any

import store
from salad import selection as selections
from salad import training
from salad.config import RunConfig
from salad.data import corpora
from salad.engines.launch import launch_run
from salad.engines.targets import resolve
from salad.evaluation import tasks
from salad.evaluation.contenders import Contender, Ours, outside
from salad.evaluation.run import evaluate
from salad.evaluation.spoken import context_sample
from salad.miniature import make
from salad.miniature.faults import Faulty
from salad.models.encoders import fingerprint, load_encoder
from salad.models.speech_lm import SpeechLM, load_llm, load_tokenizer
from salad.passes import Progress, run_once
from salad.passes import run as passes
from salad.passes.cluster import cluster, probe_texts
from salad.passes.embed import embed, of_llm
from salad.passes.encode import encode
from salad.passes.score import score
from salad.passes.synthesise import Job, jobs_of, synthesise
from salad.runs import RunFolder
from salad.speech import load_tts
from salad.speech.check import load_recogniser
from salad.study import material, state
from salad.study.config import Arm, BaseStudy, MiniatureStudy, Study
from salad.study.notes import recall, remember
from salad.training import checkpoints

Lab = Path | str

# --- texts, models, speech ---


def world(progress: Progress, lab: Lab, config: MiniatureStudy, user_corpus: str | None = None) -> str:
    return make.make_world(progress, lab, config.world, user_corpus)


def teacher(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    made, run_id = make.make_teacher(progress, lab, config.teacher)
    remember(lab, teacher=run_id)
    return made


def encoder(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    return make.make_encoder(progress, lab, config.encoder)


def recogniser(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    return make.make_recogniser(progress, lab, config.recogniser, config.recogniser_texts)


def speak(progress: Progress, lab: Lab, config: MiniatureStudy, name: str, jobs: list[Job], recogniser: bool = True,
          tts: str | None = None, faults: float = 0.0, **options: Any) -> float:  # fmt: skip
    """Speak `jobs` into the speech folder `name` and check them with the study's recogniser. Returns seconds of speech.

    `faults`: the share of syntheses, per kind, in which a fault is planted; `options` are `synthesise`'s."""
    engine = load_tts(tts or config.tts)
    engine = Faulty(engine, faults) if faults else engine
    made_from = {"seed": config.seed, "tts": engine.name, "faults": faults}
    made_from["jobs"] = store.ids.digest([vars(job) for job in jobs])
    check = load_recogniser(str(Path(lab) / "models" / "recogniser")) if recogniser else None
    return synthesise(lab, name, jobs, engine, made_from, check, progress=progress, **options)


def texts_of(lab: Lab, corpus: str) -> list[tuple[str, str]]:
    """(sample id, text) of a corpus, in the order of the ids."""
    con = store.connect(lab)
    return con.execute("select sample_id, text from samples where corpus = ? order by sample_id", [corpus]).fetchall()


def natural(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    """Speech of many voices in rooms of their own, standing for natural recordings of the covered domain."""
    jobs = jobs_of(texts_of(lab, "natural"), config.natural_voices, config.seed)
    seconds = speak(progress, lab, config, "natural", jobs, recogniser=False, tts="espeak", recorded=True)
    return f"{seconds / 3600:.2f} h in {len(config.natural_voices)} voices"


def encoder_frames(progress: Progress, lab: Lab, config: MiniatureStudy, *speech: str) -> str:
    """The frozen encoder's frames of speech folders, which trainings and scorings take instead of encoding them again."""
    encoder = load_encoder(config.stage1.encoder, lab)
    recordings = corpora.of_speech(store.connect(lab), list(speech))
    encode(lab, lambda: encoder, fingerprint(encoder), recordings, progress=progress)
    return f"{len(recordings)} recordings"


def spoken(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    """Held-out texts, and the contexts of the tasks' items, in the study's synthetic voices."""
    seconds = speak(progress, lab, config, "heldout", jobs_of(texts_of(lab, "heldout"), config.voices, config.seed))
    encoder_frames(progress, lab, config, "heldout")
    contexts = dict(context_sample(item)[:2] for task in tasks.names(lab) for item in tasks.load(lab, task))
    seconds += speak(progress, lab, config, "items", jobs_of(list(contexts.items()), config.voices, config.seed))
    return f"{seconds / 3600:.2f} h, {len(contexts)} contexts of items"


# --- training, divergences, selection ---


def train_to_end(progress: Progress, lab: Lab, config: RunConfig, recipe: str, study: BaseStudy | None = None,
                 step: str = "") -> tuple[str, int]:  # fmt: skip
    """Train the run of a configuration until it is done, resuming it where it was stopped. Returns its id and last step.

    `study` and `step` say on which engine, with how many GPUs, and how often the step was asked for again; by default it is
    trained in this process."""
    run = training.prepare(lab, config, recipe, state.attempt(lab, step) if step else 0)
    if run.read_status().get("state") == "done":
        return run.run_id, config.optim.steps
    where = study.engine_of(step) if isinstance(study, Study) else "here"
    gpus = study.gpus if isinstance(study, Study) else None
    if where == "here" and (gpus or 1) == 1:
        training.train(lab, run.run_id, lambda step, steps, _: progress(step, steps))
        return run.run_id, config.optim.steps
    on, target = resolve(where)
    material.follow(launch_run(run, on=on, target=target, gpus=gpus), where, progress)
    return run.run_id, config.optim.steps


def load_checkpoint(lab: Lab, run_id: str, step: int) -> SpeechLM:
    """The speech LM of a run at a step."""
    return SpeechLM.from_pretrained(checkpoints.at(Path(lab) / "runs" / run_id, step) / "model", lab)


def stage1(progress: Progress, lab: Lab, config: BaseStudy) -> str:
    run_id, step = train_to_end(progress, lab, config.stage1, f"{config.name}_stage1", config, "stage1")
    remember(lab, stage1=[run_id, step])
    return f"run {run_id}, {step} steps"


def clusters(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    """Embed the broad corpus by the teacher, and divide it into balanced clusters."""

    def work(run, progress):
        embedder = partial(of_llm, load_llm(config.stage1.llm, lab), load_tokenizer(config.stage1.llm.name, lab))
        embed(lab, embedder, "broad", "teacher", progress=progress)
        remember(lab, clustering=cluster(lab, run.run_id, "teacher", "broad", config.n_clusters, config.seed))

    made_from = {"pass": "cluster", "n_clusters": config.n_clusters, "seed": config.seed, "teacher": recall(lab, "teacher")}
    run_once(lab, "cluster", made_from, work, progress=progress)
    return f"{config.n_clusters} clusters, {recall(lab, 'clustering')}"


def probe(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    texts = probe_texts(lab, recall(lab, "clustering"), config.probe_per_cluster, config.seed)
    jobs = jobs_of(texts, config.probe_voices, config.seed, per_text=len(config.probe_voices))
    seconds = speak(progress, lab, config, "probe", jobs, faults=config.speech_faults)
    return f"{len(texts)} texts in {len(config.probe_voices)} voices, {seconds:.0f} s"


def score_speech(progress: Progress, lab: Lab, run_id: str, step: int, speech: str, seed: int) -> SpeechLM:
    """Publish M, F and D of a checkpoint on a speech folder. Returns the checkpoint's model."""
    model = load_checkpoint(lab, run_id, step)
    spoken = corpora.of_speech(store.connect(lab), [speech])
    score(lab, model, run_id, step, spoken, speech, seed, progress=progress)
    return model


def stage1_divergences(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    run_id, step = recall(lab, "stage1")
    return score_probe(progress, lab, run_id, step, config.seed)


def score_probe(progress: Progress, lab: Lab, run_id: str, step: int, seed: int) -> str:
    """M, F and D of the probe at a checkpoint, as a run of its own."""
    made_from = {"pass": "score", "run_id": run_id, "step": step, "speech": ["probe"], "seed": seed}

    def work(run: RunFolder, progress: Progress) -> None:
        score_speech(progress, lab, run_id, step, "probe", seed)

    run_once(lab, "score", made_from, work, progress=progress)
    return "M, F, D of the probe"


def selection(progress: Progress, lab: Lab, config: BaseStudy) -> str:
    """What each arm draws from Stage I's divergences: all of it, or its first round."""
    drawn = (f"{config.arm(spec).name} {draw(lab, config, spec, 1, *recall(lab, 'stage1'))}" for spec in config.arms)
    return ", ".join(drawn)


def draw(lab: Lab, config: BaseStudy, spec: str, number: int, run_id: str, step: int, parent: str | None = None) -> str:
    """Draw an arm's selection, or round `number` of it, from the probe's divergences at a checkpoint. Returns its id."""
    arm = config.arm(spec)
    name = selections.select(
        lab, clustering_id=recall(lab, "clustering"), run_id=run_id, step=step, strategy=arm.strategy, gamma=arm.gamma,
        budget_h=round_of(config, arm, number).budget_h, seed=config.seed, max_cer=config.max_cer, speech="probe",
        parent=parent, number=number if arm.rounds > 1 else None,
    )  # fmt: skip
    remember(lab, **{note_name("selection", arm, number): name})
    return name


def round_of(config: BaseStudy, arm: Arm, number: int) -> selections.Round:
    """Budget and training of round `number` (from 1) of an arm."""
    stage2 = config.stage2.model_copy(update={"contender": f"stage2_{arm.name}"})
    return selections.rounds(stage2, config.budget_h, arm.rounds)[number - 1]


def note_name(what: str, arm: Arm, number: int) -> str:
    """The name under which a round's selection or run is remembered; the last round's is the arm's own."""
    return f"{what}_{arm.name}" + (f"_{number}" if number < arm.rounds else "")


def round_name(arm: Arm, number: int) -> str:
    """How an arm's round is called in the names of steps: active, or active_rounds_2."""
    return f"{arm.name}_{number}" if arm.rounds > 1 else arm.name


def next_round(progress: Progress, lab: Lab, config: BaseStudy, spec: str, number: int) -> str:
    """The probe measured again after round `number`, and the next round drawn from it."""
    arm = config.arm(spec)
    run_id, step = recall(lab, note_name("stage2", arm, number))
    if isinstance(config, Study):
        material.divergences(progress, lab, config, "probe", note_name("stage2", arm, number))
    else:
        score_probe(progress, lab, run_id, step, config.seed)
    frozen = RunFolder.open(lab, run_id).record["selection_id"]
    return f"{arm.name} {draw(lab, config, spec, number + 1, run_id, step, frozen)}"


SURELY = 0.97  # of the budget, by estimated seconds: what the workers may speak before the arms are filled up
SHARES = 4


def synthesis_share(progress: Progress, lab: Lab, config: MiniatureStudy, share: int) -> str:
    """A share of what the arms will surely need, each text once, so that the workers speak side by side."""
    texts: dict[str, str] = {}
    for spec in config.arms:
        arm = config.arm(spec)
        name, budget_h = recall(lab, note_name("selection", arm, 1)), round_of(config, arm, 1).budget_h
        rows = store.connect(lab).execute(
            """select sample_id, sum(estimated_s) over (order by draw) from selected where selection_id = ?""", [name]
        )
        sure = {sample_id for sample_id, spent in rows.fetchall() if spent < SURELY * budget_h * 3600}
        texts |= {sample_id: text for sample_id, text in selections.to_synthesise(lab, name) if sample_id in sure}
    part = [(sample_id, texts[sample_id]) for sample_id in sorted(texts) if int(sample_id[-1], 16) % SHARES == share]
    jobs = jobs_of(part, config.voices, config.seed)
    seconds = speak(progress, lab, config, f"selected-{share}", jobs, faults=config.speech_faults)
    if jobs:
        encoder_frames(progress, lab, config, f"selected-{share}")
    return f"{len(jobs)} texts, {seconds / 3600:.2f} h"


def synthesis(progress: Progress, lab: Lab, config: MiniatureStudy, spec: str, number: int) -> str:
    """The rest of an arm or of its round, in draw order up to the budget."""
    arm = config.arm(spec)
    name = recall(lab, note_name("selection", arm, number))
    jobs = jobs_of(selections.to_synthesise(lab, name), config.voices, config.seed)
    budget_s = round_of(config, arm, number).budget_h * 3600
    seconds = speak(progress, lab, config, name, jobs, budget_s=budget_s, faults=config.speech_faults, selection=name,
                    voices=config.voices)  # fmt: skip
    return f"{seconds / 3600:.2f} h"


def stage2(progress: Progress, lab: Lab, config: BaseStudy, spec: str, number: int) -> str:
    """Stage II of an arm, or of a round of it: a child of the round before."""
    arm = config.arm(spec)
    parent = recall(lab, "stage1" if number == 1 else note_name("stage2", arm, number - 1))[0]
    run = round_of(config, arm, number).run.model_copy(
        update={"parent": parent, "selection": recall(lab, note_name("selection", arm, number))}
    )
    run_id, step = train_to_end(progress, lab, run, f"{config.name}_stage2", config, f"stage2_{round_name(arm, number)}")
    remember(lab, **{note_name("stage2", arm, number): [run_id, step]})
    return f"run {run_id}, {step} steps"


# --- results ---


def evaluate_once(progress: Progress, lab: Lab, model: SpeechLM, contender: str, run_id: str, step: int,
                    is_teacher: bool = False) -> None:  # fmt: skip
    """Ask a model every item of the lab's tasks, as a run of its own."""
    made_from = {"evaluate": contender, "run_id": run_id, "step": step, "tasks": tasks.names(lab)}
    ours = Ours(model, contender, run_id, step, teacher=is_teacher)
    run_once(lab, "evaluate", made_from, lambda run, progress: evaluate(lab, ours, tasks.names(lab), progress=progress),
           kind="evaluate", progress=progress)  # fmt: skip


def study_results(progress: Progress, lab: Lab, config: Study, contender: str, note: str | None) -> str:
    """Divergences of held-out speech and answers to every task, of the checkpoint noted under `note`; without one the
    teacher's answers, as text and through a cascade."""
    made = []
    if note is not None:
        for speech in config.heldout_speech:
            material.divergences(progress, lab, config, speech, note)
            made.append(f"divergences of {speech}")
    names = [task.name for task in config.tasks]
    if not names:
        return ", ".join(made) or "no task"
    run_id, step = recall(lab, note) if note is not None else (None, None)
    modalities = config.modalities if note is not None else tuple(m for m in config.modalities if m in ("text", "cascade"))
    made_from = {"evaluate": contender, "run_id": run_id, "step": step, "tasks": names, "modalities": list(modalities),
                 "tts": config.eval_tts or config.tts, "asr": config.recogniser, "llm": config.stage1.llm.name}  # fmt: skip

    def work(run, progress):
        if note is None:
            model = SpeechLM.build(config.stage1, lab).eval()
        else:
            model = load_checkpoint(lab, run_id, step).eval()
        who = Ours(passes.on_device(model), contender, run_id, step, teacher=note is None)
        _ask(lab, config, who, modalities, progress)

    run_once(lab, "evaluate", made_from, work, kind="evaluate", progress=progress)
    return ", ".join([*made, *modalities])


def _ask(lab: Lab, config: Study, who: Contender, modalities: tuple[str, ...], progress: Progress) -> None:
    """Ask a contender the items of the study's tasks: of a file those that are in it, of the harness' own up to their limit."""
    limits: dict[int | None, list[str]] = {}
    for task in config.tasks:
        limits.setdefault(None if task.path else task.limit, []).append(task.name)
    for limit, names in limits.items():
        evaluate(lab, who, names, modalities, list(config.eval_voices or config.voices), config.eval_tts or config.tts,
                 config.recogniser, limit, progress=progress, seed=config.seed)  # fmt: skip


def contender_results(progress: Progress, lab: Lab, config: Study, contender: str) -> str:
    """Answers of a contender from outside, in whatever modalities it has."""
    names = [task.name for task in config.tasks]
    made_from = {"evaluate": contender, "tasks": names, "tts": config.eval_tts or config.tts, "asr": config.recogniser}

    def work(run, progress):
        import torch

        who = outside(contender, None, lab, "cuda" if torch.cuda.is_available() else "cpu")
        _ask(lab, config, who, config.modalities, progress)

    run_once(lab, "evaluate", made_from, work, kind="evaluate", progress=progress)
    return ", ".join(names)


def teacher_results(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    model = SpeechLM.build(config.stage1, lab).eval()
    evaluate_once(progress, lab, model, "teacher", recall(lab, "teacher"), config.teacher.steps, is_teacher=True)
    return "text and cascade"


def stage1_results(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    run_id, step = recall(lab, "stage1")
    return results(progress, lab, "stage1", run_id, step, config.seed)


def stage2_results(progress: Progress, lab: Lab, config: MiniatureStudy, spec: str) -> str:
    name = f"stage2_{config.arm(spec).name}"
    run_id, step = recall(lab, name)
    return results(progress, lab, name, run_id, step, config.seed)


def results(progress: Progress, lab: Lab, contender: str, run_id: str, step: int, seed: int) -> str:
    """Divergences of held-out text and answers to every task, of one checkpoint."""
    model = score_speech(progress, lab, run_id, step, "heldout", seed)
    evaluate_once(progress, lab, model, contender, run_id, step)
    return "divergences of held-out text; text, speech and cascade"
