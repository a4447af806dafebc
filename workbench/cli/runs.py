"""`salad train`, `plan`, `pass` and `select`: the steps of a study."""

from typing import Annotated, Literal

import tyro

from workbench.cli.app import Lab, Set, command, progress_bar


@command
def train(recipe: tyro.conf.Positional[str], *, lab: Lab = None, overrides: Set = []) -> int:  # noqa: B006
    """Train a recipe (or a run's config.json) in this process; rerun the command to resume. To train elsewhere: launch_gpu.py.

    Args:
        recipe: name of a recipe, such as miniature_stage2, or path of a run's config.json.
    """
    import store
    from salad import training
    from salad.config import apply_overrides, parse_set
    from salad.engines import configuration

    config, name = configuration(recipe)
    config = apply_overrides(config, parse_set(overrides))
    run = training.prepare(store.lab_path(lab), config, name)
    with progress_bar(run.run_id) as progress:
        training.train(run.lab, run.run_id, lambda step, steps, _: progress(step, steps))
    print(f"{run.run_id} done: {run.path}")
    return 0


@command
def plan(
    recipe: tyro.conf.Positional[str],
    *,
    lab: Lab = None,
    gpu: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None,
    overrides: Set = [],  # noqa: B006
) -> int:
    """Estimate what a recipe will cost: GPU hours, hours of TTS, downloads and disk, with one row per stage.

    The speed is the one that this lab has measured for the same model, or an assumption; the notes below the table say
    which.

    Args:
        recipe: qwen2_5_3b for both stages, qwen2_5_3b_stage1 for one, or the path of a run's config.json.
        gpu: GPU whose speed is assumed if none was measured, such as H100 or "RTX 4090".
    """
    import dataclasses

    import pyarrow as pa

    import store
    from salad import plan
    from salad.config import apply_overrides, parse_set
    from workbench import tables

    options, where = parse_set(overrides), store.lab_path(lab)
    costs = [plan.cost(where, name, apply_overrides(config, options), gpu) for name, config in plan.stages(recipe)]
    rows = [{k: f"{v:,.1f}" if isinstance(v, float) else v for k, v in dataclasses.asdict(cost).items()} for cost in costs]
    tables.show(pa.Table.from_pylist(rows).drop_columns("notes"))
    for cost in costs:
        print(f"\n{cost.stage}", *(f"- {note}" for note in cost.notes), sep="\n")
    return 0


def _spans(text: str) -> list[int]:
    """The shortest and the longest span, [5, 25], of the option's text "5,25". Raises SaladError for any other text."""
    from salad.errors import SaladError

    low, comma, high = text.partition(",")
    if not (comma and low.strip().isdigit() and high.strip().isdigit() and 1 <= int(low) <= int(high)):
        raise SaladError(f"--spans {text}: write the shortest span, at least 1, and the longest, such as 5,25")
    return [int(low), int(high)]


@command(name="pass")
def pass_(
    what: tyro.conf.Positional[Literal["embed", "cluster", "probe", "synthesise", "check", "score", "encode"]],
    *,
    lab: Lab = None,
    on: str | None = None,
    workers: int = 1,
    gpus: str | None = None,
    run: str | None = None,
    step: int | None = None,
    speech: str | None = None,
    corpus: str | None = None,
    model: str | None = None,
    k: int | None = None,
    clustering: str | None = None,
    per_cluster: int | None = None,
    selection: str | None = None,
    tts: str | None = None,
    voices: str | None = None,
    asr: str | None = None,
    encoder: str | None = None,
    dtype: Literal["float32", "float16"] | None = None,
    spans: str | None = None,
    yes: bool = False,
    seed: int | None = None,
) -> int:
    """Run a pass over the lab: embed or cluster a corpus, speak a probe or a selection, check, score or encode speech.

    The passes in the order of a study: embed computes a vector for each text of a corpus. cluster divides the texts into
    balanced clusters. probe speaks and checks some texts of each cluster. score measures M, F and D of spoken texts under
    a checkpoint; then `salad select` draws a selection. synthesise speaks and checks the selection. check transcribes
    existing speech with another recogniser. encode keeps an encoder's frames on disk.

    A pass skips finished work and repeats damaged work: rerun the command to resume. With --on, the pass runs there with
    the given number of workers; Ctrl-C then only stops watching it, and launch_gpu.py shows, stops and resumes it.

    Args:
        what: the pass.
        on: where to run: here, slurm, ssh:HOST or the name of a target (default: in this process).
        workers: number of parallel workers; each does one shard of the work.
        gpus: GPUs per worker: a number or TYPE:NUMBER (default: the target's).
        run: score, encode: the run (default: the newest Stage I).
        step: score: the checkpoint, by its step (default: the run's last).
        speech: score, check, encode: folder in lab/speech, such as heldout, probe or natural; probe: the folder it writes
            (default: the pass's own).
        corpus: embed, cluster: the corpus (default: broad).
        model: embed, cluster: teacher, or a sentence-transformers model by name (default: teacher).
        k: cluster: number of clusters (default: 16).
        clustering: probe: the clustering (default: the newest).
        per_cluster: probe: number of texts per cluster (default: 6).
        selection: synthesise: id of the selection (l...).
        tts: probe, synthesise: espeak, kokoro, or package.module:name (default: espeak).
        voices: probe, synthesise: comma-separated voices; a probe is spoken in each of them (default: the TTS's own).
        asr: probe, synthesise, check: the recogniser (default: lab/models/recogniser).
        encoder: encode: a causal encoder by name (default: the run's).
        dtype: encode: data type of the frames on disk; training computes in float32 (default: float32).
        spans: score: shortest and longest span in units, such as 5,25 (default: those of the run's Stage I).
        yes: encode: proceed even if the frames take more than 50 GB.
        seed: random seed of the patterns, the clustering, the texts or the voices (default: 0).
    """
    import store
    from salad.errors import SaladError
    from salad.passes.run import launch, prepare, run_here

    if what == "synthesise" and selection is None:
        raise SaladError('say which with --selection l...; `salad sql "from selections"` shows them')
    given = {
        "run_id": run, "step": step, "speech": speech, "corpus": corpus, "model": model, "k": k, "seed": seed,
        "clustering": clustering, "per_cluster": per_cluster, "selection": selection, "tts": tts, "asr": asr,
        "voices": voices and voices.split(","), "encoder": encoder, "dtype": dtype,
        "span_units": spans and _spans(spans),
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    folder = prepare(store.lab_path(lab), what, options, yes)
    if on is None and workers == 1:
        with progress_bar(what) as progress:
            summary = run_here(folder, progress)
        print(summary)
        return 0
    handle = launch(folder, on or "here", workers, gpus)
    print(f"{folder.run_id} on {on or 'here'}, {workers} workers: python launch_gpu.py logs {folder.run_id} --follow")
    return _watch(handle, what)


def _watch(handle, title: str) -> int:
    """Follow a launched run until it ends. Returns 0 if it is done, 130 on Ctrl-C; raises SaladError if it failed."""
    from salad.errors import SaladError

    try:
        with progress_bar(title) as progress:
            while (status := handle.wait(0.5))["state"] not in ("done", "failed", "stopped"):
                if status.get("max_steps"):
                    progress(status["step"], status["max_steps"])
    except KeyboardInterrupt:
        print(f"the run continues; stop it with: python launch_gpu.py stop {handle.run_id}")
        return 130
    if status["state"] != "done":
        raise SaladError(f"{handle.run_id} {status['state']}: {status.get('error')}")
    messages = [line.split(" ", 1)[1] for line in handle.logs().splitlines() if line[:2] == "20"]
    print(messages[-1] if messages else "done")
    if not handle.engine.shares_lab:
        fetched = handle.fetch()
        print(f"{fetched['units']} units are here and complete" + "".join(f"; damaged: {line}" for line in fetched["damaged"]))
    return 0


@command
def select(
    *,
    lab: Lab = None,
    clustering: str | None = None,
    run: str | None = None,
    step: int | None = None,
    strategy: str = "active",
    gamma: float = 2.0,
    budget: float = 1.6,
    seed: int = 0,
    max_cer: float | None = None,
    speech: str | None = "probe",
    parent: str | None = None,
    round: int | None = None,
) -> int:
    """Draw a selection: choose the texts that are worth synthesising, up to a budget in hours.

    Args:
        clustering: the clustering (default: the newest).
        run: the run whose divergences steer the draw (default: the newest Stage I).
        step: its checkpoint, by its step (default: the last).
        strategy: active, active_shrunk, active_rounds, uniform, uniform_clusters, teacher_nll, sample_level, marginal,
            oracle, or package.module:name.
        gamma: exponent on d_cluster; the paper uses 5.
        budget: hours of speech; for a round, including all earlier rounds.
        seed: random seed of the draw.
        max_cer: leave out clusters whose probe has a higher mean character error rate (default: no limit).
        speech: folder in lab/speech that contains the probe.
        parent: active_rounds: the selection that the previous round was trained on.
        round: active_rounds: number of the round, starting at 1.
    """
    import store
    from salad import lookup, selection
    from workbench import tables

    lab = store.lab_path(lab)
    clustering = clustering or lookup.newest_clustering(lab)
    run = run or lookup.newest_run(lab, "stage1")
    step = lookup.checkpoint(lab, run, step).step
    made = selection.select_with_notes(lab, clustering, run, step, strategy, gamma, budget, seed, max_cer, speech, parent, round)
    store.renew(lab)
    print("\n".join([f"selection {made.selection_id}: {made.hours:.2f} h by {strategy}", *made.notes]))
    tables.show(
        store.query(
            lab,
            f"""select k.cluster_id as cluster, array_to_string(terms[:4], ' ') as terms,
            round(k.p_web, 3) as p_web, round(d_cluster, 3) as d, rank, round(d_adjusted, 3) as d_adjusted,
            rank_adjusted, round(cer, 2) as cer, round(text_share, 2) as text_share, round(p_target, 3) as p_target,
            round(p_target_low, 3) || '–' || round(p_target_high, 3) as interval,
            texts, round(seconds / 3600, 3) as hours, coalesce(left_out, if(dry, 'dry', '')) as note
        from selection_clusters k join selections using (selection_id) left join clusters c
            on c.clustering_id = selections.clustering_id and c.cluster_id = k.cluster_id
        where selection_id = '{made.selection_id}' order by rank nulls last, 1""",
        ),
        None,
    )
    return 0
