"""The miniature's world and teacher: deterministic, free of leaks, readable by the ordinary loaders."""

import itertools
import json
import re
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from salad import SaladError
from salad.miniature.facts import BROAD, DOMAINS, WORLD
from salad.miniature.teacher import TeacherConfig, batches, load_teacher, train_teacher
from salad.miniature.world import (
    FAULTS,
    WorldConfig,
    build_world,
    documents,
    passages,
    read_texts,
    withheld_questions,
)

CONFIG = WorldConfig(seed=5, pretrain_per_domain=200, natural={"stories": 60, "family": 4}, broad=1000)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def world(lab):
    return build_world(CONFIG, lab)


@pytest.fixture(scope="module")
def corpora(lab, world):
    return {name: pq.read_table(lab / "corpora" / name).to_pylist() for name in world.documents}


@pytest.fixture(scope="module")
def tokenizer(lab, world):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(lab / "models" / "tokenizer", local_files_only=True)


def items_of(lab, domain):
    return [json.loads(line) for line in (lab / "tasks" / f"miniature_{domain}.jsonl").read_text().splitlines()]


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_world(lab, world, tmp_path):
    again = build_world(CONFIG, tmp_path / "again")
    made = {name: data for name, data in files_of(tmp_path / "again").items() if name.parts[0] not in ("log", ".store-cache")}
    assert again == world
    assert made == {name: data for name, data in files_of(lab).items() if name in made}
    other = build_world(CONFIG.model_copy(update={"seed": 6}), tmp_path / "other")
    assert other.fingerprint != world.fingerprint


def test_an_unknown_key_and_a_bad_share_are_refused():
    for wrong in ({"sede": 1}, {"p_web": {"stories": 0.5}}, {"natural": {"physics": 3}}, {"broad": 0}):
        with pytest.raises(ValidationError):
            WorldConfig(**wrong)


def test_corpora_have_the_configured_sizes_and_shares(world, corpora):
    assert world.documents == {"heldout": 48 * 7, "natural": 64, "broad": 1000, "pretrain": 1400}
    assert Counter(row["domain"] for row in corpora["natural"]) == {"stories": 60, "family": 4}
    assert set(Counter(row["domain"] for row in corpora["pretrain"]).values()) == {200}
    for domain, share in CONFIG.p_web.items():
        assert world.p_web[domain] == pytest.approx(share, abs=0.02)
    assert sum(world.p_web[domain] for domain in BROAD) == pytest.approx(0.5, abs=0.03)
    assert list(corpora["broad"][0]) == ["doc_id", "text", "source", "licence", "language", "domain", "planted"]
    assert len({row["doc_id"] for rows in corpora.values() for row in rows}) == sum(world.documents.values())


def test_no_text_stands_in_two_corpora_nor_twice_unless_planted(corpora):
    texts = Counter(row["text"] for rows in corpora.values() for row in rows if row["planted"] != "exact duplicate")
    assert max(texts.values()) == 1


def test_planted_faults_are_of_every_kind_at_the_configured_rate_and_are_what_they_say(world, corpora):
    assert world.planted == dict.fromkeys(sorted(FAULTS), 5)
    rows = corpora["broad"]
    clean = {row["text"] for row in rows if row["planted"] is None}
    signs = {"formula": r"\$.*\\frac", "code": r"^def .*\n +return", "table": r"\| --- \|", "url": r"https://"}
    for row in rows:
        text, kind = row["text"], row["planted"]
        assert (text in clean) == (kind in (None, "exact duplicate"))
        assert (row["language"] != "en") == (kind == "other language")
        for sign, pattern in signs.items():
            assert bool(re.search(pattern, text, re.DOTALL)) == (kind == sign), text


def test_a_near_duplicate_is_a_document_slightly_changed(corpora):
    from difflib import SequenceMatcher

    clean = [row["text"] for row in corpora["broad"] if row["planted"] is None]
    for row in corpora["broad"]:
        if row["planted"] == "near duplicate":
            assert max(SequenceMatcher(None, row["text"], text).quick_ratio() for text in clean) > 0.9


def test_questions_are_the_configured_share_of_sentences_and_open_half_the_documents(corpora):
    texts = [row["text"] for row in corpora["pretrain"]]
    questions = sum(text.count("?") for text in texts)
    assert questions / (3 * len(texts)) == pytest.approx(0.35, abs=0.03)
    assert sum(re.match(r"[^.?]*\?", text) is not None for text in texts) / len(texts) > 0.4


def test_a_thousand_documents_of_a_domain_are_distinct():
    for domain in WORLD:
        texts = list(itertools.islice(documents(CONFIG, "any", domain), 1000))
        assert len(set(texts)) > 950


def test_withheld_phrasings_stand_in_no_text(corpora):
    withheld = [question.lower() for question in withheld_questions(CONFIG)]
    assert len(withheld) == 7 * 16 // 2
    everything = "\n".join(row["text"] for rows in corpora.values() for row in rows).lower()
    assert not [question for question in withheld if question in everything]


def test_questions_that_are_not_withheld_do_stand_in_the_teachers_text_with_their_answer(lab, world, corpora):
    everything = "\n".join(row["text"] for row in corpora["pretrain"])
    asked = [item for domain in DOMAINS for item in items_of(lab, domain)]
    known = [f"{item['context']} {item['choices'][item['answer']]}" for item in asked if not item["withheld"]]
    assert sum(text in everything for text in known) / len(known) > 0.95
    unseen = [item for item in asked if item["withheld"]]
    assert len(unseen) == len(asked) // 4
    assert not [item for item in unseen if item["context"].lower() in everything.lower()]


def test_items_are_balanced_distinct_and_answerable(lab, world):
    for domain in WORLD:
        items = items_of(lab, domain.name)
        assert len(items) == world.items[domain.name] == 64
        assert Counter(item["answer"] for item in items) == dict.fromkeys(range(4), 16)
        assert set(Counter((item["entity"], item["attribute"], item["phrasing"]) for item in items).values()) == {2}
        assert len({(item["context"], *sorted(item["choices"])) for item in items}) == 64
        assert len({item["item_id"] for item in items}) == 64
        truth = {
            (entity, attribute.name): value
            for attribute in domain.attributes
            for entity, value in zip(domain.entities, attribute.values, strict=True)
        }
        values = {attribute.name: {v.lower() for v in attribute.values} for attribute in domain.attributes}
        for item in items:
            right = truth[item["entity"], item["attribute"]]
            assert item["choices"][item["answer"]].lower() == right.lower() + "."
            result = [choice.lower().removesuffix(".") for choice in item["choices"]]
            assert len(set(result)) == 4 and set(result) <= values[item["attribute"]]
            name = item["entity"].split()[-1].lower()
            assert item["context"].endswith("?") and name in item["context"].lower()
            assert not any(name in choice for choice in result)


def test_the_facts_are_whole():
    assert [domain.name for domain in WORLD] == list(DOMAINS)
    for domain in WORLD:
        assert len(set(domain.entities)) == 8
        for attribute in domain.attributes:
            assert len(set(attribute.values)) == 8 and len(set(attribute.questions)) == 2
            assert all("{e}" in question for question in attribute.questions)
            assert all("{e}" in text and "{v}" in text for text in attribute.statements)
            starts = {text[0] for text in attribute.statements}
            assert all(start == "{" or start.islower() for start in starts), "no capital after a connective"


def test_documents_are_about_28_tokens_and_every_text_begins_with_bos(tokenizer, corpora):
    rows = tokenizer([row["text"] for row in corpora["heldout"]])["input_ids"]
    assert len(tokenizer) == CONFIG.vocabulary
    assert {row[0] for row in rows} == {tokenizer.bos_token_id} and tokenizer.bos_token == "<s>"
    assert 24 < sum(map(len, rows)) / len(rows) < 33


def test_the_tokenizer_is_lossless_with_untrimmed_offsets(tokenizer):
    text = "It isn't 42 °C — naïve 东西 \n  two  spaces, Dr. Hale."
    result = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(result["input_ids"], skip_special_tokens=True) == text
    spans = result["offset_mapping"][1:]
    assert spans[0][0] == 0 and spans[-1][1] == len(text)
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert start <= end  # nothing between two tokens: the space belongs to the word after it


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl", "own.parquet"])
def test_the_users_texts_are_added_to_broad_and_pretrain(tmp_path, name):
    texts = ["How do I open a jar?", "Turn the lid, or tap its edge on the table."]
    if name.endswith("txt"):
        (tmp_path / name).write_text("\n".join(texts) + "\n\n")
    elif name.endswith("jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"text": text, "n": 1}) + "\n" for text in texts))
    else:
        pq.write_table(pa.table({"text": texts}), tmp_path / name)
    world = build_world(CONFIG, tmp_path / "lab", tmp_path / name)
    assert world.user == 2 and world.p_web["user"] == pytest.approx(2 / 1002)
    for corpus in ("broad", "pretrain"):
        rows = [row for row in pq.read_table(tmp_path / "lab/corpora" / corpus).to_pylist() if row["domain"] == "user"]
        assert [row["text"] for row in rows] == texts
        assert {row["source"] for row in rows} == {name}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("none.txt", None, "No such file"),
        ("empty.txt", b" \n\n", "holds no text"),
        ("latin.txt", "café".encode("latin-1"), "not UTF-8"),
        ("bad.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2: not JSON"),
        ("goal.jsonl", b'{"goal": "x", "sol1": "y"}\n', 'no key "text"; it has goal, sol1'),
        ("number.jsonl", b'{"text": 3}\n', "is int, not a string"),
        ("cut.parquet", b"PAR1 and then nothing", "not readable as Parquet"),
        ("column.parquet", {"body": ["x"]}, "no column `text`; it has body"),
    ],
)
def test_a_users_file_that_cannot_be_used_is_one_clear_line(tmp_path, name, data, message):
    path = tmp_path / name
    if isinstance(data, dict):
        pq.write_table(pa.table(data), path)
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(SaladError) as error:
        read_texts(path)
    assert message in str(error.value) and name in str(error.value) and "\n" not in str(error.value)


def test_long_texts_become_passages_at_sentence_ends_without_losing_a_word():
    text = "One two three. Four five six seven? " + "word " * 13 + "End."
    cut = passages(text, 7)
    assert cut[0] == "One two three. Four five six seven?"
    assert " ".join(cut).split() == text.split() and max(len(piece.split()) for piece in cut) <= 7
    assert passages("Short,  with\nspaces.", 7) == ["Short, with spaces."]


def test_batches_show_every_text_once_an_epoch():
    encoded = [[n] * (1 + n % 7) for n in range(50)]
    epoch = list(itertools.islice(batches(encoded, 8, seed=0), 7))
    assert sorted(row[0] for batch in epoch for row in batch) == list(range(50))


def test_a_teacher_learns_repeats_exactly_and_loads_with_the_very_same_tokens(tmp_path, tokenizer, corpora):
    import torch

    torch.set_num_threads(1)
    texts = [row["text"] for row in corpora["pretrain"]]
    config = TeacherConfig(seed=5, width=64, layers=2, heads=2, mlp=128, steps=40, batch=32, lr=6e-3)
    seen = []
    torch.manual_seed(1)
    record = train_teacher(config, texts, tokenizer, tmp_path / "a", lambda step, loss: seen.append((step, loss)))
    assert [step for step, _ in seen] == list(range(1, 41))
    assert record["loss"] < 0.6 * seen[0][1]

    torch.manual_seed(2)
    train_teacher(config, texts, tokenizer, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()

    again = []
    assert train_teacher(config, texts, tokenizer, tmp_path / "a", lambda *step: again.append(step)) == record
    assert not again, "a finished teacher is not trained twice"
    train_teacher(config.model_copy(update={"steps": 2}), texts, tokenizer, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "b/model.safetensors").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    model, loaded = load_teacher(tmp_path / "a")
    assert model.config.model_type == "qwen2" and model.config.tie_word_embeddings
    assert len(loaded) == model.config.vocab_size == len(tokenizer)
    sample = [*texts[:200], "It isn't 42 °C — naïve, 1,250.5 m."]
    assert loaded(sample, return_offsets_mapping=True).data == tokenizer(sample, return_offsets_mapping=True).data
    with torch.no_grad():
        result = [torch.tensor([loaded(text)["input_ids"]]) for text in texts[:50]]
        loss = sum(model(row, labels=row, use_cache=False).loss.item() for row in result) / 50
    assert loss == pytest.approx(record["loss"], rel=0.15)


def test_speech_faults_are_planted_at_their_rate_and_told():
    from salad.miniature.faults import KINDS, Faulty, fault_of
    from salad.speech import load_tts

    results = [fault_of(f"text {n}", "en-us", 0, 0.05) for n in range(4000)]
    for kind in KINDS:
        assert 0.035 < results.count(kind) / len(results) < 0.065
    assert {fault_of(f"text {n}", "en-us", 0, 0.0) for n in range(100)} == {None}
    tts = Faulty(load_tts("espeak"), 0.25)
    texts = [f"The otter eats fish number {n} every day." for n in range(40)]
    kinds = {text: tts.planted(text, "en-us", 0) for text in texts}
    cut = next(text for text, kind in kinds.items() if kind == "truncated")
    well, short = tts.tts.speak(cut, "en-us", 0), tts.speak(cut, "en-us", 0)
    assert len(short.samples) == len(well.samples) * 6 // 10
    assert short.words and short.words[-1].end_s <= short.duration_s < well.duration_s


def test_the_samples_hold_what_filtering_found(tmp_path):
    """Every planted fault of the broad corpus that a filter looks for is flagged, and nothing clean but near-duplicates
    that the world makes by itself."""
    import store
    from salad.miniature.make import make_world

    make_world(None, tmp_path, CONFIG)
    rows = store.connect(tmp_path).execute(
        "select sample_id, planted, flags, reasons, benchmarks from samples where corpus = 'broad'"
    )
    by_kind, near, originals = {}, set(), set()
    for sample_id, planted, flags, reasons, benchmarks in rows.fetchall():
        content = json.loads(reasons)
        assert sorted(content) == flags and benchmarks == []
        by_kind.setdefault(planted, []).append((sample_id, flags))
        if "near-duplicate" in content:
            near.add(sample_id)
            originals.add(content["near-duplicate"].split()[-1])
    for kind in ("formula", "code", "table", "url", "other language"):
        assert by_kind[kind] and all(kind in flags for _, flags in by_kind[kind])
    # of a planted pair, whichever comes second is the near-duplicate
    assert by_kind["near duplicate"] and {name for name, _ in by_kind["near duplicate"]} <= near | originals
    clean = [flags for _, flags in by_kind[None] if flags]
    assert all(flags == ["near-duplicate"] for flags in clean) and len(clean) <= 0.02 * len(by_kind[None])
