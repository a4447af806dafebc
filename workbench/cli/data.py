"""`salad prepare`: bring your own documents and recordings into the lab."""

from typing import Literal

import tyro

from workbench.cli.app import Lab, command, progress_bar


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
    characters_per_s: float | None = None,
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
    """Bring your own documents or recordings into the lab; everything that is left out is counted, with the reason.

    text: documents (Parquet, JSONL, a folder of either, or a saved dataset) become passages of speakable length in
    lab/corpora and rows of `samples`. speech: recordings with transcripts become a Lhotse Shar with word times in
    lab/speech and rows of `syntheses`. Rerun an interrupted command to resume. See docs/data.md.

    Args:
        what: text (documents) or speech (recordings).
        source: the documents, or the recordings: a folder (LibriSpeech, LibriHeavy, Emilia, tars), TSV, CSV, JSONL, cuts or tar.
        name: name of the corpus in the lab.
        licence: licence of documents or recordings that do not name one.
        language: en, de or zh. It decides how numbers are read aloud; texts in another language are left out. With `any`
            nothing is left out, and everything is read as English.
        column: text: the column that contains the text.
        answer: text: the column that contains a chat's answer to the text; such a text is taken whole, or not at all.
        min_s: text: minimum length of a passage, in seconds of expected speech.
        max_s: maximum length in seconds, of a passage (default: 30) or a recording (default: 60).
        characters_per_s: text: speaking rate, in characters of the spoken form per second (default: the language's).
        tasks: text: comma-separated tasks to check for overlap (default: every task in lab/tasks).
        ngram: text: number of consecutive words that count as an overlap with a task.
        near: text: Jaccard similarity from which a passage counts as a near-duplicate.
        tokenizer: text: tokenizer (folder or hub name) whose tokens are counted in samples.n_tokens (default: none).
        workers: text: number of processes.
        layout: speech: how the folder is laid out.
        recogniser: speech: CTC model or Whisper that aligns and checks the recordings (default: lab/models/recogniser).
        max_cer: speech: character error rate above which a recording is set aside, because it does not match its text.
        domain: speech: domain of recordings that do not name one.
        device: speech: device of the recogniser.
        part: speech: K/N processes every N-th shard starting at K, so that N processes can share the work.
    """
    import store
    from salad import prepare

    lab = store.lab_path(lab)
    if what == "text":
        options = prepare.TextOptions(
            column, language, min_s, max_s or 30.0, characters_per_s, ngram, near, licence, tokenizer, answer
        )
        wanted = tasks.split(",") if tasks else None
        with progress_bar(name) as progress:
            counts = prepare.prepare_text(lab, source, name, options, tasks=wanted, workers=workers, progress=progress)
    else:
        from salad.errors import SaladError
        from salad.speech.check import load_recogniser

        if answer is not None:
            raise SaladError("--answer is for text; a table of recordings holds answers in its column `answer`")
        if workers != 1:
            raise SaladError("--workers is for text; for speech start a process for each --part K/N, K from 0")
        named = recogniser or prepare.own_recogniser(lab)
        prepare.refuse_nothing(source, layout, language)
        heard_by = load_recogniser(named, device)
        options = prepare.SpeechOptions(layout, language, max_cer, max_s or 60.0, licence, domain)
        with progress_bar(name) as progress:
            counts = prepare.prepare_speech(
                lab, source, name, heard_by, options, part=prepare.parse_part(part), progress=progress
            )
    print(prepare.describe_counts(counts))
    return 0
