"""Balanced k-means beside its peers: how even, at what cost of cosine, how fast, in how much memory.

    python benchmarks/clusters.py                        # quality on three worlds, speed at 10^6 documents
    python benchmarks/clusters.py --speed 10000000       # the full size: 15 GB of Parquet under --folder, removed at the end
    python benchmarks/clusters.py --peer FOLDER          # where k-means-constrained was installed (pip --target)
    python benchmarks/clusters.py --tables               # Markdown of the committed results

The worlds are synthetic embeddings of 384 dimensions: 1,000 topics in 40 fields, topic masses falling as rank^-s,
within a 64-dimensional subspace and noise. s = 1 is harsh (the largest topic alone fills four of 32 clusters, so that
balance must cut it in pieces), 0.7 and 0.5 are milder. Held-out documents come from another seed. The loss is of the
held-out mean cosine to the own centre, against the best of three of faiss's plain spherical k-means on the same
subsample. k-means-constrained has a size of its own (its flow is slow), where all are compared. Results:
`benchmarks/results/clusters.json`.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]  # store.py is there

RESULTS = Path(__file__).parent / "results" / "clusters.json"
DIMENSIONS = 384


def world(n: int, seed: int, s: float, topics: int = 1000, rank: int = 64) -> np.ndarray:
    """[n, 384] float32 of unit length; the same topics for every seed."""
    fixed, rng = np.random.default_rng(99), np.random.default_rng(seed)
    basis = np.linalg.qr(fixed.standard_normal((DIMENSIONS, rank)))[0].T.astype(np.float32)
    field = fixed.standard_normal((40, rank))
    topic = (field[fixed.integers(0, 40, topics)] + 0.7 * fixed.standard_normal((topics, rank))).astype(np.float32)
    mass = np.arange(1, topics + 1) ** -s
    z = topic[rng.choice(topics, n, p=mass / mass.sum())] + np.float32(0.8) * rng.standard_normal((n, rank), np.float32)
    x = z @ basis + np.float32(0.25) * rng.standard_normal((n, DIMENSIONS), np.float32) + basis[0]
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def contenders(k: int, per_cluster: int, constrained: bool) -> dict:
    """Name -> function of the fit documents that gives (centres [K, D], labels of other documents)."""
    from salad.selection import BalancedKMeans

    def ours(largest):
        def fit(x):
            model = BalancedKMeans(k, 0, largest=largest, price_per_cluster=per_cluster).fit(x)
            return model.cluster_centers_, model.predict

        return fit

    def faiss_plain(x):
        model = BalancedKMeans(k, 0, largest=k, rounds=0)  # faiss's centroids, no price
        model.price_per_cluster = 8
        model.fit(x)
        return model.cluster_centers_, model.predict

    def mini_batch(x):
        from sklearn.cluster import MiniBatchKMeans

        model = MiniBatchKMeans(k, random_state=0, batch_size=4096, n_init=3).fit(x)
        centers = model.cluster_centers_ / np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True)
        return centers, model.predict

    def k_means_constrained(x):
        from k_means_constrained import KMeansConstrained

        model = KMeansConstrained(k, size_min=0, size_max=int(np.ceil(len(x) / k)), random_state=0, n_init=1, n_jobs=1)
        model.fit(x.astype(np.float64))
        centers = (model.cluster_centers_ / np.linalg.norm(model.cluster_centers_, axis=1, keepdims=True)).astype("f4")
        # it knows no price: one document alone can only go to the nearest centre
        return centers, lambda other: (other @ centers.T).argmax(1)

    by_name = {
        "faiss k-means, best of 3": faiss_plain,
        "MiniBatchKMeans": mini_batch,
        "BalancedKMeans (largest 1.12, the default)": ours(1.12),
        "BalancedKMeans (largest 1.0)": ours(1.0),
    }
    if constrained:
        by_name["k-means-constrained"] = k_means_constrained
    return by_name


def quality(s: float, k: int, per_cluster: int, peer: bool) -> list[dict]:
    x, held = world(k * per_cluster, 0, s), world(k * per_cluster, 1, s)
    rows, plain = [], None
    for name, fit in contenders(k, per_cluster, peer).items():
        start = time.process_time()
        try:
            centers, predict = fit(x)
        except ImportError as error:
            rows.append({"name": name, "left_out": str(error)})
            continue
        seconds = time.process_time() - start
        labels = predict(held)
        cosine = float(np.einsum("nd,nd->n", held, centers[labels]).mean())
        plain = cosine if plain is None else plain
        rows.append({
            "name": name, "world": s, "clusters": k, "documents_per_cluster": per_cluster,
            "largest_over_mean_held_out": round(float(np.bincount(labels, minlength=k).max() * k / len(held)), 4),
            "mean_cosine_held_out": round(cosine, 4), "loss_percent": round(100 * (1 - cosine / plain), 2),
            "fit_cpu_s": round(seconds, 1)})  # fmt: skip
        print(rows[-1], flush=True)
    # what sampling alone does to perfectly even clusters, on both sides
    rng = np.random.default_rng(0)
    n = k * per_cluster
    chance = np.mean([(rng.multinomial(n, rng.multinomial(n, np.full(k, 1 / k)) / n)).max() * k / n for _ in range(200)])
    return [
        *rows,
        {
            "name": "perfect balance, sampled twice",
            "world": s,
            "clusters": k,
            "documents_per_cluster": per_cluster,
            "largest_over_mean_held_out": round(float(chance), 4),
        },
    ]


def write_parquet(folder: Path, n: int, part: int = 500_000) -> None:
    for start in range(0, n, part):
        rows = min(part, n - start)
        vectors = pa.array(world(rows, start + 7, 0.7).ravel())
        vectors = pa.FixedSizeListArray.from_arrays(vectors, DIMENSIONS).cast(pa.list_(pa.float32()))
        ids = pa.array([f"s{start + i:012x}" for i in range(rows)])
        pq.write_table(pa.table({"sample_id": ids, "vector": vectors}), folder / f"part-{start // part:05d}.parquet",
                       row_group_size=50_000, compression="none", use_dictionary=["sample_id"])  # fmt: skip


def peak_memory_mb() -> int:
    """Of this program alone: getrusage's figure is inherited from the parent."""
    result = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(result.split()[1]) // 1024


def stream(folder: str, name: str, k: int) -> dict:
    """In a process of its own: seconds and peak memory of one contender over Parquet."""
    begin = time.perf_counter()
    if name == "BalancedKMeans":
        from salad.selection import BalancedKMeans

        model = BalancedKMeans(k, 0).fit(Path(folder))
        fitted = time.perf_counter()
        labels = model.predict(Path(folder))
    else:  # what it reads is read by the same reader
        from sklearn.cluster import MiniBatchKMeans

        from salad.selection.clusters import read

        model = MiniBatchKMeans(k, random_state=0, n_init=1)
        for _, part in read(Path(folder)):
            model.partial_fit(part)
        fitted = time.perf_counter()
        labels = np.concatenate([model.predict(part) for _, part in read(Path(folder))])
    end = time.perf_counter()
    count = np.bincount(labels, minlength=k)
    return {"name": name, "documents": len(labels), "clusters": k, "fit_s": round(fitted - begin, 1),
            "predict_s": round(end - fitted, 1), "seconds": round(end - begin, 1),
            "cpu_s": round(time.process_time(), 1), "largest_over_mean": round(float(count.max() * k / len(labels)), 4),
            "peak_memory_mb": peak_memory_mb()}  # fmt: skip


def speed(n: int, k: int, folder: str | None, names: list[str]) -> list[dict]:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        if shutil.disk_usage(place).free < 1.2 * n * DIMENSIONS * 4:
            raise SystemExit(f"{place} has too little space for {n} documents of {DIMENSIONS} dimensions")
        print(f"writing {n:,} documents of {DIMENSIONS} dimensions under {place}, which goes when this ends", flush=True)
        begin = time.perf_counter()
        write_parquet(Path(place), n)
        print(f"written in {time.perf_counter() - begin:.0f} s", flush=True)
        rows = []
        for name in names:
            print(f"{name}: fit, then predict", flush=True)
            completed = subprocess.run(
                [sys.executable, __file__, "--stream", place, name, str(k)], check=True, capture_output=True, text=True
            ).stdout
            rows.append(json.loads(completed.splitlines()[-1]) | {"load_after": round(os.getloadavg()[0], 1)})
            print(rows[-1], flush=True)
            if name == "BalancedKMeans" and n >= 10_000_000:
                seconds = rows[-1]["seconds"]
                print(f"goal: under 600 s; {seconds:.0f} s, {'met' if seconds < 600 else 'missed'}", flush=True)
    return rows


def tables(results: dict) -> str:
    lines = [
        "| world | clusters × documents | | largest / mean, held out | loss of cosine, % | fit, CPU s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in results.get("quality", []):
        if "left_out" in row:
            lines.append(f"| | | {row['name']} | left out: {row['left_out']} | | |")
            continue
        lines.append(
            f"| {row['world']} | {row['clusters']} × {row['documents_per_cluster']:,} | {row['name']} | "
            f"{row['largest_over_mean_held_out']} | {row.get('loss_percent', '')} | {row.get('fit_cpu_s', '')} |"
        )
    lines += [
        "",
        "| documents × 384 | clusters | | fit, s | predict, s | CPU, s | peak memory, MB | largest / mean |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {r['documents']:,} | {r['clusters']} | {r['name']} | {r['fit_s']} | {r['predict_s']} | {r['cpu_s']} | "
        f"{r['peak_memory_mb']:,} | {r['largest_over_mean']} |"
        for r in results.get("speed", [])
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", type=int, help="only the speed, at this many documents (added to the results)")
    parser.add_argument("--quality", action="store_true", help="only the quality")
    parser.add_argument("--worlds", type=float, nargs="+", default=[0.5, 0.7, 1.0])
    parser.add_argument("--folder", help="where the Parquet is written for the time of the run")
    parser.add_argument("--peer", help="folder in which pip --target installed k-means-constrained")
    parser.add_argument("--tables", action="store_true")
    parser.add_argument("--stream", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stream:
        print(json.dumps(stream(args.stream[0], args.stream[1], int(args.stream[2]))))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if args.tables:
        print(tables(results))
        return
    if args.peer:
        sys.path.append(args.peer)
    if args.speed is None:
        results["quality"] = [row for s in args.worlds for row in quality(s, 32, 12_000, peer=False)]
        results["quality"] += quality(0.7, 16, 250, peer=True)
    if not args.quality:
        n = args.speed or 1_000_000
        rows = speed(n, 128, args.folder, ["BalancedKMeans", "MiniBatchKMeans"])
        results["speed"] = [r for r in results.get("speed", []) if r["documents"] != n] + rows
    results["machine"] = {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "at": datetime.now(UTC).isoformat(timespec="minutes"),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
