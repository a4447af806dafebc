"""What the header of an audio file promises, and what the file holds: the part of reading that libsndfile leaves out.

libsndfile takes the length of a file that is cut short for the length of the recording, and refuses, or reads as empty,
several files of which the writer did not know the length (a pipe, a recorder that was killed). `inspect` compares both
and says which bytes of the header to read otherwise, so that all of what is there can be decoded.
"""

import io
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

UNKNOWN = 0x7EFF0000  # bytes: sox, ffmpeg, arecord and others write this much, or more, where they do not know the length
UNKNOWN_64 = 1 << 60  # the same where the field has 64 bits
TAIL = 1 << 17  # bytes at the end among which the last Ogg page is looked for


@dataclass
class Container:
    """`name`: of the format, "" for one that is not known here. `held`, `promised`: bytes of sound in the file, and
    according to its header (None: it does not tell). `patches`: offset -> bytes to read there instead of the file's;
    `instead`: what to read instead of the file's first `skip` bytes. `cut`: why the file is evidently cut short.
    `digest`: bits a sample and the MD5 of all samples, where nothing else tells whether they are all there."""

    name: str = ""
    held: int = 0
    promised: int | None = None
    patches: dict[int, bytes] = field(default_factory=dict)
    cut: str | None = None
    instead: bytes = b""
    skip: int = 0
    digest: tuple[int, bytes] | None = None

    @property
    def mended(self) -> bool:
        """Whether the file must be read otherwise than it stands."""
        return bool(self.patches or self.instead or self.skip)

    @property
    def missing(self) -> float:
        """The share of the promised sound that the file does not hold, 0 to 1."""
        return max(1 - self.held / self.promised, 0.0) if self.promised else 0.0


def inspect(file: BinaryIO, size: int, whole: bool = True) -> Container:
    """The container of an open file of `size` bytes; never raises for what is damaged, which decoding will tell.
    `whole`: all of it is wanted, so that an MP3's frames are counted even where it tells how many there are."""
    at = _behind_id3(file, size)
    head = _read(file, at, 64)
    try:
        for test, look in _KNOWN:
            if test(head):
                more = (whole,) if look is _mp3 else ()
                container = look(file, at, size, head, *more) or Container()
                if at and look is not _mp3 and not (container.instead or container.skip):
                    container.skip = at  # libsndfile loses as many bytes as the tags have at the end of some formats
                    container.patches = {offset - at: data for offset, data in container.patches.items()}
                return container
    except (struct.error, IndexError, ValueError, OverflowError, ZeroDivisionError):
        pass
    return Container()


class Patched(io.RawIOBase):
    """A seekable file that reads as `container` has mended it. No seek fails: libsndfile asks for absurd ones."""

    def __init__(self, file: BinaryIO, container: Container):
        self._file, self._container, self._at = file, container, 0
        self._shift = len(container.instead) - container.skip
        self._size = _size(file) + self._shift

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = min(max(start + offset, 0), 1 << 62)
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size:
            return 0
        before = self._container.instead[self._at :][: len(buffer)]
        place = max(self._at - self._shift, self._container.skip)
        data = bytearray(before + _read(self._file, place, len(buffer) - len(before)))
        for offset, new in self._container.patches.items():
            first, last = max(offset, self._at), min(offset + len(new), self._at + len(data))
            if first < last:
                data[first - self._at : last - self._at] = new[first - offset : last - offset]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _size(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _read(file: BinaryIO, at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _behind_id3(file: BinaryIO, size: int) -> int:
    """Where the sound begins behind ID3v2 tags."""
    at = 0
    while (head := _read(file, at, 10))[:3] == b"ID3" and len(head) == 10:
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        at += 10 + length + (10 if head[5] & 16 else 0)
        if at >= size:
            return 0
    return at


# ------------------------------------------------------------------------------------------ chunks of a known length


def _sound(name: str, file: BinaryIO, start: int, size: int, declared: int, wide: bool,
           mend: Callable[[int], dict[int, bytes]], follows: str | None = None) -> Container:  # fmt: skip
    """A chunk of sound that begins at `start` and of which the header tells `told` bytes. `mend(held)`: the patches
    that tell the truth. `follows`: struct format of a chunk's size, to tell an empty chunk from an unknown length."""
    rest = max(size - start, 0)
    nothing = declared <= 0 and rest > 0 and not (declared == 0 and follows and _chunks_to_the_end(file, start, size, follows))
    if nothing or (declared > rest and declared >= (UNKNOWN_64 if wide else UNKNOWN)):
        return Container(name, rest, None, mend(rest))
    if declared <= rest:
        return Container(name, declared, declared)
    return Container(name, rest, declared, mend(rest))


def _chunks_to_the_end(file: BinaryIO, at: int, size: int, follows: str) -> bool:
    """Whether chunks with names, and nothing else, stand from `at` to the file's end."""
    while at + 8 <= size:
        head = _read(file, at, 8)
        if not re.fullmatch(rb"[A-Za-z0-9 _(]{4}", head[:4]):
            return False
        length = struct.unpack(follows, head[4:])[0]
        at += 8 + length + length % 2
    return at in (size, size + 1)


def _riff(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    end = ">" if head[:4] == b"RIFX" else "<"
    magic, told_64, place = head[:4], None, at + 12
    while place + 8 <= size:
        name, length = struct.unpack(f"{end}4sI", _read(file, place, 8))
        if name == b"ds64" and length >= 24:
            told_64 = struct.unpack("<q", _read(file, place + 16, 8))[0]
            ds64 = place
        if name == b"data":
            break
        place += 8 + length + length % 2
    else:
        return None
    start = place + 8
    wide = told_64 is not None and length == 0xFFFFFFFF

    def mend(held: int) -> dict[int, bytes]:
        if wide and held >= 1 << 32:
            return {ds64 + 16: struct.pack("<q", held)}
        plain = {at: b"RIFX" if end == ">" else b"RIFF", at + 4: struct.pack(f"{end}I", min(size - at - 8, 0xFFFFFFFF)),
                 place + 4: struct.pack(f"{end}I", min(held, 0xFFFFFFFF))}  # fmt: skip
        return plain | ({ds64: b"JUNK"} if told_64 is not None else {})

    declared = length if told_64 is None or not wide else told_64
    container = _sound("WAV", file, start, size, declared, wide, mend, f"{end}I")
    if magic == b"BW64" and not container.patches:  # which libsndfile does not know by this name
        container.patches = mend(container.held) if container.held < 1 << 32 else {at: b"RF64"}
    return container


def _w64(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    place = at + 40
    while place + 24 <= size:
        name, length = struct.unpack("<16sq", _read(file, place, 24))
        if name[:4] == b"data":
            break
        if length < 24:
            return None
        place += length + -length % 8
    else:
        return None

    def mend(held: int) -> dict[int, bytes]:
        return {at + 16: struct.pack("<q", size - at), place + 16: struct.pack("<q", held + 24)}

    return _sound("W64", file, place + 24, size, length - 24, True, mend)


def _iff(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    """AIFF, AIFF-C, 8SVX, 16SV."""
    sound = b"SSND" if head[8:11] == b"AIF" else b"BODY"
    over = 8 if sound == b"SSND" else 0  # offset and block size stand in the chunk
    place = at + 12
    while place + 8 <= size:
        name, length = struct.unpack(">4sI", _read(file, place, 8))
        if name == sound:
            break
        place += 8 + length + length % 2
    else:
        return None

    def mend(held: int) -> dict[int, bytes]:
        return {at + 4: struct.pack(">I", min(size - at - 8, 0xFFFFFFFF)),
                place + 4: struct.pack(">I", min(held + over, 0xFFFFFFFF))}  # fmt: skip

    return _sound("AIFF" if over else "IFF", file, place + 8 + over, size, max(length - over, 0), False, mend, ">I")


def _caf(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    place = at + 8
    while place + 12 <= size:
        name, length = struct.unpack(">4sq", _read(file, place, 12))
        if name == b"data":
            break
        if length < 0:
            return None
        place += 12 + length
    else:
        return None

    def mend(held: int) -> dict[int, bytes]:
        return {place + 4: struct.pack(">q", held + 4)}

    return _sound("CAF", file, place + 16, size, length - 4, True, mend)


def _au(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    end = ">" if head[:4] == b".snd" else "<"
    start, declared = struct.unpack(f"{end}II", head[4:12])
    return _sound("AU", file, at + start, size, declared, False, lambda held: {at + 8: struct.pack(f"{end}I", held)})


def _nist(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    start = int(head[8:16])
    text = _read(file, at, min(start, 1 << 16))
    fields = dict(re.findall(rb"^(\w+) -i (-?\d+)", text, re.M))
    narrow = re.search(rb"^sample_coding -s\d+ (?:ulaw|alaw|mu-law)", text, re.M)
    frame = int(fields.get(b"channel_count", 1)) * int(fields.get(b"sample_n_bytes", 1 if narrow else 2))
    return _sound("NIST", file, at + start, size, int(fields.get(b"sample_count", 0)) * frame, False, lambda held: {})


def _voc(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    place = at + struct.unpack("<H", head[20:22])[0]
    while place + 4 <= size and (block := _read(file, place, 4))[0]:
        length = int.from_bytes(block[1:], "little")
        if block[0] in (1, 9):  # sound behind its own 2 or 12 bytes of header
            over = 2 if block[0] == 1 else 12
            return _sound("VOC", file, place + 4 + over, size, length - over, False, lambda held: {})
        place += 4 + length
    return None


def _boxes(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    """MP4, M4A, MOV: whether the boxes at the top are all there."""
    seen = set()
    while at + 8 <= size:
        length, name = struct.unpack(">I4s", _read(file, at, 8))
        seen.add(name)
        if length == 1:
            length = struct.unpack(">Q", _read(file, at + 8, 8))[0]
        if length == 0:  # to the end
            break
        if length < 8:
            return Container("MP4")
        if at + length > size:
            return Container("MP4", cut=f"{name.decode('latin-1')!r} ends {at + length - size:,} bytes behind the file's end")
        at += length
    return Container("MP4", cut=None if b"moov" in seen else "it has no 'moov', which is written last")


def _matroska(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    def number(place: int, mask: bool) -> tuple[int, int]:
        data = _read(file, place, 8)
        width = 9 - data[0].bit_length()
        value = int.from_bytes(data[:width], "big")
        return (value & (1 << 7 * width) - 1 if mask else value), width

    while at < size:
        name, wide = number(at, False)
        length, more = number(at + wide, True)
        at += wide + more
        if name == 0x18538067:  # Segment; all ones: a stream of unknown length
            unknown = length == (1 << 7 * more) - 1
            short = at + length - size
            return Container("Matroska", cut=f"it ends {short:,} bytes too early" if short > 0 and not unknown else None)
        at += length
    return Container("Matroska")


# -------------------------------------------------------------------------------------------------------- streams


def _ogg(file: BinaryIO, at: int, size: int, head: bytes) -> Container:
    """The last page of a whole stream says that it is the last."""
    tail = _read(file, max(size - TAIL, 0), TAIL)
    place = tail.rfind(b"OggS")
    while place >= 0 and (place + 27 > len(tail) or tail[place + 4] != 0):
        if place + 27 > len(tail):
            return Container("Ogg", cut="it ends within the header of a page")
        place = tail.rfind(b"OggS", 0, place)
    if place < 0:
        return Container("Ogg", cut="no page stands at its end")
    segments = tail[place + 26]
    end = place + 27 + segments + sum(tail[place + 27 : place + 27 + segments])
    if end > len(tail):
        return Container("Ogg", cut=f"its last page ends {end - len(tail):,} bytes behind the file's end")
    return Container("Ogg", cut=None if tail[place + 5] & 4 else "its last page does not say that it is the last")


_KBPS = {
    (1, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # (MPEG version, layer) -> kbit/s by index


def _mpeg_frame(head: bytes) -> int | None:
    """Bytes of the MPEG audio frame that begins so; None where none does, or its length is free."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer, index, rate = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer == 4 or index in (0, 15) or rate == 3:
        return None
    bits = 1_000 * _KBPS[1 if version == 3 else 2, layer][index]
    hertz = (44_100, 48_000, 32_000)[rate] >> {3: 0, 2: 1, 0: 2}[version]
    padding = head[2] >> 1 & 1
    if layer == 1:
        return (12 * bits // hertz + padding) * 4
    return (72 if layer == 3 and version != 3 else 144) * bits // hertz + padding


def _mp3(file: BinaryIO, at: int, size: int, head: bytes, whole: bool) -> Container | None:
    """Frames are counted: a header (Xing's or LAME's) may be missing, or tell of the first part alone."""
    first = _mpeg_frame(head)
    if first is None:
        return None
    data = _read(file, at, first)
    declared = None
    if (place := max(data.find(b"Xing"), data.find(b"Info"))) in range(4, 60):
        flags, frames = struct.unpack(">II", data[place + 4 : place + 12])
        declared = frames if flags & 1 else None
    if declared and not whole:
        return Container("MP3")
    end = size - 128 if size - at > 128 and _read(file, size - 128, 3) == b"TAG" else size
    count, now = 0, at
    while now < end:
        head = _read(file, now, 10)
        length = _mpeg_frame(head)
        if length is None and head[:3] == b"ID3" and len(head) == 10:
            now += 10 + (head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9])
            continue
        if length is None or now + length > end:  # cut, or something else: decoding will tell
            break
        count, now = count + 1, now + length
    sound = count - (declared is not None)
    if declared and sound < declared - 1:
        return Container("MP3", cut=f"{sound:,} of {declared:,} frames")
    if declared is None and 0 < end - now < 8_192 and length is not None:
        return Container("MP3", cut=f"its last frame ends {now + length - end:,} bytes behind the file's end")
    if declared and sound <= declared + 1 or not sound:
        return Container("MP3")
    xing = bytearray(first)
    xing[:4] = data[:4]
    xing[1] |= 1  # no checksum behind the header
    side = (17 if data[3] >> 6 == 3 else 32) if data[1] >> 3 & 3 == 3 else (9 if data[3] >> 6 == 3 else 17)
    skip = at + first if declared is not None else at
    xing[4 + side : 4 + side + 16] = b"Xing" + struct.pack(">III", 3, sound, first + size - skip)
    return Container("MP3", instead=bytes(xing), skip=skip)


# -------------------------------------------------------------------------------------------------------- FLAC


def _table(polynomial: int, bits: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << bits - 8
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> bits - 1 & 1 else 0)
        table.append(value & (1 << bits) - 1)
    return table


_CRC8, _CRC16 = _table(0x07, 8), _table(0x8005, 16)


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value


def _flac(file: BinaryIO, at: int, size: int, head: bytes) -> Container | None:
    """A FLAC that does not tell how long it is (it went through a pipe): its last frame tells it."""
    info = head[8:42]
    total = int.from_bytes(info[10:18], "big") & (1 << 36) - 1
    if total or head[4] & 0x7F:
        return Container("FLAC")
    block, channels = struct.unpack(">H", info[2:4])[0], (info[12] >> 1 & 7) + 1
    sample_bits = ((info[12] & 1) << 4 | info[13] >> 4) + 1
    most = block * channels * (sample_bits + 1) // 8 + 64  # of a frame that is not compressed
    end = size - 128 if _read(file, max(size - 128, 0), 3) == b"TAG" else size
    start = max(end - 2 * most, at + 42)
    tail = _read(file, start, end - start)
    place, last = len(tail), None
    while (place := tail.rfind(b"\xff", 0, place)) >= 0:
        frame = _frame(tail[place : place + 20], block)
        if frame is None:
            continue
        last = frame if last is None else last
        if _crc16(tail[place:-2]) == int.from_bytes(tail[-2:], "big"):
            digest = (sample_bits, info[18:34]) if any(info[18:34]) else None
            return Container("FLAC", patches=_of_total(info, at, sum(frame)), digest=digest)
        if len(tail) - place > most:
            break
    if last is None:
        return Container("FLAC", cut="no frame stands at its end")
    return Container("FLAC", patches=_of_total(info, at, last[0]), cut="it ends within a frame")


def _of_total(info: bytes, at: int, total: int) -> dict[int, bytes]:
    return {at + 8 + 13: bytes([info[13] & 0xF0 | total >> 32]) + struct.pack(">I", total & 0xFFFFFFFF)}


def _frame(head: bytes, block: int) -> tuple[int, int] | None:
    """(first sample, samples) of the FLAC frame that begins so, by its header's CRC-8; None where none does."""
    if len(head) < 6 or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    size_code, rate_code = head[2] >> 4, head[2] & 15
    if size_code == 0 or rate_code == 15 or head[3] >> 4 > 10:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()
    if ones == 1 or ones > 7:
        return None
    more = max(ones - 1, 0)
    number = head[4] & (0x7F >> ones if ones else 0x7F)
    for byte in head[5 : 5 + more]:
        number = number << 6 | byte & 0x3F
    place = 5 + more
    if size_code == 1:
        samples = 192
    else:
        samples = 576 << size_code - 2 if size_code < 6 else 256 << max(size_code - 8, 0)
    if size_code in (6, 7):
        width = size_code - 5
        samples = int.from_bytes(head[place : place + width], "big") + 1
        place += width
    place += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if place >= len(head) or _crc8(head[:place]) != head[place]:
        return None
    return (number if head[1] & 1 else number * block), samples


_KNOWN: list[tuple[Callable[[bytes], bool], Callable]] = [
    (lambda head: head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE", _riff),
    (lambda head: head[:4] == b"riff" and head[24:28] == b"wave", _w64),
    (lambda head: head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC", b"8SVX", b"16SV"), _iff),
    (lambda head: head[:4] == b"caff", _caf),
    (lambda head: head[:4] in (b".snd", b"dns."), _au),
    (lambda head: head[:7] == b"NIST_1A", _nist),
    (lambda head: head[:19] == b"Creative Voice File", _voc),
    (lambda head: head[:4] == b"fLaC", _flac),
    (lambda head: head[:4] == b"OggS", _ogg),
    (lambda head: head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide"), _boxes),
    (lambda head: head[:4] == b"\x1aE\xdf\xa3", _matroska),
    (lambda head: head[:1] == b"\xff", _mp3),
]  # fmt: skip
