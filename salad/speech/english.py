"""How numbers, signs and abbreviations are read aloud in English: `RULES`, in order.

The order matters: a rule sees only what those before it have left. Where a sign has two readings, what stands around it
decides ("St. Mark" and "Main St.", "No. 5" and "Is it cold? No."); where nothing decides, the more frequent one.
Long because it is one table whose order is its meaning, and the functions that only it calls; words are in english_tables.
"""

import re

from salad.speech.english_tables import (
    ABBREVIATIONS,
    ATTACHED_UNITS,
    BEFORE_NUMBER,
    BEFORE_SAINT,
    CODES,
    CURRENCIES,
    ELEMENTS,
    NO_STREET,
    NUMBERED,
    PER_UNITS,
    QUALIFIED,
    QUOTIENTS,
    RESOLUTIONS,
    RULERS,
    SCALES,
    SLASHED,
    SYMBOLS,
    TITLES,
    UNITS,
)
from salad.speech.reading import DIGITS, addresses, cardinal, either, one_by_one, ordinal, parted, roman, rule, year

NUM = r"(?>(?:\d{1,3}(?:,\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+)(?!\d)(?:\.\d+)?|\.\d+)"  # a whole number, or none
INT = r"(?>(?:\d{1,3}(?:,\d{3})+|\d+)(?!\d))"
FREE = r"(?<![\w.,])"  # nothing of a longer number or word stands before
END = r"(?![.,:]?\d|\w)"
MONTHS = dict(zip("Jan Feb Mar Apr May Jun Jul Aug Sep Sept Oct Nov Dec".split(),
                  "January February March April May June July August September September October November December".split(),
                  strict=True))  # fmt: skip
MONTH_NAMES = [name for name in dict.fromkeys(MONTHS.values())]
MONTH = rf"(?:{'|'.join(MONTH_NAMES)}|(?:{'|'.join(MONTHS)})\b\.?)"

# --- numbers ---


def number(text: str) -> str:
    """E.g. "1,000" → "one thousand", "3.14" → "three point one four", ".5" → "point five"."""
    whole, point, decimals = text.replace(",", "").partition(".")
    words = [cardinal(whole)] if whole else []
    return " ".join([*words, "point", one_by_one(decimals)] if point else words)


def plural(noun: str) -> str:
    """The plural of the first word of a unit."""
    head, _, rest = noun.partition(" ")
    if head in _SAME_PLURAL:
        return noun
    if rest and head in _BEFORE_NOUN:
        return f"{head} {plural(rest)}"
    irregular = {"foot": "feet", "inch": "inches", "penny": "pence", "real": "reais"}
    made = irregular.get(head) or (head[:-1] + "ies" if head.endswith("y") and head[-2] not in "aeiou" else head + "s")
    return f"{made} {rest}".strip()


_BEFORE_NOUN = frozenset(
    "square cubic nautical fluid electron kilowatt megawatt gigawatt watt milliamp amp light US Australian "
    "Canadian Swiss British Mexican".split()
)  # the noun that takes the plural comes after them
_SAME_PLURAL = frozenset("hertz kilohertz megahertz gigahertz percent yen won baht dong yuan siemens per miles beats frames "
                         "parts revolutions pixels words".split())  # fmt: skip


def many(amount: str, noun: str) -> str:
    """The noun as it stands after the number: "1" → singular, everything else plural."""
    return noun if amount.replace(",", "") == "1" else plural(noun)


def years(digits: str) -> str:
    """A year: "1905" → "nineteen oh five", "2000" → "two thousand"."""
    return year(digits).replace("oh-", "oh ")


def _early_year(digits: str) -> str:
    """A year that only its surroundings show to be one: "1066" → "ten sixty-six"."""
    return in_pairs(digits) if digits[:2] in ("10", "21", "22") and digits[1:3] != "00" else years(digits)


def in_pairs(digits: str) -> str:
    """E.g. "1080" → "ten eighty", "747" → "seven forty-seven", "101" → "one oh one"."""
    head, tail = digits[:-2], digits[-2:]
    if tail == "00":
        return f"{cardinal(head)} hundred"
    return f"{cardinal(head)} {'oh ' + cardinal(tail[1]) if tail[0] == '0' else cardinal(tail)}"


def plural_of_number(reading: str) -> str:
    """E.g. "ninety" → "nineties", "six" → "sixes", "seven" → "sevens"."""
    if reading.endswith("y"):
        return reading[:-1] + "ies"
    return reading + ("es" if reading.endswith("x") else "s")


def part(below: int, several: bool) -> str:
    """The name of one of `below` parts: "half", "quarters", "tenth"."""
    if below == 2:
        return "halves" if several else "half"
    name = "quarter" if below == 4 else ordinal(str(below))
    return name + "s" * several


def fraction(above: str, below: str) -> str:
    """E.g. 3, 4 → "three quarters"; "twenty-two over seven" where it is no part of a whole or the parts are too small."""
    over, under = int(above[:15]), int(below[:15])
    if 0 < over < under and (under <= 20 or under in (32, 64, 100, 1000)):
        return f"{cardinal(above)} {part(under, over > 1)}"
    return f"{cardinal(above)} over {cardinal(below)}"


def _spelled(word: str) -> str:
    """Digits of a compound spelled out: "mail2" → "mail two", "user123" → "user one two three"."""
    return re.sub(r"\d+", lambda m: cardinal(m[0]) if len(m[0]) <= 2 and m[0][0] != "0" else one_by_one(m[0]), parted(word))


def _site(address: str) -> str:
    names = {"@": "at", ".": "dot", "-": "dash", "_": "underscore", "+": "plus", ":": "port"}
    return " ".join(names.get(piece) or _spelled(piece) for piece in re.split(r"([@.\-_+:])", address) if piece.strip())


# --- abbreviations ---

_ALWAYS = [key for key in ABBREVIATIONS if key not in ("Dr.", "St.", "Fig.", "No.", "a.m.", "p.m.", "U.S.", "U.K.", "Sr.", "est.",
                                                        "Rd.", "Mt.")]  # fmt: skip


def _before(match: re.Match, back: int = 40) -> str:
    """The word right before the match, with nothing but a blank between; "" where there is none."""
    word = re.search(r"(\S+) $", match.string[max(match.start() - back, 0) : match.start()])
    return word[1] if word else ""


def _of_a_street(match: re.Match) -> bool:
    """Whether "St." or "Dr." ends a street's name: a capitalised word or an ordinal stands before it."""
    word = _before(match)
    if re.fullmatch(r"\d+(?:st|nd|rd|th)", word):
        return True
    return bool(re.fullmatch(r"[A-Z][\w'’-]+", word)) and word not in NO_STREET


def _saint(match: re.Match) -> str:
    follows = match.string[match.end() : match.end() + 40]
    named = re.match(r" [A-Z]", follows)
    if _of_a_street(match) and not (named and _before(match) in BEFORE_SAINT):
        return "Street"
    return "Saint" if named else "Street"


def _doctor(match: re.Match) -> str:
    follows = match.string[match.end() : match.end() + 40]
    if _of_a_street(match):
        house = re.search(
            r"\d+ (?:[NSEW]\.? )?(?:[A-Z][\w'’-]+ ){1,3}$", match.string[max(match.start() - 60, 0) : match.start()]
        )
        if house or not re.match(r" [A-Z]", follows):
            return "Drive"
    return "Doctor"


def _company(match: re.Match) -> str | None:
    return "Company" if re.match(r"[A-Z&]", _before(match)) else None


def _letters(match: re.Match) -> str:
    return " ".join(c.upper() for c in match[0] if c.isalpha())


def _month(match: re.Match) -> str:
    return MONTHS[match["name"]]


# --- dates and times ---


def _name_of_month(text: str) -> str:
    text = text.rstrip(".")
    return MONTHS.get(text, text)


def _year_of(digits: str) -> str:
    if len(digits) == 4:
        return years(digits)
    if digits == "00":
        return "two thousand"
    return ("oh " if digits[0] == "0" else "") + cardinal(digits.lstrip("0"))


def _day(match: re.Match) -> str | None:
    """E.g. "2020-01-05", "1/5/2020" (month first, unless it cannot be), "5.1.2020" (day first)."""
    groups = match.groupdict()
    month, day = int(groups["m"]), int(groups["d"])
    if month > 12 and day <= 12:
        month, day = day, month
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    reading = f"{MONTH_NAMES[month - 1]} {ordinal(str(day))}"
    return reading + (f", {_year_of(groups['y'])}" if groups.get("y") else "")


def _timestamp(match: re.Match) -> str | None:
    """An ISO 8601 date and time: "2020-01-05T10:30:00Z"."""
    day = _day(match)
    if day is None:
        return None
    hour, minute, zone = str(int(match["h"])), match["min"], match["zone"]
    minutes = "hundred" if minute == "00" else ("oh " if minute[0] == "0" else "") + cardinal(str(int(minute)))
    reading = f"{day} at {cardinal(hour)} {minutes}"
    if match["s"] and int(match["s"]):
        reading += f" and {cardinal(str(int(match['s'])))} {many(str(int(match['s'])), 'second')}"
    if not zone:
        return reading
    if zone == "Z":
        return f"{reading} U T C"
    return f"{reading} U T C {'plus' if zone[0] == '+' else 'minus'} {cardinal(str(int(zone[1:3])))}"


_WEEKDAYS = {"Mon": "Monday", "Tue": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Fri": "Friday", "Sat": "Saturday",
             "Sun": "Sunday"}  # fmt: skip
_WEEKDAY_NAMES = "Mon|Tues?|Weds?|Thurs|Thur?|Fri|Sat|Sun"


def _weekday(match: re.Match) -> str:
    return _WEEKDAYS[match[0][:3]]


def _day_after_month(match: re.Match) -> str | None:
    days = [match["d"], match["to"]] if match["to"] else [match["d"]]
    if not all(1 <= int(day) <= 31 for day in days):
        return None
    reading = f"{_name_of_month(match['month'])} {' to '.join(ordinal(day) for day in days)}"
    return reading + (f"{match['comma'] or ''} {years(match['y'])}" if match["y"] else "")


def _day_before_month(match: re.Match) -> str | None:
    days = [match["d"], match["to"]] if match["to"] else [match["d"]]
    if not all(1 <= int(day) <= 31 for day in days):
        return None
    article = "" if _before(match).lower() == "the" else "the "
    reading = f"{article}{' to '.join(ordinal(day) for day in days)} of {_name_of_month(match['month'])}"
    return reading + (f" {years(match['y'])}" if match["y"] else "")


def _hour(match: re.Match) -> str | None:
    hour, minute, second, half = int(match["h"]), match["m"], match["s"], match["half"]
    if hour > 24 or (half and hour > 12):
        return None
    if minute is None and not half:
        return None
    if minute in (None, "00"):
        reading = cardinal(str(hour)) + ("" if half or second else " o'clock" if 0 < hour <= 12 else " hundred")
    else:
        reading = f"{cardinal(str(hour))} {'oh ' if minute[0] == '0' else ''}{cardinal(str(int(minute)))}"
    if second:
        reading += f" and {cardinal(str(int(second)))} {many(str(int(second)), 'second')}"
    return reading + (f" {half[0].upper()} M" if half else "")


def _military(match: re.Match) -> str:
    """E.g. "0800 hours" → "zero eight hundred"."""
    hour, minute = match["h"], match["m"]
    reading = one_by_one(hour) if hour[0] == "0" else cardinal(hour)
    return f"{reading} hundred" if minute == "00" else f"{reading} {one_by_one(minute) if minute[0] == '0' else cardinal(minute)}"


_BOOKS = (
    "Genesis|Exodus|Leviticus|Numbers|Deuteronomy|Joshua|Judges|Ruth|Samuel|Kings|Chronicles|Ezra|Nehemiah|Esther|Job|Psalms?"
    "|Proverbs|Ecclesiastes|Isaiah|Jeremiah|Ezekiel|Daniel|Hosea|Amos|Micah|Zechariah|Malachi|Matthew|Mark|Luke|John|Acts|Romans"
    "|Corinthians|Galatians|Ephesians|Philippians|Colossians|Thessalonians|Timothy|Titus|Hebrews|James|Peter|Revelation"
)


def _decade(match: re.Match) -> str:
    century, tens = int(match["c"]), match["t"]
    if tens == "0":
        return "two thousands" if century == 20 else f"{cardinal(str(century))} hundreds"
    return f"{cardinal(str(century))} {plural_of_number(cardinal(tens + '0'))}"


def _tens(match: re.Match) -> str | None:
    """E.g. "his 40s", "the '90s", and "30s" where it is a time."""
    tens = match["t"]
    if not match["apostrophe"] and re.search(r"\b(?:for|within|after|took|takes|every|lasts|lasted|last|in under|about) $",
                                             match.string[max(match.start() - 12, 0) : match.start()]):  # fmt: skip
        return f"{cardinal(tens + '0')} seconds"
    return "two thousands" if tens == "0" else plural_of_number(cardinal(tens + "0"))


def _several(match: re.Match) -> str | None:
    """E.g. "747s" → "seven four sevens", "F-16s" → "sixteens"."""
    digits = match["n"]
    if len(digits) == 3 and digits[1:] != "00":
        return f"{one_by_one(digits[:2])} {plural_of_number(cardinal(digits[2]))}"
    return plural_of_number(number(digits))


# --- money ---

_SCALE_WORDS = "thousand million billion trillion hundred lakh crore".split()
SCALE = rf"(?:[ -]?(?P<word>{'|'.join(_SCALE_WORDS)})\b|(?P<letter>{either(SCALES)})(?!\w))"
_ARTICLE = re.compile(r"(?<!\w)[Aa]n? $")
_QUALIFIED = re.compile(rf" (?:{'|'.join(QUALIFIED)})s?(?!\w)")


def _qualifies(match: re.Match) -> bool:
    """Whether an amount belongs to a noun that follows, so that its unit is singular: "a $5 bill", "the 100 m dash"."""
    before, after = match.string[max(match.start() - 4, 0) : match.start()], match.string[match.end() : match.end() + 24]
    return bool(_QUALIFIED.match(after) or _ARTICLE.search(before) and re.match(r"[ -][a-z(]", after))


def _plural_money(noun: str) -> str:
    words = noun.split()
    return " ".join([*words[:-1], plural(words[-1]) if words[-1] not in ("real",) else "reais"])


def _money(match: re.Match) -> str:
    sign = match["sign"].strip()
    unit, small = CURRENCIES[sign] if sign in CURRENCIES else (CODES[sign], "cent")
    amount, upper = match["amount"], match["to"]
    scale = match["word"] or SCALES.get(match["letter"] or "", "")
    single = _qualifies(match)
    units = unit if single else _plural_money(unit)
    if upper:
        return f"{number(amount)} to {' '.join(filter(None, [number(upper), scale, units]))}"
    if scale:
        return f"{number(amount)} {scale} {units}"
    if re.fullmatch(r"\d+,\d\d", amount):  # no thousands: continental decimals
        amount = amount.replace(",", ".")
    elif amount.count(".") > 1 or " " in amount:
        amount = re.sub("[. ]", "", amount)
    whole, _, cents = amount.replace(",", "").partition(".")
    if len(cents) == 2 and small:
        part_of = f"{cardinal(str(int(cents)))} {small if int(cents) == 1 else plural(small)}"
        if not whole.strip("0"):
            return part_of
        reading = f"{cardinal(whole)} {unit if whole == '1' or single else _plural_money(unit)}"
        return f"{reading} and {part_of}" if int(cents) else reading
    return f"{number(amount)} {unit if amount == '1' or single else units}"


def _cents(match: re.Match) -> str:
    return f"{number(match['amount'])} {many(match['amount'], 'cent' if match['sign'] == '¢' else 'penny')}"


# --- units ---

_SAME_PLURAL |= {"horsepower", "per"}
_POWERS = {"²": "square", "2": "square", "³": "cubic", "3": "cubic"}
_UNIT = rf"(?P<unit>{either(UNITS)})(?P<power>[²³]|(?<=m)[23]|(?<=ft)[23])?"
_SAFE_UNIT_NAMES = either(set(UNITS) - ATTACHED_UNITS - {"h", "s", "m", "l", "g"})
_SAFE_UNIT = (
    rf"(?P<unit>{_SAFE_UNIT_NAMES})(?P<power>[²³]|(?<=m)[23]|(?<=ft)[23])?"
    r"(?!\w)"
)  # what is a unit whatever stands around it
_PER_NAMES = either([*UNITS, *PER_UNITS])
_PER_UNIT = rf"(?:/(?P<several>\d{{1,6}} ?)?(?P<per>{_PER_NAMES})(?P<perpower>[²³]|(?<=m)[23])?(?!\w))?"


def _powered(name: str, power: str | None) -> str:
    return f"{_POWERS[power]} {name}" if power else name


def _unit(match: re.Match) -> str | None:
    unit, amount, dash = match["unit"], match["amount"], match["gap"]
    if unit in ATTACHED_UNITS and dash == " " and not re.match(r"(?:\W|$)", match.string[match.end() : match.end() + 1]):
        return None
    if unit in ("t", "us") and dash == " " or unit == "in" and dash:
        return None
    name = _powered(UNITS[unit], match["power"])
    return f"{number(amount)} {name if dash == '-' or _qualifies(match) else many(amount, name)}{_per(match)}"


def _per(match: re.Match) -> str:
    """What follows a unit: " per hour", " per second squared", " per one hundred grams"; "" where nothing does."""
    if not match["per"]:
        return ""
    other = PER_UNITS.get(match["per"]) or UNITS[match["per"]]
    if match["perpower"] and other == "second":
        return f" per second {'squared' if match['perpower'] in '²2' else 'cubed'}"
    other = _powered(other, match["perpower"])
    return f" per {number(match['several'])} {many(match['several'], other)}" if match["several"] else f" per {other}"


def _unit_after(match: re.Match) -> str:
    """The unit of an amount that another rule has read."""
    name = _powered(UNITS[match["unit"]], match["power"])
    return ("" if match["gap"] else " ") + (name if match["gap"] == "-" else plural(name)) + _per(match)


def _decimal_comma(match: re.Match) -> str:
    """A continental decimal: "1,5 million", where no thousands can be meant."""
    return number(match[0].replace(",", "."))


def _between_digits(match: re.Match) -> str | None:
    """A hyphen between digits that is no range: not within a name such as "i7-8700K"."""
    named = re.search(r"[A-Za-z][\w-]*$", match.string[max(match.start() - 24, 0) : match.start()])
    return None if named else " "


def _feet(match: re.Match) -> str:
    return f"{cardinal(match[1])} foot {number(match[2])}"


def _feet_and_inches(match: re.Match) -> str:
    feet, inches = match["feet"], match["inches"]
    return f"{cardinal(feet)} {many(feet, 'foot')} {number(inches)} {many(inches, 'inch')}"


_QUARTERS = {"N": "north", "S": "south", "E": "east", "W": "west"}


def _latitude(degrees: str, quarter: str) -> str:
    return f"{degrees} {'degree' if degrees == 'one' else 'degrees'} {_QUARTERS[quarter]}"


def _inches(match: re.Match) -> str | None:
    """`5"` outside of quotation marks."""
    line = match.string[max(match.start() - 500, 0) : match.start()].rpartition("\n")[2]
    return f"{number(match['amount'])} {many(match['amount'], 'inch')}" if line.count('"') % 2 == 0 else None


def _times(match: re.Match) -> str:
    """E.g. "3x" → "three times", but "2x + 1" → "two x"."""
    around = re.search(r"[-+*/=(] ?$", match.string[max(match.start() - 2, 0) : match.start()])
    follows = re.match(r" ?(?:[+*/=^)]|-[ \d])", match.string[match.end() : match.end() + 3])
    return f"{number(match['n'])} {'x' if around or follows else 'times'}"


def _magnitude(match: re.Match) -> str | None:
    letter = match["letter"]
    follows = match.string[match.end() : match.end() + 12].lower()
    if letter == "K" and re.match(
        r" (?:tv|video|resol|display|monitor|screen|movie|footage|ultra|content|run|race|camera|hdr|uhd)", follows
    ):
        return f"{number(match['amount'])} K"
    return f"{number(match['amount'])} {SCALES[letter]}"


# --- Roman numerals ---

_RULE_TITLES = r"(?:King|Queen|Pope|Emperor|Empress|Tsar|Czar|Kaiser|Prince|Sultan|Shah|Pharaoh|Duke|Count|Saint)"


def _numeral(match: re.Match) -> str | None:
    """After "Chapter", "Part", "World War": a number of its own."""
    value = roman(match["take"])
    return cardinal(str(value)) if value else None


def _ruler(match: re.Match) -> str | None:
    """E.g. "Henry VIII" → "the eighth"; another name's numeral ("Rocky IV") a number, where it can be nothing else."""
    value, name = roman(match["take"]), match["name"]
    if not value:
        return None
    titled = re.search(rf"{_RULE_TITLES}(?: [A-Z][\w'-]+)? $", match.string[max(match.start() - 30, 0) : match.start()])
    if name in RULERS or titled:
        if match["take"] == "I" and re.match(r" (?:am|was|have|had|will|would|do|did|think|know|knew|saw|said|can|could)\b",
                                             match.string[match.end() : match.end() + 9]):  # fmt: skip
            return None
        return None if (name, match["take"]) == ("Malcolm", "X") else f"the {ordinal(str(value))}"
    if len(match["take"]) > 1 and set(match["take"]) <= set("IVX") and name not in NO_STREET:
        return cardinal(str(value))
    return None


def _abbreviated_numeral(match: re.Match) -> str | None:
    """E.g. "Vol. II" → "volume two"."""
    value = roman(match["n"])
    return f"{BEFORE_NUMBER.get(match['of'] + '.', 'book')} {cardinal(str(value))}" if value else None


def _century(match: re.Match) -> str | None:
    value = roman(match["take"].rstrip("sthndr"))
    return ordinal(str(value)) if value else None


# --- everything else ---

_VULGAR = "¼½¾⅓⅔⅛⅜⅝⅞⅕⅖⅗⅘⅙⅚"


def _formula(match: re.Match) -> str | None:
    parts = re.findall(r"([A-Z][a-z]?)(\d*)", match[0])
    if len(parts) < 2 and not (parts and parts[0][1] == "2") or not all(symbol in ELEMENTS for symbol, _ in parts):
        return None
    return " ".join(" ".join(symbol.upper()) + (f" {cardinal(count)}" if count else "") for symbol, count in parts)


def _phone(match: re.Match) -> str:
    groups = re.findall(r"\+|\d+", match[0])
    return ", ".join("plus" if group == "+" else one_by_one(group) for group in groups).replace("plus, ", "plus ")


_STATES = frozenset("AL AK AZ AR CA CO CT DE FL GA HI ID IL IN IA KS KY LA ME MD MA MI MN MS MO MT NE NV NH NJ NM NY NC ND OH OK "
                    "OR PA RI SC SD TN TX UT VT VA WA WV WI WY DC".split())  # fmt: skip


def _zip(match: re.Match) -> str | None:
    """The five digits after a state: "Springfield, IL 62704"."""
    return one_by_one(match["take"]) if match[0][:2] in _STATES else None


def _continental(match: re.Match) -> str | None:
    """Thousands between full stops: "1.000.000"; not an address of four groups, not a version."""
    whole, comma, decimals = match["take"].partition(",")
    groups = whole.split(".")
    named = re.search(
        r"(?i)(?:version|release|build|v\.?|ip|address|host) ?$", match.string[max(match.start() - 12, 0) : match.start()]
    )
    address = len(groups) == 4 and all(int(group) <= 255 for group in groups)
    if address or named or groups[0][0] == "0":
        return None
    return cardinal("".join(groups)) + (f" point {one_by_one(decimals)}" if comma else "")


def _short_phone(match: re.Match) -> str | None:
    before = match.string[max(match.start() - 24, 0) : match.start()].lower()
    return _phone(match) if match[0].startswith("555") or re.search(r"call|phone|tel|dial|fax|number|text", before) else None


def _dotted(match: re.Match) -> str | None:
    """E.g. "192.168.0.1" and "version 1.2.3"."""
    groups = match["n"].split(".")
    version = match["v"] or re.search(r"(?i)\b(?:version|release|build|python|v\.?|ios|android|linux) ?$",
                                      match.string[max(match.start() - 12, 0) : match.start()])  # fmt: skip
    prefix = "version " if match["v"] else ""
    if len(groups) == 4 and not version and all(len(g) <= 3 and int(g) <= 255 for g in groups):
        port = f" {'port' if match['sign'] == ':' else 'slash'} {one_by_one(match['port'])}" if match["port"] else ""
        return " dot ".join(one_by_one(g) for g in groups) + port
    if match["port"]:
        return None
    return prefix + " point ".join(cardinal(g) for g in groups)


def _v(match: re.Match) -> str:
    return f"version {number(match['n'] or match['large'])}"


def _quotient(match: re.Match) -> str | None:
    if match[0] in QUOTIENTS:
        return QUOTIENTS[match[0]]
    dated = re.search(r"\b(?:on|since|by|dated|until|before|after|of) $", match.string[max(match.start() - 7, 0) : match.start()])
    over, under = int(match[1][:15]), int(match[2][:15])
    if dated and 1 <= over <= 12 and 1 <= under <= 31 and (under > max(over, 10) or dated[0] == "on "):
        return f"{MONTH_NAMES[over - 1]} {ordinal(str(under))}"
    if "0" in (match[1][0], match[2][0]):
        return f"{one_by_one(match[1])} slash {one_by_one(match[2])}"
    reading = fraction(match[1], match[2])
    if not match["unit"]:
        return reading
    name = _powered(UNITS[match["unit"]], match["power"])
    if match["gap"] == "-" or over >= under:
        return f"{reading} {name if match['gap'] == '-' else plural(name)}{_per(match)}"
    article = "" if "percent" in name else "an " if name[0] in "aeiou" or name == "hour" else "a "
    return f"{reading} {'' if (over, under) == (1, 2) or not article else 'of ' + article}{name}{_per(match)}"


def _mixed(match: re.Match) -> str | None:
    over, under = int(match[2][:9]), int(match[3][:9])
    if not 0 < over < under <= 64:
        return None
    return f"{cardinal(match[1])} and {'a' if (over, under) == (1, 2) else cardinal(match[2])} {part(under, over > 1)}"


def _score(match: re.Match) -> str:
    """E.g. "9.5/10", "4/5 stars", "85/100"."""
    got, of = match[0].split("/")
    return f"{number(got)} out of {cardinal(of)}"


def _mixed_vulgar(match: re.Match) -> str:
    reading = SYMBOLS[match["part"]]
    return f"{cardinal(match['whole'])} and {'a half' if match['part'] == '½' else reading}"


def _power(match: re.Match) -> str:
    return _exponent(match["n"])


def _exponent(written: str) -> str:
    """E.g. "²" → " squared", "-3" → " to the power of minus three"."""
    exponent = written.translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻−", "0123456789+--"))
    if exponent in ("2", "3"):
        return " squared" if exponent == "2" else " cubed"
    sign, digits = ("minus " if exponent[0] == "-" else ""), exponent.strip("+-")
    reading = cardinal(digits) if digits.isdigit() else digits
    return f" to the power of {sign}{reading}" if digits else " "


def _scientific(match: re.Match) -> str:
    sign = "minus " if match["e"][0] in "-−" else ""
    return f"{number(match['amount'])} times ten to the power of {sign}{cardinal(match['e'].lstrip('+-−'))}"


def _tag(match: re.Match) -> str:
    return f"{'hashtag' if match[0][0] == '#' else 'at'} {_spelled(match[1])}"


def _resolution(match: re.Match) -> str | None:
    return f"{in_pairs(match[1])} {match[2]}" if match[1] in RESOLUTIONS else None


def _designation(match: re.Match) -> str:
    digits = match["take"]
    return one_by_one(digits) if match["kind"] == "Boeing" else in_pairs(digits)


def _alone(match: re.Match) -> str:
    plain = match[0]
    if re.fullmatch(r"1[1-9]\d\d|20\d\d", plain):
        counted = re.match(r" (?!was|has|is|as|this|its|us|thus|plus|versus|always|does|perhaps|towards)[a-z]{2,}s\b",
                           match.string[match.end() : match.end() + 24])  # fmt: skip
        dated = re.search(r"(?i)\b(?:in|of|since|by|from|until|till|to|during|before|after|circa|year|and|for) $|, $",
                          match.string[max(match.start() - 8, 0) : match.start()])  # fmt: skip
        return cardinal(plain) if counted and not dated and plain[2:] != "00" else years(plain)
    return number(plain)


def _rest(match: re.Match) -> str:
    """A run of digits and signs that is no number of any kind: group by group."""
    names = {".": "point", ",": "comma", ":": "to", "/": "slash", "-": " "}
    groups = re.split(r"([.,:/-])", match[0])
    return " ".join(" ".join(names.get(g) or (one_by_one(g) if g[0] == "0" else cardinal(g)) for g in groups if g).split())


def _symbol(match: re.Match) -> str:
    return SYMBOLS[match[0]]


_PREFIXED = {"US$", "A$", "AU$", "C$", "CA$", "NZ$", "HK$", "S$", "R$"}
_SIGN = rf"(?:{either([*_PREFIXED])}|[{re.escape(''.join(key for key in CURRENCIES if len(key) == 1))}])"
_HALF = r"(?P<half>[AaPp]\.[Mm]\.?|[AaPp][Mm]\b)"
_MONEY_SIGNS = "".join(key[-1] for key in CURRENCIES)

BEFORE_LAYOUT = [*addresses(_site), rule(r"(?<=\d) ?\* ?(?=\d)", "times", "*")]
RULES = [
    rule(r"(?<![\w&/#])#(?=\w{0,80}[A-Za-z])((?>\w{1,80}))(?!\w)", _tag, "#"),
    rule(r"(?<![\w.@])@(?=\w{0,40}[A-Za-z])((?>\w{1,40}))(?!\w|\.\w)", _tag, "@"),
    rule(
        r"(?<!\w)[CFGJA]#(?!\w)|(?<!\w)[A-Z]\+\+(?!\w)", lambda m: f"{m[0][0]} {'sharp' if m[0][1] == '#' else 'plus plus'}", "#+"
    ),
    rule(r"(?<![\w#])#(?=\d)", "number", "#"),
    rule(r"(?<!\w)(?:w/o|w/|and/or|b/c|n/a|N/A)(?!\w)", lambda m: SLASHED[m[0]], "/"),
    # abbreviations
    rule(rf"(?<![\w.])(?:{either(_ALWAYS)})(?!\w)", lambda m: ABBREVIATIONS[m[0]], "."),
    rule(r"(?<![\w.])St(?:\.(?!\w)|(?= [A-Z][a-z]))", _saint, "S"),
    rule(
        r"(?<![\w.])(?<!\d )(?P<take>Mt|Ft|Prof)(?= [A-Z][a-z])",
        lambda m: {"Mt": "Mount", "Ft": "Fort", "Prof": "Professor"}[m[0]],
        "MFP",
    ),
    rule(r"(?<!\w)[Nn]°\.? ?(?=\d)", "number ", "°"),
    rule(r"(?<![\w.])Dr\.(?!\w)", _doctor, "."),
    rule(
        r"(?<![\w.])(?P<take>Mr|Mrs|Ms|Dr)(?= [A-Z])",
        lambda m: {"Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Dr": "Doctor"}[m[0]],
        "MD",
    ),
    rule(rf"(?<![\w.])(?:{either(TITLES)})\.(?= [A-Z])", lambda m: TITLES[m[0][:-1]], "."),
    rule(r"(?:(?<=[a-z] )|(?<=[a-z], ))Sr\.(?!\w)", lambda m: "Senior", "."),
    rule(r"(?<=[A-Za-z] )Rd\.(?!\w)", lambda m: "Road", "."),
    rule(r"(?<=& )Co\.(?!\w)|(?<=[\w'] )Co\.(?!\w)", _company, "."),
    rule(rf"(?<![\w.])(?:{either(BEFORE_NUMBER)})(?= ?[#(]?\d)", lambda m: BEFORE_NUMBER[m[0]], "."),
    rule(
        r"(?<![\w.])(?P<of>Vol|vol|Ch|ch|Chap|chap|Pt|pt|Art|art|Sec|sec|Fig|fig|Bk|Op|op|(?:No"
        r"|no)(?=\. [IVXLC]{2}))\. (?P<n>[IVXLC]{1,7})(?!\w|\.\w)",
        _abbreviated_numeral,
        ".",
    ),
    rule(r"(?<=[A-Z][a-z]{2} )v\.? (?=[A-Z])|(?<=[a-z] )v\. (?=[A-Z])|(?<=[\w)] )vs (?=[\w(])", "versus ", "v"),
    rule(
        r"(?<![\w.])(?:[A-Za-z]\.){2,}(?:[A-Z](?![\w.]))?(?!\w)|(?<!\w)(?:Ph\.D|[MB]\.(?:Sc|Ed|Phil|Eng)|D\.Phil|Ed\.D)\.?(?!\w)",
        lambda m: (
            None
            if re.fullmatch(r"[AaPp]\.[Mm]\.", m[0]) and m.string[max(m.start() - 2, 0) : m.start()][:1].isdigit()
            else _letters(m)
            if m[0] != m[0].lower() or m[0] in ("a.m.", "p.m.")
            else None
        ),
        ".",
    ),
    # numbers that are names: phones, addresses, versions
    rule(r"(?<![\w.+(-])(?:\+?\d{1,3}[ .-]?)?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}(?:[ .-]| - )\d{4}(?![\w-]|\.\d)", _phone, DIGITS),
    rule(r"(?<![\w.+(-])\(0\d{2,4}\) ?\d{3,4} ?\d{3,4}(?![\w-]|\.\d)", _phone, DIGITS),
    rule(r"(?<![\w.,-])1-800(?=[ -][A-Za-z])", "one eight hundred", "1"),
    rule(r"(?<![\w.,-])50-50(?![\w-]|[.,]\d)", "fifty fifty", "5"),
    rule(r"(?<!\w)\+\d{1,3}(?:[ .-]\(?\d{1,5}\)?){2,6}(?![\w-]|\.\d)", _phone, "+"),
    rule(
        r"(?<![\w.,-])\d{3}-\d{2}-\d{4}(?![\w-])|(?<![\w.,-])\d{4}(?:[ -]\d{4}){3}(?![\w-])"
        r"|(?<!\w)97[89](?:-\d{1,7}){3,4}(?![\w-])|(?<![\w.,-])\d{5}(?:-| - )\d{4}(?![\w-])",
        _phone,
        DIGITS,
    ),
    rule(r"(?<![\w.,-])\d{3} ?- ?\d{4}(?![\w-]|[.,]\d)", _short_phone, DIGITS),
    rule(
        r"(?:[Cc]all(?:ed|ing)?|[Dd]ial(?:ed|ing)?|[Cc]alls? to|[Tt]o) (?P<take>[2-9]11)(?![\w]|[.,]\d)",
        lambda m: one_by_one(m["take"]),
        DIGITS,
    ),
    rule(
        r"(?<![\w.,])[2-9]11(?= (?:calls?|operators?|dispatch\w*|cent(?:er|re)s?|lines?)\b)", lambda m: one_by_one(m[0]), DIGITS
    ),
    rule(r"(?i:zip(?: code)?|post(?:al )?code):? (?P<take>\d{5})(?![\w-]|[.,]\d)", lambda m: one_by_one(m["take"]), DIGITS),
    rule(r"(?<![A-Z])[A-Z]{2} (?P<take>\d{5})(?=$|[,.;]|\n)(?![.,]\d)", _zip, DIGITS),
    rule(r"(?<![\w.,$£€])(?<![$£€] )(?P<take>\d{1,3}(?:\.\d{3}){2,4}(?:,\d{1,2})?)(?![\w]|[.,]\w)", _continental, "."),
    rule(
        r"(?<![\w.,$£€])(?<![$£€] )(?<!\d )\d{1,3}(?:(?: \d{3})+,\d{1,2}|(?:'\d{3})+)(?![\w']|[.,]\d)",
        lambda m: number(re.sub("[ ']", "", m[0]).replace(",", ".")),
        " '",
    ),
    rule(r"(?<![\w.,])(?P<y>\d{4})[.](?P<m>\d{2})[.](?P<d>\d{2})(?![\w.])", _day, DIGITS),
    rule(r"(?<![\w.,])(?P<d>[0-3]?\d)\.(?P<m>[01]?\d)\.(?P<y>(?:1[5-9]|20)\d\d)(?![\w]|\.\d)", _day, DIGITS),
    rule(
        r"(?<![\w.,$£€])(?<![$£€] )(?P<v>[vV]\.?)?(?P<n>\d{1,9}(?:\.\d{1,9}){2,8})"
        r"(?:(?P<sign>[:/])(?P<port>\d{1,5})(?![\w:/]))?(?!\w|\.\w)",
        _dotted,
        DIGITS,
    ),
    rule(r"(?<![\w.])(?:v(?P<n>\d{1,4}(?:\.\d{1,4})?)|V(?P<large>\d{1,4}\.\d{1,4}))(?![\w]|\.\d)", _v, "vV"),
    # dates
    rule(
        r"(?<![\w/.,-])(?P<y>\d{4})-(?P<m>\d{2})-(?P<d>\d{2})T(?P<h>[01]\d|2[0-3]):(?P<min>[0-5]\d)"
        r"(?::(?P<s>[0-5]\d)(?:\.\d{1,9})?)?(?P<zone>Z|[+-]\d{2}:?\d{2})?(?!\w)",
        _timestamp,
        "T",
    ),
    rule(rf"(?<!\w)(?P<take>(?:{_WEEKDAY_NAMES})\b\.?)(?=,? ?(?:\d{{1,2}}(?:st|nd|rd|th)? )?{MONTH}(?!\w))", _weekday, DIGITS),
    rule(rf"(?<![\w.])(?:{_WEEKDAY_NAMES})\.?(?=[-–—](?:{_WEEKDAY_NAMES})(?!\w))", _weekday, "-–—"),
    rule(rf"(?:(?<=\ufffc)|(?<=day))(?P<take>[-–—])(?={_WEEKDAY_NAMES}\b)", " to ", "-–—"),
    rule(rf"(?<=\ufffc)(?:{_WEEKDAY_NAMES})(?!\w)\.?", _weekday, "-–—"),
    rule(r"(?<![\w.])(?:Mon|Tues?|Thur?s?|Fri)\.(?!\w)", _weekday, "."),
    rule(r"(?<!\w)(?P<half>FY|CY) ?'?(?P<n>(?:19|20)?\d\d)(?!\w)", lambda m: f"{' '.join(m['half'])} {_year_of(m['n'])}", "Y"),
    rule(r"(?<![\w.,])(?P<n>1\d{3}|2[0-2]\d{2})(?= (?:B\.?C|A\.?D|CE\b))", lambda m: _early_year(m["n"]), "BAC"),
    rule(
        r"\b(?:[Ii]n|[Ss]ince|[Bb]y|[Uu]ntil|AD|A\.D\.|year) (?P<take>1[0]\d\d|2[12]\d\d)(?![\w:%-]|[.,]\d| [a-z]+s\b)",
        lambda m: _early_year(m["take"]),
        "12",
    ),
    rule(r"(?<![\w.])(?P<take>[bd]\.)(?= ?(?:c\. ?)?1\d\d\d(?!\d))", lambda m: "born" if m["take"][0] == "b" else "died", "."),
    rule(r"(?<![\w/.,-])(?P<y>\d{4})([-/])(?P<m>\d{1,2})\2(?P<d>\d{1,2})(?![\w/-]|[.,]\d)", _day, "-/"),
    rule(r"(?<![\w/.,-])(?P<m>\d{1,2})([-/])(?P<d>\d{1,2})\2(?P<y>(?:1[5-9]|20)\d\d|\d\d)(?![\w/-]|[.,]\d)", _day, "-/"),
    rule(
        rf"(?<!\w)(?P<month>{MONTH}) (?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: ?[-–—] ?(?P<to>\d{{1,2}})(?:st|nd|rd|th)?)?"
        r"(?:(?P<comma>,)? (?P<y>(?:1\d|20)\d\d)(?!\w|[.,:]\d))?(?![\w:/%-]|[.,]\d)",
        _day_after_month,
        DIGITS,
    ),
    rule(
        rf"(?<![\w.,:/$-])(?P<d>\d{{1,2}})(?:st|nd|rd|th)?(?: ?[-–—] ?(?P<to>\d{{1,2}})(?:st|nd|rd|th)?)?(?: of)? "
        rf"(?P<month>{MONTH})(?!\w)(?:,? (?P<y>(?:1\d|20)\d\d)(?!\w|[.,:]\d))?",
        _day_before_month,
        DIGITS,
    ),
    rule(rf"(?<!\w)(?P<name>{'|'.join(MONTHS)})\.(?=,? (?:\d|and\b|to\b|of\b|[a-z]))", _month, "."),
    rule(
        rf"(?<!\w)(?P<name>{'|'.join(m for m in MONTHS if m not in ('May', 'Mar', 'Dec', 'Jan'))})\.?(?= (?:\d|\ufffc))",
        _month,
        DIGITS,
    ),
    rule(
        rf"{FREE}(?P<amount>{NUM}) ?[x×*·] ?10(?:\^\(?)?(?P<e>[-−+]?\d{{1,4}}(?=\)|\D|$)|[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{{1,4}})\)?(?!\d)",
        lambda m: f"{number(m['amount'])} times ten{_exponent(m['e'])}",
        "^⁰¹²³⁴⁵⁶⁷⁸⁹",
    ),
    rule(rf"{FREE}(?P<amount>{NUM})[eE](?P<e>[-+−]\d{{1,3}})(?!\w)", _scientific, "eE"),
    rule(r"(?<![\w.,:-])(?P<amount>\d(?:\.\d+)?)[eE](?P<e>\d{1,3})(?![\w:])", _scientific, "eE"),
    # decades, plurals, years
    rule(
        r"(?<![\w.,$£€])(?<![$£€] )(?<!\d )(?P<n>\d{1,3}(?: \d{3})* (?:000|\d{3} \d{3}))(?![\w]| \d|[.,]\d)",
        lambda m: number(m["n"].replace(" ", "")),
        DIGITS,
    ),
    rule(r"(?<![\w.,$£€'])(?P<c>1\d|20)(?P<t>\d)0'?s(?!\w)", _decade, DIGITS),
    rule(r"(?<![\w.,$£€])(?P<apostrophe>')?(?P<t>[1-9])0'?s(?!\w)", _tens, DIGITS),
    rule(r"(?<![\w.,$£€])(?:(?P<apostrophe>')|(?<=[Tt]he )|(?<=early )|(?<=late )|(?<=mid-))(?P<t>0)0s(?!\w)", _tens, DIGITS),
    rule(r"(?<![\w'.,])'(?P<n>\d\d)(?![\w']|[.,:]\d)", lambda m: _year_of(m["n"]), "'"),
    rule(
        r"(?<![\w.,$£€])(?P<n>\d{3,4})s(?!\w)|(?<=[A-Za-z]-)(?P<m>\d{1,3})s(?!\w)",
        lambda m: _several(m) if m["n"] else plural_of_number(cardinal(m["m"])),
        DIGITS,
    ),
    rule(
        r"(?<![\w.,$/-])(?P<a>(?:1\d|20)\d\d)[-–—/](?P<b>\d\d)(?![\w/-]|[.,:]\d)",
        lambda m: f"{years(m['a'])} to {_year_of(m['b'])}" if int(m["b"]) > int(m["a"][2:]) else None,
        "-–—/",
    ),
    rule(
        rf"(?<!\w)(?P<sign>{_SIGN})[-−](?P<amount>{NUM})(?P<to>(?!)x)?{SCALE}?(?![.,]?\d)(?!\w)",
        lambda m: f"minus {_money(m)}",
        "-−",
    ),
    rule(r"(?<![\w.)\ufffc^])(?<!\^[({])[-−](?=[$£€¥]?\.?\d)", "minus ", "-−"),
    rule(r"(?<![\w/.,-])(\d{1,9})[ -](\d{1,2})/(\d{1,3})(?![\w/-]|[.,]\d)", _mixed, "/"),
    rule(r"(?<![\w:.,])(?P<h>1?\d)\.(?P<m>[0-5]\d)(?P<s>(?!)x)?" + rf" ?{_HALF}(?!\w)", _hour, DIGITS),
    rule(r"(?<![\w:.,])(?P<h>[01]\d|2[0-3])(?P<m>[0-5]\d)(?= hours\b)", _military, DIGITS),
    rule(rf"\b(?:{_BOOKS}) (?P<take>\d{{1,3}}:\d{{1,3}})(?![\w:])", lambda m: " ".join(map(cardinal, m["take"].split(":"))), ":"),
    # times; ranges are read as two numbers with "to" between
    rule(rf"(?<![\w:$£€])(?<!\d[.,])(?P<h>\d{{1,2}})(?::(?P<m>[0-5]\d)(?::(?P<s>[0-5]\d))?)?(?: ?{_HALF})(?!\w)", _hour, DIGITS),
    rule(
        r"(?<![\w:$£€])(?<!\d[.,])(?P<h>[01]?\d|2[0-4]):(?P<m>[0-5]\d)(?::(?P<s>[0-5]\d)(?![.,]\d))?(?![\w:]|[.,]\d)(?P<half>)",
        _hour,
        ":",
    ),
    rule(r"(?<![\w:.,])\d+(?P<take>:)\d+(?![\w:]|[.,]\d)", " to ", ":"),
    rule(
        rf"(?<!\w)(?P<sign>{_SIGN}) ?(?P<amount>\d{{1,9}},\d\d|\d{{1,3}}(?:\.\d{{3}}){{2,4}}|\d{{1,3}}(?: \d{{3}}){{1,4}})"
        r"(?P<to>(?!)x)?(?P<word>(?!)x)?(?P<letter>(?!)x)?(?![.,]?\d)(?!\w)",
        _money,
        _MONEY_SIGNS,
    ),
    rule(
        rf"(?<!\w)(?P<sign>{_SIGN}) ?(?P<amount>{NUM})(?! ?[-–—] ?[$£€])(?: ?[-–—] ?(?P<to>{NUM}))?{SCALE}?(?![.,]?\d)(?!\w)",
        _money,
        _MONEY_SIGNS,
    ),
    rule(rf"(?<!\w)(?P<sign>{_SIGN}) ?(?P<amount>{NUM})(?P<to>(?!)x)?{SCALE}?(?![.,]?\d)(?!\w)", _money, _MONEY_SIGNS),
    rule(rf"(?<=\ufffc)/(?P<per>{_PER_NAMES})(?!\w)", lambda m: f" per {PER_UNITS.get(m['per']) or UNITS[m['per']]}", "/"),
    rule(rf"(?<!\w)(?P<sign>{either(CODES)}) ?(?P<amount>{NUM})(?P<to>(?!)x)?{SCALE}?(?![.,]?\d)(?!\w)", _money, DIGITS),
    rule(
        rf"{FREE}(?:(?P<lower>{NUM}) ?[-–—] ?)?(?P<amount>{NUM})(?P<to>(?!)x)?{SCALE}? ?(?P<sign>[€£¥₹₩₽₺₪]|\$(?!\d)"
        rf"|(?:{either(CODES)})(?!\w))",
        lambda m: (f"{number(m['lower'])} to " if m["lower"] else "") + _money(m),
        DIGITS,
    ),
    rule(rf"{FREE}(?P<amount>{NUM}) ?(?P<sign>¢)", _cents, "¢"),
    rule(r"(?<![\w/.,-])\d+(?P<take>-)(?=\d+(?:[-+×x*/]\d+)* ?= ?\d)", " minus ", "="),
    rule(
        r"(?<![\w/.,-])(?:\d+(?:[.,]\d+)*)(?:%|°[CF]?|[A-Za-z]{1,4}(?=\s?[-–—]))?(?P<take>-"
        r"|\s?[–—]\s?)(?=\d+(?:[.,]\d+)*(?:[A-Za-z%°]{0,5})(?![\w/-]))",
        " to ",
        "-–—",
    ),
    rule(r"(?:(?<=\ufffc)|(?<=\d))(?P<take>-| ?[–—] ?)(?=\ufffc)|(?<=\ufffc)(?P<then>-| ?[–—] ?)(?=[$£€]?\d)", " to ", "-–—"),
    rule(r"(?<=\d)-(?=\d)", _between_digits, "-"),
    rule(
        r"(?<=[\d\ufffc%]) - (?=[$£€]?[\d\ufffc])",
        lambda m: " minus " if re.match(r"[^=\n]{0,24}=", m.string[m.end() : m.end() + 25]) else " to ",
        "-",
    ),
    # fractions
    rule(
        r"(?<![\w/.,-])(?P<n>\d{1,3}(?:\.\d{1,2})?)/(?P<of>\d{1,4})(?= stars?\b)"
        r"|(?<![\w/.,-])(?P<score>\d{1,3}\.\d{1,2})/(?P<most>\d{1,4})(?![\w/-]|[.,]\d)"
        r"|(?<![\w/.,-])(?P<points>[2-9]|\d\d)/100(?![\w/-]|[.,]\d)",
        _score,
        "/",
    ),
    rule(
        r"(?<![\w/-])(?<!\d[.,])(\d+)/(\d+)(?:/365)?(?:(?P<gap>[ -]?)" + _SAFE_UNIT + _PER_UNIT + r")?(?![\w/-]|[.,]\d)",
        _quotient,
        "/",
    ),
    rule(rf"{FREE}(?P<whole>\d{{1,15}}) ?(?P<part>[{_VULGAR}])", _mixed_vulgar, _VULGAR),
    # numbers with something attached
    rule(r"(?<=\w)\^[({]?(?P<n>[-−]?(?:\d{1,9}|[a-zA-Z]))[)}]?(?!\w)", _power, "^"),
    rule(r"(?<![\w.,])(\d{3,4})([pi])(?!\w)", _resolution, DIGITS),
    rule(
        r"(?<=\d) ?[x×] ?(?=\d)", lambda m: "times" if re.match(r"[\d.,]+ ?=", m.string[m.end() : m.end() + 24]) else "by", "x×"
    ),
    rule(r"(?<!\w)401\(?k\)?(?!\w)", "four oh one k", "4"),
    rule(r"(?<![\w.,°])(?<!° )(\d{1,2})['′] ?(\d{1,2}(?:\.\d+)?)(?:[\"″]|''|(?!\w))", _feet, "'′"),
    rule(
        r"(?<![\w.,])(\d+)° ?(\d+)[′'](?: ?(\d+(?:\.\d+)?)[″\"])?(?: ?([NSEW])(?!\w))?",
        lambda m: (
            f"{cardinal(m[1])} degrees {cardinal(m[2])} minutes"
            + (f" {number(m[3])} seconds" if m[3] else "")
            + (f" {_QUARTERS[m[4]]}" if m[4] else "")
        ),
        "°",
    ),
    rule(rf"{FREE}(?P<amount>{NUM})\"(?!\w)", _inches, '"'),
    rule(
        rf"{FREE}(?<!:)(?<![A-Za-z]\d-)(?<![A-Za-z]\d\d-)(?P<amount>{NUM})(?P<letter>k|K|M|B|bn|Bn|mn|tn)(?![\w:])",
        _magnitude,
        "kKMBn",
    ),
    rule(rf"{FREE}(?P<n>{INT})Ks(?!\w)", lambda m: f"{number(m['n'])} Ks", "K"),
    rule(
        rf"{FREE}(?P<amount>{NUM})m(?= (?:people|users|views|viewers|copies|customers|downloads|subscribers|jobs|homes|dollars"
        r"|pounds|euros|barrels|visitors|residents|followers|voters|workers|children|tourists|passengers|tons|tonnes)\b)",
        lambda m: f"{number(m['amount'])} million",
        "m",
    ),
    rule(rf"(?<![\w.,])\d{{1,3}},\d{{1,2}}(?=[ -]?(?:{'|'.join(_SCALE_WORDS)}|percent|%)(?!\w))", _decimal_comma, ","),
    rule(rf"(?<![\w.,])\d{{1,3}},\d{{1,2}}(?=[ -]?(?:{_SAFE_UNIT_NAMES})(?!\w))", _decimal_comma, ","),
    rule(
        r"(?<![\w.,])(?P<feet>\d+) ?(?:ft\.?|feet|foot) (?P<inches>\d+(?:\.\d+)?) ?(?:in(?:ches)?\b\.?|\")", _feet_and_inches, "f"
    ),
    rule(r"(?<![\w.,])(?P<n>\d+(?:\.\d+)?)° ?(?P<where>[NSEW])(?!\w)", lambda m: _latitude(number(m["n"]), m["where"]), "°"),
    rule(
        rf"{FREE}(?P<amount>{NUM})(?P<gap>[ -]?){_UNIT}{_PER_UNIT}(?!\w|['’]s\b)(?:(?<=[a-zA-Z])\.(?= [a-z]|,))?", _unit, DIGITS
    ),
    rule(rf"(?<=\ufffc)(?P<gap>[ -]?){_SAFE_UNIT}{_PER_UNIT}(?!\w)", _unit_after, DIGITS),
    rule(rf"{FREE}(?P<n>{NUM})x(?!\w)", _times, "x"),
    rule(r"\b(?=[A-Za-z]{1,12}\d)(?:[A-Z][a-z]?\d{0,3}){1,10}\b", _formula, DIGITS),
    rule(rf"{FREE}(?P<n>1?\d(?:st|nd|rd|th)) c\.(?!\w)", lambda m: f"{ordinal(m['n'][:-2])} century", "c"),
    rule(rf"{FREE}(?P<n>{INT})(?:st|nd|rd|th|ST|ND|RD|TH)(?!\w)", lambda m: ordinal(m["n"].replace(",", "")), DIGITS),
    rule(
        r"\b(?P<kind>Boeing|Flight|flight|Room|room|Route|Highway|Interstate) (?P<take>\d{3})(?!\w|[.,]\d)", _designation, DIGITS
    ),
    # Roman numerals
    rule(r"\bWW ?(?P<n>II?|[12])\b", lambda m: "World War " + ("two" if m["n"] in ("II", "2") else "one"), "W"),
    rule(r"\bM(?:M|CM|D|C|L|X)[MDCLXVI]{2,9}\b", lambda m: years(str(value)) if (value := roman(m[0])) else None, "M"),
    rule(r"(?<!\w)(?P<take>[IVXLC]{2,}(?:th|st|nd|rd)?|[VX](?:th)?)(?= (?:[Cc]entur|[Dd]ynast))", _century, "IVX"),
    rule(rf"\b(?:{NUMBERED}) (?P<take>[IVXLCDM]{{1,9}})(?![\w'’-]\w|\w)", _numeral, "IVXLCDM"),
    rule(r"\b(?P<name>[A-Z][\w-]{1,30}) (?P<take>[IVXLCDM]{1,9})(?!\w|\.\w)", _ruler, "IVXLCDM"),
    # numbers alone
    rule(rf"(?<![A-Za-z\d])(?<!\d[A-Fa-f]:)(?<![A-Fa-f]\d:)(?<!\d[.,:/]){NUM}(?![A-Za-z]|[.,:/]?\d|:[A-Za-z])", _alone, DIGITS),
    rule(
        r"(?<![A-Za-z\d])(?<!\d[A-Fa-f]:)(?<![A-Fa-f]\d:)(?<!\d[:.,/])(?>\d+(?:[.,:/-]\d+)*)(?![A-Za-z\d]|[:.,][A-Za-z\d])",
        _rest,
        DIGITS,
    ),
    # signs
    rule(
        rf"\ufffc [a-z]{{2,20}}(?P<take>/(?:{_PER_NAMES}))(?!\w)",
        lambda m: f" per {PER_UNITS.get(m['take'][1:]) or UNITS[m['take'][1:]]}",
        "/",
    ),
    rule(r"(?<=\ufffc) ?(?P<take>/)(?= ?(?:[a-z]+\b))", " per ", "/"),
    rule(r"(?<![A-Za-z][A-Za-z])(?<=[\w\ufffc)])(?P<n>[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,9})", _power, "⁰¹²³⁴⁵⁶⁷⁸⁹"),
    rule(r"(?<![A-Za-z])(?:[kcm]m|mi|ft|in|yd)(?P<take>[²³])", lambda m: _exponent(m["take"]), "²³"),
    rule(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,9}|[†‡]", "", "⁰¹²³⁴⁵⁶⁷⁸⁹†‡"),  # marks of footnotes
    rule(r"(?<![\w\ufffc+])\+(?=[$£€\ufffc])", "plus ", "+"),
    rule(rf"(?<!\S)[{re.escape(''.join(SYMBOLS))}](?!\S)", _symbol, "".join(SYMBOLS)),
    rule(r"(?<=\ufffc)\+(?=\ufffc)|(?<=[\w\ufffc])\+(?=\s|$|[.,;!?])", "plus", "+"),
    rule(r"(?<=\ufffc)=(?=\ufffc)|(?<=\w)=(?=\ufffc)", "equals", "="),
    rule(r"(?<=[\w\ufffc]) ?(?P<take>[−÷])(?= ?[\w\ufffc])", lambda m: {"−": " minus ", "÷": " divided by "}[m["take"]], "−÷"),
    rule(r"√(?=[\w\ufffc(])", "square root of ", "√"),
    rule(r"[~≈](?=\ufffc)", "about ", "~≈"),
    rule(
        r"(?<![\w\ufffc])(?:(?P<less><)|(?P<more>>)|(?P<most>≤)|(?P<least>≥)|(?P<both>±))(?=\ufffc)",
        lambda m: {
            "less": "less than ",
            "more": "more than ",
            "most": "at most ",
            "least": "at least ",
            "both": "plus or minus ",
        }[m.lastgroup or ""],
        "<>≤≥±",
    ),
    rule(
        r"(?<=[\w\ufffc])(?:%|‰)|§ ?(?=\ufffc)|©",
        lambda m: " percent" if m[0] == "%" else " per mille" if m[0] == "‰" else "section " if m[0][0] == "§" else "copyright",
        "%‰§©",
    ),
    rule(rf"[{_VULGAR}]", _symbol, _VULGAR),
    rule(r"&(?:amp;)?", lambda m: " and ", "&"),
]
