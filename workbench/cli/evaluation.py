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
        modality: comma-separated, of text, speech and cascade, and of two floors for what is heard: deaf (another item's
            recording) and silent.
        voices: comma-separated, of the TTS, or recorded; by default those in which the lab has the tasks.
        tts: whose speech is heard, and what speaks contexts that are not spoken yet; by default who has spoken the tasks
            here, else espeak.
        asr: the recogniser of the cascade; by default lab/models/recogniser.
        limit: only the first items of each task.
        seed: draws whose recording is heard in modality deaf.
        transcribe: recordings of lab/speech/heldout for the transcription check; 0 leaves it out.
        against: another contender (NAME, NAME@run or NAME@run:step) to compare with, item by item.
        batch: prompts at once; by default as many as memory holds.
        device: by default cuda where there is one, else cpu.
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
        evaluate_contender(lab, who, wanted, tuple(split(modality)), spoken.listed(voices), tts, asr, limit,
                            progress=progress, seed=seed)  # fmt: skip
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
    """Who the options of `evaluate` and `answer` mean: a run's checkpoint, its teacher, or someone from outside."""
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
    """Answer a list of open questions as text and as speech with the same seed, into the table `answers`.

    Args:
        questions: a file: a question a line, or JSONL with "question" (and "id", "reference").
        run: by default the newest Stage II.
        step: by default its last checkpoint.
        contender: instead of a run, as for `salad evaluate`.
        name: the contender's name; by default the run's own.
        modality: comma-separated, of text, speech and cascade.
        voice: whose, of the TTS; by default its first.
        tts: what speaks the questions; by default who has spoken them here, else espeak.
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
