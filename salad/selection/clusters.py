"""Balanced spherical k-means over embeddings, at fixed memory, and the words that tell a cluster from the others.

`python benchmarks/clusters.py` measures it beside its peers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.base import BaseEstimator, ClusterMixin

from salad.errors import SaladError

BATCH = 16_384  # rows read at a time
CHUNK = 8_192  # rows of similarities worked on at a time: [CHUNK, K] stays in the processor's cache
Vectors: TypeAlias = Any  # an array [N, D], or Parquet with a column of vectors: a file, a folder, or a list of files


class BalancedKMeans(ClusterMixin, BaseEstimator):
    """Spherical k-means in which no cluster holds more than `largest` times the mean mass.

    A document x of unit length goes to `argmax(x·c - price)`: a new document needs only centroids and prices. The
    prices are the dual of optimal transport from documents to clusters of capacity `largest / K`: of all
    assignments within the capacities, the one with the highest mean cosine. `largest=1` gives equal mass; a little
    more costs much less cosine (benchmarks/results/clusters.json).

    Parameters: `n_clusters` K; `seed`; `largest`, the most that a cluster holds, as a multiple of the mean (on the
    documents that prices are fitted on; held-out ones add their sampling error, about 2.5 · sqrt(2 / n) for n
    documents a cluster); `fit_per_cluster` documents are drawn per cluster for the centroids and
    `price_per_cluster` for the prices; `rounds` of moving centroids under prices after faiss's own `iterations`, all
    of it `restarts` times, of which the highest mean cosine is kept.

    Attributes after `fit`: `cluster_centers_` [K, D] float32 of unit length, `prices_` [K] float32 >= 0, `masses_`
    [K] float64 (shares of the price sample), `n_features_in_`, and for an array `labels_` [N] int32.

    `x` is everywhere an array [N, D], or Parquet: a file, a folder, or a list of files with a list column named
    `column`. Parquet is streamed: memory is `price_per_cluster` · K² floats + `fit_per_cluster` · K · D floats and a
    batch, whatever N. Rows need not have unit length; they are scaled to it. Raises SaladError where a row is zero
    or not finite, or there are fewer rows than clusters. Byte-identical on a rerun with the same number of threads.
    """

    def __init__(
        self,
        n_clusters: int = 128,
        seed: int = 0,
        largest: float = 1.12,
        fit_per_cluster: int = 512,
        price_per_cluster: int = 12_288,
        iterations: int = 20,
        rounds: int = 12,
        restarts: int = 3,
        column: str = "vector",
    ):
        self.n_clusters, self.seed, self.largest = n_clusters, seed, largest
        self.fit_per_cluster, self.price_per_cluster = fit_per_cluster, price_per_cluster
        self.iterations, self.rounds, self.restarts, self.column = iterations, rounds, restarts, column

    def fit(self, x: Vectors, y: None = None) -> "BalancedKMeans":
        """Fit centroids and prices on the vectors `x` [N, D]. Returns self; raises SaladError for unusable vectors."""
        if min(self.n_clusters, self.largest, self.restarts) < 1:
            raise SaladError(
                f"BalancedKMeans: n_clusters {self.n_clusters}, largest {self.largest} and restarts {self.restarts} "
                "must be at least 1"
            )
        n, k = count_rows(x), self.n_clusters
        if n < k:
            raise SaladError(f"BalancedKMeans: {n} documents are fewer than {k} clusters; ask for fewer clusters")
        rng = np.random.default_rng(self.seed)
        sample = np.concatenate(list(self._picked(x, _some(rng, n, self.fit_per_cluster * k))))
        self.n_features_in_ = sample.shape[1]
        cap, best = self.largest / k, -np.inf
        for start in range(self.restarts):
            centroids, costs = _plain(sample, k, self.iterations, self.seed + 1_000_003 * start), np.zeros(k)
            for _ in range(self.rounds):
                labels, costs = _balanced(sample @ centroids.T, costs, cap)
                centroids = _means(sample, labels, centroids)
            scores = sample @ centroids.T
            labels, costs = _balanced(scores, costs, cap)
            value = float(scores[np.arange(len(scores)), labels].mean(dtype=np.float64))
            if value > best:
                best, centers, prices = value, centroids, costs
        wanted = _some(rng, n, self.price_per_cluster * k)
        del sample
        scores, row = np.empty((len(wanted), k), np.float32), 0
        for part in in_blocks(self._picked(x, wanted), BATCH):
            np.matmul(part, centers.T, out=scores[row : row + len(part)])
            row += len(part)
        # any part of the price sample is itself a random sample: solve there, from few documents and a wide smoothing
        # to more and a narrow one, then correct on the whole
        shuffled = rng.permutation(len(scores))
        for per_cluster, width in ((256, 0.2), (512, 0.06), (2048, 0.02)):
            part = scores[np.sort(shuffled[: per_cluster * k])]
            scale = float(part.std()) or 1.0
            prices = _soft_prices(part, prices, cap, width * scale, 30)
        prices = _hard_prices(scores, part, prices, cap, 0.02 * scale)
        self.cluster_centers_ = centers
        self.prices_ = (prices - prices.min()).astype(np.float32)
        self.masses_ = _masses(scores, self.prices_)
        if not _is_parquet(x):
            self.labels_ = self.predict(x)
        return self

    def predict(self, x: Vectors) -> np.ndarray:
        """Each document's cluster, [N] int32."""
        labels = [batch_labels for _, batch_labels, _ in self.stream(x)]
        return np.concatenate(labels) if labels else np.zeros(0, np.int32)

    def fit_predict(self, x: Vectors, y: None = None) -> np.ndarray:
        """Fit on `x` and return each document's cluster, [N] int32."""
        return self.fit(x).predict(x)

    def transform(self, x: Vectors) -> np.ndarray:
        """x·c - price, [N, K] float32: predict takes the largest."""
        return np.concatenate([part @ self._centers().T - self.prices_ for _, part in read(x, self.column)])

    def stream(self, x: Vectors, columns: tuple[str, ...] = ()) -> Iterator[tuple[pa.Table | None, np.ndarray, np.ndarray]]:
        """Batches of (the named Parquet columns, labels [B] int32, cosine distance from the centre [B] float32).

        Batches follow the files, so the distances of the same rows in other files may differ by 1e-6."""
        centers = self._centers()
        for other, part in read(x, self.column, columns):
            if part.shape[1] != centers.shape[1]:
                raise SaladError(
                    f"BalancedKMeans: documents have {part.shape[1]} dimensions, centroids "
                    f"{centers.shape[1]}; embed with the model that the clustering was made with"
                )
            labels, near = np.empty(len(part), np.int32), np.empty(len(part), np.float32)
            for start in range(0, len(part), CHUNK):
                rows = slice(start, start + CHUNK)
                cosine = part[rows] @ centers.T
                labels[rows] = (cosine - self.prices_).argmax(1)
                near[rows] = cosine[np.arange(len(cosine)), labels[rows]]
            yield other, labels, 1 - near

    def _centers(self) -> np.ndarray:
        if not hasattr(self, "cluster_centers_"):
            raise SaladError("BalancedKMeans: call fit first")
        return self.cluster_centers_

    def _picked(self, x, wanted: np.ndarray) -> Iterator[np.ndarray]:
        """The rows with these sorted numbers, in batches."""
        if not _is_parquet(x):
            array = np.asarray(x)
            for start in range(0, len(wanted), BATCH):
                yield _unit(array[wanted[start : start + BATCH]], wanted[start])
            return
        first = 0
        for _, part in read(x, self.column):
            low, high = np.searchsorted(wanted, (first, first + len(part)))
            if high > low:
                yield part[wanted[low:high] - first]
            first += len(part)


def in_blocks(parts: Iterator[np.ndarray], rows: int) -> Iterator[np.ndarray]:
    """The same rows in blocks of `rows` (the last may be smaller), however they were divided.

    A product's last bits depend on the height of the block (seen with OpenBLAS on an AMD EPYC): with the same blocks,
    an array and Parquet files of any row groups give the same bytes."""
    waiting, height = [], 0
    for part in parts:
        while len(part):
            taken, part = part[: rows - height], part[rows - height :]
            waiting.append(taken)
            height += len(taken)
            if height == rows:
                yield waiting[0] if len(waiting) == 1 else np.concatenate(waiting)
                waiting, height = [], 0
    if waiting:
        yield np.concatenate(waiting)


def _is_parquet(x) -> bool:
    return isinstance(x, (str, Path)) or (isinstance(x, (list, tuple)) and len(x) > 0 and isinstance(x[0], (str, Path)))


def _files(x) -> list[Path]:
    paths = [Path(p) for p in ([x] if isinstance(x, (str, Path)) else x)]
    files = [file for path in paths for file in (sorted(path.rglob("*.parquet")) if path.is_dir() else [path])]
    if not files:
        raise SaladError(f"no Parquet file under {x}")
    return files


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20)  # else a whole row group at a time
    except (OSError, pa.ArrowException) as error:
        raise SaladError(f"{file} cannot be read as Parquet: {error}") from error


def count_rows(x: Vectors) -> int:
    """Rows of an array or of Parquet (from its footers)."""
    return sum(_open(file).metadata.num_rows for file in _files(x)) if _is_parquet(x) else len(x)


def read(x: Vectors, column: str = "vector", columns: tuple[str, ...] = ()) -> Iterator[tuple[pa.Table | None, np.ndarray]]:
    """Batches of (the other columns or None, vectors [B, D] float32 of unit length) of an array or of Parquet."""
    first = 0
    if not _is_parquet(x):
        array = np.asarray(x)
        if array.ndim != 2:
            raise SaladError(f"embeddings must be an array [N, D], not of shape {array.shape}")
        for start in range(0, len(array), BATCH):
            yield None, _unit(array[start : start + BATCH], start)
        return
    for file in _files(x):
        opened = _open(file)
        if column not in opened.schema_arrow.names:
            raise SaladError(f"{file} has no column {column!r}; it has {', '.join(opened.schema_arrow.names)}")
        try:
            for batch in opened.iter_batches(BATCH, columns=[column, *columns], use_threads=False):
                vectors, rows = batch.column(column), batch.num_rows
                flat = vectors.flatten()
                if vectors.null_count or flat.null_count or (rows and len(flat) % rows):
                    raise SaladError(f"{file}: column {column!r} has nulls or vectors of unequal length")
                part = flat.to_numpy(zero_copy_only=False).reshape(rows, -1)
                yield (batch.select(list(columns)) if columns else None), _unit(part, first)
                first += rows
        except pa.ArrowException as error:
            raise SaladError(f"{file} cannot be read: {error}") from error


def _unit(x: np.ndarray, first: int) -> np.ndarray:
    """A float32 copy of `x` with rows of unit length; `first` is the number of its first row, for the error."""
    x = np.array(x, np.float32, ndmin=2)
    norm = np.sqrt(np.einsum("nd,nd->n", x, x, dtype=np.float64))
    odd = ~(np.isfinite(norm) & (norm > 0))
    if odd.any():
        raise SaladError(f"embedding in row {first + int(odd.argmax())} is zero or not finite; leave that text out")
    x /= norm[:, None]
    return x


def _some(rng, n: int, most: int) -> np.ndarray:
    """Sorted numbers of at most `most` of `n` rows, drawn without replacement."""
    return np.arange(n) if n <= most else np.sort(rng.choice(n, most, replace=False, shuffle=False))


def _plain(sample: np.ndarray, k: int, iterations: int, seed: int) -> np.ndarray:
    """Centroids [K, D] of faiss's spherical k-means."""
    import faiss

    model = faiss.Kmeans(
        sample.shape[1],
        k,
        niter=iterations,
        spherical=True,
        seed=int(seed) % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(sample),
    )
    model.train(sample)
    return np.array(model.centroids, np.float32)


def _balanced(scores, prices, cap) -> tuple[np.ndarray, np.ndarray]:
    """Labels [N] under nearly balancing prices, and those prices, from the prices of similar centroids.

    256 documents a cluster are enough for prices that move again in the next round."""
    part = scores[:: max(1, len(scores) // (256 * scores.shape[1]))]
    prices = _soft_prices(part, prices, cap, 0.06 * (float(part.std()) or 1.0), 8)
    return (scores - prices.astype(np.float32)).argmax(1), prices


def _means(sample, labels, centers) -> np.ndarray:
    """Mean direction of each cluster's documents; a cluster without any keeps its centre."""
    from scipy.sparse import csr_matrix

    ones = csr_matrix((np.ones(len(labels), np.float32), labels, np.arange(len(labels) + 1)), shape=(len(labels), len(centers)))
    means = ones.T @ sample
    norm = np.linalg.norm(means, axis=1, keepdims=True)
    return np.where(norm > 0, means / np.maximum(norm, 1e-30), centers).astype(np.float32)


def _masses(scores: np.ndarray, prices: np.ndarray) -> np.ndarray:
    """Share of the documents that each cluster gets at these prices, [K] float64."""
    count, prices = np.zeros(scores.shape[1]), prices.astype(np.float32)
    for start in range(0, len(scores), CHUNK):
        count += np.bincount((scores[start : start + CHUNK] - prices).argmax(1), minlength=len(count))
    return count / len(scores)


def _smooth(scores, prices, width) -> tuple[float, np.ndarray, np.ndarray]:
    """The dual's mean over documents of width · logsumexp((s - price) / width), and the mean of the softmax q and
    of q · (1 - q)."""
    value, share, spread = 0.0, np.zeros(scores.shape[1]), np.zeros(scores.shape[1])
    prices = (prices / width).astype(np.float32)
    for start in range(0, len(scores), CHUNK):
        a = scores[start : start + CHUNK] * np.float32(1 / width) - prices
        top = a.max(1, keepdims=True)
        np.exp(np.subtract(a, top, out=a), out=a)
        total = a.sum(1, keepdims=True)
        value += float(top.sum(dtype=np.float64) + np.log(total).sum(dtype=np.float64))
        a /= total
        part = a.sum(0, dtype=np.float64)
        share += part
        spread += part - np.einsum("nk,nk->k", a, a)
    n = len(scores)
    return width * value / n, share / n, spread / n


def _soft_prices(scores, prices, cap, width, iterations) -> np.ndarray:
    """Prices >= 0 [K] that minimise the smoothed dual: its gradient is capacity - mass."""
    from scipy.optimize import minimize

    def dual(p):
        value, share, _ = _smooth(scores, p, width)
        return value + cap * p.sum(), cap - share

    solution = minimize(
        dual,
        prices,
        jac=True,
        method="L-BFGS-B",
        bounds=[(0, None)] * len(prices),
        options={"maxiter": iterations, "gtol": 1e-3 * cap, "ftol": 0},
    )
    return solution.x


def _hard_prices(scores, part, prices, cap, width, iterations: int = 30) -> np.ndarray:
    """Correct the smooth solution on the real, hard masses: damped Newton steps along each price; the best is kept.

    How fast a mass falls with its price is taken from `part`, a random part of the scores."""
    slope = _smooth(part, prices, width)[2] / width
    slope = np.maximum(slope, 0.05 * slope.max()) + 1e-12
    best, kept, damping = np.inf, prices, 0.7
    for _ in range(iterations):
        masses = _masses(scores, prices)
        worst = masses.max()
        if worst < best:
            best, kept = worst, prices
        else:
            damping *= 0.8
        if worst <= 1.002 * cap:
            break
        prices = np.maximum(prices + damping * (masses - cap) / slope, 0)
    return kept


_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
CONTRACTED = frozenset(("t", "ve", "ll", "re", "d", "m", "am", "em"))
# what scikit-learn's list of English function words lacks: how people talk, and who is talking
SPOKEN_WORDS = frozenset(
    """
    ah aha dear eh er erm ha hey hi hmm huh mhm mm oh ok okay ooh ow uh um wow yeah yep yes nope
    ask asked asks got gets getting going gonna gotta just know knows let lets like ma'am mr mrs ms really replied reply
    said saw say saying says sir tell telling tells thing things think thinks thought told want wanted wants well went
    ain aren couldn didn doesn don hadn hasn haven isn ll mustn re shan shouldn ve wasn weren won wouldn
""".split()
)


def words_of(text: str) -> list[str]:
    """The words of a text that can tell what it is about: in lower case, without numbers, single letters, English function
    words, contractions (I've, we'll) and how people talk (uh, yeah, said); a possessive is its owner."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = []
    for match in _WORD.finditer(text.lower()):
        word = match[0].replace("’", "'").removesuffix("'s")
        first, _, last = word.rpartition("'")
        if first and last in CONTRACTED:
            continue
        if len(first) == 1:  # O'Brien
            word = last
        if len(word) > 1 and word not in ENGLISH_STOP_WORDS and word not in SPOKEN_WORDS:
            words.append(word)
    return words


def terms(texts: list[str], labels: np.ndarray, n_clusters: int, n_terms: int = 8) -> list[list[str]]:
    """Each cluster's most telling words, best first, by class-based tf-idf.

    A word's weight in a cluster is its share of the cluster's words · log(1 + A / its count in all), with A the mean
    number of words a cluster (BERTopic's measure, arXiv 2203.05794). What tells nothing of a text's matter is left
    out (`words_of`), as is a plural whose singular is there already. A cluster without words gets an empty list."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import CountVectorizer

    labels = np.asarray(labels)
    vectorizer = CountVectorizer(analyzer=words_of)
    try:
        counts = vectorizer.fit_transform(texts)
    except ValueError:  # nothing but function words and numbers
        return [[] for _ in range(n_clusters)]
    inside = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(n_clusters, len(labels)))
    count_KT = (inside @ counts).toarray() if n_clusters * counts.shape[1] < 2e7 else inside @ counts
    total_T = np.asarray(count_KT.sum(0)).ravel()
    idf_T = np.log1p(total_T.sum() / n_clusters / total_T)
    words, top_words = vectorizer.get_feature_names_out(), []
    for k in range(n_clusters):
        row = count_KT[[k]].toarray().ravel() if hasattr(count_KT, "toarray") else count_KT[k]
        weight = row * idf_T
        chosen: list[str] = []
        for t in np.argsort(-weight, kind="stable"):
            if weight[t] <= 0 or len(chosen) == n_terms:
                break
            if not {words[t].removesuffix("s"), words[t] + "s"} & set(chosen):
                chosen.append(str(words[t]))
        top_words.append(chosen)
    return top_words
