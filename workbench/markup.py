"""Words from a lab, a file or a person on a page: as words, never as markup. HTML is put together by markupsafe's Markup,
whose `format` and `join` escape; Markdown by `markdown` here."""

import re
import string

from markupsafe import Markup, escape

# Markdown's signs, where they can be one: an underscore not within a word, a colon that can begin a name (:smile:, http:),
# a list's or a heading's sign in front
_SIGNS = re.compile(
    r"[\\`*\[\]|~$^<>\n\r]|={2,}|_(?![A-Za-z0-9])|(?<![A-Za-z0-9])_|:(?=[A-Za-z:/_])|^[-#+]|(?<=^\d)[.)](?=\s)|(?<=^\d\d)[.)](?=\s)"
)


def _references(signs: re.Match) -> str:
    return "".join(f"&#{ord(sign)};" for sign in signs[0])


def plain(value: object) -> str:
    """`value` for a place in Markdown: HTML's and Markdown's own signs as character references, so that it reads as it is,
    in HTML as well. Not within backticks, where a reference is not read: `<code>{}</code>` takes their place."""
    text = str(escape(str(value)))
    # a character reference of HTML's own keeps its signs: & # ;
    return "".join(
        part if part.startswith("&") and part.endswith(";") else _SIGNS.sub(_references, part)
        for part in re.split(r"(&(?:#\d+|[a-z]+);)", text)
    )


class _Words(string.Formatter):
    """Formats as str.format, but what is put in is escaped; Markup is put in as it stands."""

    def format_field(self, value, format_spec):
        return str(value) if isinstance(value, Markup) else plain(format(value, format_spec))


def markdown(template: str, *values: object, **named: object) -> str:
    """`template` in Markdown with `values` in its places, none of which is read as markup."""
    return _Words().vformat(template, values, named)


def preformatted(text: object) -> str:
    """`text` as it stands, line for line, for a place of its own in Markdown."""
    return f"<pre>{plain(text)}</pre>"
