"""Starts a run on a target: `launch` from a recipe, `launch_run` from a run's folder that is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from salad import parts
from salad.engines import codesync
from salad.engines.base import load
from salad.engines.gres import parse_gpus
from salad.engines.handle import Run, start
from salad.engines.spec import Spec, secrets
from salad.engines.targets import Target, resolve
from salad.errors import SaladError
from salad.runs import RunFolder

if TYPE_CHECKING:
    from salad.config import RunConfig


def launch(
    recipe: str | Path | RunConfig,
    on: str | None = None,
    overrides: dict | None = None,
    lab: Path | str | None = None,
    *,
    gpus: str | int | None = None,
    nodes: int = 1,
    max_hours: float | None = None,
    budget: float | None = None,
    max_hourly_cost: float | None = None,
    stall_minutes: float = 15.0,
    again: bool = False,
    dry_run: bool = False,
    targets: str | Path | None = None,
) -> Run | str:
    """Start a run and return its handle. Repeated with the same configuration, resume its run, or return it if it is alive.

    recipe: a name of `salad.recipes`, a run's config.json, or a RunConfig. on: here, ssh:HOST, slurm, sky, or a
    target's name; None takes the default of targets.toml, else here. overrides: {"a.b": value}. gpus: per node, a
    number or TYPE:NUMBER. max_hours, budget, max_hourly_cost: hard limits, over all attempts; the last refuses a
    dearer target. again: another run of the same configuration. dry_run: return what would be done, start nothing.
    Raises SaladError in one line, with nothing started and nothing left behind."""
    import store
    from salad.config import RunConfig, apply_overrides

    config, name = configuration(recipe)
    config = apply_overrides(config, overrides or {}) if isinstance(config, RunConfig) else config
    lab = store.lab_path(lab)
    before = _listing(lab)
    on, target = resolve(on, targets)
    engine = load(target)
    fields = _fields(on, engine, gpus, nodes, max_hours, budget, max_hourly_cost, stall_minutes)
    engine.preflight(Spec(run_id="r000000000000", **fields))
    from salad import training  # imports torch: not before what costs nothing was checked

    if again:
        resolved, repetition = training.resolve(lab, config), 0
        dumped = resolved.model_dump(mode="json")
        while (lab / "runs" / store.ids.run_id(dumped, resolved.parent, repetition)).exists():
            repetition += 1
        run = training.prepare(lab, config, name, repetition, dry_run)
    else:
        run = training.prepare(lab, config, name, dry_run=dry_run)
    try:
        return launch_run(run, dry_run=dry_run, **fields)
    except BaseException:
        _remove_new(lab, before, run)
        raise
    finally:
        if dry_run:
            _remove_new(lab, before, run)


def launch_run(
    run: RunFolder, on: str, target: Target, dry_run: bool = False, module: str = "salad.training", **fields
) -> Run | str:
    """Start a run whose folder is there. `module` is what runs, with `--lab LAB RUN_ID`; `workers=N` starts N of it,
    each with `--shard i/N`. Other fields: those of `Spec`."""
    parts.trust(target.engine)
    parts.allow_module(module)
    spec = Spec(run_id=run.run_id, on=on, module=module, **({"engine": target.engine, "target": target} | fields))
    engine = load(target)
    engine.preflight(spec)
    if dry_run:
        code, _ = codesync.describe(codesync.ROOT)
        return "\n".join([engine.plan(run, spec), *(f"# {line}" for line in codesync.summary(code))])
    secrets(spec.env)
    if Spec.of(run) is not None:
        earlier = Run(run)
        state = earlier.status()["state"]
        if state == "done" or earlier.lives():
            return earlier
        if earlier.spec is not None and earlier.spec.on == on:
            return earlier.resume(**{k: v for k, v in fields.items() if k in Spec.model_fields}, target=target)
    spec = spec.model_copy(update={"code": codesync.record(run, codesync.ROOT)})
    spec.save(run)
    for line in codesync.summary(spec.code):
        run.log(line)
    (run.path / "stop").unlink(missing_ok=True)
    start(engine, run, spec)
    return Run(run, spec)


def configuration(recipe: str | Path | RunConfig) -> tuple[RunConfig, str]:
    """(configuration, name) of a recipe's name, a run's config.json, or a RunConfig."""
    from salad import recipes
    from salad.config import RunConfig, validate

    if isinstance(recipe, RunConfig):
        return recipe, recipe.contender
    path = Path(recipe)
    if path.suffix != ".json":
        return recipes.get(str(recipe)), str(recipe)
    try:
        record = json.loads(path.read_text())
    except (OSError, RecursionError, ValueError) as error:
        raise SaladError(f"{path}: {getattr(error, 'strerror', None) or 'it is not JSON'}") from None
    if not isinstance(record, dict):
        raise SaladError(f"{path}: it is not a run's config.json")
    config = validate(RunConfig, record.get("config", record))
    parts.check(config.encoder.name, str(path))
    return config, record.get("recipe") or path.stem


def _fields(on, engine, gpus, nodes, max_hours, budget, max_hourly_cost, stall_minutes) -> dict:
    """The launch's fields of Spec, with what a person gave checked for sense."""
    kind, number = parse_gpus(gpus)
    for label, value in (
        ("--nodes", nodes),
        ("--max-hours", max_hours),
        ("--budget", budget),
        ("--max-hourly-cost", max_hourly_cost),
        ("--stall-minutes", stall_minutes),
    ):
        if value is not None and value <= 0:
            raise SaladError(f"{label} {value:g}: must be more than 0")
    target = engine.target
    price = target.price_per_hour * nodes
    if max_hourly_cost is not None and not engine.knows_prices and price > max_hourly_cost:
        raise SaladError(f"--max-hourly-cost {max_hourly_cost:g}: {on} costs {price:g} an hour")
    if budget is not None and not price and not engine.knows_prices:
        raise SaladError(f"--budget: {on} has no price_per_hour in targets.toml; set it, or give --max-hours")
    return {
        "on": on, "engine": target.engine, "target": target, "gpus": number, "gpu_type": kind, "nodes": nodes,
        "max_hours": max_hours, "budget": budget, "price_per_hour": price, "max_hourly_cost": max_hourly_cost,
        "stall_minutes": stall_minutes,
    }  # fmt: skip


def _listing(lab: Path) -> set[str] | None:
    """The lab's runs before a launch; None where there is no lab yet."""
    return {path.name for path in (lab / "runs").glob("*")} if lab.exists() else None


def _remove_new(lab: Path, before: set[str] | None, run: RunFolder) -> None:
    if run.run_id not in (before or ()):
        shutil.rmtree(run.path, ignore_errors=True)
    if before is None:
        for folder in (lab / "runs", lab):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
