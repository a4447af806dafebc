"""`salad prepare text` at two sizes: that its memory does not grow with the corpus, and how long a document takes.

    python benchmarks/prepare.py                          # 100,000 and 1,000,000 short documents, one worker
    python benchmarks/prepare.py --documents 2000000 --workers 2 --folder DIR

The documents are made up: 3 to 5 sentences of common English words, one passage each; one in fifty is an earlier one
again and one in fifty an earlier one with two words changed. Each size is prepared by the command itself, in a lab of
its own that is removed. Memory is the resident set of the process and its workers together, looked at ten times a
second: of the process alone the kernel's own high-water mark. Results: `benchmarks/results/prepare.json`.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "prepare.json"
WORDS = """the a an this that every some people child woman man teacher doctor farmer river mountain house garden street
city village school window door table paper letter story question answer morning evening winter summer market bread water
coffee engine machine bridge road train ship harbour island forest field horse dog bird fish stone metal glass wood fire
light shadow colour music voice song picture number measure reason result problem idea plan method question example small
large old young early late quiet bright heavy simple careful certain common clear strong deep long short warm cold full
empty takes makes finds gives keeps brings carries follows builds opens closes reads writes hears sees knows thinks says
tells asks answers remembers forgets learns teaches changes moves turns grows falls rises begins ends and but or because
while when where before after under over between through without against about with from into near slowly quickly often
never always again together alone today yesterday perhaps almost already still""".split()


def write(path: Path, count: int) -> None:
    rng, kept = random.Random(0), []
    with open(path, "w") as file:
        for number in range(count):
            again = rng.random()
            if kept and again < 0.04:
                words = list(rng.choice(kept))
                if again < 0.02:
                    for at in rng.sample([i for i, word in enumerate(words) if word.isalpha() and word.islower()], 2):
                        words[at] = rng.choice(WORDS)
            else:
                words = []
                for _ in range(rng.randint(3, 5)):
                    sentence = rng.choices(WORDS, k=rng.randint(9, 14))
                    words += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
                if len(kept) < 2_000:
                    kept.append(words)
            file.write(json.dumps({"id": f"d{number}", "text": " ".join(words), "licence": "CC0-1.0"}) + "\n")


def resident_mb(pid: int) -> float:
    """Of a process and its children."""
    try:
        result = Path(f"/proc/{pid}/status").read_text()
        children = [c for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    own = next((int(line.split()[1]) / 1024 for line in result.splitlines() if line.startswith("VmRSS")), 0.0)
    return own + sum(resident_mb(int(child)) for child in children)


def measure(count: int, workers: int, folder: str | None) -> dict:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, lab = Path(place) / "documents.jsonl", Path(place) / "lab"
        write(source, count)
        begin, load = time.perf_counter(), os.getloadavg()[0]
        process = subprocess.Popen(
            [sys.executable, "-m", "workbench.cli", "prepare", "text", str(source), "--name", "made_up", "--lab", str(lab),
             "--workers", str(workers)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        peak, own = 0.0, 0
        while process.poll() is None:
            peak = max(peak, resident_mb(process.pid))
            try:
                result = Path(f"/proc/{process.pid}/status").read_text()
                own = next((int(x.split()[1]) // 1024 for x in result.splitlines() if x.startswith("VmHWM")), own)
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.1)
        output = process.communicate()[0]
        if process.returncode:
            raise SystemExit(f"salad prepare text ended with {process.returncode}")
        seconds = time.perf_counter() - begin
        counts = json.loads((lab / "corpora" / "made_up.json").read_text())["counts"]
        print(output, flush=True)
        return {"documents": count, "workers": workers, "source_mb": source.stat().st_size >> 20, "seconds": round(seconds),
                "documents_per_s": round(count / seconds, 1), "peak_memory_mb": round(peak), "process_memory_mb": own,
                "passages": counts["passages"], "flags": counts["flags"], "load_before": round(load, 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", help="where corpus and lab are for the time of the run")
    args = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    for count in args.documents:
        row = measure(count, args.workers, args.folder)
        print(row, flush=True)
        others = [r for r in results["rows"] if (r["documents"], r["workers"]) != (count, args.workers)]
        results["rows"] = sorted([*others, row], key=lambda r: (r["documents"], r["workers"]))
        results["machine"] = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
