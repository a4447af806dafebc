"""Sentence embeddings by a model of the sentence-transformers kind, such as BAAI/bge-large-en-v1.5.

    SentenceEmbedder("BAAI/bge-large-en-v1.5")(texts)       # float32 [N, D] of unit length

Without one, the teacher's own mean-pooled hidden states are taken (salad.passes.cluster.embed)."""

from collections.abc import Callable

import numpy as np

from salad.errors import SaladError


class SentenceEmbedder:
    """`name`: a repository or a local folder of sentence-transformers; no code of the repository's own is run.

    Calling it gives float32 [N, D] of unit length, in the texts' order, whatever the batch size."""

    def __init__(self, name: str, device: str | None = None, batch: int = 64):
        from sentence_transformers import SentenceTransformer

        self.name, self.batch = name, batch
        try:
            self.model = SentenceTransformer(name, device=device, trust_remote_code=False).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise SaladError(f'the sentence embedder "{name}" cannot be loaded: {reason}') from error

    def __call__(self, texts: list[str], progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        size = 64 * self.batch  # encode sorts by length within what it is given
        parts = []
        for start in range(0, len(texts), size):
            part = self.model.encode(
                texts[start : start + size], batch_size=self.batch, convert_to_numpy=True, normalize_embeddings=True,
                show_progress_bar=False,
            )  # fmt: skip
            parts.append(part.astype(np.float32))
            if progress is not None:
                progress(min(start + size, len(texts)), len(texts))
        if not parts:
            return np.zeros((0, self.model.get_sentence_embedding_dimension()), np.float32)
        return np.concatenate(parts)
