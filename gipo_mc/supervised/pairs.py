"""Preference pairs as the supervised loop takes them: two sequences a pair, which no split ever separates."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from gipo_mc.data.collate import to_sequences
from gipo_mc.data.loading import load_preferences
from gipo_mc.data.named import sources_of
from gipo_mc.data.sets import seen_in_training
from gipo_mc.run.session import Session
from gipo_mc.types import Sequences


class Pairs:
    """The training and the held-out pairs of a run.

    unit: rows of a batch that belong together; chosen and rejected alternate.
    train_size, held_out_size: pairs, 0 where nothing is held out.
    """

    unit = 2

    def __init__(self, session: Session, tokenizer: PreTrainedTokenizerBase) -> None:
        config = session.config
        self._pad_id = tokenizer.pad_token_id
        self._train = load_preferences(config.data, tokenizer, seed=config.run.seed)
        by_name = session.config.dpo.groups_from == "domain"  # weights of the domains are stored by their names
        session.trains_on("data.preferences", self._train, tokenizer, named_domains=by_name)
        self._held_out = None
        if sources_of(config.data, "preferences", "evaluation"):
            self._held_out = load_preferences(config.data, tokenizer, seed=config.run.seed, part="evaluation")
            if text := seen_in_training(self._train, self._held_out):
                session.warn(text)
        self.train_size = len(self._train)
        self.held_out_size = len(self._held_out) if self._held_out else 0

    def sequences(self, rows: Sequence[int], *, held_out: bool = False) -> Sequences:
        """The given pairs of the training (or held-out) data, two sequences each."""
        data = self._held_out if held_out else self._train
        assert data is not None
        pairs = [data[row] for row in rows]
        return to_sequences(
            [pair.prompt_ids for pair in pairs for _ in range(2)],
            [ids for pair in pairs for ids in (pair.chosen_ids, pair.rejected_ids)],
            self._pad_id,
        )

    def domain_of(self, *, held_out: bool = False) -> tuple[str, ...]:
        """The label of every pair of the training (or held-out) data."""
        data = self._held_out if held_out else self._train
        return data.domain_of if data else ()

    def describe(self) -> list[tuple[str, str]]:
        """(label, value) lines on the data."""
        held_out = self._held_out.describe() if self._held_out else "none"
        return [("preferences", self._train.describe()), ("held out", held_out)]
