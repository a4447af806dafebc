"""Whether a process that was written down is still there: by pid and by when it began, for pids are used again."""

import os
import socket

import psutil


def mark(pid: int | None = None) -> dict:
    """{"pid", "created", "host"} of a process of this machine (this one by default)."""
    pid = pid or os.getpid()
    return {"pid": pid, "created": psutil.Process(pid).create_time(), "host": socket.gethostname()}


def alive(marked: dict | None) -> bool | None:
    """True or False for a process of this machine, None for another machine's or for no mark."""
    if not marked or marked.get("host") != socket.gethostname():
        return None
    try:
        process = psutil.Process(marked["pid"])
        same = abs(process.create_time() - marked["created"]) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
