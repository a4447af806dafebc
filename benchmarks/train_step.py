"""A training step of the miniature beside a plain loop of transformers, on the same data in one run.

    python benchmarks/train_step.py                   # makes a small lab of the miniature's own parts, then measures
    python benchmarks/train_step.py --lab lab         # an existing lab of the demo
    python benchmarks/train_step.py --table           # Markdown of the committed result
    python benchmarks/train_step.py --device cuda --recipe qwen2_5_3b_lora_stage1       # full size, random weights
    python benchmarks/train_step.py --device cuda --recipe qwen2_5_3b_lora_stage1 --from-disk     # from FLAC, with Mimi

Contenders take turns within a round; ratios are medians of the ratios within a round. From tensors: the batches lie in
memory, with their encoder frames. From disk: FLAC out of the Shar, decoded and encoded in every step, nothing kept; the
clock starts when the first step is there, as in a run of thousands. The plain loop reads and encodes where it stands, and
takes the loss of TRL's DistillationTrainer on the hidden states of student and teacher, the best peer's that passes the
accuracy gate (benchmarks/loss.py); `pip install -e '.[bench]'` brings it. Where it is not installed, torch's KL on whole
logits in float32 stands in, and the result says so. Results: benchmarks/results/train-step-*.json.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # store.py is there

from salad import recipes, training  # noqa: E402
from salad.config import apply_overrides, parse_set  # noqa: E402
from salad.data.batches import collate  # noqa: E402
from salad.data.interleaving import Span, interleaved_sequence  # noqa: E402
from salad.data.loading import StepBatches, ahead  # noqa: E402
from salad.models import meta  # noqa: E402
from salad.models.prompts import PromptFormat  # noqa: E402
from salad.training.distributed import Processes  # noqa: E402

RESULTS = Path(__file__).parent / "results"
NOT_MEASURED = ("qwen2_5_3b_lora, one H200, from tensors", "qwen2_5_3b_lora, one H200, from disk",
                "qwen2_5_3b (full), one H200, from tensors", "qwen2_5_3b (full), one H200, from disk")  # fmt: skip


def small_lab(folder: Path) -> Path:
    """What Stage I of the miniature reads, its models at their real sizes but hardly trained."""
    from salad.study import steps

    config = recipes.miniature().smoke()
    for step in (steps.world, steps.encoder, steps.teacher, steps.natural):
        print(f"making {step.__name__} …", file=sys.stderr, flush=True)
        step(lambda *progress: None, str(folder), config)
    return folder


def peer() -> tuple[str, Callable]:
    """The plain loop's loss by name, and f(student_hidden_NH, student_head, teacher_hidden_NG, teacher_head) -> mean."""

    def whole_logits(hs, ws, ht, wt):
        log_p, log_q = (hs @ ws.t()).float().log_softmax(-1), (ht @ wt.t()).float().log_softmax(-1)
        return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")

    try:
        import trl
        from trl.trainer.distillation_trainer import _chunked_divergence_loss
    except ImportError as error:
        return f"torch's KL on whole logits, for TRL is not there ({error})", whole_logits

    def chunked(hs, ws, ht, wt):
        everywhere = torch.ones(1, len(hs), dtype=torch.bool, device=hs.device)
        return _chunked_divergence_loss(hs[None], ht[None], ws, wt, everywhere, 0.0)[0]  # 0: forward KL

    return f"TRL {trl.__version__}", chunked


class Trained:
    """A student of the miniature and the means to give it steps."""

    def __init__(self, lab: Path, **overrides):
        self.config = apply_overrides(recipes.miniature_stage1(), {"data.p_text": 0.0, "optim.warmup": 0} | overrides)
        torch.set_num_threads(1)
        self.model = training.start_model(lab, self.config)
        self.optimizer = training.prepared(self.model, self.config, Processes())
        self.loader = training.load_data(lab, self.config, self.model)
        self.run, self.loss = SimpleNamespace(should_stop=lambda: None), peer()[1]

    def step(self, taken) -> None:
        training.one_step(self.model, self.optimizer, taken, self.config, 5, self.loader.names, Processes(), self.run)

    def plain(self, taken) -> None:
        """The same step as a loop over transformers would do it."""
        model = self.model
        for batch in taken.batches:
            decoder, head = model.llm.get_decoder(), model.head[: model.vocab_size]
            out = decoder(inputs_embeds=model.embed(batch), use_cache=False).last_hidden_state
            with torch.no_grad(), model._beside["peft"].disable_adapter():
                result = decoder(input_ids=batch.text_ids_BS, use_cache=False).last_hidden_state
            self.loss(out.flatten(0, 1)[batch.rows_N], head, result.flatten(0, 1)[batch.text_rows_N], head.detach()).backward()
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, self.config.optim.clip).item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def timed(make, do, steps: int, wait=lambda: None) -> tuple[int, float, float, float]:
    """`steps` times what `make` gives to `do`: tokens, seconds, of these waited for data, and processor seconds."""
    tokens, waited, began, busy = 0, 0.0, time.monotonic(), time.process_time()
    for _ in range(steps):
        asked = time.monotonic()
        taken = make()
        waited += time.monotonic() - asked
        do(taken)
        tokens += taken.tokens
    wait()
    return tokens, time.monotonic() - began, waited, time.process_time() - busy


def read_and_timed(item, plain: bool, steps: int, wait=lambda: None) -> tuple[int, float, float, float]:
    """`timed` from disk: the trainer's loader makes steps ahead, the plain loop reads where it stands."""
    if plain:
        return timed(item.loader.next, item.plain, steps, wait)
    with closing(ahead(item.loader, item.config.data.prefetch)) as made:
        item.step(next(made))  # as many are made ahead when the clock starts as when it stops
        wait()
        return timed(lambda: next(made), item.step, steps, wait)


PACKED = {"optim.batch_tokens": 900}  # about what 8 samples hold
DISK = {"data.keep_gb": 0.0}


def contenders(lab: Path, steps: int, only: str | None = None) -> dict:
    """name → a function that does `steps` steps: what `timed` tells."""

    def from_tensors(overrides: dict, plain: bool):
        trainer = Trained(lab, **overrides)
        held = [trainer.loader.next() for _ in range(24)]
        place = iter(range(10**9))
        return lambda: timed(lambda: held[next(place) % len(held)], trainer.plain if plain else trainer.step, steps)

    def from_disk(overrides: dict, plain: bool):
        trainer = Trained(lab, **DISK, **overrides)
        return lambda: read_and_timed(trainer, plain, steps)

    by_name = {
        "salad, from tensors": lambda: from_tensors({}, plain=False),
        "salad, packed, from tensors": lambda: from_tensors(PACKED, plain=False),
        "plain loop, from tensors": lambda: from_tensors({}, plain=True),
        "salad, from disk": lambda: from_disk({}, plain=False),
        "plain loop, from disk": lambda: from_disk({}, plain=True),
    }
    return {name: make() for name, make in by_name.items() if only in (None, name)}


def reading(lab: Path, steps: int) -> dict:
    """Seconds of recordings that one second of processor time reads, decodes and encodes."""
    trainer = Trained(lab, **DISK)
    recorded = 0.0
    real = trainer.loader.frames.frames_of

    def counted(members, *others):
        nonlocal recorded
        recorded += sum(m.recording.duration_s for m in members if any(span.speech for span in m.spans))
        return real(members, *others)

    trainer.loader.frames.frames_of = counted
    began = time.process_time()
    for _ in range(steps):
        trainer.loader.next()
    spent = time.process_time() - began
    return {"audio_s": recorded, "processor_s": spent, "real_time_factor": recorded / spent}


def measured(lab: Path, rounds: int, steps: int, memory: bool) -> dict:
    results = contenders(lab, steps)
    for measure in results.values():
        measure()
    samples: dict[str, list] = {name: [] for name in results}
    for number in range(rounds):
        for name, measure in results.items():
            samples[name].append(measure())
            print(f"round {number + 1}/{rounds} {name}: {samples[name][-1][0] / samples[name][-1][1]:.0f} tokens/s", flush=True)
    rates = {name: [tokens / seconds for tokens, seconds, _, _ in timings] for name, timings in samples.items()}
    busy = {name: [tokens / seconds for tokens, _, _, seconds in timings] for name, timings in samples.items()}
    peaks = {}
    for name in results if memory else ():
        words = [sys.executable, __file__, "--lab", str(lab), "--only", name, "--steps", str(steps)]
        peaks[name] = float(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()[-1])

    def ratio(item: str, other: str) -> float:
        return [statistics.median(a / b for a, b in zip(by[item], by[other], strict=True)) for by in (rates, busy)]

    return {
        "hardware": hardware(), "torch": torch.__version__, "threads": 1, "load": os.getloadavg(),
        "command": f"python benchmarks/train_step.py --rounds {rounds} --steps {steps}" + ("" if memory else " --no-memory"),
        "rounds": rounds, "steps": steps, "samples": samples,
        "tokens_per_s": {name: statistics.median(timings) for name, timings in rates.items()},
        "tokens_per_processor_s": {name: statistics.median(timings) for name, timings in busy.items()},
        "waiting": {name: statistics.median(w / s for _, s, w, _ in timings) for name, timings in samples.items()},
        "peak_mb": peaks,
        "ratios": {
            "from tensors": ratio("salad, from tensors", "plain loop, from tensors"),
            "from tensors, packed": ratio("salad, packed, from tensors", "plain loop, from tensors"),
            "from disk": ratio("salad, from disk", "plain loop, from disk"),
        },
        "reading": reading(lab, steps),
        "plain_loss": peer()[0],
        "not_measured": list(NOT_MEASURED),
    }  # fmt: skip


class FullSize:
    """A recipe at its real size with random weights, and packed batches: of random tokens and frames in memory, half of
    each text spoken in spans of 12 tokens (4 s, at about 3 tokens a second), or with a `lab` of `small_lab`, of its
    natural speech (FLAC, resampled to the encoder's rate, encoded in every step) and its tokenizer, whose ids are some
    of the model's."""

    def __init__(self, recipe: str, overrides: dict, device: str, passes: int, lab: Path | None = None):
        self.config = apply_overrides(recipes.get(recipe), {"optim.warmup": 0} | overrides)
        if lab is not None:
            self.config = apply_overrides(self.config, DISK | {
                "data.natural": list(recipes.miniature_stage1().data.natural), "data.text": [], "data.p_text": 0.0,
                "optim.batch_tokens": passes * self.config.optim.micro_tokens})  # fmt: skip
        self.processes, optim = Processes(), self.config.optim
        if self.processes.device.type != device:
            raise SystemExit(f"--device {device}: this machine trains on {self.processes.device.type}")
        torch.manual_seed(0)
        self.model = meta.speech_lm(self.config, None, device)
        self.optimizer = training.prepared(self.model, self.config, self.processes)
        self.run, rng = SimpleNamespace(should_stop=lambda: None), np.random.default_rng(0)
        self.loss = peer()[1]
        if lab is not None:
            self.model.prompt = PromptFormat(AutoTokenizer.from_pretrained(lab / "models" / "teacher"))
            self.model.prefix = self.model.prompt.prefix
            self.loader, self.taken = training.load_data(lab, self.config, self.model), None
            return
        rate, context = self.model.encoder.frame_rate, min(self.config.sequences.context, optim.micro_tokens)
        frames = round(4 * rate)
        spans = [
            Span(i % 2 == 1, 12 * i, 12 * i + 12, (i - 1) // 2 * frames if i % 2 else 0, (i + 1) // 2 * frames if i % 2 else 0)
            for i in range(12)
        ]
        batches = []
        for _ in range(passes):
            laid, sound = [], []
            while sum(len(token.ids) for token in laid) < optim.micro_tokens or not laid:
                ids = rng.integers(5, self.model.vocab_size, 144).tolist()
                laid.append(interleaved_sequence(self.model.prefix, ids, spans))
                sound.append(rng.standard_normal((6 * frames, self.model.encoder.dim), dtype=np.float32))
            batches.append(collate(laid, sound, ["s"] * len(laid), ["random"] * len(laid), max(context, len(laid[0].ids))))
        self.taken = StepBatches(batches, "speech", sum(len(b.rows_N) for b in batches), sum(b.tokens for b in batches),
                          sum(n for b in batches for _, _, n in b.texts), {})  # fmt: skip

    def step(self, taken: StepBatches) -> None:
        names = self.loader.names if self.taken is None else ["random"]
        training.one_step(self.model, self.optimizer, taken, self.config, 5, names, self.processes, self.run)

    def plain(self, taken: StepBatches) -> None:
        """A loop over transformers, with the peer's loss."""
        model, device = self.model, self.processes.device
        for batch in taken.batches:
            if not len(batch.rows_N):  # nothing that follows speech
                continue
            batch = batch.to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=model.dtype == torch.bfloat16):
                decoder = model.llm.get_decoder()
                out = decoder(inputs_embeds=model.embed(batch), position_ids=batch.place_BT, use_cache=False).last_hidden_state
                result = model.teacher.hidden(batch.text_ids_BS, batch.text_place_BS)
                rows, heads = len(batch.rows_N), (model.head[: model.vocab_size], model.teacher.head[: model.vocab_size])
                loss = self.loss(out.flatten(0, 1)[batch.rows_N], heads[0], result.flatten(0, 1)[batch.text_rows_N], heads[1])
            (loss * (rows / taken.positions)).backward()
        weights = [p for group in self.optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(weights, self.config.optim.clip).item()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def full_size(recipe: str, overrides: dict, device: str, rounds: int, passes: int, steps: int, lab: Path | None) -> dict:
    """Tokens a second, share of the measured bf16 matrix rate, peak bytes and the time waiting for data of `steps` steps
    and of as many of the plain loop, by turns; from tensors, or from the disk of a `lab`."""
    trainer, cuda = FullSize(recipe, overrides, device, passes, lab), device == "cuda"
    wait = torch.cuda.synchronize if cuda else lambda: None

    def seconds(do) -> float:
        wait()
        began = time.monotonic()
        do()
        wait()
        return time.monotonic() - began

    size = 8192 if cuda else 512
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    rate = 2 * size**3 / statistics.median([seconds(lambda: a @ b) for _ in range(9)][3:])
    samples, work, peaks = {"salad": [], "plain loop": []}, {"salad": [], "plain loop": []}, {}
    for number in range(rounds + 1):
        for name, do in (("salad", trainer.step), ("plain loop", trainer.plain)):
            done = []

            def step(taken, do=do, done=done):
                do(taken)
                done.append(training.flops(trainer.model, trainer.config, taken.tokens, taken.text_tokens, taken.positions))

            if cuda:
                torch.cuda.reset_peak_memory_stats()
            wait()
            if lab is None:
                spent = timed(lambda: trainer.taken, step, steps, wait)
            else:
                spent = read_and_timed(SimpleNamespace(loader=trainer.loader, config=trainer.config, step=step, plain=step),
                                       name == "plain loop", steps, wait)  # fmt: skip
            peaks[name] = torch.cuda.max_memory_allocated() if cuda else None
            if number:  # the first warms up
                samples[name].append(spent)
                work[name].append(sum(done[-steps:]) / spent[1])
    fields = {name: statistics.median(tokens / s for tokens, s, _, _ in x) for name, x in samples.items()}
    return {
        "hardware": torch.cuda.get_device_name() if cuda else hardware(), "torch": torch.__version__, "recipe": recipe,
        "overrides": overrides, "rounds": rounds, "steps": steps, "passes": passes, "samples": samples,
        "tokens_per_s": fields, "matrix_rate": rate,
        "share_of_matrix_rate": {name: statistics.median(x) / rate for name, x in work.items()},
        "waiting": {name: statistics.median(w / s for _, s, w, _ in x) for name, x in samples.items()},
        "plain_loss": peer()[0], "peak_bytes": peaks, "salad_over_plain": fields["salad"] / fields["plain loop"],
        "from": "tensors" if lab is None else "FLAC on disk, resampled and encoded in every step",
    }  # fmt: skip


def hardware() -> str:
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {os.cpu_count()} cores"


def table(result: dict) -> str:
    lines = [
        f"**{result['hardware']}**, torch {result['torch']}, {result['threads']} thread, `{result['command']}`: "
        f"{result['rounds']} rounds of {result['steps']} steps; "
        f"load average at the end {', '.join(f'{x:.1f}' for x in result['load'])}.",
        "",
        "| miniature Stage I, speech batches | tokens/s (median) | tokens per processor second | share of peak | "
        "time waiting for data | peak resident MB |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, rate in result["tokens_per_s"].items():
        peak = f"{result['peak_mb'][name]:.0f}" if name in result["peak_mb"] else "not measured"
        busy = result["tokens_per_processor_s"][name]
        lines.append(f"| {name} | {rate:.0f} | {busy:.0f} | not known | {result['waiting'][name]:.1%} | {peak} |")
    lines += [f"| {name} |" + " not measured |" * 5 for name in result["not_measured"]]
    by_clock = ", ".join(
        f"{clock:.2f} × {how} ({busy:.2f} × by processor time)" for how, (clock, busy) in result["ratios"].items()
    )
    lines += [
        "",
        f"The plain loop's loss: {result.get('plain_loss', 'torch, whole logits')}.",
        f"salad over the plain loop: {by_clock}. One second of processor time reads, decodes and encodes "
        f"{result['reading']['real_time_factor']:.0f} s of speech.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lab", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--only", help="do one contender's steps and print the peak resident MB")
    parser.add_argument("--make", type=Path, metavar="LAB", help="make the small lab there, to be measured with --lab")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peaks, each of which takes a process of its own")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--recipe", help="a recipe at full size with random weights, beside the plain loop")
    parser.add_argument("--from-disk", action="store_true", help="with --recipe: from FLAC on disk, not from tensors")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="with --recipe")
    parser.add_argument("--passes", type=int, default=2, help="with --recipe: forward passes a step")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=VALUE", help="with --recipe")
    given = parser.parse_args()
    if given.recipe:
        with tempfile.TemporaryDirectory() as folder:
            lab = (given.lab or small_lab(Path(folder) / "lab")) if given.from_disk else None
            result = full_size(given.recipe, parse_set(given.set), given.device, given.rounds, given.passes, given.steps, lab)
        if given.device == "cuda":
            name = "".join(c if c.isalnum() else "-" for c in result["hardware"].lower())
            how = "-from-disk" if given.from_disk else ""
            (RESULTS / f"train-step-full-{given.recipe}{how}-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(json.dumps(result, indent=1))
        return
    if given.table:
        for path in sorted(RESULTS.glob("train-step-cpu-*.json")):
            print(table(json.loads(path.read_text())))
        return
    if given.make:
        small_lab(given.make)
        return
    if given.only:
        contenders(given.lab, given.steps, given.only)[given.only]()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measured(given.lab or small_lab(Path(folder) / "lab"), given.rounds, given.steps, not given.no_memory)
    path = RESULTS / f"train-step-cpu-{os.cpu_count()}-cores.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
