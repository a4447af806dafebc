"""Tiny random models of the real classes, by name: what `docs/models.md` lists, each as a folder that transformers wrote."""

from pathlib import Path

import torch
from tiny import tokenizer

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
         "intermediate_size": 48, "max_position_embeddings": 256}  # fmt: skip
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
LINEAR = {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
          "linear_key_head_dim": 8, "linear_value_head_dim": 8}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
TEACHERS = {  # transformers' model_type -> what it needs beside SIZES; what attends to a window, or carries a state, does so here
    "llama": {"tie_word_embeddings": True},
    "qwen3": {},
    "qwen3_moe": EXPERTS,
    "qwen3_next": LINEAR | EXPERTS,
    "qwen3_5_text": LINEAR,
    "smollm3": {"no_rope_layers": [1, 1, 1, 0]},
    "gemma3_text": SLIDING | {"query_pre_attn_scalar": 8},
    "gemma4_text": SLIDING | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 8},
    "mistral": {"sliding_window": 5},
    "ministral": SLIDING,
    "ministral3": {},
    "olmo2": {},
    "olmo3": SLIDING,
    "olmo_hybrid": LINEAR,
    "gpt_oss": {"sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": MAMBA
    | {"layer_types": ["mamba", "attention"] * 2, "num_local_experts": 0, "shared_intermediate_size": 48},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
}

VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 28,
          "patch_size": 14, "depth": 1, "num_heads": 2, "out_hidden_size": 32, "head_dim": 16}  # fmt: skip
SEEING = {  # published with a vision tower in front of their text half
    "gemma3": TEACHERS["gemma3_text"],
    "gemma4": TEACHERS["gemma4_text"],
    "qwen3_5": TEACHERS["qwen3_5_text"],
    "mistral3": {"model_type": "ministral3"},
}


def causal_lm(folder: Path, kind: str, **more) -> Path:
    """A folder of a tiny random causal LM of this model_type, loud enough for what it computes to matter."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    tok = tokenizer()
    torch.manual_seed(0)
    told = {"vocab_size": len(tok) + 8, "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id,
            "pad_token_id": tok.pad_token_id, **SIZES, **(TEACHERS | SEEING).get(kind, {}), **more}  # fmt: skip
    if kind in SEEING:
        both = {"text_config": told, "vision_config": VISION, "image_token_id": 5, "audio_token_id": 6, "video_token_id": 7}
        made = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **both))
    else:
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **told))
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    made.save_pretrained(folder)
    tok.save_pretrained(folder)
    return Path(folder)
