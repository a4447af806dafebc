"""Run a grid: the steps that are left, tier by tier over all seeds, and about how long they take."""

from collections.abc import Callable, Iterable
from pathlib import Path

from salad.errors import SaladError
from salad.study import runner
from salad.study.grids import SHARES, Grid, claim_labs, run_config, study_of
from salad.study.notes import measured
from salad.study.runner import Step
from store import atomic


def plan(grid: Grid, root: Path | str, only: Iterable[str] | None = None) -> list[Step]:
    """The steps of what is not done, tier by tier over all seeds. `only` names cells; without it, all of them."""
    from salad.study import cells, steps

    wanted = None if only is None else set(only)
    unknown = (wanted or set()) - {cell.name for cell in grid.cells}
    if unknown:
        raise SaladError(f"no cell {sorted(unknown)[0]!r}; there are {', '.join(c.name for c in grid.cells)}")
    chosen = [c for c in grid.cells if (wanted is None or c.name in wanted)]
    parents = {c.parent for c in chosen if c.stage == "stage2"} | {"stage1"} if chosen else set()
    chosen = [c for c in grid.cells if c in chosen or c.name in parents]
    tiered: list[tuple[int, Step]] = []
    first = str(grid.lab(root, grid.seeds[0]).resolve())
    for seed in grid.seeds:
        lab, config = str(grid.lab(root, seed).resolve()), study_of(grid, seed)
        left = [cell for cell in chosen if not measured(lab, cell.name)]
        if not left and measured(lab, "teacher"):
            continue

        def step(tier, name, title, function, *after, arguments=(), seed=seed, lab=lab, config=config):
            tiered.append((tier, Step(f"{seed}:{name}", f"seed {seed}: {title}", function, (lab, config, *arguments),
                                     tuple(a if ":" in a else f"{seed}:{a}" for a in after))))  # fmt: skip

        step(-1, "world", "world", steps.world)
        source: str | None = None if lab == first else first
        after: tuple[str, ...] = () if source is None else (f"{grid.seeds[0]}:encoder",)
        if source is not None and not any(s.name == after[0] for _, s in tiered):
            after = ()  # the first lab has all it needs
        step(-1, "encoder", "encoder", cells.prepare_encoder, *after, arguments=(source,))
        step(-1, "teacher", "teacher", steps.teacher, "world")
        step(-1, "natural", "natural speech", steps.natural, "world")
        step(-1, "recogniser", "recogniser", steps.recogniser, "encoder", "world")
        step(-1, "spoken", "held-out and test speech", steps.spoken, "recogniser")
        step(-1, "frames", "encoder frames of natural speech", steps.encoder_frames, "encoder", "natural", arguments=("natural",))
        if not measured(lab, "teacher"):
            step(0, "measure_teacher", "the teacher's results", cells.measure_teacher, "teacher", "spoken")
        for cell in left:
            waits = ["teacher", "encoder", "frames"]
            if cell.stage == "stage1" and cell.speech == "broad":
                waits.append("frames_natural_broad")
            if cell.stage == "stage2":
                waits += ["probe", *(f"frames_{share}" for share in range(SHARES))]
                if not measured(lab, cell.parent):
                    waits.append(f"train_{cell.parent}")
            step(cell.tier, f"train_{cell.name}", f"train {cell.name}", cells.train_cell, *waits,
                 arguments=(cell, grid.curve, grid.n_clusters, grid.probe))  # fmt: skip
            step(cell.tier, f"measure_{cell.name}", f"measure {cell.name}", cells.finish_cell, f"train_{cell.name}", "spoken",
                 arguments=(cell,))  # fmt: skip
        names = {s.name for _, s in tiered}
        if any(c.speech == "broad" for c in left):
            step(0, "natural_broad", "broad-domain speech", cells.broad_speech, "world")
            step(0, "frames_natural_broad", "encoder frames of broad-domain speech", steps.encoder_frames, "encoder",
                 "natural_broad", arguments=("natural_broad",))  # fmt: skip
        if any(c.stage == "stage2" for c in left):
            shares = [f"broad_{share}" for share in range(SHARES)]
            for share, name in enumerate(shares):
                step(-1, name, f"synthesis, part {share + 1} of {SHARES}", cells.broad_synthesis, "recogniser", "world",
                     arguments=(share,))  # fmt: skip
                step(-1, f"frames_{share}", f"encoder frames, part {share + 1} of {SHARES}", steps.encoder_frames, "encoder",
                     name, arguments=(f"broad-{share}",))  # fmt: skip
            step(-1, "clusters", "clusters", cells.clusterings, "teacher", arguments=(grid.n_clusters,))
            waits = ["train_stage1"] if f"{seed}:train_stage1" in names else []
            step(-1, "probe", "divergences of the probe", cells.stage1_probe, "clusters", *shares, *waits,
                 arguments=(grid.n_clusters, grid.probe))  # fmt: skip
    return [made for _, made in sorted(tiered, key=lambda pair: pair[0])]


def run(grid: Grid, root: Path | str, watch: Callable, workers: int = 2, only: Iterable[str] | None = None) -> dict[str, str]:
    """Do what is left of a study, `workers` steps at a time; `watch` as in `salad.study.runner.run`.

    A cell that fails is written down with its error's last line, what waits for it too, and the others go on; running
    again tries it again. Returns what failed: "seed 0: active_k8" and the error."""
    claim_labs(grid, root)
    failed: dict[str, str] = {}

    def note_failures(event: str, step: Step, *details) -> None:
        if event == "failed":
            seed, name = step.name.split(":")
            cell = name.removeprefix("train_").removeprefix("measure_")
            error = (details[0].message.strip() or "no reason given").splitlines()[-1]
            if failed.setdefault(f"seed {seed}: {cell}", error) == error and cell in {*(c.name for c in grid.cells), "teacher"}:
                atomic.write_json(grid.lab(root, int(seed)) / ".study" / f"{cell}.failed.json", {"error": error})
        watch(event, step, *details)

    runner.run(plan(grid, root, only), workers, note_failures, keep_going=True)
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
OF_STAGE2 = {"clusters", "probe", *(f"frames_{share}" for share in range(SHARES))}  # with the parts of synthesis


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
        texts = natural if "natural" in name or name == "frames" else world.broad / SHARES
        return cost["started"] + texts * ITEM_TEXT_S / 3600 * cost["encoded"]
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
    left: dict[str, list[float]] = {}
    by_name = {cell.name: cell for cell in grid.cells}
    for step in plan(grid, root, only):
        lab, name = step.arguments[0], step.name.split(":")[1]
        cell = by_name.get(name.removeprefix("train_").removeprefix("measure_"))
        if cell is None and name != "measure_teacher":
            broad, stage2 = "natural_broad" in name, name.startswith("broad_") or name in OF_STAGE2
            waited = (c for c in grid.cells if not (broad and c.speech != "broad" or stage2 and c.stage != "stage2"))
            if any(measured(lab, c.name) for c in waited):
                continue
        left.setdefault(cell.name if cell else "what cells share", []).append(seconds_of(grid, step) / workers)
    return [(what, len(seconds), sum(seconds)) for what, seconds in left.items()]
