"""Encoder frames a second for speech spans: Whisper's windows as long as the speech, batched, against 30 s windows one by one.

    python benchmarks/encoders.py [--model openai/whisper-tiny.en] [--recordings DIR] [--write]

Without real weights (SALAD_MODELS, or a hub) it stops in one line. `--recordings`: a folder of WAV or FLAC; by default noise of
speech's lengths, which costs the same. Both ways encode the same spans, of 3 to 15 words' length, in one run, turn by turn.
`--write`: into results/encoders.json, as {"rows": [{"what", "ratio", "target", "peer", "met", "hardware", "command"}]}.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path = [str(Path(__file__).parents[1]), *sys.path[1:]]  # beside this file, store.py is a benchmark

from salad import SaladError  # noqa: E402
from salad.config import EncoderConfig  # noqa: E402
from salad.models.encoders import load_encoder  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "encoders.json"
TARGET = 15.0
SECONDS_A_WORD = 0.37  # LibriSpeech: 2.7 words a second


def spans(folder: str | None, count: int, rate: int, seed: int = 0) -> list[torch.Tensor]:
    """`count` spans of 3 to 15 words' length, cut from the recordings of a folder or of noise; float32 [T_i]."""
    rng = np.random.default_rng(seed)
    sounds = []
    if folder is not None:
        from salad.speech.audio import decode

        for path in sorted(path for path in Path(folder).rglob("*") if path.suffix in (".wav", ".flac")):
            samples, own = decode(path)[:2]
            if own == rate:
                sounds.append(samples.mean(-1) if samples.ndim > 1 else samples)
    if not sounds:
        sounds = [0.05 * rng.standard_normal(rate * 20)]
    results = []
    while len(results) < count:
        sound = sounds[int(rng.integers(len(sounds)))]
        length = min(int(rng.integers(3, 16) * SECONDS_A_WORD * rate) // 1280 * 1280, len(sound) // 1280 * 1280)
        first = int(rng.integers(0, len(sound) - length + 1))
        results.append(torch.from_numpy(np.ascontiguousarray(sound[first : first + length], dtype=np.float32)))
    return results


def timed(encode, batches: list[list[torch.Tensor]]) -> float:
    """Processor seconds for all batches: another program on the machine does not count."""
    began = time.process_time()
    for batch in batches:
        encode(batch)
    return time.process_time() - began


def hardware() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {torch.get_num_threads()} thread"
    return platform.processor() or platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="openai/whisper-tiny.en")
    parser.add_argument("--recordings", default=None, help="a folder of WAV or FLAC files")
    parser.add_argument("--spans", type=int, default=32, help="spans a batch, of which the peer encodes a quarter")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    try:
        ours = load_encoder(EncoderConfig(name=given.model, window="speech", stack=4))
        peer = load_encoder(EncoderConfig(name=given.model, window="full", stack=4))
    except SaladError as error:
        print(f"benchmarks/encoders.py: {error}", file=sys.stderr)
        return 2
    cut = [spans(given.recordings, given.spans, ours.sample_rate, seed) for seed in range(given.batches)]
    few = [batch[::4] for batch in cut]  # a 30 s window costs the same whatever it holds
    ours.each(cut[0][:4]), peer.each(few[0][:1])  # warm
    seconds = {"ours": 0.0, "peer": 0.0}
    for batch, some in zip(cut, few, strict=True):  # turn by turn
        seconds["ours"] += timed(ours.each, [batch])
        seconds["peer"] += timed(peer.each, [some])
    rate = {
        "ours": sum(map(len, sum(cut, []))) / ours.sample_rate * ours.frame_rate / seconds["ours"],
        "peer": sum(map(len, sum(few, []))) / peer.sample_rate * peer.frame_rate / seconds["peer"],
    }
    together, alone = ours.each(cut[0]), [ours(span) for span in cut[0]]
    off = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(together, alone, strict=True))
    ratio = rate["ours"] / rate["peer"]
    row = {
        "what": f"encoder frames/s for spans of 3 to 15 words, {given.model}",
        "ratio": round(ratio, 2),
        "target": TARGET,
        "peer": "the same encoder, windows of 30 s, one by one",
        "met": ratio >= TARGET and off <= 1e-4,
        "frames_s": {name: round(value, 1) for name, value in rate.items()},
        "largest_relative_difference_from_alone": round(off, 7),
        "hardware": hardware(),
        "command": " ".join(["python", "benchmarks/encoders.py", *(word for word in sys.argv[1:] if word != "--write")]),
    }
    print(json.dumps(row, indent=1))
    if given.write:
        RESULTS.write_text(json.dumps({"rows": [row]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
