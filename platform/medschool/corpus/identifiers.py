"""The patterns behind medschool.corpus.deidentify: one or more regular expressions for each class of identifier.

Most identifiers are a number that means nothing without its label ("MRN: 0482917"), so most patterns are a label, what may stand
between, and the number, which is the named group `id`; a pattern without that group is an identifier as a whole. Labels are
matched in any case. The order counts: of two findings at one place the one of the earlier pattern stays, so `Fax: 555-010-2211`
is a fax number and not a telephone. A pattern runs only over a text that holds one of its signs, which makes the scan of plain
prose eight times as fast.

Numbers that medical prose is full of must not be found, and a test holds them: trial registrations (NCT...), doses, intervals,
years and ranges of years, enzyme numbers (EC 3.4.21.4 looks like an internet address), accession numbers, gene and drug names.
"""

import re
from dataclasses import dataclass

_NUMBER = r"(?:[ -]?(?:no\b\.?|nr\b\.?|num(?:ber)?\b|#|id\b|identifier\b|code\b))"
_BETWEEN = r"[\s:#=]{0,3}(?:is|was|of)?[\s:#=]{0,3}"
_TOKEN = r"(?P<id>(?=(?:[A-Z/-]*\d){4})[A-Z0-9](?:[A-Z0-9]|[/-](?=[A-Z0-9])){3,24}|\d{2,4}(?: \d{2,4}){1,3})(?![\w%]|\.\d)"

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)\.?"
)
_DATE = (
    r"(?P<id>\d{1,2}([/.-])\d{1,2}\2(?:\d{4}|\d{2})\b|\d{4}-\d{2}-\d{2}\b|\d{4}/\d{1,2}/\d{1,2}\b|\d{1,2}/\d{1,2}\b(?!/)"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?(?: of)?[ -]{_MONTH}(?:,?[ -]\d{{2,4}}\b)?"
    rf"|{_MONTH} \d{{1,2}}(?:st|nd|rd|th)?\b(?:,? \d{{4}}\b)?)"
)
_BIRTH = r"date of birth|birth ?date|birthday|d\.?o\.?b\b\.?|born"
_STAY = (
    r"(?:date of )?(?:re)?admi(?:ssion|tted)(?: date)?|(?:date of )?discharged?(?: date)?|date of (?:death|service|visit|surgery)"
    r"|died|deceased|expired|seen in clinic|underwent surgery|d\.?o\.?[ds]\.?|(?:visit|surgery|death|service|appointment) date"
)
_PHONE = r"(?P<id>\+?\(?\d(?:[ ().-]{0,2}\d){6,14})(?![\w%]|\.\d)"
_STATE = (
    r"(?:A[KLRZ]|C[AOT]|D[CE]|FL|GA|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT|V[AIT]|W[AIVY])"
)
_STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct"
    r"|Place|Pl|Square|Sq|Terrace|Parkway|Pkwy|Highway|Hwy)\b\.?"
)
_OCTET = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_ADDRESS = rf"{_OCTET}(?:\.{_OCTET}){{3}}(?![\w-]|\.\d)"
_HEX = r"[0-9a-f]{1,4}"
_MBI, _MBI_OR_DIGIT = "[AC-HJKMNP-RT-Y]", "[0-9AC-HJKMNP-RT-Y]"
_BODY_PRINT = r"(?:finger|thumb|palm|voice|foot)[ -]?prints?|(?:retinal?|iris) (?:scans?|images?)"
_PICTURE = r"photo(?:graph)?s?|picture|mugshot|selfie"


@dataclass(frozen=True)
class Pattern:
    """How one kind of identifier is recognised."""

    kind: str
    signs: tuple[str, ...]
    """In lower case: a text without any of them holds none of this kind."""
    pattern: re.Pattern[str]

    def spans(self, text: str, lowered: str) -> list[tuple[int, int]]:
        """Where the identifiers stand in `text`, whose lower-case form is `lowered`."""
        if not any(sign in lowered for sign in self.signs):
            return []
        group = "id" if "id" in self.pattern.groupindex else 0
        return [match.span(group) for match in self.pattern.finditer(text)]


def _exact(kind: str, signs: str, pattern: str) -> Pattern:
    return Pattern(kind, tuple(signs.split("|")), re.compile(pattern))


def _any_case(kind: str, signs: str, pattern: str) -> Pattern:
    return Pattern(kind, tuple(signs.split("|")), re.compile(pattern, re.IGNORECASE))


def _labelled(kind: str, signs: str, words: str, number: str = _NUMBER) -> Pattern:
    """A label, a word for number, and a token with four digits at least."""
    return _any_case(kind, signs, rf"\b(?:{words}){number}{_BETWEEN}{_TOKEN}")


PATTERNS: tuple[Pattern, ...] = (
    _exact("email", "@", r"\b[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}\b"),
    _any_case("url", "://|www.", r"\b(?:(?:https?|ftp)://|www\.)[^\s<>\"()\[\]]*[^\s<>\"()\[\].,;:!?]"),
    _any_case("fax", "fax|facsimile", rf"\b(?:fax|facsimile){_NUMBER}?\.?{_BETWEEN}{_PHONE}"),
    _exact("ssn", "-", r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])"),
    _any_case("ssn", "ssn|social", rf"\b(?:ssn|social security){_NUMBER}?{_BETWEEN}(?P<id>\d{{3}}[ -]?\d{{2}}[ -]?\d{{4}})\b"),
    _labelled(
        "medical_record", "mrn|m.r.n|record", r"mrn|m\.r\.n\.|(?:medical|hospital|patient|health|clinic) record", _NUMBER + "?"
    ),
    _labelled("medical_record", "mr|hospital|chart|unit", r"mr|hospital|chart|unit"),
    _exact("health_plan", "-", rf"(?<![\w-])[1-9]{_MBI}{_MBI_OR_DIGIT}\d-{_MBI}{_MBI_OR_DIGIT}\d-{_MBI}{{2}}\d{{2}}(?![\w-])"),
    _labelled(
        "health_plan",
        "medica|nhs|insur|policy|member|subscriber|beneficiary|health plan",
        r"medicare|medicaid|nhs|insurance|policy|member|subscriber|beneficiary|health plan|insured(?:'s)?",
    ),
    _labelled("account", "acc|invoice|bill|iban|card", r"account|acct\.?|invoice|bill(?:ing)?|iban|(?:credit|debit) card"),
    _labelled("account", "account|acct|iban", r"account|acct\.?|iban", r"\s?[:#]"),
    _exact("account", "4|5", r"(?<![\w-])(?:4\d{3}|5[1-5]\d{2}|6011)([ -])\d{4}\1\d{4}\1\d{4}(?![\w-])"),
    _any_case(
        "vehicle",
        "plate|vehicle reg",
        rf"\b(?:(?:licen[cs]e|number|registration|vehicle)[ -]plates?|plate|vehicle registration){_NUMBER}?{_BETWEEN}"
        r"(?-i:(?P<id>(?=[A-Z -]*\d)(?=[\d -]*[A-Z])[A-Z0-9]{1,4}(?:[ -]?[A-Z0-9]{2,4}){1,2}))\b",
    ),
    _exact("vehicle", "1|2|3|4|5|6|7|8|9", r"\b(?=[A-Z]*\d)(?=\d*[A-Z])[A-HJ-NPR-Z0-9]{8}[0-9X][A-HJ-NPR-Z0-9]{4}\d{4}\b"),
    _labelled(
        "licence",
        "licen|certificate|passport|dea|npi|permit",
        r"(?:driver'?s?'? |driving |medical |nursing )?licen[cs]e|certificate|passport|dea|npi|permit",
    ),
    _labelled("licence", "driver|dl|passport|dea|npi", r"driver'?s?'? licen[cs]e|dl|passport|dea|npi", r"\s?[:#]"),
    _labelled(
        "device",
        "serial|device|pacemaker|implant|defibrillator|udi|s/n",
        r"serial|device|pacemaker|implant|defibrillator|udi|s/n(?=\s?[:#])",
        rf"(?:(?: serial)?{_NUMBER}|\s?[:#])",
    ),
    _exact("device", "(01)", r"\(01\)\d{14}(?:\(\d{2}\)\w+)*"),
    _any_case(
        "phone",
        "tel|phone|mobile|pager|beeper|call|reached",
        rf"\b(?:tel|telephone|phone|mobile|cell ?phone|pager|beeper|(?:call|reached)(?= at| on)){_NUMBER}?\.?(?: at| on)?"
        rf"{_BETWEEN}{_PHONE}",
    ),
    _exact("phone", "-|.", r"(?<![\w.-])(?:\+?1[ .-]?)?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[-.])\d{3}[-.]\d{4}(?![\w%-]|\.\d)"),
    _exact("phone", "+", r"(?<![\w.])\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,4}){2,4}(?![\w%]|\.\d)"),
    _any_case("ip", "ip|host|address", rf"\b(?:ip|ipv4|host|address)(?: address)?{_BETWEEN}(?P<id>{_ADDRESS})"),
    _exact("ip", ".", rf"(?<![\w.-])(?<!ersion )(?<!EC )(?=\d\d)(?P<id>{_ADDRESS})"),
    _any_case("ip", ":", rf"(?<![\w:.])(?:(?:{_HEX}:){{7}}{_HEX}(?![\w:])|(?:{_HEX}:){{2,6}}(?::{_HEX}){{1,5}}(?![\w:]))"),
    _any_case("date", "birth|born|d.o.b|dob", rf"\b(?:{_BIRTH})[\s:]{{0,2}}(?:on|is|was)?[\s:]{{0,2}}{_DATE}"),
    _any_case(
        "date",
        "admi|discharge|date|died|deceased|expired|seen in|underwent|d.o.|dod|dos",
        rf"\b(?:{_STAY})[\s:]{{0,2}}(?:on|is|was)?[\s:]{{0,2}}{_DATE}",
    ),
    _any_case(
        "age",
        "old|of age|yo|y/o",
        r"(?<![\d.\u2013-])(?<!to )(?<!and )(?<!than )(?P<id>9\d|1[0-2]\d)[ -]?(?:years?|yrs?|y)[ /-]?(?:olds?\b|of age\b|o\b)"
        r"(?!\s*(?:and|or|,? at least)\s+(?:older|over|above))",
    ),
    _any_case(
        "age",
        "age",
        r"\baged?[: ]{1,2}(?P<id>9\d|1[0-2]\d)\b(?![.,]\d)"
        r"(?!\s*(?:years?|yrs?)?(?: old| of age)?\s*(?:and|or|to|-|\u2013|%|\+|±))",
    ),
    _exact("place", "1|2|3|4|5|6|7|8|9", rf"\b{_STATE},? (?P<id>\d{{5}}(?:-\d{{4}})?)\b"),
    _any_case(
        "place",
        "zip|post",
        r"\b(?:zip(?:[ -]?code)?|(?:postal|post)[ -]?code)\s?[:#]?\s?(?:is )?"
        r"(?P<id>\d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2})\b",
    ),
    _exact(
        "place",
        " st|ave|road|rd|boulevard|blvd|lane|ln|drive|dr|court|ct|place|pl|sq|terrace|parkway|pkwy|highway|hwy",
        rf"\b\d{{1,5}}[A-Z]? (?:[NSEW]\.? )?(?:[A-Z][a-z]+ |\d{{1,3}}(?:st|nd|rd|th) ){{1,3}}{_STREET}",
    ),
    _any_case("place", "box", r"\bP\.? ?O\.? Box \d+"),
    _any_case(
        "biometric",
        "print|retina|iris",
        rf"\b(?:his|her|their|patient's|subject's) (?:\w+ )?(?:{_BODY_PRINT})"
        rf"|\b(?:{_BODY_PRINT}) (?:(?:is|are|was|were|has been|have been) )?(?:on file|taken|stored|enrolled|recorded|scanned)\b",
    ),
    _any_case(
        "photo",
        "full|photo|picture|mugshot|selfie",
        rf"\bfull[ -]face (?:{_PICTURE}|images?)\b|\b(?:his|her|their|patient's|subject's) (?:\w+ )?(?:{_PICTURE})\b"
        rf"|\b(?:{_PICTURE}) of (?:the patient|his|her|their)\b",
    ),
    _labelled(
        "other_number",
        "patient|encounter|visit|specimen|participant|subject|employee|case|referral|confirmation",
        r"patient|encounter|visit|specimen|participant|subject|employee|case|referral|confirmation",
    ),
)
"""The most telling first."""
