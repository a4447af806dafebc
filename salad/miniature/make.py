"""Make the miniature's own parts in a lab: its world of texts and items, and its small models. Each is a step of the demo.

Each function takes (progress, lab, its configuration, …), skips what is there already, and returns what it made in a line.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import torch

import store
from salad.data import corpora
from salad.evaluation import tasks
from salad.miniature.encoder import PhoneEncoderConfig
from salad.miniature.recogniser import RecogniserConfig
from salad.miniature.teacher import TeacherConfig
from salad.miniature.world import WorldConfig
from salad.models.speech_lm import load_tokenizer
from salad.passes import Progress, run_once
from salad.runs import RunFolder
from store import atomic


def make_world(progress: Progress | None, lab: Path | str, config: WorldConfig, user_corpus: Path | str | None = None) -> str:
    """Write corpora, tasks and tokenizer, and publish every text with its spoken form and the flags that filtering finds.

    `user_corpus`: a file of the user's own texts, which join the broad corpus."""
    from salad.miniature.world import build_world
    from salad.prepare import Benchmarks, near_duplicates
    from salad.speech.speakability import speakability
    from salad.speech.spoken import spoken_form

    built = build_world(config, lab, user_corpus)
    tokenizer = load_tokenizer("models/tokenizer", lab)
    texts = []
    for corpus in ("natural", "broad", "heldout"):
        rows = pq.read_table(Path(lab) / "corpora" / corpus).to_pylist()
        texts += [(corpus, row["text"], row["domain"], row["licence"], row["planted"]) for row in rows]
    for task in tasks.names(lab):
        texts += [(task, item.context, item.domain, "CC0-1.0", None) for item in tasks.load(lab, task)]
    sample_rows: dict[str, dict] = {}
    broad = list(dict.fromkeys(text for corpus, text, *_ in texts if corpus == "broad"))
    near = {broad[n]: (broad[of], similarity) for n, (of, similarity) in near_duplicates(broad).items()}
    benchmarks = Benchmarks.of_lab(lab)
    for corpus, text, domain, licence, planted in texts:
        name = store.ids.sample_id(corpus, text)
        if name in sample_rows:
            sample_rows[name]["planted"] = sample_rows[name]["planted"] or planted
            continue
        reasons, overlaps = speakability(text), []
        if corpus == "broad":
            overlaps = benchmarks.overlaps(text)
            reasons |= {"benchmark overlap": ", ".join(overlaps)} if overlaps else {}
            if text in near:
                other, similarity = near[text]
                reasons["near-duplicate"] = f"{similarity:.2f} like {store.ids.sample_id(corpus, other)}"
        sample_rows[name] = {
            "sample_id": name, "text": text, "spoken": spoken_form(text).spoken, "corpus": corpus, "domain": domain,
            "n_tokens": len(tokenizer(text, add_special_tokens=False)["input_ids"]), "licence": licence,
            "flags": sorted(reasons), "reasons": json.dumps(reasons, ensure_ascii=False), "benchmarks": overlaps,
            "planted": planted,
        }  # fmt: skip
    store.publish(lab, "samples", list(sample_rows.values()), {"world": built.fingerprint})
    study = Path(lab) / "study.json"
    if study.exists():  # the domains' masses as they came out, the user's texts among them: reports weigh by them
        atomic.write_json(study, atomic.load_json(study) | {"p_web": built.p_web})
    documents = ", ".join(f"{count} {name}" for name, count in built.documents.items())
    return f"{documents} documents, {sum(built.items.values())} items"


def _train_as_run(
    progress: Progress | None,
    lab: Path | str,
    kind: str,
    config: dict,
    steps: int,
    work: Callable[[Callable[[int, float], None]], object],
) -> RunFolder:
    """Train one of the miniature's own models inside a run folder, its losses in `metrics`; `work(on_step)` trains.

    There is no checkpoint: a training that was stopped begins again."""

    def train(run: RunFolder, progress: Progress) -> None:
        writer = run.metrics_writer(1)

        def on_step(step: int, loss: float) -> None:
            if step % 10 == 0 or step == steps:
                writer.log(step, 0, loss=loss)
                progress(step, steps)

        work(on_step)
        writer.close()

    torch.set_num_threads(1)
    return run_once(lab, f"miniature_{kind}", config, train, kind=kind, progress=progress)


def _make_model(lab: Path | str, folder: Path, train: Callable[[], object]) -> None:
    """Train into a model folder of the lab and record what is there. `train` leaves a finished model as it is; one that is
    not what was recorded is trained again."""
    if store.files.fault(folder) is not None:
        (folder / "training.json").unlink(missing_ok=True)
    train()
    store.files.record(lab, [folder], "salad demo")


def make_teacher(progress: Progress | None, lab: Path | str, config: TeacherConfig) -> tuple[str, str]:
    """Train the text LLM on the corpus `pretrain`. Returns what was made, and the run's id."""
    from salad.miniature.teacher import train_teacher

    texts = corpora.texts(lab, ["pretrain"])
    tokenizer = load_tokenizer("models/tokenizer", lab)
    made_from = config.model_dump(mode="json") | {"texts": store.ids.digest(texts)}
    folder = Path(lab) / "models" / "teacher"
    run = _train_as_run(progress, lab, "teacher", made_from, config.steps,
                        lambda on_step: _make_model(
                            lab, folder, lambda: train_teacher(config, texts, tokenizer, folder, on_step)))  # fmt: skip
    return f"{config.steps} steps on {len(texts)} documents", run.run_id


def make_encoder(progress: Progress | None, lab: Path | str, config: PhoneEncoderConfig) -> str:
    """Train the speech encoder as a phone classifier on pseudo-words."""
    from salad.miniature.encoder import train_encoder

    folder = Path(lab) / "models" / "encoder"
    _train_as_run(progress, lab, "encoder", config.model_dump(mode="json"), config.steps,
                  lambda on_step: _make_model(lab, folder, lambda: train_encoder(config, folder, on_step)))  # fmt: skip
    return f"{config.steps} steps on {config.utterances} pseudo-word utterances"


def make_recogniser(progress: Progress | None, lab: Path | str, config: RecogniserConfig, n_texts: int) -> str:
    """Train the CTC recogniser on the first `n_texts` texts of the corpus `pretrain`, over the lab's encoder."""
    from salad.miniature.recogniser import train_recogniser

    texts = corpora.texts(lab, ["pretrain"])[:n_texts]
    folder = Path(lab) / "models" / "recogniser"
    made_from = config.model_dump(mode="json") | {"texts": store.ids.digest(texts)}
    _train_as_run(progress, lab, "recogniser", made_from, config.steps,
                  lambda on_step: _make_model(lab, folder, lambda: train_recogniser(
                      config, texts, folder, on_step, encoder=Path(lab) / "models" / "encoder")))  # fmt: skip
    return f"{config.steps} steps on {len(texts)} texts"
