"""A language model as the judge: the prompt's question to a server, from several threads, and its answer read."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from gipo_mc.evaluation.answers import Answer, ChatClient
from gipo_mc.evaluation.judge_config import OpenAIJudgeConfig
from gipo_mc.evaluation.judges.prompts import JudgePrompt
from gipo_mc.evaluation.judges.questions import Comparison, Given, Question, Record, make_setup
from gipo_mc.evaluation.judges.verdict import Verdict, read_verdict

#: How often a question is asked in all before its answer counts as invalid.
TRIES = 2


class ChatJudge:
    """A `Judge` of `kind: openai`. client: None for a dry run, which asks nothing. seed: of seeded orders."""

    def __init__(self, config: OpenAIJudgeConfig, prompt: JudgePrompt, client: ChatClient | None, seed: int) -> None:
        self.max_invalid = config.max_invalid
        self.prompt = prompt
        self._config = config
        self._client = client
        self.setup = make_setup(
            config.name,
            config.kind,
            server=config.base_url,
            model=config.model,
            prompt=prompt.name,
            version=prompt.version,
            settings=self._settings(0),
            orders=config.orders or prompt.orders,
            repeats=config.repeats,
            seed=seed,
        )

    def _settings(self, repeat: int) -> dict[str, Any]:
        config = self._config
        own = {
            "model": config.model,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            "seed": None if config.seed is None else config.seed + repeat,
        }
        return {key: value for key, value in own.items() if value is not None} | config.extra

    def request(self, comparison: Comparison) -> Mapping[str, Any]:
        """Messages and settings, as they are sent."""
        messages = self.prompt.messages(comparison.pair.prompt, comparison.first, comparison.second)
        return {"messages": messages, **self._settings(comparison.repeat)}

    def ask(self, questions: Sequence[Question], record: Record) -> None:
        """From `workers` threads. After an error, or Ctrl-C, what is under way is still waited for and recorded: it
        will be paid for."""
        assert self._client is not None, "a dry run asks nothing"
        pool = _Pool(questions, lambda question: record(question, self._answer(question)), self._client.stop)
        pool.run(min(self._config.workers, len(questions)))

    def _answer(self, question: Question) -> Given:
        assert self._client is not None, "a dry run asks nothing"
        request = dict(self.request(question.shown))
        messages = request.pop("messages")
        shown = question.shown
        quoted = (shown.pair.prompt, shown.first, shown.second)
        answers: list[Answer] = []
        verdict = Verdict(None)
        while len(answers) < TRIES and verdict.position is None:
            if answers and answers[-1].text:
                said = {"role": "assistant", "content": answers[-1].text}
                messages = [*messages, said, {"role": "user", "content": self.prompt.reminder()}]
            answers.append(self._client.ask(messages, request))
            verdict = self._verdict(answers[-1], quoted)
        last, texts = answers[-1], [answer.text for answer in answers if answer.text]
        return Given(
            position=verdict.position,
            reason=verdict.reason or "\n\n".join(texts[:-1]),  # behind a reminder a model writes the verdict alone
            text="\n\n".join(texts),
            problem=verdict.problem,
            finish_reason=last.finish_reason,
            model=last.model,
            usage=_sum([answer.usage for answer in answers]),
            adapted=last.adapted,
            asked=len(answers),
        )

    def _verdict(self, answer: Answer, quoted: Sequence[str]) -> Verdict:
        if answer.text is None:
            return Verdict(None, problem=answer.problem or "the server gave no text")
        if answer.finish_reason == "length":
            return Verdict(
                None, answer.text, f"the answer was cut at max_tokens={self._config.max_tokens}: raise max_tokens"
            )
        return read_verdict(answer.text, self.prompt, quoted)


def _sum(usages: Sequence[Mapping[str, int] | None]) -> dict[str, int] | None:
    """Tokens of all requests together; None where the server counts none."""
    counted = [usage for usage in usages if usage is not None]
    if not counted:
        return None
    return {key: sum(usage.get(key, 0) for usage in counted) for key in sorted({k for u in counted for k in u})}


class _Pool:
    """Threads that each take the next question until none is left or one of them failed. stop: ends their waiting."""

    def __init__(self, questions: Sequence[Question], work: Any, stop: Any) -> None:
        self._left = iter(questions)
        self._work = work
        self._stop = stop
        self._changes = threading.Condition()
        self._at_work = 0
        self._stopped = threading.Event()
        self._error: BaseException | None = None

    def run(self, workers: int) -> None:
        """Returns when all is done. Raises the first error, when all threads have ended."""
        threads = [threading.Thread(target=self._take, daemon=True) for _ in range(workers)]
        self._at_work = workers
        started = 0
        try:
            for thread in threads:
                thread.start()
                started += 1
            self._wait()
        except BaseException:  # Ctrl-C
            self._end()
            with self._changes:
                self._at_work -= workers - started
            self._wait()
            raise
        if self._error is not None:
            raise self._error

    def _wait(self) -> None:
        # Not by join(): in Python 3.11 and 3.12 a join() that Ctrl-C interrupts takes its thread for ended, and a
        # second one returns at once.
        with self._changes:
            self._changes.wait_for(lambda: self._at_work <= 0)

    def _take(self) -> None:
        try:
            while not self._stopped.is_set():
                with self._changes:
                    question = next(self._left, None)
                if question is None:
                    return
                self._work(question)
        except BaseException as error:
            with self._changes:
                self._error = self._error or error
            self._end()
        finally:
            with self._changes:
                self._at_work -= 1
                self._changes.notify_all()

    def _end(self) -> None:
        self._stopped.set()
        self._stop()
