"""Sets made from a corpus: passages, the questions that they answer, and which documents are passed over. All texts are invented."""

import gzip
import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.artifact import Artifact, ArtifactFile
from medschool.corpus.admit import Terms, admit
from medschool.corpus.clean import Rules
from medschool.corpus.medline import medline
from medschool.errors import InputError, RecipeError
from medschool.instructions.from_corpus import copies_in, corpus_files, read_documents
from medschool.instructions.passages import Passage, passages, sentences_of
from medschool.instructions.reading import PER_KIND, reading_comprehension
from medschool.instructions.title import medline_conclusion, title_conclusion
from medschool.procedure import stages
from medschool.recipe import Recipe, load
from medschool.rows import DOCUMENT_SCHEMA, Conversation, Document, Draft, table
from medschool.stage import Stage

ROOT = Path(__file__).parents[2]
TITLE = "Oil and the tin knee"
FIRST = "Clockwork gardeners have knees of tin that squeak. Moreover, their elbows are made of brass and copper."
SECOND = (
    "RESULTS: Tin hardens in the rain of a long winter because the water cools it. As a result, the gardener cannot kneel any "
    "more. In other words, the gardener has to stand. However, oil softens the tin of the knee again."
)
THIRD = "A squeak is defined as a noise of tin on tin. We recommend lubrication, winterproofing, rustproofing and disassembly."


def document(text: str = "\n\n".join((TITLE, FIRST, SECOND, THIRD)), title: str = TITLE, id_: str = "pmid:1") -> Document:
    return Document(id_, "papers", text, title, "cc-by", 2020, "abstract", "raw/m.xml")


def asked(found: Document, words: int = 200, seed: int = 7) -> dict[str, list[Conversation]]:
    by_kind: dict[str, list[Conversation]] = {}
    for row in reading_comprehension(found, "set", seed, words):
        by_kind.setdefault(row.kind, []).append(row)
    return by_kind


def said(row: Conversation) -> tuple[str, str]:
    assert [message.role for message in row.messages] == ["user", "assistant"]
    return row.messages[0].content, row.messages[1].content


# ---- passages -----------------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["tin", "Oil", "e.g.", "al.", "E.", "(dry)", "12", "rain.", "Knees?", "No!", "RESULTS:", "##"])
PARAGRAPHS = st.lists(st.lists(WORDS, min_size=1, max_size=30).map(" ".join), max_size=6)


@settings(max_examples=50, deadline=None)
@given(st.lists(WORDS, max_size=40).map(" ".join))
def test_sentences_are_the_whole_paragraph(paragraph: str) -> None:
    assert " ".join(sentences_of(paragraph)) == paragraph


@pytest.mark.parametrize(
    ("paragraph", "count"),
    [
        ("Tin squeaks. Oil helps.", 2),
        ("Tin squeaks (see Hammer et al. 2019). Oil helps.", 2),
        ("It was E. Coli of Dr. Tin, e.g. The first. Then it went.", 2),
        ("A dose of 3.5 mg. 12 knees.", 2),
        ('Does it? It does! (So they say.) "Yes." And so on.', 5),
    ],
)
def test_a_sentence_ends_where_the_next_one_begins(paragraph: str, count: int) -> None:
    assert len(sentences_of(paragraph)) == count


@settings(max_examples=50, deadline=None)
@given(PARAGRAPHS, st.integers(1, 40))
def test_each_sentence_that_is_short_enough_stands_in_one_passage_in_order(paragraphs: list[str], words: int) -> None:
    found = passages(document("\n\n".join(paragraphs), ""), words)
    lines = [sentence for paragraph in paragraphs if not paragraph.startswith("## ") for sentence in sentences_of(paragraph)]
    wanted = [sentence for sentence in lines if len(sentence.split()) <= words]
    assert [sentence for passage in found for sentence in passage.sentences] == wanted
    assert all(0 < len(passage.text.split()) <= words and all(passage.paragraphs) for passage in found)
    joined = [len(" ".join((*one.sentences, two.sentences[0])).split()) for one, two in pairwise(found)]
    assert all(size > words for size in joined) or len(wanted) < len(lines)  # none ends early


def test_title_and_headings_are_no_part_of_a_passage() -> None:
    (passage,) = passages(document(f"{TITLE}\n\n## Abstract\n\n### Results\n\nTin squeaks. Oil helps."), 50)
    assert passage == Passage((("Tin squeaks.", "Oil helps."),)) and passage.pairs == (("Tin squeaks.", "Oil helps."),)


# ---- questions ----------------------------------------------------------------------------------------------------------------


def test_every_kind_of_question_is_found_with_its_answer() -> None:
    found = asked(document())
    answers = {kind.removeprefix("reading/"): {said(row)[1] for row in rows} for kind, rows in found.items()}
    assert answers["title"] == {TITLE}
    assert answers["terms"] == {"We recommend lubrication, winterproofing, rustproofing and disassembly."}
    assert answers["definition"] == {"A squeak is defined as a noise of tin on tin."}
    assert answers["inference"] == {"Neither.", "It is contradicted."}
    assert answers["cause"] == {"Because the water cools it."}
    assert answers["effect"] == {"The gardener cannot kneel any more."}
    assert answers["paraphrase"] == {"They say much the same."}
    assert answers["completion"] == answers["terms"]
    assert "lubrication, winterproofing, rustproofing" not in said(found["reading/completion"][0])[0]
    listed = said(found["reading/terms"][0])[0].rsplit(": ", 1)[1]
    assert listed.rstrip(".?") == "lubrication, winterproofing, rustproofing"


def test_a_question_comes_with_its_passage_and_its_document() -> None:
    rows = [row for some in asked(document()).values() for row in some]
    text = passages(document(), 200)[0].text
    for row in rows:
        user, answer = said(row)
        assert (row.source, row.licence, row.uri, row.document) == ("set", "cc-by", "raw/m.xml", "pmid:1")
        assert answer and (text in user) == (row.kind != "reading/completion")
    assert len({row.id for row in rows}) == len(rows) and "pmid:1:effect:0" in {row.id for row in rows}


@pytest.mark.parametrize(
    ("link", "kind", "answer"),
    [
        ("Therefore,", "inference", "It is entailed."),
        ("Thus", "inference", "It is entailed."),
        ("In addition,", "inference", "Neither."),
        ("Yet", "inference", "It is contradicted."),
        ("Consequently,", "effect", "The old knee squeaks again."),
        ("By contrast,", "paraphrase", "They say different things."),
        ("Likewise,", "paraphrase", "They say much the same."),
    ],
)
def test_a_connective_is_taken_out_of_the_question_it_answers(link: str, kind: str, answer: str) -> None:
    found = asked(document(f"The rain of winter is cold. {link} the old knee squeaks again.", ""))
    (row,) = found.pop(f"reading/{kind}")
    assert said(row)[1] == answer and not found
    question = said(row)[0].rpartition("\n\n")[2]
    assert link not in question and "The rain of winter is cold." in question


@pytest.mark.parametrize(
    "text",
    [
        "Tin squeaks.",
        "the rain is cold. however, knees squeak.",  # no sentence begins
        "The rain of winter is cold.\n\nHowever, the old knee squeaks again.",  # another paragraph
        "The rain of winter is cold. Thusly the old knee squeaks again.",
        "However, the old knee squeaks again in winter.",
        "",
    ],
)
def test_nothing_is_made_of_what_says_nothing(text: str) -> None:
    assert not asked(document(text, ""))


def test_a_title_is_asked_of_the_first_passage_and_not_where_the_passage_tells_it() -> None:
    (row,) = asked(document(), words=20)["reading/title"]
    assert "Clockwork gardeners" in said(row)[0] and "hardens" not in said(row)[0]
    assert "reading/title" not in asked(document(f"We tell of oil and the tin knee. {FIRST}"))


SENTENCES = st.lists(st.sampled_from([*sentences_of(FIRST), *sentences_of(SECOND), *sentences_of(THIRD)]), max_size=12)


@settings(max_examples=50, deadline=None)
@given(SENTENCES, st.integers(8, 80), st.integers(0, 3))
def test_an_answer_stands_in_the_document_or_is_one_of_five_judgements(some: list[str], words: int, seed: int) -> None:
    text = " ".join(some)
    labels = ("It is entailed.", "It is contradicted.", "Neither.", "They say much the same.", "They say different things.")
    found = asked(document(text, TITLE), words, seed)
    for kind, rows in found.items():
        assert len(rows) <= PER_KIND
        for row in rows:
            answer = said(row)[1]
            judged = kind in ("reading/inference", "reading/paraphrase")
            assert (answer in labels) if judged else answer.casefold() in f"{text} {TITLE}".casefold()
    assert found == asked(document(text, TITLE), words, seed)


def test_the_seed_draws_questions_and_words_and_an_id_means_one_question() -> None:
    text = " ".join(
        f"The knee number {number} squeaks in the rain. However, oil helps number {number} well." for number in range(9)
    )
    by_id: dict[str, set[str]] = {}
    for seed in range(8):
        for row in asked(document(text, ""), 500, seed)["reading/inference"]:
            by_id.setdefault(row.id, set()).add(said(row)[0].split("\n2. ")[1].split("\n")[0])
    assert len(by_id) > PER_KIND and all(len(questions) == 1 for questions in by_id.values())


# ---- titles that ask ----------------------------------------------------------------------------------------------------------

XML = """<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>17</PMID><Article><Journal><JournalIssue><PubDate><Year>2001</Year>
</PubDate></JournalIssue></Journal><ArticleTitle>Is  rust red?</ArticleTitle><Abstract><AbstractText Label="RESULTS">Of nine knees
eight were red. The ninth was not.</AbstractText><AbstractText Label="CONCLUSIONS">Rust is red.</AbstractText></Abstract>
<AuthorList><Author><LastName>Hammer</LastName></Author></AuthorList><Language>eng</Language></Article></MedlineCitation>
</PubmedArticle></PubmedArticleSet>"""


def test_a_document_gives_the_conversations_that_its_raw_record_gives() -> None:
    raw = list(medline_conclusion(io.BytesIO(XML.encode()), "raw/m.xml", "set", 3))
    (draft,) = medline(io.BytesIO(XML.encode()), "raw/m.xml", "papers")
    assert isinstance(draft, Draft)
    terms = Terms(Rules(20, frozenset({"nlm-medline"})), frozenset(), frozenset(), None, (), None)
    row = admit(draft, terms, None).row
    assert isinstance(row, Document) and list(title_conclusion(row, "set", 3, 60)) == raw and len(raw) == 2


def test_the_abstract_of_a_full_text_has_headings_for_labels() -> None:
    text = "Is it?\n\n## Abstract\n\n### Results\n\nIt rusted.\n\n### Conclusion\n\nIt is.\n\n## Methods\n\nWe looked.\n\n### Conclusion\n\nNo."
    context, alone = title_conclusion(document(text, "Is it?"), "set", 3, 60)
    assert isinstance(context, Conversation) and isinstance(alone, Conversation)
    assert said(context)[1] == said(alone)[1] == "It is." and "RESULTS: It rusted.\n" in said(context)[0]
    assert not list(title_conclusion(document("It is.\n\nYes.", "It is."), "set", 3, 60))


# ---- from a corpus ------------------------------------------------------------------------------------------------------------


def recipe(*overrides: str, maker: str = "reading_comprehension") -> Recipe:
    asked = f"{{from_corpus: {{source: papers, format: {maker}, passage_words: 60}}, licences: [cc-by]}}"
    return load(ROOT / "recipes" / "quickstart.yaml", (f"instructions.reading={asked}", *overrides))


def corpus(folder: Path, *files: list[Document]) -> Artifact:
    for number, rows in enumerate(files):
        (folder / "documents").mkdir(exist_ok=True)
        pq.write_table(table(rows, DOCUMENT_SCHEMA), folder / "documents" / f"{number:05}.parquet", row_group_size=2)
    names = [f"documents/{number:05}.parquet" for number in range(len(files))]
    made = [ArtifactFile(name, 0, "") for name in ("dropped/00000.parquet", *names)]
    return Artifact("corpus/papers", "f00d", "", str(folder), tuple(made), {}, {}, 0.0)


def test_every_document_is_asked_about_or_counted(tmp_path: Path) -> None:
    first = [document(id_=f"pmid:{number}") for number in range(5)]
    second = [document(id_="canary:0001:1"), document(id_="pmid:3"), document("No.", "", "pmid:8"), document(id_="pmid:9")]
    made = corpus(tmp_path, first, second)
    parts = corpus_files(recipe(), "reading", made)
    readings = [read_documents(part, "reading", frozenset({"pmid:4"}), 7, 60, str(tmp_path)) for part in parts]
    left_out = sum((reading.left_out for reading in readings), Counter())
    assert left_out == {"canary": 1, "near_duplicate": 1, "same_id": 1, "nothing_to_ask": 1}
    paths = [tmp_path / "read" / "made" / name for reading in readings for name in reading.names()]
    rows = pa.concat_tables(map(pq.read_table, paths)).to_pylist()
    assert {row["document"] for row in rows} == {"pmid:0", "pmid:1", "pmid:2", "pmid:3", "pmid:9"}
    assert len({row["id"] for row in rows}) == len(rows) and {row["source"] for row in rows} == {"reading"}
    assert sum(reading.rows for reading in readings) == len(rows) + 4


def test_a_corpus_file_that_is_not_whole_stops_the_stage(tmp_path: Path) -> None:
    made = corpus(tmp_path, [document()])
    (part,) = corpus_files(recipe(), "reading", made)
    (tmp_path / "documents" / "00000.parquet").write_bytes(gzip.compress(b"x"))
    with pytest.raises(InputError, match="not a whole Parquet file"):
        read_documents(part, "reading", frozenset(), 7, 60, str(tmp_path))


def test_a_maker_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no format 'reading'") as raised:
        corpus_files(recipe(maker="reading"), "reading", corpus(tmp_path))
    assert "conclusion, reading_comprehension" in raised.value.remedy


def test_without_near_duplicates_there_are_no_copies() -> None:
    assert copies_in(recipe("near_duplicates=null"), "reading", {}) == frozenset()


# ---- in the recipe ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("instructions.reading.from_corpus=null", "give exactly one of `files`"),
        ("instructions.reading.files=[{uri: raw/a, format: mmlu}]", "give exactly one of `files`"),
        ("instructions.reading.from_corpus.source=novels", "from_corpus.source: 'novels' is not one of books, papers, general"),
        ("instructions.reading.subjects=[anatomy]", "a source has none"),
        ("instructions.reading.ask=rationale_general", "rationale_general needs exam questions"),
    ],
)
def test_what_does_not_fit_together_is_refused(override: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        recipe(override)


def stage(*overrides: str, name: str = "instructions/reading") -> Stage:
    return next(found for found in stages(recipe(*overrides)) if found.name == name)


def test_a_set_from_a_corpus_rests_on_its_documents_and_copies_and_on_no_raw_file() -> None:
    made = stage()
    assert set(made.inputs) == {"exams/mmlu_clinical", "corpus/papers", "duplicates"} and made.raw == ()
    assert set(stage("near_duplicates=null").inputs) == {"exams/mmlu_clinical", "corpus/papers"}
    assert stage("instructions.reading.from_corpus.passage_words=61").sections != made.sections
    assert stage("instructions.reading.from_corpus.source=books").inputs != made.inputs


def test_a_set_from_files_is_decided_by_what_decided_it_before() -> None:
    made = stage(name="instructions/graph")
    assert (
        "from_corpus" not in made.sections["set"]
        and set(made.inputs) == {"exams/mmlu_clinical"}
        and made.raw == ("raw/hpo/hp.obo",)
    )


def test_stages_come_after_the_documents_that_they_are_made_from() -> None:
    seen: set[str] = set()
    for found in stages(recipe()):
        assert set(found.inputs.values()) <= seen
        seen.add(found.name)


def test_one_override_puts_the_set_into_the_tuning_and_takes_it_out() -> None:
    with_, without = (
        stage(f"variants.instructed.instructions={{exam_questions: 3{more}}}", name="instruct/instructed")
        for more in (", reading: 1", "")
    )
    assert set(with_.inputs) - set(without.inputs) == {"chats/reading"}
