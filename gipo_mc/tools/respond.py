"""Responses of one model to given prompts, or to those of the configured data: what gipo-mc generate shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from gipo_mc.config import Config, DataConfig
from gipo_mc.data.chat import Renderer, plain
from gipo_mc.data.encode import Encoder
from gipo_mc.data.fields import LeftOut
from gipo_mc.data.loading import load_prompts
from gipo_mc.data.sets import SourceReport
from gipo_mc.data.templates import Refused
from gipo_mc.data.tokenizer import check_vocabulary, load_tokenizer
from gipo_mc.errors import ConfigError, DataError
from gipo_mc.evaluation.responses import Response, conversation_of
from gipo_mc.generation.choose import check_engine, rollout_engine
from gipo_mc.models.execution import Execution
from gipo_mc.models.micro_batch import micro_batches, run_forward
from gipo_mc.models.readout import groups_alone
from gipo_mc.parallel import runtime
from gipo_mc.parallel.collectives import on_main
from gipo_mc.parallel.engine import Engine
from gipo_mc.parallel.layout import Layout
from gipo_mc.rl.rewards import responses as response_texts
from gipo_mc.rl.rollout import limits_of, roll_out
from gipo_mc.run.model_sources import ModelSource, classifier_of, load_model, resolve
from gipo_mc.tools.asked import check_asked
from gipo_mc.types import Prompt, Rollout, Sequences


def respond(
    config: Config,
    texts: Sequence[str] = (),
    *,
    greedy: bool = False,
    on_step: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> list[Response]:
    """Load model.policy on all ranks and let it respond, with the sampling of the rollout section and run.seed.

    The rows of a run that infers groups have the group to which its own classifier gives the highest probability.

    texts: prompts exactly as the model is to read them, or with data.chat_template=true a user's messages; empty: the
        first eval.prompts rows of data.evaluation, or of data.prompts where that names nothing.
    on_step: called with the number of responses that are done, and of how many: the prompts that there are.
    tell: called on the main rank with what is odd about tokenizer or rows, a sentence each.
    Returns the same list on every rank, in the order of the prompts. Raises ConfigError, DataError, CheckpointError.
    """
    check_asked(config, texts)
    layout = runtime.initialize(config.parallel, config.device)
    source = resolve(config.model.policy, "model.policy", together=True)
    tell = tell if layout.is_main else None
    named = config.model.tokenizer or str(source.folder)
    tokenizer = load_tokenizer(named, tell, chat_template=config.data.chat_template)
    check_vocabulary(tokenizer, source.shape.vocab_size, source.name)
    prompts = _given(texts, config.data, tokenizer, tell) if texts else _of_data(config, tokenizer, tell)
    longest = max(len(prompt.token_ids) for prompt in prompts) + config.rollout.max_new_tokens
    source.shape.check(*layout.model_sizes, sequence_length=longest)
    check_engine(config.rollout.engine, source.shape, layout)
    dtype = runtime.resolve_dtype(config.dtype, layout.device)
    model = load_model(
        source,
        layout,
        head="lm",
        dtype=dtype,
        trainable=False,
        seed=config.run.seed,
        execution=Execution(fp32_logits=config.precision.fp32_logits),
    )

    def advance(done: int, of: int) -> None:
        """`of` are this rank's."""
        if on_step:
            on_step(done * len(prompts) // max(of, 1), len(prompts))

    engine = rollout_engine(config.rollout.engine, model, limits_of(config), longest)
    rollout = roll_out(engine, tokenizer, prompts, config, 0, purpose="generate", greedy=greedy, on_step=advance)
    del engine, model  # room for the classifier
    groups = _groups(source, layout, config, rollout.sequences)
    texts = response_texts(rollout.sequences, tokenizer)
    return _rows(prompts, texts, rollout, groups, model_label(source), config, greedy)


def _rows(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    rollout: Rollout,
    groups: Sequence[int | None],
    model: str,
    config: Config,
    greedy: bool,
) -> list[Response]:
    columns = prompts, texts, rollout.sequences.response_length_B.tolist(), rollout.truncated_B.tolist(), groups
    sampling, templated = sampling_of(config, greedy), config.data.chat_template
    return [
        Response(
            prompt=prompt.text,
            response=text,
            domain=prompt.domain,
            tokens=length,
            truncated=cut,
            messages=[{"role": m.role, "content": m.content} for m in prompt.messages] if templated else [],
            row=prompt.row,
            conversation=conversation_of(_dialogue(prompt), prompt.conversation),
            model=model,
            sampling=sampling,
            group=group,
        )
        for prompt, text, length, cut, group in zip(*columns, strict=True)
    ]


def _dialogue(prompt: Prompt) -> str:
    return plain(prompt.messages) if prompt.messages else prompt.text


def model_label(source: ModelSource) -> str:
    """What a response says of its model: "name [checkpoint, hash of its weights]". Called on all ranks."""
    mark = on_main(source.fingerprint)[:16]
    return f"{source.name} [{f'{source.checkpoint.name}, ' if source.kind == 'run' else ''}{mark}]"


def sampling_of(config: Config, greedy: bool) -> Mapping[str, Any]:
    """What a response says of how it was drawn."""
    settings = config.rollout
    return {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "greedy": greedy,
        "max_new_tokens": settings.max_new_tokens,
        "stop": list(settings.stop),
        "seed": config.run.seed,
    }


def _groups(source: ModelSource, layout: Layout, config: Config, sequences: Sequences) -> Sequence[int | None]:
    """The most probable group of each response, by the classifier of the run that generated it; None without one."""
    found = classifier_of(source)
    if found is None:
        return [None] * len(sequences)
    classifier, settings = found
    model = load_model(
        classifier,
        layout,
        head="critic",
        dtype=runtime.resolve_dtype(config.dtype, layout.device),
        trainable=False,
        seed=config.run.seed,
        groups=settings.groups,
        group_head=settings.group_head,
    )
    packed = micro_batches(sequences, config.parallel, layout)
    outputs = run_forward(
        Engine(model, layout), packed, groups_alone(settings.group_input), {"groups": settings.groups}
    )
    groups: list[int | None] = outputs["groups"].argmax(dim=1).tolist()
    return groups


def _given(
    texts: Sequence[str], data: DataConfig, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None] | None
) -> list[Prompt]:
    """Texts as the rows of a data file would be read, an empty one included."""
    renderer = Renderer(Encoder(tokenizer), data)
    prompts = []
    for i, text in enumerate(texts):
        try:
            rendered = renderer.render_prompt(text)
        except LeftOut as reason:
            why = f" ({reason.reason})" if isinstance(reason, Refused) else ""
            raise DataError(
                f"--prompt {text[:80]!r} is one of the {reason}{why}: change it, or see data.special_tokens_in_text."
            ) from reason
        ids = renderer.encode_prompts([rendered.prompt])[0]
        prompts.append(Prompt(i, tuple(ids), "", rendered.text, rendered.messages, f"--prompt {i + 1}"))
    if tell:
        if tokenizer.chat_template and not data.chat_template:
            tell("The tokenizer has a chat template; data.chat_template=true makes each --prompt a user's message.")
        for warning in SourceReport("--prompt", read=len(texts), remarks=renderer.remarks).warnings():
            tell(warning)
    return prompts


def _of_data(config: Config, tokenizer: PreTrainedTokenizerBase, tell: Callable[[str], None] | None) -> list[Prompt]:
    data = config.data
    prompts = load_prompts(data, tokenizer, seed=config.run.seed, part="evaluation" if data.evaluation else "train")
    if tell:
        for text in prompts.warnings():
            tell(text)
    count = min(len(prompts), config.eval.prompts)
    if not count:
        raise ConfigError(f"eval.prompts={config.eval.prompts} leaves no prompt of {len(prompts)}: raise it.")
    return [prompts[row] for row in range(count)]
