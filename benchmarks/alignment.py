"""How far word times by forced alignment are from the truth, on speech whose word events the voice itself told.

    salad demo --lab lab && python benchmarks/alignment.py --lab lab       # -> benchmarks/results/alignment.json

Boundaries are compared where both have one at the same character: espeak tells "of the" as one word."""

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
from salad.speech import SAMPLE_RATE  # noqa: E402
from salad.speech.align import align  # noqa: E402
from salad.speech.check import load_recogniser  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "alignment.json"
TARGET_MS = 40.0


def measure(lab: Path, speech: str, most: int, recogniser) -> dict:
    """Errors of starts and ends in ms (aligned - true) over up to `most` syntheses of lab/speech/<speech>."""
    spoken = corpora.of_speech(store.connect(lab), [speech])[:most]
    samples = [corpora.audio(lab, one, SAMPLE_RATE) for one in spoken]
    begin = time.process_time()
    heard = recogniser.hear(samples)
    starts, ends, words, scores = [], [], 0, []
    for one, sound, (_, log_probs) in zip(spoken, samples, heard, strict=True):
        found = align(sound, one.text, recogniser, log_probs)
        scores.append(found.score)
        true_start = {word[1]: word[3] for word in one.words}
        true_end = {word[2]: word[4] for word in one.words}
        words += len(one.words)
        starts += [w.start_s - true_start[w.char_start] for w in found.words if w.char_start in true_start]
        ends += [w.end_s - true_end[w.char_end] for w in found.words if w.char_end in true_end]
    spent = time.process_time() - begin
    both = 1000 * np.array(starts + ends)
    return {
        "speech": speech, "utterances": len(spoken), "words": words, "boundaries": len(both),
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
    parser.add_argument("--recogniser", help="another CTC model than the lab's own")
    args = parser.parse_args()
    recogniser = load_recogniser(args.recogniser or str(args.lab / "models" / "recogniser"))
    rows = [measure(args.lab, name, args.most, recogniser) for name in args.speech]
    for row in rows:
        print(json.dumps(row))
    told = {
        "recogniser": args.recogniser or "the miniature's", "target_median_ms": TARGET_MS, "rows": rows,
        "machine": {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)},
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
    }  # fmt: skip
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
