"""A policy in another program: load it, sample from it, ask for its log-probs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from torch import Tensor

from gipo_mc.api import ranks
from gipo_mc.api.texts import PromptLike, as_prompts, response_ids
from gipo_mc.config import Config, validate
from gipo_mc.data.collate import to_sequences
from gipo_mc.data.encode import Encoder
from gipo_mc.data.tokenizer import check_vocabulary, load_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.generation.choose import rollout_engine
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import token_log_probs
from gipo_mc.parallel import runtime
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.rl.rewards import responses as texts_of
from gipo_mc.rl.rollout import limits_of, roll_out
from gipo_mc.run.model_sources import ModelSource, check_fits, load_model, resolve


@dataclass(frozen=True)
class Generation:
    """One sampled response.

    prompt: the text that the model read. text: the response as it continues the prompt, without special tokens.
    token_ids: the model's ids, EOS included where there is one. log_probs: in nats, one for each id, under the model at
    the sampling temperature, before top-k and top-p. truncated: did max_new_tokens cut it?
    """

    prompt: str
    text: str
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]
    truncated: bool


class Policy:
    """A language model on this process, or on all ranks of a torchrun job, which then make the same calls.

    Made by `load_policy`. Close it, or use it in a `with` block, to leave the process group when it is the last that
    uses it.
    """

    def __init__(self, config: Config, layout: Layout) -> None:
        """Used by `load_policy`. Raises ConfigError, CheckpointError."""
        self._config, self._layout, self._open = config, layout, True
        self._source: ModelSource = resolve(config.model.policy, "policy", together=True)
        check_fits(self._source, layout)
        named = config.model.tokenizer or str(self._source.folder)
        #: The policy's tokenizer, of transformers.
        self.tokenizer = load_tokenizer(named, chat_template=config.data.chat_template)
        check_vocabulary(self.tokenizer, self._source.shape.vocab_size, self._source.name)
        dtype = runtime.resolve_dtype(config.dtype, layout.device)
        self._model = load_model(self._source, layout, head="lm", dtype=dtype, trainable=False, seed=config.run.seed)
        self._engine = Engine(self._model, layout)

    def sample(
        self,
        prompts: Sequence[PromptLike],
        *,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        greedy: bool = False,
        stop: Sequence[str] = (),
        samples_per_prompt: int = 1,
        seed: int = 1,
    ) -> list[Generation]:
        """Responses to the prompts, `samples_per_prompt` to each, side by side, the same on every rank.

        prompts: texts as the model is to read them, or with chat=True a user's message each; or dialogues, lists of
        {"role", "content"}. top_p 1 and top_k 0: off. greedy: the most probable token each time. stop: strings that end
        a response. seed: with equal arguments, equal responses.
        Raises ConfigError for a setting out of its bounds, DataError for a prompt that cannot be used.
        """
        self._check_open()
        asked = {
            "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k,
            "stop": list(stop), "samples_per_prompt": samples_per_prompt,
            "batch_size": max(samples_per_prompt, self._layout.data),
        }  # fmt: skip
        settings = validate({"rollout": asked, "run": {"seed": seed}, "algorithm": {"mini_batch_size": 1}}).rollout
        config = self._config.model_copy(
            update={"rollout": settings, "run": self._config.run.model_copy(update={"seed": seed})}
        )
        one_each = as_prompts(prompts, self.tokenizer, config.data)
        repeated = [prompt for prompt in one_each for _ in range(samples_per_prompt)]
        if not repeated:
            return []
        longest = max(len(prompt.token_ids) for prompt in repeated) + max_new_tokens
        check_fits(self._source, self._layout, sequence_length=longest)
        engine = rollout_engine("megatron", self._model, limits_of(config), longest)
        rows = ranks.enough(repeated, self._layout)
        rollout = roll_out(engine, self.tokenizer, rows, config, 0, purpose="generate", greedy=greedy)
        sequences, found = rollout.sequences, []
        texts, cut = texts_of(sequences, self.tokenizer), rollout.truncated_B.tolist()
        starts, lengths = sequences.prompt_length_B.tolist(), sequences.response_length_B.tolist()
        for row, prompt in enumerate(repeated):
            ids = tuple(sequences.tokens_BL[row, starts[row] : starts[row] + lengths[row]].tolist())
            log_probs = tuple(rollout.sampler_logp_BT[row, : lengths[row]].tolist())
            found.append(Generation(prompt.text, texts[row], ids, log_probs, cut[row]))
        return found

    def log_probs(
        self,
        prompts: Sequence[PromptLike],
        responses: Sequence[str] | Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
    ) -> list[Tensor]:
        """Log-probs, in nats, of each response's tokens behind its prompt: float32 [T_i] on the CPU, the same on every
        rank.

        responses: texts as they continue the prompts (EOS is added), or token ids as they are. temperature: divides the
        logits. Raises DataError where prompts and responses are not as many, or a response is empty.
        """
        self._check_open()
        if len(prompts) != len(responses):
            raise DataError(f"There are {len(prompts)} prompts and {len(responses)} responses: give one for each.")
        asked = as_prompts(prompts, self.tokenizer, self._config.data)
        ids = response_ids(responses, Encoder(self.tokenizer))
        if empty := [place for place, one in enumerate(ids) if not one]:
            raise DataError(f"Response {empty[0]} has no token: there is no log-prob to give.")
        if not ids:
            return []
        prompt_ids = ranks.enough([prompt.token_ids for prompt in asked], self._layout)
        answers = ranks.enough(ids, self._layout)
        sequences = to_sequences(prompt_ids, answers, self.tokenizer.pad_token_id, self._layout.device)
        longest = int((sequences.prompt_length_B + sequences.response_length_B).max())
        check_fits(self._source, self._layout, sequence_length=longest)
        parallel, width = self._config.parallel, max(map(len, ids))
        packed = micro_batches(sequences, parallel, self._layout, width=width)
        stage = token_log_probs(temperature, parallel.logit_rows)
        logp_BT = run_forward(self._engine, packed, stage, {"logp": width})["logp"].cpu()
        return [logp_BT[row, : len(one)] for row, one in enumerate(ids)]

    def close(self) -> None:
        """Give the model's memory back; leave the process group if nothing else of the library uses it. Twice is
        fine."""
        if self._open:
            self._open = False
            del self._model, self._engine
            ranks.release()

    def _check_open(self) -> None:
        if not self._open:
            raise ConfigError("The policy was closed: load it again.")

    def __enter__(self) -> Policy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_policy(
    name: str | Path,
    *,
    tokenizer: str | Path = "",
    chat: bool = False,
    device: ranks.Device = "auto",
    dtype: ranks.DType = "auto",
    tensor: int = 1,
    pipeline: int = 1,
) -> Policy:
    """Load a policy: a Hugging Face folder or hub name, a run folder of this package, or one of its checkpoints.

    tokenizer: another one than the model's own. chat: render prompts with the tokenizer's chat template. device: "auto"
    is CUDA where every local rank has a GPU. dtype: "auto" is bfloat16 on CUDA, float32 on the CPU. tensor, pipeline:
    model-parallel ranks, of those that torchrun started; what remains is data parallel.
    Raises ConfigError, CheckpointError, DataError (`gipo_mc.errors`).
    """
    config = validate(
        {
            "model": {"policy": str(name), "tokenizer": str(tokenizer)},
            "data": {"chat_template": chat},
            "parallel": {"tensor": tensor, "pipeline": pipeline},
            "device": device,
            "dtype": dtype,
        }
    )
    layout = ranks.acquire(config)
    try:
        return Policy(config, layout)
    except BaseException:
        ranks.release()
        raise
