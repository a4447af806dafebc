"""How far word times by forced alignment are from the truth, on speech whose word events the voice itself told.

    salad demo --lab lab && python benchmarks/alignment.py --lab lab       # -> benchmarks/results/alignment.json
    python benchmarks/alignment.py --recogniser MODELS/whisper-tiny.en --tts espeak piper:MODELS/piper-en_US-joe-medium \\
        --texts ../shared/data/texts/broad.jsonl                           # -> benchmarks/results/alignment-whisper-tiny.en.json

With --tts, sentences of the texts are spoken on the spot by engines that tell exact word times. Boundaries are compared
where both have one at the same character: espeak tells "of the" as one word."""

import argparse
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

sys.path = [str(Path(__file__).parents[1]), *sys.path[1:]]  # beside this file, store.py is a benchmark

import store  # noqa: E402
from salad.data import corpora  # noqa: E402
from salad.errors import SaladError  # noqa: E402
from salad.prepare.passages import sentences  # noqa: E402
from salad.speech import SAMPLE_RATE, load_tts  # noqa: E402
from salad.speech.align import align  # noqa: E402
from salad.speech.check import load_recogniser  # noqa: E402
from salad.speech.spoken import spoken_form, text_words  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "alignment.json"
TARGET_MS = 40.0
WHISPER_TARGET_MS = 60.0


def of_lab(lab: Path, speech: str, most: int) -> list[tuple[np.ndarray, str, list]]:
    """(samples, text, words) of up to `most` syntheses of lab/speech/<speech>."""
    spoken = corpora.of_speech(store.connect(lab), [speech])[:most]
    return [(corpora.audio(lab, recording, SAMPLE_RATE), recording.text, recording.words) for recording in spoken]


def of_tts(spec: str, texts: Path, most: int) -> list[tuple[np.ndarray, str, list]]:
    """The same of up to `most` sentences of a JSONL of documents, spoken by an engine."""
    documents = [json.loads(line)["text"] for line in texts.read_text(encoding="utf-8").splitlines()]
    results = [text[start:end] for text in documents[:: max(len(documents) // most, 1)]
             for start, end in sentences(text) if 40 <= end - start <= 150][:: 7][:most]  # fmt: skip
    tts, made = load_tts(spec), []
    for seed, text in enumerate(results):
        form = spoken_form(text)
        utterance = tts.speak(form.spoken, tts.voices[seed % len(tts.voices)], seed)
        made.append((utterance.samples, text, text_words(utterance.words, form, text)))
    return made


def measure(name: str, spoken: list[tuple[np.ndarray, str, list]], recogniser) -> dict:
    """Errors of starts and ends in ms (aligned - true) over speech whose word times are known."""
    samples = [sound for sound, _, _ in spoken]
    begin = time.process_time()
    transcript = recogniser.hear(samples)
    starts, ends, words, scores, refused = [], [], 0, [], 0
    for (sound, text, true), (_, log_probs) in zip(spoken, transcript, strict=True):
        try:
            checked = align(sound, text, recogniser, log_probs)
        except SaladError:
            refused += 1
            continue
        scores.append(checked.score)
        true_start = {word[1]: word[3] for word in true}
        true_end = {word[2]: word[4] for word in true}
        words += len(true)
        starts += [w.start_s - true_start[w.char_start] for w in checked.words if w.char_start in true_start]
        ends += [w.end_s - true_end[w.char_end] for w in checked.words if w.char_end in true_end]
    spent = time.process_time() - begin
    both = 1000 * np.array(starts + ends)
    return {
        "speech": name, "utterances": len(spoken), "refused": refused, "words": words, "boundaries": len(both),
        "boundaries_compared": round(len(both) / (2 * words), 3),
        "median_ms": round(float(np.median(np.abs(both))), 1), "p90_ms": round(float(np.quantile(np.abs(both), 0.9)), 1),
        "within_50_ms": round(float((np.abs(both) <= 50).mean()), 3),
        "start_bias_ms": round(float(np.median(1000 * np.array(starts))), 1),
        "end_bias_ms": round(float(np.median(1000 * np.array(ends))), 1),
        "mean_score_nats": round(float(np.mean(scores)), 3),
        "times_real_time_cpu": round(sum(map(len, samples)) / SAMPLE_RATE / spent, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lab", type=Path, default=Path("lab"))
    parser.add_argument("--speech", nargs="+", default=["heldout", "natural"])
    parser.add_argument("--most", type=int, default=300, help="utterances of each")
    parser.add_argument("--recogniser", help="another model than the lab's own, CTC or of Whisper's type")
    parser.add_argument("--tts", nargs="+", help="engines that speak --texts, instead of a lab's speech")
    parser.add_argument("--texts", type=Path, help="a JSONL of documents with `text`")
    args = parser.parse_args()
    recogniser = load_recogniser(args.recogniser or str(args.lab / "models" / "recogniser"))
    if args.tts:
        rows = [measure(load_tts(spec).name, of_tts(spec, args.texts, args.most), recogniser) for spec in args.tts]
    else:
        rows = [measure(name, of_lab(args.lab, name, args.most), recogniser) for name in args.speech]
    for row in rows:
        print(json.dumps(row))
    name = Path(args.recogniser).name if args.recogniser else None
    fields = {
        "recogniser": name or "the miniature's",
        "target_median_ms": WHISPER_TARGET_MS if args.tts else TARGET_MS,
        "rows": rows,
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    (RESULTS.with_name(f"alignment-{name}.json") if args.tts else RESULTS).write_text(json.dumps(fields, indent=1) + "\n")


if __name__ == "__main__":
    main()
