"""What a recipe will cost before it runs: GPU hours, disk, hours of speech to synthesise, and downloads, a stage a row.

`salad plan RECIPE` prints it. Parameters are counted on the meta device; speed is what this lab has measured for the
same LLM, fine-tuning and adapter where it has, and otherwise an assumption that is told.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import duckdb

import store
from salad import recipes
from salad.config import RunConfig
from salad.errors import SaladError

SHARE_OF_PEAK = 0.4  # of the GPU's bfloat16 matrix rate, where nothing is measured
TTS_RATE = 50.0  # seconds of speech a second that Kokoro gives on a GPU, where nothing is measured
TEXT_TOKENS_PER_S = 3.3  # of English speech
SHAR_MB_PER_H = 60.0  # FLAC, 16 kHz
CHECKPOINT_BYTES = 14  # a trained parameter: bfloat16 weights, float32 ones and AdamW's two moments
PROBE_H = 128 * 6 * 15 / 3600  # 128 clusters, 6 texts each, 15 s a text
SPEECH = {"librispeech": (960, 60), "libriheavy": (50_000, 60), "emilia": (91_000, 24)}  # hours, MB an hour to download
TEXT_GB = {"fineweb_edu": 28.0, "passages": 2.2}  # FineWeb-Edu's 10 B token sample; one file of it
HUB_GB = {  # downloads by hub name, rounded
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.27, "HuggingFaceTB/SmolLM2-360M": 0.72, "Qwen/Qwen2.5-0.5B": 1.0,
    "Qwen/Qwen2.5-3B": 6.2, "Qwen/Qwen2.5-7B": 15.2, "openai/whisper-tiny.en": 0.15, "openai/whisper-base": 0.29,
    "kyutai/mimi": 0.385, "hexgrad/Kokoro-82M": 0.33, "sentence-transformers/all-MiniLM-L6-v2": 0.09,
    "BAAI/bge-large-en-v1.5": 1.34, "facebook/wav2vec2-base-960h": 0.38,
}  # fmt: skip


@dataclass
class Cost:
    """The cost of one stage; `notes` state the basis of each figure."""

    stage: str
    gpu_hours: float
    tts_hours: float
    download_gb: float
    disk_gb: float
    memory_gb: float
    notes: list[str] = field(default_factory=list)


def stages(name: str) -> list[tuple[str, RunConfig]]:
    """(name, configuration) of each stage of a recipe: `qwen2_5_3b` is both, `qwen2_5_3b_stage1` or a config.json one."""
    both = [f"{name}_stage{n}" for n in (1, 2)]
    if all(stage in recipes.names() for stage in both):
        return [(stage, recipes.get(stage)) for stage in both]
    from salad.engines import configuration

    config, chosen = configuration(name)
    return [(chosen, config)]


def cost(lab: Path | str, name: str, config: RunConfig, gpu: str | None = None) -> Cost:
    """What the stage `config` costs in `lab`. `gpu`: whose hours are counted where nothing is measured, by default an
    RTX 4090 below a billion parameters and an H200 above. Raises SaladError for a GPU or an LLM that nobody knows."""
    from salad.models import meta

    model = meta.speech_lm(config, lab)
    con = store.connect(lab)
    made = Cost(name, 0.0, 0.0, 0.0, 0.0, 0.0)
    hours = _natural_hours(con, config, made)
    tokens = _tokens(con, config, model, made)
    _training(con, config, model, tokens, gpu, made)
    if config.kind == "stage1":
        _stage1_data(lab, config, model, hours, made)
    else:
        _stage2_data(con, config, hours, made)
    parameters, size = _trained(model), sum(p.numel() * p.element_size() for p in model.parameters())
    original = model._beside["original"]
    if original is not None:
        size += sum(p.numel() * p.element_size() for p in original.parameters())
    made.memory_gb = (size + 16 * parameters) / 1e9
    kept = _checkpoints(config)
    made.disk_gb += made.download_gb + kept * CHECKPOINT_BYTES * parameters / 1e9
    made.notes.append(
        f"disk: what is downloaded and made, and {kept} checkpoints of {CHECKPOINT_BYTES * parameters / 1e9:.2f} GB; memory: "
        f"weights, gradients and optimizer of {parameters / 1e6:,.0f} M trained parameters, activations apart"
    )
    return made


class Training(NamedTuple):
    """Of a run's training alone: GPU hours, whether this lab has measured the speed that they rest on, trained parameters and
    all parameters of the LLM, and the disk that its checkpoints take at most, in GB."""

    gpu_hours: float
    measured: bool
    trained: int
    llm: int
    checkpoints_gb: float


def training(lab: Path | str, config: RunConfig, gpu: str | None = None) -> Training:
    """The cost of training `config`, without its data; `gpu` and errors as of `cost`."""
    from salad.models import meta
    from salad.models.names import quiet

    quiet()
    model, made = meta.speech_lm(config, lab), Cost("", 0.0, 0.0, 0.0, 0.0, 0.0)
    con = store.connect(lab)
    _training(con, config, model, _tokens(con, config, model, made), gpu, made)
    trained = _trained(model)
    llm = sum(p.numel() for name, p in model.llm.named_parameters() if "lora_" not in name)
    return Training(made.gpu_hours, measured(con, config) is not None, trained, llm,
                    _checkpoints(config) * CHECKPOINT_BYTES * trained / 1e9)  # fmt: skip


def _trained(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _checkpoints(config: RunConfig) -> int:
    """How many lie on the disk at once: the last, Stage I's before the decay, the one being written, and those to keep."""
    return (3 if config.kind == "stage1" else 2) + len(config.optim.keep)


def _natural_hours(con, config: RunConfig, made: Cost) -> float:
    """Hours of the natural speech that the recipe names: the lab's where it has them, else as published."""
    rows = con.execute(
        "select speech, sum(duration_s) / 3600 from syntheses where speech in (select unnest(?)) group by 1",
        [list(config.data.natural)],
    ).fetchall()
    here, hours = dict(rows), 0.0
    for source in config.data.natural:
        if source in here:
            made.notes.append(f"{source}: {here[source]:,.2f} h in this lab")
            hours += here[source]
        elif source in SPEECH:
            made.notes.append(f"{source}: not in this lab; about {SPEECH[source][0]:,} h")
            hours += SPEECH[source][0]
        else:
            made.notes.append(f"{source}: not in this lab, and its hours are not known; counted as none")
    return hours


def _tokens(con, config: RunConfig, model, made: Cost) -> float:
    """Text tokens and frames that the stage feeds."""
    optim = config.optim
    if optim.batch_tokens:
        tokens = optim.steps * optim.batch_tokens
        made.notes.append(f"tokens: {optim.steps:,} steps of {optim.batch_tokens:,} are {tokens / 1e9:,.3g} B")
        return tokens
    seconds = con.execute(
        "select avg(duration_s) from syntheses where speech in (select unnest(?))", [list(config.data.natural)]
    ).fetchone()[0]
    how = "as this lab's speech" if seconds else "assumed"
    seconds = seconds or 15.0
    a_sample = seconds * (model.encoder.frame_rate + TEXT_TOKENS_PER_S) / 2
    tokens = optim.steps * optim.batch * a_sample
    made.notes.append(
        f"tokens: {optim.steps:,} steps of {optim.batch} samples of {seconds:.1f} s ({how}) are {tokens / 1e9:,.3g} B"
    )
    return tokens


def _training(con, config: RunConfig, model, tokens: float, gpu: str | None, made: Cost) -> None:
    measurement = measured(con, config)
    if measurement is not None:
        run_id, device, rate, world = measurement
        made.gpu_hours = tokens / rate * world / 3600
        made.notes.append(f"training: {rate:,.0f} tokens/s, measured by {run_id} on {device}")
        return
    from salad.training import PEAK_TFLOPS, flops

    gpu = gpu or ("H200" if model.head.numel() + model.llm.num_parameters() > 1e9 else "RTX 4090")
    if gpu not in PEAK_TFLOPS:
        raise SaladError(f"the speed of a {gpu!r} is not known; known: {', '.join(PEAK_TFLOPS)}")
    # in speech batches half of what is said is frames and half text; the teacher reads all of it as text
    per_s = (model.encoder.frame_rate + TEXT_TOKENS_PER_S) / 2
    p_text = config.data.p_text
    positions = tokens * (p_text + (1 - p_text) * TEXT_TOKENS_PER_S / 2 / per_s)
    text_tokens = tokens * (p_text + (1 - p_text) * TEXT_TOKENS_PER_S / per_s)
    work = flops(model, config, tokens, text_tokens, positions)
    made.gpu_hours = work / (PEAK_TFLOPS[gpu] * 1e12 * SHARE_OF_PEAK) / 3600
    made.notes.append(
        f"training: assumed {SHARE_OF_PEAK:.0%} of the {gpu}'s {PEAK_TFLOPS[gpu]} TFLOP/s; no run of this lab has this LLM, "
        "fine-tuning and adapter"
    )


def measured(con: duckdb.DuckDBPyConnection, config: RunConfig) -> tuple[str, str, float, int] | None:
    """(run id, device, tokens/s, processes) of the newest run of the lab with the same LLM, fine-tuning and adapter;
    the median of what it logged. None where there is none."""
    rows = con.execute(
        """select run_id, any_value(device), any_value(config)::varchar, median(value) from runs
           join metrics using (run_id) where kind in ('stage1', 'stage2') and name = 'tokens_per_s'
           group by 1 order by max("at") desc, 1"""
    ).fetchall()
    wanted = config.model_dump(mode="json")
    for run_id, device, text, rate in rows:
        other = json.loads(text or "{}")
        same = all(other.get("llm", {}).get(key) == wanted["llm"][key] for key in ("name", "finetune", "lora_rank"))
        if same and other.get("adapter") == wanted["adapter"] and rate:
            head = (device or "").partition(" x ")[0]
            return run_id, device or "a device that is not recorded", rate, int(head) if head.isdigit() else 1
    return None


def _stage1_data(lab, config: RunConfig, model, hours: float, made: Cost) -> None:
    from salad.models.names import resolve

    lab = Path(lab)
    for name in dict.fromkeys([config.llm.name, *([config.llm.teacher] if config.llm.teacher else [])]):
        if not Path(resolve(name, lab)).is_dir():
            llm = sum(p.numel() for n, p in model.llm.named_parameters() if "lora_" not in n)
            made.download_gb += 2 * llm / 1e9
    if config.encoder.name == "kyutai/mimi":
        made.download_gb += HUB_GB["kyutai/mimi"]
    for source in config.data.natural:
        if not (lab / "speech" / source).is_dir() and source in SPEECH:
            known, mb = SPEECH[source]
            made.download_gb += known * mb / 1e3
            made.disk_gb += known * SHAR_MB_PER_H / 1e3
    for corpus in config.data.text if config.data.p_text else ():
        if not (lab / "corpora" / corpus).is_dir():
            if corpus in TEXT_GB:
                made.download_gb += TEXT_GB[corpus]
                made.disk_gb += TEXT_GB[corpus]
            else:
                made.notes.append(f"{corpus}: not in this lab, and its size is not known; counted as none")
    if made.download_gb:
        made.notes.append("download: rounded sizes of what is not in this lab, models of the hub included")


def _stage2_data(con, config: RunConfig, hours: float, made: Cost) -> None:
    if config.selection is not None:
        row = con.execute("select budget_h from selections where selection_id = ?", [config.selection]).fetchone()
        if row is None:
            raise SaladError(f'selection: this lab has no {config.selection}; `salad sql "from selections"` shows them')
        made.tts_hours, budget = row[0], f"the budget of {config.selection}"
    else:
        made.tts_hours, budget = 0.01 * hours, "1 % of the natural hours"
    made.notes.append(f"TTS: {budget}, and a probe of {PROBE_H:.1f} h")
    made.tts_hours += PROBE_H
    rate, how = TTS_RATE, "assumed, of Kokoro on a GPU"
    row = con.execute(
        """with spoken as (
               select r.run_id, epoch(r.ended_at - r.started_at) as seconds,
                      (select sum(duration_s) from syntheses y
                       where starts_with(y.speech, r.config->>'$.selection')) as told
               from runs r where r.kind = 'pass' and r.recipe = 'synthesise' and r.status = 'done')
           select run_id, told / seconds from spoken where told > 0 and seconds > 0 order by run_id limit 1"""
    ).fetchone()
    if row is not None:
        rate, how = row[1], f"measured by {row[0]}, its ASR check included"
    made.gpu_hours += made.tts_hours / rate
    made.notes.append(f"TTS: {rate:,.0f} × real time ({how})")
    made.download_gb += HUB_GB["hexgrad/Kokoro-82M"] + HUB_GB["BAAI/bge-large-en-v1.5"]
    made.disk_gb += made.tts_hours * SHAR_MB_PER_H / 1e3
    made.notes.append("download: Kokoro and the sentence embedder; embedding, scoring and evaluation are not counted")
