"""A sentence-transformers model by its folder, as the embedder of a clustering: the real class, random weights."""

import numpy as np
import pytest

from salad import SaladError
from salad.selection.embedders import SentenceEmbedder

TEXTS = ["The cat sat on the mat.", "A dog ran.", "The cat sat on a mat and slept for a long while.", "Stars shine."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT with mean pooling, saved as sentence-transformers saves."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    base, folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("embedder")
    words = sorted({w.strip(".").lower() for text in TEXTS for w in text.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *words]
    (base / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(base)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(base)
    transformer = Transformer(str(base))
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    model.save(str(folder))
    return folder


def test_embeddings_have_unit_length_and_do_not_depend_on_the_batch(folder):
    one, all_at_once = SentenceEmbedder(str(folder), "cpu", batch=1), SentenceEmbedder(str(folder), "cpu")
    found = all_at_once(TEXTS)
    assert found.shape == (4, 32) and found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.allclose(found, one(TEXTS), atol=1e-5) and not np.allclose(found[0], found[3], atol=1e-2)
    assert all_at_once([]).shape == (0, 32)


def test_a_folder_that_is_no_embedder_is_refused_in_a_line(tmp_path):
    with pytest.raises(SaladError, match='the sentence embedder ".*" cannot be loaded'):
        SentenceEmbedder(str(tmp_path / "none"), "cpu")
