"""The store beside raw DuckDB on the same Parquet files: publishing, the questions of a study, opening a lab.

    python benchmarks/store.py                      # 10 M divergence rows
    python benchmarks/store.py --millions 100       # the full size: 5 GB under --folder
    python benchmarks/store.py --tables             # Markdown of the committed results

Rows are generated: ten checkpoints of one run, two patterns a sample, samples in 128 clusters, texts of 300 characters.
Each question runs `--rounds` times, ours and raw DuckDB's in turns, so that a busy machine slows both; the best counts.
Results: `benchmarks/results/store-<millions>.json`.
"""

import argparse
import concurrent.futures
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

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).parent]  # this file is named store too
import store  # noqa: E402
from store.lab import code_version, seal  # noqa: E402

RESULTS = Path(__file__).parent / "results"
UNIT_ROWS = 1_000_000
GOALS = {  # name -> (what is asked of it, whether a number meets it)
    "publish_rows_per_s": ("at least 3 M rows/s", lambda r: r["ours"] >= 3e6),
    "by_cluster_s": ("at most 1.2 × raw DuckDB", lambda r: r["ours"] <= 1.2 * r["raw"]),
    "worst_100_s": ("at most 0.7 s at 100 M", lambda r: r["ours"] <= 0.7),
    "page_of_50_s": ("at most 0.2 s at 10 M", lambda r: r["ours"] <= 0.2),
    "first_connect_bytes_per_s": ("at least 1 GB/s", lambda r: r["ours"] >= 1e9),
    "connect_s": ("at most 0.3 s", lambda r: r["ours"] <= 0.3),
    "connect_1000_units_s": ("at most 0.3 s", lambda r: r["ours"] <= 0.3),
}
OF_SIZE = {"worst_100_s": 10**8, "page_of_50_s": 10**7}  # rows


def divergences(con, start: int, rows: int, per_step: int) -> pa.Table:
    """`rows` rows of the table `divergences` from number `start` on; `per_step` rows make a checkpoint."""
    return con.sql(f"""
        SELECT 'r00000000beef' AS run_id, (i // {per_step} * 100)::BIGINT AS step,
            's' || substr(md5((i % {per_step} // 2)::VARCHAR), 1, 12) AS sample_id,
            'y' || substr(md5((i % {per_step} // 2 + 7)::VARCHAR), 1, 12) AS synthesis_id, (i % 2)::INTEGER AS pattern,
            -ln(1 - random()) AS m, -ln(1 - random()) / 9 AS f, -ln(1 - random()) AS d,
            (20 + i % 30)::INTEGER AS n_positions, (45 + i % 30)::INTEGER AS n_positions_f, 3 + random() AS speech_s
        FROM range({start}, {start + rows}) t(i)""").to_arrow_table()


def samples(con, start: int, rows: int) -> tuple[pa.Table, pa.Table]:
    """Texts of about 300 characters, and which of 128 clusters each is in."""
    texts = con.sql(f"""
        SELECT 's' || substr(md5(i::VARCHAR), 1, 12) AS sample_id, 'broad' AS corpus, 'd' || i % 7 AS domain,
            md5(i::VARCHAR) || ' ' || ['tide', 'comet', 'onion', 'violin', 'glacier'][(i % 5 + 1)::INTEGER] || ' '
            || repeat(md5((i + 1)::VARCHAR) || ' ', 8) AS text
        FROM range({start}, {start + rows}) t(i)""").to_arrow_table()
    places = con.sql(f"""
        SELECT 'c00000000beef' AS clustering_id, 's' || substr(md5(i::VARCHAR), 1, 12) AS sample_id,
            (hash(i) % 128)::INTEGER AS cluster_id, random() AS distance
        FROM range({start}, {start + rows}) t(i)""").to_arrow_table()
    return texts, places


def seconds(function, *values) -> tuple[float, float]:
    """Seconds by the clock, and of processor time, which a busy machine lengthens less."""
    started, used = time.perf_counter(), time.process_time()
    function(*values)
    return time.perf_counter() - started, time.process_time() - used


def publishing(lab: Path, folder: Path, n: int) -> dict:
    """Publish `n` rows in units of a million; the first few are timed, ours and DuckDB's COPY in turns."""
    con, ours, both, raw = duckdb.connect(), [], [], []
    per_step = n // 10
    for start in range(0, n, 2 * UNIT_ROWS):
        parts = {at: divergences(con, at, UNIT_ROWS, per_step) for at in (start, start + UNIT_ROWS) if at < n}

        if start // UNIT_ROWS % 4 == 0:
            ours.append([t / len(parts) for t in seconds(_publish, lab, parts, 1)])
        else:
            both.append([t / len(parts) for t in seconds(_publish, lab, parts, 2)])
        if len(raw) < 5:
            con.register("incoming", parts[start])
            copy = f"COPY (FROM incoming ORDER BY m DESC) TO '{folder}/raw.parquet' (COMPRESSION zstd)"
            raw.append(seconds(con.sql, copy))
    best = {
        name: [UNIT_ROWS / min(column) for column in zip(*times, strict=True)]
        for name, times in (("ours", ours + both), ("ours_one_thread", ours), ("raw", raw))
    }
    return {
        **{name: by_clock for name, (by_clock, _) in best.items()},
        "ours_per_cpu_s": best["ours"][1],
        "raw_per_cpu_s": best["raw"][1],
        "note": "two units at a time where that is faster; raw is DuckDB's COPY, no checksum, no flush",
    }


def _publish(lab: Path, parts: dict[int, pa.Table], threads: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda at: store.publish(lab, "divergences", parts[at], {"benchmark": "store", "start": at}), parts))


def in_turns(rounds: int, ours, raw) -> dict:
    """Best of `rounds` of each."""
    times = [(seconds(ours), seconds(raw)) for _ in range(rounds)]
    fields = {"ours": [t[0] for t in times], "raw": [t[1] for t in times]}
    return {name: min(t[0] for t in each) for name, each in fields.items()} | {
        f"{name}_cpu_s": min(t[1] for t in each) for name, each in fields.items()
    }


def fresh_connect(lab: Path) -> float:
    """Seconds that store.connect takes in a process of its own, imports apart."""
    code = (
        "import sys, time, duckdb, pandas, pyarrow.parquet, store; t = time.perf_counter()\n"
        "store.connect(sys.argv[1]); print(time.perf_counter() - t)"
    )
    return float(subprocess.run([sys.executable, "-c", code, lab], capture_output=True, text=True, check=True).stdout)


def opening(lab: Path, rounds: int) -> dict:
    size = sum(path.stat().st_size for path in lab.rglob("*.parquet"))
    later = fresh_connect(lab)
    first = []
    for _ in range(2):
        shutil.rmtree(lab / ".store-cache")
        first.append(fresh_connect(lab))
    later = min(later, *(fresh_connect(lab) for _ in range(rounds)))
    return {
        "first_connect_bytes_per_s": {"ours": size / min(first), "bytes": size, "seconds": min(first)},
        "connect_s": {"ours": later},
    }


def thousand_units(folder: Path, rounds: int) -> dict:
    """A lab of 1,000 small units, as many passes leave them."""
    lab = folder / "thousand"
    con = duckdb.connect()
    base = store.publish(lab, "divergences", divergences(con, 0, 1000, 10**7), made_from={"n": 0})
    for n in range(1, 1000):  # as publish writes them, without a flush to the disk for each
        unit = store.unit_id("divergences", {"n": n})
        place = base.path.parent.parent / f"run_id={n % 20}"
        place.mkdir(exist_ok=True)
        path = place / f"unit-{unit}.parquet"
        pq.write_table(store.rows.fit("divergences", divergences(con, 1000 * n, 1000, 10**7)), path)
        manifest = {
            **base.manifest,
            "unit_id": unit,
            "made_from": {"n": n},
            "file": path.name,
            "sha256": store.verification.sha256(path),
            "bytes": path.stat().st_size,
        }
        path.with_suffix(".json").write_text(json.dumps(seal(manifest)))
    fresh_connect(lab)
    return {"connect_1000_units_s": {"ours": min(fresh_connect(lab) for _ in range(rounds))}}


def questions(lab: Path, n: int, rounds: int) -> dict:
    con, raw = store.connect(lab), duckdb.connect()
    files = {
        name: [str(path) for path in sorted((lab / "tables" / name).rglob("*.parquet"))]
        for name in ("divergences", "samples", "assignments")
    }
    read = {name: f"read_parquet({paths!r}, hive_partitioning=false)" for name, paths in files.items()}
    by_cluster = "SELECT cluster_id, sum(m * n_positions) / sum(n_positions) FROM {} GROUP BY cluster_id ORDER BY ALL"
    joined = f"""(SELECT d.*, a.cluster_id FROM {read["divergences"]} d
        LEFT JOIN {read["assignments"]} a USING (sample_id))"""
    fields = {
        "by_cluster_s": in_turns(
            rounds,
            lambda: con.sql(by_cluster.format("divergences")).fetchall(),
            lambda: raw.sql(by_cluster.format(joined)).fetchall(),
        )
    }
    fields["by_cluster_of_a_checkpoint_s"] = in_turns(
        rounds,
        lambda: con.sql("FROM divergence_by_cluster('r00000000beef', 300)").fetchall(),
        lambda: raw.sql(by_cluster.format(joined + " WHERE step = 300")).fetchall(),
    )
    fields["by_cluster_of_a_checkpoint_s"]["note"] = (
        "ours M, F, D with intervals: by text first, then each cluster's mean, then its spread; raw the mean of M alone"
    )
    fields["worst_100_s"] = in_turns(
        rounds,
        lambda: con.sql("FROM worst_samples('r00000000beef', 300)").fetchall(),
        lambda: raw.sql(f"FROM {read['divergences']} WHERE step = 300 ORDER BY m DESC LIMIT 100").fetchall(),
    )
    fields["worst_100_s"]["note"] = "ours with text, cluster and voice joined in; raw the divergences alone"
    page = f"""SELECT d.sample_id, any_value(s.text), sum(m * n_positions) / sum(n_positions) AS m
        FROM {read["divergences"]} d JOIN {read["samples"]} s USING (sample_id)
        JOIN {read["assignments"]} a USING (sample_id)
        WHERE step = 300 AND cluster_id = 5 AND contains(lower(s.text), 'comet')
        GROUP BY d.sample_id ORDER BY m DESC LIMIT 50"""
    fields["page_of_50_s"] = in_turns(
        rounds,
        lambda: con.sql("FROM browse_samples('r00000000beef', 300, 5, 'comet')").fetchall(),
        lambda: raw.sql(page).fetchall(),
    )
    return fields


def run(millions: int, folder: Path, rounds: int) -> dict:
    n, lab, con = millions * 10**6, folder / "lab", duckdb.connect()
    store.atomic.write_json(lab / "runs" / "r00000000beef" / "config.json", {"run_id": "r00000000beef", "config": {}})
    store.publish(
        lab,
        "clusters",
        [{"clustering_id": "c00000000beef", "cluster_id": k, "terms": [str(k)]} for k in range(128)],
        made_from={"benchmark": "store"},
    )
    of_samples = n // 20
    for start in range(0, of_samples, 250_000):
        texts, places = samples(con, start, min(250_000, of_samples - start))
        store.publish(lab, "samples", texts, made_from={"benchmark": "store", "start": start})
        store.publish(lab, "assignments", places, made_from={"benchmark": "store", "start": start})
    fields = {"publish_rows_per_s": publishing(lab, folder, n)}
    load = os.getloadavg()[0]
    fields |= opening(lab, rounds) | questions(lab, n, rounds) | thousand_units(folder, rounds)
    for name, (goal, meets) in GOALS.items():
        fields[name] |= {"goal": goal}
        if OF_SIZE.get(name, n) == n:  # a goal at another size is neither met nor missed here
            fields[name]["met"] = bool(meets(fields[name]))
    return {
        "rows": n,
        "results": fields,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "load_average": load,
            "duckdb": duckdb.__version__,
            "pyarrow": pa.__version__,
            "python": platform.python_version(),
        },
        "code_version": code_version(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def tables() -> str:
    lines = []
    for path in sorted(RESULTS.glob("store-*.json"), key=lambda path: int(path.stem.split("-")[1])):
        content = json.loads(path.read_text())
        machine = content["machine"]
        lines += [
            f"\n{content['rows'] / 1e6:.0f} M rows, {machine['cores']} cores, "
            f"load average {machine['load_average']:.1f}, DuckDB {machine['duckdb']}:\n",
            "| what | ours | raw DuckDB | CPU, ours | CPU, raw | goal | met |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, result in content["results"].items():
            cpu = "per_cpu_s" if name == "publish_rows_per_s" else "cpu_s"
            figures = [f"{result[k]:.3g}" if k in result else "" for k in ("ours", "raw", f"ours_{cpu}", f"raw_{cpu}")]
            met = {True: "yes", False: "**no**"}.get(result.get("met"), "")
            lines.append(f"| {name} | {' | '.join(figures)} | {result.get('goal', '')} | {met} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=int, default=10, help="million divergence rows")
    parser.add_argument("--rounds", type=int, default=5, help="how often each question runs")
    parser.add_argument("--folder", type=Path, help="where the lab is generated; a temporary folder by default")
    parser.add_argument("--tables", action="store_true", help="print the committed results as Markdown")
    options = parser.parse_args()
    if options.tables:
        print(tables())
        return
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="store-benchmark-", dir=options.folder) as folder:
        result = run(options.millions, Path(folder), options.rounds)
    store.atomic.write_json(RESULTS / f"store-{options.millions}.json", result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
