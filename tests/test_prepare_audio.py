"""Audio files of every format: decoded at their real length, whatever the header tells, and what is cut short is noticed."""

import io
import os
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from salad import SaladError
from salad.speech.audio import Unusable, decode
from tests.tools import refuse
from workbench.arena.questions import read_audio

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases"
N, RATE = 32_000, 16_000
SOUND = (0.3 * np.sin(np.arange(N) * 0.05)).astype(np.float32)
UNTOLD = {"IRCAM", "PAF", "PVF", "XI"}  # headers that tell no length: nobody can see that such a file is cut short
ODD = {"RAW", "SD2", "HTK", "SDS"}  # headerless; or refused where they are cut


def written(form: str, subtype: str | None = None, samples=SOUND) -> bytes:
    file = io.BytesIO()
    rate = 8_000 if form == "WVE" else RATE
    soundfile.write(file, samples, rate, format=form, subtype=subtype)
    return file.getvalue()


def outcome(data: bytes, *asked):
    """Frames, or the reason that the file is set aside."""
    try:
        return len(decode(bytes(data), *asked)[0])
    except Unusable as error:
        return error.args[0]


def kinds() -> list[tuple[str, str]]:
    results = []
    for form in sorted(set(soundfile.available_formats()) - ODD):
        for subtype in soundfile.available_subtypes(form):
            try:
                written(form, subtype)
            except (soundfile.LibsndfileError, ValueError):
                continue
            results.append((form, subtype))
    return results


@pytest.mark.parametrize(("form", "subtype"), kinds())
def test_every_format_is_read_whole_and_noticed_where_it_is_cut_short(form, subtype):
    data = written(form, subtype)
    if subtype.startswith("DWVW"):  # libsndfile writes it, and cannot seek in it
        assert outcome(data) == "unreadable"
        return
    whole = outcome(data)
    assert N <= whole <= N + 600  # some codings fill up their last block, and do not tell
    cut = outcome(data[: len(data) * 6 // 10])
    assert cut in ("truncated", "unreadable") if form not in UNTOLD else cut < whole
    if form != "XI":  # an instrument's format, which libsndfile reads in one piece alone
        assert outcome(data, 0.25, 0.5) == pytest.approx(4_000 if form == "WVE" else RATE // 2, abs=70)  # VOC's odd rates
        samples, rate = decode(data)
        assert rate in (RATE, 16_129, 8_000)
        assert np.corrcoef(samples[:8_000], SOUND[:8_000])[0, 1] > 0.98


def patched(data: bytes, *changes: tuple[int, bytes]) -> bytes:
    made = bytearray(data)
    for at, new in changes:
        made[at : at + len(new)] = new
    return bytes(made)


SIZES_32 = (0, 0x7F000000, 0x7FFFF000, 0x7FFFFF00, 0x7FFFFFFF, 0x80000000, 0xFFFFFFDB, 0xFFFFFFFF)
SIZES_64 = (0, -1, 2**62, 2**63 - 1)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ALAW", "ULAW", "GSM610", "MS_ADPCM", "NMS_ADPCM_32"])
def test_a_wav_from_a_pipe_is_read_to_its_end(subtype):
    data = written("WAV", subtype)
    at = data.find(b"data") + 4
    for size in SIZES_32:
        for riff in (0, 0xFFFFFFFF, (size + at) & 0xFFFFFFFF):
            assert outcome(patched(data, (4, struct.pack("<I", riff)), (at, struct.pack("<I", size)))) == N, hex(size)
    big = b"RIFX" + struct.pack(">I", 36 + 64) + b"WAVEfmt " + struct.pack(">IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    assert outcome(big + b"data" + struct.pack(">I", 0xFFFFFFFF) + bytes(2 * N)) == N


def test_rf64_w64_aiff_caf_au_and_nist_of_unknown_length_are_read_to_their_end():
    data = written("RF64", "PCM_16")
    at = data.find(b"ds64")
    assert outcome(b"BW64" + data[4:]) == N and outcome(b"BW64" + data[4:40_000]) == "truncated"
    for size in SIZES_64:
        result = struct.pack("<q", size)
        assert outcome(patched(data, (at + 16, result))) == N == outcome(patched(data, (at + 8, 3 * result)))
    data = written("W64", "PCM_16")
    at = data.find(b"data") + 16
    for size in (*SIZES_64, 24):
        assert outcome(patched(data, (16, struct.pack("<q", size)), (at, struct.pack("<q", size)))) == N
    data = written("AIFF", "PCM_16")
    at, comm = data.find(b"SSND") + 4, data.find(b"COMM") + 10
    for size in (*SIZES_32, 8):
        for frames in (0, N, 0x3F800000, 0xFFFFFFFF):
            assert outcome(patched(data, (at, struct.pack(">I", size)), (comm, struct.pack(">I", frames)))) == N
    data = written("CAF", "PCM_16")
    for size in (*SIZES_64, 4):
        assert outcome(patched(data, (data.find(b"data") + 4, struct.pack(">q", size)))) == N
    for size in SIZES_32:
        assert outcome(patched(written("AU", "PCM_16"), (8, struct.pack(">I", size)))) == N
    nist = written("NIST", "PCM_16")
    assert outcome(nist.replace(b"sample_count -i 32000", b"sample_count -i 00000")) == N


def without_total(flac: bytes) -> bytes:
    return patched(flac, (21, bytes([flac[21] & 0xF0, 0, 0, 0, 0])))


@pytest.mark.parametrize("subtype", ["PCM_S8", "PCM_16", "PCM_24"])
def test_a_flac_that_does_not_tell_its_length_is_read_to_its_last_frame(subtype):
    rng = np.random.default_rng(0)
    for samples in (SOUND, rng.uniform(-0.5, 0.5, (N, 2)), rng.uniform(-0.5, 0.5, 100), np.zeros(20_000)):
        data = without_total(written("FLAC", subtype, samples))
        assert outcome(data) == len(samples) == outcome(data + b"TAG" + bytes(125))
        assert outcome(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + data) == len(samples)
        assert {outcome(data[: len(data) * n // 20]) for n in range(6, 20)} == {"truncated"}
    data = without_total(written("FLAC", subtype))
    assert decode(data, 0.5, 1.0)[0] == pytest.approx(decode(data)[0][8_000:24_000])
    assert outcome(data[: len(data) * 6 // 10], 0.1, 0.5) == 8_000  # what is asked for is there


def mp3_frames(data: bytes) -> bytes:
    """An MP3 without its first frame, in which encoders tell how many follow: as one that went through a pipe."""
    return data[data.index(data[:2], 1) :]


def test_an_mp3_is_as_long_as_its_frames_whatever_it_tells():
    data = written("MP3")
    bare = mp3_frames(data)
    assert outcome(data) == N and N <= outcome(bare) <= N + 2_000
    assert outcome(bare[: len(bare) // 2 - 7]) == "truncated" == outcome(data[: len(data) // 2])
    assert 2 * N <= outcome(data + data) <= 2 * N + 4_000  # two, one behind the other
    assert outcome(bare + b"TAG" + bytes(125)) == outcome(b"ID3\x04\0\0\0\0\0\x0a" + bytes(10) + bare) == outcome(bare)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_ends_with_its_last_page(subtype):
    data = written("OGG", subtype)
    assert outcome(data) == N
    assert {outcome(data[: len(data) - cut]) for cut in (1, 40, len(data) // 3, len(data) // 2)} == {"truncated"}


def test_odd_bytes_behind_the_sound_are_no_fault_and_an_empty_recording_is_empty():
    data = written("WAV", "PCM_16")
    for more in (b"LIST" + struct.pack("<I", 7) + b"INFOabc", bytes(13), b"junk", b"\0"):
        assert outcome(data + more) == N
    assert outcome(data[:40] + struct.pack("<I", 0) + b"LIST" + struct.pack("<I", 4) + b"INFO") == 0
    assert outcome(data[:44]) == outcome(data[:100]) == "truncated"
    assert outcome(data[:30]) == "unreadable" == outcome(b"") == outcome(b"nothing") == outcome(b"\xff\xfb" * 40)


def m4a(form: str = "ipod", codec: str = "aac", rate: int = RATE) -> bytes:
    av = pytest.importorskip("av", reason="PyAV (the extra `audio`) is not installed")
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray((SOUND * 32_767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("form", "codec", "rate"), [("ipod", "aac", RATE), ("mov", "pcm_s16le", RATE), ("ipod", "alac", RATE),
                                                     ("webm", "libopus", 48_000), ("adts", "aac", RATE)])  # fmt: skip
def test_m4a_webm_and_aac_are_read_by_pyav(form, codec, rate):
    data = m4a(form, codec, rate)
    result, hz = decode(data)
    assert hz == rate and N * rate // RATE <= len(result) <= N * rate // RATE + 2_000 * (form == "adts")
    if form != "adts":
        assert np.corrcoef(result[:: rate // RATE][:8_000], SOUND[:8_000])[0, 1] > 0.99
    assert outcome(data[: len(data) * 6 // 10]) == "truncated" and outcome(data, 0.5, 0.5) == rate // 2


def test_without_pyav_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    head = struct.pack(">I4s", 16, b"ftyp") + b"M4A \0\0\0\0" + struct.pack(">I4s", 8, b"moov")
    with pytest.raises(Unusable) as error:
        decode(head)
    assert error.value.args == ("unreadable", "MP4 is not libsndfile's: pip install 'salad-workbench[audio]' reads it")


def test_a_file_that_is_not_there_or_has_an_odd_name(tmp_path):
    for name in ("none.wav", "x" * 400 + ".wav", "a\0b.wav", "\ud83d.wav"):
        with pytest.raises(Unusable, match="missing"):
            decode(tmp_path / name)
    for name in ("a [b] *?.wav", "100 %d#1.wav", "new\nline.wav", "Grüße 文.wav", "named.raw"):
        (tmp_path / name).write_bytes(written("WAV", "PCM_16"))
        assert len(decode(tmp_path / name)[0]) == N
    (tmp_path / "bare.raw").write_bytes(bytes(100))
    with pytest.raises(Unusable, match="unreadable"):
        decode(tmp_path / "bare.raw")


def test_channels_and_the_part_that_is_asked_for():
    left, right = SOUND, np.full(N, 0.25, np.float32)
    data = written("WAV", "FLOAT", np.stack([left, right], 1))
    assert np.array_equal(decode(data, channels=[1])[0], right) and np.array_equal(decode(data, channels=[0])[0], left)
    assert decode(data)[0] == pytest.approx((left + right) / 2) and len(decode(data, 0.5, 0.25, [1])[0]) == RATE // 4
    for asked, reason in (((0, None, [2]), "unreadable"), ((0, None, [-1]), "unreadable"), ((9.0,), "truncated"),
                          ((1.0, 2.0), "truncated"), ((0, None, None, 1.0), "too long")):  # fmt: skip
        assert outcome(data, *asked) == reason


def test_the_a_b_app_reads_uploads_by_the_same_code(tmp_path):
    for name, data in (("piped.flac", without_total(written("FLAC"))),
                       ("piped.wav", patched(written("WAV"), (40, struct.pack("<I", 0x7FFFF000)))),
                       ("gsm.wav", written("WAV", "GSM610"))):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        assert len(read_audio(tmp_path / name)[0]) == N
    (tmp_path / "cut.wav").write_bytes(written("WAV")[:40_000])
    with pytest.raises(SaladError, match=r"cut short \(1.25 of 2.00 s\): record or upload it again"):
        read_audio(tmp_path / "cut.wav")


WHOLE = [written("WAV", "PCM_16"), written("WAV", "MS_ADPCM"), written("AIFF"), written("CAF"), written("AU"), written("W64"),
         written("RF64"), written("FLAC"), without_total(written("FLAC")), written("OGG", "VORBIS"), written("MP3"),
         written("NIST"), written("VOC"), written("SVX", "PCM_16")]  # fmt: skip


@settings(max_examples=int(os.environ.get("SALAD_FUZZ", "40")), deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6), st.floats(0, 1))
def test_whatever_a_header_says_there_are_samples_or_a_reason(data, changes, kept):
    made = bytearray(data)
    for at, byte in changes:
        made[at] = byte
    try:
        samples, rate = decode(bytes(made[: int(len(made) * (kept if kept < 0.7 else 1))]), longest_s=600)
    except Unusable as error:
        assert len(error.args) == 2 and error.args[0] in ("truncated", "unreadable", "too long")
    else:
        assert samples.dtype == np.float32 and samples.ndim == 1 and rate >= 1_000


@pytest.mark.data
@pytest.mark.parametrize(("case", "name", "seconds"), [
    ("flac-unknown-length", "good.flac", 6.3025), ("flac-unknown-length", "piped.flac", 6.0870625),
    ("wav-sox-pipe", "piped.wav", 6.3025), ("wav-gsm610", "a.wav", 6.3025), ("wav-pcm16-cut", "a.wav", None),
])  # fmt: skip
def test_the_shared_cases_are_read_at_their_real_length(case, name, seconds):
    if not CASES.is_dir():
        refuse(f"{CASES} is absent", "data")
    if seconds is None:
        with pytest.raises(Unusable, match="truncated"):
            decode(CASES / case / name)
    else:
        samples, rate = decode(CASES / case / name)
        assert len(samples) / rate == pytest.approx(seconds, abs=1 / rate)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "AIFF", "AU"])
@pytest.mark.parametrize("tag", [10, 11, 500])
def test_tags_before_the_sound_cost_no_samples(tmp_path, format, tag):
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000).astype(np.float32)
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format=format, subtype="PCM_16")
    data = b"ID3\x03\0\0\0\0" + bytes([tag >> 7, tag & 127]) + bytes(tag) + buffer.getvalue()
    (tmp_path / "a.bin").write_bytes(data)
    for source in (data, tmp_path / "a.bin"):
        found, rate = decode(source)
        assert (len(found), rate) == (16_000, 16_000) and np.abs(found - samples).max() < 1e-4


@pytest.mark.parametrize(
    "data, says",
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "git lfs pull"), (b"<!DOCTYPE html><html>", "web page"),
        (b"\n <html><body>404", "web page"), (b"\x1f\x8b\x08\0abc", "compressed"), (b"PK\x03\x04abc", "compressed"),
        (b"", "empty"), (b"hello" * 99, "not recognised"), (b"\0" * 999, "not recognised"),
    ],
)  # fmt: skip
def test_what_lies_in_the_place_of_sound_is_named(data, says):
    with pytest.raises(Unusable) as error:
        decode(data)
    assert error.value.args[0] == "unreadable" and says in error.value.args[1]


CHUNKS = {  # chunks of a RIFF before the sound, and the bytes behind it
    "a list first": ([b"LIST"], b""), "junk of an odd length": ([b"JUNK", b"fmt ", b"junk"], b""),
    "an odd byte": ([b"fmt "], b"\1"),
    "tags behind": ([b"fmt "], b"id3 \x03\0\0\0abc\0"), "garbage behind": ([b"fmt "], b"garbage" * 99),
}  # fmt: skip


@pytest.mark.parametrize("case", CHUNKS)
@pytest.mark.parametrize("kind", ["mp3 in .wav", "wav in .flac", "flac in .mp3", "wav in .raw", "wav without an ending"])
def test_a_file_is_read_by_what_it_holds_whatever_its_name_and_chunks(tmp_path, case, kind):
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 16_000).astype(np.float32)
    content, _, ending = kind.partition(" in ")
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, 16_000, format={"mp3": "MP3", "flac": "FLAC"}.get(content, "WAV"), subtype=None)
    data = buffer.getvalue()
    if content.startswith("wav"):
        before, behind = CHUNKS[case]
        if b"fmt " not in before:
            before = [*before, b"fmt "]
        form = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
        chunks = [(name, form if name == b"fmt " else b"1234567") for name in before]
        chunks.append((b"data", (samples * 32_767).astype("<i2").tobytes()))
        body = b"WAVE" + b"".join(name + struct.pack("<I", len(part)) + part + bytes(len(part) % 2) for name, part in chunks)
        data = b"RIFF" + struct.pack("<I", len(body)) + body + behind
    path = tmp_path / f"a{ending}"
    path.write_bytes(data)
    for source in (path, data):
        found, rate = decode(source)
        assert len(found) == 16_000 and rate == 16_000
