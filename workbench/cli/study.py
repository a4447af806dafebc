"""`salad study`: a study of any size, whole, by one command."""

import os
from pathlib import Path
from typing import Annotated

import tyro

from workbench.cli.app import Lab, Set, command

Folder = Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
Step = Annotated[str | None, tyro.conf.arg(metavar="STEP", help_behavior_hint="")]


@command
def study(
    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = "",
    *,
    lab: Lab = None,
    models: Folder = None,
    data: Folder = None,
    seeds: Annotated[str | None, tyro.conf.arg(metavar="N,N", help_behavior_hint="")] = None,
    smoke: bool = False,
    dry_run: bool = False,
    until: Step = None,
    only: Step = None,
    again: Step = None,
    reviewed: bool = False,
    pack: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None,
    from_: Annotated[str | None, tyro.conf.arg(name="from", metavar="FILE", help_behavior_hint="")] = None,
    workers: int = 2,
    overrides: Set = [],  # noqa: B006
) -> int:
    """Run a whole study: material, Stage I, divergences, active selection, synthesis, Stage II, evaluation, table.

    Interrupt it when you like: rerun the command to resume. Studies by name: miniature (what `salad demo` runs), first_cpu,
    first_gpu, salad_3b, salad_7b; or a file of your own (docs/studies.md).

    Args:
        name: a study's name, a .toml, .json or .py file, or package.module:function.
        models: a folder with models, each in a folder named by the last part of its hub name in lower case, which are taken
            instead of downloads (default: $SALAD_MODELS).
        data: the folder under which the study's sources lie (default: $SALAD_DATA).
        seeds: comma-separated; the first fills the lab, others studies/NAME/seed-N below it (default: the study's own).
        smoke: the smallest sizes, minutes, to see that everything runs; its figures mean nothing.
        dry_run: print the steps: what is done, hours, GB and money of each, and what would be downloaded; start nothing.
        until: stop after this step and what it needs.
        only: this step alone; what it needs must be done.
        again: train this stage afresh, as a further run; what follows from it is made anew.
        reviewed: say that a person has reviewed the selections, and go on to Stage II.
        pack: write what a reader needs to repeat the study (configuration, versions, ids, rows, tables, licences), and stop.
        from_: instead of NAME: repeat the study of a pack.
        workers: steps side by side.
    """
    import store
    from salad.config import apply_overrides, parse_set
    from salad.errors import SaladError
    from salad.study.config import Study
    from salad.study.load import load
    from workbench.cli import study_run

    if bool(name) == bool(from_):
        raise SaladError("say which study: a name (`salad study first_cpu`), a file, or --from PACK; not both")
    if workers < 1:
        raise SaladError(f"--workers {workers}: must be 1 or more")
    for variable, folder, option in (("SALAD_MODELS", models, "--models"), ("SALAD_DATA", data, "--data")):
        if folder is not None:
            if not Path(folder).is_dir():
                raise SaladError(f"{option} {folder}: there is no such folder")
            os.environ[variable] = str(Path(folder).resolve())
    config = load(from_ or name)
    config = config.smoke() if smoke else config
    config = apply_overrides(config, parse_set(overrides))
    if seeds is not None:
        config = study_run.with_seeds(config, seeds)
    path = store.lab_path(lab)
    if dry_run:
        study_run.show_plan(path, config)
        return 0
    if pack is not None:
        from workbench.reports.pack import pack_study

        print(pack_study(path, config, pack))
        return 0
    if reviewed:
        study_run.mark_reviewed(path, config)
    real = isinstance(config, Study)
    return study_run.run_study(path, config, smoke=smoke, until=until, only=only, again=again, workers=workers, real=real,
                               keep_going=real)  # fmt: skip
