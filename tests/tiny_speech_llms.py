"""Speech LLMs of transformers at toy sizes: random weights in the real classes, each a folder with its own processor."""

import base64
import json
from pathlib import Path

import torch

MARKS = ["<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>", "<|IMAGE|>", "<|VIDEO|>", "<|vision_bos|>", "<|vision_eos|>",
         "<|im_start|>", "<|im_end|>"]  # fmt: skip
QWEN_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64)
AUDIO = dict(d_model=32, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32, num_mel_bins=16)
VISION = dict(depth=1, hidden_size=16, num_heads=2, intermediate_size=16, out_hidden_size=32)


def _omni_folder(folder: Path, tokenizer, processor: str) -> None:
    """The files of an omni model beside its weights, as its hub folder has them."""
    from transformers import WhisperFeatureExtractor

    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=300).save_pretrained(folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": QWEN_TEMPLATE}))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": processor}))


def _save(model, folder: Path) -> Path:
    """Random weights that are large enough for what is heard to matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.1 if "norm" in name else 0.3)
    model.save_pretrained(folder)
    return folder


def tokenizer_with_marks():
    """The tests' byte-level BPE as Qwen's own class, with the audio marks that its processors ask for."""
    from tiny import tokenizer as plain_tokenizer
    from transformers import Qwen2TokenizerFast

    core = plain_tokenizer()
    names = {"image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
             "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>", "audio_bos_token": "<|audio_bos|>",
             "audio_eos_token": "<|audio_eos|>"}  # fmt: skip
    made = Qwen2TokenizerFast(tokenizer_object=core.backend_tokenizer, eos_token="<end>", pad_token="<pad>", unk_token=None,
                              extra_special_tokens=names)  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": MARKS})
    return made


def qwen2_audio(folder: Path) -> Path:
    """Qwen2-Audio, with the chat template that its processor has when the folder brings none."""
    from transformers import (
        Qwen2AudioConfig,
        Qwen2AudioForConditionalGeneration,
        Qwen2AudioProcessor,
        WhisperFeatureExtractor,
    )

    tokenizer = tokenizer_with_marks()
    Qwen2AudioProcessor(WhisperFeatureExtractor(feature_size=16, chunk_length=30), tokenizer).save_pretrained(folder)
    config = Qwen2AudioConfig(audio_config=AUDIO, text_config=TEXT | {"model_type": "qwen2", "vocab_size": len(tokenizer) + 7},
                              audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"))  # fmt: skip
    return _save(Qwen2AudioForConditionalGeneration(config), folder)


def _omni_ids(tokenizer) -> dict:
    of = tokenizer.convert_tokens_to_ids
    return dict(audio_token_id=of("<|AUDIO|>"), audio_start_token_id=of("<|audio_bos|>"), image_token_id=of("<|IMAGE|>"),
                video_token_id=of("<|VIDEO|>"), vision_start_token_id=of("<|vision_bos|>"),
                vision_end_token_id=of("<|vision_eos|>"))  # fmt: skip


def qwen25_omni(folder: Path) -> Path:
    """The thinker of Qwen2.5-Omni."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration

    tokenizer = tokenizer_with_marks()
    _omni_folder(folder, tokenizer, "Qwen2_5OmniProcessor")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2_5OmniThinkerConfig(
        audio_config=AUDIO | {"output_dim": 32, "n_window": 50}, vision_config=VISION,
        text_config=TEXT | {"rope_parameters": rope, "vocab_size": len(tokenizer) + 7},
        audio_end_token_id=tokenizer.convert_tokens_to_ids("<|audio_eos|>"), **_omni_ids(tokenizer),
    )  # fmt: skip
    return _save(Qwen2_5OmniThinkerForConditionalGeneration(config), folder)


def qwen3_omni(folder: Path) -> Path:
    """The thinker of Qwen3-Omni: a mixture of experts."""
    from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration

    tokenizer = tokenizer_with_marks()
    _omni_folder(folder, tokenizer, "Qwen3OmniMoeProcessor")
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, "mrope_interleaved": True}
    config = Qwen3OmniMoeThinkerConfig(
        audio_config=AUDIO | {"output_dim": 32, "downsample_hidden_size": 8},
        vision_config=VISION | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
        text_config=TEXT | {"rope_parameters": rope, "vocab_size": len(tokenizer) + 7, "num_experts": 4,
                            "num_experts_per_tok": 2, "moe_intermediate_size": 16},
        **_omni_ids(tokenizer),
    )  # fmt: skip
    return _save(Qwen3OmniMoeThinkerForConditionalGeneration(config), folder)


def voxtral(folder: Path) -> Path:
    """Voxtral, with a tokenizer of mistral-common (tekken.json) that knows bytes and the control tokens alone."""
    from transformers import VoxtralConfig, VoxtralForConditionalGeneration, WhisperFeatureExtractor

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tekken.json").write_text(json.dumps(_tekken()))
    WhisperFeatureExtractor(feature_size=16, chunk_length=30).save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "VoxtralProcessor"}))
    config = VoxtralConfig(
        audio_config=dict(hidden_size=32, intermediate_size=128, num_hidden_layers=1, num_attention_heads=2, num_mel_bins=16),
        text_config=TEXT | {"model_type": "llama", "vocab_size": 1256, "head_dim": 8}, audio_token_id=24,
    )  # fmt: skip
    return _save(VoxtralForConditionalGeneration(config), folder)


def _tekken() -> dict:
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
             "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
             "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]  # fmt: skip
    special = dict(enumerate(names)) | {24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 34: "[TRANSCRIBE]"}
    return {
        "config": {"pattern": r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|\s+|[^\s\p{L}\p{N}]+", "num_vocab_tokens": 256,
                   "default_vocab_size": 1256, "default_num_special_tokens": 1000, "version": "v7"},
        "vocab": [{"rank": n, "token_bytes": base64.b64encode(bytes([n])).decode(), "token_str": None} for n in range(256)],
        "special_tokens": [
            {"rank": n, "token_str": special.get(n, f"<SPECIAL_{n}>"), "is_control": True} for n in range(1000)
        ],
        "audio": {"sampling_rate": 16000, "frame_rate": 12.5, "chunk_length_s": 30.0,
                  "audio_encoding_config": {"num_mel_bins": 16, "hop_length": 160, "window_size": 400}},
        "version": 1, "type": "Tekken",
    }  # fmt: skip


MODELS = {"qwen2-audio": qwen2_audio, "qwen2.5-omni": qwen25_omni, "qwen3-omni": qwen3_omni, "voxtral": voxtral}
