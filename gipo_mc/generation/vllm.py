"""Generation with vLLM inside the training ranks: an engine of its own in each rank, tensor-parallel as training is.

    sync_weights: the policy's parameters -> whole Hugging Face tensors, one at a time -> vLLM's weights, in place
    generate: a request for each prompt -> vLLM's steps until none is left -> Generated

vLLM sees no file but a config.json that is gone when it has read it. Each rank runs its own scheduler; those of a
tensor group come to the same plan, because they are given the same requests. Another data-parallel replica has a
group, and so a vLLM, of its own.

vLLM draws with a generator for each request, seeded here by the request's uniforms, so a response depends on seed, step
and prompt, not on its neighbours; but the generator, the order of sums and with them the tokens are vLLM's, and may
change with its version and its batches (docs/rollout_engines.md).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gipo_mc.errors import ConfigError, NumericsError
from gipo_mc.generation.checks import checked
from gipo_mc.generation.engine import Generated, Progress, Sampling
from gipo_mc.generation.memory import Limits, page_budget
from gipo_mc.generation.vllm_library import executor, known_ids_only, library
from gipo_mc.models.hf_files import save_config
from gipo_mc.models.kv_cache import PAGE, page_bytes
from gipo_mc.models.stage import StageModel
from gipo_mc.models.weights.hf_export import whole_tensors
from gipo_mc.parallel.guest import undisturbed
from gipo_mc.parallel.layout import Layout

#: Rows that decode at a time where rollout.slots sets no number: as many as vLLM takes by itself.
_SLOTS = 256
#: Tokens of a block of vLLM's KV cache: the largest of its defaults, which is the CPU's.
_BLOCK = 128


class VLLMEngine:
    """A rank's part of the vLLM of its tensor group. Make at most one in a process.

    model: this rank's `StageModel` with an LM head, the only stage of its pipeline. Its weights are taken over by
        `sync_weights`; before the first one vLLM's are noise.
    limits: slots, tokens of a prefill and the memory of the KV cache, which vLLM takes when it is made.
    longest: the most tokens that a prompt and its response have together.
    Raises ConfigError, before vLLM is started where that can be known.
    """

    def __init__(self, model: StageModel, limits: Limits, longest: int) -> None:
        assert model.layout.pipeline == 1, "the configuration refuses vLLM with a pipeline"
        self.model, self._longest = model, longest
        self._on_device = model.layout.device.type == "cuda"
        self._temperature, self._known_ids = 1.0, 0
        self._asleep = False
        with undisturbed(self.layout.device):
            self._library = library()
            self._vllm = self._start(limits)

    @property
    def layout(self) -> Layout:
        return self.model.layout

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self.model.shape.end_ids

    def _start(self, limits: Limits) -> Any:
        slots = limits.slots or _SLOTS
        backend, finish = executor(self.layout)
        with tempfile.TemporaryDirectory() as folder:
            dtype = self.model.config.params_dtype
            save_config(self.model.shape, Path(folder), "lm", dtype=dtype)
            arguments = self._library.EngineArgs(
                model=folder,
                load_format="dummy",
                skip_tokenizer_init=True,
                generation_config="vllm",  # its own defaults: the folder names none
                dtype=str(dtype).removeprefix("torch."),
                tensor_parallel_size=self.layout.tensor,
                distributed_executor_backend=backend,
                max_model_len=self._longest,
                max_num_seqs=slots,
                # Prompts run whole: in 0.32.0 a request with a seed of its own cannot go on where its prompt was cut.
                enable_chunked_prefill=False,
                max_num_batched_tokens=max(limits.tokens_of_a_prefill(self.layout), self._longest, slots),
                kv_cache_memory_bytes=self._cache_bytes(limits, slots),
                enforce_eager=not self._on_device,  # on the CPU it would compile for minutes
                enable_sleep_mode=self._on_device,
                logprobs_mode="raw_logprobs",
                logits_processors=[known_ids_only(lambda: self._known_ids)],
                disable_log_stats=True,
            )
            try:
                engine = self._library.LLMEngine.from_engine_args(arguments)
            except (ValueError, NotImplementedError) as error:
                raise ConfigError(
                    f"vLLM cannot serve this policy: {error}. Change what it names, or set rollout.engine=megatron."
                ) from error
        finish()
        engine.apply_model(self._divide_by_temperature)
        return engine

    def _cache_bytes(self, limits: Limits, slots: int) -> int:
        """What `slots` sequences of the greatest length need, or as much as the limits allow."""
        pages = page_budget(limits, self.model, self._longest)
        wanted = (slots * -(-self._longest // _BLOCK) + 1) * (_BLOCK // PAGE)  # vLLM keeps one block empty
        return min(wanted, pages) * page_bytes(self.model.shape, self.layout, self.model.config.params_dtype)

    def _divide_by_temperature(self, model: Any) -> None:
        """Give the model's logits in float32 and divided by the temperature of the batch.

        vLLM then samples at temperature 1, and its raw log-probs, which know neither top-k nor top-p, are those that
        `Generated` asks for. By itself it has raw ones without the temperature, or final ones with the filters.
        """
        plain = model.compute_logits

        def compute_logits(*hidden: Any, **options: Any) -> Tensor:
            return plain(*hidden, **options).float() / self._temperature

        model.compute_logits = compute_logits

    @torch.no_grad()
    def sync_weights(self) -> None:
        """Copy the policy's weights of now into vLLM's, and forget the prefixes that the old ones computed."""
        self.model.gather_weights()
        with undisturbed(self.layout.device):
            if self._asleep:
                self._vllm.wake_up(tags=["weights"])
            self._vllm.collective_rpc("reload_weights", kwargs={"weights_iterator": whole_tensors(self.model)})
            if self.model.shape.tied and not self._on_device:
                self._vllm.apply_model(_repack_tied_head)
            if self._asleep:
                self._vllm.wake_up(tags=["kv_cache"])
            self._asleep = False
            self._vllm.reset_prefix_cache()

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        uniforms_BT: np.ndarray | Tensor | None = None,
        on_step: Progress | None = None,
    ) -> Generated:
        """See `RolloutEngine.generate`. The first uniform of a row seeds its generator. Raises DataError for an empty
        prompt, a foreign id, or one that with max_new_tokens is longer than this engine was made for."""
        assert not self._asleep, "sync_weights comes before every generate"
        context = min(self.model.max_sequence_length, self._longest)
        sampling, checked_BT = checked(
            prompts, sampling, uniforms_BT, vocab_size=self.model.vocab_size, context=context
        )
        seeds = [None] * len(prompts) if checked_BT is None else (checked_BT[:, 0] * 2**53).long().tolist()
        self._temperature, self._known_ids = sampling.temperature, sampling.known_ids
        responses = [_Response() for _ in prompts]
        with undisturbed(self.layout.device):
            for row, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                request = {"prompt_token_ids": list(prompt)}
                self._vllm.add_request(str(row), request, self._parameters(sampling, seed))
            self._run(responses, sampling, on_step)
            if self._on_device:
                self._vllm.sleep(level=2)  # the memory of weights and cache is the updates' until the next rollout
                self._asleep = True
        return _generated(responses, sampling, self.layout.device)

    def _parameters(self, sampling: Sampling, seed: int | None) -> Any:
        kinds = self._library.RequestOutputKind
        return self._library.SamplingParams(
            temperature=0.0 if sampling.greedy else 1.0,  # the logits are divided before
            top_p=1.0 if sampling.greedy else sampling.top_p,
            top_k=0 if sampling.greedy else sampling.top_k,
            seed=seed,
            max_tokens=sampling.max_new_tokens,
            stop_token_ids=sorted({sampling.eos_id, *sampling.stop_ids}),
            ignore_eos=True,  # config.json's, of which `sampling` knows whether it ends a response
            logprobs=0,  # that of the drawn token, and no others
            flat_logprobs=True,
            detokenize=False,
            output_kind=kinds.DELTA if sampling.stop else kinds.FINAL_ONLY,
        )

    def _run(self, responses: Sequence[_Response], sampling: Sampling, on_step: Progress | None) -> None:
        """Step until every request has ended, and end those whose text holds a stop string."""
        ends, finished = {sampling.eos_id, *sampling.stop_ids}, 0
        while self._vllm.has_unfinished_requests():
            for output in self._vllm.step():
                response, new = responses[int(output.request_id)], output.outputs[0]
                if response.ended:
                    continue  # a token that was under way when its response was stopped
                response.append(new.token_ids, new.logprobs.logprobs, sampling.stop)
                if response.ended and not output.finished:
                    self._vllm.abort_request([output.request_id])
                if response.ended or output.finished:
                    response.ended |= response.ids[-1] in ends
                    finished += 1
                    if on_step is not None:
                        on_step(finished, len(responses))


class _Response:
    """A response as it grows. ended: by an end id or a stop, not by its length."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.logp: list[float] = []
        self.ended = False

    def append(self, ids: Sequence[int], logp: Sequence[float], stop: Callable[[Sequence[int]], bool] | None) -> None:
        """New tokens, up to the one that completes a stop string."""
        assert len(ids) == len(logp), "vLLM gives one log-prob for each token"
        for token, logp_of_it in zip(ids, logp, strict=True):
            self.ids.append(token)
            self.logp.append(logp_of_it)
            if stop is not None and stop(self.ids):
                self.ended = True
                return


def _generated(responses: Sequence[_Response], sampling: Sampling, device: torch.device) -> Generated:
    shape = (len(responses), sampling.max_new_tokens)
    ids, logp = np.full(shape, sampling.eos_id, dtype=np.int64), np.zeros(shape, dtype=np.float32)
    for row, response in enumerate(responses):
        ids[row, : len(response.ids)] = response.ids
        logp[row, : len(response.ids)] = response.logp
    broken = int((~np.isfinite(logp)).any(axis=1).sum())
    if broken:
        raise NumericsError(
            f"The model's logits are not finite in {broken} of {len(responses)} responses that vLLM generated: its "
            "weights have diverged or are damaged. Go back to an earlier checkpoint, and train with a lower learning "
            "rate."
        )
    return Generated(
        response_BT=torch.from_numpy(ids).to(device),
        response_length_B=torch.tensor([len(response.ids) for response in responses], dtype=torch.int64, device=device),
        sampler_logp_BT=torch.from_numpy(logp).to(device),
        truncated_B=torch.tensor([not response.ended for response in responses], dtype=torch.bool, device=device),
    )


def _repack_tied_head(model: Any) -> None:
    """On the CPU vLLM multiplies by a packed copy of each weight. Reloading renews those of all layers but a head that
    shares the embedding's weight, which it counts as the embedding's."""
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

    dispatch_cpu_unquantized_gemm(model.lm_head, remove_weight=False)
