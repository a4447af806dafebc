"""A grid of cells over seeds: what `salad findings` and `salad sweep` run, at four sizes.

A seed is a lab of its own, `lab/studies/<name>/seed-<n>/`: world, teacher, recogniser, natural speech, Stage I, the
synthesised corpus and the probe are made once there, and every cell is a run of that lab under the cell's name. The
encoder, which hears nothing of the world, is one for all seeds. Everything can be interrupted, killed and resumed.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from salad import recipes
from salad.config import Frozen, RunConfig, apply_overrides
from salad.study.config import MiniatureStudy
from salad.study.graph import claim
from store import atomic

SHARES = 2  # of a seed's synthesis, so that two workers speak side by side
QUICK = ("stage1", "active", "uniform", "broad_alpha100", "broad_alpha0", "narrow_alpha0", "active_gamma5")
CURVE = (0.1, 0.2, 0.35, 0.55, 0.8)  # before the decay, which takes the last fifth: a power law takes four at least


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
    study: MiniatureStudy
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


def stage2(name: str, axes: str, tier: int, **fields: Any) -> Cell:
    """A Stage II cell of the tables named in `axes`, separated by spaces."""
    return Cell(name=name, axes=tuple(axes.split()), tier=tier, **fields)


def cells() -> tuple[Cell, ...]:
    """The grid that `salad findings` runs. A tier is a step that judges further claims, those that cost least first: a
    study cut short has as many claims as its time allows, each on every seed."""
    full = {"llm.finetune": "full", "optim.lr_llm": 5e-4}

    def stage1(speech: str, alpha: float, tier: int) -> Cell:
        return Cell(name=f"{speech}_alpha{100 * alpha:.0f}", axes=("alpha",), tier=tier, stage="stage1", speech=speech,
                    overrides={"objective.alpha": alpha})  # fmt: skip

    def hours(arm: str, h: float, tier: int) -> Cell:
        return stage2(f"{arm}_hours{h:g}", "hours", tier, strategy=arm, hours=h)

    def rounds(n: int, tier: int) -> Cell:
        return stage2(f"active_rounds{n}", "rounds strategy", tier, strategy="active_rounds", rounds=n)

    def divergence(name: str, tier: int) -> Cell:
        return stage2(f"active_{name}", "divergence", tier, overrides={"objective.divergence": name})

    return (
        Cell(name="stage1", axes=("alpha", "arms"), stage="stage1"),
        stage2("active", "arms strategy gamma k hours rounds span divergence finetune faults", 0),
        stage2("uniform", "arms strategy gamma hours finetune faults", 0, strategy="uniform"),
        stage1("broad", 1.0, 1), stage1("broad", 0.0, 2), stage1("narrow", 0.0, 3), stage1("broad", 0.5, 4),
        stage2("active_gamma5", "gamma", 5, gamma=5.0),
        rounds(2, 6),
        hours("uniform", 2.0, 7), hours("uniform", 0.5, 8),
        stage2("teacher_nll", "strategy", 9, strategy="teacher_nll"),
        stage2("active_filtered", "faults", 10, filtered=True),
        stage2("sample_level", "strategy", 11, strategy="sample_level"),
        divergence("reverse_kl", 12), divergence("jsd", 13),
        Cell(name="stage1_full", axes=("finetune",), tier=14, stage="stage1", overrides=full),
        stage2("active_full", "finetune", 14, parent="stage1_full", overrides=full),
        stage2("oracle", "strategy", 15, strategy="oracle"),
        rounds(4, 16),
        # what follows stands in tables only: no claim rests on it alone
        stage1("narrow", 0.5, 17), stage2("active_gamma1", "gamma", 18, gamma=1.0),
        stage2("active_k8", "k", 19, n_clusters=8), stage2("active_k32", "k", 19, n_clusters=32),
        stage2("uniform_clusters", "strategy", 20, strategy="uniform_clusters"),
        stage2("active_shrunk", "strategy", 20, strategy="active_shrunk"),
        stage2("marginal", "strategy", 20, strategy="marginal"),
        stage2("uniform_filtered", "faults", 21, strategy="uniform", filtered=True),
        stage2("uniform_full", "finetune", 22, strategy="uniform", parent="stage1_full", overrides=full),
        hours("active", 0.5, 23), hours("active", 2.0, 23),
        stage1("narrow", 0.25, 24), stage1("broad", 0.25, 24), stage1("narrow", 0.75, 24), stage1("broad", 0.75, 24),
        *(stage2(f"active_span{low}to{high}", "span", 25, overrides={"sequences.span_units": [low, high]})
          for low, high in ((1, 2), (4, 12))),
    )  # fmt: skip


def sized(study: MiniatureStudy, world: dict, budget_h: float, stage1: dict, stage2: dict) -> MiniatureStudy:
    """The study with other sizes of its world, its budget, and the optimisation of both stages."""

    def optim(run: RunConfig, update: dict) -> RunConfig:
        return run.model_copy(update={"optim": run.optim.model_copy(update=update)})

    return study.model_copy(update={
        "world": study.world.model_copy(update=world), "budget_h": budget_h,
        "stage1": optim(study.stage1, stage1), "stage2": optim(study.stage2, stage2),
    })  # fmt: skip


def full(name: str = "findings") -> Grid:
    """Every cell at the demo's own sizes: hours on two cores."""
    return Grid(name=name, study=recipes.miniature(), cells=cells())


def half(name: str = "findings-half") -> Grid:
    """Every cell, at about half the demo's text, speech and items, a fifth to a half of its steps."""
    study = sized(
        recipes.miniature(),
        world={"natural": {"stories": 450}, "broad": 2000, "heldout_per_domain": 24, "items_per_domain": 32},
        budget_h=1.0,
        stage1={"steps": 300, "warmup": 20, "decay": 60, "checkpoint_every": 300},
        stage2={"steps": 300, "warmup": 15, "decay": 180, "checkpoint_every": 300},
    )
    return Grid(name=name, study=study, cells=cells(), curve=CURVE[1:])


def quick(name: str = "findings-quick") -> Grid:
    """The cells that the main claims need, with less text, less speech and fewer steps than the demo's."""
    study = sized(
        recipes.miniature(),
        world={"natural": {"stories": 300}, "broad": 1200, "heldout_per_domain": 16, "items_per_domain": 32},
        budget_h=0.6,
        stage1={"steps": 240, "warmup": 20, "decay": 48, "checkpoint_every": 240},
        stage2={"steps": 200, "warmup": 10, "decay": 100, "checkpoint_every": 200},
    )
    chosen = tuple(cell for cell in cells() if cell.name in QUICK)
    return Grid(name=name, study=study, cells=chosen, probe=48, curve=CURVE[1:])


def smoke(name: str = "findings-smoke") -> Grid:
    """The smallest that goes through every kind of cell; its figures mean nothing."""
    world = {"pretrain_per_domain": 60, "natural": {"stories": 24}, "broad": 160, "heldout_per_domain": 4, "items_per_domain": 4}
    tiny = {"steps": 8, "warmup": 1, "decay": 2, "checkpoint_every": 8, "batch": 4}
    study = sized(recipes.miniature().smoke(), world, budget_h=0.03, stage1=tiny, stage2=tiny)
    wanted = ("stage1", "active", "uniform", "broad_alpha0", "teacher_nll", "active_k8", "active_rounds2", "active_jsd")
    grid = Grid(name=name, study=study, cells=tuple(c for c in cells() if c.name in wanted), seeds=(0, 1), probe=16)
    return grid.model_copy(update={"curve": (0.34,)})


def study_of(grid: Grid, seed: int) -> MiniatureStudy:
    """The study at a seed; the encoder's seed stays the grid's own."""
    return grid.study.seeded(seed).model_copy(update={"encoder": grid.study.encoder})


def run_config(config: MiniatureStudy, cell: Cell) -> RunConfig:
    """The cell's training, without its parent and selection."""
    base = config.stage1 if cell.stage == "stage1" else config.stage2
    if cell.speech == "broad":
        base = base.model_copy(update={"data": base.data.model_copy(update={"natural": ("natural_broad",)})})
    return apply_overrides(base.model_copy(update={"contender": cell.name}), cell.overrides)


def claim_labs(grid: Grid, root: Path | str) -> None:
    """Make every seed's lab this study's, or find that it is; the grid's cells and sizes stand in study.json."""
    for seed in grid.seeds:
        lab = grid.lab(root, seed)
        claim(lab, study_of(grid, seed))
        record = atomic.load_json(lab / "study.json")
        wanted = {"grid": grid.name, "cells": [cell.model_dump(mode="json") for cell in grid.cells]}
        if {key: record.get(key) for key in wanted} != wanted:
            atomic.write_json(lab / "study.json", record | wanted)


def labs(root: Path | str, name: str) -> dict[int, Path]:
    """The labs of a study that hold something, by seed."""
    found = {}
    for path in sorted((Path(root) / "studies" / name).glob("seed-*/study.json")):
        found[int(path.parent.name.split("-")[1])] = path.parent
    return dict(sorted(found.items()))
