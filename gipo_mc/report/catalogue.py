"""Which charts a report knows: their metrics, units, and a sentence on how to read each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chart:
    """What to draw, and how to read it.

    names: metrics, where `*` stands for a domain or a group. labels: what each name is called beside its curve.
    band: metric of the half-width around the first name. baseline: (y, label) of a reference line.
    """

    title: str
    caption: str
    unit: str
    names: tuple[str, ...]
    labels: tuple[str, ...] = ()
    band: str = ""
    baseline: tuple[float, str] | None = None


@dataclass(frozen=True)
class Chapter:
    """Charts under one heading."""

    title: str
    text: str
    charts: tuple[Chart, ...]


REWARD_UNIT = "units of the reward"
RL_CHAPTERS = (
    Chapter(
        "Reward",
        "What the policy is trained for, and where it is known: what it should have been trained for.",
        (
            Chart(
                "Mean reward",
                "",
                REWARD_UNIT,
                ("reward/mean",),
                band="reward/std",
            ),
            Chart(
                "Reward by domain",
                "Known labels of the prompts; the method never sees them.",
                REWARD_UNIT,
                ("reward/domain/*",),
            ),
            Chart(
                "Parts of the reward",
                "Each of several rewards as it came, before its weight; a penalty as what it adds.",
                "units of the part",
                ("reward/part/*",),
            ),
            Chart(
                "Responses left out, rewards pulled in",
                "Numbers that are not finite, and sentinels far out of their batch; nothing where there were none.",
                "responses of an iteration",
                ("reward/invalid", "reward/clipped"),
                ("left out", "pulled in"),
            ),
            Chart("Held-out reward", "On prompts that are not trained on.", REWARD_UNIT, ("eval/reward/mean",)),
            Chart("Held-out reward by domain", "", REWARD_UNIT, ("eval/reward/domain/*",)),
            Chart(
                "Gold reward",
                "The true aim, never seen in training. Falling while the reward rises is reward hacking.",
                "gold reward",
                ("gold/mean",),
            ),
            Chart(
                "Gold reward by domain",
                "The lowest curve is the domain that training neglects.",
                "gold reward",
                ("gold/domain/*",),
            ),
            Chart(
                "Gold reward of the worst domain",
                "The lowest of the domains that are trained on.",
                "gold reward",
                ("worst/domain_gold",),
            ),
            Chart(
                "Worst group and worst domain",
                "The lowest mean reward of a group and of a known domain.",
                REWARD_UNIT,
                ("worst/group_reward", "worst/domain_reward"),
                ("worst group", "worst domain"),
            ),
        ),
    ),
    Chapter(
        "Distance from the reference",
        "How far the policy has moved from where it started.",
        (
            Chart(
                "KL to the reference",
                "Estimated on the responses, summed over their tokens.",
                "nats per response",
                ("kl/mean",),
            ),
            Chart(
                "KL charged to the reward",
                "The same, weighted as in training: the coefficient and, in GI-PPO, each response's own weight.",
                REWARD_UNIT,
                ("kl/weighted",),
            ),
            Chart("KL by domain", "Where the policy moves.", "nats per response", ("kl/domain/*",)),
            Chart(
                "Policy entropy", "Near zero the policy always says the same.", "nats per token", ("policy/entropy",)
            ),
        ),
    ),
    Chapter(
        "Inferred groups",
        "The classifier on the critic divides responses into groups whose objective differs most; training then keeps "
        "the groups together. The numbers of groups mean nothing by themselves.",
        (
            Chart(
                "Mass",
                "Share of the responses in each group. A group near zero has collapsed.",
                "share of responses",
                ("group/*/mass",),
            ),
            Chart("Reward by group", "Mean reward, weighted by membership.", REWARD_UNIT, ("group/*/reward",)),
            Chart(
                "Objective by group",
                "R_g, what the groups are compared by.",
                "normalised objective R_g",
                ("group/*/objective",),
            ),
            Chart(
                "Objective by domain",
                "The same mean signal, of the known labels.",
                "normalised objective",
                ("objective/domain/*",),
            ),
            Chart(
                "KL by group",
                "The adaptive penalty charges the best group in full, the others less. An estimate: may be below 0.",
                "nats per response",
                ("group/*/kl",),
            ),
            Chart(
                "Variance between groups",
                "R_var: the classifier raises it, the policy lowers it.",
                "R_var",
                ("group/variance",),
            ),
            Chart(
                "Classifier entropy",
                "0: every response surely in one group; ln M: undecided.",
                "nats per response",
                ("group/entropy",),
            ),
            Chart(
                "Do the groups find the domains?",
                "AUC of the memberships against the known labels; 0.5: chance, 1: the groups are the domains.",
                "AUC",
                ("group/domain_auc",),
                baseline=(0.5, "chance"),
            ),
            Chart(
                "Information about the domains",
                "Mutual information of group and known label; the entropy of the labels is the most there can be.",
                "nats",
                ("group/domain_information",),
            ),
            Chart(
                "Stability of the assignment",
                "Share of responses whose likeliest group is the same before and after the iteration's update.",
                "share of responses",
                ("group/stability",),
            ),
            Chart(
                "Best group and length",
                "Correlation of membership in the best group with length, and with reward at equal length; where the "
                "first is far from 0 and the second near it, the groups follow length only.",
                "correlation",
                ("group/length_correlation", "group/reward_beyond_length"),
                ("length", "reward at equal length"),
                baseline=(0.0, "unrelated"),
            ),
            Chart(
                "Smallest weight of a response",
                "What the variance penalty multiplies its policy gradient by; below 0 it is un-learned.",
                "relative weight",
                ("group/weight_min",),
                baseline=(0.0, "un-learned"),
            ),
            Chart(
                "Size of the variance penalty",
                "Standard deviation of those weights around 1, which is PPO's own.",
                "relative weight",
                ("policy/weight_std",),
            ),
            Chart(
                "Share explained by the groups",
                "R_var over the variance of the signal.",
                "share of the variance",
                ("group/explained_share",),
            ),
            Chart("Weights of group-DRO", "The worst group grows.", "weight q_g", ("group/*/weight",)),
            Chart(
                "Best group and reward",
                "Correlation of membership in the best group with reward; below 0 the wrong group is taken for best.",
                "correlation",
                ("group/reward_correlation",),
                baseline=(0.0, "unrelated"),
            ),
            Chart(
                "Mean weight of the KL penalty",
                "Mean membership in the best group: the share of the KL coefficient in force.",
                "share",
                ("group/p_high",),
            ),
        ),
    ),
    Chapter(
        "Optimization",
        "Is training healthy?",
        (
            Chart("Policy loss", "", "loss", ("policy/loss",)),
            Chart("Critic loss", "", "loss", ("critic/loss",)),
            Chart(
                "Explained variance of the critic",
                "1: values predict returns; 0 or less: they do not.",
                "share of the variance of returns",
                ("critic/explained_variance",),
                baseline=(0.0, "no better than a constant"),
            ),
            Chart(
                "Clipped tokens",
                "Share of tokens whose ratio left the clip range.",
                "share of tokens",
                ("policy/clip_fraction",),
            ),
            Chart(
                "Largest probability ratio",
                "New over behaviour policy, over all tokens of the iteration.",
                "ratio",
                ("policy/ratio_max",),
            ),
            Chart(
                "Gradient norms",
                "Before clipping.",
                "norm",
                ("policy/grad_norm", "critic/grad_norm"),
                ("policy", "critic"),
            ),
        ),
    ),
    Chapter(
        "Responses",
        "",
        (
            Chart("Response length", "EOS counted.", "tokens", ("response/length",)),
            Chart(
                "Truncated responses",
                "Stopped at rollout.max_new_tokens without an end.",
                "share of responses",
                ("response/truncated",),
            ),
        ),
    ),
)
SUPERVISED_CHAPTERS = (
    Chapter(
        "Learning",
        "",
        (
            Chart("Loss", "Eval: held-out rows.", "nats", ("loss", "eval/loss"), ("train", "eval")),
            Chart("Accuracy", "Eval: held-out rows.", "share right", ("accuracy", "eval/accuracy"), ("train", "eval")),
            Chart("Held-out accuracy by domain", "", "share right", ("eval/accuracy/domain/*",)),
            Chart("Held-out loss by domain", "", "nats", ("eval/loss/domain/*",)),
            Chart("Gradient norm", "Before clipping.", "norm", ("grad_norm",)),
            Chart("Learning rate", "", "learning rate", ("lr",)),
        ),
    ),
    Chapter(
        "Preferences",
        "How far apart chosen and rejected responses are. DPO's reward is implicit: beta times the log-ratio of policy "
        "and reference.",
        (
            Chart(
                "Margin",
                "Mean reward of the chosen response less that of the rejected one. Eval: held-out rows.",
                "reward",
                ("margin", "eval/margin"),
                ("train", "eval"),
                baseline=(0.0, "no preference"),
            ),
            Chart(
                "Implicit rewards",
                "Both may fall: only their difference is trained. Far below 0 the policy has left the reference.",
                "implicit reward",
                ("reward/chosen", "reward/rejected"),
                ("chosen", "rejected"),
            ),
            Chart(
                "Held-out implicit rewards",
                "",
                "implicit reward",
                ("eval/reward/chosen", "eval/reward/rejected"),
                ("chosen", "rejected"),
            ),
            Chart(
                "Log-probs of the responses",
                "Under the policy, summed over the tokens of a response.",
                "nats per response",
                ("logp/chosen", "logp/rejected"),
                ("chosen", "rejected"),
            ),
            Chart(
                "Held-out log-probs of the responses",
                "",
                "nats per response",
                ("eval/logp/chosen", "eval/logp/rejected"),
                ("chosen", "rejected"),
            ),
        ),
    ),
)
SPEED = Chapter(
    "Speed",
    "",
    (
        Chart("Step time", "", "seconds", ("time/total",)),
        Chart("Throughput", "", "tokens per second", ("throughput/tokens_per_second",)),
        Chart(
            "Padding",
            "What shorter rows of a micro-batch waste; fewer rows at a time waste less.",
            "share of the tokens run",
            (
                "padding/scoring",
                "padding/update_critic",
                "padding/update_classifier",
                "padding/update_policy",
                "padding/update",
            ),
            ("scoring", "critic's update", "classifier's update", "policy's update", "update"),
        ),
    ),
)
