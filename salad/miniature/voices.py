"""espeak-ng voices of the miniature: many speakers for what stands for natural speech, one or two for synthesis."""

NATURAL_VOICES = tuple(
    f"{voice}@rate={rate},pitch={pitch}"
    for voice, rate, pitch in (
        ("en-us+m1", 150, 45), ("en-us+m2", 175, 40), ("en-us+m3", 165, 55), ("en-us+m4", 190, 35),
        ("en-us+m7", 160, 50), ("en-us+f1", 155, 55), ("en-us+f2", 180, 60), ("en-us+f3", 170, 50),
        ("en-us+f4", 160, 65), ("en-gb-x-rp", 165, 50), ("gmw/en", 175, 45), ("en-gb-x-rp+f3", 185, 55),
    )
)  # fmt: skip
VOICES = ("en-us@rate=195",)  # of the synthesiser: about 5 s a document
PROBE_VOICES = (*VOICES, "en-us+f3@rate=195")  # what is in the voice is not in the text
