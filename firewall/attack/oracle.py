"""What a black-box attacker has: answers, one at a time, and a count of them.

A refusal is an answer too. It counts, it says nothing about classes, and where the service blocks
whoever was refused it is the last one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Questions about one row that are sent together.
_AT_ONCE = 32


@dataclass(frozen=True)
class Replies:
    """To N questions: log-probabilities or logits [N, K], and which were refused [N]."""

    scores: Tensor
    refused: Tensor

    @classmethod
    def of(cls, scores: Tensor) -> Replies:
        """Answers of a service that refuses nothing."""
        return cls(scores, torch.zeros(len(scores), dtype=torch.bool))


class Oracle:
    """Counts the queries of an attack on N rows."""

    def __init__(
        self,
        answer: Callable[[Tensor], Replies],
        rows: int,
        budget: int,
        *,
        ends_at_refusal: bool = False,
    ) -> None:
        """Nothing is asked yet.

        Args:
            answer: [M, C, H, W] in [0, 1] to replies.
            rows: how many images are attacked.
            budget: queries for each of them.
            ends_at_refusal: whether the service blocks a client whom it has refused once.

        """
        if budget < 1:
            raise ValueError(f"budget: {budget}; expected at least 1")
        self._answer = answer
        self._budget = budget
        self._ends = ends_at_refusal
        #: Queries made for each row.
        self.queries = torch.zeros(rows, dtype=torch.int64)
        #: Queries that were refused, for each row.
        self.refusals = torch.zeros(rows, dtype=torch.int64)
        #: Rows of which the service answers no more.
        self.blocked = torch.zeros(rows, dtype=torch.bool)

    def may_ask(self, each: int = 1) -> Tensor:
        """[N]: which rows have that many queries left, and are not blocked."""
        return (self.queries + each <= self._budget) & ~self.blocked

    def ask(self, x: Tensor, rows: Tensor) -> Replies:
        """One query for each of the rows (indices [M]), which must be allowed to ask."""
        if not bool(self.may_ask()[rows].all()):
            raise ValueError("a row asks beyond its budget")
        replies = self._answer(x)
        self._count(replies, rows)
        return replies

    def ask_in_turn(self, x: Tensor, row: int) -> Replies:
        """Questions [M, C, H, W] about one row, as far as it may ask: answers of the first ones."""
        left = int(self._budget - self.queries[row])
        if self.blocked[row]:
            left = 0
        scores: list[Tensor] = []
        refused: list[Tensor] = []
        # Where a refusal ends the trail, no question may be sent before the last is answered.
        for part in torch.split(x[:left], 1 if self._ends else _AT_ONCE):
            replies = self._answer(part)
            self._count(replies, torch.full((len(part),), row))
            scores.append(replies.scores)
            refused.append(replies.refused)
            if bool(self.blocked[row]):
                break
        if not scores:
            return Replies(torch.empty(0, 1), torch.empty(0, dtype=torch.bool))
        return Replies(torch.cat(scores), torch.cat(refused))

    def _count(self, replies: Replies, rows: Tensor) -> None:
        self.queries.index_add_(0, rows, torch.ones_like(rows))
        self.refusals.index_add_(0, rows, replies.refused.long())
        if self._ends:
            self.blocked[rows[replies.refused]] = True
