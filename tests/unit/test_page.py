"""The HTML report: every number is in it, nothing from outside can act in it, and what is not there leaves no trace."""

import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import lxml.html
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medschool.ablate import page, plots
from medschool.ablate.gain import Gain
from medschool.ablate.page import Cost, Curve, Mixture, Report, render
from medschool.ablate.report import SMALL, Spent
from medschool.exams.calibration import PEERS, PMC_LLAMA, table_rows
from medschool.recipe.evaluation import Gate

SOURCES = ("books", "papers", "general")
EXAM = "mmlu_clinical"
KINDS = ("cloze/papers", "graph/books")
PERPLEXITY = {
    "base": (30.11, 30.89, 41.27), "control": (30.02, 30.77, 39.84), "knowledge": (24.90, 29.56, 41.33), "instructed": (25.31, 29.71, 41.90),
}  # fmt: skip
CORRECT = {"base": 49, "control": 51, "knowledge": 50, "instructed": 63}
MIXTURES = {"control": {"general": 20}, "knowledge": {"books": 15, "papers": 4, "general": 1}}
CHATS = {"exam": 4, "rationale": 2, "graph": 4}
PAIRS = [
    ("control", "base"), ("knowledge", "control"), ("knowledge", "base"), ("instructed", "control"), ("instructed", "base"),
    ("instructed", "knowledge"),
]  # fmt: skip
RECIPE = """name: quickstart
seed: 7
variants:
  base: {}
  control: {weights: {general: 20}}
  knowledge: {weights: {books: 15, papers: 4, general: 1}}
  instructed: {weights: {books: 15, papers: 4, general: 1}, instructions: {exam: 4, rationale: 2, graph: 4}}
"""
PROTOCOL = {
    "protocol": "aaaaaaaaaaaa",
    "protocol_name": "letters",
    "uncontaminated": {"items": 199, "correct": 48, "accuracy": 0.24, "low": 0.186, "high": 0.304},
}
VOID = {"meta", "link", "br", "img", "input", "hr"}


def gain(change: float, half: float) -> dict[str, Any]:
    low, high = change - half, change + half
    return {"change": change, "low": low, "high": high, "word": "helped" if low > 0 else "hurt" if high < 0 else "cannot tell"}


def written(unparsed: int) -> dict[str, Any]:
    parsed = 1 - unparsed / 24
    shares = {
        "parse_rate": {"value": parsed, "low": parsed / 2, "high": 1.0},
        "accuracy": {"value": 0.125, "low": 0.043, "high": 0.31},
    }
    named = {"protocol": "bbbbbbbbbbbb", "protocol_name": "generated", "uncontaminated": None}
    return {"items": 24, "correct": 3, "unparsed": unparsed, "letters": {"A": 1, "B": 23 - unparsed}} | shares | named


def trial(variant: str, seed: int | None, name: str) -> dict[str, Any]:
    shift = 0.01 * ((seed or 7) - 7)
    correct = CORRECT[variant] + (seed or 7) - 7
    exam = {
        "items": 200,
        "correct": correct,
        "accuracy": correct / 200,
        "low": correct / 200 - 0.058,
        "high": correct / 200 + 0.064,
    }
    perplexity = zip(SOURCES, PERPLEXITY[variant], strict=True)
    return {
        "name": name,
        "variant": variant,
        "seed": seed,
        "perplexity": {source: {"value": value + shift, "documents": 82, "targets": 9918} for source, value in perplexity},
        "exams": {EXAM: exam | {"written": written(4 if variant == "instructed" else 20)} | PROTOCOL},
        "probes": {kind: {"trained": {"items": 40, "correct": 12}, "twins": {"items": 40, "correct": 10}} for kind in KINDS},
    }


def effects(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    made = []
    for variant, reference in PAIRS:
        common = {"variant": variant, "reference": reference, "seeds": len(seeds)}
        for source, ours, theirs in zip(SOURCES, PERPLEXITY[variant], PERPLEXITY[reference], strict=True):
            moved = gain(ours / theirs - 1, 0.021)
            word = {"helped": "hurt", "hurt": "helped"}.get(moved["word"], "cannot tell")
            facts = {"n": 82, "p": 0.0004, "p_adjusted": 0.0096, "gained": None, "lost": None, "needs": None}
            facts |= {"by_seed": {str(s): moved["change"] for s in seeds}}
            made.append(common | {"measure": "perplexity", "on": source} | moved | facts | {"word": word})
        moved = gain((CORRECT[variant] - CORRECT[reference]) / 200, 0.045)
        helped = moved["word"] == "helped"
        facts = {"n": 200, "p": 0.012 if helped else 0.61, "p_adjusted": 0.032 if helped else 1.0, "gained": 21, "lost": 20}
        facts |= {
            "needs": None if helped else {"effect": moved["change"], "items": 14000, "seeds": 5 if len(seeds) > 1 else None}
        }
        made.append(
            common | {"measure": "accuracy", "on": EXAM} | moved | facts | {"by_seed": {str(s): moved["change"] for s in seeds}}
        )
    return made


def retention() -> list[dict[str, Any]]:
    """What `instructed` kept, might have lost, and lost."""
    found = []
    for on, change, word in ((EXAM, 0.01, "kept"), ("mmlu_other", -0.01, "cannot tell"), ("<i>law", -0.09, "forgot")):
        facts = {"measure": "accuracy", "on": on, "variant": "instructed", "reference": "base", "n": 200, "seeds": 1}
        wanting = {"effect": 0.0, "items": 1900, "seeds": None} if word == "cannot tell" else None
        found.append(
            facts
            | {"change": change, "low": change - 0.02, "high": change + 0.02, "margin": 0.02, "word": word, "needs": wanting}
        )
    return found


def probes() -> list[dict[str, Any]]:
    return [
        {
            "kind": kind, "variant": variant, "reference": reference, "items": 40, "twins": 40, "already_knew": 0.35,
            "learned": gain(0.1 + 0.05 * bonus, 0.12), "generalised": gain(0.05, 0.1),
            "likelihood": {"learned": gain(0.21 + 0.1 * bonus, 0.11), "generalised": gain(0.08, 0.09), "specific": gain(0.13, 0.14)},
        }
        for kind, bonus in zip(KINDS, (0, 1), strict=True) for variant, reference in PAIRS[1:3]
    ]  # fmt: skip


def sample(seeds: tuple[int, ...] = (7,)) -> Report:
    """A run with four variants, three sources, one exam, two kinds of probes, and nine steps a phase."""
    names = {
        (variant, seed): variant if seed is None or len(seeds) == 1 else f"{variant}-seed{seed}"
        for variant in PERPLEXITY
        for seed in ((None,) if variant == "base" else seeds)
    }
    curves, mixtures, spent = [], [], {}
    costs = [Cost("corpus/papers", 31.4, True, None, None), Cost("tokens/papers", 12.0, True, None, None)]
    for (variant, seed), name in names.items():
        if seed is not None:
            weights = MIXTURES.get(variant, MIXTURES["knowledge"])
            phases = [("pretrain", weights, 9, 128)] + ([("instruct", CHATS, 9, 256)] if variant == "instructed" else [])
            for phase, parts, steps, row_tokens in phases:
                rows = {source: part * steps for source, part in parts.items()}
                tokens = {source: count * row_tokens for source, count in rows.items()}
                mixtures.append(Mixture(name, phase, parts, rows, tokens))
                total = sum(tokens.values())
                costs.append(Cost(f"{phase}/{name}", 61.5, False, total, total))
                spent[name] = Spent(23_040 * len(phases), 1.025 * len(phases))
                curves.append(curve(name, phase, steps, seed, len(variant)))
        costs.append(Cost(f"evaluate/{name}", 42.0, False, None, None))
    reason = "instructed improves on control: papers -3.4% [-5.5%, -1.3%]; it keeps mmlu_clinical"
    winner_trial = names[("instructed", seeds[0])]
    candidates = {"instructed": {"passed": True, "word": "helped", "trial": winner_trial, "reason": reason}}
    return Report(
        recipe_name="quickstart",
        recipe_yaml=RECIPE,
        recipe_digest="0f3a91c2d4e5",
        git_sha="c328015",
        made="2031-02-03T10:20:30+00:00",
        model_uri="raw/models/smollm2-135m-instruct",
        gate=Gate(candidates=("instructed", "knowledge"), control="control", improves=("papers",), keeps=(EXAM,)),
        results={
            "confidence": 0.95,
            "trials": [trial(variant, seed, name) for (variant, seed), name in names.items()],
            "effects": effects(seeds),
            "family": {"method": "holm", "comparisons": 24, "level": 0.05, "power": 0.8},
            "retention": retention(),
            "probes": probes(),
            "gate": {
                "passed": True,
                "winner": "instructed",
                "winner_trial": winner_trial,
                "reason": reason,
                "candidates": candidates,
            },
        },
        curves=tuple(curves),
        mixtures=tuple(mixtures),
        costs=tuple(costs),
        budget_minutes=15.0,
        dropped={
            "corpus/papers": {"licence": 1204, "too_short": 311},
            "corpus/books": {},
            "instructions/exam": {"overlaps an exam": 31},
        },
        overlap={
            "exam": {"exam_items": 400, "checked": 1822, "removed": 31},
            "graph": {"exam_items": 400, "checked": 4210, "removed": 0},
        },
        spent=spent,
        versions={"python": "3.11.2", "ray": "2.60.0", "torch": "2.13.0"},
    )


def curve(name: str, phase: Any, count: int, seed: int, offset: int) -> Curve:
    steps = tuple(range(1, count + 1))
    loss = tuple(3.4 - 0.04 * offset - 0.03 * step + 0.05 * ((step * (seed + offset)) % 3) for step in steps)
    return Curve(name, phase, steps, loss, tuple(2e-4 * min(step / 2, 1 - step / (count + 1)) for step in steps))


def bare() -> Report:
    """A run of one untrained model: no exams, probes, instructions, gate, budget, or anything dropped."""
    full = replace(sample(), spent={})
    only = full.results["trials"][0] | {"exams": {}, "probes": {}}
    gate = {"passed": False, "winner": None, "winner_trial": None, "reason": "the recipe has no gate, so nothing is registered"}
    gate["candidates"] = {}
    results = full.results | {"trials": [only], "effects": [], "retention": [], "probes": [], "gate": gate}
    return replace(
        full, results=results, gate=None, git_sha=None, curves=(), mixtures=(), costs=(), budget_minutes=None, dropped={}, overlap={}
    )  # fmt: skip


@pytest.fixture(scope="module", params=[(7,), (7, 8)], ids=["one seed", "two seeds"])
def report(request: pytest.FixtureRequest) -> Report:
    return sample(request.param)


@cache
def page_of(*seeds: int) -> str:
    return render(sample(seeds))


@pytest.fixture(scope="module")
def html(report: Report) -> str:
    return page_of(*(int(seed) for seed in report.results["effects"][0]["by_seed"]))


def text_of(html: str) -> str:
    return " ".join(lxml.html.document_fromstring(html).find("body").text_content().split())


def tables(html: str) -> dict[str, list[list[str]]]:
    """The rows of every table, by the caption's first word."""
    found = {}
    for table in lxml.html.document_fromstring(html).iter("table"):
        rows = [[" ".join(cell.text_content().split()) for cell in row if cell.tag in ("td", "th")] for row in table.iter("tr")]
        found[table.find("caption").text_content().split()[0].strip(":,")] = rows
    return found


class Balanced(HTMLParser):
    """Checks that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("seeds", [(7,), (7, 8), ()], ids=["one seed", "two seeds", "bare"])
def test_tags_are_closed_in_order_and_ids_are_unique(seeds: tuple[int, ...]) -> None:
    parser = Balanced()
    parser.feed(page_of(*seeds) if seeds else render(bare()))
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert {"html", "title", "main", "table", "caption"} <= set(parser.seen)


def test_table_of_variants_has_every_number(report: Report, html: str) -> None:
    rows = {row[0].removesuffix(" (winner)"): row[1:] for row in tables(html)["Scores"][1:]}
    assert list(rows) == [trial["name"] for trial in report.results["trials"]]
    for trial in report.results["trials"]:
        spent = report.spent.get(trial["name"], Spent(0, 0.0))
        assert rows[trial["name"]] == [
            *(f"{trial['perplexity'][source]['value']:.2f}" for source in SOURCES),
            f"{spent.trained_tokens:,}",
            f"{spent.minutes:.1f}",
        ]


def test_table_of_exams_has_a_line_for_each_protocol_of_every_trial(report: Report, html: str) -> None:
    rows = tables(html)["Exams"][1:]
    names = [trial["name"] for trial in report.results["trials"]]
    assert rows.pop(0) == [f"{EXAM}, letters aaaaaaaaaaaa"] and rows.pop(len(names)) == [f"{EXAM}, generated bbbbbbbbbbbb"]
    assert [row[0] for row in rows] == [*names, *names]
    for trial, chosen, said in zip(report.results["trials"], rows, rows[len(names) :], strict=False):
        exam = trial["exams"][EXAM]
        shown = f"{100 * exam['accuracy']:.1f}% [{100 * exam['low']:.1f}, {100 * exam['high']:.1f}]"
        assert chosen[1:] == ["200", shown, "199", "24.0% [18.6, 30.4]", "-"]
        assert said[1:] == [
            "24",
            "12.5% [4.3, 31.0]",
            "-",
            "-",
            f"{100 * exam['written']['unparsed'] / 24:.0f}% of 24",
        ]


def test_what_others_have_printed_is_marked_as_theirs_with_its_protocol_and_its_slip() -> None:
    assert "Published" not in tables(page_of(7))
    html = render(replace(sample(), published=tuple(map(tuple, table_rows()))))
    rows = tables(html)["Published"]
    assert len(rows) == 1 + len(PMC_LLAMA) + len(PEERS) and rows[0][0] == "model (theirs)"
    assert ["PMC-LLaMA 13B", "56.36", "56.04", "77.90", "63.43", "64.43", "zero-shot, generated", "PMC-LLaMA, Table 2"] in rows
    assert "Published by others (theirs, not measured here)" in text_of(html) and "prints 64.43" in text_of(html)
    order = [found for found in ("Exams: accuracy", "Published by others") if found in html]
    assert order == ["Exams: accuracy", "Published by others"] and html.index(order[0]) < html.index(order[1])


def test_table_of_written_answers_has_the_share_that_can_be_read(report: Report, html: str) -> None:
    rows = tables(html)["Answers"][1:]
    assert [row[:3] for row in rows] == [[trial["name"], EXAM, "24"] for trial in report.results["trials"]]
    assert {row[0]: row[3] for row in rows}["base"] == "16.7% [8.3, 100.0]"
    assert {row[0]: row[4] for row in rows}["base"] == "B, 3 of 4"


def test_every_effect_is_in_its_table_and_its_figure(report: Report, html: str) -> None:
    found = tables(html)["Effects"]  # of the accuracy, which stands last
    exams = [effect for effect in report.results["effects"] if effect["measure"] == "accuracy"]
    assert len(found) == 1 + len(exams)
    for row, effect in zip(found[1:], exams, strict=True):
        assert row[:3] == [f"{effect['variant']} - {effect['reference']}", EXAM, "200"]
        told = effect["p"] == 0.012
        assert row[3:7] == [
            f"{100 * effect['change']:+.1f} pts",
            f"[{100 * effect['low']:+.1f}, {100 * effect['high']:+.1f}]",
            *(("0.012", "0.032") if told else ("0.61", "1.00")),
        ]
        assert row[7:9] == ["21", "20"]
        seeds = " or 5 seeds" if effect["seeds"] > 1 else ""
        assert row[9] == (effect["word"] if told else f"{effect['word']}needs about 14,000 items{seeds}")
    figure = ElementTree.fromstring(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)[0])
    words = [element.text for element in figure.iter("text")]
    for effect in report.results["effects"]:
        assert (f"{effect['variant']} - {effect['reference']}, {effect['on']}" in words) == (effect["measure"] == "perplexity")
    assert words.count("cannot tell") == 1 + sum(  # one in the legend
        effect["word"] == "cannot tell" for effect in report.results["effects"] if effect["measure"] == "perplexity"
    )


def test_what_was_forgotten_is_told_with_its_margin_and_what_it_takes() -> None:
    rows = tables(page_of(7))["Forgetting"][1:]
    assert [row[-1] for row in rows] == ["kept", "cannot tellneeds about 1,900 items", "forgot"]
    assert rows[2][:7] == ["instructed - base", "accuracy", "<i>law", "200", "-9.0 pts", "[-11.0, -7.0]", "2.0 pts"]
    assert "What was forgotten" not in text_of(render(bare()))


def test_the_family_of_the_words_and_what_one_seed_cannot_tell_are_said() -> None:
    one, two = text_of(page_of(7)), text_of(page_of(7, 8))
    assert "over all 24 comparisons of this report: the chance that any word in it is wrong is at most 5%" in one
    assert "a word is about these two models" in one and "a word is about these two models" not in two
    assert "80 times in a hundred" in one and "times in a hundred" not in text_of(render(bare()))


def test_gains_are_per_accelerator_hour_where_there_are_accelerators() -> None:
    gain = Gain("accuracy", EXAM, "instructed", "control", 0.06, 4.0, 0.0)
    rows = tables(render(replace(sample(), gains=(gain, replace(gain, measure="perplexity", change=-0.05)))))["Gain"]
    assert (
        rows[0][4] == "worker-hours"
        and rows[1][3:] == ["+6.0 pts", "4", "+1.5 pts"]
        and rows[2][3:] == ["-5.0%", "4", "-0.0128 nats"]
    )
    rows = tables(render(replace(sample(), gains=(replace(gain, accelerator_hours=8.0),))))["Gain"]
    assert rows[0][4] == "accelerator-hours" and rows[1][3:] == ["+6.0 pts", "8", "+0.75 pts"]
    assert "Gain" not in tables(page_of(7))


def test_numbers_by_seed_stand_only_where_there_are_several() -> None:
    assert "by seed" not in text_of(page_of(7))
    assert "7: -3.9%, 8: -3.9%" in text_of(page_of(7, 8))


def test_verdict_names_the_winner_and_the_decisive_effects(report: Report, html: str) -> None:
    verdict = " ".join(lxml.html.document_fromstring(html).find(".//section").text_content().split())
    assert verdict.startswith("The gate passed: instructed may be registered")
    assert report.results["gate"]["reason"] + "." in verdict
    assert "instructed against control, perplexity on papers: -3.4% [-5.5%, -1.3%], helped (95% interval, n = 82)" in verdict
    assert f"instructed against control, accuracy on {EXAM}: +6.0 pts [+1.5, +10.5], helped (95% interval, n = 200)" in verdict
    assert "knowledge against control" not in verdict
    assert "No variant was trained on more than 46,080 tokens" in verdict
    assert "Not for clinical use." in verdict


def test_a_gate_that_did_not_pass_shows_every_candidate() -> None:
    made = sample()
    gate = {"passed": False, "winner": None, "winner_trial": None, "reason": "no candidate improves on control"}
    html = render(replace(made, results=made.results | {"gate": gate}))
    verdict = " ".join(lxml.html.document_fromstring(html).find(".//section").text_content().split())
    assert verdict.startswith("The gate did not pass: no variant is registered. no candidate improves on control.")
    assert f"knowledge against control, accuracy on {EXAM}: -0.5 pts [-5.0, +4.0], cannot tell" in verdict
    assert "instructed against control, perplexity on papers: -3.4% [-5.5%, -1.3%], helped" in verdict
    assert "(winner)" not in html


def test_no_note_about_few_tokens_when_there_are_many() -> None:
    small = sample()
    assert "the procedure works" in render(replace(small, spent={"control": Spent(SMALL - 1, 1.0)}))
    assert "the procedure works" not in render(replace(small, spent={"control": Spent(SMALL, 1.0)}))


def test_a_training_of_unknown_cost_gets_dashes() -> None:
    rows = tables(render(replace(sample(), spent={})))["Scores"]
    assert rows[1][0] == "base" and rows[1][-2:] == ["0", "0.0"]
    assert rows[2][0] == "control" and rows[2][-2:] == ["-", "-"]


def test_budget_counts_what_this_run_spent() -> None:
    costs = (Cost("a", 60.0, True, None, None), Cost("pretrain/control", 90.0, False, 4000, 3968))
    text = text_of(render(replace(sample(), costs=costs, budget_minutes=6.0)))
    assert "took 1.5 of the 6 minutes of the budget (25%)" in text
    assert "found finished took 1.0 minutes when they were made" in text
    assert "Tokens trained: 3,968 of 4,000 planned." in text


def test_mixture_shows_shares_planned_and_read() -> None:
    mixture = Mixture(
        "knowledge", "pretrain", {"books": 3, "papers": 1}, {"books": 30, "papers": 20}, {"books": 3000, "papers": 1000}
    )
    rows = tables(render(replace(sample(), mixtures=(mixture,))))["Mixture"]
    assert rows[1] == ["knowledge", "pretrain", "books", "3", "75%", "30", "60%", "3,000", "75%"]
    assert rows[2] == ["knowledge", "pretrain", "papers", "1", "25%", "20", "40%", "1,000", "25%"]


def test_what_was_left_out_is_counted_by_stage_and_reason(html: str) -> None:
    assert tables(html)["Dropped"][1:] == [
        ["corpus/papers", "licence", "1,204"], ["corpus/papers", "too_short", "311"], ["instructions/exam", "overlaps an exam", "31"],
    ]  # fmt: skip
    assert tables(html)["Instructions"][1] == ["exam", "1,822", "31"]


def test_exam_items_in_the_corpus_are_shown_by_exam_and_source_even_where_nothing_else_was_left_out() -> None:
    counts = {"items": 1089, "found": 2, "documents": 1204, "rows": 3}
    found = [
        {"exam": exam, "source": source, **counts} for source, exam in (("papers", "<i>b"), ("books", "<i>b"), ("papers", "a"))
    ]
    assert "Exam" not in tables(render(bare()))
    shown = replace(bare(), results=bare().results | {"contamination": found})
    assert tables(render(shown))["Exam"][1:] == [
        ["<i>b", "books", "1,089", "2", "1,204", "3"], ["<i>b", "papers", "1,089", "2", "1,204", "3"], ["a", "papers", "1,089", "2", "1,204", "3"],
    ]  # fmt: skip


def test_json_in_the_page_is_the_verdict_s(report: Report, html: str) -> None:
    block = lxml.html.document_fromstring(html).get_element_by_id("results")
    assert block.get("type") == "application/json"
    assert json.loads(block.text) == report.results


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.sampled_from(["</script><script>alert(1)</script>", "<!--", "]]>", "'\"&"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab</!-> ", max_size=9), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
BARE = bare()


@settings(max_examples=40, deadline=None)
@given(json_values)
def test_no_json_value_breaks_out_of_its_block(value: Any) -> None:
    made = replace(BARE, results=BARE.results | {"extra": value})
    tree = lxml.html.document_fromstring(render(made))
    assert len(tree.xpath("//script")) == 1
    assert json.loads(tree.get_element_by_id("results").text) == made.results


HOSTILE = '<script>alert("$x_1$ & \\u003c")</script>'


def hostile(value: Any) -> Any:
    """The same report with every name and text made hostile."""
    if isinstance(value, str):
        return value if value in KEPT else HOSTILE + value
    if isinstance(value, dict):
        return {key if key in KEPT or not key.isidentifier() else hostile(key): hostile(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(hostile(inner) for inner in value)
    return value


KEPT = {
    "confidence", "trials", "effects", "probes", "gate", "name", "variant", "seed", "perplexity", "exams", "value", "documents",
    "targets", "items", "correct", "accuracy", "low", "high", "written", "unparsed", "parse_rate", "letters", "trained", "twins", "measure", "on", "reference", "n",
    "seeds", "change", "p", "gained", "lost", "by_seed", "word", "kind", "already_knew", "learned", "generalised", "likelihood", "specific",
    "passed", "winner", "winner_trial", "reason", "helped", "hurt", "cannot tell", "p_adjusted", "needs", "effect", "family", "method",
    "comparisons", "level", "power", "retention", "margin", "kept", "forgot", "candidates", "trial",
    "protocol", "protocol_name", "uncontaminated",
}  # fmt: skip


def test_hostile_names_are_shown_and_cannot_act() -> None:
    plain = sample()
    made = replace(
        plain,
        **{name: HOSTILE for name in ("recipe_name", "recipe_yaml", "recipe_digest", "git_sha", "made", "model_uri")},
        gate=None,
        results=hostile(plain.results),
        curves=tuple(replace(curve, trial=HOSTILE) for curve in plain.curves),
        mixtures=tuple(Mixture(HOSTILE, "pretrain", {HOSTILE: 1}, {HOSTILE: 1}, {HOSTILE: 1}) for _ in plain.mixtures),
        costs=tuple(replace(cost, stage=HOSTILE) for cost in plain.costs),
        dropped={HOSTILE: {HOSTILE: 1}},
        overlap={HOSTILE: {"exam_items": 1, "checked": 1, "removed": 0}},
        versions={HOSTILE: HOSTILE},
    )
    html = render(made)
    tree = lxml.html.document_fromstring(html)
    assert [block.get("id") for block in tree.xpath("//script")] == ["results"]
    assert "<script>alert" not in html
    assert tree.find(".//pre").text == HOSTILE
    assert tree.findtext(".//title").endswith(HOSTILE)
    assert all(ElementTree.fromstring(svg).get("role") == "img" for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))


def test_nothing_is_fetched(html: str) -> None:
    assert not re.findall(r"https?:|//\w", html)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"""(?:src|href)=["']([^"']*)""", html))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", html))


def test_references_within_a_figure_meet_their_target(html: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg))
        assert used and used <= set(re.findall(r'\bid="([^"]*)', svg))


def test_same_report_gives_the_same_bytes(report: Report, html: str) -> None:
    assert render(report) == html


def test_figures_do_not_depend_on_settings_of_the_process() -> None:
    import matplotlib as mpl

    lines = [plots.Line("control", (1, 2), (3.0, 2.5), (1e-4, 2e-4), 0)]
    before = plots.curves("pretrain", "alt", lines)
    with mpl.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.curves("pretrain", "alt", lines) == before
        assert mpl.rcParams["font.size"] == 30


def test_dollars_in_a_name_are_not_formulas() -> None:
    row = plots.Row("cost in $ - gain in $", "hurt", (plots.Mark("hurt", 1.0, 0.5, 1.5),))
    assert ">cost in $ - gain in $</text>" in plots.forest("effects", "alt", [row], "points")


def test_every_figure_tells_what_it_shows(html: str) -> None:
    tree = lxml.html.document_fromstring(html)
    labels = [figure.find("svg").get("aria-label") for figure in tree.iter("figure")]
    assert len(labels) == 6 and all(len(label) > 40 for label in labels)
    assert "knowledge" in labels[4] and "nats per target" in labels[4]
    assert tree.get("lang") == "en"


def test_missing_parts_leave_no_heading() -> None:
    tree = lxml.html.document_fromstring(render(bare()))
    assert [heading.text for heading in tree.iter("h2")] == ["Variants", "How to reproduce", "Terms"]
    assert not list(tree.iter("figure"))
    assert len(list(tree.iter("table"))) == 1
    assert "McNemar" not in tree.text_content() and "Twins" not in tree.text_content()
    assert "No variant is registered." in tree.text_content()


@pytest.mark.parametrize(
    ("change", "heading"),
    [
        ({"curves": ()}, "Training loss"),
        ({"mixtures": ()}, "What was read"),
        ({"costs": ()}, "What it cost"),
        ({"dropped": {"corpus/papers": {}}, "overlap": {}}, "What was left out"),
    ],
)
def test_each_part_goes_alone(change: dict[str, Any], heading: str) -> None:
    whole = [found.text for found in lxml.html.document_fromstring(page_of(7)).iter("h2")]
    left = [found.text for found in lxml.html.document_fromstring(render(replace(sample(), **change))).iter("h2")]
    assert heading in whole
    assert left == [name for name in whole if name != heading]


def test_numbers_that_are_not_finite_are_dashes_and_null() -> None:
    made = sample()
    first = made.results["effects"][0] | {"low": float("-inf"), "high": float("inf"), "n": 1}
    html = render(replace(made, results=made.results | {"effects": [first]}))
    assert "no interval" in text_of(html)
    assert json.loads(lxml.html.document_fromstring(html).get_element_by_id("results").text)["effects"][0]["low"] is None


def test_a_loss_or_a_gain_that_is_not_a_number_leaves_a_gap() -> None:
    made = sample()
    nothing = {"change": float("nan"), "low": None, "high": None, "word": "cannot tell"}
    first = made.results["probes"][0]
    probe = first | {"learned": nothing, "generalised": nothing, "likelihood": dict.fromkeys(first["likelihood"], nothing)}
    lost = tuple(replace(curve, loss=(float("nan"),) * len(curve.loss)) for curve in made.curves)
    html = render(replace(made, results=made.results | {"probes": [probe]}, curves=lost))
    assert tables(html)["Facts"][1][5] == "- no interval cannot tell"
    assert tables(html)["Likelihood"][1][2:] == ["-", "-", "-"]
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (page.perplexity(29.561), "29.56"),
        (page.change({"measure": "perplexity", "change": -0.043}), "-4.3%"),
        (page.interval({"measure": "perplexity", "low": -0.064, "high": -0.021}), "[-6.4%, -2.1%]"),
        (page.points({"change": 0.015, "low": -0.03, "high": 0.06}), "+1.5 pts [-3.0, +6.0]"),
        (page.nats({"change": 0.21, "low": 0.1, "high": 0.32}), "+0.21 [+0.10, +0.32]"),
        (page.nats({"change": 0.21, "low": None, "high": None}), "+0.21 no interval"),
        (page.minutes(2.46), "2.5"),
        (page.count(23040), "23,040"),
        (page.p_value(0.0004), "<0.001"),
        (page.p_value(0.109375), "0.11"),
        (page.p_value(0.0123), "0.012"),
    ],
)
def test_formats(shown: str, expected: str) -> None:
    assert shown == expected
