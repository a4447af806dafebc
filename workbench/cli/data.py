"""`salad prepare`: documents and recordings of one's own into the lab."""

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
    """Bring documents or recordings of your own into the lab; what is left out is counted, with its reason.

    text: documents (Parquet, JSONL, a folder of either, or a saved dataset) become passages of speakable length in
    lab/corpora and `samples`. speech: recordings with transcripts become a Lhotse Shar with word times in lab/speech,
    and `syntheses`. Interrupted, the same command goes on where it was. docs/data.md tells more.

    Args:
        what: text or speech.
        source: the documents, or the recordings: a folder (LibriSpeech, LibriHeavy, Emilia, tars), TSV, CSV, JSONL, cuts or tar.
        name: what the corpus is called in the lab.
        licence: of documents or recordings that name none.
        language: en, de or zh: how numbers are read; what is in another is left out (any: nothing is, and it is read as English).
        column: text: the column that holds the text.
        answer: text: the column that holds what a chat answers to it; such texts are taken whole, or not at all.
        min_s: text: the least expected speech of a passage, in seconds.
        max_s: the most: of a passage (30), or of a recording (60).
        characters_per_s: text: of the spoken form, for the expected speech; by default the language's.
        tasks: text: comma-separated tasks to look for; by default all of lab/tasks.
        ngram: text: how many words in a row make an overlap with a task.
        near: text: similarity from which a passage is a near-duplicate.
        tokenizer: text: a folder or repository whose tokens are counted into samples.n_tokens.
        workers: text: processes.
        layout: speech: how the folder is laid out.
        recogniser: speech: the CTC model or Whisper that aligns and checks; by default the lab's own.
        max_cer: speech: character error rate above which the text does not match.
        domain: speech: of recordings that name none.
        device: speech: where the recogniser runs.
        part: speech: K/N does every N-th shard from K, for a process of its own.
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
