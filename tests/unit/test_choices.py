"""Endings scored together against endings run alone; the exam's letters and the written answers, with a tiny random LLaMA."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from medschool.errors import InputError
from medschool.evaluate import answer, choices
from medschool.evaluate.answer import greedy_texts, write_answers
from medschool.evaluate.choices import Choice, choice_log_probs, tokenized
from medschool.evaluate.exams import best, exam_choices, question_prompt, score_exam
from medschool.exams.layout import ANSWER_STEM, answer_text
from medschool.instructions.template import ChatTemplate
from medschool.rows import ExamItem
from medschool.train.model import load_model

ITEMS = [
    ExamItem("e:0", "exam", "s", "Which organ makes urine?", ("The kidney", "The heart"), 0, "", "file"),
    ExamItem("e:1", "exam", "s", "Rabbit?", ("The queen", "A garden", "The serum", "Over the hill"), 2, "", "file"),
    ExamItem("e:2", "exam", "s", "What does the heart do to the dose of therapy?", ("Ran", "Said", "Went home"), 1, "", "file"),
]


def random_model(attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64, vocab_size=60,
        max_position_embeddings=64, attn_implementation=attention, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


MODELS = {attention: random_model(attention) for attention in ("sdpa", "eager")}


def log_prob_alone(model: Any, prompt: tuple[int, ...], ending: tuple[int, ...]) -> float:
    """The ending behind its prompt in a row of its own: no mask, no positions, no padding."""
    ids = torch.tensor([[*prompt, *ending]])
    with torch.inference_mode():
        log_probs = model(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)
    return sum(float(log_probs[len(prompt) + place - 1, token]) for place, token in enumerate(ending))


TOKENS = st.lists(st.integers(0, 59), min_size=1, max_size=6).map(tuple)
CHOICES = st.lists(st.builds(Choice, TOKENS, st.lists(TOKENS, min_size=1, max_size=5).map(tuple)), min_size=1, max_size=5)


@settings(max_examples=40, deadline=None)
@given(CHOICES, st.sampled_from(["sdpa", "eager"]))
def test_endings_together_score_as_each_alone(drawn: list[Choice], attention: str) -> None:
    model = MODELS[attention]
    for choice, scores in zip(drawn, choice_log_probs(model, drawn), strict=True):
        alone = [log_prob_alone(model, choice.prompt, ending) for ending in choice.endings]
        assert scores == pytest.approx(alone, abs=1e-4)


@settings(max_examples=25, deadline=None)
@given(CHOICES, st.randoms())
def test_neither_company_nor_the_order_of_endings_matters(drawn: list[Choice], draw: Any) -> None:
    together = choice_log_probs(MODELS["sdpa"], drawn)
    for choice, scores in zip(drawn, together, strict=True):
        order = list(range(len(choice.endings)))
        draw.shuffle(order)
        mixed = Choice(choice.prompt, tuple(choice.endings[place] for place in order))
        assert choice_log_probs(MODELS["sdpa"], [mixed])[0] == pytest.approx([scores[place] for place in order], abs=1e-4)


def test_small_batches_give_the_same_scores_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [Choice(tuple(range(1, 2 + size)), ((size,), (size, 3, 7))) for size in (4, 1, 9, 2, 9, 6)]
    whole = choice_log_probs(MODELS["sdpa"], drawn)
    monkeypatch.setattr(choices, "BATCH_TOKENS", 20)
    for found, expected in zip(choice_log_probs(MODELS["sdpa"], drawn), whole, strict=True):
        assert found == pytest.approx(expected, abs=1e-4)


def test_no_choices_no_scores() -> None:
    assert choice_log_probs(MODELS["sdpa"], []) == []


@pytest.mark.parametrize(
    "choice",
    [Choice((), ((1,),)), Choice((1,), ((1,), ())), Choice((1,) * 60, ((1,), (2,) * 6))],
    ids=["prompt", "ending", "long"],
)
def test_what_cannot_be_scored_is_refused(choice: Choice) -> None:
    with pytest.raises(InputError):
        choice_log_probs(MODELS["sdpa"], [Choice((1, 2), ((3,), (4,))), choice])


def letters(text: str) -> list[int]:
    return [ord(character) for character in text]


def pairs(text: str) -> list[int]:
    """A tokenizer that takes two characters at a time, so a border inside a pair is merged."""
    return [256 * ord(text[at]) + ord(text[at + 1 : at + 2] or "\0") for at in range(0, len(text), 2)]


@pytest.mark.parametrize("encode", [letters, pairs])
@pytest.mark.parametrize("prompt", ["even", "odd", "x", ""])
def test_tokenized_is_the_text_encoded_as_one(encode: Any, prompt: str) -> None:
    endings = [" A", " B", " and more", " and"]
    choice = tokenized(encode, prompt, endings)
    assert [list(choice.prompt + ending) for ending in choice.endings] == [encode(prompt + ending) for ending in endings]
    assert len(choice.prompt) == len(prompt) if encode is letters else len(choice.prompt) == len(prompt) // 2


@pytest.mark.parametrize(
    ("encode", "endings"),
    [
        (lambda text: letters(text.replace(" B", "")), [" A", " B"]),
        (lambda text: [min(token, ord("B")) for token in letters(text)], [" A", " B", " C"]),
    ],
    ids=["nothing", "unknown"],
)
def test_endings_without_tokens_of_their_own_are_refused(encode: Any, endings: list[str]) -> None:
    with pytest.raises(InputError, match="apart"):
        tokenized(encode, "OPTION", endings)


# ---- exams and answers --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatTemplate]:
    """A random model with large weights, in which every token of the prompt changes what follows."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder)
    model = load_model(folder, "fp32").eval()
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(8 if weights.ndim > 1 else 1)
    return model, ChatTemplate(folder)


@pytest.fixture(scope="module")
def pupil(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ChatTemplate]:
    """A model that learned the answers of ITEMS by heart."""
    folder = tmp_path_factory.mktemp("pupil")
    write_model(folder)
    model, template = load_model(folder, "fp32"), ChatTemplate(folder)
    lessons = [(question_prompt(item, template), [*template.encode(answer_text(item.answer)), template.eos_id]) for item in ITEMS]
    steps = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        for prompt, words in lessons:
            ids = torch.tensor([prompt + words])
            targets = torch.tensor([[-100] * len(prompt) + words])
            model(input_ids=ids, labels=targets).loss.backward()
        steps.step()
        steps.zero_grad()
    return model.eval(), template


def test_the_exam_is_the_probability_of_each_answer_behind_the_whole_prompt(checkpoint: tuple[Any, ChatTemplate]) -> None:
    model, template = checkpoint
    table = score_exam(model, template, ITEMS)
    assert table.column("id").to_pylist() == ["e:0", "e:1", "e:2"]
    for item, row in zip(ITEMS, table.to_pylist(), strict=True):
        prompt = tuple(question_prompt(item, template))
        whole = [
            log_prob_alone(model, prompt, tuple(template.encode(f"{ANSWER_STEM} {name}"))) for name in "ABCD"[: len(item.options)]
        ]
        shared = [score - whole[0] for score in whole]  # what the letters have in common cancels
        assert [score - row["log_probs"][0] for score in row["log_probs"]] == pytest.approx(shared, abs=1e-4)
        assert row["chosen"] == max(range(len(whole)), key=lambda index: row["log_probs"][index])
        assert (row["exam"], row["answer"], row["correct"]) == ("exam", item.answer, row["chosen"] == item.answer)


def test_a_choice_reads_as_the_opened_conversation_and_the_letter(checkpoint: tuple[Any, ChatTemplate]) -> None:
    _, template = checkpoint
    choice = exam_choices(ITEMS, template)[1]
    for name, ending in zip("ABCD", choice.endings, strict=True):
        text = template.decode(choice.prompt + ending)
        assert text.endswith(f"D. Over the hill\n\nassistant\n{ANSWER_STEM} {name}")


def test_an_item_that_does_not_fit_is_named(checkpoint: tuple[Any, ChatTemplate]) -> None:
    model, template = checkpoint
    long = replace(ITEMS[1], id="long-one", question="word " * model.config.max_position_embeddings)
    with pytest.raises(InputError, match=r"exam long-one.*context"):
        score_exam(model, template, [ITEMS[0], long])


def test_who_learned_the_answers_passes_in_letters_and_in_words(pupil: tuple[Any, ChatTemplate]) -> None:
    model, template = pupil
    assert score_exam(model, template, ITEMS).column("correct").to_pylist() == [True] * 3
    table = write_answers(model, template, ITEMS, 40)
    assert table.column("text").to_pylist() == [answer_text(item.answer) for item in ITEMS]
    assert table.column("chosen").to_pylist() == [0, 2, 1]
    assert table.column("correct").to_pylist() == [True] * 3


def test_an_answer_cut_short_has_no_choice(pupil: tuple[Any, ChatTemplate]) -> None:
    table = write_answers(*pupil, ITEMS, 3)
    assert table.column("chosen").to_pylist() == [None] * 3
    assert table.column("correct").to_pylist() == [False] * 3
    assert table.column("problem").to_pylist() == ["unread"] * 3


def test_an_empty_answer_is_told_from_one_that_cannot_be_read(
    pupil: tuple[Any, ChatTemplate], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["", " \n", "OPTION C IS CORRECT"]
    monkeypatch.setattr(answer, "greedy_texts", lambda *_: texts)
    table = write_answers(*pupil, ITEMS, 3, "hash")
    assert table.column("problem").to_pylist() == ["empty", "empty", ""]
    assert table.column("chosen").to_pylist() == [None, None, 2] and set(table.column("protocol").to_pylist()) == {"hash"}


def test_an_answer_that_does_not_fit_behind_its_prompt_is_refused_by_item(pupil: tuple[Any, ChatTemplate]) -> None:
    model, template = pupil
    room = model.config.max_position_embeddings - max(len(question_prompt(item, template)) for item in ITEMS)
    with pytest.raises(InputError, match=r"exam e:\d: .*the model's context is"):
        write_answers(model, template, ITEMS, room + 1)


def greedy_alone(model: Any, template: ChatTemplate, prompt: list[int], count: int) -> str:
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + count:
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            if ids[-1] == template.eos_id:
                break
    return template.decode(ids[len(prompt) :])


@pytest.mark.parametrize("batch_tokens", [1, 300, 4096])
def test_answers_are_greedy_whatever_the_checkpoint_says(
    checkpoint: tuple[Any, ChatTemplate], monkeypatch: pytest.MonkeyPatch, batch_tokens: int
) -> None:
    model, template = checkpoint
    own = GenerationConfig(
        do_sample=True, temperature=2.0, repetition_penalty=5.0, suppress_tokens=list(range(200)), max_length=5
    )
    monkeypatch.setattr(model, "generation_config", own)
    monkeypatch.setattr(answer, "BATCH_TOKENS", batch_tokens)
    prompts = [question_prompt(item, template) for item in ITEMS]
    expected = [greedy_alone(model, template, prompt, 12) for prompt in prompts]
    assert greedy_texts(model, template, prompts, 12) == expected
    assert model.generation_config is own


def test_ties_favour_no_letter_and_no_model() -> None:
    chosen = [best(f"item:{number}", [-1.0, -1.0, -2.0]) for number in range(200)]
    assert 60 < chosen.count(0) < 140
    assert 2 not in chosen
    assert chosen == [best(f"item:{number}", [-3.0, -3.0, -9.0]) for number in range(200)]
