"""The process that runs the SQL that people type: limited in memory by the operating system, and stopped from outside.

`python -m store.worker` is not for people: sql.py starts it, sends it questions, and kills it where it does not answer in
time. DuckDB's own limits are set in it too, but a single function call (`repeat('x', 4e9)`) takes no notice of them."""

import contextlib
import json
import os
import pickle
import resource
import signal
import struct
import sys
import threading
import time
import warnings
from typing import Any

import duckdb
import pyarrow as pa

from . import sql
from .connection import connect, refresh
from .errors import StoreError
from .verification import keep_in_memory

ROOM = 1 << 30  # bytes that Python, Arrow and DuckDB's threads take besides what a query may take
PATIENCE_S = 0.05  # between two interruptions of a query whose time is over


def limit_memory(extra: float) -> None:
    """Let this process grow by `extra` bytes at most, and no further: an allocation beyond fails."""
    with open("/proc/self/statm") if os.path.exists("/proc/self/statm") else contextlib.nullcontext() as file:
        now = int(file.read().split()[0]) * resource.getpagesize() if file else 4 << 30
    with contextlib.suppress(ValueError, OSError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (int(now + extra), resource.getrlimit(resource.RLIMIT_AS)[1]))


def read_exactly(handle: int, size: int) -> bytes:
    """`size` bytes of a pipe; EOFError where it ends."""
    parts = []
    while size:
        part = os.read(handle, min(size, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def write_all(handle: int, *parts: Any) -> None:
    """Write all of `parts`, bytes or buffers, into a pipe."""
    for part in parts:
        part = memoryview(part)
        while len(part):
            part = part[os.write(handle, part) :]


def _answer(con, question: dict, memory: str) -> tuple[dict, pa.Buffer | bytes]:
    """What a question gives: {"ok"} with an Arrow stream, or {"error"}; `fatal` where this process had better end."""
    over = threading.Event()

    def interrupt():
        if not over.wait(question["timeout_s"]):
            while not over.wait(PATIENCE_S):  # again and again: DuckDB forgets one that comes before the query has begun
                con.interrupt()

    watch = threading.Thread(target=interrupt, daemon=True)
    started = time.monotonic()
    try:
        sql.check_statement(question["sql"])
        watch.start()
        reader = con.sql(question["sql"], params=question["parameters"]).to_arrow_reader()
        sink, size = pa.BufferOutputStream(), 0
        with pa.ipc.new_stream(sink, reader.schema) as stream:
            for batch in reader:  # a result is outside DuckDB's own memory limit
                size += batch.nbytes
                if size > sql.size_in_bytes(memory):
                    return {"error": f"the answer is larger than {memory}: aggregate, or add a LIMIT"}, b""
                stream.write_batch(batch)
        return {"ok": True}, sink.getvalue()
    except StoreError as error:
        return {"error": str(error)}, b""
    except (MemoryError, duckdb.FatalException, duckdb.InternalException, pa.ArrowMemoryError) as error:
        return {"error": f"SQL: out of memory, or worse, at {memory}: {sql.one_line(error)}", "fatal": True}, b""
    except Exception as error:
        if time.monotonic() - started >= question["timeout_s"]:
            return {"error": sql.too_long(question["timeout_s"])}, b""
        text = sql.one_line(error)
        memory_over = "bad_alloc" in text or isinstance(error, duckdb.OutOfMemoryException)
        return {"error": f"SQL: {text}" + (" (out of memory)" if "bad_alloc" in text else ""), "fatal": memory_over}, b""
    finally:
        over.set()


def serve(questions: int, answers: int) -> None:
    """Answer the questions of one pipe on another until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks hears it, and stops this process

    parent = os.getppid()

    def follow():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    warnings.simplefilter("ignore")  # the asking process has already warned about damaged files
    start = pickle.loads(read_exactly(questions, *struct.unpack("<q", read_exactly(questions, 8))))
    keep_in_memory()  # who only asks writes nothing
    con = connect(start["lab"], as_of=start["as_of"])
    sql.lock(con, start["lab"], start["memory"])
    limit_memory(sql.size_in_bytes(start["memory"]) + ROOM)
    while True:
        try:
            question = pickle.loads(read_exactly(questions, *struct.unpack("<q", read_exactly(questions, 8))))
        except EOFError:
            return
        try:
            if question["refresh"]:
                refresh(con)
            head, body = _answer(con, question, start["memory"])
        except Exception as error:  # a refresh that failed
            head, body = {"error": f"SQL: {sql.one_line(error)}", "fatal": True}, b""
        text = json.dumps(head).encode()
        write_all(answers, struct.pack("<qq", len(text), len(body)), text, body)
        if head.get("fatal"):
            return


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
