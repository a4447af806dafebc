"""The miniature's speech recogniser: a CTC head over the frozen phone encoder, for the check of synthesis.

It learns from texts of the world spoken in many voices and rooms, and writes them as they are written, capitals, digits
and punctuation included, as Whisper does: so that a cascade hands the LLM the kind of text that it knows.
"""

from __future__ import annotations

import json
import random
import string
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from salad.config import Frozen
from salad.errors import SaladError
from salad.miniature.encoder import any_voice, recorded
from salad.miniature.folders import save_folder
from store import atomic, ids

if TYPE_CHECKING:
    from transformers import Wav2Vec2Processor

    from salad.models.phone import PhoneConfig

# <pad> is CTC's blank, | a space
VOCABULARY = ("<pad>", "<unk>", "|", *".,?!'-%°:;", *string.digits, *string.ascii_uppercase, *string.ascii_lowercase)
BLANK = 0  # the token that CTC pads with
TIMED = 60  # utterances whose word events tell how late the head fires
VARIANTS = ("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m7", "Andy", "Annie", "linda", "Michael", "grandma")


class RecogniserConfig(Frozen):
    """Shape, data and training of the head: about 25 s on one core, a quarter of it speech."""

    seed: int = 0
    width: int = Field(128, gt=0)
    kernel_size: int = Field(5, gt=0)
    layers: int = Field(5, gt=0, description="convolutions that look both ways, at 25 Hz")
    dropout: float = Field(0.1, ge=0, lt=1)
    voices: tuple[str, ...] = Field(("en-us",), description="heard, as they are, in a share `plain` of utterances")
    plain: float = Field(0.5, ge=0, le=1)
    clean: float = Field(0.5, ge=0, le=1, description="share of the others heard without a room")
    steps: int = Field(400, gt=1)
    batch: int = Field(8, gt=0, description="utterances a step")
    lr: float = Field(4e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(0.01, ge=0)

    def smoke(self) -> RecogniserConfig:
        """The smallest that runs; it has learnt next to nothing."""
        return self.model_copy(update={"steps": 20})


def characters(text: str) -> str:
    """What the recogniser should write for a text: its own characters, without accents, spaces single; a character
    that it does not know is left out."""
    marks = {"’": "'", "–": "-", "—": "-", "−": "-", "°": "°"}
    plain = unicodedata.normalize("NFKD", "".join(marks.get(c, c) for c in text))
    return " ".join("".join(c if c in VOCABULARY else " " * c.isspace() for c in plain).split())


def processor(config: PhoneConfig) -> Wav2Vec2Processor:
    """The feature extractor and the tokenizer of characters, as one `Wav2Vec2Processor`."""
    import tempfile

    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2Processor

    from salad.models.phone import feature_extractor

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.json"
        path.write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
        tokenizer = Wav2Vec2CTCTokenizer(
            str(path), pad_token="<pad>", unk_token="<unk>", bos_token=None, eos_token=None, word_delimiter_token="|"
        )
    return Wav2Vec2Processor(feature_extractor=feature_extractor(config), tokenizer=tokenizer)


def train_recogniser(
    config: RecogniserConfig,
    texts: Sequence[str],
    folder: Path | str,
    on_step: Callable[[int, float], None] | None = None,
    *,
    encoder: Path | str,
) -> dict:
    """Train a PhoneForCTC over the PhoneEncoder in the folder `encoder`, which stays as it is, on `texts` spoken by
    espeak; save it with its processor in `folder`, as safetensors.

    CTC loss in nats per character, float32, CPU. The same arguments and thread count give the same bytes; a finished
    training with the same arguments is left as it is. `on_step(step, loss)` is called after each step, from 1.
    Returns what `folder`/training.json says: made_from, loss (mean of the last tenth), speech_s.
    Raises SaladError where no text can be spoken."""
    import torch
    from transformers import AutoModel

    from salad.models.phone import PhoneConfig, PhoneForCTC, ctc_loss
    from salad.speech.align import delays
    from salad.speech.check import CTCRecogniser
    from salad.speech.espeak import Espeak
    from salad.speech.spoken import spoken_form, text_words

    folder, encoder = Path(folder), Path(encoder)
    trunk = AutoModel.from_pretrained(encoder, use_safetensors=True, local_files_only=True, trust_remote_code=False).eval()
    made_from = {
        "config": config.model_dump(mode="json"),
        "texts": ids.digest(list(texts)),
        "encoder": atomic.load_json(encoder / "training.json").get("made_from"),
    }
    done = folder / "training.json"
    if done.exists() and (record := atomic.load_json(done)).get("made_from") == made_from:
        return record

    rng, tts = random.Random(f"recogniser/{config.seed}"), Espeak()
    index = {token: i for i, token in enumerate(VOCABULARY)}
    examples: list[tuple[torch.Tensor, torch.Tensor]] = []  # frames [F, D], labels [L]
    timed: list[tuple] = []  # samples, text, words
    speech_s = 0.0
    for number, text in enumerate(texts):
        form = spoken_form(text)
        plain = rng.random() < config.plain
        voice = rng.choice(config.voices) if plain else any_voice(rng, VARIANTS)
        utterance = tts.speak(form.spoken, voice, number)
        wanted = characters(text)
        if not plain:
            utterance = recorded(utterance, rng, config.clean)
        if len(timed) < TIMED:
            timed.append((utterance.samples, text, text_words(utterance.words, form, text)))
        with torch.inference_mode():
            frames = trunk(torch.from_numpy(utterance.samples)[None]).last_hidden_state[0].clone()
        # CTC needs a step for each character, and one more between two that are equal
        needed = len(wanted) + sum(a == b for a, b in zip(wanted, wanted[1:], strict=False))
        if wanted and len(frames) * trunk.config.frames_stacked >= needed:
            examples.append((frames, torch.tensor([index["|" if c == " " else c] for c in wanted])))
            speech_s += utterance.duration_s
    if not examples:
        raise SaladError(f"the recogniser for {folder} has no text that can be spoken: give it some")

    sizes = PhoneConfig(
        **trunk.config.to_diff_dict() | {
            "vocab_size": len(VOCABULARY), "pad_token_id": BLANK, "head_width": config.width, "head_layers": config.layers,
            "head_kernel": config.kernel_size, "head_dropout": config.dropout,
        }
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = PhoneForCTC(sizes)
        model.encoder.load_state_dict(trunk.state_dict())
        model.encoder.requires_grad_(False)
        model.train()
        optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            config.lr,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.steps, pct_start=0.15, cycle_momentum=False
        )
        losses = []
        for step, rows in zip(range(1, config.steps + 1), _batches(examples, config.batch, rng), strict=False):
            frames = torch.nn.utils.rnn.pad_sequence([f for f, _ in rows], batch_first=True)
            targets = torch.nn.utils.rnn.pad_sequence([t for _, t in rows], batch_first=True, padding_value=-100)
            n_frames = torch.tensor([len(f) for f, _ in rows])
            mask = torch.arange(frames.shape[1]) < n_frames[:, None]
            loss = ctc_loss(model.logits(frames, mask), n_frames * sizes.frames_stacked, targets, BLANK)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if on_step:
                on_step(step, losses[-1])

    heard_by = CTCRecogniser(str(folder), model.eval(), processor(sizes), 120.0)
    model.config.word_delay_s = delays(heard_by, timed)
    tail = losses[-max(1, config.steps // 10) :]
    record = {"made_from": made_from, "loss": sum(tail) / len(tail), "speech_s": speech_s}
    save_folder(
        folder,
        model.save_pretrained,
        processor(sizes).save_pretrained,
        lambda new: atomic.write_json(new / done.name, record),
    )
    return record


def _batches(examples: list, size: int, rng: random.Random):
    """Endless batches of examples of like length; each example once an epoch."""
    while True:
        # lengths are shuffled a little, so that the same do not always meet
        order = sorted(examples, key=lambda example: len(example[0]) * rng.uniform(0.9, 1.1))
        cut = [order[place : place + size] for place in range(0, len(order), size)]
        rng.shuffle(cut)
        yield from cut
