"""The adapter: a causal transformer that turns encoder frames into vectors in the LLM's embedding space."""

from typing import cast

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

from salad.config import AdapterConfig


class Adapter(nn.Module):
    """Linear → causal Llama layers (gated MLP, RMS norms, rotary positions, no biases) → linear [→ RMS norm].

    forward: [B, F, in_dim] → [B, F, out_dim], causal: frame f depends on frames ≤ f only. With the sizes of
    METHOD.md, 512 in and 2,048 (3,584) out, it has 120.4 M (121.9 M) parameters.
    """

    def __init__(self, config: AdapterConfig, in_dim: int, out_dim: int, embedding_rms: float = 1.0):
        super().__init__()
        self.into = nn.Linear(in_dim, config.width, bias=False)
        self.transformer = LlamaModel(
            LlamaConfig(
                vocab_size=1,
                hidden_size=config.width,
                intermediate_size=config.mlp,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=8192,
                bos_token_id=None,
                eos_token_id=None,
                pad_token_id=None,
            )
        )
        self.transformer.embed_tokens = cast(nn.Embedding, nn.Identity())  # it is fed with frames, never with ids
        self.out = nn.Linear(config.width, out_dim, bias=False)
        self.norm = nn.RMSNorm(out_dim, eps=1e-6) if config.match_embedding_rms else nn.Identity()
        if config.match_embedding_rms:
            nn.init.constant_(cast(torch.Tensor, self.norm.weight), embedding_rms)

    def forward(self, frames_BFD: torch.Tensor) -> torch.Tensor:
        hidden = self.transformer(inputs_embeds=self.into(frames_BFD), use_cache=False).last_hidden_state
        return self.norm(self.out(hidden))
