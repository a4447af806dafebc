"""Lines of text files that people bring: lists, documents, transcripts. `rows` reads JSON lines.

A line ends with a line feed and nothing else: U+2028, U+0085 and the like stand within texts. A byte order mark tells the
encoding, UTF-8 is read without one, and what is neither is refused by name. One bad line is one `fault`.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from .errors import StoreError

_MARKS = [(codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")]  # fmt: skip
_SURROGATE = re.compile("[\ud800-\udfff]")
_ACCENT = re.compile(rb"(?<=[A-Za-z])[\xc0-\xff]|[\xc0-\xff](?=[A-Za-z])|[\x91-\x94\xa0-\xbf]")
_WIDE = re.compile(rb"[\xc2-\xf4][\x80-\xbf]+")
BLOCK = 1 << 20


class TextLine(NamedTuple):
    """A line by its number, from 1, without its end; `text` is None where it cannot be read, and `fault` says why."""

    number: int
    text: str | None
    fault: str | None = None


class Row(NamedTuple):
    """A JSON object by the number of its line, or, with `value` None, why that line is none."""

    number: int
    value: dict[str, Any] | None
    fault: str | None = None


def has_surrogate(value: Any) -> bool:
    """Whether a text, or any text within lists and objects, holds half of a pair of surrogates: no file can hold that."""
    if isinstance(value, str):
        return _SURROGATE.search(value) is not None
    if isinstance(value, dict):
        return any(has_surrogate(key) or has_surrogate(item) for key, item in value.items())
    return isinstance(value, list) and any(map(has_surrogate, value))


def opened(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else open(path, "rb")


def encoding_of(path: Path, whole: bool = True) -> str:
    """utf-8, utf-8-sig, utf-16 or utf-32. StoreError, naming what it looks like, for a file in another encoding: one
    without any valid UTF-8 beyond ASCII, of which half of the lines are not UTF-8 or all such bytes look like accents.
    `whole` False looks at its first megabyte alone."""
    try:
        with opened(path) as file:
            head = file.read(BLOCK)
            for mark, name in _MARKS:
                if head.startswith(mark):
                    return name
            if head.count(0) > len(head) // 4:
                wide = "UTF-32" if head.count(0) > len(head) // 2 else "UTF-16"
                raise StoreError(f"{path} looks like {wide} without a byte order mark: convert it to UTF-8 (iconv -f {wide})")
            lines, n_invalid, accents = 0, 0, True
            first: tuple[int, int] | None = None
            block, rest = head, b""
            while block:
                pieces = (rest + block).split(b"\n")
                block = file.read(BLOCK) if whole else b""
                rest = pieces.pop() if block else b""
                for line in pieces:
                    lines += bool(line.strip())
                    if line.isascii():
                        continue
                    try:
                        line.decode("utf-8")
                        return "utf-8"  # letters that only UTF-8 writes so: bad lines are bad lines
                    except UnicodeDecodeError as error:
                        if _WIDE.search(line):  # some of it may be UTF-8
                            accents = False
                        n_invalid += 1
                        first = first or (lines, line[error.start])
                        accents = accents and len(_ACCENT.findall(line)) == sum(byte > 127 for byte in line)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise StoreError(f"{path} does not exist") from None
        return "utf-8"  # reading it line by line tells what is wrong, and reads what stands before
    if first is not None and (accents or 2 * n_invalid >= lines):
        like = "Latin-1 or Windows-1252" if accents else "another encoding (Shift JIS, GB 18030, KOI8-R …)"
        raise StoreError(
            f"{path} is not UTF-8 (line {first[0]} has the byte 0x{first[1]:02x}); it looks like {like}. "
            f"Convert it: iconv -f {'WINDOWS-1252' if accents else 'ENCODING'} -t UTF-8"
        )
    return "utf-8"


def lines(path: Path, encoding: str = "utf-8") -> Iterator[TextLine]:
    """The lines of a text file (.gz too). `encoding`: of `encoding_of`. StoreError where it cannot be opened."""
    number = 0
    try:
        with opened(path) as file:
            pieces: Iterable[str | bytes] = _wide_lines(file, encoding) if encoding in ("utf-16", "utf-32") else file
            for number, line in enumerate(pieces, 1):
                if isinstance(line, str):
                    yield TextLine(number, line)
                    continue
                line = line.removesuffix(b"\n").removesuffix(b"\r").removeprefix(codecs.BOM_UTF8)  # of joined files, too
                try:
                    yield TextLine(number, line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    yield TextLine(number, None, f"it is not UTF-8 (byte 0x{line[error.start]:02x})")
    except FileNotFoundError:
        raise StoreError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        if number == 0 and not isinstance(error, UnicodeDecodeError):
            raise StoreError(f"{path} cannot be read: {error}") from None
        yield TextLine(number + 1, None, f"the file cannot be read from here on ({error})")


def _wide_lines(file: BinaryIO, encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")
    rest = ""
    while block := file.read(BLOCK):
        *whole, rest = (rest + decoder.decode(block)).split("\n")
        yield from (line.removesuffix("\r") for line in whole)
    rest += decoder.decode(b"", True)
    if rest:
        yield rest.removesuffix("\r")


def rows(path: Path, encoding: str = "utf-8") -> Iterator[Row]:
    """The objects of JSON lines; empty lines are passed over."""
    for line in lines(path, encoding):
        if line.text is None:
            yield Row(line.number, None, line.fault)
        elif line.text.strip():
            yield Row(line.number, *parsed(line.text))


def parsed(text: str) -> tuple[dict[str, Any] | None, str | None]:
    """(object, None) of a line of JSON, or (None, why it is none)."""
    try:
        value = json.loads(text)
    except RecursionError:
        return None, "it is not JSON (nested too deep)"
    except ValueError as error:
        return None, f"it is not JSON ({error})"
    if not isinstance(value, dict):
        return None, f"it is not a JSON object but {'null' if value is None else 'a ' + type(value).__name__}"
    if "\\ud" in text.lower() and has_surrogate(value) or _SURROGATE.search(text):
        return None, "it holds half of a surrogate pair, which is not a character"
    return value, None
