"""Several texts in one row of a batch ("packing"), for every kind of causal LM.

Positions that count from 0 in each document keep attention within it: transformers makes the mask, sliding windows included.
A layer that carries a state along instead (linear attention, Mamba, a short convolution: Qwen3-Next, Qwen3.5, OLMo hybrid,
Falcon-H1, Granite 4, LFM2) reads on across the border without an error, and so do models that pass no positions to their mask
(gpt-oss). Which of the two a model does is therefore measured by running it, once: the same document behind two different
ones must give the same numbers. Where it does not, the documents of a row are run side by side, each in a row of its own, and
put back: what comes out is the same, at the price of some padding.
"""

import weakref
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = 6  # tokens in a document of the measurement
LEAK = 1e-5  # of the largest hidden state: where nothing is carried on, the two are bit for bit equal
ALIKE = 0.5  # of the longest: shorter documents are not run beside it, for they would be padding

_keeps_apart: "weakref.WeakKeyDictionary[nn.Module, bool]" = weakref.WeakKeyDictionary()


def keeps_documents_apart(llm: "PreTrainedModel") -> bool:
    """Whether `llm` reads each document of a packed row as if it stood alone, by its positions; measured once. A model on the
    meta device, where nothing can be run, counts as one that does."""
    if any(parameter.is_meta for parameter in llm.parameters()):
        return True
    if llm not in _keeps_apart:
        _keeps_apart[llm] = _measured(llm)
    return _keeps_apart[llm]


@torch.no_grad()
def _measured(llm: "PreTrainedModel") -> bool:
    embeddings = cast(torch.Tensor, llm.get_input_embeddings().weight)
    ids = torch.linspace(0, embeddings.shape[0] - 1, 3 * PROBE, device=embeddings.device).long().view(3, PROBE)
    place = torch.arange(PROBE, device=ids.device).repeat(2)[None]
    trains = llm.training
    llm.eval()
    try:
        together, other = (llm.get_decoder()(input_ids=torch.cat([before, ids[2]])[None], position_ids=place, use_cache=False)
                      .last_hidden_state[0, PROBE:] for before in ids[:2])  # fmt: skip
    finally:
        llm.train(trains)
    return float((together - other).abs().max()) <= LEAK * float(together.abs().max())


def decode(llm: "PreTrainedModel", position_ids: torch.Tensor | None = None, **inputs: torch.Tensor) -> torch.Tensor:
    """The decoder's last hidden states [B, T, H] of `input_ids` [B, T] or `inputs_embeds` [B, T, H].

    position_ids: None where each row is one document, padded on the right; else int64 [B, T] of packed rows, counting from 0
    in each document. Equal to each document run alone within 1e-4 of the largest in float32."""
    decoder = llm.get_decoder()
    if position_ids is None:
        return decoder(**inputs, use_cache=False).last_hidden_state
    if keeps_documents_apart(llm):
        return decoder(**inputs, position_ids=position_ids, use_cache=False).last_hidden_state
    ((name, packed),) = inputs.items()
    flat = packed.flatten(0, 1)
    firsts = position_ids.flatten().eq(0).nonzero()[:, 0]
    lengths = torch.diff(firsts, append=firsts.new_tensor([len(flat)]))
    order = lengths.argsort(descending=True).tolist()
    sizes, starts = lengths.tolist(), firsts.tolist()
    found: list[torch.Tensor] = [flat] * len(order)
    while order:
        longest = sizes[order[0]]
        group = [n for n in order if sizes[n] >= ALIKE * longest]
        order = order[len(group) :]
        rows = nn.utils.rnn.pad_sequence([flat[starts[n] : starts[n] + sizes[n]] for n in group], batch_first=True)
        hidden = decoder(**{name: rows}, use_cache=False).last_hidden_state
        for row, n in zip(hidden, group, strict=True):
            found[n] = row[: sizes[n]]
    return torch.cat(found).view(*packed.shape[:2], -1)
