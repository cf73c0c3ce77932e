"""What each metric of metrics.jsonl means, and its unit. docs/reference/metrics.md is written from here.

`*` stands for the name of a domain, `<g>` for the number of a group. A metric that a new feature logs gets its line
here: tests/test_readme.py looks up every metric of the runs that it makes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Meaning:
    """name: patterns of metric names, joined by ", "; braces hold alternatives. unit: "" for a share, a correlation, or
    what the text names."""

    name: str
    unit: str
    text: str


_NATS, _TOKENS, _SECONDS, _REWARD = "nats", "tokens", "seconds", "units of the reward"


def _section(*lines: tuple[str, str, str]) -> tuple[Meaning, ...]:
    return tuple(Meaning(*line) for line in lines)


SECTIONS: dict[str, tuple[Meaning, ...]] = {
    "Reward (RL)": _section(
        ("reward/mean", _REWARD, "mean over the rollout batch, before any normalisation; what training raises"),
        ("reward/std", _REWARD, "standard deviation over the batch"),
        ("reward/{min,max}", _REWARD, "smallest and largest of the batch"),
        ("reward/{p01,p10,p50,p90,p99}", _REWARD, "quantiles of the batch"),
        ("reward/skew", "", "skewness; below 0: few rewards far under the others"),
        ("reward/skew/domain/*", "", "the same in a domain"),
        ("reward/domain/*", _REWARD, "mean of a domain"),
        ("reward/part/*", "units of the part", "one of several, before its weight; what a penalty adds"),
        ("reward/length_correlation", "", "of reward and response length; near 1: length is what pays"),
        ("reward/clipped", "responses", "rewards far out of their batch, pulled in (algorithm.outlier)"),
        ("{reward,policy,reference,critic,classifier,values,groups,logp}/invalid", "responses",
         "left out of the iteration because this number was not finite"),
        ("worst/domain_reward", _REWARD, "lowest mean of a domain"),
        ("worst/group_reward", _REWARD, "lowest mean of a group that holds 2 % of the responses"),
    ),
    "Held-out prompts (RL)": _section(
        ("eval/reward/mean", _REWARD, "reward on held-out prompts, one response each"),
        ("eval/reward/domain/*", _REWARD, "mean of a domain"),
        ("eval/kl/mean", "nats a response", "log pi - log pi_ref, mean"),
        ("eval/kl/domain/*", "nats a response", "mean of a domain"),
        ("eval/length", _TOKENS, "mean response length"),
        ("gold/mean", "units of eval.reward", "the reward that training never sees (eval.reward)"),
        ("gold/domain/*", "units of eval.reward", "mean of a domain"),
        ("eval/gain/mean, eval/gain/domain/*", _REWARD, "reward minus the reference's own to the same prompts"),
        ("worst/domain_gain", _REWARD, "lowest mean gain of a domain that is trained on"),
        ("eval/disagreement/mean, eval/disagreement/domain/*", _REWARD, "standard deviation of the reward models"),
        ("worst/domain_gold", "units of eval.reward", "lowest mean of a domain that is trained on"),
        ("{eval/reward,gold}/lowest_tenth", _REWARD, "mean of the lowest tenth"),
        ("{eval/reward,gold}/lowest_tenth/*", _REWARD, "the same in a domain"),
        ("{eval/reward,gold}/kurtosis", "", "excess kurtosis: above 0, tails heavier than a normal distribution's"),
        ("{eval/reward,gold}/kurtosis/*", "", "the same in a domain"),
        ("{eval/reward,gold}/{invalid,clipped}", "responses", "left out as not finite; pulled in"),
    ),
    "Learned rewards (RL)": _section(
        ("gain/mean, gain/domain/*", _REWARD, "reward minus the reference's own (algorithm.reference_samples)"),
        ("disagreement/mean, disagreement/domain/*", _REWARD, "deviation of the reward models (reward.models)"),
        ("signal/auc/*", "", "how well a candidate for algorithm.signal tells domains apart; 0.5: not at all"),
        ("pairs/accuracy", "", "share of held-out pairs that the reward model orders as people did"),
        ("pairs/accuracy/domain/*, pairs/accuracy/group/*", "", "the same in a domain or a group"),
    ),
    "Distance to the reference (RL)": _section(
        ("kl/mean", "nats a response", "log pi - log pi_ref of the sampled tokens, summed; may be below 0 by chance"),
        ("kl/per_token", "nats a token", "the same over the batch's tokens"),
        ("kl/weighted", "nats a response", "weighted as the penalty weights it"),
        ("kl/domain/*", "nats a response", "mean of a domain"),
        ("kl/coef", "", "eta now, where algorithm.kl_target moves it"),
    ),
    "Responses (RL)": _section(
        ("response/length", _TOKENS, "mean length, EOS counted"),
        ("response/truncated", "", "share that rollout.max_new_tokens cut"),
        ("response/identical", "", "share that are the response to another prompt, too"),
        ("response/near_identical", "", "share that are nearly that"),
        ("response/commonest", "", "largest share of other prompts' responses that are nearly one and the same"),
        ("response/repetition", "", "share of pieces of four tokens that stood in the same response before"),
        ("response/refusals", "", "share that begin with a phrase of refusal (rollout.refusals)"),
        ("response/{identical,near_identical,commonest,repetition,refusals,length}/domain/*", "", "in a domain"),
    ),
    "Rollout (RL)": _section(
        ("rollout/entropy", "nats a token", "entropy of the policy's distribution at the sampled tokens"),
        ("rollout/logp_difference", _NATS, "largest difference of a token's log-prob between sampling and training"),
        ("rollout/logp_difference_mean", _NATS, "its mean; a warning says when it is larger than rounding"),
        ("rollout/positions", "passes", "decoding passes of a group of rows"),
        ("rollout/prefill_passes", "passes", "passes over prompts"),
        ("rollout/{prefill_tokens,decode_tokens}", _TOKENS, "tokens that each kind of pass ran"),
        ("rollout/kv_cache_gib", "GiB", "most that keys and values held on a rank"),
    ),
    "Policy (RL)": _section(
        ("policy/loss", "", "PPO's, without the penalty; its value says little, since advantages are whitened"),
        ("policy/clip_fraction", "", "share of tokens whose ratio the clip cut; above 0.3 the rate is too high"),
        ("policy/approx_kl", "nats a token", "KL to the policy that sampled, at the update"),
        ("policy/entropy", "nats a token", "entropy during the update; towards 0 it explores nothing"),
        ("policy/ratio_max", "", "largest ratio to the policy that sampled; the first mini-batch starts at 1"),
        ("policy/beta", "", "weight of the variance penalty now (algorithm.beta_ramp)"),
        ("policy/group_variance", "", "R_var of the mini-batches, mean"),
        ("policy/{weight_max,weight_negative,weight_std}", "",
         "weights that the penalty gives responses: largest, share below 0, standard deviation"),
        ("objective/domain/*", "", "mean of the signal S in a domain"),
    ),
    "Critic and classifier (RL)": _section(
        ("critic/loss", "", "value loss a token, clipped"),
        ("critic/explained_variance", "", "1: values explain the returns; 0 or less: they do not"),
        ("{critic,classifier}/group_variance", "", "R_var that the classifier maximises, mean over mini-batches"),
        ("value/mean", _REWARD, "mean value of a token"),
        ("return/mean", _REWARD, "mean return of a token"),
    ),
    "Groups (RL, group-DPO)": _section(
        ("group/<g>/mass", "", "share of the responses (pairs) that the group holds"),
        ("group/<g>/reward", _REWARD, "mean reward, weighted by p"),
        ("group/<g>/objective", "", "R_g: mean signal of the group"),
        ("group/<g>/kl", "nats a response", "mean KL, weighted by p"),
        ("group/<g>/{near_identical,commonest,repetition,refusals,length}", "", "of its responses, weighted by p"),
        ("group/<g>/{weight,loss}", "", "weight of the group in the loss; its own loss (group-DRO, group-DPO)"),
        ("group/variance", "", "R_var over the rollout batch: variance of the objective between groups"),
        ("group/explained_share", "", "R_var over Var(S): what of the signal's variance lies between groups"),
        ("group/entropy", _NATS, "mean entropy of the group probabilities; log M: the classifier knows nothing"),
        ("group/best", "", "number of the best group, whose KL is weighted"),
        ("group/flips", "", "times that the best group changed since the start"),
        ("group/stability", "", "share of responses whose likeliest group the update did not change"),
        ("group/p_high", "", "mean probability of the best group; times eta it is the mean KL coefficient"),
        ("group/{reward_correlation,length_correlation}", "", "of p_high with reward and with length"),
        ("group/{reward_correlation,length_correlation}/*", "", "the same in a domain"),
        ("group/reward_beyond_length", "", "partial correlation of p_high with reward, at equal length"),
        ("group/domain_auc", "", "how well p tells the known domains apart; 0.5: not at all"),
        ("group/domain_information", _NATS, "mutual information of groups and known domains"),
        ("group/{weight_min,weight_negative}", "", "smallest relative weight of a response; share of them below 0"),
        ("group/oracle", "", "1: the groups are known labels, and the run is no method to compare"),
    ),
    "SFT, reward model, DPO": _section(
        ("loss, eval/loss", "nats a token (SFT) or a pair", "what is minimised, on the batch and on held-out rows"),
        ("accuracy, eval/accuracy", "", "share of pairs whose chosen response scores higher; a tie is half"),
        ("margin, eval/margin", _REWARD, "mean difference of chosen and rejected"),
        ("reward, eval/reward", _REWARD, "mean over all responses (reward model)"),
        ("reward/{chosen,rejected}, eval/reward/{chosen,rejected}", _REWARD,
         "implicit reward beta (log pi - log pi_ref) (DPO)"),
        ("logp/{chosen,rejected}, eval/logp/{chosen,rejected}", "nats a response", "log-prob under the policy (DPO)"),
        ("tokens, eval/tokens", _TOKENS, "response tokens of the batch"),
        ("{accuracy,loss}/domain/*, eval/{accuracy,loss}/domain/*", "", "in a domain (group-DPO)"),
        ("worst/domain_accuracy, eval/worst/domain_accuracy", "", "lowest accuracy of a domain (group-DPO)"),
        ("group/*/{mass,loss,weight}, eval/group/*/{mass,loss}", "", "of a group that is a known domain (group-DPO)"),
    ),
    "Every run": _section(
        ("lr, {policy,critic,classifier}/lr", "", "learning rate of the last optimizer step"),
        ("grad_norm, {policy,critic,classifier}/grad_norm", "", "norm of the gradient, before it is clipped"),
        ("skipped, {policy,critic,classifier}/skipped", "steps", "optimizer steps not taken: no finite gradient"),
        ("time/total", _SECONDS, "an iteration or step"),
        ("time/*", _SECONDS, "a phase of it: rollout, behaviour_logprob, reference_logprob, values, rewards, "
         "advantages, update_critic, update_policy, update, evaluation; offload: waiting for copies"),
        ("throughput/tokens_per_second", "tokens a second", "response tokens, over all ranks"),
        ("padding/*", "", "share of padding among the tokens that a phase ran"),
    ),
}  # fmt: skip


@cache
def _patterns() -> list[tuple[re.Pattern[str], Meaning]]:
    lines = [line for section in SECTIONS.values() for line in section]
    return [(re.compile(_expression(name)), line) for line in lines for name in line.name.split(", ")]


def _expression(name: str) -> str:
    """The regular expression of a pattern."""
    text = re.escape(name).replace(r"<g>", r"\d+").replace(r"\*", ".+")
    return re.sub(r"\\\{(.*?)\\\}", lambda found: f"(?:{found[1].replace(',', '|')})", text)


def meaning(name: str) -> Meaning | None:
    """What a metric means; None for a name that this version does not log."""
    return next((m for pattern, m in _patterns() if pattern.fullmatch(name)), None)
