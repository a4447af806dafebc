"""The miniature's phone encoder: trained on pseudo-words in many voices, so that it has heard no word of the world.

espeak's phoneme events are the labels. What it learns is how English sounds, not what the texts say: a word of the
world that Stage I never spoke is new to everything downstream, as it would be at full size.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from salad.config import Frozen
from salad.miniature.folders import save_folder
from salad.speech.utterance import Utterance
from store import atomic

if TYPE_CHECKING:
    from salad.models.phone import PhoneEncoder

BASES = ("en-us", "en-us", "gmw/en", "en-gb-x-rp")
VARIANTS = (
    *(f"f{n}" for n in range(1, 6)), *(f"m{n}" for n in range(1, 9)),
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Michael",
    "Mike", "anika", "antonio", "aunty", "belinda", "benjamin", "caleb", "david", "ed", "grandma", "grandpa",
    "gustave", "ian", "iven", "john", "kaukovalta", "linda", "marcelo", "max", "miguel", "norbert", "pablo", "paul",
    "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph2", "travis", "victor", "zac",
)  # fmt: skip
HELD_OUT = ("adam", "boris", "edward", "steph", "michel")  # voices that only measure


class PhoneEncoderConfig(Frozen):
    """Shape, data and training of the encoder: about 20 s on one core, a third of it speech."""

    seed: int = 0
    width: int = Field(160, gt=0)
    kernel_size: int = Field(3, gt=0)
    dilations: tuple[int, ...] = Field((1, 2, 3, 4), description="one causal layer each, at 50 Hz")
    bottleneck: int = Field(32, gt=0)
    utterances: int = Field(700, gt=0, description="of 5 to 12 pseudo-words")
    held_out: int = Field(24, ge=0, description="utterances in other voices that give the accuracy")
    clean: float = Field(0.4, ge=0, le=1, description="share of utterances heard without a room")
    label_delay_s: float = Field(0.02, ge=0, description="how long before a step's middle the phone is that it should tell")
    steps: int = Field(170, gt=1)
    batch: int = Field(16, gt=0, description="pieces of 4 s a step")
    lr: float = Field(3e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(0.01, ge=0)

    def smoke(self) -> PhoneEncoderConfig:
        """The smallest that runs; it has learnt next to nothing."""
        return self.model_copy(update={"utterances": 40, "held_out": 4, "steps": 20, "batch": 8})


PIECE = 200  # steps of 20 ms in a training piece


@cache
def _english() -> tuple[frozenset[str], dict[str, list[str]]]:
    """English words (misaki's dictionary), and which letters follow each three of them."""
    entries = json.loads(files("misaki").joinpath("data/us_gold.json").read_text(encoding="utf-8"))
    words = sorted(w for w in entries if w.isascii() and w.isalpha() and w.islower() and len(w) > 1)
    follow = defaultdict(list)
    for word in random.Random("phonotactics").sample([w for w in words if 3 <= len(w) <= 9], 4000):
        padded = f"^^^{word}$"
        for i in range(3, len(padded)):
            follow[padded[i - 3 : i]].append(padded[i])
    return frozenset(words), dict(follow)


@cache
def world_words() -> frozenset[str]:
    """Every word of the world's facts and phrasings, in lower case: none may be spoken in training."""
    from salad.miniature.facts import CONNECTIVES, WORLD

    texts = [*CONNECTIVES]
    for domain in WORLD:
        texts += domain.entities
        for attribute in domain.attributes:
            texts += (*attribute.questions, *attribute.statements, *attribute.values)
    return frozenset(re.findall(r"[a-z]+", " ".join(texts).lower()))


def pseudo_word(rng: random.Random) -> str:
    """A word that sounds English and is none: letters drawn by the three before them."""
    english, follow = _english()
    while True:
        word = "^^^"
        while word[-1] != "$" and len(word) < 14:
            word += rng.choice(follow[word[-3:]])
        letters = word[3:-1]
        if word[-1] == "$" and re.search("[aeiouy]", letters) and letters not in english and letters not in world_words():
            return letters


def utterances(seed: int, count: int, variants: Sequence[str] = VARIANTS, clean: float = 0.4) -> Iterator[Utterance]:
    """`count` utterances of pseudo-words, each in a voice, rate, pitch and (but for a share `clean`) room drawn from
    the seed."""
    from salad.speech.espeak import Espeak

    tts, rng = Espeak(), random.Random(f"pseudo-words/{seed}/{variants[0]}")
    for number in range(count):
        text = " ".join(pseudo_word(rng) for _ in range(rng.randint(5, 12))) + rng.choice(".?,")
        yield recorded(tts.speak(text, any_voice(rng, variants), number), rng, clean)


def any_voice(rng: random.Random, variants: Sequence[str] = VARIANTS) -> str:
    """An espeak voice with an accent, variant, rate, pitch and range of its own."""
    return (
        f"{rng.choice(BASES)}+{rng.choice(variants)}@"
        f"rate={rng.randint(130, 200)},pitch={rng.randint(25, 75)},range={rng.randint(30, 80)}"
    )


def recorded(utterance: Utterance, rng: random.Random, clean: float) -> Utterance:
    """The utterance in a room of its own or, for a share `clean` of them, as it is but for its loudness."""
    from salad.speech.room import record

    if rng.random() >= clean:
        return record(utterance, rng.getrandbits(31))
    utterance.samples = utterance.samples * np.float32(10 ** (rng.uniform(-12, 3) / 20))
    return utterance


def plain_phone(symbol: str) -> str:
    """espeak's mnemonic without stress, variant numbers and marks of linking: "@2" -> "@", "t#" -> "t"."""
    symbol = re.sub(r"[',#\-%=]", "", symbol)
    symbol = re.sub(r"(?<=[^\d])\d$", "", symbol)
    return {"": "_", "_:": "_", "a": "@", "i": "i:", "@L": "l"}.get(symbol, symbol)


def labels(utterance: Utterance, n_steps: int, phones: list[str], delay_s: float) -> np.ndarray:
    """int64 [n_steps]: the phone `delay_s` before the middle of each 20 ms, -100 where it is not among `phones`."""
    index = {phone: i for i, phone in enumerate(phones)}
    ids = np.array([index.get(plain_phone(p.symbol), -100) for p in utterance.phones])
    starts = np.array([p.start_s for p in utterance.phones])
    at = np.searchsorted(starts, (np.arange(n_steps) + 0.5) * 0.02 - delay_s, side="right") - 1
    return np.where(at < 0, index["_"], ids[np.maximum(at, 0)])


def train_encoder(config: PhoneEncoderConfig, folder: Path | str, on_step: Callable[[int, float], None] | None = None) -> dict:
    """Train a PhoneEncoder and save it with its feature extractor in `folder`, as safetensors.

    Cross-entropy in nats over 20 ms steps, float32, CPU; the batch norms of training are folded into the
    convolutions. The same arguments and thread count give the same bytes; a finished training with the same
    arguments is left as it is. `on_step(step, loss)` is called after each step, from 1. Returns what
    `folder`/training.json says: made_from, loss (mean of the last tenth), accuracy (of sounding steps, in voices
    that were not trained on; null if `held_out` is 0)."""
    import torch
    from torch import nn

    from salad.models.phone import PhoneConfig, PhoneEncoder, feature_extractor

    folder = Path(folder)
    made_from = {"config": config.model_dump(mode="json")}
    done = folder / "training.json"
    if done.exists() and (record := atomic.load_json(done)).get("made_from") == made_from:
        return record

    spoken = list(utterances(config.seed, config.utterances, clean=config.clean))
    counts = Counter(plain_phone(p.symbol) for u in spoken for p in u.phones)
    rare = sum(counts.values()) / 2000
    phones = ["_", *sorted(p for p, n in counts.items() if n > rare and p != "_")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = PhoneEncoder(
            PhoneConfig(
                width=config.width, kernel_size=config.kernel_size, dilations=list(config.dilations),
                bottleneck=config.bottleneck, n_phones=len(phones), phones=phones,
            )
        )  # fmt: skip
        norms = nn.ModuleList(nn.BatchNorm1d(config.width) for _ in range(1 + len(model.blocks)))
        last_norm = nn.BatchNorm1d(config.bottleneck, affine=False)

        def steps_of(mel_BCT):
            x = torch.relu(norms[0](model.first(mel_BCT)))
            for block, norm in zip(model.blocks, norms[1:], strict=True):
                x = x + torch.relu(norm(block(x)))
            return last_norm(model.bottleneck(x)).transpose(1, 2)

        with torch.no_grad():
            mel_TC = torch.cat([model.mel(torch.from_numpy(u.samples)[None])[0].T for u in spoken])
            n_steps = [model.n_frames(len(u.samples)) * model.config.frames_stacked for u in spoken]
            windows = mel_TC.reshape(-1, model.config.n_mels)
            model.log_mel.mean.copy_(windows.mean(0))
            model.log_mel.std.copy_(windows.std(0))
            mel_TC = ((windows - model.log_mel.mean) / model.log_mel.std).reshape(mel_TC.shape)
        label_T = torch.from_numpy(
            np.concatenate([labels(u, n, phones, config.label_delay_s) for u, n in zip(spoken, n_steps, strict=True)])
        )
        del spoken
        n = len(mel_TC) // PIECE
        mel_NCT = mel_TC[: n * PIECE].reshape(n, PIECE, -1).transpose(1, 2).contiguous()
        label_NT = label_T[: n * PIECE].reshape(n, PIECE)

        parameters = [*model.parameters(), *norms.parameters()]
        optimizer = torch.optim.AdamW(parameters, config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.lr, total_steps=config.steps, pct_start=0.15, cycle_momentum=False
        )
        losses, order = [], torch.empty(0, dtype=torch.long)
        for step in range(1, config.steps + 1):
            while len(order) < config.batch:
                order = torch.cat([order, torch.randperm(n)])
            pick, order = order[: config.batch], order[config.batch :]
            logits = model.phone_head(steps_of(mel_NCT[pick]))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), label_NT[pick].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if on_step:
                on_step(step, losses[-1])

    for conv, norm in zip([model.first, *model.blocks, model.bottleneck], [*norms, last_norm], strict=True):
        _fold(conv, norm)
    model.eval()
    tail = losses[-max(1, config.steps // 10) :]
    record = {"made_from": made_from, "loss": sum(tail) / len(tail), "accuracy": _accuracy(config, model)}
    save_folder(
        folder,
        model.save_pretrained,
        feature_extractor(model.config).save_pretrained,
        lambda new: atomic.write_json(new / done.name, record),
    )
    return record


def _fold(conv, norm) -> None:
    """Put a trained batch norm into the convolution before it: what is saved knows no statistics of a batch."""
    from torch.nn.utils.fusion import fuse_conv_bn_weights

    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def phone_accuracy(model: PhoneEncoder, spoken: Iterable[Utterance], delay_s: float) -> float:
    """Share of sounding 20 ms steps of `spoken` (utterances with phones) whose phone the encoder tells."""
    import torch

    right = total = 0
    with torch.inference_mode():
        for utterance in spoken:
            steps_TC = model(torch.from_numpy(utterance.samples)[None]).last_hidden_state.reshape(-1, model.config.bottleneck)
            predicted = model.phone_head(steps_TC).argmax(-1).numpy()
            truth = labels(utterance, len(predicted), list(model.config.phones or ()), delay_s)
            sounding = truth > 0  # 0 is silence, -100 a phone too rare to be told
            right += int((predicted == truth)[sounding].sum())
            total += int(sounding.sum())
    return right / max(total, 1)


def _accuracy(config: PhoneEncoderConfig, model) -> float | None:
    if not config.held_out:
        return None
    return phone_accuracy(model, utterances(config.seed, config.held_out, HELD_OUT, config.clean), config.label_delay_s)
