"""Log-likelihoods of choices after a context, which may be text or speech. The context is run once, its key-value
cache shared by all choices."""

import torch

from salad.models.speech_lm import SpeechLM, Teacher


@torch.no_grad()
def loglikelihoods(model: SpeechLM, contexts: list, choices: list[list[str]], teacher: bool = False,
                   batch: int = 16, progress=None) -> list[list[float]]:  # fmt: skip
    """Summed log-probability, nats, of every choice as the continuation of its context.

    contexts: a text (str) or a recording (float32 [T] at the encoder's rate) per item; choices: per item, the texts
    that follow it after one space. `teacher`: the original LLM answers (contexts must be text). Tokens of a text
    context and a choice are those of the joined text, as lm-evaluation-harness has them.
    """
    source = model.teacher if teacher else Teacher(model.llm)
    sizes = [len(c) if isinstance(c, str) else len(c) // 400 for c in contexts]
    order = sorted(range(len(contexts)), key=lambda i: (sizes[i], i))
    told: list[list[float]] = [[]] * len(contexts)
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        for i, scores in zip(group, _group(model, source, [contexts[i] for i in group], [choices[i] for i in group]),
                             strict=True):  # fmt: skip
            told[i] = scores
        if progress is not None:
            progress(min(start + batch, len(order)), len(order))
    return told


def _pieces(model: SpeechLM, llm, context, choices: list[str]) -> tuple[torch.Tensor, list[list[int]]]:
    """The context's input vectors [T, H] and each choice's token ids."""
    encode = lambda text: model.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    if not isinstance(context, str):
        return model.prompt_embeddings([context], llm)[0], [encode(" " + choice) for choice in choices]
    ids = encode(context)
    return model.prompt_embeddings([context], llm)[0], [encode(f"{context} {choice}")[len(ids) :] for choice in choices]


def _group(model: SpeechLM, source: Teacher, contexts: list, choices: list[list[str]]) -> list[list[float]]:
    pieces = [_pieces(model, source.llm, context, some) for context, some in zip(contexts, choices, strict=True)]
    device, counts = model.device, [len(ids) for _, ids in pieces]
    longest = max(len(vectors) for vectors, _ in pieces)
    inputs = pieces[0][0].new_zeros(len(pieces), longest, pieces[0][0].shape[1])
    mask = torch.zeros(len(pieces), longest, dtype=torch.long, device=device)
    for row, (vectors, _) in enumerate(pieces):
        inputs[row, longest - len(vectors) :] = vectors
        mask[row, longest - len(vectors) :] = 1
    rows = torch.repeat_interleave(torch.arange(len(pieces), device=device), torch.tensor(counts, device=device))
    flat = [ids for _, some in pieces for ids in some]
    width = max(map(len, flat))
    ids = torch.zeros(len(flat), width, dtype=torch.long)
    for row, some in enumerate(flat):
        ids[row, : len(some)] = torch.tensor(some, dtype=torch.long)
    ids = ids.to(device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    llm = source.llm.get_decoder()
    with source.switched():
        first = llm(inputs_embeds=inputs, attention_mask=mask, position_ids=positions, use_cache=True)
        cache = first.past_key_values
        cache.reorder_cache(rows)
        after = llm(
            input_ids=ids,
            attention_mask=torch.cat([mask[rows], torch.ones_like(ids)], dim=1),
            position_ids=positions[rows, -1:] + 1 + torch.arange(width, device=device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
    hidden = torch.cat([first.last_hidden_state[rows, -1:], after[:, :-1]], dim=1)
    lengths = torch.tensor([len(some) for some in flat], device=device)
    real = torch.arange(width, device=device) < lengths[:, None]
    head = source.llm.get_output_embeddings().weight[: model.vocab_size]
    logits = (hidden[real] @ head.T).float()
    chosen = logits.log_softmax(-1).gather(1, ids[real][:, None])[:, 0]
    sums = torch.zeros(len(flat), device=device).index_add_(0, real.nonzero()[:, 0], chosen)
    return [list(part) for part in _split(sums.tolist(), counts)]


def _split(values: list, counts: list[int]):
    start = 0
    for count in counts:
        yield values[start : start + count]
        start += count
