import pytest

from gipo_mc.data.fields import Fields, LeftOut, RowError
from gipo_mc.data.formats import Example, detect, parse
from gipo_mc.types import Message

U, A = "\n\nHuman:", "\n\nAssistant:"


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def auto(row) -> Example:
    return parse(row, detect(row))


def test_hh_splits_the_shared_turns_from_the_last_answer():
    row = {
        "chosen": f"{U} Where is the library?{A} Which one?{U} The big one.\n\nOn Main Street.{A} Next to the park.",
        "rejected": f"{U} Where is the library?{A} Which one?{U} The big one.\n\nOn Main Street.{A} I don't know.",
    }
    assert detect(row) == "hh"
    assert auto(row) == Example(
        (
            Message("user", "Where is the library?"),
            Message("assistant", "Which one?"),
            Message("user", "The big one.\n\nOn Main Street."),
        ),
        " Next to the park.",
        " I don't know.",
        "",
    )


def test_hh_names_inside_a_line_are_text():
    text = f"{U} What does 'Human: hello' mean?\nAssistant: is a word{A} A label."
    example = auto({"chosen": text, "rejected": text.replace("A label", "A name")})
    assert example.prompt == (Message("user", "What does 'Human: hello' mean?\nAssistant: is a word"),)


def test_hh_rows_that_are_odd_in_the_published_data_are_left_out_not_errors():
    with pytest.raises(LeftOut, match="different prompts"):
        auto({"chosen": f"{U} One?{A} Yes.", "rejected": f"{U} Two?{A} No."})
    with pytest.raises(LeftOut, match="different prompts"):
        auto({"chosen": f"{U} One?{A} Yes.{U} Sure?{A} Yes.", "rejected": f"{U} One?{A} No."})
    with pytest.raises(LeftOut, match="end with a human turn"):
        auto({"chosen": f"{U} One?{A} Yes.{U} Sure?", "rejected": f"{U} One?{A} No."})
    assert auto({"chosen": f"{U} One?{A}", "rejected": f"{U} One?{A} No."}).chosen == ""  # counted when rendered
    doubled = auto({"chosen": f"{U} One?{U} Two?{A} Yes.", "rejected": f"{U} One?{U} Two?{A} No."})
    assert [m.role for m in doubled.prompt] == ["user", "user"]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"chosen": 3, "rejected": "x"}, "'chosen' is a number, not a string"),
        ({"chosen": f"{U} a{A} b", "rejected": None}, "'rejected' is null, not a string"),
        ({"chosen": "hello", "rejected": "x"}, "'chosen' does not begin with"),
        ({"chosen": f"text{U} a{A} b", "rejected": "x"}, "'chosen' does not begin with"),
        ({"chosen": f"{U} a\0{A} b", "rejected": "x"}, "'chosen' holds a NUL character"),
        ({"chosen": f"{U} a\ud800{A} b", "rejected": "x"}, "half of a surrogate pair"),
        ({"text": "a"}, "the fields text are of no known format"),
        ({}, r"the fields \(none\) are of no known format"),
        ({"prompt": 1}, "'prompt' is a number"),
        ({"prompt": "a", "domain": 3}, "'domain' is a number"),
        ({"messages": []}, "'messages' is empty"),
        ({"messages": ["a"]}, r"'messages'\[0\] is a string"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "has the role 'tool'"),
        ({"messages": [{**assistant("a"), "tool_calls": [{"name": "f"}]}]}, r"'messages'\[0\] has tool_calls"),
        ({"prompt": [user("a"), {**assistant(""), "function_call": {"name": "f"}}, user("b")]}, "has function_call"),
        ({"messages": [{**user("a"), "tool_call_id": "1"}]}, "has tool_call_id"),
        ({"system": "a", "prompt": [{"role": "system", "content": "b"}, user("c")]}, "says something else: keep one"),
        ({"system": 3, "prompt": "a"}, "'system' is a number"),
        ({"prompt": b"a"}, "'prompt' is bytes, not a string"),
        ({"prompt": None, "response": None}, "'prompt' is null, not a string"),
        ({"messages": [{"role": "user", "content": None}]}, r"'messages'\[0\].content is null"),
        ({"messages": [assistant("a")]}, "must end with an assistant message, after"),
        ({"chosen": [user("a")], "rejected": [user("a")]}, "'chosen' must end with an assistant message"),
        ({"prompt": [user("a"), assistant("b")]}, "'prompt' ends with an assistant message"),
        ({"prompt": [user("a")], "chosen": [user("b")]}, "'chosen' must be one assistant message"),
        ({"prompt": [user("a")], "chosen": 3}, "'chosen' is a number, not a list of messages"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "no 'prompt', and 'chosen' is an answer alone"),
        ({"prompt": None, "chosen": [{"from": "gpt", "value": "a"}]}, "no 'prompt', and 'chosen' is an answer alone"),
        ({"completion": [assistant("a")]}, "no 'prompt', and 'completion' is an answer alone"),
        ({"info": 1, "summaries": [], "choice": 0}, "'info' is a number"),
        ({"info": {}, "summaries": [{}], "choice": 0}, "'summaries' is a list"),
        ({"info": {}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}, "'choice' is 2"),
        ({"info": {}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": True}, "'choice' is True"),
        ({"info": {}, "summaries": [{"text": "a"}, {}], "choice": 1}, "there is no 'text'"),
        ({"info": {}, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1}, "there is no 'article'"),
        ({"post": "a", "summary": "b"}, "there is no 'subreddit'; the row has post, summary"),
    ],
)
def test_malformed_rows_say_what_is_wrong(row, reason):
    with pytest.raises((RowError, LeftOut), match=reason) as error:
        auto(row)
    assert issubclass(error.type, RowError)


def test_answers_to_messages_may_be_strings():
    """As many files have them: the prompt as a dialogue, the answers as the assistant's text."""
    row = {"prompt": [user("a")], "chosen": "yes ", "rejected": "no"}
    assert auto(row) == Example((Message("user", "a"),), "yes", "no", "")
    assert auto({"prompt": [user("a")], "completion": "b"}).chosen == "b"
    with pytest.raises(RowError, match="no 'prompt', and 'chosen' is an answer alone"):
        parse({"chosen": "yes", "rejected": "no"}, "messages")  # among rows like the first


POST = "SUBREDDIT: r/gardening\n\nTITLE: Tomatoes\n\nPOST: They grew.\n\nTL;DR:"


def test_tldr_comparisons_as_published():
    info = {"id": "t3_1", "post": "They grew. ", "title": "Tomatoes", "subreddit": "gardening", "article": None}
    row = {"info": info, "summaries": [{"text": " Bad."}, {"text": " Good."}], "choice": 1, "split": "train"}
    assert auto(row) == Example(POST, " Good.", " Bad.", "tldr/gardening")
    row["info"] = {"id": "1", "article": "It rained.", "post": None}
    assert auto(row) == Example("Article:\n\nIt rained.\n\nTL;DR:", " Good.", " Bad.", "cnndm")


@pytest.mark.parametrize(
    "row, chosen, rejected",
    [
        ({"subreddit": "gardening", "title": "Tomatoes", "post": "They grew.", "summary": "Good."}, "Good.", None),
        ({"prompt": POST, "label": "Good."}, "Good.", None),
        ({"prompt": POST, "completion": " Good."}, " Good.", None),
        ({"prompt": POST[:-8], "chosen": "TL;DR: Good.", "rejected": "TL;DR: Bad."}, " Good.", " Bad."),
        ({"prompt": POST}, None, None),
    ],
)
def test_filtered_tldr_as_published(row, chosen, rejected):
    assert auto(row) == Example(POST, chosen, rejected, "tldr/gardening")


def test_a_filtered_post_without_a_subreddit_is_one_of_tldr():
    row = {"subreddit": None, "title": "Tomatoes", "post": "They grew.", "summary": "Good."}
    assert auto(row) == Example(POST.replace("gardening", ""), "Good.", None, "tldr")


def test_articles_of_cnn_dailymail_read_as_those_of_the_comparisons():
    row = {"article": "It rained. ", "highlights": "Rain .", "id": "0" * 40}
    assert auto(row) == Example("Article:\n\nIt rained.\n\nTL;DR:", "Rain .", None, "cnndm")


def test_pairs():
    assert auto({"prompt": "a", "chosen": "b", "rejected": "c", "domain": "d"}) == Example("a", "b", "c", "d")
    assert auto({"prompt": "a", "response": "b"}) == Example("a", "b", None, "")
    assert auto({"prompt": "a"}) == Example("a", None, None, "")


def test_messages_in_every_published_shape():
    prompt = (Message("system", "Be kind."), Message("user", "Hello"))
    turns = [{"role": "system", "content": "Be kind."}, user("Hello")]
    full = Example(prompt, "Hi.", "Go.", "")
    assert auto({"chosen": [*turns, assistant("Hi.")], "rejected": [*turns, assistant("Go.")]}) == full
    assert auto({"prompt": turns, "chosen": [assistant("Hi.")], "rejected": [assistant("Go.")]}) == full
    text_prompt = {"prompt": "Hello", "chosen": [*turns, assistant("Hi.")], "rejected": [*turns, assistant("Go.")]}
    assert auto(text_prompt) == full
    assert auto({"messages": [*turns, assistant("Hi.")]}) == Example(prompt, "Hi.", None, "")
    assert auto({"prompt": turns, "completion": [assistant("Hi.")]}) == Example(prompt, "Hi.", None, "")
    assert auto({"messages": turns}) == auto({"prompt": turns}) == Example(prompt, None, None, "")
    with pytest.raises(LeftOut, match="different prompts"):
        auto({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]})


# ------------------------------------------------------------------------------------------- what the author meant
@pytest.mark.parametrize("label", ["4", "good", 3, 1.5, True, None, ["a"]])
def test_a_label_makes_no_tldr_row(label):
    row = {"prompt": "What is 2+2?", "response": "Four.", "label": label}
    assert detect(row) == "pairs" and auto(row) == Example("What is 2+2?", "Four.", None, "")
    assert auto({"prompt": "What is 2+2?", "label": label}).chosen is None
    assert auto({"prompt": POST, "completion": "Good.", "label": label}).chosen == "Good."


def test_a_response_that_its_label_rejects_is_not_imitated():
    for row in ({"prompt": "a", "completion": "b"}, {"prompt": [user("a")], "completion": [assistant("b")]}):
        assert parse(row | {"label": True}, detect(row), ("chosen",)).chosen == "b"
        assert parse(row | {"label": False}, detect(row), ()).prompt
        with pytest.raises(LeftOut, match="responses that their label rejects"):
            parse(row | {"label": False}, detect(row), ("chosen",))
    pair = {"prompt": "a", "chosen": "b", "rejected": "c", "label": False}
    assert auto(pair) == Example("a", "b", "c", "")


NULLS = [
    ({"prompt": [user("a")], "chosen": None, "rejected": None}, ()),
    ({"prompt": [user("a")], "completion": None}, ()),
    ({"prompt": [user("a")], "chosen": [assistant("b")], "rejected": None}, ("chosen",)),
    ({"chosen": [user("a"), assistant("b")], "rejected": None}, ("chosen",)),
    ({"chosen": None, "rejected": [user("a"), assistant("c")]}, ()),
    ({"chosen": f"{U} a{A} b", "rejected": None}, ("chosen",)),
    ({"chosen": None, "rejected": f"{U} a{A} b"}, ()),
    ({"messages": [user("a"), assistant("b")], "prompt": None, "chosen": None, "rejected": None}, ("chosen",)),
    ({"messages": None, "prompt": "a", "chosen": "b", "rejected": None, "domain": None, "system": None}, ("chosen",)),
    ({"prompt": "a", "summary": None, "post": None, "info": None, "summaries": None, "choice": None}, ()),
    ({"info": {"post": "a"}, "summaries": None, "choice": None}, ()),
    ({"info": {"post": "a"}, "summaries": [{"text": "b"}, {"text": None}], "choice": 0}, ("chosen",)),
    (
        {"messages": [{**user("a"), "tool_calls": None, "name": None}, {**assistant("b"), "tool_calls": []}]},
        ("chosen",),
    ),
]


@pytest.mark.parametrize("row, needs", NULLS)
def test_null_is_no_value_where_the_use_needs_none(row, needs):
    fields = Fields(row)
    example = parse(fields, detect(row), needs)
    assert (example.chosen is not None) or not needs
    assert example.prompt and fields.unused() == set()


@pytest.mark.parametrize("row", [row for row, _ in NULLS if "rejected" in row and "messages" not in row])
def test_null_is_an_error_where_the_use_needs_a_value(row):
    with pytest.raises(RowError, match=r"'(chosen|rejected)' is null"):
        parse(row, detect(row))


@pytest.mark.parametrize(
    "row, unused",
    [
        ({"prompt": "a", "response": "b", "label": "good", "id": 7, "note": "", "tags": []}, {"label", "id"}),
        ({"prompt": "a", "chosen": "b", "response": "c", "completion": "d"}, {"response", "completion"}),
        ({"messages": [user("a"), assistant("b")], "tools": [{"name": "f"}], "prompt": "a"}, {"tools", "prompt"}),
        ({"messages": [user("a"), {**assistant("b"), "weight": 0, "name": "x"}]}, {"messages.weight", "messages.name"}),
        ({"chosen": f"{U} a{A} b", "rejected": f"{U} a{A} c", "system": "s", "margin": 2.0}, {"margin"}),
        ({"prompt": POST, "label": "Good."}, set()),
        ({"prompt": "a", "domain": "d", "system": "s"}, set()),
    ],
)
def test_a_column_that_nothing_reads_is_known(row, unused):
    fields = Fields(row)
    parse(fields, detect(row))
    assert fields.unused() == unused


def test_a_developers_message_is_a_system_message():
    developer = {"role": "developer", "content": "Be kind."}
    assert auto({"messages": [developer, user("a"), assistant("b")]}).prompt[0] == Message("system", "Be kind.")


@pytest.mark.parametrize(
    ("fields", "conversation", "unused"),
    [
        ({"conversation": "c7"}, "c7", set()),
        ({"conversation_id": 7}, "7", set()),
        ({"conversation": [{"role": "user"}]}, "", {"conversation"}),
        ({"conversation": None, "conversation_id": True}, "", {"conversation_id"}),
    ],
)
def test_a_row_may_name_its_conversation(fields: dict[str, object], conversation: str, unused: set[str]) -> None:
    row = Fields({"prompt": "p", **fields})
    assert parse(row, "pairs", ()).conversation == conversation and row.unused() == unused
