"""The scan for identifiers, measured: recall of each class on invented notes, precision on invented abstracts full of numbers.

Every person, address and number here is made up by a seeded generator. The layouts follow the habits of clinical notes, but the
same hand wrote them and the patterns, so the figures are the best that can be hoped for. `pytest -s` prints the table.
"""

import random
import string
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.corpus.deidentify import KINDS, STEP, Finding, check_quarantine, judge, masked, scan, tally
from medschool.corpus.identifiers import PATTERNS
from medschool.corpus.names import MODEL, find_names
from medschool.errors import ServiceError, StageError
from medschool.rows import Document

MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
SURNAMES = ["Quillby", "Vexmoor", "Tarrow", "Ondrake", "Pellwick"]
STREETS = ["Quarry", "Maple Hollow", "Old Mill", "Larkspur", "Harbor View"]
TOWNS = ["Fennbridge", "Orrin Falls", "Westmarch"]
NOTES, ABSTRACTS = 60, 300


def digits(draw: random.Random, count: int) -> str:
    return draw.choice("123456789") + "".join(draw.choices(string.digits, k=count - 1))


def day(draw: random.Random, first: int = 1930, last: int = 2023) -> str:
    year, month, number = draw.randint(first, last), draw.randint(1, 12), draw.randint(1, 28)
    name = MONTHS[month - 1]
    return draw.choice(
        [
            f"{month}/{number}/{year}", f"{month:02}/{number:02}/{year % 100:02}", f"{year}-{month:02}-{number:02}", f"{number:02}.{month:02}.{year}",
            f"{name} {number}, {year}", f"{name[:3]} {number}, {year}", f"{number} {name} {year}", f"{number:02}-{name[:3]}-{year}", f"{number:02}-{month:02}-{year}",
        ]
    )  # fmt: skip


def phone(draw: random.Random) -> str:
    area, middle, end = f"{draw.randint(2, 9)}{digits(draw, 2)}", digits(draw, 3), digits(draw, 4)
    layouts = (
        f"({area}) {middle}-{end}",
        f"{area}-{middle}-{end}",
        f"{area}.{middle}.{end}",
        f"+1 {area} {middle} {end}",
        f"1-{area}-{middle}-{end}",
    )
    return draw.choice([*layouts, f"+44 20 {digits(draw, 4)} {digits(draw, 4)}", f"+49 {digits(draw, 3)} {digits(draw, 7)[:4]} {digits(draw, 3)}"])  # fmt: skip


def letters(draw: random.Random, count: int) -> str:
    return "".join(draw.choices("ABCDEFGHJKLMNPRSTUVWXYZ", k=count))


def vin(draw: random.Random) -> str:
    return (
        f"1{letters(draw, 2)}{letters(draw, 2)}{digits(draw, 3)}{draw.choice('0123456789X')}{letters(draw, 2)}{digits(draw, 6)}"
    )


def sentence(draw: random.Random, before: str, value: str, after: str = "") -> tuple[str, str]:
    return f"{before}{value}{after}", value


def zips(draw: random.Random) -> str:
    return digits(draw, 5) + draw.choice(["", f"-{digits(draw, 4)}"])


def street(draw: random.Random) -> str:
    return f"{draw.randint(2, 9999)} {draw.choice(STREETS)} {draw.choice(['Street', 'St', 'Ave', 'Road', 'Lane', 'Blvd', 'Drive', 'Court'])}"


Maker = Callable[[random.Random], tuple[str, str]]
"""A draw -> (sentence, the identifier in it)."""

NOTE: dict[str, list[Maker]] = {
    "date": [
        lambda d: sentence(d, d.choice(["DOB: ", "D.O.B. ", "Date of birth: ", "date of birth is ", "Birthdate: ", "She was born on ", "born "]), day(d, 1925, 2005), "."),
        lambda d: sentence(d, d.choice(["Admission date: ", "Admitted on ", "Date of admission: ", "He was admitted ", "ADMITTED: ", "Readmitted on "]), day(d, 2001), " with pain."),
        lambda d: sentence(d, d.choice(["Discharge date: ", "Discharged on ", "Date of discharge: ", "was discharged ", "DISCHARGE DATE "]), day(d, 2001), " in good health."),
        lambda d: sentence(d, d.choice(["The patient died on ", "Date of death: ", "expired on ", "Seen in clinic on ", "Date of service: ", "Visit date: "]), day(d, 2001), "."),
    ],
    "age": [
        lambda d: sentence(d, "This is a ", str(d.randint(90, 104)), d.choice(["-year-old woman.", " year old man.", " y/o male.", "yo female.", "-yr-old lady.", " years old male."])),
        lambda d: sentence(d, d.choice(["Aged ", "Age: ", "aged ", "age "]), str(d.randint(90, 104)), d.choice([", lives alone.", " years, lives alone.", ". Lives alone."])),
    ],
    "place": [
        lambda d: sentence(d, f"Lives in {d.choice(TOWNS)}, {d.choice(['IL', 'TX', 'NY', 'CA', 'OH'])} ", zips(d), "."),
        lambda d: sentence(d, d.choice(["ZIP: ", "zip code ", "ZIP code: ", "Zip "]), zips(d), "."),
        lambda d: sentence(d, d.choice(["Home address: ", "Resides at ", "lives at "]), street(d), f", {d.choice(TOWNS)}."),
        lambda d: sentence(d, "Mail goes to ", f"P.O. Box {digits(d, 4)}", "."),
    ],
    "phone": [
        lambda d: sentence(d, d.choice(["Phone: ", "Tel. ", "Call her daughter at ", "cell ", "Home phone ", "Pager ", "reached at ", "Contact: ", ""]), phone(d), "."),
    ],
    "fax": [lambda d: sentence(d, d.choice(["Fax: ", "FAX ", "fax number ", "by fax to ", "Facsimile: ", "F: (fax) "]), phone(d), ".")],
    "email": [
        lambda d: sentence(d, d.choice(["E-mail: ", "writes from ", "<"]), f"{d.choice(SURNAMES).lower()}{d.choice(['.', '_', '', '+', '-'])}{digits(d, 2)}@{d.choice(['mail', 'post.clinic'])}.{d.choice(['example', 'org', 'co.uk'])}", "> for results."),
    ],
    "ssn": [
        lambda d: sentence(d, d.choice(["SSN: ", "SSN ", "Social security number ", "social security no. ", "SS# ", ""]), f"{d.randint(100, 665)}-{d.randint(10, 99)}-{digits(d, 4)}", "."),
        lambda d: sentence(d, d.choice(["SSN: ", "SSN ", "Social Security Number: "]), f"{d.randint(100, 665)}{d.choice(['', ' '])}{d.randint(10, 99)}{digits(d, 4)}", "."),
    ],
    "medical_record": [
        lambda d: sentence(d, d.choice(["MRN: ", "MRN ", "MRN# ", "Medical record number ", "Medical Record No. ", "Medical record #", "MR# ", "Hospital number: ", "Unit number: ", "Chart #: ", "Patient record no. "]), d.choice([digits(d, 7), f"{letters(d, 2)}{digits(d, 6)}", f"{digits(d, 3)}-{digits(d, 2)}-{digits(d, 2)}", digits(d, 10)]), "."),
    ],
    "health_plan": [
        lambda d: sentence(d, d.choice(["Member ID: ", "Insurance policy number ", "Medicare ID ", "Medicaid number: ", "Policy #", "Subscriber ID ", "Beneficiary number: ", "Health plan ID: "]), d.choice([digits(d, 9), f"{letters(d, 3)}{digits(d, 8)}"]), "."),
        lambda d: sentence(d, d.choice(["Medicare: ", "MBI ", ""]), f"{d.randint(1, 9)}{d.choice('ACEFGH')}{d.randint(0, 9)}{d.randint(0, 9)}-{d.choice('ACEFGH')}{d.choice('ACEFGH')}{d.randint(0, 9)}-{d.choice('ACEFGH')}{d.choice('KMNP')}{digits(d, 2)}", "."),
        lambda d: sentence(d, d.choice(["NHS number: ", "NHS no. "]), f"{digits(d, 3)} {digits(d, 3)} {digits(d, 4)}", "."),
    ],
    "account": [
        lambda d: sentence(d, d.choice(["Account number: ", "Acct # ", "Account: ", "account no. ", "Billing number ", "Invoice no. ", "Acct. no. "]), d.choice([digits(d, 8), f"{letters(d, 1)}{digits(d, 9)}", f"{digits(d, 4)}-{digits(d, 6)}"]), "."),
        lambda d: sentence(d, d.choice(["paid with ", "Card: ", ""]), f"4{digits(d, 3)} {digits(d, 4)} {digits(d, 4)} {digits(d, 4)}", "."),
    ],
    "licence": [
        lambda d: sentence(d, d.choice(["Driver's license number ", "Driver's license: ", "License # ", "driving licence no. ", "DEA number: ", "DEA# ", "NPI: ", "Passport no. ", "Certificate number "]), d.choice([digits(d, 9), f"{letters(d, 1)}{digits(d, 8)}", f"{letters(d, 2)}{digits(d, 7)}"]), "."),
    ],
    "vehicle": [
        lambda d: sentence(d, d.choice(["VIN ", "VIN: ", "vehicle identification number "]), vin(d), "."),
        lambda d: sentence(d, d.choice(["License plate: ", "licence plate ", "number plate ", "Plate number: ", "drove a car with plate "]), d.choice([f"{letters(d, 3)} {digits(d, 4)}", f"{digits(d, 1)}{letters(d, 3)}{digits(d, 3)}", f"{letters(d, 2)}{digits(d, 2)} {letters(d, 3)}"]), "."),
    ],
    "device": [
        lambda d: sentence(d, d.choice(["Serial number ", "serial no. ", "Pacemaker serial number: ", "S/N: ", "Device ID: ", "Implant serial # ", "device identifier "]), d.choice([f"{letters(d, 3)}{digits(d, 6)}", digits(d, 8), f"{letters(d, 2)}-{digits(d, 5)}"]), "."),
        lambda d: sentence(d, "Label on the box: ", f"(01){digits(d, 14)}(21){letters(d, 2)}{digits(d, 4)}", "."),
    ],
    "url": [lambda d: sentence(d, "See ", f"{d.choice(['https://', 'http://', 'www.'])}{d.choice(SURNAMES).lower()}-family.example/{digits(d, 3)}", " for the diary.")],
    "ip": [
        lambda d: sentence(d, d.choice(["Portal login from ", "IP address ", "from host "]), ".".join(str(d.randint(11, 254)) for _ in range(4)), "."),
        lambda d: sentence(d, "IP ", ":".join(f"{d.randint(4096, 65535):x}" for _ in range(8)), "."),
    ],
    "biometric": [
        lambda d: ("His fingerprints were taken at the desk.", "fingerprints"), lambda d: ("Voice print on file with the portal.", "Voice print"),
        lambda d: ("The patient's retinal scan was stored.", "retinal scan"),
    ],
    "photo": [
        lambda d: ("A full-face photograph is in the chart.", "full-face photograph"), lambda d: ("Photo of the patient attached.", "Photo of the patient"),
        lambda d: ("Her photograph was sent to the board.", "Her photograph"),
    ],
    "other_number": [
        lambda d: sentence(d, d.choice(["Patient ID: ", "Patient number ", "Encounter # ", "Visit no. ", "Specimen ID ", "Participant ID: ", "Case number: ", "Employee ID "]), d.choice([digits(d, 6), f"{letters(d, 2)}{digits(d, 5)}", f"S{digits(d, 2)}-{digits(d, 5)}"]), "."),
    ],
}  # fmt: skip

FILLER = ["Chest is clear.", "No fever today.", "Lisinopril 20 mg daily was continued.", "BP 132/84, pulse 72, SpO2 97% on room air.", "Follow up in 2 weeks."]  # fmt: skip


def note(draw: random.Random) -> tuple[str, list[Finding]]:
    """One note that holds every class once or more among plain sentences, and where each identifier stands."""
    lines: list[tuple[str, str, str]] = [(kind, *make(draw)) for kind, makers in NOTE.items() for make in makers]
    draw.shuffle(lines)
    text, planted = "", []
    for kind, line, value in lines:
        planted.append(Finding(kind, len(text) + line.index(value), len(text) + line.index(value) + len(value)))
        text += f"{line}{draw.choice([' ', chr(10)])}{draw.choice(FILLER)}{draw.choice([' ', chr(10), chr(10) * 2])}"
    return text, planted


def abstract(draw: random.Random) -> str:
    """Sentences of a paper, full of numbers that belong to nobody."""
    low, high, year = draw.randint(2, 40), draw.randint(41, 99), draw.randint(1995, 2018)
    sentences = [
        f"We enrolled {draw.randint(1000, 99999):,} adults aged {draw.randint(18, 65)} to {draw.randint(90, 99)} years between {year} and {year + 4}.",
        f"Patients aged {draw.randint(90, 95)} years and older were excluded, as were those aged >{draw.randint(90, 99)} years.",
        f"The odds ratio was 1.{low} (95% CI 0.{low}-1.{high}; p = 0.00{low}; n = {digits(draw, 5)}).",
        f"Patients were admitted between January 1, {year} and December 31, {year + 3}; the database was closed on 30 June {year + 4}.",
        f"ClinicalTrials.gov identifier NCT0{digits(draw, 7)}; ISRCTN{digits(draw, 8)}; PROSPERO CRD420{digits(draw, 8)}.",
        f"Trypsin (EC 3.4.21.{draw.randint(1, 120)}) and acetylcholinesterase (3.1.1.7) were assayed at 37.0 degrees with version 10.2.1.{low} of the software.",
        f"Sequences are in GenBank under accession numbers MN{digits(draw, 6)} to MN{digits(draw, 6)} and in GSE{digits(draw, 6)}.",
        f"The cells (ATCC CRL-{digits(draw, 4)}) were seeded at 1,{digits(draw, 3)},000 per well; CAS 7732-18-5 was the solvent.",
        f"A 50-kDa band and IL-6, CD4+ and CD8+ cells were seen in {low} of {high} samples (lot-to-lot variance {low}.{high}%).",
        f"DNA fingerprinting and mass fingerprints placed the strain with {draw.choice(['H37Rv', 'USA300', 'K-12'])}; primers 5'-ACGTGCATTGCAACGTT-3' were used.",
        f"Median length of stay was {low}.5 days (IQR {low}-{high}) and patients were discharged {draw.randint(2, 9)}-{draw.randint(10, 20)} days after surgery.",
        f"A {draw.randint(20, 89)}-year-old man with a {draw.randint(5, 30)}-year history of diabetes took 500 mg twice daily.",
        f"J Inv Med {year};{low}({draw.randint(1, 12)}):{digits(draw, 4)}-{digits(draw, 4)}; doi 10.{digits(draw, 4)}/j.inv.{year}.{low}.{digits(draw, 3)}; ISBN 978-3-16-{digits(draw, 6)}-0.",
        f"Stays in hospital {year}-{year + 3} reached {low} 000 000 days; charts 1998-2004 and unit {digits(draw, 4)} of the mobile {year} survey, phone 1 of 2.",
        f"Doses rose from 0.5 to 2.5 mg/kg/day over 24/7 monitoring; a 3/4 majority agreed, with a score of {low}/100 at {low} (SD {high}) months.",
        f"The licence of the text is CC BY 4.0 and the certificate of need laws of {year} were reviewed in {low} states, IL-2 among {draw.randint(10000, 99999)} markers.",
    ]  # fmt: skip
    draw.shuffle(sentences)
    return " ".join(sentences[:10])


def measured() -> dict[str, tuple[int, int]]:
    """(found, planted) of each class; found is what overlaps the whole of what was planted, under any class name."""
    found: Counter[str] = Counter()
    planted: Counter[str] = Counter()
    for seed in range(NOTES):
        text, expected = note(random.Random(seed))
        covered = {at for finding in scan(text) for at in range(finding.start, finding.end)}
        for one in expected:
            planted[one.kind] += 1
            found[one.kind] += covered.issuperset(at for at in range(one.start, one.end) if text[at].isalnum())
    return {kind: (found[kind], planted[kind]) for kind in NOTE}


def test_recall_of_every_structured_class_is_at_least_95_percent() -> None:
    table = measured()
    for kind, (found, planted) in table.items():
        print(f"{kind:<15} {found:>5} of {planted:>5}  {found / planted:7.1%}")
    assert set(table) == set(KINDS) - {"name"} and min(planted for _, planted in table.values()) >= NOTES
    assert {kind: found / planted for kind, (found, planted) in table.items() if found < 0.95 * planted} == {}


def test_what_is_found_has_the_right_class() -> None:
    right = wrong = 0
    for seed in range(NOTES):
        text, planted = note(random.Random(seed))
        found = scan(text)
        for one in planted:
            kinds = {finding.kind for finding in found if finding.start < one.end and one.start < finding.end}
            right, wrong = right + (one.kind in kinds), wrong + (bool(kinds) and one.kind not in kinds)
    assert right / (right + wrong) >= 0.95


def test_clean_abstracts_hold_next_to_nothing() -> None:
    texts = [abstract(random.Random(seed)) for seed in range(ABSTRACTS)]
    began = time.process_time()
    found = [(finding.kind, text[max(0, finding.start - 30) : finding.end]) for text in texts for finding in scan(text)]
    seconds = time.process_time() - began
    print(
        f"{len(found)} findings in {ABSTRACTS} abstracts; {sum(map(len, texts)) / seconds / 1e6:.1f} million characters a second and core"
    )
    assert len(found) <= 0.02 * ABSTRACTS, Counter(found).most_common(5)


def test_findings_of_a_note_do_not_overlap_and_stand_in_the_order_of_the_text() -> None:
    text, _ = note(random.Random(1))
    found = scan(text)
    assert all(one.end <= other.start for one, other in pairwise(found)) and found


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet=st.sampled_from("0123456789 .-:/()+@ABCage MRNfax\n"), max_size=300))
def test_any_text_gives_spans_inside_it_apart_from_each_other(text: str) -> None:
    found = scan(text)
    assert all(0 <= finding.start < finding.end <= len(text) and finding.kind in KINDS for finding in found)
    assert all(one.end <= other.start for one, other in pairwise(found))


@pytest.mark.parametrize("unit", ["1", "1.", "a.", "1-", "1:", "DOB ", "(1) ", "Aa ", "a@", "+1 ", "1/"])
def test_no_text_takes_more_than_time_in_step_with_its_length(unit: str) -> None:
    began = time.process_time()
    scan(unit * (40_000 // len(unit)))
    assert time.process_time() - began < 2


def test_the_signs_that_save_time_hide_nothing() -> None:
    for seed in range(20):
        text, _ = note(random.Random(seed))
        for pattern in PATTERNS:
            assert pattern.spans(text, text.lower()) == pattern.spans(text, "".join(pattern.signs)), pattern


# ---- what becomes of a document -----------------------------------------------------------------------------------------------

TEXT = "Call 415-555-0132 about MRN: 00482917 of the ward. " + "Nothing else is known. " * 20
DOCUMENT = Document("n:1", "notes", TEXT, "", "cc0", None, "note", "raw/n.txt")


def test_a_document_over_the_limit_is_quarantined_without_its_identifiers() -> None:
    findings = scan(TEXT)
    assert tally(findings) == {"medical_record": 1, "phone": 1}
    dropped = judge(DOCUMENT, findings, 1)
    assert dropped is not None and (dropped.id, dropped.source, dropped.step, dropped.uri) == ("n:1", "notes", STEP, "raw/n.txt")
    assert dropped.reason == "2 identifiers, at most 1 are allowed: medical_record 1, phone 1"
    assert dropped.sample.startswith("Call [phone] about MRN: [medical_record] of the ward. Nothing")
    assert not any(number in dropped.sample + dropped.reason for number in ("0132", "00482917"))
    assert judge(DOCUMENT, findings, 2) is None


def test_a_finding_across_the_end_of_the_sample_is_masked_as_a_whole() -> None:
    text = "Write to " + "o.quillby@mail.example" + " today"
    assert masked(text, scan(text), 12) == "Write to [email]"
    assert masked(text, scan(text), 9) == "Write to " and masked(text, [], 12) == text[:12]


def test_a_source_of_which_too_much_is_quarantined_stops_the_run() -> None:
    check_quarantine("notes", {"phone": 2}, 1, 100, 0.01)
    with pytest.raises(StageError, match=r"2 of 100 documents hold identifiers of people \(phone 2\)") as raised:
        check_quarantine("notes", {"phone": 2}, 2, 100, 0.01)
    assert raised.value.where == "sources.notes" and raised.value.remedy


def test_names_without_presidio_say_what_to_install() -> None:
    try:
        import presidio_analyzer  # noqa: F401
    except ImportError:
        with pytest.raises(ServiceError, match="presidio_analyzer is not installed") as raised:
            scan("Mr. Quillby came in.", names=True)
        assert "pip install 'medschool[deidentify]'" in raised.value.remedy
    else:
        pytest.importorskip(MODEL)
        text = "Mr. Arthur Quillby came in from Chicago."
        assert {text[start:end] for kind, start, end in find_names(text) if kind == "name"} >= {"Arthur Quillby"}
