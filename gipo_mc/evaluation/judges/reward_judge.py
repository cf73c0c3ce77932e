"""A reward model as the judge: it scores both responses, and the higher reward wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from gipo_mc.config import DataConfig, ParallelConfig, saved_values
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.encode import Encoder
from gipo_mc.data.tokenizer import load_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.evaluation.judge_config import RewardJudgeConfig
from gipo_mc.evaluation.judges.prompts import Position
from gipo_mc.evaluation.judges.questions import Comparison, Given, Question, Record, make_setup
from gipo_mc.evaluation.responses import turns
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.rl.rewards import ModelReward
from gipo_mc.run.model_sources import ModelSource, load_model, resolve
from gipo_mc.types import Message, Prompt, Role, Rollout

#: Decimals of a reward that are compared. Below them a reward depends on the other rows of its batch, and a run that
#: was killed and continued would not end as one that was not.
DECIMALS = 4
#: A response, with its prompt and whether it was cut.
Scored = tuple[str, str, bool]


class RewardJudge:
    """A `Judge` of `kind: reward`. Verdicts depend on the weights, which are loaded by `ask`.

    warn: told of what is odd about its tokenizer. Raises ConfigError, CheckpointError.
    """

    def __init__(self, config: RewardJudgeConfig, warn: Callable[[str], None] = lambda text: None) -> None:
        self.max_invalid = config.max_invalid
        self._config = config
        self._layout = runtime.initialize(ParallelConfig(), config.device)
        self._dtype = runtime.resolve_dtype("auto", self._layout.device)
        self._source = source = resolve(config.model, "model")
        self._tokenizer = load_tokenizer(str(source.folder), warn)
        self._template = _template(config, source, self._tokenizer)
        self._encoder = Encoder(self._tokenizer)
        self._known: dict[Scored, float] = {}
        self.setup = make_setup(
            config.name,
            config.kind,
            server=f"reward model {source.fingerprint()}",
            model=config.model,
            settings={"margin": config.margin, "chat_template": self._template, "dtype": str(self._dtype)},
            orders="seeded",
            repeats=1,
            seed=0,
        )

    def request(self, comparison: Comparison) -> Mapping[str, Any]:
        """What is scored."""
        first, second = _scored(comparison)
        return {"prompt": first[0], "first": first[1:], "second": second[1:]}

    def ask(self, questions: Sequence[Question], record: Record) -> None:
        """In batches. Raises DataError where a response is too long for the model."""
        model = load_model(self._source, self._layout, head="reward", dtype=self._dtype, trainable=False, seed=1)
        data = DataConfig(reward_chat_template="on" if self._template else "off")
        engine, tokenizer = Engine(model, self._layout), self._tokenizer
        reward = ModelReward(engine, tokenizer, tokenizer, ParallelConfig(), data=data)
        positions: int = model.max_sequence_length
        for start in range(0, len(questions), self._config.batch):
            batch = questions[start : start + self._config.batch]
            wanted = [scored for question in batch for scored in _scored(question.shown)]
            new = list(dict.fromkeys(scored for scored in wanted if scored not in self._known))
            if new:
                self._known.update(zip(new, self._rewards(reward, new, positions), strict=True))
            for question in batch:
                record(question, self._given(*(self._known[scored] for scored in _scored(question.shown))))

    def _given(self, first: float, second: float) -> Given:
        text = f"rewards {first:.{DECIMALS}f} and {second:.{DECIMALS}f}"
        difference = round(first, DECIMALS) - round(second, DECIMALS)
        if difference != difference or abs(difference) == float("inf"):
            return Given(None, text=text, problem="a reward is no number")
        position: Position = "first" if difference > 0 else "second"
        return Given("tie" if abs(difference) <= self._config.margin else position, reason=text, text=text)

    def _rewards(self, reward: ModelReward, rows: Sequence[Scored], positions: int) -> list[float]:
        prompts = self._encoder.prompts([prompt for prompt, _, _ in rows])
        spaced = [text if text[:1].isspace() else f" {text}" for _, text, _ in rows]
        closed = self._encoder.responses(spaced)
        responses = [ids[:-1] if cut and len(ids) > 1 else ids for ids, (_, _, cut) in zip(closed, rows, strict=True)]
        device = self._layout.device
        sequences = to_sequences(prompts, responses, self._tokenizer.pad_token_id, device)
        longest = int((sequences.prompt_length_B + sequences.response_length_B).max())
        if longest > positions:
            raise DataError(
                f"{self._config.name}: a response is {longest} tokens long with its prompt in the reward model's "
                f"tokens, but {self._config.model} has {positions} positions: use another model, or shorter prompts."
            )
        width = int(sequences.response_length_B.max())
        rollout = Rollout(
            sequences,
            torch.arange(len(rows), device=device),
            ("",) * len(rows),
            torch.zeros(len(rows), width, device=device),
            torch.tensor([cut for _, _, cut in rows], device=device),
        )
        asked = [
            Prompt(number, tuple(ids), "", prompt, _messages(prompt))
            for number, (ids, (prompt, _, _)) in enumerate(zip(prompts, rows, strict=True))
        ]
        found: list[float] = reward(asked, rollout).double().tolist()
        return found


def _scored(comparison: Comparison) -> tuple[Scored, Scored]:
    pair = comparison.pair
    ours: Scored = (pair.prompt, pair.ours, pair.ours_truncated)
    theirs: Scored = (pair.prompt, pair.theirs, pair.theirs_truncated)
    return (ours, theirs) if comparison.ours_first else (theirs, ours)


def _messages(prompt: str) -> tuple[Message, ...]:
    roles: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
    return tuple(Message(roles[role], content) for role, content in turns(prompt))


def _template(config: RewardJudgeConfig, source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Are dialogues written with the tokenizer's chat template?"""
    if config.chat_template == "on" and not tokenizer.chat_template:
        raise ConfigError(
            f"chat_template: on, but the tokenizer of {config.model} has no chat template: set it to auto."
        )
    if config.chat_template != "auto":
        return config.chat_template == "on"
    if saved := source.saved_config:
        return bool(saved_values(saved).get("data.chat_template")) and bool(tokenizer.chat_template)
    return bool(tokenizer.chat_template)


def trained_with(model: str, labels: Sequence[str]) -> list[str]:
    """Names of the runs among the models of responses that were trained with this reward model: it is no judge of them.

    labels: `Response.model`, "name [checkpoint, hash]". A run whose config.yaml is not there any more is not known.
    """
    judge, found = Path(model).resolve(), []
    for name in sorted({label.rpartition(" [")[0] or label for label in labels}):
        for folder in (Path(name), Path(name).parent.parent):
            with suppress(ConfigError):
                reward = saved_values(folder / "config.yaml").get("model.reward")
                if isinstance(reward, str) and reward and _same(judge, Path(reward).resolve()):
                    found.append(name)
                break
    return found


def _same(one: Path, other: Path) -> bool:
    """The same run or folder, or a checkpoint of it."""
    return one == other or one.is_relative_to(other) or other.is_relative_to(one)
