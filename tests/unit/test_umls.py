"""Questions from a UMLS release: direction, names, balance, wrong options, and faults of its files. All texts here are invented."""

import gzip
from collections import Counter
from io import BytesIO
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.errors import InputError
from medschool.instructions import umls as module
from medschool.instructions.balance import Balanced
from medschool.instructions.concepts import Concepts
from medschool.instructions.formats import INSTRUCTION_FORMATS
from medschool.instructions.relation import OPEN, distractors, phrase
from medschool.instructions.rrf import LINE_BYTES
from medschool.instructions.semantic_groups import GROUP_OF_TYPE, GROUPS
from medschool.rows import Conversation, Dropped, LeftOut
from medschool.storage import open_raw


def atom(cui: int, text: str, best: str = "P|PF|Y", language: str = "ENG", suppress: str = "N", sab: str = "MSH") -> str:
    ts, stt, ispref = best.split("|")
    return f"C{cui:07}|{language}|{ts}|L1|{stt}|S1|{ispref}|A1||||{sab}|MH|D1|{text}|0|{suppress}||"


def relation(cui1: int, rela: str, cui2: int, suppress: str = "N", rui: str = "R1") -> str:
    return f"C{cui1:07}|A1|AUI|RO|C{cui2:07}|A2|AUI|{rela}|{rui}||MED-RT|MED-RT|||{suppress}||"


def meaning(cui: int, text: str, sab: str = "MSH", suppress: str = "N") -> str:
    return f"C{cui:07}|A1|AT1||{sab}|{text}|{suppress}||"


def kind(cui: int, tui: str) -> str:
    return f"C{cui:07}|{tui}|A1.4|Some Type|AT2||"


RELEASE = {
    "MRCONSO": [atom(1, "Pain"), atom(2, "Aspirin"), atom(3, "Rust")],
    "MRREL": [relation(1, "may_treat", 2)],
    "MRDEF": [meaning(2, "A white  powder")],
    "MRSTY": [kind(1, "T184"), kind(2, "T121"), kind(3, "T167")],
}
Row = Conversation | Dropped | LeftOut


def write(folder: Path, **tables: list[str]) -> Path:
    for table, lines in (RELEASE | tables).items():
        (folder / f"{table}.RRF").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def make(folder: Path, table: str, seed: int = 7, ending: str = ".RRF") -> list[Row]:
    with open_raw(str(folder / f"{table}{ending}"), f"raw/{table}{ending}") as stream:
        return list(INSTRUCTION_FORMATS["umls"](stream, f"raw/{table}{ending}", "set", seed))


def chats(rows: list[Row]) -> list[Conversation]:
    return [row for row in rows if isinstance(row, Conversation)]


def faults(rows: list[Row]) -> list[tuple[str, str, str]]:
    return [(row.id, row.step, row.reason) for row in rows if isinstance(row, Dropped)]


def left_out(rows: list[Row]) -> dict[str, int]:
    return {row.step: row.rows for row in rows if isinstance(row, LeftOut)}


def said(row: Conversation) -> tuple[str, str]:
    assert [message.role for message in row.messages] == ["user", "assistant"]
    return row.messages[0].content, row.messages[1].content


# ---- what is asked and answered -----------------------------------------------------------------------------------------------


def test_a_relation_is_what_the_second_concept_is_to_the_first(tmp_path: Path) -> None:
    write(tmp_path)
    for seed in range(20):
        (row,) = chats(make(tmp_path, "MRREL", seed))
        assert said(row)[1] == "Aspirin may treat Pain."
        assert (row.id, row.kind, row.licence, row.uri) == ("umls:C0000002:may_treat:C0000001", "graph", "umls", "raw/MRREL.RRF")


def test_the_order_in_the_question_does_not_tell_the_direction(tmp_path: Path) -> None:
    write(tmp_path)
    asked = [said(chats(make(tmp_path, "MRREL", seed))[0])[0] for seed in range(60)]
    assert 15 <= sum(user.index("Aspirin") < user.index("Pain") for user in asked) <= 45
    assert len(set(asked)) == 2 * len(OPEN)


def test_a_definition_answers_what_a_concept_is(tmp_path: Path) -> None:
    (row,) = make(write(tmp_path), "MRDEF")
    assert isinstance(row, Conversation)
    assert "Aspirin" in said(row)[0] and said(row)[1] == "A white powder." and row.id == "umls:C0000002:entity"


def test_names_and_types_are_counted_and_nothing_is_asked_about_them(tmp_path: Path) -> None:
    write(tmp_path, MRSTY=[kind(1, "T184"), kind(2, "T999")])
    assert [row.rows for row in make(tmp_path, "MRCONSO") if isinstance(row, LeftOut)] == [3]
    assert left_out(make(tmp_path, "MRSTY")) == {"type": 1, "unknown_type": 1}


def test_a_packed_release_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    for table in RELEASE:
        path = tmp_path / f"{table}.RRF"
        (tmp_path / f"{table}.RRF.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert said(chats(make(tmp_path, "MRREL", ending=".RRF.gz"))[0])[1] == "Aspirin may treat Pain."


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("may_treat", "may treat"),
        ("may_be_treated_by", "may be treated by"),
        ("finding_site_of", "is finding site of"),
        ("has_finding_site", "has finding site"),
        ("part_of", "is part of"),
        ("is_part_of", "is part of"),
        ("mapped_to", "is mapped to"),
        ("process_of", "is process of"),
        ("analysis_of", "is analysis of"),
        ("occurs_in", "occurs in"),
        ("contraindicated_with_disease", "is contraindicated with disease"),
        ("disease_has_basis_in", "disease has basis in"),
        ("isa", "is a"),
        ("inverse_isa", "is the wider term of"),
    ],
)
def test_words_for_the_name_of_a_relation(name: str, words: str) -> None:
    assert phrase(name) == words


# ---- names --------------------------------------------------------------------------------------------------------------------

BEST, OTHERS = "P|PF|Y", ("S|PF|Y", "P|VO|Y", "P|PF|N")


@given(st.permutations(range(6)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_name_is_the_preferred_english_one_in_any_order_of_rows(order: list[int], preferred: bool) -> None:
    atoms = [
        atom(7, "right", BEST) if preferred else atom(8, "other", BEST),
        atom(7, "second", OTHERS[0]),
        atom(7, "third", OTHERS[1]),
        atom(7, "old", BEST, suppress="O"),
        atom(7, "rechts", BEST, language="GER"),
        atom(7, "fourth", OTHERS[2]),
    ]
    concepts = Concepts()
    for place in order:
        concepts.put_atom(atoms[place].split("|")[:-1])
    fallback = min((place for place in (1, 2, 5)), key=order.index)
    assert concepts.name("C0000007") == ("right" if preferred else {1: "second", 2: "third", 5: "fourth"}[fallback])
    assert concepts.name("C0000009") == "" and not concepts.has_name("C0000009") and concepts.has_name("C0000007")


def test_the_first_known_type_gives_the_group() -> None:
    concepts = Concepts()
    assert [concepts.put_type(kind(4, tui).split("|")) for tui in ("T999", "T047", "T121")] == ["unknown_type", "type", "type"]
    assert concepts.group("C0000004") == "Disorders" and concepts.group("C0000005") == ""


def test_there_are_fifteen_groups_and_a_type_is_in_one() -> None:
    assert len(GROUPS) == 16 and set(GROUP_OF_TYPE.values()) == set(range(1, 16))
    samples = {
        "T047": "Disorders",
        "T121": "Chemicals & Drugs",
        "T023": "Anatomy",
        "T060": "Procedures",
        "T083": "Geographic Areas",
    }
    assert {tui: GROUPS[GROUP_OF_TYPE[tui]] for tui in samples} == samples


# ---- what is left out ---------------------------------------------------------------------------------------------------------


def test_every_row_of_every_file_is_accounted_for(tmp_path: Path) -> None:
    write(
        tmp_path,
        MRCONSO=[*RELEASE["MRCONSO"], atom(4, "Schmerz", language="GER", sab="MSHGER"), atom(5, "Gone", suppress="O"), "x"],
        MRREL=[
            relation(1, "may_treat", 2),
            relation(1, "may_treat", 2, rui="R2"),
            relation(1, "", 2),
            relation(1, "same_as", 1),
            relation(1, "isa", 3, suppress="Y"),
            relation(4, "may_treat", 2),
            relation(1, "may_treat", 5),
            "C1|",
        ],
        MRDEF=[
            meaning(2, "A powder."),
            meaning(2, "Again."),
            meaning(1, "Ein Leid.", sab="MSHGER"),
            meaning(3, "Red.", suppress="O"),
            meaning(5, "No name."),
            meaning(3, ""),
        ],
    )
    made = {table: make(tmp_path, table) for table in RELEASE}
    assert left_out(made["MRREL"]) == {"repeated": 1, "no_relation_name": 1, "same_concept": 1, "suppressed": 1, "no_name": 2}
    assert left_out(made["MRDEF"]) == {"repeated": 1, "not_english": 1, "suppressed": 1, "no_name": 1}
    assert left_out(made["MRCONSO"]) == {"name": 3, "not_english": 1, "suppressed": 1}
    for table, rows in made.items():
        lines = (tmp_path / f"{table}.RRF").read_text().count("\n")
        assert len(chats(rows)) + len(faults(rows)) + sum(left_out(rows).values()) == lines


def test_two_concepts_of_one_name_are_not_asked_about(tmp_path: Path) -> None:
    write(tmp_path, MRCONSO=[atom(1, "Cold"), atom(2, "cold")])
    rows = make(tmp_path, "MRREL")
    assert not chats(rows) and left_out(rows) == {"same_name": 1}


# ---- balance ------------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30)), max_size=80),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_of_every_kind_those_with_the_lowest_ranks_are_kept(offered: list[tuple[str, int]], cap: int, draw: object) -> None:
    chosen = Balanced[tuple[str, int]](cap)
    for group, rank in offered:
        chosen.put(group, rank, (group, rank))
    oracle = {(group, rank) for group in "abc" for rank in sorted({r for g, r in offered if g == group})[:cap]}
    assert sorted(item for _, item in chosen.items()) == sorted(oracle)
    assert all(item[1] == rank for rank, item in chosen.items())


def test_relations_are_balanced_over_names_and_pairs_of_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_PAIR", 4)
    monkeypatch.setattr(module, "PER_RELATION", 6)
    types = ("T184", "T121", "T167")
    stated = [("may_treat", a, b) for a, b in product(range(30), range(30)) if a != b] + [("isa", 0, 1), ("isa", 1, 2)]
    write(
        tmp_path,
        MRCONSO=[atom(cui, f"Thing {cui}") for cui in range(30)],
        MRSTY=[kind(cui, types[cui % 3]) for cui in range(30)],
        MRREL=[relation(b, name, a) for name, a, b in stated],
    )
    rows = make(tmp_path, "MRREL")
    parts = [row.id.split(":") for row in chats(rows)]
    assert Counter(name for _, _, name, _ in parts) == {"may_treat": 6, "isa": 2}
    pairs = Counter((int(a[1:]) % 3, int(b[1:]) % 3) for _, a, name, b in parts if name == "may_treat")
    assert max(pairs.values()) <= 4 and left_out(rows) == {"balance": len(stated) - 8}
    places = [stated.index((name, int(a[1:]), int(b[1:]))) for _, a, name, b in parts]
    assert places == sorted(places)
    other = {row.id for row in chats(make(tmp_path, "MRREL", 8))}
    assert {row.id for row in chats(make(tmp_path, "MRREL"))} == {row.id for row in chats(rows)} != other


def test_descriptions_are_balanced_over_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PER_GROUP", 3)
    write(
        tmp_path,
        MRCONSO=[atom(cui, f"Thing {cui}") for cui in range(20)],
        MRSTY=[kind(cui, "T184" if cui < 18 else "T121") for cui in range(20)],
        MRDEF=[meaning(cui, f"It is {cui}.") for cui in range(20)],
    )
    rows = make(tmp_path, "MRDEF")
    numbers = [int(row.id[6:13]) for row in chats(rows)]
    assert sum(number < 18 for number in numbers) == 3 and numbers[-2:] == [18, 19] and left_out(rows) == {"balance": 15}


# ---- choices ------------------------------------------------------------------------------------------------------------------

NAMES = ("may_treat", "may_prevent", "isa", "part_of", "causes", "occurs_in")


def graph(folder: Path) -> Path:
    """Forty pairs of which each has two relations, and which pair has which."""
    lines = [relation(n, name, n + 100) for n in range(40) for name in (NAMES[n % 6], NAMES[(n + 1) % 6])]
    atoms = [atom(n, f"Thing {n}") for n in range(140)]
    return write(folder, MRCONSO=atoms, MRREL=[*lines, relation(1, NAMES[4], 101, suppress="O")])


def test_a_choice_has_one_true_option_in_a_drawn_place(tmp_path: Path) -> None:
    graph(tmp_path)
    places, choices, total = Counter[str](), 0, 0
    for seed in range(8):
        for row in chats(make(tmp_path, "MRREL", seed)):
            total += 1
            user, assistant = said(row)
            head, *options = user.split("\n")
            if not options:
                continue
            choices += 1
            _, subject, name, object_ = row.id.split(":")
            number = int(object_[1:])
            true = {phrase(NAMES[number % 6]), phrase(NAMES[(number + 1) % 6])} | ({"causes"} if number == 1 else set())
            assert int(subject[1:]) == number + 100
            assert head.index(f"Thing {number + 100}") < head.rindex(f"Thing {number}")
            texts = [option[3:] for option in options]
            assert len(texts) == len(set(texts)) == 4 and [option[:3] for option in options] == ["A. ", "B. ", "C. ", "D. "]
            assert assistant in options and assistant[3:] == phrase(name)
            assert [text for text in texts if text in true] == [phrase(name)]
            places[assistant[0]] += 1
    assert 0.15 < choices / total < 0.35
    assert set(places) == set("ABCD") and min(places.values()) > choices / 10


@given(st.sets(st.sampled_from(NAMES)), st.integers(0, 500))
@settings(max_examples=100, deadline=None)
def test_distractors_are_different_and_never_true(true: set[str], seed: int) -> None:
    found = distractors(NAMES, true, seed, "key")
    assert len(found) == len(set(found)) == min(3, len(NAMES) - len(true)) and not set(found) & true
    assert found == distractors(NAMES, true, seed, "key")


def test_without_enough_other_relations_all_are_asked_openly(tmp_path: Path) -> None:
    write(tmp_path, MRREL=[relation(1, "may_treat", 2), relation(1, "causes", 3), relation(2, "isa", 3)])
    for seed in range(12):
        assert all("\n" not in said(row)[0] for row in chats(make(tmp_path, "MRREL", seed)))


def test_the_same_seed_gives_the_same_rows_and_ids_do_not_depend_on_it(tmp_path: Path) -> None:
    graph(tmp_path)
    first = make(tmp_path, "MRREL", 1)
    assert make(tmp_path, "MRREL", 1) == first and len({row.id for row in chats(first)}) == len(chats(first)) == 80
    others = [make(tmp_path, "MRREL", seed) for seed in range(2, 5)]
    assert all([row.id for row in chats(other)] == [row.id for row in chats(first)] and other != first for other in others)


# ---- faults -------------------------------------------------------------------------------------------------------------------

WIDTHS = {"MRCONSO": 18, "MRREL": 16, "MRDEF": 8, "MRSTY": 6}


@pytest.mark.parametrize("table", sorted(RELEASE))
@given(columns=st.integers(0, 25))
@settings(max_examples=20, deadline=None)
def test_a_row_with_another_number_of_columns_is_malformed(
    tmp_path_factory: pytest.TempPathFactory, table: str, columns: int
) -> None:
    good = RELEASE[table][0]
    bad = "".join(f"{field}|" for field in (good.split("|")[:-1] + ["x"] * 25)[:columns])
    rows = make(write(tmp_path_factory.mktemp("umls"), **{table: [good, bad, good]}), table)
    expected = [(f"raw/{table}.RRF:2", "malformed", f"line 2: {columns} columns, {table} has {WIDTHS[table]}")]
    assert faults(rows) == ([] if columns == WIDTHS[table] else expected)


def test_other_rows_that_cannot_be_used_are_malformed_with_line_and_reason(tmp_path: Path) -> None:
    good = relation(1, "may_treat", 2).encode()
    bad = {
        good.replace(b"C0000002", b"C2"): "CUI2 is 'C2', not `C` and seven digits",
        good.replace(b"C0000001", "C000000\u0663".encode()): "CUI1 is 'C000000\u0663', not `C` and seven digits",
        good.replace(b"|RO|", b"||"): "REL is empty",
        good.replace(b"MED-RT", b"\xff"): "'utf-8' codec can't decode byte 0xff in position 49: invalid start byte",
        good.replace(b"MED-RT", b"\0"): "holds a NUL byte",
        good + b"rest": "does not end with `|` but with 'rest'",
        b"x" * (3 * LINE_BYTES): f"longer than {LINE_BYTES} bytes",
        b"": "0 columns, MRREL has 16",
        b'{"a": 1}': "does not end with `|` but with '{\"a\": 1}'",
    }
    write(tmp_path)
    (tmp_path / "MRREL.RRF").write_bytes(b"\n".join([*bad, good, good.replace(b"may_treat", b"isa") + b"\r"]))
    rows = make(tmp_path, "MRREL")
    assert faults(rows) == [
        (f"raw/MRREL.RRF:{line}", "malformed", f"line {line}: {reason}") for line, reason in enumerate(bad.values(), start=1)
    ]
    assert [row.id.split(":")[2] for row in chats(rows)] == ["may_treat", "isa"]


def test_quotes_and_tabs_are_text(tmp_path: Path) -> None:
    write(tmp_path, MRCONSO=[atom(2, 'The "old"\tremedy')])
    assert '"old" remedy' in said(chats(make(tmp_path, "MRDEF"))[0])[0]


def test_what_is_malformed_in_a_file_beside_is_told_once_where_that_file_is_read(tmp_path: Path) -> None:
    write(tmp_path, MRCONSO=[*RELEASE["MRCONSO"], "broken"], MRSTY=["broken|"])
    assert not faults(make(tmp_path, "MRREL")) and not faults(make(tmp_path, "MRDEF"))
    assert [fault[0] for table in ("MRCONSO", "MRSTY") for fault in faults(make(tmp_path, table))] == [
        "raw/MRCONSO.RRF:4",
        "raw/MRSTY.RRF:1",
    ]


@pytest.mark.parametrize("missing", ["MRCONSO", "MRSTY"])
def test_a_file_that_is_not_beside_is_named(tmp_path: Path, missing: str) -> None:
    (write(tmp_path) / f"{missing}.RRF").unlink()
    with pytest.raises(InputError, match=rf"raw/{missing}.RRF.*is not there, and MRREL.RRF cannot be understood without it"):
        make(tmp_path, "MRREL")


@pytest.mark.parametrize("table", sorted(RELEASE))
def test_an_empty_file_is_an_error(tmp_path: Path, table: str) -> None:
    with pytest.raises(InputError, match=f"raw/{table}.RRF.*empty"):
        make(write(tmp_path, **{table: []}), table)


def test_a_file_of_another_name_is_an_error() -> None:
    with pytest.raises(InputError, match=r"raw/MRSAT.RRF.*its name is none of MRCONSO.RRF"):
        list(INSTRUCTION_FORMATS["umls"](BytesIO(b"x|"), "raw/MRSAT.RRF", "set", 1))
