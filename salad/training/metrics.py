"""Metrics of training steps: means in metrics-*.jsonl and in trackers, rates, and the share of the device's peak."""

import contextlib
import resource
import time
from collections import defaultdict
from collections.abc import Iterator

import torch

from salad.config import RunConfig
from salad.data.loading import StepBatches
from salad.errors import SaladError
from salad.models.speech_lm import SpeechLM
from salad.runs import RunFolder
from salad.training.distributed import Processes
from salad.training.step import StepResult

PEAK_TFLOPS = {  # dense bfloat16 matrix products, of the makers' data sheets
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip


def flops(model: SpeechLM, config: RunConfig, taken_tokens: float, text_tokens: float, positions: float) -> float:
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
        self._trackers = _trackers(run, config) if processes.rank == 0 else []
        self._cost = lambda taken: flops(model, config, taken.tokens, taken.text_tokens, taken.positions)
        self._peak = None
        if processes.device.type == "cuda":
            name = torch.cuda.get_device_name()
            self._peak = next((1e12 * peak for kind, peak in PEAK_TFLOPS.items() if kind in name), None)

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """The time in this block is time in which the training waits for data."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def add(self, step: int, taken: StepBatches, done: StepResult, factor: float) -> dict[str, float] | None:
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
        row = means | {
            "lr": optim.lr_adapter * factor,
            "lr_llm": optim.lr_llm * factor,
            "tokens_per_s": (self.tokens - self._tokens) / seconds,
            "waiting": self.waited / seconds,
            "memory_gb": self._memory_gb(),
        }
        if self._peak:
            row["share_of_peak"] = self._flops / seconds / self._peak / self.processes.world
        try:
            self._writer.log(step, self.tokens, **row)
            self.run.status(step=step, max_steps=optim.steps, tokens=self.tokens)
        except OSError as error:
            raise SaladError(
                f"{self.run.path}: metrics could not be written ({error.strerror}); the last checkpoint stands. Make room "
                "and resume the run"
            ) from None
        for tracker in self._trackers:
            tracker.log(row, step=step)
        self._since, self._tokens, self._flops, self.waited = now, self.tokens, 0.0, 0.0
        self._window.clear()
        return means

    def _memory_gb(self) -> float:
        """The most that this process has held: on a GPU what torch has allocated there, else resident memory."""
        if self.processes.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    def close(self) -> None:
        """Close the metrics file and the trackers."""
        self._writer.close()
        for tracker in self._trackers:
            tracker.finish()


def _trackers(run: RunFolder, config: RunConfig) -> list:
    """The trackers that the configuration names, begun; accelerate's own classes.

    Without its Accelerator, whose end_training destroys the processes' group; accelerate's state alone, which its loggers ask
    for, takes the group as it is. Only the first process makes them, so none has to ask which process it is in."""
    if not config.trackers:
        return []
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    missing = [name for name in config.trackers if name not in there]
    if missing:
        raise SaladError(f"trackers: {', '.join(missing)} is not installed here: pip install {' '.join(missing)}")
    PartialState(cpu=not torch.cuda.is_available())
    begun = []
    for name in config.trackers:
        kind = LOGGER_TYPE_TO_CLASS[name]
        tracker = kind("salad", logging_dir=str(run.path)) if kind.requires_logging_directory else kind("salad")
        tracker.main_process_only = False
        tracker.start()
        tracker.store_init_configuration({"run_id": run.run_id, "kind": config.kind, "contender": config.contender})
        begun.append(tracker)
    return begun
