"""Languages are told apart where there is text enough, and nothing is dropped on a guess."""

import pytest

from medschool.corpus.language import SURE, language_of, other_language

TEXTS = {
    "en": "The boy was brought to the ward with a high fever and a rash that had spread from his chest to both of his arms. "
    "He was given fluids overnight, and by the next morning the rash had begun to fade.",
    "de": "Der Junge wurde mit hohem Fieber und einem Ausschlag, der sich von der Brust auf beide Arme ausgebreitet hatte, auf die "
    "Station gebracht. Er bekam in der Nacht Flüssigkeit, und am nächsten Morgen ging der Ausschlag zurück.",
    "fr": "Le garçon a été amené dans le service avec une forte fièvre et une éruption qui s'était étendue de la poitrine aux deux "
    "bras. Il a reçu des liquides pendant la nuit, et le lendemain matin l'éruption commençait à disparaître.",
    "es": "El niño fue llevado a la sala con fiebre alta y una erupción que se había extendido del pecho a los dos brazos. Recibió "
    "líquidos durante la noche, y a la mañana siguiente la erupción empezaba a desaparecer.",
    "zh": "男孩因高烧和皮疹被送到病房 皮疹已经从胸部蔓延到双臂。他整夜接受补液治疗 第二天早上皮疹开始消退 体温也恢复正常。",
}


@pytest.mark.parametrize("code", TEXTS)
def test_a_paragraph_is_known_for_what_it_is(code: str) -> None:
    found, probability = language_of(TEXTS[code])
    assert found == code and probability >= SURE
    assert other_language(TEXTS[code], frozenset({code, "pl"})) == ""
    reason = other_language(TEXTS[code], frozenset({"pl", "it"}))
    assert f"language is {code}" in reason and "not it or pl" in reason


@pytest.mark.parametrize(
    "text", ["", "Le", "HbA1c 5.4 %, NaCl 0.9 %", "C10H15N", "5-fluorouracil", "12 34 56 78 90", "Morbus Crohn", "\x00"]
)
def test_what_is_too_short_to_tell_is_kept(text: str) -> None:
    assert language_of(text)[1] < SURE
    assert other_language(text, frozenset({"en"})) == ""


def test_only_the_beginning_of_a_long_text_is_looked_at() -> None:
    long = " ".join([TEXTS["en"]] * 20) + TEXTS["zh"] * 500
    assert len(long) > 20_000 and language_of(long)[0] == "en"
