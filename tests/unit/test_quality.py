"""The published filters, on invented text that breaks one rule each; the thresholds are checked from both sides."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medschool.corpus.quality import FILTERS, poor_quality, sentence_spans, words_of
from medschool.recipe.corpus import Clean

GOOD = (
    "The first patient was a woman of middle age with pain in the left knee. She had been treated at home for three weeks, and "
    "the swelling did not go down. An image of the joint showed fluid but no fracture.\n\n"
    "We gave a small dose of the drug on the first day, and a larger one on the second. The fever fell within hours. "
    "Nobody in the family had ever been ill in this way, and there was no travel to report. After a month of rest the woman "
    "walked without help again, and a second image was found to be normal."
)


def words(count: int) -> str:
    """Prose of exactly `count` words, none of them twice in the same company."""
    return " ".join(f"the{'abcdefghij'[n % 10]} of{'abcdefghij'[n // 10 % 10]}" for n in range(count // 2 - 1)) + " the of."


def test_ordinary_prose_passes_every_filter() -> None:
    assert poor_quality(GOOD, FILTERS) == ""
    assert poor_quality(GOOD, []) == ""


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("gopher", words(48), "gopher_short_doc"),
        ("gopher", GOOD.replace("The", "#The #").replace(" the ", " # the # "), "gopher_too_many_hashes"),
        ("gopher", " ".join(f"{n}.{n}" for n in range(400)) + " the of", "gopher_below_alpha_threshold"),
        ("gopher", "\n\n".join([GOOD.split("\n")[0]] * 3), "dup_para_frac"),
        ("gopher", " ".join(["the pain of the knee"] * 30), "top_2_gram"),
        ("c4", "One sentence stands here. A second one follows it.", "too_few_sentences"),
        ("c4", GOOD + " Its code was {x} in the file.", "curly_bracket"),
        ("c4", GOOD + " It reads lorem ipsum there.", "lorem_ipsum"),
        ("c4", GOOD.replace(".", ";"), "too_few_sentences"),
        ("fineweb", GOOD.replace(".", ";").replace("\n\n", "\n"), "line_punct_ratio"),
        ("fineweb", "\n".join(["Short line.", "Another short one."] * 3), "short_line_ratio"),
        ("fineweb", "\n".join([GOOD.split("\n")[0]] * 2), "char_dup_ratio"),
    ],
)
def test_each_filter_names_the_rule_that_was_broken(name: str, text: str, why: str) -> None:
    assert poor_quality(text, [name]) == f"{name}: {why}"


def test_gopher_wants_fifty_words() -> None:
    assert len([word for word in words_of(words(50)) if word != "."]) == 50
    assert "short" in poor_quality(words(48), ["gopher"]) and "short" not in poor_quality(words(50), ["gopher"])


def test_the_first_filter_that_refuses_is_named() -> None:
    bad = "{" * 40
    assert poor_quality(bad, ["c4", "fineweb"]).startswith("c4") and poor_quality(bad, ["fineweb", "c4"]).startswith("fineweb")


def test_every_name_of_the_recipe_is_a_filter() -> None:
    assert Clean(min_chars=1, quality=FILTERS).quality == FILTERS


def test_words_and_sentences_are_cut_as_read() -> None:
    assert words_of("A non-small 1.5 mg/dl dose (p<0.05)... wasn't given.") == [
        "A", "non-small", "1.5", "mg/dl", "dose", "(", "p", "<", "0.05", ")", "...", "wasn't", "given", ".",
    ]  # fmt: skip
    text = 'He fell. "Why?" they asked. At 3.5 mg it stopped! (See below.) 12 were left'
    cut = ["He fell.", '"Why?" they asked.', "At 3.5 mg it stopped!", "(See below.)", "12 were left"]
    assert [text[start:end].strip() for start, end in sentence_spans(text)] == cut


@given(st.text(max_size=300))
def test_any_text_is_judged_and_nothing_of_it_is_lost(text: str) -> None:
    assert "".join(text[start:end] for start, end in sentence_spans(text)) == text
    assert "".join("".join(words_of(text)).split()) == "".join(text.split())
    assert isinstance(poor_quality(text, FILTERS), str)
