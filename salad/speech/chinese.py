"""How numbers, signs and units are read aloud in Chinese (Mandarin): `RULES`, in order (see `salad.speech.english`).

num2words has no Chinese, and cn2an's rules rewrite more than numbers without saying where: numerals are made here."""

import re

from salad.speech.reading import DIGITS, addresses, either, parted, rule

_DIGIT = dict(zip("0123456789", "零一二三四五六七八九", strict=True))
_PLACES = ["", "十", "百", "千"]
_GROUPS = ["", "万", "亿", "万亿"]
NUM = r"(?>(?:\d{1,3}(?:,\d{3})+|\d+)(?!\d)(?:\.\d+)?)"
FREE = r"(?<![A-Za-z\d.,])"
END = r"(?![A-Za-z\d]|[.,]\d)"


def one_by_one(digits: str) -> str:
    """E.g. "007" → "零零七"."""
    return "".join(_DIGIT[d] for d in digits if d in _DIGIT)


def cardinal(digits: str) -> str:
    """E.g. "10500" → "一万零五百". More than 16 digits, or a leading zero: digit by digit."""
    if len(digits) > 16 or (len(digits) > 1 and digits[0] == "0"):
        return one_by_one(digits)
    value = int(digits)
    if value == 0:
        return "零"
    groups = []
    while value:
        groups.append(value % 10_000)
        value //= 10_000
    reading = ""
    for power in reversed(range(len(groups))):
        group = groups[power]
        if group:
            if reading and (group < 1000 or groups[power + 1] % 10 == 0 and groups[power + 1] == 0):
                reading += "零"
            reading += _group(group) + _GROUPS[power]
    if reading.startswith("一十"):
        return reading[1:]
    return "两" + reading[1:] if reading[:2] in ("二千", "二万", "二亿") else reading


def _group(value: int) -> str:
    reading, gap = "", False
    for place in reversed(range(4)):
        digit = value // 10**place % 10
        if digit:
            reading += ("零" if gap and reading else "") + _DIGIT[str(digit)] + _PLACES[place]
            gap = False
        else:
            gap = True
    return reading


def number(text: str) -> str:
    """E.g. "3.14" → "三点一四"."""
    whole, point, decimals = text.replace(",", "").partition(".")
    return cardinal(whole) + (f"点{one_by_one(decimals)}" if point else "")


def counted(text: str) -> str:
    """A number before a measure word: "2" → "两"."""
    return "两" if text == "2" else number(text)


UNITS = {
    "km/h": "公里每小时", "m/s": "米每秒", "km²": "平方公里", "m²": "平方米", "m³": "立方米", "km": "公里", "cm": "厘米",
    "mm": "毫米", "m": "米", "kg": "公斤", "g": "克", "mg": "毫克", "t": "吨", "L": "升", "l": "升", "ml": "毫升", "mL": "毫升",
    "h": "小时", "min": "分钟", "s": "秒", "ms": "毫秒", "W": "瓦", "kW": "千瓦", "kWh": "千瓦时", "V": "伏", "Hz": "赫兹",
    "kHz": "千赫兹", "MHz": "兆赫兹", "GHz": "吉赫兹", "KB": "千字节", "MB": "兆字节", "GB": "吉字节", "TB": "太字节",
    "dB": "分贝", "°": "度", "℃": "摄氏度", "°C": "摄氏度", "° C": "摄氏度", "°F": "华氏度",
}  # fmt: skip
MONEY = {"¥": "元", "￥": "元", "$": "美元", "US$": "美元", "€": "欧元", "£": "英镑", "HK$": "港元"}
_CODES = {"RMB": "元", "CNY": "元", "USD": "美元", "EUR": "欧元", "GBP": "英镑", "JPY": "日元", "HKD": "港元"}
_SCALES = {"万": "万", "亿": "亿", "千": "千", "百万": "百万", "k": "千", "K": "千", "M": "百万", "B": "十亿"}
_K = {"k": 1_000, "K": 1_000, "M": 1_000_000, "B": 1_000_000_000}
MEASURES = "个只条张本位名台辆天年岁次种件杯瓶把头匹座家间层块斤米公里小时分钟秒周点倍口片棵朵双对人万亿千個隻條張輛臺顆雙塊萬億"
SYMBOLS = {
    "&": "和", "=": "等于", "+": "加", "×": "乘", "÷": "除以", "≈": "约", "<": "小于", ">": "大于", "≤": "不超过",
    "≥": "至少", "±": "正负", "−": "减", "%": "百分号", "½": "二分之一", "¼": "四分之一", "¾": "四分之三", "→": "到",
    "°": "度",
}  # fmt: skip


def _date(match: re.Match) -> str | None:
    month, day = int(match["m"]), int(match["d"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{one_by_one(match['y'])}年{cardinal(str(month))}月{cardinal(str(day))}日"


def _clock(match: re.Match) -> str | None:
    hour, minute = int(match["h"]), int(match["min"])
    reading = f"{counted(str(hour))}点"
    if minute:
        reading += f"{'零' if minute < 10 else ''}{cardinal(str(minute))}分"
    return reading + (f"{cardinal(str(int(match['s'])))}秒" if match["s"] else "")


def _large(text: str, scale: str) -> str:
    if scale in _K and "." not in text:
        return cardinal(str(int(text.replace(",", "")) * _K[scale]))
    if scale in _K:
        whole = round(float(text.replace(",", "")) * _K[scale])
        return cardinal(str(whole))
    return number(text) + scale


def _money(match: re.Match) -> str:
    scale = match["scale"]
    return (_large(match["amount"], scale) if scale else counted(match["amount"])) + MONEY[match["sign"]]


def _site(address: str) -> str:
    names = {"@": "艾特", ".": "点", "-": "杠", "_": "下划线"}
    pieces = (
        names.get(piece) or re.sub(r"\d+", lambda m: one_by_one(m[0]), parted(piece)) for piece in re.split(r"([@.\-_])", address)
    )
    return " ".join(piece for piece in pieces if piece.strip())


def _phone(match: re.Match) -> str:
    digits = match["take"] if "take" in match.re.groupindex else match[0]
    return ("加" if digits[0] == "+" else "") + one_by_one(digits).replace("一", "幺")


def _year(match: re.Match) -> str:
    """Two digits before 年: the year of a century ("98年"), else a span ("20年")."""
    digits = match["take"]
    if len(digits) == 4 or digits[0] == "0":
        return one_by_one(digits)
    asked = re.search(
        r"[近约過过满滿整第每了达達有共超历歷经經]$|未来$|过去$|將近$|将近$",
        match.string[max(match.start() - 3, 0) : match.start()],
    )
    return cardinal(digits) if asked or int(digits) < 49 or digits[1] == "0" else one_by_one(digits)


def _address(match: re.Match) -> str:
    return "点".join(one_by_one(group) for group in match[0].split("."))


def _version(match: re.Match) -> str:
    return match[0][0] + "点".join(cardinal(group) for group in match[0][1:].split("."))


def _rest(match: re.Match) -> str:
    names = {".": "点", ",": "，", ":": "比", "/": "，", "-": "，"}
    groups = re.split(r"([.,:/-])", match[0])
    return "".join(names.get(g) or (one_by_one(g) if g[0] == "0" else cardinal(g)) for g in groups if g)


_SCALE = rf"(?P<scale>{either(_SCALES)})"
BEFORE_LAYOUT = addresses(_site)
RULES = [
    rule(r"(?<![A-Za-z\d.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])", _address, "."),
    rule(r"(?<![A-Za-z\d])[vV]\d{1,4}(?:\.\d{1,6}){1,4}(?![A-Za-z\d])", _version, "vV"),
    rule(
        r"(?<![\dA-Za-z-])(?:\+86[ -]?)?(?:1[3-9]\d{9}|1[3-9]\d[ -]\d{4}[ -]\d{4}|0\d{2,3}[ -]\d{7,8})(?!\d)"
        r"|(?<![\dA-Za-z-])[48]00[ -]?\d{3}[ -]?\d{4}(?!\d)",
        _phone,
        DIGITS,
    ),
    rule(r"(?<!\d)(?:110|119|120|911)(?=报警|急救|电话)", _phone, DIGITS),
    rule(r"(?:拨打|拨|致电|电话|热线|客服)(?:：|:)? ?(?P<take>\d{3,6})(?!\d|[.,年月日个元次])", _phone, DIGITS),
    rule(r"邮(?:政)?编码?(?:：|:|是|为)? ?(?P<take>\d{6})(?!\d)", lambda m: one_by_one(m["take"]), DIGITS),
    rule(r"(?<!\d)\d{3,4}(?=室|号房|房间|次列车|次航班)", lambda m: one_by_one(m[0]), DIGITS),
    rule(
        r"(?<!\d)(?:985|211)(?=高校|院校|大学|工程|、|/)|(?<!\d)301(?=医院)|(?<!\d)996(?=工作|制)",
        lambda m: one_by_one(m[0]),
        DIGITS,
    ),
    rule(
        r"(?<!\d)(?P<a>\d{4})(?:年)? ?[-–—~～至到] ?(?P<b>\d{4})(?=年)",
        lambda m: f"{one_by_one(m['a'])}{'年' if '年' in m[0] else ''}到{one_by_one(m['b'])}",
        DIGITS,
    ),
    rule(r"(?<!\d)(?P<y>\d{4})(?:年|[-/.])(?P<m>\d{1,2})(?:月|[-/.])(?P<d>\d{1,2})(?:日|号|(?!\d))", _date, DIGITS),
    rule(r"(?<!\d)(?P<take>\d0)(?=年代)", lambda m: cardinal(m["take"]), DIGITS),
    rule(r"(?<!\d)(?P<take>\d{4}|\d{2})(?=年(?!前|后|来|间|内|以))", _year, DIGITS),
    rule(r"(?<![\d:.])(?P<h>[01]?\d|2[0-4]):(?P<min>[0-5]\d)(?::(?P<s>[0-5]\d))?(?![\d:])", _clock, ":"),
    rule(r"(?<=\d)(?P<take> ?: ?)(?=\d)", "比", ":"),
    rule(rf"{FREE}(?P<a>{NUM})%? ?[-–—~至到] ?(?P<b>{NUM})%", lambda m: f"百分之{number(m['a'])}到百分之{number(m['b'])}", "%"),
    rule(r"(?<![\w.)\ufffc])[-−](?=[¥$€£]?\d)", "负", "-−"),
    rule(r"(?<![\w.)\ufffc])\+(?=\d)", "正", "+"),
    rule(r"±(?=\d)", "正负", "±"),
    rule(r"(?<![\w.])\.(?P<n>\d+)(?!\d|\.\d)", lambda m: f"零点{one_by_one(m['n'])}", "."),
    rule(r"(?:(?<=[月日号点分时年\ufffc]))(?P<take>[-–—~～])(?=[\d\ufffc])", "到", "-–—~～"),
    rule(r"(?<!\d)(\d{1,9})/(\d{1,9})(?![\d/])", lambda m: f"{cardinal(m[2])}分之{cardinal(m[1])}", "/"),
    rule(rf"{FREE}({NUM})%", lambda m: f"百分之{number(m[1])}", "%"),
    rule(rf"{FREE}({NUM})‰", lambda m: f"千分之{number(m[1])}", "‰"),
    rule(r"(?<=\d)(?P<take> ?[-–—~] ?)(?=\d)", "到", "-–—~"),
    rule(rf"(?P<sign>{either(MONEY)}) ?(?P<amount>{NUM}){_SCALE}?(?:元|美元|欧元|英镑)?", _money, "".join(MONEY)),
    rule(
        rf"(?<![A-Za-z\d])(?P<sign>{either(_CODES)}) ?(?P<amount>{NUM}){_SCALE}?(?:元)?"
        rf"|{FREE}(?P<more>{NUM}) ?(?P<code>{either(_CODES)})(?![A-Za-z\d])",
        lambda m: (
            (_large(m["amount"], m["scale"]) if m["scale"] else counted(m["amount"])) + _CODES[m["sign"]]
            if m["sign"]
            else counted(m["more"]) + _CODES[m["code"]]
        ),
        DIGITS,
    ),
    rule(rf"{FREE}(?![48][kK])(?P<amount>{NUM})(?P<scale>[kKMB]){END}", lambda m: _large(m["amount"], m["scale"]), DIGITS),
    rule(
        rf"{FREE}(?P<amount>{NUM}) ?(?P<unit>{either(UNITS)})(?![A-Za-z\d])",
        lambda m: counted(m["amount"]) + UNITS[m["unit"]],
        DIGITS,
    ),
    rule(rf"第(?P<take>{NUM})", lambda m: number(m["take"]), "第"),
    rule(rf"{FREE}(?P<take>2)(?= ?[{MEASURES}])", "两", "2"),
    rule(rf"{FREE}{NUM}{END}", lambda m: number(m[0]), DIGITS),
    rule(r"(?<![A-Za-z\d])(?<!\d[.:/,])(?>\d+(?:[.,:/-]\d+)*)(?![A-Za-z\d]|[.:][A-Za-z\d])", _rest, DIGITS),
    rule(r"(?<![A-Za-z\d.@])@(?=[^\W\d_])", "艾特", "@"),
    rule(r"〇", "零", "〇"),
    rule(r"&(?:amp;)?", "和", "&"),
    rule(rf"(?<=[\s\w\ufffc])[{re.escape(''.join(SYMBOLS))}](?=[\s\w\ufffc])", lambda m: SYMBOLS[m[0]], "".join(SYMBOLS)),
]
