"""The passes by name, over a lab's own tables: what `salad pass NAME` and `python -m salad.passes` run.

Each is a function of (lab, …, shard, shards, progress) that says in a line what there is now; doing it again skips what
is done and makes again what is damaged. Its keyword arguments are its options.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import store
from salad import lookup, parts
from salad.config import RunConfig, validate
from salad.data import corpora
from salad.errors import SaladError
from salad.passes import Progress, report_progress, run_parts
from salad.runs import RunFolder, read_json, renewing, running
from salad.speech.check import recogniser_of

if TYPE_CHECKING:
    from torch.nn import Module

    from salad.data.corpora import SpokenText
    from salad.engines import Run
    from salad.models.encoders import SpeechEncoder

ModuleT = TypeVar("ModuleT", bound="Module")
GIVEN = ("lab", "shard", "shards", "progress", "run")  # what is no option of a pass


# --- the passes ---


def embed_pass(
    lab: Path | str,
    corpus: str = "broad",
    model: str = "teacher",
    *,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> str:
    """Embed a corpus: by the newest Stage I's LLM (`teacher`), or a sentence-transformers model by name."""
    from salad.passes.embed import embed, of_llm, of_sentences

    def load():
        return of_llm(*lookup.llm_of(lab)) if model == "teacher" else of_sentences(model, lab)

    embed(lab, load, corpus, model, shard, shards, progress)
    return f"{corpus} embedded by {model}"


def cluster_pass(
    lab: Path | str,
    corpus: str = "broad",
    model: str = "teacher",
    k: int = 16,
    seed: int = 0,
    *,
    run: RunFolder | None = None,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> str:
    """Cluster an embedded corpus into `k` balanced clusters; what is not embedded yet is embedded first."""
    from salad.passes.cluster import cluster

    if shards > 1:
        raise SaladError("cluster is one piece of work: --workers belongs to embed")
    embed_pass(lab, corpus, model, progress=progress)
    return f"clustering {cluster(lab, None if run is None else run.run_id, model, corpus, k, seed)}, {k} clusters"


def probe_pass(
    lab: Path | str,
    clustering: str | None = None,
    per_cluster: int = 6,
    tts: str = "espeak",
    voices: tuple[str, ...] = ("en-us@rate=195", "en-us+f3@rate=195"),
    seed: int = 0,
    asr: str | None = None,
    speech: str = "probe",
    *,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> str:
    """Speak some texts of each cluster, each in every voice, checked by the recogniser."""
    from salad.passes.cluster import probe_texts
    from salad.passes.synthesise import jobs_of, synthesise
    from salad.speech import load_tts

    clustering = clustering or lookup.newest_clustering(lab)
    texts = probe_texts(lab, clustering, per_cluster, seed)
    if not texts:
        raise SaladError(f"clustering {clustering} has no text in this lab; `salad pass cluster` makes one")
    engine, jobs = load_tts(tts), jobs_of(texts, tuple(voices), seed, per_text=len(voices))
    asr, load = recogniser_of(lab, asr)
    made_from = {"seed": seed, "tts": engine.name, "jobs": store.ids.digest([vars(job) for job in jobs])}
    seconds = synthesise(
        lab, speech, jobs, engine, made_from, load() if asr else None, progress=progress, shard=shard, shards=shards
    )
    return f"{len(texts)} texts in {len(voices)} voices, {seconds:.0f} s in lab/speech/{speech}"


def synthesise_pass(
    lab: Path | str,
    selection: str,
    tts: str = "espeak",
    voices: tuple[str, ...] = ("en-us@rate=195",),
    seed: int = 0,
    budget_h: float | None = None,
    asr: str | None = None,
    *,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> str:
    """Speak a selection in draw order up to its budget, skipping what reviewers dropped; checked by the recogniser."""
    from salad.passes.synthesise import jobs_of, synthesise
    from salad.selection import to_synthesise
    from salad.speech import load_tts

    texts = to_synthesise(lab, selection)
    con = store.connect(lab)
    ((asked_h,),) = con.execute("select budget_h from selections where selection_id = ?", [selection]).fetchall()
    budget_h = asked_h if budget_h is None else budget_h
    if budget_h is None:
        raise SaladError(f"selection {selection} has no budget in hours, so it does not say how much of it to speak")
    estimated = con.execute("select sample_id, estimated_s from selected where selection_id = ?", [selection]).fetchall()
    engine, jobs = load_tts(tts), jobs_of(texts, tuple(voices), seed)
    made_from = {"seed": seed, "tts": engine.name, "jobs": store.ids.digest([vars(job) for job in jobs])}
    name = f"{selection}-{store.ids.digest(made_from)[:6]}"
    asr, load = recogniser_of(lab, asr)
    seconds = synthesise(lab, name, jobs, engine, made_from, load() if asr else None, budget_s=budget_h * 3600,
                         progress=progress, estimated_s={s: e for s, e in estimated if e}, shard=shard,
                         shards=shards, selection=selection, voices=tuple(voices))  # fmt: skip
    return f"{seconds / 3600:.2f} h of {budget_h:.2f} h spoken; new in lab/speech/{name}"


def check_pass(
    lab: Path | str,
    speech: str = "probe",
    asr: str | None = None,
    *,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> str:
    """Transcript, CER, WER and flags of a speech folder under a recogniser (by default lab/models/recogniser)."""
    from salad.passes.check import check

    asr, load = recogniser_of(lab, asr)
    if asr is None:
        raise SaladError(f"{lab} has no models/recogniser; name one with --asr (openai/whisper-small, a folder …)")
    check(lab, speech, asr, load, shard, shards, progress)
    ((count, mean_cer, high),) = (
        store.connect(lab)
        .execute("select count(*), avg(cer), count(*) filter (cer > 0.25) from syntheses where speech = ?", [speech])
        .fetchall()
    )
    mean = "no CER" if mean_cer is None else f"mean CER {mean_cer:.3f}"
    return f"{count} recordings of {speech}: {mean}, {high} above 0.25"


def score_pass(
    lab: Path | str,
    run_id: str | None = None,
    step: int | None = None,
    speech: str = "heldout",
    seed: int = 0,
    span_units: tuple[int, int] | None = None,
    *,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> str:
    """M, F and D of the speech folder `speech` under a checkpoint (by default the newest Stage I's last), in spans of
    `span_units` (by default those that its Stage I was trained in)."""
    from salad.passes.score import parts

    run_id = run_id or lookup.newest_run(lab, "stage1")
    step = lookup.checkpoint(lab, run_id, step).step
    spoken = corpora.of_speech(store.connect(lab), [speech])
    low, high = span_units or lookup.scoring_spans(lab, run_id)
    model = lambda: on_device(lookup.model_of(lab, run_id, step)[0])  # noqa: E731
    scored = parts(lab, model, run_id, step, spoken, speech, seed, (low, high))
    run_parts(lab, scored, shard, shards, progress)
    summary = f"{speech} scored by {run_id}, step {step}, in spans of {low} to {high} units"
    shown = store.connect(lab).execute("select span_min, span_max from raw.scored where span_max > 0 limit 1").fetchone()
    if shown not in (None, (low, high)):
        summary += f"; this lab's views show its scorings in spans of {shown[0]} to {shown[1]}, these are in raw.divergences"
    return summary


def encode_pass(
    lab: Path | str,
    speech: str = "natural",
    run_id: str | None = None,
    encoder: str | None = None,
    dtype: str = "float32",
    *,
    shard: int = 0,
    shards: int = 1,
    progress: Progress | None = None,
) -> str:
    """Keep the frames of a speech folder under a run's frozen causal encoder (or one by name): training and scoring read
    them."""
    from salad.data import frames
    from salad.models.encoders import fingerprint
    from salad.passes.encode import encode

    loaded, spoken = to_encode(lab, speech, run_id, encoder)
    sha256 = fingerprint(loaded)
    encode(lab, lambda: on_device(loaded), sha256, spoken, dtype, shard, shards, progress)
    folder = frames.path_of("lab", f"speech/{speech}/-.tar", sha256, dtype).parent
    return f"frames of {len(spoken)} recordings of {speech} in {folder}"


def to_encode(lab: Path | str, speech: str, run_id: str | None, encoder: str | None) -> tuple[SpeechEncoder, list[SpokenText]]:
    """(the causal encoder of a run, by default the newest Stage I's, or the one called `encoder`; the recordings)."""
    from salad.config import EncoderConfig
    from salad.models.encoders import load_encoder
    from salad.passes.encode import refuse_look_ahead

    if run_id is not None and encoder is not None:
        raise SaladError("say --run or --encoder, not both")
    if encoder is not None:
        config = EncoderConfig(name=encoder)
    else:
        run_id = run_id or lookup.newest_run(lab, "stage1")
        run = validate(RunConfig, RunFolder.open(lab, run_id).config)
        while run.parent is not None:  # whose encoder it has
            run = validate(RunConfig, RunFolder.open(lab, run.parent).config)
        config = run.encoder
        parts.check(config.name, f"run {run_id}")
    loaded = load_encoder(config, lab).eval()
    refuse_look_ahead(loaded, config.name)
    return loaded, corpora.of_speech(store.connect(lab), [speech])


def on_device(model: ModuleT) -> ModuleT:
    """The model on the GPU, if there is one."""
    import torch

    return model.to("cuda") if torch.cuda.is_available() else model


PASSES: dict[str, Callable[..., str]] = {
    "embed": embed_pass, "cluster": cluster_pass, "probe": probe_pass, "synthesise": synthesise_pass,
    "check": check_pass, "score": score_pass, "encode": encode_pass,
}  # fmt: skip


# --- running one ---


def prepare(lab: Path | str, name: str, options: dict, yes: bool = False, say: Callable[[str], None] = print) -> RunFolder:
    """The run folder of a pass with these options (None: the pass's own choice, made now where it is of this moment).

    encode says its size first (`say`), and needs `yes` for more than 50 GB. SaladError where the disk has no room for it,
    and for a pass or an option that there is not."""
    if name not in PASSES:
        raise SaladError(f"no pass {name!r}; known: {', '.join(PASSES)}")
    known = inspect.signature(PASSES[name]).parameters
    odd = [option for option in options if option not in known or option in GIVEN]
    if odd:
        raise SaladError(f"the pass {name} has no option {odd[0]}; it has {', '.join(p for p in known if p not in GIVEN)}")
    given = {option: value for option, value in options.items() if value is not None}
    parts.trust(given.get("tts"), given.get("encoder"), given.get("asr"))
    if name == "score":  # what is newest may change between the workers' starts
        given["run_id"] = given.get("run_id") or lookup.newest_run(lab, "stage1")
        given["step"] = lookup.checkpoint(lab, given["run_id"], given.get("step")).step
    if name == "encode":
        _report_size(lab, given, yes, say)
    if name == "probe":
        given["clustering"] = given.get("clustering") or lookup.newest_clustering(lab)
    return RunFolder.get_or_create(lab, "pass", name, {"pass": name, **given})


def _report_size(lab, given: dict, yes: bool, say) -> None:
    """Report the size of the frames before `encode` writes any, and refuse sizes that need --yes or do not fit the disk.

    Puts the newest Stage I into `given` if it names neither a run nor an encoder."""
    from salad.data.frames import DTYPES
    from salad.models.encoders import fingerprint
    from salad.passes.encode import ASKED_GB, estimate_size, room_for

    if "encoder" not in given:
        try:
            given["run_id"] = given.get("run_id") or lookup.newest_run(lab, "stage1")
        except SaladError as error:
            raise SaladError(f"{error}, or an encoder with --encoder") from None
    speech, dtype = given.setdefault("speech", "natural"), given.setdefault("dtype", "float32")
    if dtype not in DTYPES:
        raise SaladError(f"--dtype {dtype}: frames are kept in {' or '.join(DTYPES)}")
    encoder, spoken = to_encode(lab, speech, given.get("run_id"), given.get("encoder"))
    size, line = estimate_size(speech, spoken, encoder, dtype)
    say(line)
    if size > ASKED_GB and not yes:
        raise SaladError(f"frames of {speech} would take {size:,.1f} GB in {Path(lab, 'frames')}; use --yes to proceed")
    room_for(lab, speech, size, fingerprint(encoder), dtype)


def perform(run: RunFolder, shard: int = 0, shards: int = 1, progress: Progress | None = None) -> str:
    """Do a prepared pass, or one shard of it, in this process. Returns the pass's one-line summary."""
    options = dict(run.config)
    for name in ("tts", "encoder", "asr"):
        parts.check(options.get(name), str(run.path / "config.json"))
    function = PASSES[options.pop("pass")]
    if "run" in inspect.signature(function).parameters:
        options["run"] = run
    return function(run.lab, **options, shard=shard, shards=shards, progress=progress)


def run_here(run: RunFolder, progress: Progress | None = None) -> str:
    """Do a prepared pass in this process, as a run. If the run is done, only damaged work is repeated. Returns its summary."""
    with renewing(run.lab):
        if run.read_status().get("state") == "done":
            return perform(run, progress=progress)
        with running(run):
            return perform(run, progress=progress)


def launch(run: RunFolder, on: str, workers: int, gpus: str | None = None, targets: Path | str | None = None) -> Run:
    """Start a prepared pass on an engine, `workers` shards side by side; returns its handle (salad.engines.Run).

    A pass that is alive is left alone. A pass that has ended is restarted with the number of workers given now."""
    from salad.engines import Run, launch_run
    from salad.engines.gres import parse_gpus
    from salad.engines.spec import Spec
    from salad.engines.targets import resolve

    if workers < 1:
        raise SaladError(f"--workers {workers}: must be 1 or more")
    on, target = resolve(on, targets)
    if Spec.of(run) is not None:
        earlier = Run(run)
        if earlier.status()["state"] not in ("done", "failed", "stopped") and earlier.lives():
            return earlier
    # the status of the last attempt's shards does not apply to this attempt
    for path in [*run.path.glob("status*.json"), *run.path.glob("supervisor*.json"), *run.path.glob("attempts*.jsonl")]:
        path.unlink(missing_ok=True)
    (run.path / "launch.json").unlink(missing_ok=True)
    run.reread()
    kind, number = parse_gpus(gpus)
    started = launch_run(run, on=on, target=target, module="salad.passes", workers=workers, gpus=number, gpu_type=kind)
    assert isinstance(started, Run)  # a dry run would return text
    return started


def run_shard(lab: Path | str, run_id: str, shard: int, shards: int) -> str:
    """Do a shard of a prepared pass as a run; engines start this. Returns the pass's one-line summary."""
    import torch

    if shards > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // shards))
    run = RunFolder.open(lab, run_id)

    with running(run):
        summary = perform(run, shard, shards, report_progress(run))
        run.log(summary)
    others = [read_json(run.path / f"status-{other}.json") or {} for other in range(shards) if other != shard]
    if all(status.get("state") == "done" for status in others):  # the last one out
        store.renew(lab)
    return summary
