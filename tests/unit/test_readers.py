"""Every reader on small files in its real format, sound and broken, and what the corpus steps leave. All texts are invented."""

import gzip
import time
from collections.abc import Iterator
from io import BytesIO, RawIOBase

import pytest

from medschool.corpus import xml
from medschool.corpus.formats import FORMATS
from medschool.corpus.jats import jats
from medschool.corpus.medline import medline
from medschool.corpus.steps import run_steps
from medschool.errors import InputError
from medschool.formats import by_name
from medschool.rows import Draft, Dropped


def raw(name: str, data: str | bytes, uri: str = "raw/sample.xml") -> list[Draft | Dropped]:
    """What the reader gives, with everything in it."""
    return list(FORMATS[name](BytesIO(data.encode() if isinstance(data, str) else data), uri, "papers"))


def read(name: str, data: str | bytes, uri: str = "raw/sample.xml") -> list[Draft | Dropped]:
    """What the reader gives, after all corpus steps."""
    return [run_steps(row)[0] if isinstance(row, Draft) else row for row in raw(name, data, uri)]


def one(name: str, data: str, uri: str = "raw/sample.xml") -> Draft:
    rows = read(name, data, uri)
    assert len(rows) == 1 and isinstance(rows[0], Draft), rows
    return rows[0]


def drop(name: str, data: str, uri: str = "raw/sample.xml") -> Dropped:
    rows = read(name, data, uri)
    assert len(rows) == 1 and isinstance(rows[0], Dropped), rows
    return rows[0]


# ---- MEDLINE ----------------------------------------------------------------------------------------------------------------

ABSTRACT = "<Abstract><AbstractText>Drug A lowered pressure.</AbstractText></Abstract>"


def record(
    pmid: str = "<PMID Version='1'>17</PMID>",
    abstract: str = ABSTRACT,
    language: str = "eng",
    types: str = "Journal Article",
    date: str = "<Year>2004</Year>",
    title: str = "On drug A.",
) -> str:
    kinds = "".join(f"<PublicationType UI='D0'>{kind}</PublicationType>" for kind in types.split("|"))
    return f"""<PubmedArticle><MedlineCitation>{pmid}<Article>
      <Journal><JournalIssue><PubDate>{date}</PubDate></JournalIssue><Title>J</Title></Journal>
      <ArticleTitle>{title}</ArticleTitle>{abstract}<Language>{language}</Language>
      <PublicationTypeList>{kinds}</PublicationTypeList></Article></MedlineCitation></PubmedArticle>"""


def medline_set(*records: str, prolog: str = "") -> str:
    return f"<?xml version='1.0' encoding='utf-8'?>{prolog}<PubmedArticleSet>{''.join(records)}</PubmedArticleSet>"


def test_medline_record_becomes_title_and_labelled_paragraphs() -> None:
    parts = """<Abstract><AbstractText Label="BACKGROUND" NlmCategory="BACKGROUND">It is <i>known</i>.</AbstractText>
      <AbstractText Label="UNLABELLED">No label.</AbstractText>
      <AbstractText Label="RESULTS">10<sup>6</sup> CD4<sup>+</sup> cells in H<sub>2</sub>O.</AbstractText></Abstract>"""
    row = one("medline", medline_set(record(abstract=parts, types="Journal Article|Case Reports")))
    assert row.text == "On drug A.\n\nBACKGROUND: It is known.\n\nNo label.\n\nRESULTS: 10^6 CD4+ cells in H2O."
    assert (row.id, row.title, row.year, row.licence) == ("pmid:17", "On drug A.", 2004, "nlm-medline")
    assert (row.article_type, row.source, row.uri, row.spans) == ("case-reports", "papers", "raw/sample.xml", ())


def test_medline_copyright_decides_the_licence_and_is_not_text() -> None:
    stated = ABSTRACT.replace("</Abstract>", "<CopyrightInformation>© 2021 A Publisher.</CopyrightInformation></Abstract>")
    row = one("medline", medline_set(record(abstract=stated)))
    assert row.licence == "publisher-copyright" and "Publisher" not in row.text


@pytest.mark.parametrize(
    "tail",
    [
        "© 2021 The Society. All rights reserved.",
        "(PsycInfo Database Record (c) 2021 APA, all rights reserved).",
        "Copyright 1998 A Press.",
        "© RSNA, 2021",
        "This article is protected by copyright. All rights reserved.",
    ],
)
def test_medline_copyright_at_the_end_of_the_abstract_counts_too(tail: str) -> None:
    row = one("medline", medline_set(record(abstract=ABSTRACT.replace("pressure.", f"pressure. {tail}"))))
    assert (row.licence, row.text) == ("publisher-copyright", "On drug A.\n\nDrug A lowered pressure.")


def test_medline_words_about_copyright_stay() -> None:
    text = "Groups (a) young, (b) old and (c) 2020 others. Copyright law matters. The PROM© 2020 score does too."
    row = one("medline", medline_set(record(abstract=f"<Abstract><AbstractText>{text}</AbstractText></Abstract>")))
    assert (row.licence, row.text) == ("nlm-medline", f"On drug A.\n\n{text}")


@pytest.mark.parametrize(
    ("date", "year"),
    [("<MedlineDate>1998 Dec-1999 Jan</MedlineDate>", 1998), ("<Season>Spring</Season>", None), ("<Year>x</Year>", None)],
)
def test_medline_year(date: str, year: int | None) -> None:
    assert one("medline", medline_set(record(date=date))).year == year


@pytest.mark.parametrize(
    ("broken", "row_id", "step", "reason"),
    [
        (record(abstract=""), "pmid:17", "parse", "no abstract"),
        (record(abstract="<Abstract><AbstractText> </AbstractText></Abstract>"), "pmid:17", "parse", "no abstract"),
        (record(pmid=""), "raw/sample.xml#2", "parse", "<PubmedArticle> without PMID or Article"),
        ("<PubmedArticle><MedlineCitation><PMID>9</PMID></MedlineCitation></PubmedArticle>", "raw/sample.xml#2", "parse",
         "<PubmedArticle> without PMID or Article"),
        ("<PubmedBookArticle><BookDraft/></PubmedBookArticle>", "raw/sample.xml#2", "parse",
         "<PubmedBookArticle> without PMID or Article"),
        ("<DeleteCitation><PMID Version='2'>5</PMID></DeleteCitation>", "pmid:5.2", "deleted", "NLM deleted this record"),
    ],
)  # fmt: skip
def test_a_medline_record_that_cannot_be_used_is_dropped_and_its_neighbours_are_not(
    broken: str, row_id: str, step: str, reason: str
) -> None:
    neighbour = record(pmid="<PMID>1</PMID>")
    before, row, after = read("medline", medline_set(neighbour, broken, neighbour))
    assert isinstance(before, Draft) and isinstance(after, Draft) and isinstance(row, Dropped)
    assert (row.id, row.step, row.reason, row.source, row.uri) == (row_id, step, reason, "papers", "raw/sample.xml")


def test_medline_says_what_the_record_states_and_drops_nothing_for_it() -> None:
    row = one("medline", medline_set(record(language="fre", types="Journal Article|Retracted Publication")))
    assert (row.language, row.retracted) == ("fre", True)
    row = one("medline", medline_set(record()))
    assert (row.language, row.retracted) == ("eng", False)


def test_medline_drafts_hold_authors_keywords_and_claims_each_marked() -> None:
    owned = "<CopyrightInformation>Copyright 2021 A Press.</CopyrightInformation></Abstract>"
    authors = """<AuthorList><Author><LastName>Roe</LastName><ForeName>Ann B</ForeName><AffiliationInfo><Affiliation>Ward 1, Town.
      </Affiliation></AffiliationInfo></Author><Author><CollectiveName>The Trial Group</CollectiveName></Author></AuthorList>"""
    data = record(abstract=ABSTRACT.replace("pressure.", "pressure. © 2021 The Society.").replace("</Abstract>", owned) + authors)
    data = data.replace("</Article>", "</Article><KeywordList><Keyword>heart</Keyword><Keyword>drug</Keyword></KeywordList>")
    (row,) = raw("medline", medline_set(data))
    assert isinstance(row, Draft)
    assert [(span.kind, row.text[span.start : span.end].strip()) for span in row.spans] == [
        ("authors", "Ann B Roe, The Trial Group"), ("affiliations", "Ward 1, Town."), ("front_matter", "heart; drug"),
        ("copyright", "Copyright 2021 A Press."), ("copyright", "© 2021 The Society."),
    ]  # fmt: skip
    assert row.text.split("\n\n")[0] == "On drug A." and row.text.split("\n\n")[3].startswith("Drug A lowered")
    assert run_steps(row)[0].text == "On drug A.\n\nDrug A lowered pressure."


# ---- files that cannot be read ------------------------------------------------------------------------------------------------

LAUGHS = "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10)) + "]>"
EXTERNAL = "<!DOCTYPE x [<!ENTITY secret SYSTEM 'file:///etc/passwd'>]>"


@pytest.mark.parametrize(("prolog", "name"), [(LAUGHS, "a9"), (EXTERNAL, "secret")])
@pytest.mark.parametrize("place", ["text", "attribute"])
def test_declared_entities_are_refused_at_once(prolog: str, name: str, place: str) -> None:
    title = f"&{name};" if place == "text" else f"<i x='&{name};'>t</i>"
    start = time.perf_counter()
    with pytest.raises(InputError, match=r"sample\.xml") as error:
        read("medline", medline_set(record(title=title), prolog=prolog))
    assert "root:" not in str(error.value)
    assert time.perf_counter() - start < 2


def test_an_undeclared_entity_of_html_is_read_as_its_character() -> None:
    prolog = "<!DOCTYPE article PUBLIC 'x' 'archivearticle.dtd'>"
    assert "\u03b2-blocker" in one("jats", prolog + article(body="<p>A &beta;-blocker.</p>")).text


@pytest.mark.parametrize("name", ["medline", "jats", "icd10cm"])
@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "not well-formed"),
        (b"hello", "not well-formed"),
        (gzip.compress(b"<a/>", mtime=0), "not well-formed"),
        (b"<other/>", "holds no <"),
    ],
)
def test_a_file_that_is_not_of_the_format_is_an_error(name: str, data: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as error:
        read(name, data)
    assert error.value.where.startswith("raw/sample.xml")


class Endless(RawIOBase):
    """`head`, then `body` again and again up to 500 MB; counts what was asked for."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.pieces: Iterator[bytes] = iter([head])
        self.body, self.given = body, 0

    def read(self, size: int = -1) -> bytes:
        self.given += len(self.body)
        return next(self.pieces, self.body if self.given < 500 << 20 else b"")


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (b"<article><body><p>", b"word " * 6000),
        (b"<article><body>", b"<p>A sentence of a paper without end.</p>" * 700),
        (b"<article><body>", b"<sec>" * 6000),
    ],
)
def test_an_article_of_500_megabytes_is_refused_early(monkeypatch: pytest.MonkeyPatch, head: bytes, body: bytes) -> None:
    monkeypatch.setattr(xml, "MAX_ELEMENT_BYTES", 16 << 20)
    stream, start = Endless(head, body), time.perf_counter()
    with pytest.raises(InputError, match=r"MiB of XML without the end|not well-formed"):
        list(jats(stream, "raw/huge.xml", "papers"))
    assert stream.given <= 17 << 20
    assert time.perf_counter() - start < 5


def test_the_limit_is_one_of_an_element_not_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xml, "MAX_ELEMENT_BYTES", 100_000)
    data = medline_set(*[record() for _ in range(500)]).encode()
    assert len(data) > 2 * 100_000
    assert len(list(medline(BytesIO(data), "raw/x.xml", "papers"))) == 500


def test_half_a_file_is_an_error_that_names_the_line() -> None:
    whole = medline_set(*[record() for _ in range(20)])
    rows = FORMATS["medline"](BytesIO(whole[: len(whole) // 2].encode()), "raw/half.xml", "papers")
    assert isinstance(next(rows), Draft)
    with pytest.raises(InputError) as error:
        list(rows)
    assert error.value.where == f"raw/half.xml:{whole[: len(whole) // 2].count(chr(10)) + 1}"


def test_an_unknown_format_is_answered_with_the_known_ones() -> None:
    with pytest.raises(InputError) as error:
        by_name(FORMATS, "pdf", "sources.papers.files")
    assert all(name in str(error.value) for name in FORMATS)


# ---- PMC full text ------------------------------------------------------------------------------------------------------------

IDS = "<article-id pub-id-type='pmid'>2</article-id><article-id pub-id-type='pmc'>PMC1</article-id>"


def article(
    body: str = "<p>Some text.</p>",
    licence: str = "",
    ids: str = IDS,
    attributes: str = "article-type='research-article'",
    title: str = "On A<xref ref-type='fn'>*</xref>",
    abstract: str = "<abstract><p>In short.</p></abstract>",
) -> str:
    return f"""<article xmlns:xlink="http://www.w3.org/1999/xlink" {attributes}><front><article-meta>{ids}
      <title-group><article-title>{title}</article-title></title-group>
      <contrib-group><contrib><name><surname>Secret</surname></name></contrib></contrib-group>
      <pub-date pub-type="collection"><year>2010</year></pub-date><pub-date pub-type="epub"><year>2009</year></pub-date>
      <permissions><copyright-statement>(c) X</copyright-statement>{licence}</permissions>{abstract}</article-meta></front>
      <body>{body}</body><back><ack><p>Thanks.</p></ack>
      <ref-list><ref><mixed-citation>Old work</mixed-citation></ref></ref-list></back></article>"""


def test_jats_article_keeps_prose_and_headings_only() -> None:
    body = """<sec><title>Methods</title><p>We <italic>measured</italic> x<sup>2</sup>.</p>
      <sec><title>Dose</title><p>Ten mg.<fig><caption><p>Hidden</p></caption></fig></p>
      <table-wrap><p>Hidden</p></table-wrap></sec>
      <sec><title>Empty</title><disp-formula>Hidden</disp-formula></sec>
      <list><list-item><p>First</p></list-item><list-item><p>Second</p></list-item></list></sec>"""
    row = one("jats", article(body))
    body_text = "## Methods\n\nWe measured x2.\n\n### Dose\n\nTen mg.\n\n- First\n\n- Second"
    assert row.text == f"On A\n\n## Abstract\n\nIn short.\n\n{body_text}"
    assert (row.id, row.title, row.year, row.article_type) == ("pmc:1", "On A", 2009, "research-article")


B1, B2 = "<xref ref-type='bibr' rid='b1'>1</xref>", "<xref ref-type='bibr' rid='b2'>2</xref>"
FIG = "<xref ref-type='fig' rid='f'>Fig. 1</xref>"


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (f"Known [{B1},{B2}].", "Known."),
        (f"Known [{B1}\u2013{B2}] well.", "Known well."),
        (f"Known<sup>{B1},{B2}</sup>.", "Known."),
        (f"Known<sup>{B1}</sup> since 10<sup>6</sup>.", "Known since 10^6."),
        (f"Rose ({FIG}).", "Rose."),
        (f"Rose (see {FIG}A, {FIG}).", "Rose."),
        ("Rose (Table <xref ref-type='table'>2</xref>; p = 0.1).", "Rose (Table 2; p = 0.1)."),
        (f"Rose (p = 0.1; [{B1}]).", "Rose (p = 0.1)."),
        (f"Rose (by 5%; see {B1}).", "Rose (by 5%)."),
        ("Table <xref ref-type='table'>2</xref> shows it.", "Table 2 shows it."),
        ("<xref ref-type='bibr'>Lee et al. (2004)</xref> found it.", "Lee et al. (2004) found it."),
        ("It was found (<xref ref-type='bibr'>Lee, 2004</xref>; <xref ref-type='bibr'>Roy, 2005</xref>).", "It was found."),
        ("Sections stay (<xref ref-type='sec'>Methods</xref>).", "Sections stay (Methods)."),
        ("Brackets stay (n = 5) [sic].", "Brackets stay (n = 5) [sic]."),
    ],
)
def test_jats_citations_leave_with_their_brackets(raw: str, expected: str) -> None:
    assert one("jats", article(f"<p>{raw}</p>", abstract="", title="")).text == expected


@pytest.mark.parametrize(
    ("licence", "group"),
    [
        ("<license xlink:href='http://creativecommons.org/licenses/by/2.0'><license-p>Open</license-p></license>", "cc-by"),
        ("<license><license-p>Under the Creative Commons Attribution License, which permits use.</license-p></license>", "cc-by"),
        ("<license><p><ext-link xlink:href='//creativecommons.org/licenses/by-nc/4.0/'/></p></license>", "cc-by-nc"),
        ("<license xlink:href='http://creativecommons.org/publicdomain/mark/1.0/'><license-p/></license>", "public-domain"),
        ("<license><license-p>All rights reserved.</license-p></license>", "other"),
        ("", "unstated"),
    ],
)
def test_jats_licence(licence: str, group: str) -> None:
    assert one("jats", article(licence=licence)).licence == group


@pytest.mark.parametrize(
    ("data", "step"),
    [
        (article(ids=""), "parse"),
        (article(body="", abstract=""), "parse"),
    ],
)
def test_jats_drops(data: str, step: str) -> None:
    assert drop("jats", data).step == step


NOTICE = "<related-article related-article-type='retraction-forward' id='r'/>"


@pytest.mark.parametrize(
    ("data", "language", "retracted"),
    [
        (article(), "", False),
        (article(attributes="article-type='research-article' xml:lang='DE'"), "de", False),
        (article(attributes="article-type='retraction'"), "", True),
        (article(title="RETRACTED: On A"), "", True),
        (article(ids=IDS + NOTICE), "", True),
    ],
)
def test_jats_says_what_the_article_states_and_drops_nothing_for_it(data: str, language: str, retracted: bool) -> None:
    row = one("jats", data)
    assert (row.language, row.retracted) == (language, retracted)


def test_jats_drafts_hold_everything_each_part_marked() -> None:
    body = """<sec><title>Methods</title><p>Dose <xref ref-type='bibr'>1</xref> was <inline-formula><math>x=1</math></inline-formula>
      (<xref ref-type='fig'>Fig. 1</xref>).<fig><label>Figure 1</label><caption><title>Dose.</title><p>By day.</p></caption></fig>
      Then <xref ref-type='fn'>a</xref>more.</p>
      <table-wrap><label>Table 1</label><caption><p>Doses</p></caption><table><thead><tr><th>Day</th><th>mg</th></tr></thead>
      <tbody><tr><td>1</td><td>10</td></tr></tbody></table></table-wrap></sec>"""
    (row,) = raw("jats", article(body, licence="<license><license-p>CC BY</license-p></license>"))
    assert isinstance(row, Draft)
    found = [(span.kind, row.text[span.start : span.end]) for span in sorted(row.spans, key=lambda span: (span.start, -span.end))]
    assert found == [
        ("footnote_mark", "*"), ("authors", "Secret"), ("copyright", "(c) X\n\nCC BY"), ("citation", "1"), ("formula", "x=1"),
        ("figure_mention", "Fig. 1"), ("footnote_mark", "a"), ("figure", "Figure 1\n\nDose.\n\nBy day."),
        ("table", "Table 1\n\nDoses\n\nDay | mg\n1 | 10"), ("acknowledgements", "Thanks."), ("references", "Old work"),
    ]  # fmt: skip
    assert "## Methods\n\nDose 1 was x=1 (Fig. 1). Then amore.\n\nFigure 1" in row.text
    assert run_steps(row)[0].text.endswith("## Methods\n\nDose was. Then more.")


@pytest.mark.parametrize(
    ("off", "left"),
    [
        ("authors", "Secret"), ("references", "Old work"), ("acknowledgements", "Thanks."), ("copyright", "(c) X"),
        ("citation_mentions", "Known [1]."), ("figure_mentions", "Rose (Fig. 1)."), ("footnotes", "On A*"),
    ],
)  # fmt: skip
def test_a_jats_part_stays_where_its_step_is_off(off: str, left: str) -> None:
    (row,) = raw("jats", article(f"<p>Known [{B1}]. Rose ({FIG}).</p>"))
    assert isinstance(row, Draft)
    assert left in run_steps(row, frozenset({off}))[0].text and left not in run_steps(row)[0].text


@pytest.mark.parametrize("title", ["Competing interests", "Authors\u2019 contributions", "Funding"])
def test_jats_sections_about_the_paper_go_from_the_body(title: str) -> None:
    body = f"<sec><title>Methods</title><p>Some text.</p></sec><sec><title>{title}</title><p>Hidden</p></sec>"
    assert one("jats", article(body)).text.endswith("## Methods\n\nSome text.")


def test_jats_in_a_namespace_and_without_pmc_identifier() -> None:
    ids = "<article-id pub-id-type='doi'>10.1/x</article-id>"
    row = one("jats", article(ids=ids, attributes="xmlns='https://jats.nlm.nih.gov/ns/archiving/1.3/'"))
    assert (row.id, row.title) == ("doi:10.1/x", "On A") and "Some text." in row.text


# ---- HPO ----------------------------------------------------------------------------------------------------------------------

OBO = """format-version: 1.2
data-version: hp/releases/2099-01-01

[Term]
id: HP:0000001
name: All

[Term]
id: HP:0000107
name: Renal cyst
def: "A cyst of the \\"kidney\\"" [ref:1]
synonym: "Kidney cyst" EXACT layperson []
synonym: "Cyst of kidney" EXACT []
synonym: "renal cyst" EXACT []
synonym: "Nephric cyst" EXACT obsolete_synonym []
synonym: "Cyst" BROAD []
is_a: HP:0000001 ! All

[Term]
id: HP:0000003
name: Multicystic kidney dysplasia
def: "Many cysts." []
is_a: HP:0000107 ! Renal cyst

[Term]
id: HP:0000057
name: obsolete Something
is_obsolete: true

[Term]
id: HP:0000058
name: Undefined

[Term]
name: Nameless identifier
def: "Text." []

[Typedef]
id: part_of
name: part of
"""


def test_hpo_terms_become_reference_prose() -> None:
    rows = {row.id: row for row in read("hpo", OBO, "raw/hp.obo") if isinstance(row, Draft)}
    assert list(rows) == ["HP:0000107", "HP:0000003"]
    entry = 'A cyst of the "kidney". Also called Cyst of kidney. In plain words: Kidney cyst.'
    assert rows["HP:0000107"].text == f"Renal cyst\n\n{entry}"
    assert rows["HP:0000003"].text.endswith("Many cysts.\n\nMulticystic kidney dysplasia is a kind of Renal cyst.")
    assert (rows["HP:0000003"].licence, rows["HP:0000003"].article_type) == ("hpo", "definition")


def test_hpo_drops_have_reasons() -> None:
    line = OBO[: OBO.index("name: Nameless")].count("\n")
    drops = [(row.id, row.step, row.reason) for row in read("hpo", OBO, "raw/hp.obo") if isinstance(row, Dropped)]
    assert drops == [
        ("HP:0000001", "parse", "no definition"),
        ("HP:0000057", "obsolete", "the term is obsolete"),
        ("HP:0000058", "parse", "no definition"),
        (f"raw/hp.obo#{line}", "parse", f"[Term] at line {line} without id or name"),
    ]


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b"", "x.obo:1"),
        (b"id: HP:1\n", "x.obo:1"),
        (b"format-version: 1.2\n\xff\n", "x.obo:2"),
        (b"format-version: 1.2\n\n", "x.obo:2"),
        (b"format-version: 1.2\n[Term]\nid: HP:1\nna", "x.obo:4"),
        (gzip.compress(OBO.encode(), mtime=0), "x.obo:1"),
    ],
)
def test_hpo_files_that_cannot_be_read(data: bytes, where: str) -> None:
    with pytest.raises(InputError) as error:
        read("hpo", data, "x.obo")
    assert error.value.where == where


# ---- ICD-10-CM ----------------------------------------------------------------------------------------------------------------

TABULAR = """<?xml version="1.0"?><ICD10CM.tabular><version>2099</version><chapter><name>1</name><desc>Infections (A00-B99)</desc>
<section id="A00-A09"><desc>Gut infections (A00-A09)</desc>
<diag><name>A00</name><desc>Cholera</desc><excludes1><note>food poisoning (A05.-)</note></excludes1>
 <diag><name>A00.0</name><desc>Cholera, classic</desc>
  <inclusionTerm><note>Old cholera</note><note>Asiatic cholera</note></inclusionTerm>
  <diag><name>A00.01</name><desc>Cholera, deep</desc><useAdditionalCode><note>code for, such as:</note><note>thirst (R63.1)</note>
  </useAdditionalCode><sevenChrDef><extension char="A">first visit</extension></sevenChrDef></diag></diag></diag>
<diag><desc>No code</desc></diag></section>
<section id="A15-A19"><desc>Tuberculosis (A15-A19)</desc><diag><name>A15</name><desc>Lung tuberculosis</desc></diag></section>
</chapter></ICD10CM.tabular>"""


def test_icd_categories_carry_their_subcodes_and_notes() -> None:
    first, broken, second = read("icd10cm", TABULAR)
    assert isinstance(first, Draft) and isinstance(second, Draft) and isinstance(broken, Dropped)
    assert first.text.split("\n\n") == [
        "Cholera (ICD-10-CM A00)",
        "Part of: Gut infections (A00-A09).",
        "Never coded together with it: food poisoning (A05.-).",
        "A00.0 Cholera, classic. Includes: Old cholera; Asiatic cholera.",
        "A00.01 Cholera, deep. Use additional: code for, such as: thirst (R63.1). Seventh characters: A first visit.",
    ]
    assert (first.id, first.licence, second.id) == ("icd10cm:A00", "public-domain", "icd10cm:A15")
    assert (broken.id, broken.step, broken.sample) == ("raw/sample.xml#2", "parse", "No code")


# ---- prose --------------------------------------------------------------------------------------------------------------------


def test_prose_is_cut_at_paragraphs_into_passages() -> None:
    paragraphs = [f"Paragraph {number} " + "word " * 100 for number in range(12)]
    rows = [row for row in read("prose", "\r\n\r\n".join(paragraphs), "raw/my.book.txt") if isinstance(row, Draft)]
    assert [row.id for row in rows] == [f"raw/my.book:{number:05}" for number in range(4)]
    assert all(1500 <= len(row.text) < 2100 for row in rows)
    assert "\n\n".join(row.text for row in rows) == "\n\n".join(paragraph.strip() for paragraph in paragraphs)
    assert {row.licence for row in rows} == {"unstated"}


def test_prose_unwraps_prose_keeps_verse_and_cuts_a_paragraph_without_end() -> None:
    first = "This line was wrapped by the hand of somebody at sixty-"
    second = "five columns, as was the custom of the files of those olden"
    wrapped = f"{first}\n{second}\ndays."
    verse = "Short lines\nof a poem\nstay."
    (row,) = read("prose", f"{wrapped}\n\n{verse}")
    assert isinstance(row, Draft)
    assert row.text == wrapped.replace("-\n", "-").replace("\n", " ") + "\n\n" + verse
    rows = read("prose", "A line of an endless poem\n" * 300)
    assert len(rows) == 6 and all(isinstance(row, Draft) and len(row.text) < 1530 for row in rows)


def test_prose_loses_the_library_header_and_licence() -> None:
    start, end = (f"*** {word} OF THE PROJECT GUTENBERG EBOOK X ***" for word in ("START", "END"))
    data = f"Header\n{start}\nThe story.\n\n{end}\nLicence"
    assert one("prose", data).text == "The story."


def test_prose_reads_utf8_and_latin1_and_refuses_binary() -> None:
    assert read("prose", "na\u00efve".encode())[0] == read("prose", "na\u00efve".encode("latin-1"))[0]
    for data in (b"\0\1\2", b"", b" \n "):
        with pytest.raises(InputError, match=r"sample\.xml"):
            read("prose", data)
