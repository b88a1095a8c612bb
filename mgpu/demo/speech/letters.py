"""From English spelling to phones: a few irregular words, then rules tried in order.

The way of working (the first rule that matches at a place gives its phones and moves on) is that
of H. S. Elovitz and others, "Automatic translation of English text to phonetics by means of
letter-to-sound rules", NRL Report 7948 (1976); the rules are a much smaller set. Phones are
ARPAbet names.
"""

from __future__ import annotations

import re

_WORDS = {
    line.split()[0]: tuple(line.split()[1:])
    for line in """
a AX
an AX N
and AE N D
any EH N IY
are AA R
be B IY
been B IH N
busy B IH Z IY
come K AH M
could K UH D
do D UW
does D AH Z
done D AH N
every EH V R IY
eye AY
for F AO R
four F AO R
from F R AH M
give G IH V
gone G AO N
good G UH D
has HH AE Z
have HH AE V
he HH IY
here HH IH R
hour AW ER
i AY
into IH N T UW
is IH Z
live L IH V
love L AH V
many M EH N IY
me M IY
memory M EH M ER IY
minute M IH N AX T
move M UW V
nobody N OW B AA D IY
no N OW
of AH V
on AA N
one W AH N
only OW N L IY
or AO R
people P IY P AX L
said S EH D
says S EH Z
seven S EH V AX N
she SH IY
should SH UH D
so S OW
some S AH M
sure SH UH R
that DH AE T
the DH AX
their DH EH R
them DH EH M
there DH EH R
these DH IY Z
they DH EY
this DH IH S
those DH OW Z
to T UW
two T UW
very V EH R IY
want W AA N T
was W AH Z
water W AO T ER
we W IY
were W ER
what W AH T
where W EH R
who HH UW
with W IH DH
word W ER D
work W ER K
world W ER L D
would W UH D
you Y UW
your Y AO R
""".splitlines()
    if line
}
_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_SYMBOLS = {"&": "and", "%": "percent", "+": "plus", "@": "at", "=": "equals"}

# A vowel before one consonant and a last e (or what replaces it) is long: "late", "making".
_LONG = r"(?=[bcdfgklmnpstvz](?:e[sd]?|ing|er|ers)\b)"
_RULES = [
    (re.compile(pattern), tuple(phones.split()))
    for pattern, phones in (
        ("augh|ough(?=t)", "AO"),
        ("ough", "OW"),
        ("eigh", "EY"),
        ("igh", "AY"),
        ("tion|cian", "SH AX N"),
        ("ssion", "SH AX N"),
        ("sion", "ZH AX N"),
        ("cious|tious", "SH AX S"),
        (r"ture\b", "CH ER"),
        ("tch|ch", "CH"),
        (r"dge\b|dge|dg(?=i)", "JH"),
        ("sch", "S K"),
        ("sh", "SH"),
        ("ph", "F"),
        ("th(?=er)|(?<=[aeo])th(?=e)", "DH"),
        ("th", "TH"),
        ("wh", "W"),
        ("wr", "R"),
        (r"\bkn|\bgn|gn\b", "N"),
        ("gh(?=t)|gh\\b", ""),
        ("ck|cc(?![ei])", "K"),
        ("qu", "K W"),
        (r"mb\b", "M"),
        (r"ng\b|ng(?=s\b)", "NG"),
        ("n(?=[kg])", "NG"),
        (r"([bdfgklmnprstz])(?=\1)", ""),
        (r"ai|ay", "EY"),
        (r"au|aw|a(?=ll|lk)", "AO"),
        (r"are\b|air", "EH R"),
        (r"ar(?![aeiou])", "AA R"),
        (rf"a{_LONG}|a(?=ble\b|tion)", "EY"),
        (r"(?<=w)a(?=[nst])", "AA"),
        (r"a\b|\ba(?=[bcdfglmnprst]+[aeiou])", "AX"),
        ("a", "AE"),
        ("e(?=ver)", "EH"),
        (r"ear|eer", "IH R"),
        (r"ea(?=d\b|th\b|lth|ther)", "EH"),
        (r"ee|ea|ey\b|ei", "IY"),
        ("ew|eu", "UW"),
        (r"er(?![aeiou])", "ER"),
        (r"(?<=[td])ed\b", "IH D"),
        (r"(?<=[pkfsxh])ed\b", "T"),
        (r"(?<=\w\w)ed\b", "D"),
        (r"(?<=[cgsxz])es\b|(?<=[cs]h)es\b", "IH Z"),
        (r"(?<=[bdglmnrv])es\b", "Z"),
        (r"(?<=[tkpf])es\b", "S"),
        (r"le\b", "AX L"),
        (r"(?<=[aeiouy][bcdfgklmnprstuvz])e\b|(?<=\w\w)e\b", ""),
        (rf"e{_LONG}", "IY"),
        (r"(?<=\w[bdgklmnpstv])e(?=[lnt]\b)", "AX"),
        (r"e\b", "IY"),
        ("e", "EH"),
        (r"ir(?![aeiou])", "ER"),
        (r"i(?=nd\b|ld\b|gn\b)|ie\b", "AY"),
        ("ie", "IY"),
        (rf"i{_LONG}", "AY"),
        (r"i(?=o|a|\b)", "IY"),
        ("i", "IH"),
        ("oi|oy", "OY"),
        (r"oo(?=k|d\b)", "UH"),
        ("oo", "UW"),
        (r"oa|ow\b|o(?=ld\b|st\b|th\b|lt\b)", "OW"),
        (r"ou(?=s\b)", "AX"),
        ("ou|ow", "AW"),
        (r"or(?![aeiou])|ore\b", "AO R"),
        (r"o(?=ther|ver?\b|n\b)", "AH"),
        (rf"o{_LONG}|o\b|o(?=ke[nr]\b)", "OW"),
        ("o", "AA"),
        (r"ur(?![aeiou])|ure\b", "ER"),
        ("(?<=g)u(?=[ei])", ""),
        (rf"ue|ui|u{_LONG}|u\b", "UW"),
        (r"(?<=[bpf])u(?=[ls]h|ll)", "UH"),
        ("u", "AH"),
        (r"\by", "Y"),
        (r"(?<=\b[bcdfghklmnprstvw])y\b|(?<=\b[bcdfghklmnprstvw]{2})y\b", "AY"),
        ("y", "IY"),
        ("c(?=[eiy])", "S"),
        ("c", "K"),
        ("(?<!g)g(?=[eiy])(?!gi|get|ger)", "JH"),
        (r"(?<=ou)s(?=e\b)", "S"),
        (r"(?<=[aeioubdglmnrvwy])s\b(?<!ss)|(?<=[aeiou])s(?=[eiy])", "Z"),
        ("x", "K S"),
        ("j", "JH"),
        ("h(?![aeiouy])", ""),
        ("h", "HH"),
        *((letter, letter.upper()) for letter in "bdfgklmnprstvwz"),
        ("q", "K"),
    )
]


def spoken_words(text: str) -> list[tuple[str, str]]:
    """The words as they are said, each with the mark that follows it (``,`` ``.`` ``?`` or none).

    Digits become words, other signs are left out.
    """
    text = "".join(f" {_SYMBOLS[sign]} " if sign in _SYMBOLS else sign for sign in text.lower())
    text = re.sub(r"\d", lambda digit: f" {_DIGITS[int(digit[0])]} ", text)
    text = text.replace("\u2019", "'")
    found = re.findall(r"([a-z][a-z']*)([^a-z]*)", text)
    return [(word.replace("'", ""), _mark(gap)) for word, gap in found]


def _mark(gap: str) -> str:
    for marks, mark in (("?", "?"), (".!\n", "."), (",;:()", ",")):
        if any(sign in gap for sign in marks):
            return mark
    return ""


def to_phones(word: str) -> tuple[str, ...]:
    """The phones of one word in lower-case letters."""
    if word in _WORDS:
        return _WORDS[word]
    phones: list[str] = []
    place = 0
    while place < len(word):
        for pattern, sounds in _RULES:
            if match := pattern.match(word, place):
                phones += sounds
                place += len(match[0])
                break
        else:
            place += 1
    return tuple(phones)
