"""The training loop, Stage I and II: from batch to update, to metrics, to checkpoint."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from salad import parts
from salad.config import RunConfig, validate
from salad.data.loading import ahead
from salad.models.speech_lm import SpeechLM
from salad.runs import Preempted, RunFolder, renewing, running
from salad.training import checkpoints
from salad.training.distributed import Processes
from salad.training.metrics import Meter
from salad.training.schedule import decay_start, learning_rate
from salad.training.start import check_unchanged, load_data, log_start, prepared, start_model, teacher_cache
from salad.training.step import one_step
from salad.training.warm_start import warm_start

Progress = Callable[[int, int, dict], None]


def train(lab: Path | str, run_id: str, progress: Progress | None = None) -> None:
    """Run or resume a run to its end. Raises SaladError, or `salad.runs.Preempted` after a checkpoint."""
    run = RunFolder.open(lab, run_id)
    config = validate(RunConfig, run.config)
    parts.check(config.encoder.name, f"{run.path / 'config.json'}")
    if config.threads:
        torch.set_num_threads(config.threads)
    processes = Processes()
    cuda = processes.device.type == "cuda"
    name = torch.cuda.get_device_name() if cuda else f"cpu ({torch.get_num_threads()} threads)"
    store_renewed = renewing(lab) if run.leader else contextlib.nullcontext()
    with store_renewed, running(run, device=name if processes.world == 1 else f"{processes.world} x {name}"), processes:
        _train(lab, run, config, processes, progress)


def _train(lab, run: RunFolder, config: RunConfig, processes: Processes, progress: Progress | None) -> None:
    optim = config.optim

    # where the run stands: its newest whole checkpoint, or its beginning
    newest = checkpoints.latest(run.path)
    state: dict[str, Any] = checkpoints.state_of(newest) if newest else {"step": 0, "tokens": 0}
    made_by = {"config": config.model_dump(mode="json"), "world_size": processes.world}
    check_unchanged(run.run_id, state.get("made_by"), made_by)
    model = SpeechLM.from_pretrained(newest / "model", lab) if newest else start_model(lab, config)
    model.to(processes.device)
    loader = load_data(lab, config, model, run.path / "data", processes)
    if not newest and config.kind == "stage1" and config.adapter.warm_start.steps:
        warm_start(model, loader.sources["natural"], loader.frames, config, run, progress)
    optimizer = prepared(model, config, processes)
    if newest:
        checkpoints.restore(newest, optimizer, processes)
        run.log(f"resumed from {newest.name}")
    loader.state = state.get("loader", loader.state)
    log_start(run, config, model, loader)
    cache = teacher_cache(lab, config, model, loader, processes, run) if config.objective.teacher_cache else None
    step, tokens, position = state["step"], state["tokens"], loader.state
    saved = step if newest else None
    kept = {*optim.keep, *([decay_start(config)] if config.kind == "stage1" else [])}  # Stage II starts before the decay

    def save() -> None:
        nonlocal saved
        if cache is not None:
            cache.write()
        if saved != step:
            about = {"tokens": tokens, "loader": position, "made_by": made_by}
            checkpoints.save(run.path, step, model, optimizer, about, processes)
            saved = step
            if run.leader:
                checkpoints.prune(run.path, kept | {step})

    with (
        contextlib.closing(ahead(loader, config.data.prefetch)) as steps,
        contextlib.closing(Meter(run, config, processes, model, step, tokens)) as meter,
    ):
        while step < optim.steps:
            # a step's samples, laid out and with their frames, made by a thread while the step before was trained
            with meter.waiting():
                taken = next(steps)

            # forward, backward and update; None: asked to end between two forward passes, with nothing changed
            result = one_step(model, optimizer, taken, config, step, loader.names, processes, run, cache)
            if result is None:
                save()
                raise run.should_stop() or Preempted()

            # only what was trained counts: a checkpoint goes on with the step after it, and with that step's samples
            step, tokens, position = step + 1, tokens + taken.tokens, taken.state
            means = meter.add(step, taken, result, learning_rate(config, step - 1))
            if means is not None and progress is not None and run.leader:
                progress(step, optim.steps, means)

            # all processes save together, so all must agree that one was asked to end
            ends = processes.any(run.should_stop() is not None)
            if step in kept or step % optim.checkpoint_every == 0 or step == optim.steps or ends:
                save()
            if ends and step < optim.steps:
                raise run.should_stop() or Preempted()
