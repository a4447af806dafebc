"""The command line, `salad`. A command is one small function: its docstring is its --help, and it imports what it
runs when it runs, so that `salad --help` answers at once.

To add a command: write a function below with keyword-only options, decorate it with @command.
"""

import contextlib
import difflib
import functools
import inspect
import io
import itertools
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Literal

import tyro
from tyro.extras import SubcommandApp

Lab = Annotated[
    str | None, tyro.conf.arg(metavar="DIR", help="the lab (default: $SALAD_LAB, else lab/)", help_behavior_hint="")
]
File = Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
COMMANDS: dict[str, Callable] = {}


def command(function: Callable | None = None, *, name: str | None = None):
    """Register a command. Parsing only binds the arguments: `main` calls it, outside the parser's error handling."""
    if function is None:
        return functools.partial(command, name=name)

    @functools.wraps(function)
    def bind(*args, **kwargs):
        return functools.partial(function, *args, **kwargs)

    COMMANDS[name or function.__name__.strip("_").replace("_", "-")] = bind
    return function


Set = Annotated[
    tyro.conf.UseAppendAction[list[str]],
    tyro.conf.arg(name="set", metavar="KEY=VALUE", help="override a.b=VALUE; repeatable", help_behavior_hint=""),
]


@command
def demo(
    *,
    lab: Lab = None,
    seed: int = 0,
    corpus: File = None,
    smoke: bool = False,
    tts: str | None = None,
    full: bool = False,
    overrides: Set = [],  # noqa: B006
) -> int:
    """Run SALAD end to end in miniature, here: six to seven minutes on two CPU cores, nothing to download.

    Text, teacher, speech, Stage I, divergences, clusters, active selection and its uniform control, synthesis,
    Stage II, evaluation, report. Interrupt it when you like: the same command goes on where it was.

    Args:
        seed: of everything; the same seed gives the same table.
        corpus: your own texts (lines, JSONL with "text", or Parquet with a column text) in the broad corpus: which
            of them would speech fail on?
        smoke: the smallest sizes, a minute, to see that it runs; its figures mean nothing.
        tts: what synthesises: espeak, or kokoro:FOLDER where Kokoro's weights are at hand.
        full: train every LLM weight instead of LoRA.
    """
    import store
    from salad.config import parse_set
    from workbench import demo as runner

    runner.demo(store.lab_path(lab), seed, corpus, smoke, tts, full, parse_set(overrides))
    return 0


@command
def prepare(
    what: tyro.conf.Positional[Literal["text", "speech"]],
    source: tyro.conf.Positional[str],
    *,
    name: str,
    lab: Lab = None,
    licence: str = "unknown",
    language: str = "en",
    column: str = "text",
    answer: str | None = None,
    min_s: float = 5.0,
    max_s: float | None = None,
    characters_per_s: float = 15.0,
    tasks: str | None = None,
    ngram: int = 13,
    near: float = 0.75,
    tokenizer: str | None = None,
    workers: int = 1,
    layout: Literal["auto", "librispeech", "cuts", "emilia", "webdataset", "table"] = "auto",
    recogniser: str | None = None,
    max_cer: float = 0.5,
    domain: str | None = None,
    device: str = "cpu",
    part: str = "0/1",
) -> int:
    """Bring documents or recordings of your own into the lab; what is left out is counted, with its reason.

    text: documents (Parquet, JSONL, a folder of either, or a saved dataset) become passages of speakable length in
    lab/corpora and `samples`. speech: recordings with transcripts become a Lhotse Shar with word times in lab/speech,
    and `syntheses`. Interrupted, the same command goes on where it was. docs/data.md tells more.

    Args:
        what: text or speech.
        source: the documents, or the recordings: a folder (LibriSpeech, LibriHeavy, Emilia, tars), TSV, JSONL, cuts or tar.
        name: what the corpus is called in the lab.
        licence: of documents or recordings that name none.
        language: text: other documents are left out (any: none are). speech: which of Emilia's folders.
        column: text: the column that holds the text.
        answer: text: the column that holds what a chat answers to it; such texts are taken whole, or not at all.
        min_s: text: the least expected speech of a passage, in seconds.
        max_s: the most: of a passage (30), or of a recording (60).
        characters_per_s: text: of the spoken form, for the expected speech.
        tasks: text: comma-separated tasks to look for; by default all of lab/tasks.
        ngram: text: how many words in a row make an overlap with a task.
        near: text: similarity from which a passage is a near-duplicate.
        tokenizer: text: a folder or repository whose tokens are counted into samples.n_tokens.
        workers: text: processes.
        layout: speech: how the folder is laid out.
        recogniser: speech: the CTC model that aligns and checks; by default the lab's own.
        max_cer: speech: character error rate above which the text does not match.
        domain: speech: of recordings that name none.
        device: speech: where the recogniser runs.
        part: speech: K/N does every N-th shard from K, for a process of its own.
    """
    import store
    from salad import prepare as preparing

    lab = store.lab_path(lab)
    if what == "text":
        options = preparing.TextOptions(
            column, language, min_s, max_s or 30.0, characters_per_s, ngram, near, licence, tokenizer, answer
        )
        wanted = tasks.split(",") if tasks else None
        with _bar(name) as progress:
            counts = preparing.prepare_text(lab, source, name, options, tasks=wanted, workers=workers, progress=progress)
    else:
        from salad.errors import SaladError
        from salad.speech.check import load_recogniser

        if answer is not None:
            raise SaladError("--answer is for text; a table of recordings holds answers in its column `answer`")
        if workers != 1:
            raise SaladError("--workers is for text; for speech start a process for each --part K/N, K from 0")
        named = recogniser or preparing.own_recogniser(lab)
        preparing.refuse_nothing(source, layout, language)
        heard_by = load_recogniser(named, device)
        options = preparing.SpeechOptions(layout, language, max_cer, max_s or 60.0, licence, domain)
        with _bar(name) as progress:
            counts = preparing.prepare_speech(
                lab, source, name, heard_by, options, part=preparing.part_of(part), progress=progress
            )
    print(preparing.told(counts))
    return 0


@command
def train(recipe: tyro.conf.Positional[str], *, lab: Lab = None, overrides: Set = []) -> int:  # noqa: B006
    """Train a recipe (or a run's config.json) in this process, or take its run up; launch_gpu.py starts it elsewhere.

    Args:
        recipe: a recipe's name, such as miniature_stage2, or the path of a run's config.json.
    """
    import store
    from salad import training
    from salad.config import apply_overrides, parse_set
    from salad.engines import configuration

    config, name = configuration(recipe)
    config = apply_overrides(config, parse_set(overrides))
    run = training.prepare(store.lab_path(lab), config, name)
    with _bar(run.run_id) as progress:
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
    """Tell what a recipe will cost before it runs: GPU hours, hours of TTS, downloads and disk, a stage a row.

    Speed is what this lab has measured for the same model where it has, else an assumption; the lines below the table
    say which.

    Args:
        recipe: qwen2_5_3b for both stages, qwen2_5_3b_stage1 for one, or the path of a run's config.json.
        gpu: whose hours are counted where nothing is measured, such as H100 or "RTX 4090".
    """
    import dataclasses

    import pyarrow as pa

    import store
    from salad import plan as planning
    from salad.config import apply_overrides, parse_set
    from workbench import tables

    told, where = parse_set(overrides), store.lab_path(lab)
    costs = [planning.cost(where, name, apply_overrides(config, told), gpu) for name, config in planning.stages(recipe)]
    rows = [{k: f"{v:,.1f}" if isinstance(v, float) else v for k, v in dataclasses.asdict(one).items()} for one in costs]
    tables.show(pa.Table.from_pylist(rows).drop_columns("notes"))
    for one in costs:
        print(f"\n{one.stage}", *(f"- {note}" for note in one.notes), sep="\n")
    return 0


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
    yes: bool = False,
    seed: int | None = None,
) -> int:
    """Do a pass over the lab: embed or cluster a corpus, speak a probe or a selection, check, score or encode speech.

    In the order of a study. embed: texts of a corpus become vectors. cluster: balanced clusters of them. probe: some
    texts of each cluster, spoken and checked. score: M, F and D of spoken texts under a checkpoint; then `salad select`
    draws. synthesise: a selection, spoken and checked. check: speech that is there, heard by another recogniser. encode:
    an encoder's frames kept on disk.

    What is done is skipped, what is damaged is made again: the same command goes on where it was. With --on it is
    started there, with so many workers; Ctrl-C then stops watching it, and launch_gpu.py shows, stops and resumes it.

    Args:
        what: embed, cluster, probe, synthesise, check, score or encode.
        on: here, slurm, ssh:HOST or a target's name; without it, in this process.
        workers: how many shards side by side.
        gpus: for each worker, a number or TYPE:NUMBER.
        run: score, encode: the run; by default the newest Stage I.
        step: score: the checkpoint; by default the last.
        speech: score, check, encode: a folder of lab/speech (heldout, probe, natural); probe: its own (probe).
        corpus: embed, cluster: a corpus (broad).
        model: embed, cluster: teacher (the default), or a sentence-transformers model.
        k: cluster: how many (16).
        clustering: probe: by default the newest.
        per_cluster: probe: texts a cluster (6).
        selection: synthesise: the selection (l...).
        tts: probe, synthesise: espeak (the default), kokoro, or package.module:name.
        voices: probe, synthesise: comma-separated; a probe is spoken in all of them.
        asr: probe, synthesise, check: the recogniser; by default lab/models/recogniser.
        encoder: encode: a causal encoder by name, in place of a run's.
        dtype: encode: in which frames are kept (float32: what training computes with).
        yes: encode: go on though the frames take more than 50 GB.
        seed: of the patterns, the clustering, the texts or the voices.
    """
    import store
    from salad.errors import SaladError
    from salad.passes import run as passes

    if what == "synthesise" and selection is None:
        raise SaladError("say which with --selection l...; `salad sql \"from selections\"` shows them")
    given = {
        "run_id": run, "step": step, "speech": speech, "corpus": corpus, "model": model, "k": k, "seed": seed,
        "clustering": clustering, "per_cluster": per_cluster, "selection": selection, "tts": tts, "asr": asr,
        "voices": voices and voices.split(","), "encoder": encoder, "dtype": dtype,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value is not None}
    folder = passes.prepare(store.lab_path(lab), what, options, yes)
    if on is None and workers == 1:
        with _bar(what) as progress:
            told = passes.here(folder, progress)
        print(told)
        return 0
    handle = passes.launch(folder, on or "here", workers, gpus)
    print(f"{folder.run_id} on {on or 'here'}, {workers} workers: python launch_gpu.py logs {folder.run_id} --follow")
    return _watch(handle, what)


def _watch(handle, title: str) -> int:
    """Follow a launched run to its end: 0 where it is done."""
    from salad.errors import SaladError

    try:
        with _bar(title) as progress:
            while (status := handle.wait(0.5))["state"] not in ("done", "failed", "stopped"):
                if status.get("max_steps"):
                    progress(status["step"], status["max_steps"])
    except KeyboardInterrupt:
        print(f"it goes on; python launch_gpu.py stop {handle.run_id} ends it")
        return 130
    if status["state"] != "done":
        raise SaladError(f"{handle.run_id} {status['state']}: {status.get('error')}")
    said = [line.split(" ", 1)[1] for line in handle.logs().splitlines() if line[:2] == "20"]
    print(said[-1] if said else "done")
    if not handle.engine.shares_lab:
        told = handle.fetch()
        print(f"{told['units']} units are here and whole" + "".join(f"; damaged: {line}" for line in told["damaged"]))
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
    """Draw a selection: which texts are worth synthesising, up to a budget in hours.

    Args:
        clustering: by default the lab's newest.
        run: the run whose divergences steer it; by default the newest Stage I.
        step: its checkpoint; by default the last.
        strategy: active, active_rounds, uniform, uniform_clusters, teacher_nll, sample_level, oracle, or
            package.module:name.
        gamma: exponent on d_cluster; the paper's is 5.
        budget: hours of speech; of a round, with all rounds before it.
        max_cer: leave out clusters whose probe has a mean character error rate above.
        speech: the folder of lab/speech that holds the probe.
        parent: active_rounds: the selection that the round before was trained on.
        round: active_rounds: which, from 1.
    """
    import store
    from salad import selection
    from salad.passes.run import checkpoint_of, newest, newest_clustering
    from workbench import tables

    lab = store.lab_path(lab)
    clustering = clustering or newest_clustering(lab)
    run = run or newest(lab, "stage1")
    _, step = checkpoint_of(lab, run, step)
    made = selection.select_told(lab, clustering, run, step, strategy, gamma, budget, seed, max_cer, speech, parent,
                                 round)  # fmt: skip
    store.renew(lab)
    print("\n".join([f"selection {made.selection_id}: {made.hours:.2f} h by {strategy}", *made.notes]))
    tables.show(store.query(lab, f"""select k.cluster_id as cluster, array_to_string(terms[:4], ' ') as terms,
            round(k.p_web, 3) as p_web, round(d_cluster, 3) as d, rank, round(d_adjusted, 3) as d_adjusted,
            rank_adjusted, round(cer, 2) as cer, round(text_share, 2) as text_share, round(p_target, 3) as p_target,
            texts, round(seconds / 3600, 3) as hours, coalesce(left_out, if(dry, 'dry', '')) as note
        from selection_clusters k join selections using (selection_id) left join clusters c
            on c.clustering_id = selections.clustering_id and c.cluster_id = k.cluster_id
        where selection_id = '{made.selection_id}' order by rank nulls last, 1"""), None)
    return 0


@command
def evaluate(
    *,
    lab: Lab = None,
    run: str | None = None,
    step: int | None = None,
    contender: str | None = None,
    name: str | None = None,
    tasks: str | None = None,
    modality: str = "text,speech,cascade",
    voices: str | None = None,
    tts: str = "espeak",
    asr: str | None = None,
    limit: int | None = None,
    transcribe: int = 16,
    against: str | None = None,
    batch: int = 16,
    device: str | None = None,
) -> int:
    """Evaluate a checkpoint on tasks, as text, as speech and through a cascade, item by item into the store.

    A task is a file of lab/tasks or one of lm-evaluation-harness: piqa, piqa@5 with five examples, piqa@5-spoken with
    spoken ones, mmlu for a group. Interrupt it when you like: the same command goes on where it was.

    Args:
        run: by default the newest Stage II.
        step: by default its last checkpoint.
        contender: instead of a run: teacher, qwen2-audio:NAME, qwen2.5-omni:NAME, endpoint:URL#MODEL,
            package.module:name.
        name: the contender's name; by default the run's own.
        tasks: comma-separated; by default all of lab/tasks.
        modality: comma-separated, of text, speech and cascade.
        voices: comma-separated, of the TTS, or recorded; by default those in which the lab has the tasks.
        tts: what speaks contexts that are not spoken yet.
        asr: the recogniser of the cascade; by default lab/models/recogniser.
        limit: only the first items of each task.
        transcribe: recordings of lab/speech/heldout for the transcription check; 0 leaves it out.
        against: another contender (NAME, NAME@run or NAME@run:step) to compare with, item by item.
        batch: prompts at once.
        device: by default cuda where there is one, else cpu.
    """
    import store
    from salad.evaluation import answers, harness, spoken, statistics
    from salad.evaluation import run as evaluation
    from salad.evaluation import tasks as known
    from workbench import tables

    lab = store.lab_path(lab)
    wanted = harness.expand(lab, tasks.split(",") if tasks else known.names(lab))
    other = statistics.sides(lab, against) if against else None
    who = _contender(lab, run, step, contender, name, batch, device)
    split = lambda text: [part.strip() for part in text.split(",")]  # noqa: E731
    with _bar(who.name) as progress:
        evaluation.evaluate(lab, who, wanted, tuple(split(modality)), spoken.listed(voices), tts, asr, limit,
                            progress=progress)  # fmt: skip
    store.renew(lab)
    side = (who.name, who.run_id, who.step)
    tables.show(tables.rounded(statistics.summary(lab, *side, wanted)), None)
    for title, rows in (
        (f"{who.name}'s other sides against its text, item by item:", statistics.modalities(lab, side, wanted)),
        (f"{who.name} against {against}, item by item:", other and statistics.comparisons(lab, side, other, wanted)),
    ):
        if rows:
            print(f"\n{title}")
            tables.show(tables.rounded(rows), None)
    heldout = store.connect(lab).execute("select count(*) from syntheses where speech = 'heldout'").fetchone()[0]
    if transcribe and heldout and "speech" in split(modality) and "speech" in who.modalities:
        with _bar("transcription") as progress:
            wer = answers.transcribe(lab, who, count=transcribe, progress=progress)
        store.renew(lab)
        print(f"transcription of {min(transcribe, heldout)} held-out recordings by {who.name}: WER {wer:.3f}")
    return 0


def _contender(lab, run, step, contender, name, batch, device):
    """Who the options of `evaluate` and `answer` mean: a run's checkpoint, its teacher, or someone from outside."""
    import torch

    from salad.evaluation.contenders import Ours, outside, same_tokenizer
    from salad.passes.run import model_of, newest
    from salad.runs import RunFolder

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if contender not in (None, "teacher"):
        return outside(contender, name, lab, device)
    run = run or newest(lab, "stage2" if contender is None else "stage1")
    model, step = model_of(lab, run, step)
    same_tokenizer(model, lab, f"run {run}, step {step}")
    if contender is None:
        return Ours(model.to(device), name or RunFolder.open(lab, run).config["contender"], run, step, batch=batch)
    import store

    row = store.connect(lab).execute(
        "select run_id, step from runs where kind = 'teacher' and status = 'done' order by ended_at desc limit 1"
    ).fetchone()  # fmt: skip
    return Ours(model.to(device), name or "teacher", *(row or (None, None)), teacher=True, batch=batch)


@command
def answer(
    questions: tyro.conf.Positional[str],
    *,
    lab: Lab = None,
    run: str | None = None,
    step: int | None = None,
    contender: str | None = None,
    name: str | None = None,
    modality: str = "text,speech",
    voice: str | None = None,
    tts: str = "espeak",
    asr: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    device: str | None = None,
) -> int:
    """Answer a list of open questions as text and as speech with the same seed, into the table `answers`.

    Args:
        questions: a file: a question a line, or JSONL with "question" (and "id", "reference").
        run: by default the newest Stage II.
        step: by default its last checkpoint.
        contender: instead of a run, as for `salad evaluate`.
        name: the contender's name; by default the run's own.
        modality: comma-separated, of text, speech and cascade.
        voice: whose, of the TTS; by default its first.
        tts: what speaks the questions.
        asr: the recogniser of the cascade; by default lab/models/recogniser.
        max_new_tokens: at most, of an answer; it ends at a new line before that.
        temperature: 0 answers greedily.
        seed: of the sampling, the same for every modality.
        device: by default cuda where there is one, else cpu.
    """
    import pyarrow as pa

    import store
    from salad.evaluation import answers
    from workbench import tables

    lab = store.lab_path(lab)
    asked = answers.read_questions(questions)
    who = _contender(lab, run, step, contender, name, 16, device)
    with _bar(who.name) as progress:
        rows = answers.answer(lab, who, asked, tuple(part.strip() for part in modality.split(",")), voice, tts, asr,
                              max_new_tokens, temperature=temperature, seed=seed, progress=progress)  # fmt: skip
    store.renew(lab)
    shown = [{key: row[key] for key in ("question", "modality", "text", "reference")} for row in rows]
    tables.show(pa.Table.from_pylist(shown), None)
    return 0


@command(name="import-predictions")
def import_predictions(file: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Bring in the answers of a system that was run elsewhere, after checking every line.

    Args:
        file: JSONL; an object a line with contender, task, item, modality, and scores (a number for each choice) or
            text (an answer in words); voice if you like.
    """
    import store
    from salad.evaluation import predictions

    lab = store.lab_path(lab)
    print(predictions.import_predictions(lab, file))
    store.renew(lab)
    return 0


@contextlib.contextmanager
def _bar(title: str):
    """A progress bar with the time left, on a terminal."""
    from rich.progress import Progress

    with Progress(transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@command
def sql(
    statement: tyro.conf.Positional[str],
    *,
    lab: Lab = None,
    csv: bool = False,
    json: bool = False,
    parquet: File = None,
    timeout: float = 30.0,
    width: int = 0,
) -> int:
    """Ask the lab a question: one SELECT over its tables, printed as a table.

    For example: salad sql "select domain, avg(m) from misalignment group by domain". The tables are described in
    docs/store.md; DESCRIBE and SUMMARIZE work too. Ready-made questions are asked by name, for example
    "from worst_samples('r...', 600)", divergence_by_cluster, change_between_checkpoints, divergence_of_checkpoints,
    selection_after_decisions, run_differences, browse_samples, accuracy_and_gap.

    Args:
        statement: one SELECT, or - to read it from the standard input.
        csv: print CSV.
        json: print one JSON object a line.
        parquet: write a Parquet file instead of printing.
        timeout: seconds before the question is given up.
        width: characters that a column of the table may take at most; 0 sets no limit.
    """
    import store
    from workbench import tables

    rows = store.query(store.lab_path(lab), sys.stdin.read() if statement == "-" else statement, timeout_s=timeout)
    if parquet:
        tables.write_parquet(rows, parquet)
        print(f"{parquet}: {rows.num_rows:,} rows")
    elif csv:
        tables.write_csv(rows, sys.stdout)
    elif json:
        tables.write_json(rows, sys.stdout)
    else:
        tables.show(rows, width or None)
    return 0


@command
def index(*, lab: Lab = None) -> int:
    """Renew lab/store.duckdb, a plain DuckDB file with every table, for tools that open such a file."""
    import store

    print(store.renew(store.lab_path(lab)))
    return 0


@command
def verify(*, lab: Lab = None, repair: bool = False) -> int:
    """Check every file of the store, and the recordings that it names, against their checksums; exit 1 if one is damaged.

    Args:
        repair: move what is damaged out of the way, so that the work that made it can be done again. Recordings stay: the
            pass or preparation that made them, run again, makes the damaged ones anew.
    """
    import store

    found = store.verify(store.lab_path(lab), repair=repair)
    for damage in found:
        print(" · ".join(str(part) for part in (damage.values() if isinstance(damage, dict) else damage)))
    audio = sum(damage.table == "syntheses" and damage.path.startswith("speech/") for damage in found)
    if files := len(found) - audio:
        print(f"{files} " + ("moved out of the way" if repair else "damaged; `salad verify --repair` moves them out of the way"))
    if audio:
        print(f"{audio} of the recordings' files damaged: run the pass, or `salad prepare speech`, that made them again")
    if not found:
        print("nothing is damaged")
    return 1 if audio or (found and not repair) else 0


@command
def compact(*, lab: Lab = None) -> int:
    """Join a lab's many small units into few large ones; what SQL answers stays the same."""
    import store

    print(_told(store.compact(store.lab_path(lab))))
    return 0


@command
def export(what: tyro.conf.Positional[str], to: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Copy a part of the lab, with all that it rests on, into a folder that another lab can import.

    Args:
        what: a selection (l...), a run (r...), or the name of a table.
        to: the folder to write.
    """
    import store

    print(_told(store.export(store.lab_path(lab), what, to)))
    return 0


@command(name="import")
def import_(bundle: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Bring an exported folder, or a whole other lab, into this one; what is already here is not doubled.

    Args:
        bundle: the folder.
    """
    import store

    print(_told(store.import_(store.lab_path(lab), bundle)))
    return 0


@command
def report(*, lab: Lab = None, runs: tyro.conf.UseAppendAction[list[str]] = []) -> int:  # noqa: B006
    """Put the lab's results into a table, into report.md and report.html, and for a paper into lab/report/.

    lab/report/ holds each table as LaTeX (booktabs) and CSV, this lab's rows beside every published figure, and each
    figure as SVG, PNG and CSV.

    Args:
        runs: only these runs, comma-separated or repeated. Without it, each contender's newest checkpoint.
    """
    import store
    from workbench import report as reports

    made = reports.report(store.lab_path(lab), [part for run in runs for part in run.split(",")] if runs else None)
    made.print()
    print(f"{made.markdown_path}, {made.html_path}, and {len(made.files) - 2} files in {made.lab / 'report'}")
    return 0


@command
def findings(
    *,
    lab: Lab = None,
    quick: bool = False,
    half: bool = False,
    seeds: str = "0,1,2",
    cells: str | None = None,
    workers: int = 2,
    plan: bool = False,
    no_run: bool = False,
    write: File = None,
    name: str | None = None,
) -> int:
    """Put the paper's findings to the test in miniature, over seeds: each claim holds, does not hold, or is undecided.

    Studies alpha and breadth of speech, strategies, gamma, K, rounds, hours, spans, divergences, LoRA and full, and
    filtering, in labs under lab/studies/<name>/seed-<n>/, where what the cells share is made once. Hours on two cores;
    interrupt it when you like, the same command goes on. Writes findings.md and CSV files beside the seeds' labs.

    Args:
        quick: fewer cells, less speech and fewer steps, meant for a quarter of an hour on two idle cores.
        half: every cell, with about half the speech and a fifth to a half of the steps: an hour on two idle cores.
        seeds: comma-separated.
        cells: only these, comma-separated; an unknown name lists them all.
        workers: steps that run side by side, one thread each.
        plan: only tell which cells are left and about how long they take.
        no_run: write from what is measured already.
        write: write findings.md to this file, too.
        name: the study's folder; by default findings, findings-half or findings-quick.
    """
    return _study(lab, _size(quick, half), seeds, cells, workers, plan, no_run, write, name, None)


@command
def sweep(
    *,
    lab: Lab = None,
    quick: bool = False,
    half: bool = False,
    seeds: str = "0,1,2",
    axes: str = "strategy,gamma,k,rounds",
    workers: int = 2,
    plan: bool = False,
    no_run: bool = False,
    name: str | None = None,
) -> int:
    """Sweep K, gamma, rounds and all strategies on the miniature: M and speech accuracy after Stage II, by coverage.

    A part of `salad findings`, in the same labs: what either has run, neither runs again.

    Args:
        quick: less speech and fewer steps, meant for ten minutes on two idle cores.
        half: about half the speech, and a fifth to a half of the steps.
        seeds: comma-separated.
        axes: comma-separated, of strategy, gamma, k, rounds, hours, alpha, span, divergence, finetune and faults.
        workers: steps that run side by side, one thread each.
        plan: only tell which cells are left and about how long they take.
        no_run: show what is measured already.
        name: the study's folder; by default findings, findings-half or findings-quick.
    """
    return _study(lab, _size(quick, half), seeds, None, workers, plan, no_run, None, name, axes)


def _size(quick: bool, half: bool) -> str:
    from salad.errors import SaladError

    if quick and half:
        raise SaladError("--quick and --half are two sizes of the same study; give one")
    return "quick" if quick else "half" if half else "full"


def _study(lab, size, seeds, cells, workers, plan, no_run, write, name, axes) -> int:
    from pathlib import Path

    import store
    from salad import studies
    from salad.errors import SaladError
    from workbench import findings as judged

    root = store.lab_path(lab)
    wanted = _parts(axes, judged.AXES, "axis") if axes else tuple(judged.AXES)
    try:
        numbers = tuple(dict.fromkeys(int(seed) for seed in seeds.split(",")))
    except ValueError:
        raise SaladError(f"--seeds {seeds}: give whole numbers, separated by commas") from None
    grid = getattr(studies, size)(*([name] if name else []))
    grid = grid.model_copy(update={"seeds": numbers})
    known = [cell.name for cell in grid.cells]
    only = _parts(cells, known, "cell") if cells else None
    if axes:
        only = [cell.name for cell in grid.cells if set(cell.axes) & set(wanted)]
    if plan:
        judged.show_plan(grid, studies.estimate(grid, root, workers, only), workers)
        return 0
    failed = {}
    if not no_run:
        from rich.console import Console

        from workbench.demo import watching

        with watching(Console()) as watch:
            failed = studies.run(grid, root, watch, workers, only)
    found = judged.findings({s: p for s, p in studies.labs(root, grid.name).items() if s in numbers}, wanted)
    judged.show(found, claims=not axes)
    told = "salad sweep" if axes else "salad findings"
    told += f" --{size}" * (size != "full") + (f" --seeds {seeds}" if seeds != "0,1,2" else "")
    folder = root / "studies" / grid.name
    for path in judged.write(found, folder, told, None if write is None else Path(write), claims=not axes):
        print(path)
    if failed:
        causes: dict[str, list[str]] = {}
        for row, said in failed.items():
            causes.setdefault(said, []).append(row)
        one_line = "; ".join(f"{rows[0]}{f' and {len(rows) - 1} more' * (len(rows) > 1)} ({said})"
                             for said, rows in causes.items())  # fmt: skip
        print(f"{len(failed)} failed: {one_line}. The same command tries them again", file=sys.stderr)
    return 1 if failed else 0


def _parts(given: str, known, what: str) -> tuple[str, ...]:
    """Names separated by commas, each of them known."""
    from salad.errors import SaladError

    names = tuple(part.strip() for part in given.split(",") if part.strip())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise SaladError(f"no {what} {name!r}; {f'did you mean {near[0]}?' if near else 'there are ' + ', '.join(known)}")
    return names


def _told(result) -> str:
    if isinstance(result, dict):
        return ", ".join(f"{key} {value}" for key, value in result.items())
    if isinstance(result, list | tuple):
        return "\n".join(map(str, result)) or "nothing to do"
    return "done" if result is None else str(result)


_DESCRIPTION = """Adapt text LLMs to speech, and see, sample by sample, where speech understanding still falls behind
text. Begin with `salad demo`; each command explains itself with --help."""


def _parse(args: list[str]) -> Callable[[], int | None]:
    """The command that `args` name, bound; raises SystemExit(2) after one line where they name none."""
    config = (tyro.conf.FlagCreatePairsOff, tyro.conf.HelptextFromCommentsOff)
    name, *rest = args or [""]
    complaint = io.StringIO()
    with contextlib.redirect_stderr(complaint):
        try:
            if name in COMMANDS:
                return tyro.cli(COMMANDS[name], prog=f"salad {name}", args=rest, config=config)
            if name in ("-h", "--help", "--tyro-print-completion"):
                return _listing().cli(prog="salad", args=args, description=_DESCRIPTION, config=config)
        except SystemExit as stop:
            if not stop.code:
                raise
    if name in COMMANDS:
        line = _unknown_option(name, rest) or f"{_one_line(complaint.getvalue())} See `salad {name} --help`."
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
        line = f"no command {name!r}; {hint} See `salad --help`." if name else f"say what to do: {', '.join(COMMANDS)}."
    print(f"salad: {line}", file=sys.stderr)
    raise SystemExit(2)


def _listing() -> SubcommandApp:
    app = SubcommandApp()
    for name, bind in COMMANDS.items():
        app.command(name=name, help=bind.__doc__.strip().splitlines()[0])(bind)
    return app


def _unknown_option(name: str, args: list[str]) -> str | None:
    known = ["--help", *("--" + p.replace("_", "-") for p in inspect.signature(COMMANDS[name]).parameters)]
    given = [a.split("=")[0] for a in itertools.takewhile(lambda a: a != "--", args) if a.startswith("--")]
    for option in given:
        if option.replace("_", "-") not in known:
            near = difflib.get_close_matches(option, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}."
            return f"{name} has no option {option}; {hint} See `salad {name} --help`."
    return None


def _one_line(box: str) -> str:
    """tyro's boxed complaint as one line: what stands between its title and its first rule."""
    lines = [line.strip("│╭╰─╮╯ ") for line in box.splitlines()]
    said = " ".join(itertools.takewhile(bool, lines[1:]))
    return f"{said.rstrip('.')}."


def main(args: list[str] | None = None) -> None:
    """Run a command and leave: 0 done, 1 it found something, 2 a user's error in one line, 130 interrupted."""
    from store.errors import UserError

    warnings.formatwarning = lambda message, *_, **__: f"salad: {' '.join(str(message).split())}\n"
    try:
        code = _parse(sys.argv[1:] if args is None else list(args))()
        sys.stdout.flush()
    except UserError as error:
        print(f"salad: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, RuntimeError) as error:
        if not isinstance(error, KeyboardInterrupt) and str(error) != "Query interrupted":  # DuckDB's word for Ctrl-C
            raise
        print("\nsalad: interrupted; the same command goes on where it was.", file=sys.stderr)
        exec("")  # CPython remembers a key that came within an import, and would leave by the signal instead of with 130
        code = 130
    except BrokenPipeError:  # `salad sql ... | head`
        sys.stderr.close()
        code = 0
    except OSError as error:
        where = f" {error.filename}" if error.filename else ""
        print(
            f"salad: {error.strerror or error}{where}; make room or give permission, then run it again.",
            file=sys.stderr,
        )
        code = 2
    raise SystemExit(code or 0)


if __name__ == "__main__":
    main()
