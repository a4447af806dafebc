"""Studies of the miniature: a grid of cells over seeds that share what they have in common. `salad findings`, `salad sweep`.

A seed is a lab of its own, `lab/studies/<name>/seed-<n>/`: world, teacher, recogniser, natural speech, Stage I, the
synthesised corpus and the probe are made once there, and every cell is a run of that lab under the cell's name. The
encoder, which hears nothing of the world, is one for all seeds. Everything can be interrupted, killed and taken up.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field

import store
from salad.config import Frozen, RunConfig, apply_overrides
from salad.errors import SaladError
from salad.miniature.steps import Step
from salad.miniature.study import StudyConfig, claim
from store import atomic

SHARES = 2  # of a seed's synthesis, so that two workers speak side by side
QUICK = ("stage1", "active", "uniform", "broad_alpha100", "broad_alpha0", "narrow_alpha0", "active_gamma5")
CURVE = (0.1, 0.2, 0.35, 0.55, 0.8)  # before the decay, which takes the last fifth: a power law takes four at least
MAX_CER = 0.25  # above it a synthesis is taken for a faulty one, where faults are removed


class Cell(Frozen):
    """One run of a study: what it differs in from the seed's base, and the tables in which it stands.

    `name` is the contender's. A Stage I cell trains from scratch on `speech`; a Stage II cell goes on from the Stage I
    cell `parent` with a selection of its own. `overrides` are of its RunConfig."""

    name: str
    axes: tuple[str, ...]
    tier: int = Field(0, description="cells of a lower tier run first, over all seeds")
    stage: Literal["stage1", "stage2"] = "stage2"
    speech: Literal["narrow", "broad"] = "narrow"
    parent: str = "stage1"
    strategy: str = "active"
    gamma: float | None = Field(None, description="by default the study's")
    n_clusters: int | None = Field(None, description="by default the study's")
    hours: float = Field(1.0, gt=0, description="of the study's budget")
    rounds: int = Field(1, ge=1)
    filtered: bool = Field(False, description="syntheses with a high CER, that is planted faults, are removed")
    overrides: dict = {}


class Grid(Frozen):
    """A study: its base, its cells, and its seeds. `probe` texts are probed by every clustering of the grid, so that
    clusterings of any K rest on the same measurements. `curve`: shares of Stage I at which M and F are measured."""

    name: str
    study: StudyConfig
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    probe: int = Field(96, gt=0, description="probed texts of each clustering, over its clusters")
    curve: tuple[float, ...] = CURVE

    def lab(self, root: Path | str, seed: int) -> Path:
        return Path(root) / "studies" / self.name / f"seed-{seed}"

    @property
    def n_clusters(self) -> tuple[int, ...]:
        """Every K of the grid, the study's own first."""
        own = self.study.n_clusters
        return own, *sorted({c.n_clusters for c in self.cells if c.n_clusters} - {own})


def _stage2(name: str, axes: str, tier: int, **told) -> Cell:
    return Cell(name=name, axes=tuple(axes.split()), tier=tier, **told)


def cells() -> tuple[Cell, ...]:
    """The grid that `salad findings` runs. A tier is a step that judges further claims, those that cost least first: a
    study cut short has as many claims as its time allows, each on every seed."""
    full = {"llm.finetune": "full", "optim.lr_llm": 5e-4}

    def stage1(speech: str, alpha: float, tier: int) -> Cell:
        return Cell(name=f"{speech}_alpha{100 * alpha:.0f}", axes=("alpha",), tier=tier, stage="stage1", speech=speech,
                    overrides={"objective.alpha": alpha})  # fmt: skip

    def hours(arm: str, h: float, tier: int) -> Cell:
        return _stage2(f"{arm}_hours{h:g}", "hours", tier, strategy=arm, hours=h)

    def rounds(n: int, tier: int) -> Cell:
        return _stage2(f"active_rounds{n}", "rounds strategy", tier, strategy="active_rounds", rounds=n)

    def divergence(name: str, tier: int) -> Cell:
        return _stage2(f"active_{name}", "divergence", tier, overrides={"objective.divergence": name})

    return (
        Cell(name="stage1", axes=("alpha", "arms"), stage="stage1"),
        _stage2("active", "arms strategy gamma k hours rounds span divergence finetune faults", 0),
        _stage2("uniform", "arms strategy gamma hours finetune faults", 0, strategy="uniform"),
        stage1("broad", 1.0, 1), stage1("broad", 0.0, 2), stage1("narrow", 0.0, 3), stage1("broad", 0.5, 4),
        _stage2("active_gamma5", "gamma", 5, gamma=5.0),
        rounds(2, 6),
        hours("uniform", 2.0, 7), hours("uniform", 0.5, 8),
        _stage2("teacher_nll", "strategy", 9, strategy="teacher_nll"),
        _stage2("active_filtered", "faults", 10, filtered=True),
        _stage2("sample_level", "strategy", 11, strategy="sample_level"),
        divergence("reverse_kl", 12), divergence("jsd", 13),
        Cell(name="stage1_full", axes=("finetune",), tier=14, stage="stage1", overrides=full),
        _stage2("active_full", "finetune", 14, parent="stage1_full", overrides=full),
        _stage2("oracle", "strategy", 15, strategy="oracle"),
        rounds(4, 16),
        # what follows stands in tables only: no claim rests on it alone
        stage1("narrow", 0.5, 17), _stage2("active_gamma1", "gamma", 18, gamma=1.0),
        _stage2("active_k8", "k", 19, n_clusters=8), _stage2("active_k32", "k", 19, n_clusters=32),
        _stage2("uniform_clusters", "strategy", 20, strategy="uniform_clusters"),
        _stage2("uniform_filtered", "faults", 21, strategy="uniform", filtered=True),
        _stage2("uniform_full", "finetune", 22, strategy="uniform", parent="stage1_full", overrides=full),
        hours("active", 0.5, 23), hours("active", 2.0, 23),
        stage1("narrow", 0.25, 24), stage1("broad", 0.25, 24), stage1("narrow", 0.75, 24), stage1("broad", 0.75, 24),
        *(_stage2(f"active_span{low}to{high}", "span", 25, overrides={"sequences.span_units": [low, high]})
          for low, high in ((1, 2), (4, 12))),
    )  # fmt: skip


def _sized(study: StudyConfig, world: dict, budget_h: float, stage1: dict, stage2: dict, **told) -> StudyConfig:
    def optim(run: RunConfig, update: dict) -> RunConfig:
        return run.model_copy(update={"optim": run.optim.model_copy(update=update)})

    return study.model_copy(update={
        "world": study.world.model_copy(update=world), "budget_h": budget_h,
        "stage1": optim(study.stage1, stage1), "stage2": optim(study.stage2, stage2), **told,
    })  # fmt: skip


def full(name: str = "findings") -> Grid:
    """Every cell at the demo's own sizes: hours on two cores."""
    return Grid(name=name, study=StudyConfig(), cells=cells())


def half(name: str = "findings-half") -> Grid:
    """Every cell, at about half the demo's text, speech and items, a fifth to a half of its steps."""
    study = _sized(
        StudyConfig(),
        world={"natural": {"stories": 450}, "broad": 2000, "heldout_per_domain": 24, "items_per_domain": 32},
        budget_h=1.0,
        stage1={"steps": 300, "warmup": 20, "decay": 60, "checkpoint_every": 300},
        stage2={"steps": 300, "warmup": 15, "decay": 180, "checkpoint_every": 300},
    )
    return Grid(name=name, study=study, cells=cells(), curve=CURVE[1:])


def quick(name: str = "findings-quick") -> Grid:
    """The cells that the main claims need, with less text, less speech and fewer steps than the demo's."""
    study = _sized(
        StudyConfig(),
        world={"natural": {"stories": 300}, "broad": 1200, "heldout_per_domain": 16, "items_per_domain": 32},
        budget_h=0.6,
        stage1={"steps": 240, "warmup": 20, "decay": 48, "checkpoint_every": 240},
        stage2={"steps": 200, "warmup": 10, "decay": 100, "checkpoint_every": 200},
    )
    chosen = tuple(cell for cell in cells() if cell.name in QUICK)
    return Grid(name=name, study=study, cells=chosen, probe=48, curve=CURVE[1:])


def smoke(name: str = "findings-smoke") -> Grid:
    """The smallest that goes through every kind of cell; its figures mean nothing."""
    told = {"world": {"pretrain_per_domain": 60, "natural": {"stories": 24}, "broad": 160, "heldout_per_domain": 4,
                      "items_per_domain": 4}}  # fmt: skip
    tiny = {"steps": 8, "warmup": 1, "decay": 2, "checkpoint_every": 8, "batch": 4}
    study = _sized(StudyConfig().smoke(), **told, budget_h=0.03, stage1=tiny, stage2=tiny)
    wanted = ("stage1", "active", "uniform", "broad_alpha0", "teacher_nll", "active_k8", "active_rounds2", "active_jsd")
    grid = Grid(name=name, study=study, cells=tuple(c for c in cells() if c.name in wanted), seeds=(0, 1), probe=16)
    return grid.model_copy(update={"curve": (0.34,)})


# --- what each step does, as functions that a process of its own runs ---


def _remembered(lab, name: str):
    from salad.miniature.work import recall

    return recall(lab, name)


def _remember(lab, **told) -> None:
    for name, value in told.items():
        atomic.write_json(Path(lab) / ".study" / f"{name}.json", value)


def prepare_encoder(progress, lab, config: StudyConfig, source: str | None) -> str:
    """The seed's encoder: copied from the study's first lab, whose it is byte for byte, else trained."""
    from salad.miniature import work

    folder = Path(lab) / "models" / "encoder"
    if source is not None and not (folder / "training.json").exists():
        beside = folder.with_name(f".encoder.{os.getpid()}")
        shutil.copytree(Path(source) / "models" / "encoder", beside)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(beside, folder)
    return work.encoder(progress, lab, config)


def broad_speech(progress, lab, config: StudyConfig) -> str:
    """As many texts of the broad corpus as `natural` has, by P_web, in the natural voices: broad-domain speech."""
    from salad.miniature import work
    from salad.passes.synthesise import jobs_of

    rows = store.connect(lab).execute(
        """select sample_id, text from samples where corpus = 'broad' and len(coalesce(flags, [])) = 0
           order by sample_id limit ?""", [sum(config.world.natural.values())]
    ).fetchall()  # fmt: skip
    jobs = jobs_of(rows, config.natural_voices, config.seed)
    seconds = work._speak(progress, lab, config, "natural_broad", jobs, recogniser=False, tts="espeak", recorded=True)
    return f"{seconds / 3600:.2f} h"


def broad_synthesis(progress, lab, config: StudyConfig, share: int) -> str:
    """A share of the broad corpus in the synthesiser's voice, checked: every selection of the grid takes from it."""
    from salad.miniature import work
    from salad.passes.synthesise import jobs_of

    rows = store.connect(lab).execute(
        "select sample_id, text from samples where corpus = 'broad' and len(coalesce(flags, [])) = 0 order by 1"
    ).fetchall()
    mine = [row for row in rows if int(row[0][-1], 16) % SHARES == share]
    jobs = jobs_of(mine, config.voices, config.seed)
    seconds = work._speak(progress, lab, config, f"broad-{share}", jobs, faults=config.speech_faults)
    return f"{len(jobs)} texts, {seconds / 3600:.2f} h"


def clusterings(progress, lab, config: StudyConfig, n_clusters: tuple[int, ...]) -> str:
    """The corpus's clustering for each K; the study's own K last, so that it is the lab's newest."""
    from salad.miniature import work

    for done, k in enumerate(reversed(n_clusters)):
        if not (Path(lab) / ".study" / f"clustering-{k}.json").exists():
            work.clusters(lambda *_: None, lab, config.model_copy(update={"n_clusters": k}))
            _remember(lab, **{f"clustering-{k}": _remembered(lab, "clustering")})
        progress(done + 1, len(n_clusters))
    return f"K = {', '.join(map(str, n_clusters))}"


def probe_ids(lab, config: StudyConfig, n_clusters: tuple[int, ...], probe: int) -> list[str]:
    """The texts that are probed: of each clustering about `probe` over its clusters, together."""
    from salad.passes.cluster import probe_texts

    found = set()
    for k in n_clusters:
        texts = probe_texts(lab, _remembered(lab, f"clustering-{k}"), max(1, probe // k), config.seed)
        found |= {sample_id for sample_id, _ in texts}
    return sorted(found)


def probe_divergences(progress, lab, config: StudyConfig, run_id: str, step: int, n_clusters, probe: int) -> str:
    """M, F and D of the probe at a checkpoint."""
    from salad.data import corpora
    from salad.miniature import work
    from salad.passes import as_run
    from salad.passes.score import score

    ids = set(probe_ids(lab, config, n_clusters, probe))
    told = {"pass": "score", "run_id": run_id, "step": step, "speech": ["probe"], "seed": config.seed, "texts": len(ids)}

    def scored(run, progress):
        names = [f"broad-{share}" for share in range(SHARES)]
        spoken = [s for s in corpora.of_speech(store.connect(lab), names) if s.sample_id in ids]
        score(lab, work._model(lab, run_id, step), run_id, step, spoken, "probe", config.seed, progress=progress)

    as_run(lab, "score", told, scored, progress=progress)
    return f"{len(ids)} texts"


def stage1_probe(progress, lab, config: StudyConfig, n_clusters, probe: int) -> str:
    return probe_divergences(progress, lab, config, *_remembered(lab, "stage1"), n_clusters, probe)


def active_filtered(pool, gamma: float):
    """The strategy `active`, under a name of its own: a selection of its own, from which faults are removed."""
    from salad.selection.draw import active

    return active(pool, gamma)


def uniform_filtered(pool, gamma: float):
    """The strategy `uniform`, likewise."""
    from salad.selection.draw import uniform

    return uniform(pool, gamma)


def _selection(lab, config: StudyConfig, cell: Cell, at: tuple, budget_h: float, number=None, parent=None) -> str:
    """A selection of the cell's, drawn from the divergences of the checkpoint `at`, without what it filters."""
    from salad import selection

    gamma = config.gamma if cell.gamma is None else cell.gamma
    k = cell.n_clusters or config.n_clusters
    strategy = f"salad.studies:{cell.strategy}_filtered" if cell.filtered else cell.strategy
    name = selection.select(
        lab, clustering_id=_remembered(lab, f"clustering-{k}"), run_id=at[0], step=at[1], strategy=strategy,
        gamma=0.0 if cell.strategy in ("uniform", "uniform_clusters", "oracle") else gamma, budget_h=budget_h,
        seed=config.seed, max_cer=config.max_cer, parent=parent, number=number,
    )  # fmt: skip
    if cell.filtered:
        said = store.connect(lab).execute("select count(*) from decisions where selection_id = ?", [name]).fetchone()[0]
        if not said:
            store.append(lab, "decisions", selection_id=name, target="rule", rule=f"cer > {MAX_CER}", verdict="drop",
                         reason="bad synthesis", reviewer="salad findings")  # fmt: skip
    return name


def run_config(config: StudyConfig, cell: Cell) -> RunConfig:
    """The cell's training, without its parent and selection."""
    base = config.stage1 if cell.stage == "stage1" else config.stage2
    if cell.speech == "broad":
        base = base.model_copy(update={"data": base.data.model_copy(update={"natural": ("natural_broad",)})})
    return apply_overrides(base.model_copy(update={"contender": cell.name}), cell.overrides)


def train_cell(progress, lab, config: StudyConfig, cell: Cell, curve: tuple[float, ...], n_clusters, probe: int) -> str:
    """Train a cell's run to its end: in rounds, with the probe measured again after each, where it has several."""
    from salad import selection
    from salad.miniature import work
    from salad.runs import RunFolder

    run = run_config(config, cell)
    if cell.stage == "stage1":
        keep = tuple(sorted({max(1, round(share * run.optim.steps)) for share in curve}))
        run = run.model_copy(update={"optim": run.optim.model_copy(update={"keep": keep})})
        at = work._trained(progress, lab, run, "miniature_stage1")
    else:
        parent, at, drawn = _remembered(lab, cell.parent)[0], _remembered(lab, "stage1"), None
        for part in selection.rounds(run, config.budget_h * cell.hours, cell.rounds):
            number = part.number if cell.rounds > 1 else None
            if part.number > 1:
                probe_divergences(lambda *_: None, lab, config, *at, n_clusters, probe)
            drawn = _selection(lab, config, cell, at, part.budget_h, number, drawn)
            told = part.run.model_copy(update={"parent": parent, "selection": drawn})
            at = work._trained(progress, lab, told, "miniature_stage2")
            parent, drawn = at[0], RunFolder.open(lab, at[0]).record["selection_id"]
    _remember(lab, **{cell.name: list(at)})
    return f"run {at[0]}, {at[1]} steps"


def measure_cell(progress, lab, config: StudyConfig, cell: Cell) -> str:
    """Divergences of held-out text (along Stage I, too), and accuracy: on text and speech, the arms' through a cascade."""
    from salad.evaluation import tasks
    from salad.evaluation.contenders import Ours
    from salad.evaluation.run import evaluate
    from salad.miniature import work
    from salad.passes import as_run

    run_id, step = _remembered(lab, cell.name)
    if cell.stage == "stage1":
        kept = (Path(lab) / "runs" / run_id / "checkpoints").glob("step-*/manifest.json")
        for at in sorted(int(path.parent.name.split("-")[1]) for path in kept):
            if at != step:
                work._score(progress, lab, run_id, at, "heldout", config.seed)
    model = work._score(progress, lab, run_id, step, "heldout", config.seed)
    names = tasks.names(lab)
    modalities = ("text", "speech", "cascade") if "arms" in cell.axes else ("text", "speech")
    told = {"evaluate": cell.name, "run_id": run_id, "step": step, "tasks": names, "modalities": list(modalities)}
    ours = Ours(model, cell.name, run_id, step)
    as_run(lab, "evaluate", told, lambda run, progress: evaluate(lab, ours, names, modalities, progress=progress),
           kind="evaluate", progress=progress)  # fmt: skip
    return f"divergences of held-out text; {', '.join(modalities)}"


def measure_teacher(progress, lab, config: StudyConfig) -> str:
    """The teacher's accuracy on text, from which every gap is measured, and through a cascade."""
    from salad.miniature import work

    told = work.teacher_results(progress, lab, config)
    _done(lab, "teacher")
    return told


def measured(lab, name: str) -> bool:
    """Whether a cell, or the teacher, is done: trained, and its evaluation too."""
    return (Path(lab) / ".study" / f"{name}.done").exists()


def finish_cell(progress, lab, config: StudyConfig, cell: Cell) -> str:
    told = measure_cell(progress, lab, config, cell)
    _done(lab, cell.name)
    return told


def _done(lab, name: str) -> None:
    atomic.write_bytes(Path(lab) / ".study" / f"{name}.done", b"")
    (Path(lab) / ".study" / f"{name}.failed.json").unlink(missing_ok=True)


def failures(lab: Path | str) -> dict[str, str]:
    """The cells of a seed's lab whose last attempt failed, each with the error's last line."""
    paths = sorted((Path(lab) / ".study").glob("*.failed.json"))
    return {path.name.removesuffix(".failed.json"): json.loads(path.read_text())["error"] for path in paths}


# --- the plan ---


def claim_labs(grid: Grid, root: Path | str) -> None:
    """Make every seed's lab this study's, or find that it is; the grid's cells and sizes stand in study.json."""
    for seed in grid.seeds:
        lab = grid.lab(root, seed)
        claim(lab, study_of(grid, seed))
        told = json.loads((lab / "study.json").read_text())
        wanted = {"grid": grid.name, "cells": [cell.model_dump(mode="json") for cell in grid.cells]}
        if {key: told.get(key) for key in wanted} != wanted:
            atomic.write_json(lab / "study.json", told | wanted)


def study_of(grid: Grid, seed: int) -> StudyConfig:
    """The study at a seed; the encoder's seed stays the grid's own."""
    return grid.study.seeded(seed).model_copy(update={"encoder": grid.study.encoder})


def plan(grid: Grid, root: Path | str, only: Iterable[str] | None = None) -> list[Step]:
    """The steps of what is not done, tier by tier over all seeds. `only` names cells; without it, all of them."""
    from salad.miniature import work

    wanted = None if only is None else set(only)
    unknown = (wanted or set()) - {cell.name for cell in grid.cells}
    if unknown:
        raise SaladError(f"no cell {sorted(unknown)[0]!r}; there are {', '.join(c.name for c in grid.cells)}")
    chosen = [c for c in grid.cells if (wanted is None or c.name in wanted)]
    parents = {c.parent for c in chosen if c.stage == "stage2"} | {"stage1"} if chosen else set()
    chosen = [c for c in grid.cells if c in chosen or c.name in parents]
    steps: list[tuple[int, Step]] = []
    first = str(grid.lab(root, grid.seeds[0]).resolve())
    for seed in grid.seeds:
        lab, config = str(grid.lab(root, seed).resolve()), study_of(grid, seed)
        left = [cell for cell in chosen if not measured(lab, cell.name)]
        if not left and measured(lab, "teacher"):
            continue

        def step(tier, name, title, function, *after, arguments=(), seed=seed, lab=lab, config=config):
            steps.append((tier, Step(f"{seed}:{name}", f"seed {seed}: {title}", function, (lab, config, *arguments),
                                     tuple(a if ":" in a else f"{seed}:{a}" for a in after))))  # fmt: skip

        step(-1, "world", "world", work.world)
        source, after = (None, ()) if lab == first else (first, (f"{grid.seeds[0]}:encoder",))
        if source is not None and not any(s.name == after[0] for _, s in steps):
            after = ()  # the first lab has all it needs
        step(-1, "encoder", "encoder", prepare_encoder, *after, arguments=(source,))
        step(-1, "teacher", "teacher", work.teacher, "world")
        step(-1, "natural", "natural speech", work.natural, "world")
        step(-1, "recogniser", "recogniser", work.recogniser, "encoder", "world")
        step(-1, "spoken", "held-out and test speech", work.spoken, "recogniser")
        step(-1, "frames", "encoder frames of natural speech", work.encoder_frames, "encoder", "natural", arguments=("natural",))
        if not measured(lab, "teacher"):
            step(0, "measure_teacher", "the teacher's results", measure_teacher, "teacher", "spoken")
        for cell in left:
            waits = ["teacher", "encoder", "frames"]
            if cell.stage == "stage1" and cell.speech == "broad":
                waits.append("frames_natural_broad")
            if cell.stage == "stage2":
                waits += ["probe", *(f"frames_{share}" for share in range(SHARES))]
                if not measured(lab, cell.parent):
                    waits.append(f"train_{cell.parent}")
            step(cell.tier, f"train_{cell.name}", f"train {cell.name}", train_cell, *waits,
                 arguments=(cell, grid.curve, grid.n_clusters, grid.probe))  # fmt: skip
            step(cell.tier, f"measure_{cell.name}", f"measure {cell.name}", finish_cell, f"train_{cell.name}", "spoken",
                 arguments=(cell,))  # fmt: skip
        names = {s.name for _, s in steps}
        if any(c.speech == "broad" for c in left):
            step(0, "natural_broad", "broad-domain speech", broad_speech, "world")
            step(0, "frames_natural_broad", "encoder frames of broad-domain speech", work.encoder_frames, "encoder",
                 "natural_broad", arguments=("natural_broad",))  # fmt: skip
        if any(c.stage == "stage2" for c in left):
            shares = [f"broad_{share}" for share in range(SHARES)]
            for share, name in enumerate(shares):
                step(-1, name, f"synthesis, part {share + 1} of {SHARES}", broad_synthesis, "recogniser", "world",
                     arguments=(share,))  # fmt: skip
                step(-1, f"frames_{share}", f"encoder frames, part {share + 1} of {SHARES}", work.encoder_frames, "encoder", name,
                     arguments=(f"broad-{share}",))  # fmt: skip
            step(-1, "clusters", "clusters", clusterings, "teacher", arguments=(grid.n_clusters,))
            waits = ["train_stage1"] if f"{seed}:train_stage1" in names else []
            step(-1, "probe", "divergences of the probe", stage1_probe, "clusters", *shares, *waits,
                 arguments=(grid.n_clusters, grid.probe))  # fmt: skip
    return [made for _, made in sorted(steps, key=lambda pair: pair[0])]


def run(grid: Grid, root: Path | str, watch, workers: int = 2, only: Iterable[str] | None = None) -> dict[str, str]:
    """Do what is left of a study, `workers` steps at a time; `watch` as in `salad.miniature.steps.run`.

    A cell that fails is written down with its error's last line, what waits for it too, and the others go on; running
    again tries it again. Returns what failed: "seed 0: active_k8" and the error."""
    from salad.miniature import steps

    claim_labs(grid, root)
    failed: dict[str, str] = {}

    def heard(event: str, step: Step, *details) -> None:
        if event == "failed":
            seed, name = step.name.split(":")
            cell = name.removeprefix("train_").removeprefix("measure_")
            said = (details[0].told.strip() or "no word of why").splitlines()[-1]
            if failed.setdefault(f"seed {seed}: {cell}", said) == said and cell in {*(c.name for c in grid.cells), "teacher"}:
                atomic.write_json(grid.lab(root, int(seed)) / ".study" / f"{cell}.failed.json", {"error": said})
        watch(event, step, *details)

    steps.run(plan(grid, root, only), workers, heard, keep_going=True)
    return failed


# Seconds on two idle cores of an AMD EPYC, two steps at a time with one thread each: a demo of 2026-11-21, and a study's
# own cells. A unit is a training step, a text, an item or hour of speech, as it says.
SECONDS = {
    "encoder": 0.17, "teacher": 0.09, "recogniser": 0.14, "stage1": 0.117, "stage2": 0.135,  # a training step
    "spoken": 0.026, "synthesis": 0.034,  # a text, the latter with its check
    "clustering": 9.0, "scored": 0.012, "answered": 0.009, "started": 3.0,  # a text's two patterns; an item in a modality
    "encoded": 6.0,  # an hour of speech
}  # fmt: skip
DOMAINS, ITEM_TEXT_S = 7, 6.0
_OF_STAGE2 = {"clusters", "probe", *(f"frames_{share}" for share in range(SHARES))}  # with the parts of synthesis


def seconds_of(grid: Grid, step: Step) -> float:
    """About how long a step of `plan` takes one of two workers on two idle cores, from SECONDS and the step's sizes."""
    config, cost = step.arguments[1], SECONDS
    world, name = config.world, step.name.split(":")[1]
    natural, texts = sum(world.natural.values()), DOMAINS * world.heldout_per_domain
    items = DOMAINS * world.items_per_domain
    if name in ("teacher", "recogniser"):
        return getattr(config, name).steps * cost[name]
    if name == "encoder":
        return config.encoder.steps * cost[name] if step.arguments[2] is None else 1.0
    if name in ("natural", "natural_broad"):
        return natural * cost["spoken"]
    if name == "spoken":
        return (texts + items / 2) * cost["spoken"]
    if name.startswith("broad_"):
        return world.broad / SHARES * cost["synthesis"]
    if name.startswith("frames"):
        heard = natural if "natural" in name or name == "frames" else world.broad / SHARES
        return cost["started"] + heard * ITEM_TEXT_S / 3600 * cost["encoded"]
    if name == "clusters":
        return len(grid.n_clusters) * cost["clustering"]
    if name == "probe":
        return cost["started"] + grid.probe * len(grid.n_clusters) * cost["scored"]
    if name == "measure_teacher":
        return cost["started"] + 2 * items * cost["answered"]
    if name == "world":
        return cost["started"]
    cell = step.arguments[2]
    run = run_config(config, cell)
    if name.startswith("train_"):
        again = (cell.rounds - 1) * (2 * cost["started"] + grid.probe * len(grid.n_clusters) * cost["scored"])
        return cost["started"] + run.optim.steps * cost[cell.stage] + again
    scored = texts * (1 + len(grid.curve) * (cell.stage == "stage1"))
    return cost["started"] + scored * cost["scored"] + (2 + ("arms" in cell.axes)) * items * cost["answered"]


def estimate(grid: Grid, root: Path | str, workers: int = 2, only: Iterable[str] | None = None) -> list[tuple[str, int, float]]:
    """(what, steps left, seconds of the clock) for what is made once a seed and for each tier's cells, in their order.

    What cells share is made if a cell that waits for it is measured; to look whether it is there takes seconds."""
    told: dict[str, list[float]] = {}
    by_name = {cell.name: cell for cell in grid.cells}
    for step in plan(grid, root, only):
        lab, name = step.arguments[0], step.name.split(":")[1]
        cell = by_name.get(name.removeprefix("train_").removeprefix("measure_"))
        if cell is None and name != "measure_teacher":
            broad, stage2 = "natural_broad" in name, name.startswith("broad_") or name in _OF_STAGE2
            waited = (c for c in grid.cells if not (broad and c.speech != "broad" or stage2 and c.stage != "stage2"))
            if any(measured(lab, c.name) for c in waited):
                continue
        told.setdefault(cell.name if cell else "what cells share", []).append(seconds_of(grid, step) / workers)
    return [(what, len(seconds), sum(seconds)) for what, seconds in told.items()]


def labs(root: Path | str, name: str) -> dict[int, Path]:
    """The labs of a study that hold something, by seed."""
    found = {}
    for path in sorted((Path(root) / "studies" / name).glob("seed-*/study.json")):
        found[int(path.parent.name.split("-")[1])] = path.parent
    return dict(sorted(found.items()))
