"""`salad evaluate`, `answer` and `import-predictions`."""

import tyro

from workbench.cli.app import Lab, command, progress_bar


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
    tts: str | None = None,
    asr: str | None = None,
    limit: int | None = None,
    transcribe: int = 16,
    against: str | None = None,
    batch: int | None = None,
    device: str | None = None,
    seed: int = 0,
) -> int:
    """Evaluate a checkpoint on tasks, as text, as speech and through a cascade, and store the result of every item.

    A task is a file in lab/tasks or a task of lm-evaluation-harness: piqa; piqa@5 with five examples; piqa@5-spoken with
    five spoken examples; mmlu for a group of tasks. You may interrupt it at any time: rerun the command to resume.

    Args:
        run: the run to evaluate (default: the newest Stage II).
        step: the checkpoint, by its step (default: the run's last).
        contender: what to evaluate instead of a run: teacher, qwen2-audio:NAME, qwen2.5-omni:NAME, endpoint:URL#MODEL,
            or package.module:name.
        name: name of the contender in the results (default: the run's own name).
        tasks: comma-separated tasks (default: every task in lab/tasks).
        modality: comma-separated modalities: text, speech, cascade, and two control conditions: deaf (each item with the
            recording of another item) and silent (silence instead of a recording).
        voices: comma-separated voices of the TTS, or `recorded` (default: the voices in which the lab has the tasks).
        tts: synthesiser whose speech is used, and that speaks contexts that have no speech yet (default: the one that has
            spoken the tasks in this lab, else espeak).
        asr: recogniser of the cascade (default: lab/models/recogniser).
        limit: use only the first N items of each task (default: all).
        seed: random seed that pairs items with recordings in the modality deaf.
        transcribe: number of recordings of lab/speech/heldout for the transcription check; 0 skips it.
        against: compare item by item with another contender: NAME, NAME@RUN or NAME@RUN:STEP.
        batch: prompts per batch (default: as many as fit into memory).
        device: torch device (default: cuda if available, else cpu).
    """
    import store
    from salad.evaluation import answers, harness, spoken, statistics
    from salad.evaluation.run import evaluate as evaluate_contender
    from salad.evaluation.tasks import names as task_names
    from workbench import tables

    lab = store.lab_path(lab)
    wanted = harness.expand(lab, tasks.split(",") if tasks else task_names(lab))
    other = statistics.sides(lab, against) if against else None
    who = _contender(lab, run, step, contender, name, batch, device)
    split = lambda text: [part.strip() for part in text.split(",")]  # noqa: E731
    with progress_bar(who.name) as progress:
        evaluate_contender(
            lab, who, wanted, tuple(split(modality)), spoken.listed(voices), tts, asr, limit, progress=progress, seed=seed
        )
    store.renew(lab)
    side = (who.name, who.run_id or getattr(who, "fingerprint", None), who.step)
    rows = statistics.summary(lab, *side, wanted)
    tables.show(tables.rounded([{name: value for name, value in row.items() if name != "hearing"} for row in rows]), None)
    for row in rows:
        if row["hearing"]:
            print(f"{row['task']}, heard share: {statistics.share_in_words(row)}")
    for title, rows in (
        (f"{who.name}'s other sides against its text, item by item:", statistics.modalities(lab, side, wanted)),
        (f"{who.name} against {against}, item by item:", other and statistics.comparisons(lab, side, other, wanted)),
    ):
        if rows:
            print(f"\n{title}")
            tables.show(tables.rounded(rows), None)
    heldout = store.connect(lab).execute("select count(*) from syntheses where speech = 'heldout'").fetchone()[0]
    if transcribe and heldout and "speech" in split(modality) and "speech" in who.modalities:
        with progress_bar("transcription") as progress:
            wer = answers.transcribe(lab, who, count=transcribe, progress=progress)
        store.renew(lab)
        print(f"transcription of {min(transcribe, heldout)} held-out recordings by {who.name}: WER {wer:.3f}")
    return 0


def _contender(lab, run, step, contender, name, batch, device):
    """The contender that the options of `evaluate` and `answer` select: a run's checkpoint, its teacher, or an outside system."""
    import torch

    from salad import lookup
    from salad.evaluation.contenders import Ours, outside, same_tokenizer
    from salad.runs import RunFolder

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if contender not in (None, "teacher"):
        return outside(contender, name, lab, device)
    run = run or lookup.newest_run(lab, "stage2" if contender is None else "stage1")
    model, step = lookup.model_of(lab, run, step)
    same_tokenizer(model, lab, f"run {run}, step {step}")
    if contender is None:
        return Ours(model.to(device), name or RunFolder.open(lab, run).config["contender"], run, step, batch=batch)
    return Ours(model.to(device), name or "teacher", *lookup.newest_teacher(lab), teacher=True, batch=batch)


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
    tts: str | None = None,
    asr: str | None = None,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    device: str | None = None,
) -> int:
    """Answer a list of open questions as text and as speech with the same seed, and store the answers in the table `answers`.

    Args:
        questions: file with one question per line, or JSONL with "question" (and optionally "id" and "reference").
        run: the run that answers (default: the newest Stage II).
        step: the checkpoint, by its step (default: the run's last).
        contender: what answers instead of a run, as for `salad evaluate`.
        name: name of the contender in the results (default: the run's own name).
        modality: comma-separated modalities: text, speech, cascade.
        voice: voice of the TTS (default: its first).
        tts: synthesiser of the questions (default: the one that has spoken them in this lab, else espeak).
        asr: recogniser of the cascade (default: lab/models/recogniser).
        max_new_tokens: maximum number of tokens in an answer; an answer also ends at the first line break.
        temperature: sampling temperature; 0 decodes greedily.
        seed: random seed of the sampling, shared by all modalities.
        device: torch device (default: cuda if available, else cpu).
    """
    import pyarrow as pa

    import store
    from salad.evaluation import answers
    from workbench import tables

    lab = store.lab_path(lab)
    asked = answers.read_questions(questions)
    who = _contender(lab, run, step, contender, name, None, device)
    with progress_bar(who.name) as progress:
        rows = answers.answer(lab, who, asked, tuple(part.strip() for part in modality.split(",")), voice, tts, asr,
                              max_new_tokens, temperature=temperature, seed=seed, progress=progress)  # fmt: skip
    store.renew(lab)
    shown = [{key: row[key] for key in ("question", "modality", "text", "reference")} for row in rows]
    tables.show(pa.Table.from_pylist(shown), None)
    return 0


@command(name="import-predictions")
def import_predictions(file: tyro.conf.Positional[str], *, lab: Lab = None) -> int:
    """Import the answers of a system that ran elsewhere, after checking every line.

    Args:
        file: JSONL with one object per line: contender, task, item, modality, and either scores (one number per choice)
            or text (an answer in words); voice is optional.
    """
    import store
    from salad.evaluation import predictions

    lab = store.lab_path(lab)
    print(predictions.import_predictions(lab, file))
    store.renew(lab)
    return 0
