"""How numbers, signs and abbreviations are read aloud in German: `RULES`, in order (see `salad.speech.english`)."""

import re

from salad.speech.reading import DIGITS, addresses, either, one_by_one, parted, roman, rule
from salad.speech.reading import cardinal as _cardinal
from salad.speech.reading import ordinal as _ordinal
from salad.speech.reading import year as _year

NUM = r"(?>(?:\d{1,3}(?:\.\d{3})+|\d{1,3}(?: \d{3})+(?= ?[€$%a-zA-Z])|\d+)(?!\d)(?:,\d+)?)"  # 1.000,5
FREE = r"(?<![\w.,])"
MONTHS = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()
_SHORT_MONTHS = {"Jan": "Januar", "Feb": "Februar", "Apr": "April", "Aug": "August", "Sept": "September", "Sep": "September",
                 "Okt": "Oktober", "Nov": "November", "Dez": "Dezember"}  # fmt: skip
_MONTH = rf"(?:{'|'.join(MONTHS)}|Jänner|(?:{'|'.join(_SHORT_MONTHS)})\b\.?)"
_DATIVE = re.compile(r"\b(?:am|dem|vom|zum|beim|im|bis|ab|seit|nach|vor|den|der|des|die|ersten|und) $|, $", re.I)


def cardinal(digits: str) -> str:
    """E.g. "21" → "einundzwanzig"; digit by digit where there are more than 15, or a leading zero."""
    return _cardinal(digits, "de")


def number(text: str) -> str:
    """E.g. "1.000,5" → "eintausend Komma fünf"."""
    whole, comma, decimals = text.replace(".", "").replace(" ", "").partition(",")
    return cardinal(whole) + (f" Komma {one_by_one(decimals, 'de')}" if comma else "")


def amount_of(text: str, noun: str) -> str:
    """A number before its noun: "1" → "ein Meter", "eine Minute"."""
    if text.replace(".", "") != "1":
        return number(text)
    return "eine" if noun in _FEMININE else "ein"


def ordinal(digits: str, match: re.Match) -> str:
    """E.g. "dritte", or "dritten" after a preposition or an article other than "der"."""
    reading = _ordinal(digits, "de")
    start = match.start("take") if "take" in match.re.groupindex else match.start()
    before = match.string[max(start - 24, 0) : start]
    before = _AND_BEFORE.sub("", before)  # "die 1. und 2. Runde": what stands before the first of them decides
    noun = re.match(r" ([A-ZÄÖÜ][a-zäöüß]+)", match.string[match.end() : match.end() + 24])
    if noun and noun[1] in _FEMININE_COUNTED:
        return reading + ("n" if re.search(r"\b(?:der|einer|dieser|jeder|zur|seiner|ihrer) $", before, re.I) else "")
    if noun and noun[1] in _NEUTER_COUNTED and (not before.strip() or before.rstrip()[-1:] in ".,;:!?(\"'"):
        return reading + "s"
    if re.search(r"\b(?:der|die|das) $", before, re.I):
        return reading
    return reading + ("n" if _DATIVE.search(before) else "r")


_AND_BEFORE = re.compile(r"(?:\d{1,2}\.|\ufffc+) (?:und|oder|bis|u\.|\ufffc+) $|\ufffc+$")
_FEMININE_COUNTED = frozenset("Bundesliga Liga Klasse Etage Runde Auflage Woche Staffel Ausgabe Stunde Minute Stufe Generation "
                              "Halbzeit Person Symphonie Sinfonie".split())  # fmt: skip
_NEUTER_COUNTED = frozenset("Jahrhundert Jh Mal Kapitel Jahr Quartal Halbjahr Semester Jahrtausend".split())


def years(digits: str) -> str:
    """A year: "1998" → "neunzehnhundertachtundneunzig"."""
    return _year(digits, "de")


ABBREVIATIONS = {
    "z. B.": "zum Beispiel", "z.B.": "zum Beispiel", "d. h.": "das heißt", "d.h.": "das heißt", "u. a.": "unter anderem",
    "u.a.": "unter anderem", "usw.": "und so weiter", "bzw.": "beziehungsweise", "etc.": "et cetera", "ca.": "circa",
    "vgl.": "vergleiche", "evtl.": "eventuell", "ggf.": "gegebenenfalls", "inkl.": "inklusive", "exkl.": "exklusive",
    "bspw.": "beispielsweise", "sog.": "sogenannte", "i. d. R.": "in der Regel", "i.d.R.": "in der Regel",
    "o. ä.": "oder ähnliches", "o.ä.": "oder ähnliches", "u. U.": "unter Umständen", "s. o.": "siehe oben",
    "s. u.": "siehe unten", "z. T.": "zum Teil", "z.T.": "zum Teil", "v. a.": "vor allem", "v.a.": "vor allem",
    "Dr.": "Doktor", "Prof.": "Professor", "Hr.": "Herr", "Fr.": "Frau", "Str.": "Straße", "Mio.": "Millionen",
    "Mrd.": "Milliarden", "Tsd.": "Tausend", "Nr.": "Nummer", "Abb.": "Abbildung", "Kap.": "Kapitel", "Bd.": "Band",
    "Art.": "Artikel", "Abs.": "Absatz", "Tel.": "Telefon", "Std.": "Stunden", "Min.": "Minuten", "Sek.": "Sekunden",
    "v. Chr.": "vor Christus", "n. Chr.": "nach Christus", "v.Chr.": "vor Christus", "n.Chr.": "nach Christus",
    "geb.": "geboren", "gest.": "gestorben", "Jh.": "Jahrhundert", "Jhd.": "Jahrhundert", "St.": "Sankt", "Hbf.": "Hauptbahnhof",
    "e.V.": "eingetragener Verein", "e. V.": "eingetragener Verein", "i.A.": "im Auftrag", "i. A.": "im Auftrag",
    "i.V.": "in Vertretung", "i. V.": "in Vertretung", "u.v.m.": "und vieles mehr", "u. v. m.": "und vieles mehr",
    "o.g.": "oben genannte", "o. g.": "oben genannte", "lt.": "laut", "bzgl.": "bezüglich", "ggü.": "gegenüber",
    "z.Zt.": "zurzeit", "z. Zt.": "zurzeit", "zzt.": "zurzeit", "a.D.": "außer Dienst", "a. D.": "außer Dienst",
    "d.J.": "dieses Jahres", "d. J.": "dieses Jahres", "u.ä.": "und ähnliches", "u. ä.": "und ähnliches",
    "m.E.": "meines Erachtens", "m. E.": "meines Erachtens", "h.c.": "honoris causa", "h. c.": "honoris causa",
    "s.o.": "siehe oben", "s.u.": "siehe unten", "u.U.": "unter Umständen", "usf.": "und so fort", "allg.": "allgemein",
    "bes.": "besonders", "ehem.": "ehemalig", "Aufl.": "Auflage", "Hausnr.": "Hausnummer", "einschl.": "einschließlich",
    "max.": "maximal", "min.": "mindestens", "mind.": "mindestens", "zzgl.": "zuzüglich", "Hrsg.": "Herausgeber",
}  # fmt: skip
UNITS = {
    "km/h": "Kilometer pro Stunde", "m/s": "Meter pro Sekunde", "km²": "Quadratkilometer", "m²": "Quadratmeter",
    "m³": "Kubikmeter",
    "cm²": "Quadratzentimeter", "cm³": "Kubikzentimeter", "km": "Kilometer", "m": "Meter", "cm": "Zentimeter", "mm": "Millimeter",
    "kg": "Kilogramm", "g": "Gramm", "mg": "Milligramm", "t": "Tonnen", "l": "Liter", "L": "Liter", "ml": "Milliliter",
    "h": "Stunden", "Std": "Stunden", "min": "Minuten", "Min": "Minuten", "s": "Sekunden", "Sek": "Sekunden",
    "ms": "Millisekunden",
    "°C": "Grad Celsius", "° C": "Grad Celsius", "°F": "Grad Fahrenheit", "°": "Grad", "%": "Prozent", "‰": "Promille",
    "W": "Watt", "kW": "Kilowatt", "MW": "Megawatt", "kWh": "Kilowattstunden", "V": "Volt", "Hz": "Hertz", "kHz": "Kilohertz",
    "MHz": "Megahertz", "GHz": "Gigahertz", "KB": "Kilobyte", "MB": "Megabyte", "GB": "Gigabyte", "TB": "Terabyte",
    "PS": "PS", "ct": "Cent", "ha": "Hektar", "dB": "Dezibel", "hPa": "Hektopascal", "kcal": "Kilokalorien",
}  # fmt: skip
_SINGULAR = {"Stunden": "Stunde", "Minuten": "Minute", "Sekunden": "Sekunde", "Millisekunden": "Millisekunde", "Tonnen": "Tonne",
             "Kilowattstunden": "Kilowattstunde", "Kilokalorien": "Kilokalorie", "Millionen": "Million",
             "Milliarden": "Milliarde"}  # fmt: skip
_FEMININE = frozenset(_SINGULAR.values()) | {"Mark", "Krone"}
MONEY = {"€": ("Euro", "Cent"), "EUR": ("Euro", "Cent"), "$": ("Dollar", "Cent"), "USD": ("US-Dollar", "Cent"),
         "US$": ("US-Dollar", "Cent"), "£": ("Pfund", "Pence"), "CHF": ("Franken", "Rappen"), "¥": ("Yen", "Sen"),
         "DM": ("Mark", "Pfennig")}  # fmt: skip
_SCALES = {"Mio.": "Millionen", "Mrd.": "Milliarden", "Mio": "Millionen", "Mrd": "Milliarden", "Millionen": "Millionen",
           "Milliarden": "Milliarden", "Million": "Million", "Milliarde": "Milliarde", "Tsd.": "tausend",
           "k": "tausend"}  # fmt: skip
SYMBOLS = {"&": "und", "=": "gleich", "+": "plus", "×": "mal", "÷": "geteilt durch", "≈": "ungefähr", "<": "kleiner als",
           ">": "größer als", "≤": "höchstens", "≥": "mindestens", "@": "at", "→": "nach", "±": "plus minus", "−": "minus",
           "§": "Paragraf", "%": "Prozent", "°": "Grad", "€": "Euro", "$": "Dollar", "½": "ein halb", "¼": "ein Viertel",
           "¾": "drei Viertel", "©": "Copyright"}  # fmt: skip


def _scaled(scale: str, text: str) -> str:
    word = _SCALES[scale]
    return _SINGULAR.get(word, word) if text == "1" else word


def _money(match: re.Match) -> str:
    unit, small = MONEY[match["sign"]]
    text, scale = match["amount"], match["scale"]
    if scale:
        word = _scaled(scale, text)
        return f"{amount_of(text, word)} {word} {unit}"
    if re.fullmatch(r"\d+\.\d\d", text):
        text = text.replace(".", ",")
    whole, _, cents = text.partition(",")
    if len(cents) == 2 and int(cents):
        rest = f"{amount_of(str(int(cents)), small)} {small}" if whole == "0" else cardinal(str(int(cents)))
        return rest if whole == "0" else f"{amount_of(whole, unit)} {unit} {rest}"
    return f"{amount_of(whole if len(cents) == 2 else text, unit)} {unit}"


def _unit(match: re.Match) -> str:
    name, text = UNITS[match["unit"]], match["amount"]
    name = _SINGULAR.get(name, name) if text == "1" else name
    return f"{amount_of(text, name)} {name}"


def _magnitude(match: re.Match) -> str:
    word = _scaled(match["scale"], match["amount"])
    return f"{amount_of(match['amount'], word)} {word}"


def _day(match: re.Match) -> str | None:
    groups = match.groupdict()
    day, month = int(groups["d"]), groups["m"]
    if month.isdigit():
        if not 1 <= int(month) <= 12:
            return None
        month = MONTHS[int(month) - 1]
    if not 1 <= day <= 31:
        return None
    month = _SHORT_MONTHS.get(month.rstrip("."), month)
    year = groups.get("y")
    return f"{ordinal(str(day), match)} {month}" + (f" {years(year) if len(year) == 4 else cardinal(year)}" if year else "")


def _clock(match: re.Match) -> str | None:
    hour, minute = int(match["h"]), match["min"]
    if hour > 24:
        return None
    reading = "ein" if hour == 1 else cardinal(str(hour))
    return f"{reading} Uhr" + (f" {cardinal(str(int(minute)))}" if minute and int(minute) else "")


def _decade(match: re.Match) -> str:
    return (years(match["n"]) if len(match["n"]) == 4 else cardinal(match["n"])) + "er" + (match["n2"] or "")


def _ruler(match: re.Match) -> str | None:
    value = roman(match["take"].rstrip("."))
    if match["name"] in _QUEENS:
        return f"die {_ordinal(str(value), 'de').capitalize()}" if value else None
    genitive = bool(re.search(r"s$", match["name"])) and match["name"] not in ("Louis", "Nikolaus", "Pius", "Klemens", "Johannes")
    return f"{'des' if genitive else 'der'} {_ordinal(str(value), 'de').capitalize()}{'n' if genitive else ''}" if value else None


_QUEENS = frozenset("Elisabeth Elizabeth Maria Katharina Viktoria Victoria Margarethe Margrethe Anna Beatrix Christina Isabella "
                    "Johanna Luise Wilhelmina Mathilde Kleopatra".split())  # fmt: skip
_WEEKDAYS = {"Mo": "Montag", "Di": "Dienstag", "Mi": "Mittwoch", "Do": "Donnerstag", "Fr": "Freitag", "Sa": "Samstag",
             "So": "Sonntag"}  # fmt: skip


def _ordinal_numeral(match: re.Match) -> str | None:
    """E.g. "II. Weltkrieg" → "zweiter Weltkrieg"."""
    value = roman(match["take"].rstrip("."))
    return ordinal(str(value), match) if value else None


def _mixed(match: re.Match) -> str:
    whole, over, under = match["whole"], int(match["over"]), int(match["under"])
    if (over, under) == (1, 2):
        return _mixed_vulgar(whole, "½")
    return f"{cardinal(whole)} {_share(over, under)}"


def _numeral(match: re.Match) -> str | None:
    value = roman(match["take"])
    return cardinal(str(value)) if value else None


def _share(over: int, under: int) -> str:
    """E.g. 3, 4 → "drei Viertel"."""
    if (over, under) == (1, 2):
        return "ein halb"
    name = {3: "Drittel", 7: "Siebtel", 8: "Achtel", 20: "Zwanzigstel"}.get(under)
    name = name or (_ordinal(str(under), "de")[:-2] + ("tel" if under < 20 else "stel")).capitalize()
    return f"{'ein' if over == 1 else cardinal(str(over))} {name}"


_QUOTIENTS = {"24/7": "vierundzwanzig sieben", "9/11": "nine eleven", "50/50": "fünfzig fünfzig"}


def _quotient(match: re.Match) -> str:
    over, under = int(match[1][:9]), int(match[2][:9])
    if match[0] in _QUOTIENTS:
        return _QUOTIENTS[match[0]]
    if "0" in (match[1][0], match[2][0]):
        return f"{one_by_one(match[1], 'de')} Strich {one_by_one(match[2], 'de')}"
    return _share(over, under) if 0 < over < under <= 20 else f"{cardinal(match[1])} durch {cardinal(match[2])}"


def _season(match: re.Match) -> str | None:
    """E.g. "2019/20": two years that follow each other, "1914/18" that do not."""
    first, second = match["a"], match["b"]
    if len(second) == 2 and int(second) <= int(first[2:]):
        return None
    return f"{years(first)} {years(second) if len(second) == 4 else cardinal(str(int(second)))}"


def _mixed_vulgar(whole: str, sign: str) -> str:
    if sign == "½":
        return "eineinhalb" if whole == "1" else f"{cardinal(whole)}einhalb"
    return f"{cardinal(whole)} {'ein' if sign == '¼' else 'drei'} Viertel"


def _spelled(word: str) -> str:
    return re.sub(r"\d+", lambda m: cardinal(m[0]) if len(m[0]) <= 2 else one_by_one(m[0], "de"), parted(word))


def _site(address: str) -> str:
    names = {"@": "at", ".": "Punkt", "-": "Minus", "_": "Unterstrich", "+": "plus"}
    return " ".join(names.get(piece) or _spelled(piece) for piece in re.split(r"([@.\-_+])", address) if piece.strip())


def _phone(text: str) -> str:
    reading = ", ".join(one_by_one(group, "de") for group in re.findall(r"\d+", text))
    return f"plus {reading}" if text[0] == "+" else reading


def _alone(match: re.Match) -> str:
    return years(match[0]) if re.fullmatch(r"1[1-9]\d\d", match[0]) else number(match[0])


_FEMININE_NOUN = re.compile(
    r" (?:\w+(?:e|ung|heit|keit|schaft|ion|tät|ik|ei)|Frau|Mark|Stadt|Nacht|Hand|Uhr|Tür|Wand|Person)(?!\w)"
)


def _one(match: re.Match) -> str | None:
    """1 before a noun that it counts: "ein Jahr", "eine Stunde"; not after a noun ("Platz 1")."""
    if re.search(r"(?:\b[A-ZÄÖÜ]\w*|\ufffc) $", match.string[max(match.start() - 24, 0) : match.start()]):
        return None
    return "eine" if _FEMININE_NOUN.match(match.string, match.end()) else "ein"


def _rest(match: re.Match) -> str:
    names = {".": "Punkt", ",": "Komma", ":": "zu", "/": "Strich", "-": " "}
    groups = re.split(r"([.,:/-])", match[0])
    words = [names.get(g) or (one_by_one(g, "de") if g[0] == "0" else cardinal(g)) for g in groups if g]
    return " ".join(" ".join(words).split())


def _even_price(match: re.Match) -> str:
    """E.g. "5,- €" → "fünf Euro"."""
    sign = match["sign"] or ""
    unit = "Franken" if sign == "Fr." else MONEY[sign][0] if sign in MONEY else sign
    return f"{amount_of(match['n'], unit)} {unit}".strip()


def _times_word(digits: str) -> str:
    """E.g. "3x" → "dreimal"."""
    reading = cardinal(digits)
    return (reading[:-1] if reading == "eins" else reading) + "mal"


def _first_of_days(match: re.Match) -> str:
    """The first of two days of a month: "1.–3. Mai"."""
    return ordinal(match["n"], match) + (" und " if "/" in match["sign"] else " bis ")


BEFORE_LAYOUT = addresses(_site)
_DAYS = "|".join(_WEEKDAYS)
RULES = [
    rule(r"(?<![\w.@])@(?=\w{0,40}[^\W\d_])((?>\w{1,40}))(?!\w|\.\w)", lambda m: f"at {_spelled(m[1])}", "@"),
    rule(rf"(?<![\w.])(?:{_DAYS})\b\.?(?= ?[-–—] ?(?:{_DAYS})\b)", lambda m: _WEEKDAYS[m[0][:2]], "-–—"),
    rule(rf"(?<=\ufffc)(?P<take> ?[-–—] ?)(?=(?:{_DAYS})\b)", " bis ", "-–—"),
    rule(rf"(?<=\ufffc)(?:{_DAYS})\b\.?", lambda m: _WEEKDAYS[m[0][:2]], "-–—"),
    rule(
        rf"(?<![\w.])(?:{_DAYS})\.?(?=,? \d{{1,2}}\. ?{_MONTH}|,? \d{{1,2}}\.\d{{1,2}}\.)", lambda m: _WEEKDAYS[m[0][:2]], DIGITS
    ),
    rule(r"(?<=[\wäöüß.] )u\.(?= [\wÄÖÜäöü])", "und", "."),
    rule(r"(?<!\w)s\.(?= (?:Abb|S|Kap|Tab|Abs|Art|Anm)\.)", "siehe", "."),
    rule(r"(?<![\w.,])(?P<n>\d+(?:\.\d{3})*),[-–—]{1,2}(?: ?(?P<sign>€|EUR|Euro|DM|CHF|Fr\.))?(?!\w)", _even_price, "-–—"),
    rule(r"(?<![\w.,])(?P<amount>\d{1,6}\.\d\d)(?P<scale>(?!)x)? ?(?P<sign>€|EUR)(?!\w)", _money, "€E"),
    rule(
        r"(?<![\w.,])(?<!\d )\d{1,3}(?:(?: \d{3}){2,4}| 000)(?![\w]| \d|[.,]\d)",
        lambda m: cardinal(m[0].replace(" ", "")),
        DIGITS,
    ),
    rule(rf"{FREE}(?P<n>{NUM}) ?%ig(?P<end>e[rnms]?)?(?!\w)", lambda m: f"{number(m['n'])}prozentig{m['end'] or ''}", "%"),
    rule(rf"(?<![\w.,])(?P<n>\d{{1,2}})\.(?P<sign> ?[-–—/] ?)(?=\d{{1,2}}\. ?{_MONTH})", _first_of_days, DIGITS),
    rule(r"\b(?:am|vom|bis|zum|seit|ab|den|dem|der) (?P<take>(?P<d>[0-3]?\d)\. ?(?P<m>0?[1-9]|1[0-2])\.)(?![\d])", _day, "."),
    rule(
        r"\b(?:[Uu]m|[Aa]b|[Bb]is|[Gg]egen) (?P<take>\d{1,2} ?h)(?!\w)",
        lambda m: f"{cardinal(m['take'].rstrip('h '))} Uhr",
        "h",
    ),
    rule(r"(?<![\w/.,-])(?P<a>1[5-9]\d\d|20\d\d)/(?P<b>\d\d|1[5-9]\d\d|20\d\d)(?![\w/-]|[.,]\d)", _season, "/"),
    rule(
        r"\b(?P<take>[IVX]{1,6}\.)(?= (?:Weltkrieg|Jahrhundert|Bundesliga|Akt|Kapitel|Teil|Quartal|Internationale|Reich|Korps))",
        _ordinal_numeral,
        "IVX",
    ),
    rule(r"(?<![\w.,])1\.(?= (?:FC|SV|FSV|FFC|SC)\b)", "erster", "."),
    rule(r"(?<![\w/.,-])(?P<whole>\d{1,4}) (?P<over>\d)/(?P<under>\d{1,2})(?![\w/-]|[.,]\d)", _mixed, "/"),
    rule(r"\bPLZ:? (?P<take>\d{5})(?!\w)", lambda m: one_by_one(m["take"], "de"), "P"),
    rule(r"(?<![\w&/#])#(?=\w{0,80}[^\W\d_])((?>\w{1,80}))(?!\w)", lambda m: f"Hashtag {_spelled(m[1])}", "#"),
    rule(r"(?<![\w.])St\.(?! ?[A-ZÄÖÜ])", "Stück", "."),
    rule(
        rf"(?<![\w.]){FREE}(?P<amount>{NUM}) ?(?:(?P<scale>{either(_SCALES)}) ?)?(?P<sign>{either(MONEY)})(?!\w)", _money, DIGITS
    ),
    rule(
        rf"(?<!\w)(?P<sign>{either(MONEY)}) ?(?P<amount>{NUM})(?: ?(?P<scale>{either(_SCALES)})(?!\w))?(?!\w|[.,]\d)",
        _money,
        DIGITS,
    ),
    rule(rf"{FREE}(?P<amount>{NUM}) ?(?P<scale>{either(_SCALES)})(?!\w)", _magnitude, DIGITS),
    rule(
        r"(?<![\w.,])1 (?P<n>Std|Min|Sek)\.(?!\w)",
        lambda m: {"Std": "eine Stunde", "Min": "eine Minute", "Sek": "eine Sekunde"}[m["n"]],
        "1",
    ),
    rule(rf"(?<![\w.])(?:{either(ABBREVIATIONS)})(?!\w)", lambda m: ABBREVIATIONS[m[0]], "."),
    rule(r"(?<!\w)([A-ZÄÖÜ]?[a-zäöüß-]{2,40})str\.(?!\w)", lambda m: f"{m[1]}straße", "."),
    rule(r"(?<![\w.])S\.(?= ?\d)", "Seite", "."),
    rule(r"(?<![\w.,/-])(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})(?![\w-])", _day, "-"),
    rule(rf"{FREE}(?P<d>\d{{1,2}})\. ?(?P<m>{_MONTH})(?!\w)(?: (?P<y>(?:1\d|20)\d\d)(?![\w]|[.,:]\d))?", _day, "."),
    rule(r"(?<![\w.,])(?P<d>[0-3]?\d)\. ?(?P<m>[01]?\d)\. ?(?P<y>(?:1\d|20)\d\d|\d\d(?!\w))(?!\w|[.,:]\d)", _day, "."),
    rule(r"(?<![\w.,])(?P<d>[0-3]?\d)\.(?P<m>0\d|1[0-2])\.(?!\d)", _day, "."),
    rule(r"(?<![\w:,.])(?P<h>\d{1,2})(?:[:.](?P<min>[0-5]\d))? ?Uhr(?!\w)", _clock, "U"),
    rule(r"(?<![\w:,.])(?P<h>[01]?\d|2[0-4]):(?P<min>[0-5]\d)(?![\w:]|[.,]\d)", _clock, ":"),
    rule(r"(?<![\w.,])(?P<n>(?:1\d|20)\d0|[1-9]0)-?er(?P<n2>n?)(?!\w)", _decade, "e"),
    rule(
        r"(?<![\w.,-])\+?\d{2,5}(?:[ /-]\d{2,8}){2,5}(?![\w-]|[.,]\d)",
        lambda m: _phone(m[0]) if m[0][0] in "+0" else None,
        DIGITS,
    ),
    rule(r"(?<![\w.,-])0\d{2,4}[/ -]\d{4,9}(?![\w-]|[.,]\d)", lambda m: _phone(m[0]), "0"),
    rule(r"(?<![\w.)\ufffc])[-−](?=[€$]?\d)", "minus ", "-−"),
    rule(r"(?<![\w/.,-])\d+(?:[.,]\d+)*[%°]?(?P<take>-|\s?[–—]\s?)(?=\d+(?:[.,]\d+)*(?![\w/-]))", " bis ", "-–—"),
    rule(r"(?:(?<=\ufffc)|(?<=\d))(?P<take>-| ?[–—] ?)(?=\ufffc)|(?<=\ufffc)(?P<then>-| ?[–—] ?)(?=\d)", " bis ", "-–—"),
    rule(r"(?<![\w\ufffc+])\+(?=[€$]?[\d\ufffc])", "plus ", "+"),
    rule(r"(?<!\w)±(?=[\d\ufffc])", "plus minus ", "±"),
    rule(r"(?<=\d) ?[x×] ?(?=\d)", "mal", "x×"),
    rule(rf"{FREE}(?P<n>\d{{1,4}}) ?x(?!\w)", lambda m: f"{_times_word(m['n'])}", "x"),
    rule(r"(?<=\d)-(?=\d)", " ", "-"),
    rule(r"(?<![\w/.,-])(\d+)/(\d+)(?![\w/-]|[.,]\d)", _quotient, "/"),
    rule(rf"{FREE}(?P<whole>\d{{1,9}}) ?(?P<part>[½¼¾])", lambda m: _mixed_vulgar(m["whole"], m["part"]), "½¼¾"),
    rule(
        r"(?<!\w)[vV]?(?P<n>\d{1,9}(?:\.\d{1,9}){2,8})(?![\w]|\.\w)",
        lambda m: (
            " Punkt ".join(cardinal(g) for g in m["n"].split(".")) if not re.fullmatch(r"\d{1,3}(?:\.\d{3})+", m["n"]) else None
        ),
        ".",
    ),
    rule(rf"{FREE}(?P<amount>{NUM})[ -]?(?P<unit>{either(UNITS)})(?!\w)", _unit, DIGITS),
    rule(
        rf"{FREE}(?P<n>\d{{1,9}})\.(?= (?:Jahrhundert|Jahrestag|Geburtstag|Platz|Mal|Klasse|Stock|Etage|Kapitel"
        rf"|Auflage|Bundesliga|Liga|Runde|Tag|Woche|Monat|Weltkrieg|\ufffc+|[a-zäöü]))",
        lambda m: ordinal(m["n"], m),
        ".",
    ),
    rule(r"\b(?P<name>[A-ZÄÖÜ][a-zäöüß]{2,20}) (?P<take>[IVX]{1,7}\.)(?!\w)", _ruler, "."),
    rule(
        r"\b(?:Kapitel|Teil|Band|Akt|Szene|Buch|Artikel|Abschnitt|Phase|Typ|Klasse|Stufe|Weltkrieg|Abbildung"
        r"|Tabelle) (?P<take>[IVXLC]{1,7})(?![\w.])",
        _numeral,
        "IVXLC",
    ),
    rule(r"(?<![\w.,/:-])1(?= [A-ZÄÖÜ][a-zäöüß]+)", _one, "1"),
    rule(rf"(?<![A-Za-z\d])(?<!\d[.,:/]){NUM}(?![A-Za-z]|[.,:/]?\d)", _alone, DIGITS),
    rule(r"(?<![A-Za-z\d])(?<!\d[.:/,])(?>\d+(?:[.,:/-]\d+)*)(?![A-Za-z\d])", _rest, DIGITS),
    rule(rf"(?<!\S)[{re.escape(''.join(SYMBOLS))}](?!\S)", lambda m: SYMBOLS[m[0]], "".join(SYMBOLS)),
    rule(
        r"(?<=[\w\ufffc])[%‰]|§ ?(?=\ufffc)",
        lambda m: " Prozent" if m[0] == "%" else " Promille" if m[0] == "‰" else "Paragraf ",
        "%‰§",
    ),
    rule(r"(?<=\ufffc)(?P<take>\+)(?=\ufffc|\s|$)", "plus", "+"),
    rule(r"(?<=\ufffc)(?P<take>=)(?=\ufffc)", "gleich", "="),
    rule(r"&(?:amp;)?", " und ", "&"),
]
