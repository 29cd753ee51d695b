"""The clean step: what it repairs, what it drops, and that a second pass changes nothing."""

import hashlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.corpus.clean import Rules, clean, clean_text, content_key, licence_group
from medschool.rows import Document, Dropped

RULES = Rules(min_chars=10, licences=frozenset({"cc-by", "nlm-medline"}))


def document(text: str, licence: str = "cc-by", title: str = "A title") -> Document:
    return Document("pmid:1", "papers", text, title, licence, 2020, "journal-article", "raw/x.xml")


def cleaned(text: str) -> str:
    row = clean(document(text), Rules(0, frozenset({"cc-by"})))
    assert isinstance(row, Document)
    return row.text


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("fever  of\t38 °C", "fever of 38 °C"),
        ("one\r\ntwo \n  three", "one\ntwo\nthree"),
        ("one\n\n\n\n two", "one\n\ntwo"),
        ("cafe\u0301", "caf\u00e9"),
        ("the patientâ€™s liver", "the patient's liver".replace("'", "\u2019")),
        ("p &lt; 0.05", "p < 0.05"),
        ("a\x00b\x07c\u00ad\u200bd", "abcd"),
        ("data at https://example.org/a?b=1 stay", "data at https://example.org/a?b=1 stay"),
        ("\ufb01brosis", "fibrosis"),
    ],
)
def test_text_is_repaired(raw: str, expected: str) -> None:
    assert cleaned(raw) == expected


def test_sha256_is_of_the_cleaned_text_and_the_rest_of_the_row_stays() -> None:
    row = clean(document("A  fever of  unknown origin.", title=" Fever\nof unknown  origin "), RULES)
    assert isinstance(row, Document)
    assert row.sha256 == hashlib.sha256(b"A fever of unknown origin.").hexdigest()
    assert (row.id, row.title, row.year, row.uri) == ("pmid:1", "Fever of unknown origin", 2020, "raw/x.xml")


def test_length_is_judged_after_cleaning_and_the_limit_is_kept() -> None:
    assert isinstance(clean(document("0123456789"), RULES), Document)
    short = clean(document("012345   \n\n   789"), Rules(12, RULES.licences))
    assert isinstance(short, Dropped)
    assert short.step == "too_short"
    assert short.reason == "11 characters, at least 12 are wanted"


def test_a_licence_that_is_not_allowed_is_dropped_with_its_name() -> None:
    row = clean(document("x" * 500, licence="cc-by-nc"), RULES)
    assert isinstance(row, Dropped)
    assert (row.step, row.id, row.source, row.uri) == ("licence", "pmid:1", "papers", "raw/x.xml")
    assert "cc-by-nc" in row.reason and "cc-by, nlm-medline" in row.reason
    assert row.sample == "x" * 200


def test_content_key_ignores_case_and_white_space_but_not_words() -> None:
    assert content_key(document("Acute  Renal\nfailure")) == content_key(document("acute renal FAILURE", title="another"))
    assert content_key(document("acute renal failure")) != content_key(document("acute renal failures"))


PIECES = st.sampled_from(
    ["http://a.b/c", "www.x.org", "&amp;", "&lt;", "(", ")", " ", "\n", "\u0301", "e", "\u200b", "â€™", "Ã©", "\r", "."]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(PIECES, max_size=12).map("".join)))
def test_clean_is_idempotent_and_normal(text: str) -> None:
    once = clean_text(text)
    assert clean_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "  " not in once and once == once.strip()
    once.encode()


@pytest.mark.parametrize(
    ("words", "group"),
    [
        ("https://creativecommons.org/licenses/by/4.0/", "cc-by"),
        ("http://creativecommons.org/licenses/by-nc-nd/3.0 text", "cc-by-nc-nd"),
        ("https://creativecommons.org/licenses/by/4.0/ data: https://creativecommons.org/publicdomain/zero/1.0/", "cc-by"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "cc0"),
        ("http://creativecommons.org/publicdomain/mark/1.0/", "public-domain"),
        ("This work is in the public domain.", "public-domain"),
        ("under the terms of the Creative Commons Attribution License", "cc-by"),
        ("the Creative Commons\n Attribution Non-Commercial Share Alike licence", "cc-by-nc-sa"),
        ("Creative Commons Attribution-NoDerivs", "cc-by-nd"),
        ("CC BY-NC 4.0", "cc-by-nc"),
        ("All rights reserved.", "other"),
    ],
)
def test_licence_groups(words: str, group: str) -> None:
    assert licence_group(words) == group
