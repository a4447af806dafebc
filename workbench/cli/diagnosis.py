"""`salad diagnose`."""

from typing import Annotated

import tyro

from workbench.cli.app import Lab, command, progress_bar


@command
def diagnose(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")],
    *,
    texts: Annotated[str, tyro.conf.arg(metavar="NAME")],
    lab: Lab = None,
    name: str | None = None,
    base: str | None = None,
    limit: int = 256,
    voices: str | None = None,
    tts: str | None = None,
    asr: str | None = None,
    instruction: str | None = None,
    control: str = "deaf,silent",
    k: int | None = None,
    embedder: str | None = None,
    device: str | None = None,
    seed: int = 0,
) -> int:
    """Find where a speech LLM falls behind its own text self, as it is: nothing is trained.

    Each prompt goes in once as speech and once as text. On what follows it, token by token, M says how far the model is
    from itself, over its whole vocabulary; --base adds D and F. A deaf control (another text's recording) and a silent one
    show how much of M is not hearing at all. Interrupt it when you like: the same command goes on where it was.

    For example `salad prepare text articles.jsonl --name articles`, then `salad diagnose Qwen/Qwen2-Audio-7B-Instruct
    --texts articles`. docs/how-to/diagnose.md has a whole run, and a class for a model of your own.

    Args:
        model: a run (r..., r...@STEP), a contender's name (stage2_active), a checkpoint's folder, a folder or hub name of
            Qwen2-Audio, Qwen2.5-Omni, Qwen3-Omni or Voxtral, or a class of your own, package.module:name.
        texts: a corpus, a folder of lab/speech, or a task (piqa). A text without an answer is divided in the middle: its first
            part is spoken, and the rest is predicted. `salad prepare` brings texts and recordings of your own into the lab.
        name: what tables call the model.
        base: the text LLM that it was made from, a folder or hub name of the same tokenizer: then D and F are measured. A
            checkpoint of salad knows its own.
        limit: texts at most.
        voices: comma-separated, or recorded; by default those that the texts are spoken in already, else the TTS's first.
        tts: what speaks, if nothing has yet: espeak (the default), kokoro, piper:FOLDER, package.module:name.
        asr: the recogniser that checks what is spoken now; by default lab/models/recogniser.
        instruction: words that stand before every prompt, always as text, such as "Answer the question."
        control: comma-separated, of deaf and silent; none leaves both out.
        k: clusters to divide these texts into; by default those of the lab's newest clustering, or about one for 12 texts
            where there is none.
        embedder: embeds the texts for clustering: a sentence-transformers model; by default the model itself.
        device: by default cuda where there is one, else cpu.
        seed: draws the texts, and whose recording a deaf control hears.
    """
    import torch

    import store
    from salad import parts
    from salad.evaluation import diagnosis, passages, speech_llms, spoken
    from workbench import diagnosis as shown
    from workbench import tables
    from workbench.reports.diagnosis import write_page

    place = store.lab_path(lab)
    parts.trust(model, tts)
    controls = _controls(control)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    llm = speech_llms.load(model, place, name, device)
    reference = None if base is None else diagnosis.base_of(base, llm, place, device)
    with progress_bar("speaking") as progress:
        asked = passages.read_texts(place, texts, limit, seed, spoken.listed(voices), tts, asr, instruction, progress)
    with progress_bar(llm.name) as progress:
        done = diagnosis.diagnose(place, llm, asked, reference, controls, instruction, seed, progress)
    notes, samples = list(done.texts.notes), sorted({one.sample_id for one in done.texts.passages})
    with progress_bar("clusters") as progress:
        notes += diagnosis.cluster(place, llm, done.texts, k, embedder, seed, progress)
    store.renew(place)
    con = store.connect(place)
    known = shown.diagnosed(con)
    own = next(side for side in known if side.run_id == done.runs["speech"])
    per_text = shown.read(con, known)
    there = {run: set(part.sample_id) for run, part in per_text.groupby("run_id")}
    sides = [own, *(side for side in known if side is not own and set(samples) <= there.get(side.run_id, set()))]
    table = shown.compared(con, sides, samples)
    tables.show_words(shown.model_rows(table))
    print(shown.verdict(table.to_dict("records")[0]))
    worst = shown.cluster_rows(shown.worst_clusters(con, own, samples=samples))
    if worst:
        print(f"\nwhere {own.label} hears worst:")
        tables.show_words(worst)
    for note in notes:
        print(f"note: {note}")
    print(f"\nlisten: {write_page(con, place, sides, samples)}")
    where = "" if lab is None else f"SALAD_LAB={place} "
    print(f"open:   {where}marimo edit notebooks/divergences.py    (this diagnosis: {own.run_id})")
    return 0


def _controls(text: str) -> list[str]:
    from salad.errors import SaladError
    from salad.evaluation.diagnosis import CONDITIONS

    wanted = [part.strip() for part in text.split(",") if part.strip() and part.strip() != "none"]
    for part in wanted:
        if part not in CONDITIONS[1:]:
            raise SaladError(f"--control {part}: there are {', '.join(CONDITIONS[1:])} and none")
    return wanted
