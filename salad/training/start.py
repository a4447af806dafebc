"""What a run begins with: its configuration resolved, its model, its data, its optimizer, its teacher cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

import store
from salad import lookup, parts
from salad.config import RunConfig, validate
from salad.data import corpora
from salad.data.frame_source import FrameSource
from salad.data.frames import Frames
from salad.data.layout import check_cut, lay_out
from salad.data.loading import Loader
from salad.errors import SaladError
from salad.models.lora import describe
from salad.models.speech_lm import SpeechLM
from salad.runs import RunFolder
from salad.training import checkpoints
from salad.training.distributed import Processes
from salad.training.schedule import decay_start

if TYPE_CHECKING:
    from salad.objective.teacher_cache import TeacherCache

CHECKED = 256  # recordings of a source that are looked at before a run: whether their words can be cut


def resolve(lab: Path | str, config: RunConfig) -> RunConfig:
    """The configuration with its parent named by run id and its selection frozen, as a run stores it; writes nothing.

    `parent="stage1"` is the lab's newest finished Stage I run. A selection that was only drawn is named by the child that
    freezing makes of it: its texts that are kept and synthesised (METHOD.md, "From selection to training, exactly").
    """
    return _resolved(lab, config, publish=False)


def _resolved(lab: Path | str, config: RunConfig, publish: bool) -> RunConfig:
    update: dict = {}
    if config.parent is not None and not config.parent.startswith("r"):
        update["parent"] = lookup.newest_run(lab, config.parent, "train one first, or name a run id as `parent`")
    elif config.parent is not None:
        RunFolder.open(lab, config.parent)
    if config.selection is not None:
        from salad.selection import frozen

        update["selection"] = frozen(lab, config.selection, publish)
    return config.model_copy(update=update)


def prepare(lab: Path | str, config: RunConfig, recipe: str, repetition: int = 0, dry_run: bool = False) -> RunFolder:
    """The run's folder, made or found again: the same configuration again resumes its run. Its selection is frozen, unless
    this is a `dry_run`, whose folder the caller removes. A part of the caller's own that `config` names, they allow by that."""
    parts.trust(config.encoder.name)
    config = _resolved(lab, config, publish=not dry_run)
    return RunFolder.get_or_create(
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
    frames = FrameSource(lab, model.prompt, model.encoder, size_gb <= config.data.keep_gb, config.data.workers, cached)
    for source, some in ((", ".join(config.data.natural), natural), (f"selection {config.selection}", selected)):
        chosen = range(0, len(some), max(1, len(some) // CHECKED))
        check_cut((lay_out(model.prompt, some[i], model.encoder.frame_rate) for i in chosen), config.llm.name, source)
    return Loader(config, frames, natural, selected, texts, processes.rank, processes.world)


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
    groups = ((model.adapter, optim.lr_adapter), (model.llm, optim.lr_llm))
    return torch.optim.AdamW(
        [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr} for part, lr in groups],
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        fused=True,
    )


def log_start(run: RunFolder, config: RunConfig, model: SpeechLM, loader: Loader) -> None:
    """Log which layers LoRA adapts, and which sources' frames come from disk."""
    if config.llm.finetune == "lora":
        run.log(describe(model.llm))
    for name in config.data.natural:
        cached = loader.frames.cached
        if cached is not None and name not in config.data.augment and (folders := cached.folders(name)):
            run.log(f"encoder frames of {name}: taken from {folders[0]} where they are whole")


def teacher_cache(
    lab: Path | str, config: RunConfig, model: SpeechLM, loader: Loader, processes: Processes, run: RunFolder
) -> TeacherCache:
    """The cache for `objective.teacher_cache`; logs its expected size. Raises SaladError if it is impossible or too large."""
    from salad.objective.teacher_cache import TeacherCache

    if processes.world > 1:  # one would wait in the teacher's sharded layers for another that need not go there
        raise SaladError(
            f"objective.teacher_cache works in one process, and this run has {processes.world}: set "
            "objective.teacher_cache=false, or take one GPU"
        )
    cache = TeacherCache(lab, model)
    size = cache.check_size(loader, config)
    print(size, flush=True)
    run.log(size)
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
