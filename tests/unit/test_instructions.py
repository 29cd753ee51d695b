"""Every maker of instructions on small files in their real format. All texts here are invented."""

import gzip
import io
import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.errors import InputError
from medschool.exams.layout import DIRECT_INSTRUCTIONS, RATIONALE_INSTRUCTIONS, parse_answer
from medschool.instructions.formats import INSTRUCTION_FORMATS, subject_of
from medschool.rows import Conversation, Dropped


def make(name: str, data: str | bytes, seed: int = 7) -> list[Conversation | Dropped]:
    stream = io.BytesIO(data.encode() if isinstance(data, str) else data)
    return list(INSTRUCTION_FORMATS[name](stream, "raw/f", "set", seed))


def chats(name: str, data: str, seed: int = 7) -> list[Conversation]:
    rows = make(name, data, seed)
    assert all(isinstance(row, Conversation) for row in rows), rows
    return [row for row in rows if isinstance(row, Conversation)]


def drops(rows: list[Conversation | Dropped]) -> list[tuple[str, str, str]]:
    return [(row.id, row.step, row.reason) for row in rows if isinstance(row, Dropped)]


def said(row: Conversation | Dropped) -> tuple[str, str]:
    assert isinstance(row, Conversation) and [message.role for message in row.messages] == ["user", "assistant"]
    return row.messages[0].content, row.messages[1].content


# ---- exam questions -----------------------------------------------------------------------------------------------------------


def question(options: tuple[str, ...] = ("Iron", "Rust", "Clay", "Salt"), letter: str = "B", topic: str = "human aging") -> str:
    keys = {f"answer_{key}": option for key, option in zip("abcd", options, strict=True)}
    return json.dumps({"question": "What is red?", **keys, "correct_answer": letter, "topic": topic})


def test_an_exam_question_is_put_twice_in_the_layout_of_the_exam() -> None:
    direct, shuffled = chats("mmlu", question())
    user, assistant = said(direct)
    instruction, _, rest = user.partition("\n\n")
    assert rest == "###Question: What is red?\n###Options:\nA. Iron\nB. Rust\nC. Clay\nD. Salt\n"
    assert assistant == "###Answer: OPTION B IS CORRECT."
    other = said(shuffled)[0].partition("\n\n")[0]
    assert {instruction, other} <= set(DIRECT_INSTRUCTIONS) and instruction != other
    assert [row.id for row in (direct, shuffled)] == ["human_aging:1:direct", "human_aging:1:shuffled"]
    assert {(row.kind, row.licence, row.source, row.uri) for row in (direct, shuffled)} == {("exam", "mit", "set", "raw/f")}


def options_of(row: Conversation) -> list[str]:
    return [line[3:] for line in said(row)[0].splitlines() if line[1:3] == ". "]


OPTION = st.text("klmnop +-", min_size=1, max_size=6).map(str.strip).filter(bool)


@given(
    st.lists(OPTION, min_size=4, max_size=4, unique_by=lambda text: " ".join(text.split())),
    st.sampled_from("ABCD"),
    st.integers(0, 50),
)
@settings(max_examples=150, deadline=None)
def test_the_letter_follows_the_right_option_into_another_order(options: list[str], letter: str, seed: int) -> None:
    direct, shuffled = chats("mmlu", question(tuple(options), letter), seed)
    right = " ".join(options["ABCD".index(letter)].split())
    for row in (direct, shuffled):
        index = parse_answer(said(row)[1], 4)
        assert index is not None and options_of(row)[index] == right
    assert options_of(direct) != options_of(shuffled) and sorted(options_of(direct)) == sorted(options_of(shuffled))


def test_shuffled_is_never_the_order_of_the_file() -> None:
    for row in chats("mmlu", "\n".join([question()] * 200)):
        assert (options_of(row) == ["Iron", "Rust", "Clay", "Salt"]) == row.id.endswith("direct")


def test_the_right_letter_of_shuffled_questions_is_spread_over_all_letters() -> None:
    rows = chats("mmlu", "\n".join([question()] * 200))
    letters = [parse_answer(said(row)[1], 4) for row in rows if row.id.endswith("shuffled")]
    assert all(30 <= letters.count(index) <= 70 for index in range(4))


@pytest.mark.parametrize(
    "option",
    [
        "All of the above",
        "none of above.",
        "Both A and C",
        "a. and b. above",
        "(A), (B), and (C)",
        "neither A nor B",
        "C only",
        "a and b only",
    ],
)
def test_options_that_speak_of_each_other_keep_their_order(option: str) -> None:
    direct, twin = make("mmlu", question(("Iron", "Rust", "Clay", option)))
    assert direct.id == "human_aging:1:direct" and options_of(direct)[3] == option  # type: ignore[arg-type]
    assert drops([twin]) == [
        ("human_aging:1:shuffled", "fixed_order", f"the option {option!r} speaks of other options by their place")
    ]


@pytest.mark.parametrize("option", ["98% or above", "A base above it", "both eyes", "vitamin D", "cells of types B and T"])
def test_other_options_are_shuffled(option: str) -> None:
    assert len(chats("mmlu", question(("Iron", "Rust", "Clay", option)))) == 2


def test_a_malformed_question_is_dropped_as_in_the_exam() -> None:
    rows = make("mmlu", "\n".join([question(letter="E"), question()]))
    assert drops(rows) == [("raw/f:1", "malformed", "line 1: correct_answer is 'E', not one of A, B, C, D")] and len(rows) == 3


# ---- worked questions ---------------------------------------------------------------------------------------------------------


def worked(*samples: tuple[str, str], name: str = "human_aging") -> str:
    listed = [{"question": text, "target": target} for text, target in samples]
    return json.dumps({"dataset_name": name, "fewshot_config": {"sampler": "first_n", "samples": listed}, "task": "t"})


ASKED = "What is red (A) here?\n\n(A) Iron\n(B) Rust, wet  (C) Clay (D) Salt"
TARGET = (
    "Let's think step by step. We refer to Wikipedia articles on metals, old for help. Let\u2019s solve this problem step by step. "
    "Iron (A) is grey.\nSo it is (B). The answer is (B).\n\n"
)


def test_a_worked_question_gives_the_rationale_then_the_answer() -> None:
    (row,) = chats("mmlu_rationale", worked((ASKED, TARGET)))
    user, assistant = said(row)
    instruction, _, rest = user.partition("\n\n")
    assert instruction in RATIONALE_INSTRUCTIONS
    assert rest == "###Question: What is red (A) here?\n###Options:\nA. Iron\nB. Rust, wet\nC. Clay\nD. Salt\n"
    assert assistant == "###Rationale: Iron (A) is grey. So it is (B).\n###Answer: OPTION B IS CORRECT."
    assert (row.id, row.kind, row.licence) == ("human_aging:sample1:rationale", "rationale", "mit")


@pytest.mark.parametrize(
    ("asked", "target", "reason"),
    [
        ("What is red?\n(A) Iron (B) Rust (C) Clay", TARGET, "question: no options (A) to (D)"),
        ("(A) Iron (B) Rust (C) Clay (D) Salt", TARGET, "question: no options (A) to (D)"),
        ("What?\n(A) Iron (B) (C) Clay (D) Salt", TARGET, "question: an option is empty"),
        ("What?\n(A) Iron (B) Rust (C) Clay (D) Rust", TARGET, "question: options B and D are equal"),
        (ASKED, "Iron is grey.", "target: does not end in `The answer is (A).` or another letter of the options"),
        (
            ASKED,
            "It is grey. The answer is (E).",
            "target: does not end in `The answer is (A).` or another letter of the options",
        ),
        (ASKED, "Let's think step by step. The answer is (B).", "target: no rationale before the answer"),
    ],
)
def test_a_worked_question_that_cannot_be_read_is_dropped(asked: str, target: str, reason: str) -> None:
    rows = make("mmlu_rationale", worked((asked, target), (ASKED, TARGET)))
    assert drops(rows) == [("human_aging:sample1", "malformed", reason)]
    assert rows[1].id == "human_aging:sample2:rationale"


def test_the_subject_of_a_conversation_is_spelled_as_in_the_exam() -> None:
    assert subject_of(chats("mmlu", question())[0]) == "human aging"
    assert subject_of(chats("mmlu", question(topic="a: b_c"))[0]) == "a b c"
    assert subject_of(chats("mmlu_rationale", worked((ASKED, TARGET)))[0]) == "human aging"
    assert subject_of(chats("medline_conclusion", record())[0]) is None


# ---- titles that ask ----------------------------------------------------------------------------------------------------------


def record(title: str = "Is rust red?", *parts: str, types: str = "Journal Article", owned: bool = False) -> str:
    labelled = [part.partition(": ") for part in parts or ("METHODS: We looked. Twice.", "CONCLUSION: Rust is red.")]
    body = "".join(f"<AbstractText Label='{label}'>{text}</AbstractText>" for label, _, text in labelled)
    body += "<CopyrightInformation>© A Press</CopyrightInformation>" if owned else ""
    return f"""<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID Version='1'>17</PMID><Article>
      <ArticleTitle>{title}</ArticleTitle><Abstract>{body}</Abstract><Language>eng</Language>
      <PublicationTypeList><PublicationType>{types}</PublicationType></PublicationTypeList>
      </Article></MedlineCitation></PubmedArticle></PubmedArticleSet>"""


def test_a_title_that_asks_is_answered_by_the_conclusion() -> None:
    context, alone = chats("medline_conclusion", record())
    user, assistant = said(context)
    assert user.partition("\n\n")[2] == "METHODS: We looked. Twice.\n\nQuestion: Is rust red?" and assistant == "Rust is red."
    assert said(alone)[0].partition("\n\n")[2] == "Is rust red?" and said(alone)[1] == "Rust is red."
    assert [row.id for row in (context, alone)] == ["pmid:17:context", "pmid:17:alone"]
    assert (context.kind, context.licence) == ("conversation", "nlm-medline")
    assert chats("medline_conclusion", record(owned=True))[0].licence == "publisher-copyright"


@pytest.mark.parametrize("label", ["CONCLUSIONS", "CONCLUSION", "CONCLUSIONS AND RELEVANCE", "CONCLUSION/MEANING"])
def test_labels_of_a_conclusion(label: str) -> None:
    only = chats("medline_conclusion", record("Is rust red?", f"{label}: Yes: it is."))
    assert [row.id for row in only] == ["pmid:17:alone"] and said(only[0])[1] == "Yes: it is."


def test_the_context_is_the_last_whole_sentences_within_sixty_words() -> None:
    sentences = [f"Sentence {number} has {'very ' * 25}many words." for number in range(8)]
    kept = " ".join(sentences[-2:])
    (context, _) = chats("medline_conclusion", record("Is it?", f"RESULTS: {' '.join(sentences)}", "CONCLUSION: Yes."))
    assert said(context)[0].split("\n\n")[1] == kept and len(kept.split()) == 60
    endless = f"RESULTS: {'very ' * 200}long."
    (context, _) = chats("medline_conclusion", record("Is it?", endless, "CONCLUSION: Yes."))
    assert said(context)[0].split("\n\n")[1] == endless


def test_titles_that_do_not_ask_are_no_part_and_others_without_conclusion_are_dropped() -> None:
    assert make("medline_conclusion", record("Rust is red.")) == []
    assert make("medline_conclusion", record("Rust is red.", types="Retracted Publication")) == []
    rows = make("medline_conclusion", record("Is rust red?", "RESULTS: In CONCLUSION: yes."))
    assert drops(rows) == [("pmid:17", "no_conclusion", "the abstract has no paragraph with the label CONCLUSION")]
    assert drops(make("medline_conclusion", record(types="Retracted Publication")))[0][1] == "retracted"


# ---- ontology -----------------------------------------------------------------------------------------------------------------

OBO = """format-version: 1.2

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000118
name: Red thing
def: "Something \\"red\\"." [x:1]
is_a: HP:0000001 ! All

[Term]
id: HP:0000007
name: Rust
def: "Iron oxide" [x:2]
is_a: HP:0000118 ! Red thing
is_a: HP:0000009 ! Old thing
is_a: HP:0000008 ! Wet thing

[Term]
id: HP:0000008
name: Wet thing

[Term]
id: HP:0000009
name: Old thing
def: "Gone." []
is_obsolete: true

[Typedef]
id: part_of
"""


def graph(seed: int = 7) -> dict[str, Conversation | Dropped]:
    return {row.id: row for row in make("hpo_graph", OBO, seed)}


def test_the_graph_gives_definitions_and_relations_that_the_file_states() -> None:
    rows = graph()
    kept = {key: said(row)[1] for key, row in rows.items() if isinstance(row, Conversation)}
    assert kept == {
        "HP:0000118:entity": 'Something "red".',
        "HP:0000007:entity": "Iron oxide.",
        "HP:0000007:relation:1": "Rust is a kind of Red thing.",
        "HP:0000007:relation:2": "Rust is a kind of Wet thing.",
    }
    assert {(row.kind, row.licence) for row in rows.values() if isinstance(row, Conversation)} == {("graph", "hpo")}
    assert drops(list(rows.values())) == [
        ("HP:0000001:entity", "parse", "no definition"),
        ("HP:0000008:entity", "parse", "no definition"),
        ("HP:0000009", "obsolete", "the term is obsolete"),
    ]


def test_a_relation_is_asked_in_both_orders_and_answered_in_one() -> None:
    asked = [said(graph(seed)["HP:0000007:relation:1"]) for seed in range(60)]
    assert {answer for _, answer in asked} == {"Rust is a kind of Red thing."}
    narrow_first = sum(user.index("Rust") < user.index("Red thing") for user, _ in asked)
    assert 15 <= narrow_first <= 45


def test_a_term_without_a_name_is_dropped() -> None:
    rows = make("hpo_graph", "format-version: 1.2\n[Term]\nid: HP:1\n")
    assert drops(rows) == [("HP:1", "parse", "[Term] at line 2 without id or name")]


# ---- diagnosis codes ----------------------------------------------------------------------------------------------------------

ICD = """<ICD10CM.tabular><chapter><section id="X"><desc>Metals</desc>
  <diag><name>Z01</name><desc>Rust</desc><includes><note>red iron</note><note>old  iron</note></includes>
    <excludes1><note>paint</note></excludes1>
    <diag><name>Z01.1</name><desc>Rust, wet</desc><inclusionTerm><note>wet iron</note></inclusionTerm></diag>
    <diag><name>Z01.2</name><desc>rust</desc></diag><diag><name>Z01.3</name></diag></diag>
</section></chapter></ICD10CM.tabular>"""


def codes(seed: int) -> dict[str, Conversation | Dropped]:
    return {row.id: row for row in make("icd10cm_dialogue", ICD, seed)}


def test_codes_are_asked_in_both_directions_unless_a_title_has_several() -> None:
    seen: dict[str, set[tuple[bool, str]]] = {"icd10cm:Z01": set(), "icd10cm:Z01.1": set(), "icd10cm:Z01.2": set()}
    for seed in range(60):
        for key, found in seen.items():
            user, assistant = said(codes(seed)[key])
            found.add((key.removeprefix("icd10cm:") in user, assistant))
            assert "paint" not in user + assistant
    assert seen["icd10cm:Z01"] == {(True, "Z01 stands for Rust. It includes: red iron; old iron.")}
    assert seen["icd10cm:Z01.1"] == {
        (True, "Z01.1 stands for Rust, wet. It includes: wet iron."),
        (False, "Z01.1 stands for Rust, wet."),
    }
    assert seen["icd10cm:Z01.2"] == {(True, "Z01.2 stands for rust.")}


def test_a_code_without_a_title_is_dropped() -> None:
    assert drops(make("icd10cm_dialogue", ICD)) == [("raw/f#4", "parse", "<diag> without name or desc")]


# ---- questions of the three exams of the paper --------------------------------------------------------------------------------


def test_the_paper_s_exams_are_asked_in_one_layout() -> None:
    layout = "###Question: What is red?\n###Options:\nA. Iron\nB. Clay\nC. Salt\nD. Rust\n"
    direct = chats("medmcqa", mcq())[0]
    assert said(direct) == (f"{said(direct)[0].partition('###')[0]}{layout}", "###Answer: OPTION D IS CORRECT.")
    assert (direct.id, direct.licence, subject_of(direct)) == ("Anatomy:u-0:direct", "apache-2.0", "Anatomy")
    explained = chats("medmcqa_rationale", mcq())[0]
    assert said(explained)[1] == "###Rationale: Iron rusts.\n###Answer: OPTION D IS CORRECT." and explained.kind == "rationale"
    assert said(chats("medqa", usmle(7))[0])[1] == "###Answer: OPTION B IS CORRECT."
    asked = said(chats("pubmedqa", abstracts())[0])[0]
    assert asked.endswith("###Context: It was wet.\nIt rusted.\n###Question: Is it red?\n###Options:\nA. yes\nB. no\nC. maybe\n")


def test_what_a_file_does_not_explain_makes_no_rationale() -> None:
    assert drops(make("medmcqa_rationale", mcq(exp=None))) == [
        ("Anatomy:u-0:rationale", "no_rationale", "the file does not say why")
    ]


# ---- all makers ---------------------------------------------------------------------------------------------------------------


def usmle(number: int = 0) -> str:
    options = {"A": "Iron", "B": f"Rust {number}", "C": "Clay", "D": "Salt"}
    return json.dumps(
        {"question": "What is red?", "answer": f"Rust {number}", "options": options, "meta_info": "step1", "answer_idx": "B"}
    )


def mcq(number: int = 0, cop: int = 4, **changes: object) -> str:
    options = {"opa": "Iron", "opb": "Clay", "opc": "Salt", "opd": "Rust"}
    about = {"id": f"u-{number}", "question": "What is red?", "cop": cop, "exp": "Iron\nrusts.", "subject_name": "Anatomy"}
    return json.dumps({**about, **options, **changes})


def abstracts(count: int = 1) -> str:
    about = {
        "QUESTION": "Is it red?",
        "CONTEXTS": ["It was wet.", "It rusted."],
        "final_decision": "yes",
        "LONG_ANSWER": "It is.",
    }
    return json.dumps({str(number): about for number in range(count)})


SAMPLES: dict[str, Callable[[], str]] = {
    "medqa": lambda: "\n".join(map(usmle, range(20))),
    "medmcqa": lambda: "\n".join(map(mcq, range(20))),
    "medmcqa_from_0": lambda: "\n".join(mcq(number, 0) for number in range(20)),
    "medmcqa_from_1": lambda: "\n".join(map(mcq, range(20))),
    "medmcqa_rationale": lambda: "\n".join(map(mcq, range(20))),
    "pubmedqa": lambda: abstracts(20),
    "pubmedqa_answer": lambda: abstracts(20),
    "mmlu": lambda: "\n".join([question()] * 20),
    "mmlu_rationale": lambda: worked(*[(ASKED, TARGET)] * 20),
    "medline_conclusion": record,
    "hpo_graph": lambda: OBO,
    "icd10cm_dialogue": lambda: ICD,
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_maker_repeats_itself_and_the_seed_changes_words_but_no_ids(name: str) -> None:
    data = SAMPLES[name]()
    first = make(name, data, 1)
    assert make(name, data, 1) == first and len({row.id for row in first}) == len(first)
    others = [make(name, data, seed) for seed in range(2, 12)]
    assert all([row.id for row in other] == [row.id for row in first] for other in others)
    assert any(other != first for other in others)


@pytest.mark.parametrize("name", sorted(SAMPLES))
@pytest.mark.parametrize("data", [b"", b"\xff\xfe\x00", gzip.compress(b"x", mtime=0)])
def test_a_file_that_cannot_be_read_is_an_error(name: str, data: bytes) -> None:
    with pytest.raises(InputError, match="raw/f"):
        make(name, data)


@pytest.mark.parametrize("data", ["a: [", "- 1", "dataset_name: x", "dataset_name: x\nfewshot_config: 3", "\x01"])
def test_yaml_of_another_shape_is_an_error(data: str) -> None:
    with pytest.raises(InputError, match="raw/f"):
        make("mmlu_rationale", data)
