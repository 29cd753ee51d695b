"""Which candidate may be registered, and the one word of a whole study.

    effects + retention --per candidate--> passed, what is in its way --> the first that passes, and its trial

A candidate passes when every source of `improves` is helped against the control by the corrected word, no exam of `keeps` is hurt
by the word that stands alone (correction would only make harm harder to see), and everything of `retention` is kept. An exam of
`keeps` that is too small to show harm lets it pass, with the interval in the sentence; one of `retention` does not.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medschool.ablate.retention import Retained
from medschool.ablate.verdict import Effect, Word
from medschool.ablate.wording import change_text, interval_text, margin_text
from medschool.recipe.evaluation import Gate


def gate_result(
    gate: Gate | None, effects: Sequence[Effect], retention: Sequence[Retained], trials: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The first candidate that passes, its trial to register, the sentences that say why or why not, and each candidate's own.

    Of several seeds the trial with the lowest mean perplexity on `improves` wins.
    """
    result: dict[str, Any] = {"passed": False, "winner": None, "winner_trial": None, "candidates": {}}
    if gate is None:
        return result | {"reason": "The recipe has no gate, so nothing is registered."}
    notes = []
    for name in gate.candidates:
        word, note = _judged(gate, name, effects, retention)
        passed, trial = word == "helped", _best(gate, name, trials)
        result["candidates"][name] = {"passed": passed, "word": word, "trial": trial, "reason": note}
        if not result["passed"]:
            notes.append(note)
        if passed and not result["passed"]:
            result |= {"passed": True, "winner": name, "winner_trial": trial}
    return result | {"reason": " ".join(notes)}


def _judged(gate: Gate, name: str, effects: Sequence[Effect], retention: Sequence[Retained]) -> tuple[Word, str]:
    """`helped` passes; `hurt` was shown to do harm; `cannot tell` may pass with more items or seeds."""
    found = {(e.measure, e.on): e for e in effects if (e.variant, e.reference) == (name, gate.control)}
    lower, kept = [found["perplexity", source] for source in gate.improves], [found["accuracy", exam] for exam in gate.keeps]
    mine = [entry for entry in retention if entry.variant == name]
    bad = [(e, e.word) for e in lower if e.word != "helped"] + [(e, e.alone) for e in kept if e.alone == "hurt"]
    lost = [entry for entry in mine if entry.word != "kept"]
    if bad or lost:
        words = [f"{_shown(e)} ({word})" for e, word in bad] + [f"{_retained(entry)} ({entry.word})" for entry in lost]
        harm = any(word == "hurt" for _, word in bad) or any(entry.word == "forgot" for entry in lost)
        return "hurt" if harm else "cannot tell", f"{name} does not pass against {gate.control}: {', '.join(words)}."
    keeps = f", and is not worse beyond chance: {', '.join(map(_shown, kept))}" if kept else ""
    keeps += f", and keeps {', '.join(map(_retained, mine))}" if mine else ""
    return "helped", f"{name} improves on {gate.control}: {', '.join(map(_shown, lower))}{keeps}."


def _shown(effect: Effect) -> str:
    return f"{effect.on} {change_text(effect.measure, effect.change)} {interval_text(effect.measure, effect.low, effect.high)}"


def _retained(entry: Retained) -> str:
    change, interval = change_text(entry.measure, entry.change), interval_text(entry.measure, entry.low, entry.high)
    return f"{entry.on} {change} {interval} against {entry.reference}, margin {margin_text(entry.measure, entry.margin)}"


def _best(gate: Gate, name: str, trials: Sequence[dict[str, Any]]) -> str:
    mine = [trial for trial in trials if trial["variant"] == name]
    best = min(
        mine, key=lambda trial: (np.mean([trial["perplexity"][source]["value"] for source in gate.improves]), trial["name"])
    )
    return str(best["name"])


def study_word(verdict: dict[str, Any]) -> Word:
    """One word for a whole study, as a pipeline asks for it.

    With a gate: `helped` when it passed; `hurt` when every candidate was shown to do harm; else `cannot tell`. Without one:
    `hurt` when any effect is or anything was forgotten, else `helped` when any effect is, else `cannot tell`.
    """
    gate = verdict["gate"]
    if gate["candidates"]:
        words = {candidate["word"] for candidate in gate["candidates"].values()}
        return "helped" if gate["passed"] else "hurt" if words == {"hurt"} else "cannot tell"
    words = {effect["word"] for effect in verdict["effects"]}
    if "hurt" in words or any(entry["word"] == "forgot" for entry in verdict["retention"]):
        return "hurt"
    return "helped" if "helped" in words else "cannot tell"
