"""Rows with every column that a data set publishes, by its card; the texts are made up."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def _turn(role: str, content: str) -> Row:
    return {"role": role, "content": content}


def _said(who: str, value: str) -> Row:
    return {"from": who, "value": value}


_POST = {
    "id": "t3_1abc23",
    "post": "My tomatoes grew over the fence and the neighbour cut them. What now? ",
    "title": "Tomatoes over the fence",
    "subreddit": "gardening",
    "site": None,
    "article": None,
}
_NEWS = {
    "id": "f0e1d2",
    "post": None,
    "title": "Rain in the north",
    "subreddit": None,
    "site": "cnn",
    "article": "It rained for a week. The river rose by two metres.",
}


def _summary(text: str, policy: str, **more: Any) -> Row:
    return {"text": text, "policy": policy, "note": None, **more}


#: openai/summarize_from_feedback, subset comparisons: a post of its train split, an article of its validation split.
COMPARISONS: list[Row] = [
    {
        "info": _POST,
        "summaries": [_summary(" Neighbour cut my plants.", "sup2"), _summary(" I like tomatoes.", "ref")],
        "choice": 0,
        "worker": "w1",
        "batch": "batch7",
        "split": "train",
        "extra": {"confidence": None},
    },
    {
        "info": _NEWS,
        "summaries": [_summary(" Rain.", "sup4"), _summary(" A river rose by two metres.", "ref")],
        "choice": 1,
        "worker": "w2",
        "batch": "cnndm0",
        "split": "valid2",
        "extra": {"confidence": 7},
    },
]
_AXES = {"overall": 6, "accuracy": 7, "coverage": 5, "coherence": 7, "compatible": None}
#: The same, subset axis.
AXIS: list[Row] = [
    {
        "info": _POST,
        "summary": _summary(" Plants were cut.", "sup2", axes=_AXES),
        "worker": "w",
        "batch": "axis1",
        "split": "test",
    },
]
#: The filtered TL;DR posts, as published beside it.
FILTERED: list[Row] = [
    {key: _POST[key] for key in ("id", "subreddit", "title", "post")} | {"summary": "Neighbour cut my tomatoes."},
    {"id": "t3_2", "subreddit": "travel", "title": "Night train", "post": "It was late.", "summary": "Late train."},
]
SHAREGPT: list[Row] = [
    {
        "id": "QWJhYvA_0",
        "conversations": [
            _said("human", "Name a fruit."),
            _said("gpt", "Apple."),
            _said("human", "Another."),
            _said("gpt", "Pear."),
        ],
    },
]
#: teknium/OpenHermes-2.5, some of its columns.
OPENHERMES: list[Row] = [
    {
        "category": "riddle",
        "source": "airoboros2.2",
        "system_prompt": "Be short.",
        "idx": 4,
        "conversations": [
            {**_said("human", "What has keys?"), "weight": None},
            {**_said("gpt", "A piano."), "weight": None},
        ],
    },
]
#: As LLaMA-Factory describes pairs.
SHAREGPT_PAIRS: list[Row] = [
    {
        "conversations": [_said("human", "Name a fruit.")],
        "chosen": _said("gpt", "Apple."),
        "rejected": _said("gpt", "Stone."),
    },
]
#: tatsu-lab/alpaca.
ALPACA: list[Row] = [
    {
        "instruction": "Say it in French.",
        "input": "Good day",
        "output": "Bonjour",
        "text": "Below is an instruction.\n\nSay it in French.\n\nGood day\n\nBonjour",
    },
    {"instruction": "Name a colour.", "input": "", "output": "Red.", "text": "Name a colour.\n\nRed."},
]
#: databricks/databricks-dolly-15k.
DOLLY: list[Row] = [
    {
        "instruction": "When was it built?",
        "context": "The bridge was built in 1902.",
        "response": "In 1902.",
        "category": "closed_qa",
    },
]


def _completion(text: str, score: float) -> Row:
    aspects = {"helpfulness": {"Rating": "4", "Rationale": "Fine."}}
    return {"model": "m", "principle": "helpfulness", "custom_system_prompt": "Help.", "response": text} | {
        "critique": "Good.",
        "annotations": aspects,
        "fine-grained_score": score,
        "overall_score": score,
    }


#: openbmb/UltraFeedback.
ULTRAFEEDBACK: list[Row] = [
    {
        "source": "evol_instruct",
        "instruction": "Why is the sky blue?",
        "models": ["a", "b", "c"],
        "completions": [_completion("Paint.", 2.0), _completion("It scatters light.", 8.5), _completion("Air.", 5.0)],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    },
]
_BETTER = [_turn("user", "Why is the sky blue?"), _turn("assistant", "It scatters light.")]
#: HuggingFaceH4/ultrafeedback_binarized, split train_prefs.
BINARIZED: list[Row] = [
    {
        "prompt": "Why is the sky blue?",
        "prompt_id": "0" * 64,
        "chosen": _BETTER,
        "rejected": [_BETTER[0], _turn("assistant", "Paint.")],
        "messages": _BETTER,
        "score_chosen": 8.5,
        "score_rejected": 2.0,
    },
]
#: argilla/ultrafeedback-binarized-preferences-cleaned.
CLEANED: list[Row] = [
    {
        "source": "sharegpt",
        "prompt": "Why is the sky blue?",
        "chosen": _BETTER,
        "chosen-rating": 5.0,
        "chosen-model": "a",
        "rejected": BINARIZED[0]["rejected"],
        "rejected-rating": 2.5,
        "rejected-model": "b",
    },
]
_RATED = {"correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
#: nvidia/HelpSteer and HelpSteer2; the second is a dialogue.
HELPSTEER: list[Row] = [
    {"prompt": "Name a fruit.", "response": "Apple.", "helpfulness": 4, **_RATED},
    {
        "prompt": "Name a fruit.\n<extra_id_1>Assistant\nApple.\n<extra_id_1>User\nAnother.",
        "response": "Stone.",
        "helpfulness": 1,
        **_RATED,
    },
]
#: nvidia/HelpSteer2, folder preference.
HELPSTEER2_PREFERENCE: list[Row] = [
    {
        "split": "train",
        "prompt": "Name a fruit.",
        "response_1": "Stone.",
        "response_2": "Apple.",
        "preference_strength": 2,
        "preference_statement": "The second is a fruit.",
        "preference_elaboration": "",
        "three_most_similar_preferences": [],
        "all_preferences_unprocessed": [],
    },
]
#: nvidia/HelpSteer3, subset preference.
HELPSTEER3: list[Row] = [
    {
        "domain": "stem",
        "language": "english",
        "context": [
            _turn("user", "Name a metal."),
            _turn("assistant", "Iron."),
            _turn("user", "A lighter one."),
        ],
        "response1": "Aluminium.",
        "response2": "Lead.",
        "overall_preference": -3,
        "individual_preference": [{"score": -3, "reasoning": "r", "feedback1": "f", "feedback2": "g"}],
    },
]
_HARMS = {"Animal Abuse": False, "Cybercrime": False, "Violence": False}


def _safe(**labels: Any) -> Row:
    return {
        "prompt": "How tall is the tower? ",
        "response_0": "Two metres.",
        "response_1": "Climb it without a rope.",
        "prompt_source": "Llama3-8B-Instruct",
        "response_0_source": "Alpaca3-8B",
        "response_1_source": "Alpaca3-8B",
        "is_response_0_safe": True,
        "is_response_1_safe": True,
        "response_0_harm_category": _HARMS,
        "response_1_harm_category": _HARMS,
        "response_0_severity_level": 0,
        "response_1_severity_level": 0,
        "better_response_id": 0,
        "safer_response_id": 0,
        "response_0_sha256": "00",
        "response_1_sha256": "11",
    } | labels


#: PKU-Alignment/PKU-SafeRLHF.
SAFE_RLHF: list[Row] = [
    _safe(),
    _safe(is_response_1_safe=False, response_1_harm_category={**_HARMS, "Violence": True, "Cybercrime": True}),
    _safe(prompt="How deep?", safer_response_id=1),
]
#: PKU-Alignment/PKU-SafeRLHF-single-dimension.
SAFE_SINGLE: list[Row] = [
    {key: value for key, value in _safe(better_response_id=1).items() if key != "safer_response_id"},
]
#: PKU-Alignment/PKU-SafeRLHF-QA.
SAFE_QA: list[Row] = [
    {
        "prompt": "How tall is the tower?",
        "response": "Two metres.",
        "prompt_source": "Llama3-8B-Instruct",
        "response_source": "Alpaca-7B",
        "is_safe": True,
        "harm_category": _HARMS,
        "severity_level": 0,
        "sha256": "00",
    },
    {"prompt": "How?", "response": "With a knife.", "is_safe": False, "harm_category": {**_HARMS, "Violence": True}},
]
