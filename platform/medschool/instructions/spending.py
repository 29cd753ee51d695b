"""What a teacher costs: tokens, dollars, requests and faults of one set of instructions, and the budget that stops it.

The budget is one of the set, not of one attempt: an answer counts that an earlier attempt asked for and this one reads from the
store. So a job that is killed and started again ten times spends what one spends that runs through. An attempt counts kept
answers as it comes to them: where an earlier one was stopped between the tries of a row, that row goes on before later rows are
counted, and the attempts together can pass the budget by the rows that were under way then, `concurrency` of them at most.

Within one attempt it is kept strictly. Before a request is sent, the most that it can cost is set aside: a token for every byte
of the prompt, which no tokenizer over bytes exceeds, MESSAGE_TOKENS for the marks of the template, and the longest answer. What
it did cost takes the place of that when the answer is there. So a request waits until the kept answers of all rows before it are
counted, and near the end of the budget also for the requests under way. Not in here is what the teacher alone knows: what a
request cost that was sent and never answered, and what it adds to a prompt of its own.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any

from medschool.instructions.answers import Answer
from medschool.recipe.instructions import Teacher

MESSAGE_TOKENS = 64


class OverBudget(Exception):
    """The next request could pass the budget, and none is under way that might turn out cheaper."""


class Ledger:
    """Counts of one pass over a set; all methods may be called from many threads."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self._changed = Condition()
        self._aside_tokens = self._first_unread = 0
        self._read: set[int] = set()
        self.counts: Counter[str] = Counter()
        """`asked`, `accepted`, `requests`, `retries`, `cached`, `without_usage`, and tokens by what they were spent on."""
        self.faults: Counter[str] = Counter()
        """Answers that were none, by kind."""
        self.verdicts: Counter[str] = Counter()
        """What was made of the answers, by judgement."""

    @property
    def spent_tokens(self) -> int:
        """Tokens of all answers that the set rests on so far, whenever they were asked for."""
        return self.counts["prompt_tokens"] + self.counts["answer_tokens"]

    def _spent_with(self, tokens: int) -> int:
        return self.spent_tokens + self._aside_tokens + tokens

    def add(self, name: str, amount: int = 1) -> None:
        with self._changed:
            self.counts[name] += amount

    def fault(self, kind: str) -> None:
        with self._changed:
            self.faults[kind] += 1

    def judge(self, verdict: str, answers: int = 1) -> None:
        with self._changed:
            self.verdicts[verdict] += answers

    def is_read(self, row: int) -> None:
        """Say that the kept answers of a row are paid for; rows are numbered from 0 in the order in which they are begun."""
        with self._changed:
            self._read.add(row)
            while self._first_unread in self._read:
                self._read.remove(self._first_unread)
                self._first_unread += 1
            self._changed.notify_all()

    def pay(self, answer: Answer, cached: bool) -> None:
        """Write down what an answer cost, now or, where it is cached, at an earlier time."""
        with self._changed:
            self.counts["cached"] += cached
            self.counts["prompt_tokens"] += answer.prompt_tokens
            self.counts["answer_tokens"] += answer.answer_tokens
            if not cached:
                self.counts["new_prompt_tokens"] += answer.prompt_tokens
                self.counts["new_answer_tokens"] += answer.answer_tokens

    @contextmanager
    def set_aside(self, tokens: int, row: int) -> Iterator[None]:
        """Hold so many tokens of the budget while a request for a row is under way. Raises OverBudget where they are missing."""
        with self._changed:
            while (unread := self._first_unread <= row) or self._spent_with(tokens) > self._teacher.budget_tokens:
                if not unread and not self._aside_tokens:
                    raise OverBudget
                self._changed.wait()
            self._aside_tokens += tokens
        try:
            yield
        finally:
            with self._changed:
                self._aside_tokens -= tokens
                self._changed.notify_all()

    def facts(self) -> dict[str, Any]:
        """For the artifact. `prompt_tokens`, `answer_tokens` and `usd` are of the whole set, `usd_now` is of this attempt."""
        counts = self.counts
        return {
            "model": self._teacher.model,
            "asked": counts["asked"],
            "accepted": counts["accepted"],
            "acceptance": round(counts["accepted"] / counts["asked"], 4) if counts["asked"] else 0.0,
            "verdicts": dict(sorted(self.verdicts.items())),
            "requests": counts["requests"],
            "retries": counts["retries"],
            "cached": counts["cached"],
            "faults": dict(sorted(self.faults.items())),
            "without_usage": counts["without_usage"],
            "prompt_tokens": counts["prompt_tokens"],
            "answer_tokens": counts["answer_tokens"],
            "usd": self._usd(counts["prompt_tokens"], counts["answer_tokens"]),
            "usd_now": self._usd(counts["new_prompt_tokens"], counts["new_answer_tokens"]),
        }

    def _usd(self, prompt_tokens: int, answer_tokens: int) -> float:
        prices = self._teacher.usd_per_million_prompt_tokens, self._teacher.usd_per_million_answer_tokens
        return round((prompt_tokens * prices[0] + answer_tokens * prices[1]) / 1e6, 6)


def most_tokens(teacher: Teacher, messages: list[dict[str, str]]) -> int:
    """The most tokens that a request can cost, prompt and answer together."""
    return prompt_bound(messages) + teacher.max_answer_tokens


def prompt_bound(messages: list[dict[str, str]]) -> int:
    """The most tokens that a prompt can have."""
    return sum(len(message["content"].encode()) + MESSAGE_TOKENS for message in messages)
