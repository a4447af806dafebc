"""Training, Stage I and II: distil the text LLM into its speech-adapted copy.

Run one with `python launch_gpu.py RECIPE`; what that starts is `python -m salad.training --lab LAB RUN_ID`, under torchrun
where there are several GPUs, which runs or resumes the run whose config.json lies in lab/runs/RUN_ID. Exit status: 0 done,
75 preempted (SIGTERM, checkpoint written), anything else failed.
"""

import contextlib
import math
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

import store
from salad import checkpoints, lookup
from salad.config import RunConfig, validate
from salad.data import corpora
from salad.data.frames import Frames
from salad.data.loading import Encoded, Loader, Step, ahead
from salad.distributed import Processes, whole
from salad.errors import SaladError
from salad.models.speech_lm import SpeechLM
from salad.runs import Preempted, RunFolder, renewing, running

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
    if config.parent is not None and not config.parent.startswith("r"):
        update["parent"] = lookup.newest_run(lab, config.parent, "train one first, or name a run id as `parent`")
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


def load_data(
    lab: Path | str, config: RunConfig, model: SpeechLM, folder: Path | None = None, processes: Processes | None = None
) -> Loader:
    """What the run trains on: natural speech, a selection's syntheses, and texts for the text-only batches.

    Which recordings and texts they are is written down once in `folder` and read from there (without one, held in
    memory): a resumed run goes on with the same, though the lab has grown."""
    processes = processes or Processes()
    index = lambda name: None if folder is None else folder / f"{name}.arrow"  # noqa: E731

    def read():
        con = store.connect(lab)
        natural = corpora.recordings(con, list(config.data.natural), index("natural"))
        selected = corpora.selected(con, config.selection, index("selected")) if config.selection else []
        texts = corpora.text_rows(lab, list(config.data.text), index("text")) if config.data.p_text else []
        return natural, selected, texts

    first, failure = None, None
    try:
        first = read() if processes.rank == 0 else None  # the others read what the first has written
    except SaladError as error:
        failure = error
    processes.agree(failure)
    natural, selected, texts = first or read()
    hours = (natural.total_s + (selected.total_s if selected else 0.0)) / 3600
    size_gb = hours * 3600 * model.encoder.frame_rate * model.encoder.dim * 4 / 1e9
    cached = Frames(lab, model.encoder)
    encoded = Encoded(lab, model.prompt, model.encoder, size_gb <= config.data.keep_gb, config.data.workers, cached)
    return Loader(config, encoded, natural, selected, texts, processes.rank, processes.world)


def train(lab: Path | str, run_id: str, progress: Progress | None = None) -> None:
    """Run or resume a run to its end. Raises SaladError, or `salad.runs.Preempted` after a checkpoint."""
    run = RunFolder.open(lab, run_id)
    config = validate(RunConfig, run.config)
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
    found = checkpoints.latest(run.path)
    state = checkpoints.state_of(found) if found else {"step": 0, "tokens": 0}
    made_by = {"config": config.model_dump(mode="json"), "world_size": processes.world}
    check_unchanged(run.run_id, state.get("made_by"), made_by)
    model = SpeechLM.from_pretrained(found / "model", lab) if found else start_model(lab, config)
    optimizer = prepared(model, config, processes)
    if found:
        checkpoints.restore(found, optimizer, processes)
        run.log(f"resumed from {found.name}")
    loader = load_data(lab, config, model, run.path / "data", processes)
    loader.state = state.get("loader", loader.state)
    for name in config.data.natural:
        if name not in config.data.augment and (folders := loader.encoded.cached.folders(name)):
            run.log(f"encoder frames of {name}: taken from {folders[0]} where they are whole")
    cache = teacher_cache(lab, config, model, loader, processes, run) if config.objective.teacher_cache else None
    step, tokens, position = state["step"], state["tokens"], loader.state
    kept = {*optim.keep, *([decay_start(config)] if config.kind == "stage1" else [])}
    saved = step if found else None

    def save() -> None:
        nonlocal saved
        if cache is not None:
            cache.write()
        if saved != step:
            told = {"tokens": tokens, "loader": position, "made_by": made_by}
            checkpoints.save(run.path, step, model, optimizer, told, processes)
            saved = step
            if run.leader:
                checkpoints.prune(run.path, kept | {step})

    with (
        contextlib.closing(ahead(loader, config.data.prefetch)) as steps,
        contextlib.closing(Meter(run, config, processes, model, step, tokens)) as meter,
    ):
        while step < optim.steps:
            began = time.monotonic()
            taken = next(steps)
            meter.waited += time.monotonic() - began
            done = one_step(model, optimizer, taken, config, step, loader.names, processes, run, cache)
            if done is None:  # asked to end between two forward passes: this step is done again
                save()
                raise run.should_stop() or Preempted()
            step, tokens, position = step + 1, tokens + taken.tokens, taken.state
            told = meter.add(step, taken, done, learning_rate(config, step - 1))
            if told is not None and progress is not None and run.leader:
                progress(step, optim.steps, told)
            ends = processes.any(run.should_stop() is not None)
            if step in kept or step % optim.checkpoint_every == 0 or step == optim.steps or ends:
                save()
            if ends and step < optim.steps:
                raise run.should_stop() or Preempted()


def teacher_cache(lab, config: RunConfig, model: SpeechLM, loader: Loader, processes: Processes, run: RunFolder):
    """The cache that `objective.teacher_cache` asks for, its size told; a SaladError where it cannot be, or is too large."""
    from salad.teacher_cache import TeacherCache

    if processes.world > 1:  # one would wait in the teacher's sharded layers for another that need not go there
        raise SaladError(
            f"objective.teacher_cache works in one process, and this run has {processes.world}: set "
            "objective.teacher_cache=false, or take one GPU"
        )
    cache = TeacherCache(lab, model)
    told = cache.says(loader, config)
    print(told, flush=True)
    run.log(told)
    return cache


def check_unchanged(run_id: str, before: dict | None, now: dict) -> None:
    """SaladError where a run would go on with another configuration or number of processes than it began with."""
    if before is None:  # a checkpoint from before this was written down
        return
    if before["world_size"] != now["world_size"]:
        raise SaladError(
            f"run {run_id} was trained by {before['world_size']} processes so far, and its optimizer is in as many parts; "
            f"now there are {now['world_size']}: resume it with {before['world_size']}"
        )
    changed = [f"{k} was {a!r} and is now {b!r}" for k, a, b in _differences(before["config"], now["config"])]
    if changed:
        raise SaladError(
            f"run {run_id} cannot go on with another configuration: {'; '.join(changed[:4])}. Put config.json back, or "
            "launch the new configuration, which is a run of its own"
        )


def _differences(before: dict, now: dict, where: str = ""):
    """(dotted key, before, now) of what differs; keys that only one side knows came or went with the code."""
    for key in sorted(before.keys() & now.keys()):
        a, b = before[key], now[key]
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{where}{key}.")
        elif a != b:
            yield f"{where}{key}", a, b


def prepared(model: SpeechLM, config: RunConfig, processes: Processes) -> torch.optim.Optimizer:
    """Move the model to its device, set it up to be trained, shard it; returns AdamW over the adapter and the LLM.

    What trains is held in float32, whatever `llm.dtype` it computes in: bfloat16 would swallow small updates."""
    optim = config.optim
    model.to(processes.device).train()
    model.encoder.eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if optim.gradient_checkpointing:
        for part in (model.llm, model.adapter.transformer):
            part.activation_checkpointing_enable({"use_reentrant": False})
    processes.shard(model, model.dtype)
    parts = ((model.adapter, optim.lr_adapter), (model.llm, optim.lr_llm))
    return torch.optim.AdamW(
        [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr} for part, lr in parts],
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        fused=True,
    )


class Done(NamedTuple):
    """What a step found, over all processes: means in nats per text position, `d` by corpus; the gradient's norm before
    clipping."""

    loss: float
    nll: float
    d: dict[str, float]
    d_all: float
    grad_norm: float


def one_step(
    model: SpeechLM, optimizer, taken: Step, config: RunConfig, step: int, names: list[str], processes: Processes, run,
    cache=None,
) -> Done | None:
    """Forward, backward and update on one step's batches; None, with nothing changed, if asked to end in between.

    Losses are summed and divided by the positions of the whole step, over processes and forward passes. A loss or
    gradient that is not finite is a SaladError that names the samples."""
    optim, device = config.optim, processes.device
    factor = learning_rate(config, step)
    for group, lr in zip(optimizer.param_groups, (optim.lr_adapter, optim.lr_llm), strict=True):
        group["lr"] = lr * factor
    torch.manual_seed(hash((config.seed, step, processes.rank)))  # dropout, the same again in a resumed run
    positions = max(taken.positions, 1)
    sums = torch.zeros(2 + 2 * len(names), dtype=torch.float64, device=device)  # loss, nll; D and positions by corpus
    losses = []
    for number, batch in enumerate(taken.batches):
        if number and processes.any(run.should_stop() is not None):
            optimizer.zero_grad(set_to_none=True)
            return None
        moved = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
            told = {name: getattr(config.objective, name) for name in ("alpha", "divergence", "compile")}
            out = model(moved, **told, teacher_cache=cache, reduction="sum", per_position=True)
        (out.loss * (processes.world / positions)).backward()  # FSDP2 takes the mean over the processes
        corpus = torch.tensor([names.index(source) for source in batch.sources], device=device)[moved.sample_N]
        sums[0] += out.loss.detach().double()
        sums[1] += out.nll.double().sum()
        sums[2 : 2 + len(names)].index_add_(0, corpus, out.d.double())
        sums[2 + len(names) :].index_add_(0, corpus, torch.ones_like(out.d, dtype=torch.float64))
        losses.append(out.loss.detach())
    weights = [p for group in optimizer.param_groups for p in group["params"]]
    norm = whole(torch.nn.utils.clip_grad_norm_(weights, optim.clip)).item()
    loss, nll, *by_corpus = processes.sum(sums).tolist()
    if not math.isfinite(loss) or not math.isfinite(norm):
        _not_finite(taken, losses, loss, norm, step, processes)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    d, n = by_corpus[: len(names)], by_corpus[len(names) :]
    return Done(
        loss / positions,
        nll / positions,
        {name: d[i] / n[i] for i, name in enumerate(names) if n[i]},
        sum(d) / positions,
        norm,
    )


def _not_finite(taken: Step, losses: list, loss: float, norm: float, step: int, processes: Processes):
    """Name the samples of the forward passes whose loss is not finite, or of all where only the gradient is not."""
    mine = [b.sample_ids for b, told in zip(taken.batches, losses, strict=True) if not math.isfinite(told.item())]
    if math.isfinite(loss):
        mine = [b.sample_ids for b in taken.batches]
    ids = dict.fromkeys(i for part in processes.gather(mine) for batch in part for i in batch)
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    raise SaladError(f"{what} at step {step + 1}; samples: {', '.join(ids)}")


PEAK_TFLOPS = {  # dense bfloat16 matrix products, of the makers' data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def flops(model: SpeechLM, config: RunConfig, taken_tokens: int, text_tokens: int, positions: int) -> float:
    """Floating-point operations of a step's matrix products with the LLM's weights: twice a weight forward, twice
    backward, twice more for its own gradient where it trains (not counted: attention, adapter, encoder, what gradient
    checkpointing computes again). The teacher goes forward only, over the text (not at all with a cache of it); both
    heads over the positions only."""
    full = config.llm.finetune == "full"
    layers = sum(p.numel() for p in model.llm.get_decoder().layers.parameters() if full or not p.requires_grad)
    head = model.head.numel()
    per_token, teacher = (6 if full else 4) * layers, 0 if config.objective.teacher_cache else 2
    heads = (teacher + 2 + 2 + (2 if full else 0)) * head
    return per_token * taken_tokens + teacher * layers * text_tokens + heads * positions


class Meter:
    """Gathers what steps tell and writes their means every `log_every` steps: into the run's folder, and to trackers."""

    def __init__(self, run: RunFolder, config: RunConfig, processes: Processes, model: SpeechLM, step: int, tokens: int):
        self.run, self.config, self.processes, self.tokens = run, config, processes, tokens
        self.waited, self._since, self._tokens, self._flops = 0.0, time.monotonic(), tokens, 0.0
        self._window: dict[str, list[float]] = defaultdict(list)
        self._writer = run.metrics_writer(step + 1)
        self._trackers = _trackers(run, config) if run.leader else None
        self._cost = lambda taken: flops(model, config, taken.tokens, taken.text_tokens, taken.positions)
        self._peak = None
        if processes.device.type == "cuda":
            name = torch.cuda.get_device_name()
            self._peak = next((1e12 * peak for kind, peak in PEAK_TFLOPS.items() if kind in name), None)

    def add(self, step: int, taken: Step, done: Done, factor: float) -> dict[str, float] | None:
        """Take a step in; returns the means since the last ones where they are due."""
        optim = self.config.optim
        self.tokens += taken.tokens
        self._flops += self._cost(taken) if self._peak else 0.0
        values = {"loss": done.loss, f"d_{taken.kind}": done.d_all, "nll": done.nll, "grad_norm": done.grad_norm}
        for name, value in (values | {f"d_{name}": d for name, d in done.d.items()}).items():
            self._window[name].append(value)
        if step % optim.log_every and step != optim.steps:
            return None
        now = time.monotonic()
        means = {name: sum(values) / len(values) for name, values in self._window.items()}
        seconds = max(now - self._since, 1e-9)
        told = means | {
            "lr": optim.lr_adapter * factor,
            "lr_llm": optim.lr_llm * factor,
            "tokens_per_s": (self.tokens - self._tokens) / seconds,
            "waiting": self.waited / seconds,
            "memory_gb": self._memory_gb(),
        }
        if self._peak:
            told["share_of_peak"] = self._flops / seconds / self._peak / self.processes.world
        try:
            self._writer.log(step, self.tokens, **told)
            self.run.status(step=step, max_steps=optim.steps, tokens=self.tokens)
        except OSError as error:
            raise SaladError(
                f"{self.run.path}: metrics could not be written ({error.strerror}); the last checkpoint stands. Make room "
                "and resume the run"
            ) from None
        if self._trackers is not None:
            self._trackers.log(told, step=step)
        self._since, self._tokens, self._flops, self.waited = now, self.tokens, 0.0, 0.0
        self._window.clear()
        return means

    def _memory_gb(self) -> float:
        """The most that this process has held: on a GPU what torch has allocated there, else resident memory."""
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def close(self) -> None:
        self._writer.close()
        if self._trackers is not None:
            self._trackers.end_training()


def _trackers(run: RunFolder, config: RunConfig):
    """accelerate with the trackers that the configuration names; None where it names none."""
    if not config.trackers:
        return None
    from accelerate import Accelerator
    from accelerate.tracking import get_available_trackers

    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    missing = [name for name in config.trackers if name not in there]
    if missing:
        raise SaladError(f"trackers: {', '.join(missing)} is not installed here: pip install {' '.join(missing)}")
    told = Accelerator(cpu=not torch.cuda.is_available(), log_with=list(config.trackers), project_dir=str(run.path))
    told.init_trackers("salad", {"run_id": run.run_id, "kind": config.kind, "contender": config.contender})
    return told


def main(arguments: list[str] | None = None) -> int:
    """`python -m salad.training --lab LAB RUN_ID`"""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m salad.training", description=__doc__.splitlines()[0])
    parser.add_argument("run_id")
    parser.add_argument("--lab", default=os.environ.get("SALAD_LAB", "lab"))
    options = parser.parse_args(arguments)

    began: list = []

    def told(step: int, steps: int, means: dict) -> None:
        values = " ".join(f"{name} {value:.4g}" for name, value in means.items())
        began.append((step, time.monotonic()))
        (first, since), (_, now) = began[0], began[-1]
        left = (now - since) / (step - first) * (steps - step) if step > first else None
        print(f"step {step}/{steps} {values}" + ("" if left is None else f" {_clock(left)} left"), flush=True)

    try:
        train(options.lab, options.run_id, told)
    except store.UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


if __name__ == "__main__":
    sys.exit(main())
