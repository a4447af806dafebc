"""Words, signs, units and names that the English reading rules (`salad.speech.english`) look up."""

ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "cf.": "compare", "viz.": "namely",
    "Mr.": "Mister", "Mrs.": "Missus", "Ms.": "Miz", "Prof.": "Professor", "approx.": "approximately", "Jr.": "Junior",
    "Messrs.": "Messieurs", "a.k.a.": "also known as", "al.": "al", "Inc.": "Incorporated", "Corp.": "Corporation",
    "Ltd.": "Limited", "Bros.": "Brothers", "Dept.": "Department", "dept.": "department", "Ave.": "Avenue",
    "Blvd.": "Boulevard", "Rd.": "Road", "Hwy.": "Highway", "Mt.": "Mount", "Assn.": "Association", "Univ.": "University",
    "Dr.": "Doctor", "St.": "Saint", "Fig.": "figure", "No.": "number", "a.m.": "A M", "p.m.": "P M", "U.S.": "U S",
    "U.K.": "U K", "Sr.": "Senior", "misc.": "miscellaneous", "govt.": "government", "est.": "established",
}  # fmt: skip
TITLES = {
    "Dr": "Doctor", "Gov": "Governor", "Sen": "Senator", "Rep": "Representative", "Gen": "General", "Col": "Colonel",
    "Lt": "Lieutenant", "Capt": "Captain", "Sgt": "Sergeant", "Maj": "Major", "Rev": "Reverend", "Hon": "Honorable",
    "Pres": "President", "Supt": "Superintendent", "Cmdr": "Commander", "Adm": "Admiral", "Pvt": "Private", "Sr": "Senior",
    "Cpl": "Corporal", "Fr": "Father", "Ft": "Fort", "Mt": "Mount",
}  # fmt: skip
BEFORE_NUMBER = {
    "No.": "number", "no.": "number", "Nos.": "numbers", "nos.": "numbers", "Fig.": "figure", "fig.": "figure",
    "Figs.": "figures", "figs.": "figures", "Vol.": "volume", "vol.": "volume", "Ch.": "chapter", "ch.": "chapter",
    "Chap.": "chapter", "Sec.": "section", "sec.": "section", "Eq.": "equation", "eq.": "equation", "Eqs.": "equations",
    "pp.": "pages", "p.": "page", "Art.": "article", "art.": "article", "Pt.": "part", "pt.": "part", "ca.": "circa",
    "c.": "circa", "Tab.": "table", "Apt.": "apartment", "apt.": "apartment", "Ste.": "suite", "Est.": "established",
    "est.": "established", "Ref.": "reference", "ref.": "reference", "Op.": "opus", "op.": "opus", "Bldg.": "building",
    "Ex.": "example", "ex.": "example", "Thm.": "theorem", "v.": "version", "tel.": "telephone", "Tel.": "telephone",
    "ext.": "extension", "Ext.": "extension", "Sect.": "section", "para.": "paragraph", "ver.": "version",
}  # fmt: skip
NO_STREET = frozenset("The A An In On At From To Of For And But Or As If When With By Near Is Was Are His Her My Our Their This "
                   "That Then So Saint See Dear Hello Hi Yes No Not After Before Since While Like Via I He She It We They You "
                   "Ask Thank Thanks Call Visit Meet".split())  # fmt: skip
BEFORE_SAINT = frozenset("Mount Mt Port Lake Fort Ft Bay Cape Sault East West North South New Old".split())
CURRENCIES = {
    "$": ("dollar", "cent"), "US$": ("US dollar", "cent"), "A$": ("Australian dollar", "cent"),
    "AU$": ("Australian dollar", "cent"), "C$": ("Canadian dollar", "cent"), "CA$": ("Canadian dollar", "cent"),
    "NZ$": ("New Zealand dollar", "cent"), "HK$": ("Hong Kong dollar", "cent"), "S$": ("Singapore dollar", "cent"),
    "R$": ("real", "centavo"), "£": ("pound", "penny"), "€": ("euro", "cent"), "¥": ("yen", ""), "₹": ("rupee", "paisa"),
    "₩": ("won", ""), "₽": ("ruble", "kopeck"), "₺": ("lira", "kurus"), "₪": ("shekel", "agora"), "฿": ("baht", "satang"),
    "₫": ("dong", ""), "₴": ("hryvnia", "kopeck"), "₦": ("naira", "kobo"), "₿": ("bitcoin", ""),
}  # fmt: skip
CODES = {
    "USD": "US dollar", "EUR": "euro", "GBP": "British pound", "JPY": "yen", "CNY": "yuan", "RMB": "yuan", "INR": "rupee",
    "AUD": "Australian dollar", "CAD": "Canadian dollar", "CHF": "Swiss franc",
    "CAD$": "Canadian dollar", "AUD$": "Australian dollar", "USD$": "US dollar", "Rs": "rupee", "Rs.": "rupee",
    "SEK": "Swedish krona", "NOK": "Norwegian krone", "DKK": "Danish krone", "NZD": "New Zealand dollar",
    "KRW": "won", "MXN": "Mexican peso", "BTC": "bitcoin",
}  # fmt: skip
SCALES = {
    "k": "thousand", "K": "thousand", "m": "million", "M": "million", "mn": "million", "mm": "million", "MM": "million",
    "mio": "million", "b": "billion", "B": "billion", "bn": "billion", "Bn": "billion", "BN": "billion", "t": "trillion",
    "T": "trillion", "tn": "trillion", "trn": "trillion",
}  # fmt: skip
UNITS = {
    "km": "kilometer", "cm": "centimeter", "mm": "millimeter", "m": "meter", "nm": "nanometer", "μm": "micrometer",
    "kg": "kilogram", "g": "gram", "mg": "milligram", "μg": "microgram", "mcg": "microgram", "t": "ton",
    "ml": "milliliter", "mL": "milliliter", "l": "liter", "L": "liter", "cl": "centiliter", "dl": "deciliter", "dL": "deciliter",
    "lb": "pound", "lbs": "pound", "oz": "ounce", "ft": "foot", "in.": "inch", "yd": "yard", "yds": "yard", "mi": "mile",
    "gal": "gallon", "qt": "quart", "tsp": "teaspoon", "tbsp": "tablespoon", "sq ft": "square foot",
    "sq. ft.": "square foot", "sq mi": "square mile", "sq km": "square kilometer", "sq m": "square meter",
    "cu ft": "cubic foot", "cc": "cubic centimeter", "ha": "hectare", "nmi": "nautical mile", "fl oz": "fluid ounce",
    "mph": "mile per hour", "kph": "kilometer per hour", "kmh": "kilometer per hour", "km/hr": "kilometer per hour",
    "mpg": "mile per gallon", "fps": "frame per second", "rpm": "revolution per minute", "bpm": "beat per minute",
    "wpm": "word per minute", "ppm": "part per million", "ppb": "part per billion", "dpi": "dot per inch",
    "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "dB": "decibel",
    "KB": "kilobyte", "kB": "kilobyte", "MB": "megabyte", "GB": "gigabyte", "TB": "terabyte", "PB": "petabyte",
    "kbps": "kilobit per second", "Mbps": "megabit per second", "Gbps": "gigabit per second", "Mb": "megabit", "Gb": "gigabit",
    "W": "watt", "kW": "kilowatt", "MW": "megawatt", "GW": "gigawatt", "kWh": "kilowatt hour", "MWh": "megawatt hour",
    "V": "volt", "kV": "kilovolt", "mV": "millivolt", "mA": "milliamp", "mAh": "milliamp hour", "Ω": "ohm",
    "J": "joule", "kJ": "kilojoule", "kcal": "kilocalorie",
    "kΩ": "kilohm", "MΩ": "megohm", "Å": "angstrom",
    "mW": "milliwatt", "pF": "picofarad",
    "nF": "nanofarad", "μF": "microfarad", "μA": "microamp", "mSv": "millisievert", "lm": "lumen", "kN": "kilonewton",
    "KM": "kilometer", "kms": "kilometer", "CM": "centimeter", "cms": "centimeter", "KG": "kilogram", "kgs": "kilogram",
    "LBS": "pound", "MPH": "mile per hour", "KPH": "kilometer per hour", "RPM": "revolution per minute",
    "PSI": "pound per square inch",
    "in": "inch", "cal": "calorie", "Pa": "pascal", "kPa": "kilopascal",
    "MPa": "megapascal", "hPa": "hectopascal", "psi": "pound per square inch", "atm": "atmosphere",
    "mmHg": "millimeter of mercury",
    "hp": "horsepower", "mol": "mole", "eV": "electron volt", "°C": "degree Celsius", "°F": "degree Fahrenheit",
    "° C": "degree Celsius", "° F": "degree Fahrenheit", "°": "degree", "%": "percent", "‰": "per mille",
    "min": "minute", "mins": "minute", "h": "hour", "hr": "hour", "hrs": "hour", "s": "second", "sec": "second", "secs": "second",
    "ms": "millisecond", "μs": "microsecond", "us": "microsecond", "ns": "nanosecond", "yr": "year", "yrs": "year", "mo": "month",
    "mos": "month", "wk": "week", "wks": "week", "px": "pixel", "pts": "point", "″": "inch", "′": "foot",
}  # fmt: skip
RULERS = frozenset(
    "Henry Louis Charles Edward George James William Richard Elizabeth Mary Philip Francis Frederick Napoleon Nicholas "
    "Alexander Peter Paul John Pius Benedict Gregory Leo Innocent Clement Urban Boniface Ivan Catherine Ferdinand Alfonso "
    "Carlos Juan Otto Wilhelm Ludwig Leopold Maximilian Joseph Rudolf Christian Gustav Gustavus Haakon Olav Harald Baldwin "
    "Ramses Ramesses Thutmose Amenhotep Ptolemy Cleopatra Darius Xerxes Cyrus Artaxerxes Mehmed Selim Murad Suleiman Theodosius "
    "Justinian Constantine Michael Robert Malcolm David Stephen Victor Emmanuel Umberto Albert Rama Sixtus Julius Celestine "
    "Eugene Adrian Hadrian Sancho Pedro Manuel Afonso Casimir Sigismund Franz Friedrich Karl Felipe Fernando Margaret Margrethe "
    "Isabella Anne Beatrix Willem Baudouin Philippe Henri Jean Zog Kamehameha Antiochus Seleucus Seti Psamtik Tiglath Sargon "
    "Nebuchadnezzar Mithridates Herod Agrippa Basil Romanos Alexios Andronikos Manuel Eric Valdemar Canute Magnus Sverre Edmund "
    "Aethelred Ethelred Bela Ladislaus Stanislaus Augustus Pierre Hassan Abdullah Hussein Faisal Mohammed Muhammad Rainier "
    "Victor Honorius Callixtus Martin Alexius Selassie Wenceslaus Sebastian Duarte".split()
)  # fmt: skip
SYMBOLS = {
    "&": "and", "=": "equals", "+": "plus", "×": "times", "÷": "divided by", "≈": "about", "≤": "at most", "≥": "at least",
    "<": "less than", ">": "greater than", "@": "at", "√": "square root of", "π": "pi", "→": "to", "±": "plus or minus",
    "≠": "is not equal to", "∞": "infinity", "−": "minus", "~": "about", "©": "copyright", "%": "percent", "°": "degrees",
    "¼": "one quarter", "½": "one half", "¾": "three quarters", "⅓": "one third", "⅔": "two thirds", "⅛": "one eighth",
    "⅜": "three eighths", "⅝": "five eighths", "⅞": "seven eighths", "⅕": "one fifth", "⅖": "two fifths", "⅗": "three fifths",
    "⅘": "four fifths", "⅙": "one sixth", "⅚": "five sixths", "€": "euros", "£": "pounds", "$": "dollars", "¢": "cents",
    "§": "section", "¶": "paragraph", "№": "number",
}  # fmt: skip
ELEMENTS = frozenset(
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Ti Cr Mn Fe Co Ni Cu Zn As Br Kr Ag Sn I Xe Ba Pt Au Hg Pb U".split()
)
QUOTIENTS = {"24/7": "twenty-four seven", "9/11": "nine eleven", "50/50": "fifty fifty", "20/20": "twenty twenty",
            "7/11": "seven eleven", "7/7": "seven seven", "24/7/365": "twenty-four seven three sixty-five"}  # fmt: skip
RESOLUTIONS = frozenset("240 360 480 540 576 720 900 1080 1440 2160 4320".split())
SLASHED = {"w/o": "without", "w/": "with", "and/or": "and or", "b/c": "because", "n/a": "N A", "N/A": "N A"}
ATTACHED_UNITS = frozenset(["t", "us", "V", "W", "J", "L", "cal", "mo", "mos", "pts", "cc", "in", "″", "′", "atm", "mi"])
QUALIFIED = (
    "dash run race sprint walk swim hike ride drive trek marathon course lap track relay hurdles freestyle butterfly "
    "backstroke breaststroke radius limit ruler bill note coin fine fee prize bounty deposit surcharge"
).split()  # "the 5 km run"
PER_UNITS = {"in": "inch", "week": "week", "month": "month", "year": "year", "person": "person",
    "night": "night", "min": "minute",
    "h": "hour", "hr": "hour", "s": "second", "sec": "second", "day": "day", "yr": "year",
"mo": "month",
        "wk": "week", "d": "day"}  # fmt: skip
NUMBERED = ("Chapter|Part|Volume|Vol\\.|Act|Scene|Book|Article|Section|Title|Phase|Type|Class|Level|Round|Canto|Stage|Figure|"
             "Table|Appendix|Division|Group|Category|Unit|Lesson|Mark|Model|Grade|Tier|Schedule|War|Bowl|Olympiad|"
             "chapter|part|volume|act|scene|book|article|section|phase|type|stage|figure|table|war|grade|class")  # fmt: skip
