"""Ctrl-C around C libraries that call back into Python: espeak, and libsndfile for a file in memory.

What is raised within such a callback is printed and forgotten, and the library goes on with what the callback did not
do: the key is lost, and a piece of sound with it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held() -> Iterator[None]:
    """Hold a Ctrl-C until the block ends, then let it act as it would have."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # only the main thread runs handlers of signals
        return
    received = []
    signal.signal(signal.SIGINT, lambda *signal_and_frame: received.append(signal_and_frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            before(*received[0])
