"""What the steps of a study will cost before they run: seconds, disk, money, and what will be downloaded.

A step's size is counted in a unit of its own (MB of text, hours of speech, tokens …). Its seconds are that size times the seconds
of a unit: what this study's labs have measured, else RATES, which are assumptions and told as such."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from salad import plan
from salad.config import RunConfig
from salad.engines.targets import resolve
from salad.errors import SaladError
from salad.plan import HUB_GB, SHAR_MB_PER_H
from salad.study import sources, state
from salad.study.config import BaseStudy, Study
from salad.study.runner import Step

# Seconds a unit on two CPU cores, measured with SmolLM2-135M, Whisper tiny.en, Piper and MiniLM (2026-11-27); on a GPU what a
# model computes is taken to be GPU_SPEED times as fast until a lab has measured it.
RATES = {
    "MB of text": 7.0, "h of recordings": 400.0, "tokens": 1 / 200, "warm-start steps": 1.0, "passages": 0.005,
    "probe recordings": 0.75, "scored recordings": 0.3, "h of speech": 400.0, "answers": 0.12, "passages spoken": 0.75,
}  # fmt: skip
RATED_LLM = 134_515_008  # parameters of the LLM that RATES' tokens were measured with
GPU_SPEED = {"h of recordings": 20.0, "warm-start steps": 10.0, "passages": 20.0, "probe recordings": 10.0,
             "scored recordings": 30.0, "h of speech": 10.0, "answers": 30.0, "passages spoken": 10.0}  # fmt: skip
PASSAGE_BYTES, PASSAGE_S = 115.0, 8.0  # of a passage, for estimates
MINIATURE_GB = 1.0  # of disk


@dataclass
class StepCost:
    """Of one step: `seconds` of work, `gb` of disk, `money` in the currency of targets.toml (0 without a price), where it runs,
    and whether it is done. `measured`: its seconds rest on this study's own measurements."""

    step: Step
    done: bool
    size: float
    unit: str
    seconds: float
    gb: float
    money: float
    where: str
    measured: bool


def size_of(config: BaseStudy, name: str) -> tuple[float, str]:
    """(size, unit) of a step by its name within a lab; (0, "") of one that takes next to nothing, or whose size is not known."""
    if not isinstance(config, Study):
        return 0.0, ""
    kind, _, of = name.partition("_")
    if name in ("text", "heldout_text"):
        texts = config.text if name == "text" else config.heldout_text
        if texts is None:
            return 0.0, ""
        low, high = texts.documents
        return (0.03 * texts.limit if texts.limit else texts.megabytes * (high - low)), "MB of text"
    if kind in ("natural", "heldout"):
        speech = config.heldout if name == "heldout" else config.natural_speech[name]
        if speech is None:
            return 0.0, ""
        low, high = speech.rows
        return (speech.limit * PASSAGE_S / 3600 if speech.limit else speech.hours * (high - low)), "h of recordings"
    if kind in ("stage1", "stage2"):
        run = config.stage1 if kind == "stage1" else config.stage2
        rounds = next((config.arm(spec).rounds for spec in config.arms if of.startswith(config.arm(spec).name)), 1)
        tokens = run.optim.steps * (run.optim.batch_tokens or run.optim.batch * 200)
        return tokens / (rounds if kind == "stage2" else 1), "tokens"
    if name == "clusters":
        size, _ = size_of(config, "text")
        return size * 1e6 / PASSAGE_BYTES, "passages"
    probed = config.n_clusters * config.probe_per_cluster * len(config.probe_voices)
    if name == "probe":
        return probed, "probe recordings"
    if name == "divergences" or kind == "draw":
        return probed, "scored recordings"
    if kind in ("synthesis", "refill"):
        return config.budget_h * (0.2 if kind == "refill" else 1.0), "h of speech"
    heldout = 10 * config.heldout_per_domain if config.heldout_text is not None else 0
    if name == "spoken":
        return heldout, "passages spoken"
    if kind == "results":
        items = sum(task.limit or 500 for task in config.tasks)
        sides = 2 if of == "teacher" else len(config.modalities)
        return items * sides + (0 if of == "teacher" else 2.5 * heldout), "answers"
    return 0.0, ""


def disk_gb(config: BaseStudy, name: str) -> float:
    """About how much a step leaves on the disk beside checkpoints, in GB."""
    size, unit = size_of(config, name)
    if unit in ("h of recordings", "h of speech"):
        return size * SHAR_MB_PER_H / 1e3
    if unit in ("probe recordings", "passages spoken"):
        return size * PASSAGE_S / 3600 * SHAR_MB_PER_H / 1e3
    if unit == "MB of text":
        return 2e-3 * size
    if unit == "passages":
        return size * 1.6e-6
    return 0.0


def has_gpu() -> bool:
    """Whether this machine has a CUDA device."""
    import torch

    return torch.cuda.is_available()


def measured_rates(labs: Iterable[Path | str]) -> dict[str, float]:
    """Seconds a unit, from the steps of these labs that are done: by unit, over all of its steps together."""
    seconds: dict[str, float] = {}
    sizes: dict[str, float] = {}
    for lab in labs:
        for record in state.records(lab).values():
            if record.unit and record.size > 0 and record.seconds > 1:
                seconds[record.unit] = seconds.get(record.unit, 0.0) + record.seconds
                sizes[record.unit] = sizes.get(record.unit, 0.0) + record.size
    return {unit: seconds[unit] / sizes[unit] for unit in seconds}


def costs(config: BaseStudy, steps: Iterable[Step], targets: Path | str | None = None) -> list[StepCost]:
    """The cost of every step. SaladError where a step's engine is not one that is known here."""
    steps = list(steps)
    labs = sorted({step.lab for step in steps})
    done = {lab: state.records(lab) for lab in labs}
    if not isinstance(config, Study):  # the miniature's times are said beside `salad demo`
        return [StepCost(step, step.own_name in done[step.lab], 0.0, "", 0.0, 0.0, 0.0, "here", False) for step in steps]
    rates, gpu = measured_rates(labs), has_gpu()
    trainings = {kind: _training(labs[0], getattr(config, kind)) for kind in ("stage1", "stage2")}
    found = []
    for step in steps:
        size, unit = size_of(config, step.own_name)
        where, workers = config.engine_of(step.own_name), config.workers_of(step.own_name)
        price = 0.0
        if where != "here":
            _, target = resolve(where, targets)
            price = target.price_per_hour
        fast, gb = gpu or where != "here", disk_gb(config, step.own_name)
        rate = rates.get(unit, RATES.get(unit, 0.0) / (GPU_SPEED.get(unit, 1.0) if fast else 1.0))
        seconds = size * rate / (workers if unit not in ("tokens", "answers") else 1)
        training = trainings.get(step.own_name.partition("_")[0])
        if unit == "tokens" and training is not None:
            gb += training.checkpoints_gb
            if unit not in rates:
                seconds = _training_seconds(config, step.own_name, size, training, fast)
        money = seconds * workers / 3600 * price
        found.append(StepCost(step, step.own_name in done[step.lab], size, unit, seconds, gb, money, where, unit in rates))
    return found


def _training(lab: str, run: RunConfig) -> plan.Training | None:
    """The training of a stage as `salad plan` counts it; None where the sizes of its LLM or encoder are not at hand yet."""
    try:
        return plan.training(lab, run)
    except SaladError:
        return None


def _training_seconds(config: Study, name: str, tokens: float, training: plan.Training, fast: bool) -> float:
    """Of a training that no lab has measured: on a GPU by `salad plan`, on CPU cores by the LLM's size beside SmolLM2-135M's."""
    warm = config.stage1.adapter.warm_start.steps * RATES["warm-start steps"] if name == "stage1" else 0.0
    if not fast:
        return tokens * RATES["tokens"] * training.llm / RATED_LLM + warm
    run = config.stage1 if name.startswith("stage1") else config.stage2
    share = tokens / (run.optim.steps * (run.optim.batch_tokens or run.optim.batch * 200))  # of a stage in rounds
    return 3600 * training.gpu_hours * share / (config.gpus or 1) + warm / GPU_SPEED["warm-start steps"]


def check_engines(config: BaseStudy) -> None:
    """SaladError for an engine or worker count of a step that there is not, or that cannot run elsewhere."""
    if not isinstance(config, Study):
        return
    movable = ("stage1", "stage2", "clusters", "probe", "divergences", "synthesis")
    for field_name, names in (("engines", config.engines), ("workers", config.workers)):
        for name in names:
            if not any(step.startswith(name) or name.startswith(step) for step in movable):
                there = ", ".join(movable)
                raise SaladError(f"{field_name}: no step that can run elsewhere begins with {name!r}; those are {there}")


# --- downloads ---


def hub_names(config: Study) -> list[str]:
    """Every model that a study loads by name, once."""
    names = [config.stage1.llm.name, config.stage1.llm.teacher, config.stage1.encoder.name, config.recogniser]
    names += [None if config.embeddings == "teacher" else config.embeddings]
    for tts in (config.tts, config.eval_tts):
        engine, _, where = (tts or "").partition(":")
        if engine == "kokoro":
            names.append(where or "hexgrad/Kokoro-82M")
    return list(dict.fromkeys(name for name in names if name and name != "logmel" and ":" not in name))


def is_here(name: str, lab: Path | str) -> bool:
    """Whether a model's files are on this machine: a folder, one of SALAD_MODELS, or the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    from salad.models.names import resolve

    try:
        found = resolve(name, lab)
    except SaladError:
        return False
    return Path(found).is_dir() or isinstance(try_to_load_from_cache(found, "config.json"), str)


def downloads(config: Study, lab: Path | str) -> list[tuple[str, float]]:
    """(hub name, GB or 0 where it is not known) of every model that is not on this machine yet."""
    return [(name, HUB_GB.get(name, 0.0)) for name in hub_names(config) if not is_here(name, lab)]


def check_present(config: BaseStudy, lab: Path | str) -> None:
    """SaladError, in one line, where a source, a model or a voice that a study needs can neither be found here nor fetched."""
    if not isinstance(config, Study):
        return
    lacking = [f"{what}: {why}" for what, source in sources.of_study(config) if (why := sources.missing(source))]
    if lacking:
        more = f" (and {len(lacking) - 1} more)" if len(lacking) > 1 else ""
        raise SaladError(lacking[0] + more)
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    wanted = downloads(config, lab)
    if wanted and offline:
        names = ", ".join(f"{name} ({gb:g} GB)" if gb else name for name, gb in wanted)
        raise SaladError(
            f"not on this machine, and HF_HUB_OFFLINE is set: {names}. Unset it to download them, or name with --models a folder "
            f"that holds them by the last part of their names, such as {wanted[0][0].rpartition('/')[2].lower()}"
        )
    from salad.speech import load_tts

    for tts, voices in ((config.tts, (*config.voices, *config.probe_voices)), (config.eval_tts, config.eval_voices)):
        if tts is None or tts.startswith("kokoro") and not tts.startswith("kokoro-onnx") and offline is False and wanted:
            continue
        engine = load_tts(tts)
        unknown = [voice for voice in voices if engine.voices and not {voice, voice.split("@")[0]} & set(engine.voices)]
        if unknown:
            raise SaladError(f"{tts} has no voice {unknown[0]!r}; it has {', '.join(engine.voices[:12])}")


def room(config: BaseStudy, lab: Path | str, steps: Iterable[StepCost]) -> None:
    """SaladError where what is left to do needs more disk than there is."""
    needed = sum(cost.gb for cost in steps if not cost.done)
    needed += sum(gb for _, gb in downloads(config, lab)) if isinstance(config, Study) else MINIATURE_GB
    place = Path(lab).resolve()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / 1e9
    if free < needed:
        raise SaladError(f"{place} has {free:.2f} GB free; what is left of this study needs about {needed:.2f} GB. "
                         "Make room, or give another --lab")  # fmt: skip
