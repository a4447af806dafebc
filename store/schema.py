"""Every table of a lab, declared once: columns with type, unit and meaning, sort order and folder key.

Long because it is one list: the data dictionary of all tables.

`python -m store.docs` writes docs/reference/data-dictionary.md from this file."""

from typing import NamedTuple

import pyarrow as pa

TEXT, INT, BIG, NUMBER, FLAG = pa.string(), pa.int32(), pa.int64(), pa.float64(), pa.bool_()
TIME = pa.timestamp("us", tz="UTC")
TEXTS, NUMBERS, VECTOR = pa.list_(TEXT), pa.list_(NUMBER), pa.list_(pa.float32())
WORDS = pa.list_(pa.struct([("word", TEXT), ("char_start", INT), ("char_end", INT), ("start_s", NUMBER), ("end_s", NUMBER)]))
TOP = pa.list_(pa.struct([("token", TEXT), ("p", NUMBER)]))


class Column(NamedTuple):
    """One column. `since` is the schema version of its table that brought it; older units, and rows that are published
    without it, read as `default`: null unless it says otherwise."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    required: bool = False
    since: int = 1
    json: bool = False
    default: int | None = None


class Table(NamedTuple):
    """One table. `kind`: "unit" (Parquet), "event" (JSONL), "run" (from lab/runs) or "package" (ships with us)."""

    name: str
    row: str
    columns: tuple[Column, ...]
    kind: str = "unit"
    folder: str = ""
    sort: tuple[str, ...] = ()
    key: tuple[str, ...] = ()  # what tells rows apart: an import brings no row whose key is there

    @property
    def version(self) -> int:
        """The schema version that new units have: that of the newest column."""
        return max(column.since for column in self.columns)

    def arrow(self, version: int | None = None) -> pa.Schema:
        """The columns that a unit of this schema version holds, all of them by default."""
        return pa.schema([(c.name, c.type) for c in self.columns if version is None or c.since <= version])

    def column(self, name: str) -> Column | None:
        """The column of this name, or None."""
        return next((column for column in self.columns if column.name == name), None)


def _key(name, meaning, type=TEXT):
    return Column(name, type, meaning, required=True)


def _json(name, meaning):
    return Column(name, TEXT, meaning, unit="JSON", json=True)


_CHECKPOINT = (
    _key("run_id", "the run whose checkpoint was scored"),
    _key("step", "the checkpoint's optimizer step", BIG),
)
_SYNTHESIS = (
    _key("sample_id", "the text"),
    Column("synthesis_id", TEXT, "the speech that was heard; of a diagnosis' control, the speech that it took the place of"),
    _key("pattern", "which of the two complementary interleavings, 0 or 1", INT),
)

# Before 2026-12 every scoring cut spans of 1 to 4 units.
_SPANS = (
    Column(
        "span_min",
        INT,
        "shortest span of the scoring's patterns; 0 of a diagnosis, whose whole prompt is speech",
        "units",
        since=2,
        default=1,
    ),
    Column("span_max", INT, "longest span of the scoring's patterns; 0 of a diagnosis", "units", since=2, default=4),
)

UNITS = (
    Table(
        "samples",
        "a text",
        (
            _key("sample_id", "s + 12 hex digits of the hash of corpus and text"),
            _key("text", "the text as the corpus has it"),
            Column("spoken", TEXT, "its spoken form, which the TTS reads"),
            _key("corpus", "folder under lab/corpora"),
            Column("domain", TEXT, "subject, where the corpus knows it"),
            Column("n_tokens", INT, "length under the teacher's tokenizer", "tokens"),
            Column("licence", TEXT, "licence of the text"),
            Column(
                "flags",
                TEXTS,
                "what filtering found: formula, code, url, table, other language, near-duplicate, benchmark overlap ...",
            ),
            Column("planted", TEXT, "the miniature's truth about a fault it planted; null elsewhere"),
            Column("reasons", TEXT, "why each flag: flag -> the piece of text that shows it", "JSON", since=2, json=True),
            Column("benchmarks", TEXTS, "evaluation tasks that it shares a run of words (13) with", since=2),
            Column("doc_id", TEXT, "the document that it was cut from", since=2),
            Column("language", TEXT, "of its document, ISO 639-1", since=2),
            Column("answer", TEXT, "what a chat answers to the text; null where the text is all there is", since=3),
        ),
        folder="corpus",
        sort=("sample_id",),
        key=("sample_id",),
    ),
    Table(
        "embeddings",
        "a text's embedding (internal)",
        (
            _key("sample_id", "the text"),
            _key("model", "the embedding model"),
            Column("vector", VECTOR, "the embedding, of unit length", required=True),
            Column("nll", NUMBER, "the LLM's own mean negative log-likelihood of the text", "nats a token", since=2),
        ),
        folder="model",
        sort=("model", "sample_id"),
        key=("model", "sample_id"),
    ),
    Table(
        "clusters",
        "a cluster",
        (
            _key("clustering_id", "c + 12 hex digits"),
            _key("cluster_id", "from 0", INT),
            Column("run_id", TEXT, "the pass that made it"),
            Column("size", BIG, "texts assigned to it", "texts"),
            Column("p_web", NUMBER, "its share of the broad corpus", "probability"),
            Column("terms", TEXTS, "the words that tell it from the others, most telling first"),
            Column("centroid", VECTOR, "its centre, of unit length"),
            Column("price", NUMBER, "what the balancing charges per text for joining it"),
        ),
        folder="clustering_id",
        sort=("clustering_id", "cluster_id"),
        key=("clustering_id", "cluster_id"),
    ),
    Table(
        "assignments",
        "a text in a cluster",
        (
            _key("clustering_id", "the clustering"),
            _key("sample_id", "the text"),
            _key("cluster_id", "the cluster it is in", INT),
            Column("distance", NUMBER, "from its centre", "cosine distance"),
        ),
        folder="clustering_id",
        sort=("clustering_id", "cluster_id", "sample_id"),
        key=("clustering_id", "sample_id"),
    ),
    Table(
        "syntheses",
        "a spoken text",
        (
            _key("synthesis_id", "y + 12 hex digits of the hash of sample, TTS, voice and seed"),
            _key("sample_id", "the text"),
            Column("cut_id", TEXT, "the cut in the Lhotse Shar"),
            Column("audio_path", TEXT, "the Shar's tar file, relative to the lab"),
            Column("audio_offset", BIG, "where the FLAC starts in the tar file", "bytes"),
            Column("audio_bytes", BIG, "length of the FLAC", "bytes"),
            Column("tts", TEXT, "the synthesiser"),
            Column("voice", TEXT, "its voice"),
            Column("duration_s", NUMBER, "length of the speech", "s"),
            Column("words", WORDS, "where each word stands in the text and in the speech", "characters, s"),
            Column("cer", NUMBER, "character error rate of the ASR check", "fraction"),
            Column("wer", NUMBER, "word error rate of the ASR check", "fraction"),
            Column("asr", TEXT, "the ASR model that checked: a folder of the lab relative to it, else a folder or hub name"),
            Column("flags", TEXTS, "what synthesis or its check noticed: truncated, skipped words ..."),
            Column("seed", INT, "of the synthesis"),
            Column("speech", TEXT, "folder under lab/speech"),
            Column("text_asr", TEXT, "what the ASR model heard"),
            Column("raw_cer", NUMBER, "character error rate against the written text, not its spoken form", "fraction"),
            Column("raw_wer", NUMBER, "word error rate against the written text, not its spoken form", "fraction"),
            Column("planted", TEXT, "the miniature's truth about a fault of the speech; null elsewhere", since=2),
            Column("audio_crc32", BIG, "CRC-32 of the FLAC's bytes", since=3),
        ),
        folder="speech",
        sort=("sample_id", "synthesis_id"),
        key=("synthesis_id",),
    ),
    Table(
        "divergences",
        "a sample scored by a checkpoint, under one interleaving pattern",
        (
            *_CHECKPOINT,
            *_SYNTHESIS,
            Column("m", NUMBER, "misalignment: mean over n_positions", "nats"),
            Column("f", NUMBER, "forgetting: mean over n_positions_f", "nats"),
            Column("d", NUMBER, "distillation divergence: mean over n_positions", "nats"),
            Column("n_positions", INT, "text positions after the first speech span", "positions"),
            Column("n_positions_f", INT, "every text position of the pattern", "positions"),
            Column("speech_s", NUMBER, "speech in the pattern", "s"),
            *_SPANS,
        ),
        folder="run_id",
        sort=("run_id", "step", "span_min", "span_max", "-m", "sample_id", "pattern", "synthesis_id"),
        key=("run_id", "step", "sample_id", "synthesis_id", "pattern", "span_min", "span_max"),
    ),
    Table(
        "token_divergences",
        "a text position of a scored sample",
        (
            *_CHECKPOINT,
            *_SYNTHESIS,
            _key("position", "the token's index in the text; of a diagnosis in the answer", INT),
            Column("token", TEXT, "the token, as text"),
            Column("char_start", INT, "in the text; an answer's count on from its end", "characters"),
            Column("char_end", INT, "in the text; an answer's count on from its end", "characters"),
            Column("start_s", NUMBER, "in the speech, which a diagnosed model hears no further than its prompt", "s"),
            Column("end_s", NUMBER, "in the speech", "s"),
            Column("after_speech", FLAG, "whether a speech span came before: m and d count only then"),
            Column("m", NUMBER, "misalignment", "nats"),
            Column("f", NUMBER, "forgetting", "nats"),
            Column("d", NUMBER, "distillation divergence", "nats"),
            Column(
                "teacher_top",
                TOP,
                "the teacher's five likeliest tokens; of a diagnosis without a base LLM the model's own, on text",
                "probability",
            ),
            Column("student_top", TOP, "the student's five likeliest tokens, after speech", "probability"),
            *_SPANS,
        ),
        folder="run_id",
        sort=("run_id", "step", "span_min", "span_max", "sample_id", "synthesis_id", "pattern", "position"),
        key=("run_id", "step", "sample_id", "synthesis_id", "pattern", "position", "span_min", "span_max"),
    ),
    Table(
        "selections",
        "a drawn selection",
        (
            _key("selection_id", "l + 12 hex digits"),
            Column("clustering_id", TEXT, "the clustering that it draws from"),
            Column("run_id", TEXT, "the checkpoint whose divergences steer it: run"),
            Column("step", BIG, "the checkpoint whose divergences steer it: step"),
            Column("strategy", TEXT, "active, uniform, or a strategy of one's own"),
            Column("gamma", NUMBER, "exponent on d_cluster"),
            Column("budget_h", NUMBER, "speech to draw", "h"),
            Column("seed", BIG, "of the draw"),
            Column("parent_selection_id", TEXT, "the selection that this one was frozen or refilled from"),
            Column("round", INT, "of active_rounds, from 1", since=2),
            Column("max_cer", NUMBER, "clusters whose probe has a mean CER above were left out", "fraction", since=2),
            Column("speech", TEXT, "the probe's folder under lab/speech; null for all that was scored", since=2),
        ),
        folder="selection_id",
        sort=("selection_id",),
        key=("selection_id",),
    ),
    Table(
        "selected",
        "a text in a selection",
        (
            _key("selection_id", "the selection"),
            _key("sample_id", "the text"),
            Column("cluster_id", INT, "its cluster"),
            Column("draw", BIG, "its place in the draw, from 0"),
            Column("p_web", NUMBER, "its cluster's share of the corpus", "probability"),
            Column("p_target", NUMBER, "its cluster's intended share of the selection", "probability"),
            Column("d_cluster", NUMBER, "its cluster's mean distillation divergence on the probe", "nats"),
            Column("estimated_s", NUMBER, "speech it was estimated to give at the draw", "s"),
            Column("own_synthesis_id", TEXT, "of a frozen selection: the text's speech that a run hears", since=2),
        ),
        folder="selection_id",
        sort=("selection_id", "draw", "sample_id"),
        key=("selection_id", "sample_id"),
    ),
    Table(
        "selection_clusters",
        "a cluster as a draw saw it",
        (
            _key("selection_id", "the selection that was drawn"),
            _key("cluster_id", "the cluster", INT),
            Column("p_web", NUMBER, "its share of the corpus", "probability"),
            Column("d_cluster", NUMBER, "its mean distillation divergence on the probe; null where it has none", "nats"),
            Column("p_target", NUMBER, "its intended share of the selection", "probability"),
            Column("left_out", TEXT, "why nothing may be drawn from it: its CER, no probe; null where it is open"),
            Column("texts", BIG, "texts of it in the selection", "texts"),
            Column("seconds", NUMBER, "speech that they were estimated to give", "s"),
            Column("dry", FLAG, "whether every text that might be drawn was: its mass was passed on"),
            Column("cer", NUMBER, "mean character error rate of its probe", "fraction"),
            Column("rank", INT, "place by d_cluster, 1 is the worst"),
            Column("d_adjusted", NUMBER, "d_cluster with CER, duration and speaking rate regressed out", "nats"),
            Column("rank_adjusted", INT, "place by d_adjusted: a cluster that falls was badly spoken"),
            Column("text_share", NUMBER, "of the variance of d: what the text causes, not the voice", "fraction"),
            Column("d_se", NUMBER, "standard error of d_cluster over the probe's texts; null under two", "nats", since=2),
            Column("p_target_low", NUMBER, "95 % interval of p_target, by the probe's texts", "probability", since=2),
            Column("p_target_high", NUMBER, "95 % interval of p_target, by the probe's texts", "probability", since=2),
        ),
        folder="selection_id",
        sort=("selection_id", "cluster_id"),
        key=("selection_id", "cluster_id"),
    ),
    Table(
        "evaluations",
        "an item answered",
        (
            _key("eval_id", "the answer"),
            Column("run_id", TEXT, "the run; null for the teacher"),
            Column("step", BIG, "the checkpoint's step"),
            _key("contender", "teacher, stage1, stage2_active, stage2_uniform, or a name given"),
            _key("task", "the benchmark"),
            _key("modality", "text, speech, cascade, deaf (another item's recording) or silent"),
            Column("voice", TEXT, "a TTS voice, or `recorded`"),
            _key("item_id", "the item, within its task"),
            Column("scores", NUMBERS, "each choice's summed log-probability", "nats"),
            Column("prediction", TEXT, "the choice taken (index), or the text answered"),
            Column("answer", TEXT, "the right choice (index), or the reference"),
            Column("correct", FLAG, "by the summed log-probability (lm-eval's acc)"),
            Column("correct_norm", FLAG, "by the length-normalised one (acc_norm): what tables and targets mean"),
            Column("domain", TEXT, "the item's subject"),
            Column("parsed", FLAG, "whether the answer could be read; one that could not is wrong", since=2),
            Column("speech_s", NUMBER, "speech that was heard, where modality is speech", "s", since=2),
            Column("compute_s", NUMBER, "time that answering took on its device, the item's share", "s", since=2),
            Column("fingerprint", TEXT, "hash of what the contender computes with: weights, prompt format, type", since=3),
            Column("teacher", TEXT, "fingerprint of the text LLM that it was made from: whose text its gap is from", since=3),
            Column("content", TEXT, "hash of the item's whole prompt, examples included, its choices and answer", since=3),
            Column("tts", TEXT, "the synthesiser of the speech, or `recorded`", since=3),
            Column("syntheses", TEXTS, "the speech that was heard, in the prompt's order", since=3),
            Column("asr", TEXT, "of a cascade: the recogniser, a folder with a hash of its files", since=3),
            Column("seed", BIG, "of modality deaf: drew whose recording is heard", since=3),
            Column("finish_reason", TEXT, "how an endpoint's answer ended, as it says", since=3),
            Column("at", TIME, "when it was answered; of an item that was edited since, older answers count no more", since=4),
        ),
        folder="contender",
        sort=("contender", "run_id", "step", "task", "modality", "voice", "item_id"),
        key=("eval_id",),
    ),
    Table(
        "answers",
        "an open question answered, or a recording transcribed, by a contender",
        (
            _key("answer_id", "the answer"),
            _key("question_id", "the question, the same in every modality"),
            Column("question", TEXT, "what was asked; of a transcription what was said"),
            Column("task", TEXT, "the list of questions, or `transcription`"),
            Column("run_id", TEXT, "the run; null for contenders that are none"),
            Column("step", BIG, "the checkpoint's step"),
            _key("contender", "teacher, stage1, stage2_active, stage2_uniform, or a name given"),
            _key("modality", "text, speech or cascade"),
            Column("voice", TEXT, "a TTS voice, or `recorded`"),
            Column("synthesis_id", TEXT, "the speech that was heard"),
            Column("text", TEXT, "the answer"),
            Column("reference", TEXT, "the right one, where it is known"),
            Column("wer", NUMBER, "of a transcription: word error rate of the answer", "fraction"),
            Column("temperature", NUMBER, "0: greedy"),
            Column("seed", BIG, "of the sampling"),
            Column("compute_s", NUMBER, "time that answering took on its device", "s"),
            Column("fingerprint", TEXT, "hash of what the contender computes with: weights, prompt format, type", since=2),
            Column("asr", TEXT, "of a cascade: the recogniser, a folder with a hash of its files", since=2),
        ),
        folder="contender",
        sort=("task", "question_id", "contender", "run_id", "step", "modality", "voice"),
        key=("answer_id",),
    ),
)

_CLOCK = Column("clock", BIG, "order of events: the wall clock, but later than every event seen by its writer", "µs since 1970")

EVENTS = (
    Table(
        "decisions",
        "what a reviewer said",
        (
            _key("event_id", "the event"),
            Column("selection_id", TEXT, "the selection it was said about"),
            Column("target", TEXT, "sample, cluster or rule"),
            Column("sample_id", TEXT, "where target is sample"),
            Column("cluster_id", INT, "where target is cluster"),
            Column("rule", TEXT, "where target is rule: a SQL predicate over the columns of the view rule_rows"),
            _key("verdict", "keep, drop, reweight or undo"),
            Column("weight", NUMBER, "where verdict is reweight"),
            Column("undoes", TEXT, "where verdict is undo: the event taken back"),
            Column("reason", TEXT, "why, from a short list"),
            Column("note", TEXT, "why, in words"),
            _key("reviewer", "who"),
            _key("at", "when, UTC", TIME),
            _CLOCK,
        ),
        kind="event",
        sort=("clock", "event_id"),
    ),
    Table(
        "votes",
        "a comparison",
        (
            _key("vote_id", "the event"),
            Column("question_id", TEXT, "what was asked"),
            *(
                Column(f"{side}_{name}", type, f"the {side} answer's {meaning}")
                for side in ("left", "right")
                for name, type, meaning in (
                    ("contender", TEXT, "contender"),
                    ("run_id", TEXT, "run"),
                    ("step", BIG, "checkpoint"),
                    ("modality", TEXT, "modality"),
                )
            ),
            _key("choice", "left, right, tie or both_bad"),
            Column("blind", FLAG, "whether the sides were hidden"),
            _key("voter", "who"),
            _json("latencies", "seconds that each side took to answer"),
            Column("seed", BIG, "that chose question and sides"),
            _key("at", "when, UTC", TIME),
            _CLOCK,
        ),
        kind="event",
        sort=("clock", "vote_id"),
    ),
    Table(
        "run_notes",
        "a note on a run (the view runs shows the latest)",
        (
            _key("event_id", "the event"),
            _key("run_id", "the run"),
            Column("tags", TEXT, "short labels"),
            Column("note", TEXT, "in words"),
            _key("author", "who"),
            _key("at", "when, UTC", TIME),
            _CLOCK,
        ),
        kind="event",
        sort=("clock", "event_id"),
    ),
)

RUNS = (
    Table(
        "runs",
        "a run",
        (
            _key("run_id", "r + 12 hex digits of the hash of configuration, parent and repetition"),
            Column("kind", TEXT, "teacher, encoder, recogniser, stage1, stage2, pass, diagnose or evaluate"),
            Column("recipe", TEXT, "the recipe that it was launched with"),
            _json("config", "its whole configuration"),
            Column("parent_run_id", TEXT, "the run whose checkpoint it starts from"),
            Column("selection_id", TEXT, "the selection that it trains on"),
            Column("repetition", INT, "0, raised by --again"),
            Column("status", TEXT, "queued, starting, running, preempted, stalled, stopped, failed or done"),
            Column("step", BIG, "steps done"),
            Column("max_steps", BIG, "steps to do"),
            Column("tokens", BIG, "text tokens and speech frames fed, without padding", "tokens"),
            Column("engine", TEXT, "what started it"),
            Column("device", TEXT, "what it computes on"),
            Column("host", TEXT, "where"),
            Column("pid", BIG, "process"),
            Column("git_commit", TEXT, "the code"),
            Column("started_at", TIME, "when, UTC"),
            Column("ended_at", TIME, "when, UTC"),
            Column("heartbeat_at", TIME, "last sign of life, UTC"),
            Column("seconds_left", NUMBER, "estimate at the last sign of life", "s"),
            Column("error", TEXT, "why it failed"),
            Column("tags", TEXT, "short labels"),
            Column("note", TEXT, "in words"),
        ),
        kind="run",
    ),
    Table(
        "metrics",
        "a logged value",
        (
            _key("run_id", "the run"),
            _key("step", "optimizer step", BIG),
            Column("tokens", BIG, "text tokens and speech frames fed, without padding", "tokens"),
            _key("name", "what was logged"),
            Column("value", NUMBER, "its value; null where it was not finite"),
            Column("at", TIME, "when, UTC"),
        ),
        kind="run",
    ),
)

PUBLISHED = Table(
    "published",
    "a figure from a paper",
    (
        _key("system", "the system"),
        Column("model", TEXT, "which of its models; `unknown` where the source is silent"),
        Column("task", TEXT, "the benchmark; `mean` over the paper's six"),
        Column("modality", TEXT, "speech, text, cascade, or `unknown` where the source is silent"),
        Column("accuracy", NUMBER, "as published", "%"),
        Column("gap", NUMBER, "text accuracy of the original LLM minus this accuracy", "points"),
        Column("source", TEXT, "where it was published"),
    ),
    folder="system",
    sort=("system", "model", "task", "modality"),
    key=("system", "model", "task", "modality", "accuracy", "source"),
)

DAMAGED = Table(
    "damaged",
    "a unit or file left out",
    (
        Column("table", TEXT, "its table"),
        Column("path", TEXT, "relative to the lab"),
        Column("reason", TEXT, "what is wrong with it"),
    ),
    kind="view",
)

TABLES: dict[str, Table] = {t.name: t for t in (*RUNS, *UNITS, *EVENTS, PUBLISHED, DAMAGED)}


def sql_type(type: pa.DataType) -> str:
    """DuckDB's name for an Arrow type."""
    if pa.types.is_list(type):
        return sql_type(type.value_type) + "[]"
    if pa.types.is_struct(type):
        return "STRUCT(" + ", ".join(f'"{field.name}" {sql_type(field.type)}' for field in type) + ")"
    return {
        TEXT: "VARCHAR",
        INT: "INTEGER",
        BIG: "BIGINT",
        NUMBER: "DOUBLE",
        FLAG: "BOOLEAN",
        pa.float32(): "FLOAT",
        TIME: "TIMESTAMPTZ",
    }[type]


def column_type(column: Column) -> str:
    """The SQL type that a view shows a column in."""
    return "JSON" if column.json else sql_type(column.type)
