"""Near-duplicates: MinHash (datasketch) in bands, matched in DuckDB, which spills to disk: memory stays fixed.

A text is a near-duplicate where an earlier one shares a band with it and their signatures agree in a share of at
least the threshold, the estimate of the Jaccard similarity of their sets of three-word runs."""

from collections.abc import Iterable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import xxhash

from salad.prepare.overlap import words
from salad.prepare.recorded import plain

THRESHOLD = 0.75
BANDS, ROWS = 20, 6  # two texts of similarity 0.8 share a band with probability 0.998, of 0.5 with 0.27
SHINGLE = 3
BAND_COLUMNS = [f"b{band:02d}" for band in range(BANDS)]


def signatures(texts: Iterable[str]) -> np.ndarray:
    """uint32 [N, BANDS * ROWS] MinHash signatures of the texts' runs of three words."""
    from datasketch import MinHash

    shingled = []
    for text in texts:
        shingles = words(text) or [text]
        shingled.append([" ".join(shingles[i : i + SHINGLE]).encode() for i in range(max(len(shingles) - SHINGLE + 1, 1))])
    made = MinHash.generator(shingled, num_perm=BANDS * ROWS, seed=1, hashfunc=xxhash.xxh32_intdigest)
    shingles = [minhash.hashvalues for minhash in made]
    return np.array(shingles, np.uint32).reshape(len(shingles), BANDS * ROWS)


def columns(signatures_NH: np.ndarray) -> dict[str, pa.Array]:
    """What `mark` needs of the texts: signature (bytes) and a hash of each band."""
    odd = np.random.default_rng(0).integers(1, 2**63, ROWS, np.uint64) * np.uint64(2) + np.uint64(1)
    bands_NB = (signatures_NH.astype(np.uint64).reshape(-1, BANDS, ROWS) * odd).sum(-1, dtype=np.uint64)
    arrays = {"signature": pa.array([row.tobytes() for row in signatures_NH], pa.binary())}
    return arrays | {name: pa.array(bands_NB[:, i], pa.uint64()) for i, name in enumerate(BAND_COLUMNS)}


def mark(con: duckdb.DuckDBPyConnection, threshold: float = THRESHOLD) -> None:
    """Find the duplicates among the rows of the view or table `prepared` (n BIGINT, unique and in order; fingerprint
    UBIGINT; what `columns` gives) and put them into two tables of the connection: `exact` (n, of) and `near` (n, of,
    similarity). The earliest of equal texts stays; a near-duplicate is one of an earlier text."""
    con.execute("""create or replace table exact as
        select p.n, f.first as of from prepared p join
            (select fingerprint, min(n) as first from prepared group by 1 having count(*) > 1) f using (fingerprint)
        where p.n <> f.first""")
    con.execute("create or replace table pairs (n BIGINT, of BIGINT)")
    for band in BAND_COLUMNS:  # one band at a time: one narrow column of the Parquet is read
        con.execute(f"""insert into pairs select p.n, f.first from (select n, {band} from prepared) p join
            (select {band}, min(n) as first from prepared where n not in (select n from exact)
             group by 1 having count(*) > 1) f using ({band})
            where p.n <> f.first and p.n not in (select n from exact)""")
    con.execute("create or replace table near (n BIGINT, of BIGINT, similarity DOUBLE)")
    reader = con.sql("""select d.n, d.of, a.signature as a, b.signature as b
        from (select distinct n, of from pairs) d
        join prepared a on a.n = d.n join prepared b on b.n = d.of""").to_arrow_reader(20_000)
    writer = con.cursor()  # the reader is still open on the other
    for batch in reader:
        if not batch.num_rows:
            continue
        a, b = (np.frombuffer(b"".join(batch.column(name).to_pylist()), np.uint32) for name in ("a", "b"))
        agree = (a == b).reshape(batch.num_rows, -1).mean(1)
        rows = np.flatnonzero(agree >= threshold)
        found = pa.table({  # noqa: F841  DuckDB finds it by its name
            "n": batch.column("n").take(pa.array(rows)), "of": batch.column("of").take(pa.array(rows)),
            "similarity": agree[rows],
        })  # fmt: skip
        writer.execute("insert into near select * from found")
    con.execute("""create or replace table near as select n, arg_max(of, (similarity, -of)) as of,
        max(similarity) as similarity from near group by n""")
    con.execute("drop table pairs")


def near_duplicates(texts: list[str], threshold: float = THRESHOLD) -> dict[int, tuple[int, float]]:
    """Index of a near-duplicate -> (index of an earlier text, estimated similarity). Equal texts are no
    near-duplicates of each other: all but the first are left out of account."""
    if not texts:
        return {}
    con = duckdb.connect()
    prints = pa.array([xxhash.xxh3_64_intdigest(text.encode()) for text in texts], pa.uint64())
    table = pa.table({"n": pa.array(range(len(texts)), pa.int64()), "fingerprint": prints,
                      **columns(signatures(texts))})  # fmt: skip
    con.register("prepared", table)
    mark(con, threshold)
    return {n: (of, similarity) for n, of, similarity in con.execute("from near order by n").fetchall()}


class Seen:
    """Which ids have been seen before: 64-bit hashes in sorted runs that are merged as they grow, 8 bytes an id."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []

    def add(self, ids: list[str]) -> list[bool]:
        """Whether each id was there already, earlier in this list included; all of them are from now on."""
        hashes = np.array([xxhash.xxh3_64_intdigest(plain(id).encode()) for id in ids], np.uint64)
        first = np.zeros(len(hashes), bool)
        first[np.unique(hashes, return_index=True)[1]] = True
        known = ~first
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            known |= run[at] == hashes
        if len(new := np.sort(hashes[~known])):
            self._runs.append(new)
        self._merge()
        return known.tolist()

    def knows(self, ids: list[str]) -> list[bool]:
        """Whether each id was there already; none of them is added."""
        hashes = np.array([xxhash.xxh3_64_intdigest(plain(id).encode()) for id in ids], np.uint64)
        known = np.zeros(len(hashes), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, hashes), len(run) - 1)
            known |= run[at] == hashes
        return known.tolist()

    def _merge(self) -> None:
        while len(self._runs) > 1 and len(self._runs[-2]) <= 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]), kind="stable")]


def connection(folder: Path, memory: str) -> duckdb.DuckDBPyConnection:
    """A DuckDB database of its own, `folder`/marks.duckdb, that holds at most `memory` (such as "2GB") and spills the rest
    into `folder`. The caller closes it."""
    file = str(folder / "marks.duckdb")
    # DuckDB takes what follows a question mark in a path for the parameters of a URL
    return duckdb.connect(
        ":memory:" if "?" in file else file, config={"memory_limit": memory, "temp_directory": str(folder / "spill")}
    )
