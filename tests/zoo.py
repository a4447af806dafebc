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


# --- encoders ---

WAV2VEC2 = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "conv_dim": (8,) * 7,
            "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
TOWER = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "num_mel_bins": 80}
OMNI = TOWER | {"output_dim": 24, "n_window": 50}
CONFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_mel_bins": 80,
             "subsampling_conv_channels": 8}  # fmt: skip
TEXT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 16, "head_dim": 8}  # fmt: skip


def mel_extractor(mels: int = 80):
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor(feature_size=mels)


def encoder_of(folder: Path, kind: str) -> Path:
    """A folder of a tiny random model of this kind, whose encoder is asked for: one of ENCODERS."""
    torch.manual_seed(0)
    model, extractor = ENCODERS[kind]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # loud enough for attention to matter
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return Path(folder)


def _wav2vec2(kind: str, **more):
    from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

    large = more.get("feat_extract_norm") == "layer"
    return (AutoModel.from_config(AutoConfig.for_model(kind, **WAV2VEC2 | more)),
            Wav2Vec2FeatureExtractor(return_attention_mask=large, do_normalize=True))  # fmt: skip


def _parakeet(kind: str):
    import transformers

    config = transformers.AutoConfig.for_model(kind, encoder_config=CONFORMER, vocab_size=32, pad_token_id=31, blank_token_id=31)
    made = {"parakeet_ctc": "ParakeetForCTC", "parakeet_tdt": "ParakeetForTDT"}[kind]
    return getattr(transformers, made)(config), transformers.ParakeetFeatureExtractor()


def _canary():
    from transformers import CanaryConfig, CanaryForConditionalGeneration, ParakeetFeatureExtractor

    decoder = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
               "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip
    config = CanaryConfig(vocab_size=64, encoder_config=CONFORMER, decoder_config=decoder)
    return CanaryForConditionalGeneration(config), ParakeetFeatureExtractor()


def _whisper():
    from transformers import WhisperConfig, WhisperModel

    return WhisperModel(WhisperConfig(**TOWER, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32, vocab_size=64,
                        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)), mel_extractor()  # fmt: skip


def _speech_llm(name: str, audio: dict, extractor=None, **more):
    import transformers

    config = getattr(transformers, f"{name}Config")(audio_config=audio, text_config=TEXT, **more)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), extractor or mel_extractor()


def _omni(name: str):
    import transformers

    config = getattr(transformers, f"{name}ThinkerConfig")(
        audio_config=OMNI, vision_config=VISION | {"deepstack_visual_indexes": []},
        text_config=TEXT | {"num_experts": 2, "moe_intermediate_size": 8},
    )  # fmt: skip
    return getattr(transformers, f"{name}ThinkerForConditionalGeneration")(config), mel_extractor()


def _voxtral_realtime():
    from transformers import VoxtralRealtimeFeatureExtractor

    audio = TEXT | {"hidden_size": 16, "num_mel_bins": 80, "encoder_layers": 2, "num_hidden_layers": 2, "sliding_window": 40}
    return _speech_llm("VoxtralRealtime", audio, VoxtralRealtimeFeatureExtractor(feature_size=80))


def _qwen3_asr():
    from transformers import Qwen3ASRFeatureExtractor

    audio = {key: value for key, value in OMNI.items() if key != "output_dim"} | {"downsample_hidden_size": 8}
    return _speech_llm("Qwen3ASR", audio, Qwen3ASRFeatureExtractor(feature_size=80))


ENCODERS = {
    "whisper": _whisper,
    "wav2vec2-base": lambda: _wav2vec2("wav2vec2"),
    "wav2vec2-large": lambda: _wav2vec2("wav2vec2", **LARGE),
    "hubert": lambda: _wav2vec2("hubert", **LARGE),
    "wavlm": lambda: _wav2vec2("wavlm", **LARGE),
    "parakeet-ctc": lambda: _parakeet("parakeet_ctc"),
    "parakeet-tdt": lambda: _parakeet("parakeet_tdt"),
    "canary": _canary,
    "voxtral": lambda: _speech_llm("Voxtral", TOWER),
    "voxtral-realtime": _voxtral_realtime,
    "qwen2-audio": lambda: _speech_llm("Qwen2Audio", TOWER),
    "qwen2.5-omni": lambda: _omni("Qwen2_5Omni"),
    "qwen3-omni": lambda: _omni("Qwen3OmniMoe"),
    "qwen3-asr": _qwen3_asr,
}


# --- recognisers ---


def recogniser_of(folder: Path, kind: str) -> Path:
    """A folder of a tiny random recogniser with its processor: one of RECOGNISERS."""
    torch.manual_seed(0)
    model, processor = RECOGNISERS[kind](folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


def ctc_processor(folder: Path):
    import json

    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokens = Wav2Vec2CTCTokenizer(str(Path(folder) / "vocab.json"))
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(return_attention_mask=True), tokens), len(letters)


def _ctc(kind: str, folder: Path):
    from transformers import AutoConfig, AutoModelForCTC

    processor, letters = ctc_processor(folder)
    config = AutoConfig.for_model(kind, **WAV2VEC2 | LARGE, vocab_size=letters, pad_token_id=0)
    return AutoModelForCTC.from_config(config), processor


def _transducer(kind: str, folder: Path):
    import transformers
    from transformers import ParakeetFeatureExtractor, ParakeetProcessor

    tokens = tokenizer()
    tokens.add_special_tokens({"additional_special_tokens": ["<blank>"]})
    blank = tokens.convert_tokens_to_ids("<blank>")
    more = {"durations": [0, 1, 2, 3, 4]} if kind == "ParakeetForTDT" else {}
    if kind != "ParakeetForCTC":
        more |= {"decoder_hidden_size": 16, "num_decoder_layers": 1, "blank_token_id": blank, "joint_hidden_size": 16}
    name = kind.replace("ParakeetFor", "Parakeet") + "Config"
    pad = blank if kind == "ParakeetForCTC" else tokens.pad_token_id
    config = getattr(transformers, name)(encoder_config=CONFORMER, vocab_size=len(tokens), pad_token_id=pad, **more)
    model = getattr(transformers, kind)(config)
    if kind != "ParakeetForCTC":
        model.generation_config.decoder_start_token_id = blank
    return model, ParakeetProcessor(ParakeetFeatureExtractor(), tokens)


def _moonshine(folder: Path):
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

    tokens = tokenizer()
    config = MoonshineConfig(
        vocab_size=len(tokens), hidden_size=32, intermediate_size=32, encoder_num_hidden_layers=1, decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2, decoder_num_attention_heads=2, bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id, decoder_start_token_id=tokens.bos_token_id,
    )  # fmt: skip
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return MoonshineForConditionalGeneration(config), Wav2Vec2Processor(extractor, tokens)


ASR_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% else %}"
    "<|audio_start|><|audio_pad|><|audio_end|>{% endif %}{% endfor %}{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
)


def _qwen3_asr_recogniser(folder: Path):
    from transformers import PreTrainedTokenizerFast, Qwen3ASRFeatureExtractor, Qwen3ASRProcessor

    named = {"audio_bos_token": "<|audio_start|>", "audio_token": "<|audio_pad|>", "audio_eos_token": "<|audio_end|>"}
    tokens = PreTrainedTokenizerFast(tokenizer_object=tokenizer().backend_tokenizer, eos_token="<end>", pad_token="<pad>",
                                     extra_special_tokens=named)  # fmt: skip
    tokens.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    extractor = Qwen3ASRFeatureExtractor(feature_size=80)
    audio = OMNI | {"output_dim": TEXT["hidden_size"], "downsample_hidden_size": 8}
    model, _ = _speech_llm("Qwen3ASR", audio, extractor, audio_token_id=tokens.convert_tokens_to_ids("<|audio_pad|>"))
    model.resize_token_embeddings(len(tokens))
    model.generation_config.eos_token_id = tokens.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.pad_token_id = tokens.pad_token_id
    return model, Qwen3ASRProcessor(extractor, tokens, chat_template=ASR_TEMPLATE)


RECOGNISERS = {
    "ctc-wav2vec2": lambda folder: _ctc("wav2vec2", folder),
    "ctc-hubert": lambda folder: _ctc("hubert", folder),
    "ctc-wavlm": lambda folder: _ctc("wavlm", folder),
    "ctc-parakeet": lambda folder: _transducer("ParakeetForCTC", folder),
    "tdt-parakeet": lambda folder: _transducer("ParakeetForTDT", folder),
    "rnnt-parakeet": lambda folder: _transducer("ParakeetForRNNT", folder),
    "moonshine": _moonshine,
    "qwen3-asr": _qwen3_asr_recogniser,
}
