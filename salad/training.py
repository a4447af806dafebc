"""Training, Stage I and II: distil the text LLM into its speech-adapted copy.

Run one with `python launch_gpu.py RECIPE`; what that starts is `python -m salad.training --lab LAB RUN_ID`, which runs
or resumes the run whose config.json lies in lab/runs/RUN_ID. Exit status: 0 done, 75 preempted (SIGTERM, checkpoint
written), anything else failed.
"""

import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch

import store
from salad import checkpoints
from salad.config import RunConfig, validate
from salad.data import corpora
from salad.data.loading import Encoded, Loader
from salad.errors import SaladError
from salad.models.speech_lm import SpeechLM
from salad.runs import RunFolder, renewing, running

Progress = Callable[[int, int, dict], None]


def decay_start(config: RunConfig) -> int:
    """The step before the learning rate's decay, whose checkpoint Stage II starts from."""
    return config.optim.steps - config.optim.decay


def learning_rate(config: RunConfig, step: int) -> float:
    """Warm-up–stable–decay: the factor on the learning rates at `step` (from 0), in [0, 1]."""
    optim = config.optim
    up = (step + 1) / optim.warmup if step < optim.warmup else 1.0
    down = (optim.steps - step) / optim.decay if step >= decay_start(config) else 1.0
    return min(up, down, 1.0)


def resolve(lab: Path | str, config: RunConfig) -> RunConfig:
    """The configuration with its parent named by run id and its selection frozen, as a run stores it.

    `parent="stage1"` is the lab's newest finished Stage I run. A selection that was only drawn is frozen: its texts
    that are kept and synthesised become a child selection (METHOD.md, "From selection to training, exactly").
    """
    update: dict = {}
    with_store = store.connect(lab)
    if config.parent is not None and not config.parent.startswith("r"):
        row = with_store.execute(
            "select run_id from runs where kind = ? and status = 'done' order by ended_at desc, run_id limit 1",
            [config.parent],
        ).fetchone()
        if row is None:
            raise SaladError(f"parent: {lab} has no finished {config.parent} run; train one first, or name a run id")
        update["parent"] = row[0]
    elif config.parent is not None:
        RunFolder.open(lab, config.parent)
    if config.selection is not None:
        from salad.selection import frozen

        update["selection"] = frozen(lab, config.selection)
    return config.model_copy(update=update)


def prepare(lab: Path | str, config: RunConfig, recipe: str, repetition: int = 0) -> RunFolder:
    """The run's folder, made or found again: the same configuration again resumes its run."""
    config = resolve(lab, config)
    return RunFolder.create(
        lab, config.kind, recipe, config.model_dump(mode="json"), config.parent, config.selection, repetition
    )


def start_model(lab: Path | str, config: RunConfig) -> SpeechLM:
    """A new student, or for a run with a parent the parent's checkpoint from before its decay."""
    if config.parent is None:
        return SpeechLM.build(config, lab)
    parent = RunFolder.open(lab, config.parent)
    parent_config = validate(RunConfig, parent.config)
    return SpeechLM.child(checkpoints.at(parent.path, decay_start(parent_config)) / "model", config, lab)


def load_data(lab: Path | str, config: RunConfig, model: SpeechLM) -> Loader:
    """What the run trains on: natural speech, a selection's syntheses, and texts for the text-only batches."""
    con = store.connect(lab)
    natural = corpora.of_speech(con, list(config.data.natural))
    selected = corpora.of_selection(con, config.selection) if config.selection else []
    texts = corpora.texts(lab, list(config.data.text)) if config.data.p_text else []
    encoded = Encoded(lab, model.prompt, model.encoder)
    return Loader(config, encoded, natural, selected, model.prompt.write_all(texts))


def train(lab: Path | str, run_id: str, progress: Progress | None = None) -> None:
    """Run or resume a run to its end. Raises SaladError, or `salad.runs.Preempted` after a checkpoint."""
    run = RunFolder.open(lab, run_id)
    config = validate(RunConfig, run.config)
    if config.threads:
        torch.set_num_threads(config.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
    with renewing(lab), running(run, device=name):
        _train(lab, run, config, device, progress)


def _train(lab, run: RunFolder, config: RunConfig, device, progress: Progress | None) -> None:
    optim = config.optim
    found = checkpoints.latest(run.path)
    model = SpeechLM.from_pretrained(found / "model", lab) if found else start_model(lab, config)
    model.to(device).train()
    adapter = [p for p in model.adapter.parameters() if p.requires_grad]
    llm = [p for p in model.llm.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [{"params": adapter, "lr": optim.lr_adapter}, {"params": llm, "lr": optim.lr_llm}],
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    loader = load_data(lab, config, model)
    state = {"step": 0, "tokens": 0}
    if found:
        state = checkpoints.restore(found, optimizer)
        loader.state = state["loader"]
        run.log(f"resumed from {found.name}")
    step, tokens = state["step"], state["tokens"]
    kept = {*optim.keep, *([decay_start(config)] if config.kind == "stage1" else [])}
    metrics = run.metrics_writer(step + 1)
    window: dict[str, list[float]] = defaultdict(list)
    since, tokens_since = time.monotonic(), tokens

    def save() -> None:
        checkpoints.save(run.path, step, model, optimizer, {"tokens": tokens, "loader": loader.state})
        checkpoints.prune(run.path, kept | {step})

    while step < optim.steps:
        factor = learning_rate(config, step)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = (
            optim.lr_adapter * factor,
            optim.lr_llm * factor,
        )
        batch, source = loader.next()
        out = model(batch.to(device), **config.objective.model_dump())
        out.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(adapter + llm, optim.clip)
        loss = out.loss.item()
        if not math.isfinite(loss):
            raise SaladError(f"the loss is {loss} at step {step + 1}; samples: {', '.join(batch.sample_ids)}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + batch.tokens
        window["loss"].append(loss)
        window[f"d_{source}"].append(out.d.item())
        window["nll"].append(out.nll.item())
        window["grad_norm"].append(norm.item())
        if step % optim.log_every == 0 or step == optim.steps:
            now = time.monotonic()
            means = {name: sum(values) / len(values) for name, values in window.items()}
            rate = (tokens - tokens_since) / max(now - since, 1e-9)
            metrics.log(step, tokens, **means, lr=optim.lr_adapter * factor, tokens_per_s=rate)
            run.status(step=step, max_steps=optim.steps, tokens=tokens)
            since, tokens_since = now, tokens
            window.clear()
            if progress is not None:
                progress(step, optim.steps, means)
        end = run.should_stop()
        if step in kept or step % optim.checkpoint_every == 0 or step == optim.steps or end is not None:
            save()
        if end is not None and step < optim.steps:
            metrics.close()
            raise end
    metrics.close()
    run.status(step=step, max_steps=optim.steps, tokens=tokens)


def main(arguments: list[str] | None = None) -> int:
    """`python -m salad.training --lab LAB RUN_ID`"""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m salad.training", description=__doc__.splitlines()[0])
    parser.add_argument("run_id")
    parser.add_argument("--lab", default=os.environ.get("SALAD_LAB", "lab"))
    options = parser.parse_args(arguments)

    def told(step: int, steps: int, means: dict) -> None:
        values = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        print(f"step {step}/{steps} {values}", flush=True)

    try:
        train(options.lab, options.run_id, told)
    except store.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
