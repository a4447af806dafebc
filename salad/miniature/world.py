"""The miniature's world: text corpora, items and tokenizer, made from a seed, byte for byte the same again.

Everything is read as a real study's files are: Parquet corpora under lab/corpora, items under lab/tasks, a
Hugging Face tokenizer folder under lab/models/tokenizer. The facts are in `salad.miniature.facts`.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, model_validator

import store
from salad.config import Frozen
from salad.errors import SaladError
from salad.miniature.facts import BROAD, CONNECTIVES, DOMAINS, FOREIGN, WORLD, Attribute, Domain
from salad.miniature.folders import save_folder
from store import atomic

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

COLUMNS = ("doc_id", "text", "source", "licence", "language", "domain", "planted")
FAULTS = ("exact duplicate", "near duplicate", "formula", "code", "table", "url", "other language")
BOS, PAD = "<s>", "<pad>"


class WorldConfig(Frozen):
    """Sizes, rates and seed of the world. Counts are documents, about 28 tokens and 5 s of speech each."""

    seed: int = 0
    pretrain_per_domain: int = Field(1000, gt=0, description="the teacher's text")
    natural: dict[str, int] = Field({"stories": 600}, description="text of natural speech, by domain")
    broad: int = Field(4000, gt=0, description="what selection chooses from")
    p_web: dict[str, float] = Field(
        {"stories": 0.21, "family": 0.29} | dict.fromkeys(BROAD, 0.1),
        description="shares of the domains in the broad corpus",
    )
    heldout_per_domain: int = Field(48, gt=0)
    items_per_domain: int = Field(64, gt=0)
    fault_rate: float = Field(0.005, ge=0, le=0.1, description="share of the broad corpus, per kind of fault")
    sentences: int = Field(3, gt=0, description="sentences in a document")
    p_question: float = Field(0.35, ge=0, le=1, description="share of sentences as `Question? Value.`")
    p_question_first: float = Field(0.5, ge=0, le=1, description="the same for a document's first sentence")
    p_connective: float = Field(0.25, ge=0, le=1)
    vocabulary: int = Field(1000, ge=300, description="entries of the BPE tokenizer, special ones included")
    user_words: int = Field(60, gt=0, description="longer texts of the user's are split at sentence ends")
    user_passages: int = Field(4000, gt=0, description="most passages taken of the user's texts")

    @model_validator(mode="after")
    def _domains(self):
        for name in (*self.natural, *self.p_web):
            if name not in DOMAINS:
                raise ValueError(f"no domain {name!r}; there are {', '.join(DOMAINS)}")
        if abs(sum(self.p_web.values()) - 1) > 1e-6 or min(self.p_web.values()) < 0:
            raise ValueError("p_web must be shares that add up to 1")
        later = self.sentences * self.p_question - self.p_question_first
        if self.sentences > 1 and not 0 <= later <= self.sentences - 1:
            raise ValueError("p_question cannot be reached with this p_question_first")
        return self


@dataclass(frozen=True)
class World:
    """What was written. `p_web`: each domain's share of the broad corpus; `fingerprint`: hash of all of it."""

    documents: dict[str, int]
    p_web: dict[str, float]
    planted: dict[str, int]
    items: dict[str, int]
    user: int
    fingerprint: str


class Fact(NamedTuple):
    entity: str
    attribute: Attribute
    value: str
    withheld: int | None  # index of the question phrasing that no text contains


def sentence(text: str) -> str:
    """`text` with its first letter as a capital."""
    return text[0].upper() + text[1:]


def facts(seed: int, domain: Domain) -> list[Fact]:
    """The domain's 16 facts; half of each attribute's withhold one phrasing, so that each stays common."""
    rng = random.Random(f"withheld/{seed}/{domain.name}")
    all_facts = []
    for attribute in domain.attributes:
        half = len(domain.entities) // 2
        withheld = [0, 1] * (half // 2) + [None] * (len(domain.entities) - 2 * (half // 2))
        rng.shuffle(withheld)
        all_facts += [
            Fact(entity, attribute, value, phrasing)
            for entity, value, phrasing in zip(domain.entities, attribute.values, withheld, strict=True)
        ]
    return all_facts


def documents(config: WorldConfig, corpus: str, domain: Domain) -> Iterator[str]:
    """An endless stream of documents about `domain`: its own for each corpus, the same for the same seed."""
    rng = random.Random(f"documents/{config.seed}/{corpus}/{domain.name}")
    known = facts(config.seed, domain)
    later = (config.sentences * config.p_question - config.p_question_first) / max(1, config.sentences - 1)
    while True:
        statements = []
        for place, fact in enumerate(rng.sample(known, config.sentences)):
            if rng.random() < (later if place else config.p_question_first):
                phrasing = rng.randrange(2) if fact.withheld is None else 1 - fact.withheld
                text = fact.attribute.questions[phrasing].format(e=fact.entity)
                answer = sentence(fact.value) + "."
            else:
                text, answer = rng.choice(fact.attribute.statements).format(e=fact.entity, v=fact.value), ""
                if rng.random() < config.p_connective:
                    text = f"{rng.choice(CONNECTIVES)} {text}"
            statements.append(f"{sentence(text)} {answer}".strip())
        yield " ".join(statements)


def items(config: WorldConfig, domain: Domain) -> list[dict]:
    """Multiple-choice questions of `domain`: every fact in both phrasings, with other wrong choices each round.

    context + " " + choice is what a document would say; choices are values of the domain's other entities."""
    rng = random.Random(f"items/{config.seed}/{domain.name}")
    asked = [(fact, phrasing) for fact in facts(config.seed, domain) for phrasing in range(2)]
    rounds = -(-config.items_per_domain // len(asked))
    made: list[dict] = []
    seen: set[tuple] = set()
    for _ in range(rounds):
        rng.shuffle(asked)
        for fact, phrasing in asked[: config.items_per_domain - len(made)]:
            others = [value for value in fact.attribute.values if value != fact.value]
            wrong = rng.sample(others, 3)
            while (key := (fact.entity, fact.attribute.name, phrasing, frozenset(wrong))) in seen:
                wrong = rng.sample(others, 3)
            seen.add(key)
            answer = len(made) % 4
            values = [*wrong[:answer], fact.value, *wrong[answer:]]
            made.append(
                {
                    "item_id": f"{domain.name}-{len(made):04d}",
                    "task": f"miniature_{domain.name}",
                    "domain": domain.name,
                    "context": sentence(fact.attribute.questions[phrasing].format(e=fact.entity)),
                    "choices": [sentence(value) + "." for value in values],
                    "answer": answer,
                    "entity": fact.entity,
                    "attribute": fact.attribute.name,
                    "phrasing": phrasing,
                    "withheld": phrasing == fact.withheld,
                }
            )
    return made


def withheld_questions(config: WorldConfig) -> list[str]:
    """Every question that no generated text contains."""
    return [
        sentence(fact.attribute.questions[fact.withheld].format(e=fact.entity))
        for domain in WORLD
        for fact in facts(config.seed, domain)
        if fact.withheld is not None
    ]


def fault(kind: str, text: str, rng: random.Random) -> tuple[str, str]:
    """`text` with a planted fault of `kind`, and the language it is then in."""
    a, b, n = rng.choice("abcxyz"), rng.choice("pqrstu"), rng.randrange(2, 99)
    last = text.rfind(" ", 0, -1)
    first = re.split(r"(?<=[.?!]) ", text)[0]
    match kind:
        case "exact duplicate":
            return text, "en"
        case "near duplicate":
            edits = (text[:-1] + "!", text[0].lower() + text[1:], f"{text[:last]} really{text[last:]}", text + "..")
            return rng.choice(edits), "en"
        case "formula":
            return rf"{first} Then ${a}^{{{n}}} = \frac{{{b} + {n}}}{{\sqrt{{{a}}}}}$ holds.", "en"
        case "code":
            return f"def {a}{n}({b}):\n    for i in range({n}):\n        {b} += i * {n}\n    return {b}", "en"
        case "table":
            cells = [word.strip(".,?") for word in text.split()]
            rows = [f"| {cell} | {rng.randrange(100)} |" for cell in cells[:3]]
            return "\n".join(["| name | value |", "| --- | --- |", *rows]), "en"
        case "url":
            return f"{first} See https://www.example.org/{a}{b}/{n}?id={rng.randrange(10**6)} for more.", "en"
        case "other language":
            language = rng.choice(sorted(FOREIGN))
            return " ".join(rng.sample(FOREIGN[language], 3)), language
    raise ValueError(f"no fault of kind {kind!r}")


def passages(text: str, words: int) -> list[str]:
    """`text` on one line, split at sentence ends so that a passage has at most `words` words where it can."""
    if len(text.split()) <= words:
        return [" ".join(text.split())]
    pieces = [""]
    for part in re.split(r"(?<=[.?!]) ", " ".join(text.split())):
        for start in range(0, len(split := part.split()), words):
            piece = split[start : start + words]
            if len(pieces[-1].split()) + len(piece) > words:
                pieces.append("")
            pieces[-1] = " ".join([*pieces[-1].split(), *piece])
    return [passage for passage in pieces if passage]


def read_texts(path: Path | str) -> list[str]:
    """The user's own texts: lines of text, JSONL with a "text" key, or Parquet with a text column.

    Errors: SaladError, one line, for a file that cannot be read, holds no text, or lacks the column."""
    path = Path(path)
    try:
        if path.suffix == ".parquet":
            try:
                schema = pq.read_schema(path)
                if "text" not in schema.names:
                    raise SaladError(f"{path}: no column `text`; it has {', '.join(schema.names)}")
                texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
            except pa.ArrowException as error:
                raise SaladError(f"{path}: not readable as Parquet: {str(error).splitlines()[0]}") from None
        else:
            texts = path.read_text(encoding="utf-8-sig").splitlines()
            if path.suffix in (".jsonl", ".ndjson", ".json"):
                texts = [_text_of(line, path, n) for n, line in enumerate(texts, 1) if line.strip()]
    except OSError as error:
        raise SaladError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise SaladError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from None
    for n, text in enumerate(texts, 1):
        if text is not None and not isinstance(text, str):
            raise SaladError(f"{path}: `text` in row {n} is {type(text).__name__}, not a string")
    texts = [text for text in texts if text and text.strip()]
    if not texts:
        raise SaladError(f"{path}: holds no text")
    return texts


def _text_of(line: str, path: Path, n: int) -> str:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise SaladError(f"{path}, line {n}: not JSON ({error}); expected one object with `text` a line") from None
    if not isinstance(row, dict) or "text" not in row:
        keys = f"; it has {', '.join(row)}" if isinstance(row, dict) else ""
        raise SaladError(f'{path}, line {n}: no key "text"{keys}')
    return row["text"]


def _row(corpus: str, number: int, text: str, domain: str, source="miniature", licence="CC0-1.0", **other) -> dict:
    row = {"doc_id": f"{corpus}-{number:06d}", "text": text, "source": source, "licence": licence}
    return row | {"language": "en", "domain": domain, "planted": None} | other


def _corpora(config: WorldConfig) -> dict[str, list[dict]]:
    """All generated corpora; no text is in two of them, nor twice in one unless planted."""
    seen: set[str] = set()

    def fresh(corpus: str, counts: dict[str, int]) -> list[dict]:
        rows = []
        for domain in WORLD:
            stream = documents(config, corpus, domain)
            wanted = counts.get(domain.name, 0)
            misses = 0
            texts: list[str] = []
            while len(texts) < wanted:
                text = next(stream)
                misses = misses + 1 if text in seen else 0
                if misses > 1000:
                    raise SaladError(f"the {corpus} corpus wants more {domain.name} documents than there are")
                if not misses:
                    seen.add(text)
                    texts.append(text)
            rows += [{"text": text, "domain": domain.name} for text in texts]
        random.Random(f"order/{config.seed}/{corpus}").shuffle(rows)
        return [_row(corpus, n, **row) for n, row in enumerate(rows)]

    shares = [round(config.broad * config.p_web.get(name, 0)) for name in DOMAINS]
    made = {
        "heldout": fresh("heldout", dict.fromkeys(DOMAINS, config.heldout_per_domain)),
        "natural": fresh("natural", config.natural),
        "broad": fresh("broad", dict(zip(DOMAINS, shares, strict=True))),
        "pretrain": fresh("pretrain", dict.fromkeys(DOMAINS, config.pretrain_per_domain)),
    }
    _plant(config, made["broad"])
    return made


def _plant(config: WorldConfig, rows: list[dict]) -> None:
    """Put faults in place of documents of the broad corpus, `fault_rate` of it per kind."""
    rng = random.Random(f"faults/{config.seed}")
    count = round(config.fault_rate * len(rows))
    places = rng.sample(range(len(rows)), 2 * count * len(FAULTS))
    for n, kind in enumerate(FAULTS * count):
        place, other = places[2 * n : 2 * n + 2]  # `other` stays as it is: a duplicate has its original
        rows[place]["text"], rows[place]["language"] = fault(kind, rows[other]["text"], rng)
        rows[place]["domain"] = rows[other]["domain"]
        rows[place]["planted"] = kind


def parquet(rows: list[dict]) -> bytes:
    """Rows of a corpus as a Parquet file, every column a string."""
    table = pa.Table.from_pylist(rows, schema=pa.schema([(name, pa.string()) for name in COLUMNS]))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `vocabulary` entries that splits as Qwen2's does, as a transformers tokenizer.

    Every text begins with <s>. Offsets are untrimmed: a token's span starts at the space before it. Text is cut
    into words by Qwen2's own rule (digits one by one), because AutoTokenizer applies that rule in any folder
    that holds a Qwen2 model, whatever the tokenizer's own file says."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

    qwen2 = Qwen2Tokenizer().backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer, bpe.decoder = qwen2.normalizer, qwen2.pre_tokenizer, qwen2.decoder
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    begin = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bpe.token_to_id(BOS))])
    bpe.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=BOS, unk_token=BOS, pad_token=PAD,
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def build_world(config: WorldConfig, lab: Path | str, user_corpus: Path | str | None = None) -> World:
    """Write corpora, items and tokenizer into `lab`, each file whole or not at all, and say what was written.

    `user_corpus`: the user's own texts (see `read_texts`), put into `broad` and `pretrain` as domain `user`, up to a
    fifth of them into `heldout` instead.
    Errors: SaladError for a user's file that cannot be used."""
    lab = Path(lab)
    corpora = _corpora(config)
    user = []
    if user_corpus is not None:
        texts = [piece for text in read_texts(user_corpus) for piece in passages(text, config.user_words)]
        if len(texts) > config.user_passages:
            chosen = random.Random(f"user/{config.seed}").sample(range(len(texts)), config.user_passages)
            texts = [texts[n] for n in sorted(chosen)]
        user = [_row("user", n, text, "user", Path(user_corpus).name, "unknown") for n, text in enumerate(texts)]
        kept_out = min(config.heldout_per_domain, len(user) // 5)
        held_out = set(random.Random(f"heldout/{config.seed}").sample(range(len(user)), kept_out))
        corpora["heldout"] = corpora["heldout"] + [row for n, row in enumerate(user) if n in held_out]
        for corpus in ("broad", "pretrain"):
            corpora[corpus] = corpora[corpus] + [row for n, row in enumerate(user) if n not in held_out]
    made_items = {domain.name: items(config, domain) for domain in WORLD}

    files = {f"corpora/{name}/part-0.parquet": parquet(rows) for name, rows in corpora.items()}
    for name, rows in made_items.items():
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files[f"tasks/miniature_{name}.jsonl"] = lines.encode()
    for name, data in files.items():
        atomic.write_bytes(lab / name, data)
    tokenizer = train_tokenizer([row["text"] for row in corpora["pretrain"]], config.vocabulary)
    save_folder(lab / "models" / "tokenizer", tokenizer.save_pretrained)
    store.files.record(lab, [*(lab / name for name in files), lab / "models" / "tokenizer"], "salad demo")

    checksum = hashlib.sha256()
    for name in sorted(files):
        checksum.update(name.encode() + hashlib.sha256(files[name]).digest())
    checksum.update(tokenizer.backend_tokenizer.to_str().encode())
    broad = Counter(row["domain"] for row in corpora["broad"])
    planted = Counter(row["planted"] for row in corpora["broad"] if row["planted"])
    world = World(
        documents={name: len(rows) for name, rows in corpora.items()},
        p_web={name: count / broad.total() for name, count in sorted(broad.items())},
        planted=dict(sorted(planted.items())),
        items={name: len(rows) for name, rows in made_items.items()},
        user=len(user),
        fingerprint=checksum.hexdigest()[:12],
    )
    atomic.write_json(lab / "corpora" / "world.json", {"config": config.model_dump(), **asdict(world)})
    return world
