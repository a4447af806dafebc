"""espeak-ng (1.52, through espeakng-loader) by ctypes: exact word and phoneme events, about 500 x real time.

    from salad.speech.espeak import Espeak
    Espeak().speak("What color is the cat? Blue.", "en-us+f2@rate=170,pitch=60", seed=0)

espeak keeps state between utterances (the pitch flutter's phase, the gain control, the cycle count) that neither
`espeak_Terminate` nor a new voice nor a seed resets, so the same text differs by a few samples on a second call.
The library is therefore loaded anew for each utterance: 1.6 ms, for which the same request gives the same samples
whatever was spoken before.
"""

import _ctypes
import atexit
import ctypes
import os
import re
import tempfile
import threading
from bisect import bisect_left
from functools import cache, lru_cache
from pathlib import Path

import numpy as np

from salad import interrupts
from salad.errors import SaladError
from salad.speech.utterance import SAMPLE_RATE, TimedPhone, Utterance, Word
from salad.speech.words import runs, words_of

NATIVE_RATE = 22_050
PARAMETERS = {"rate": (1, 80, 450), "pitch": (3, 0, 99), "range": (4, 0, 99), "gap": (7, 0, 100)}

_SYNCHRONOUS, _DONT_EXIT, _PHONEME_EVENTS = 2, 0x8000, 0x0001
_UTF8, _KEEP_FINAL_PAUSE = 1, 0x1000  # without the final pause, the end of a spoken question cannot be heard
_IPA = 2
_END, _WORD, _PHONEME = 0, 1, 7
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")  # espeak takes \x01 for a command, \x00 for the end


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):  # espeak_EVENT of speak_lib.h, 40 bytes
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # from 1, in characters
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))
_sound: list[bytes] = []
_events: list[tuple] = []  # (type, character, sample, phoneme)


@_Callback
def _collect(wave, n_samples, events):
    if wave and n_samples > 0:
        _sound.append(ctypes.string_at(wave, 2 * n_samples))
    i = 0
    while (event := events[i]).type != _END:
        if event.type in (_WORD, _PHONEME):
            symbol = event.id.string.decode("utf-8", "replace") if event.type == _PHONEME else ""
            _events.append((event.type, event.text_position - 1, event.sample, symbol))
        i += 1
    return 0


_lock = threading.Lock()  # espeak aborts when two threads are inside: one engine per process
_library: ctypes.CDLL | None = None


def _unload() -> None:
    global _library
    if _library is not None:
        _ctypes.dlclose(_library._handle)
        _library = None


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _unload()  # a copy that another thread of the parent was using: its state is of no use here


# No fork while a thread loads the library: the child would wait for the loader's own lock for ever.
os.register_at_fork(before=lambda: _lock.acquire(), after_in_parent=lambda: _lock.release(), after_in_child=_after_fork)


@cache
def _own_copy() -> str:
    """The path of a copy of the library that only this process knows.

    A second loading of the original would be the same engine, with the state of whoever holds it (Kokoro does, for
    the words it lacks), and unloading it would not reset it."""
    import espeakng_loader

    library = Path(espeakng_loader.get_library_path()).read_bytes()
    if hasattr(os, "memfd_create"):  # nothing on the disk, gone with the process however it ends
        memory = os.memfd_create("espeak-ng")
        with open(memory, "wb", closefd=False) as file:
            file.write(library)
        return f"/proc/self/fd/{memory}"
    copy = tempfile.NamedTemporaryFile(prefix="espeak-ng-", delete=False)
    atexit.register(Path(copy.name).unlink, missing_ok=True)
    with copy:
        copy.write(library)
    return copy.name


def _load(seed: int) -> ctypes.CDLL:
    """espeak as it is right after the process has started."""
    global _library
    import espeakng_loader

    path, data = _own_copy(), espeakng_loader.get_data_path()
    _library = library = ctypes.CDLL(path)
    library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    library.espeak_SetVoiceByName.argtypes = [ctypes.c_char_p]
    library.espeak_SetParameter.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.POINTER(ctypes.c_uint),
        ctypes.c_void_p,
    ]
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _DONT_EXIT | _PHONEME_EVENTS)
    if rate != NATIVE_RATE:
        raise SaladError(f"espeak-ng does not start with the data in {data} (it answers {rate}): reinstall it")
    library.espeak_SetSynthCallback(_collect)
    library.espeak_ng_SetRandSeed(seed & 0x7FFFFFFF)
    return library


@cache
def variants() -> tuple[str, ...]:
    """What may follow the `+` of a voice: f1 … f5, m1 … m8 and espeak's named variants."""
    import espeakng_loader

    return tuple(sorted(path.name for path in Path(espeakng_loader.get_data_path(), "voices", "!v").iterdir()))


def _no_voice(name: str) -> SaladError:
    return SaladError(
        f'espeak has no voice "{name}"; try en-us, gmw/en, en-gb-x-rp or en-gb-scotland, with +f1 … +f5 or +m1 … +m8'
    )


@cache
def voice_names() -> frozenset[str]:
    """What may stand before the `+`: the languages, files and identifiers of espeak's voices, in lower case."""
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path(), "lang")
    names = set()
    for path in folder.rglob("*"):
        if path.is_file():
            names |= {path.name.lower(), path.relative_to(folder).as_posix().lower()}
            names |= {line.split()[1].lower() for line in path.read_text().splitlines() if line.startswith("language ")}
    return frozenset(names)


@cache
def parse_voice(voice: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """ "en-us+f2@rate=170,pitch=60" -> ("en-us+f2", ((1, 170), (3, 60))). Raises SaladError on an unknown name,
    variant or parameter (espeak itself would take another voice, or ignore them)."""
    name, _, settings = voice.partition("@")
    base, plus, variant = name.partition("+")
    if base.lower() not in voice_names():
        raise _no_voice(base)
    if plus and variant not in variants():
        raise SaladError(f'voice "{voice}": espeak has no variant "{variant}"; it has {", ".join(variants())}')
    parameters = []
    for setting in filter(None, settings.split(",")):
        key, _, value = setting.partition("=")
        if key not in PARAMETERS:
            raise SaladError(f'voice "{voice}": no parameter "{key}"; there are {", ".join(PARAMETERS)}')
        number, low, high = PARAMETERS[key]
        if not re.fullmatch(r"\d+", value) or not low <= int(value) <= high:
            raise SaladError(f'voice "{voice}": {key} must be a whole number from {low} to {high}, not "{value}"')
        parameters.append((number, int(value)))
    return name, tuple(parameters)


class Espeak:
    """The embedded TTS. A voice is an espeak voice with an optional variant and parameters:
    "en-us", "en-us+f2", "gmw/en", "en-gb-x-rp", "en-us+m3@rate=170,pitch=60,range=40,gap=2" (rate in words a
    minute, gap between words in 10 ms). Output is mono float32 at 16 kHz.

    A `Word` is a run of characters without whitespace: only there are espeak's events to be trusted ("42" and
    "isn't" give odd extra ones). What espeak speaks as one unit ("of the", "in the") stays one word whose
    characters run from the first to the last; signs without a sound of their own belong to the word before."""

    name = "espeak"
    voices = (
        "en-us",
        "en-us+f2",
        "en-us+m3",
        "en-us+f4",
        "en-us+m7",
        "gmw/en",
        "gmw/en+f3",
        "en-gb-x-rp",
        "en-gb-x-rp+f1",
        "en-gb-scotland",
    )

    def speak(self, spoken: str, voice: str = "en-us", seed: int = 0) -> Utterance:
        """`seed` only seeds espeak's own noise (breathy variants). Raises SaladError for a voice or parameter
        that espeak does not have; text without any sound gives no samples and the flag `empty`."""
        import soxr

        name, parameters = parse_voice(voice)
        text = _CONTROL.sub(" ", spoken)
        data = text.encode("utf-8", "replace")
        with _lock:
            _sound.clear()
            _events.clear()
            library = _load(seed)
            try:
                if library.espeak_SetVoiceByName(name.encode()) != 0:
                    raise _no_voice(name)
                for number, value in parameters:
                    library.espeak_SetParameter(number, value, 0)
                with interrupts.held():
                    failed = library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8 | _KEEP_FINAL_PAUSE, None, None)
                if failed:
                    raise SaladError(f"espeak fails (code {failed}) on the text {spoken[:60]!r}")
            finally:
                library.espeak_Terminate()
                _unload()
            sound = np.frombuffer(b"".join(_sound), np.int16).astype(np.float32) / 32768
            events = list(_events)
        total_s = len(sound) / NATIVE_RATE
        phones = _phones([e for e in events if e[0] == _PHONEME], total_s)
        words = _words(spoken, [e for e in events if e[0] == _WORD], phones, total_s)
        if not words or not len(sound):
            return Utterance(np.zeros(0, np.float32), SAMPLE_RATE, [], ["empty"], [])
        samples = np.clip(soxr.resample(sound, NATIVE_RATE, SAMPLE_RATE), -1, 1)
        return Utterance(samples, SAMPLE_RATE, words, [], phones)


@lru_cache(50_000)
def ipa(text: str, voice: str = "en-us") -> str:
    """What `text` sounds like in a voice's language, in the International Phonetic Alphabet with stress marks, words apart
    by blanks ("ðə kˈæt"). espeak may say several words as one. Raises SaladError for a voice that espeak does not have."""
    name, _ = parse_voice(voice)
    with _lock:
        library = _load(0)
        try:
            if library.espeak_SetVoiceByName(name.encode()) != 0:
                raise _no_voice(name)
            library.espeak_TextToPhonemes.restype = ctypes.c_char_p
            library.espeak_TextToPhonemes.argtypes = [ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int]
            rest, pieces = ctypes.c_char_p(_CONTROL.sub(" ", text).encode("utf-8", "replace")), []
            while rest:
                pieces.append((library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA) or b"").decode("utf-8", "replace"))
        finally:
            library.espeak_Terminate()
            _unload()
    return " ".join(re.sub(r"\([a-z-]+\)", "", " ".join(pieces)).split())  # (en): a switch to another language


def _phones(events, total_s: float) -> list[TimedPhone]:
    starts = [sample / NATIVE_RATE for _, _, sample, _ in events] + [total_s]
    return [
        TimedPhone(symbol.lstrip("',%=") or symbol, starts[i], max(starts[i], starts[i + 1]))
        for i, (_, _, _, symbol) in enumerate(events)
        if starts[i + 1] > starts[i]
    ]


def _words(text: str, events, phones: list[TimedPhone], total_s: float) -> list[Word]:
    """One word per run of non-whitespace that has an event; runs without one join the word before."""
    spans = runs(text)
    ends = [end for _, end in spans]
    starts: dict[int, float] = {}  # run -> start of its sound
    exact: set[int] = set()
    last = -1
    for _, character, sample, _ in events:
        run = bisect_left(ends, character + 1)
        if run >= len(spans) or run < last:
            continue
        first, last_of_run = spans[run]
        begin = next((at for at in range(first, last_of_run) if re.match(r"\w", text[at])), last_of_run)
        at_start = character <= begin
        # an event inside a run (odd ones of digits) counts only until the one at the run's start has come
        if run not in starts or (at_start and run not in exact):
            starts[run] = sample / NATIVE_RATE
        if at_start:
            exact.add(run)
        last = run
    order = sorted(starts)
    timed = {}
    for run, following in zip(order, [*order, None][1:], strict=True):
        start, limit = starts[run], total_s if following is None else starts[following]
        sounding = [p.end_s for p in phones if start <= p.start_s < limit and not p.symbol.startswith("_")]
        timed[run] = (start, min(limit, sounding[-1]) if sounding else limit)
    return words_of(text, timed)
