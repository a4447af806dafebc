"""What each step of a grid does, as functions that a process of its own runs: step(progress, lab, config, …) -> a line
that says what was made. What cells share is made once a seed; a cell trains, is measured, and is then done."""

import os
import shutil
from pathlib import Path

import store
from salad import selection
from salad.data import corpora
from salad.evaluation import tasks
from salad.evaluation.contenders import Ours
from salad.evaluation.run import evaluate
from salad.passes import Progress, run_once
from salad.passes.cluster import probe_texts
from salad.passes.score import score
from salad.passes.synthesise import jobs_of
from salad.runs import RunFolder
from salad.selection.draw import Clusters, Pool, active, uniform
from salad.study import steps
from salad.study.config import MiniatureStudy
from salad.study.grids import SHARES, Cell, run_config
from salad.study.notes import mark_done, recall, remember

MAX_CER = 0.25  # above it a synthesis is taken for a faulty one, where faults are removed

Lab = Path | str


def prepare_encoder(progress: Progress, lab: Lab, config: MiniatureStudy, source: str | None) -> str:
    """The seed's encoder: copied from the study's first lab, whose it is byte for byte, else trained."""
    folder = Path(lab) / "models" / "encoder"
    if source is not None and not (folder / "training.json").exists():
        beside = folder.with_name(f".encoder.{os.getpid()}")
        shutil.copytree(Path(source) / "models" / "encoder", beside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    return steps.encoder(progress, lab, config)


def broad_speech(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    """As many texts of the broad corpus as `natural` has, by P_web, in the natural voices: broad-domain speech."""
    rows = store.connect(lab).execute(
        """select sample_id, text from samples where corpus = 'broad' and len(coalesce(flags, [])) = 0
           order by sample_id limit ?""", [sum(config.world.natural.values())]
    ).fetchall()  # fmt: skip
    jobs = jobs_of(rows, config.natural_voices, config.seed)
    seconds = steps.speak(progress, lab, config, "natural_broad", jobs, recogniser=False, tts="espeak", recorded=True)
    return f"{seconds / 3600:.2f} h"


def broad_synthesis(progress: Progress, lab: Lab, config: MiniatureStudy, share: int) -> str:
    """A share of the broad corpus in the synthesiser's voice, checked: every selection of the grid takes from it."""
    rows = (
        store.connect(lab)
        .execute("select sample_id, text from samples where corpus = 'broad' and len(coalesce(flags, [])) = 0 order by 1")
        .fetchall()
    )
    part = [row for row in rows if int(row[0][-1], 16) % SHARES == share]
    jobs = jobs_of(part, config.voices, config.seed)
    seconds = steps.speak(progress, lab, config, f"broad-{share}", jobs, faults=config.speech_faults)
    return f"{len(jobs)} texts, {seconds / 3600:.2f} h"


def clusterings(progress: Progress, lab: Lab, config: MiniatureStudy, n_clusters: tuple[int, ...]) -> str:
    """The corpus's clustering for each K; the study's own K last, so that it is the lab's newest."""
    for done, k in enumerate(reversed(n_clusters)):
        if not (Path(lab) / ".study" / f"clustering-{k}.json").exists():
            steps.clusters(lambda *_: None, lab, config.model_copy(update={"n_clusters": k}))
            remember(lab, **{f"clustering-{k}": recall(lab, "clustering")})
        progress(done + 1, len(n_clusters))
    return f"K = {', '.join(map(str, n_clusters))}"


def probe_ids(lab: Lab, config: MiniatureStudy, n_clusters: tuple[int, ...], probe: int) -> list[str]:
    """The texts that are probed: of each clustering about `probe` over its clusters, together."""
    found = set()
    for k in n_clusters:
        texts = probe_texts(lab, recall(lab, f"clustering-{k}"), max(1, probe // k), config.seed)
        found |= {sample_id for sample_id, _ in texts}
    return sorted(found)


def probe_divergences(progress: Progress, lab: Lab, config: MiniatureStudy, run_id: str, step: int,
                      n_clusters: tuple[int, ...], probe: int) -> str:  # fmt: skip
    """M, F and D of the probe at a checkpoint."""
    ids = set(probe_ids(lab, config, n_clusters, probe))
    made_from = {"pass": "score", "run_id": run_id, "step": step, "speech": ["probe"], "seed": config.seed, "texts": len(ids)}

    def scored(run, progress):
        names = [f"broad-{share}" for share in range(SHARES)]
        spoken = [s for s in corpora.of_speech(store.connect(lab), names) if s.sample_id in ids]
        score(lab, steps.load_checkpoint(lab, run_id, step), run_id, step, spoken, "probe", config.seed, progress=progress)

    run_once(lab, "score", made_from, scored, progress=progress)
    return f"{len(ids)} texts"


def stage1_probe(progress: Progress, lab: Lab, config: MiniatureStudy, n_clusters: tuple[int, ...], probe: int) -> str:
    """M, F and D of the probe at the end of Stage I."""
    run_id, step = recall(lab, "stage1")
    return probe_divergences(progress, lab, config, run_id, step, n_clusters, probe)


def active_filtered(pool: Pool, gamma: float) -> Clusters:
    """The strategy `active`, under a name of its own: a selection of its own, from which faults are removed."""
    return active(pool, gamma)


def uniform_filtered(pool: Pool, gamma: float) -> Clusters:
    """The strategy `uniform`, under a name of its own: a selection of its own, from which faults are removed."""
    return uniform(pool, gamma)


def select(lab: Lab, config: MiniatureStudy, cell: Cell, at: tuple[str, int], budget_h: float, number: int | None = None,
           parent: str | None = None) -> str:  # fmt: skip
    """A selection of the cell's, drawn from the divergences of the checkpoint `at`, without what it filters."""
    gamma = config.gamma if cell.gamma is None else cell.gamma
    k = cell.n_clusters or config.n_clusters
    # part of selection ids: the name under which these strategies were first published, see salad/moved.py
    strategy = f"salad.studies:{cell.strategy}_filtered" if cell.filtered else cell.strategy
    name = selection.select(
        lab, clustering_id=recall(lab, f"clustering-{k}"), run_id=at[0], step=at[1], strategy=strategy,
        gamma=0.0 if cell.strategy in ("uniform", "uniform_clusters", "oracle", "marginal") else gamma, budget_h=budget_h,
        seed=config.seed, max_cer=config.max_cer, parent=parent, number=number,
    )  # fmt: skip
    if cell.filtered:
        query = "select count(*) from decisions where selection_id = ?"
        ((decisions,),) = store.connect(lab).execute(query, [name]).fetchall()
        if not decisions:
            store.append(lab, "decisions", selection_id=name, target="rule", rule=f"cer > {MAX_CER}", verdict="drop",
                         reason="bad synthesis", reviewer="salad findings")  # fmt: skip
    return name


def train_cell(progress: Progress, lab: Lab, config: MiniatureStudy, cell: Cell, curve: tuple[float, ...],
               n_clusters: tuple[int, ...], probe: int) -> str:  # fmt: skip
    """Train a cell's run to its end: in rounds, with the probe measured again after each, where it has several."""
    run = run_config(config, cell)
    if cell.stage == "stage1":
        keep = tuple(sorted({max(1, round(share * run.optim.steps)) for share in curve}))
        run = run.model_copy(update={"optim": run.optim.model_copy(update={"keep": keep})})
        at = steps.train_to_end(progress, lab, run, "miniature_stage1")
    else:
        parent, at, drawn = recall(lab, cell.parent)[0], recall(lab, "stage1"), None
        for part in selection.rounds(run, config.budget_h * cell.hours, cell.rounds):
            number = part.number if cell.rounds > 1 else None
            if part.number > 1:
                run_id, step = at
                probe_divergences(lambda *_: None, lab, config, run_id, step, n_clusters, probe)
            drawn = select(lab, config, cell, at, part.budget_h, number, drawn)
            run = part.run.model_copy(update={"parent": parent, "selection": drawn})
            at = steps.train_to_end(progress, lab, run, "miniature_stage2")
            parent, drawn = at[0], RunFolder.open(lab, at[0]).record["selection_id"]
    remember(lab, **{cell.name: list(at)})
    return f"run {at[0]}, {at[1]} steps"


def measure_cell(progress: Progress, lab: Lab, config: MiniatureStudy, cell: Cell) -> str:
    """Divergences of held-out text (along Stage I, too), and accuracy: on text and speech, the arms' through a cascade."""
    run_id, step = recall(lab, cell.name)
    if cell.stage == "stage1":
        kept = (Path(lab) / "runs" / run_id / "checkpoints").glob("step-*/manifest.json")
        for at in sorted(int(path.parent.name.split("-")[1]) for path in kept):
            if at != step:
                steps.score_speech(progress, lab, run_id, at, "heldout", config.seed)
    model = steps.score_speech(progress, lab, run_id, step, "heldout", config.seed)
    names = tasks.names(lab)
    modalities = ("text", "speech", "cascade") if "arms" in cell.axes else ("text", "speech")
    made_from = {"evaluate": cell.name, "run_id": run_id, "step": step, "tasks": names, "modalities": list(modalities)}
    ours = Ours(model, cell.name, run_id, step)
    run_once(lab, "evaluate", made_from, lambda run, progress: evaluate(lab, ours, names, modalities, progress=progress),
           kind="evaluate", progress=progress)  # fmt: skip
    return f"divergences of held-out text; {', '.join(modalities)}"


def measure_teacher(progress: Progress, lab: Lab, config: MiniatureStudy) -> str:
    """The teacher's accuracy on text, from which every gap is measured, and through a cascade."""
    made = steps.teacher_results(progress, lab, config)
    mark_done(lab, "teacher")
    return made


def finish_cell(progress: Progress, lab: Lab, config: MiniatureStudy, cell: Cell) -> str:
    """Measure a trained cell, and mark it as done."""
    made = measure_cell(progress, lab, config, cell)
    mark_done(lab, cell.name)
    return made
