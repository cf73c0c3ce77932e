#!/usr/bin/env bash
# transformers 5.23.0, beside 4.57.6: apply_chat_template and values that are not plain JSON.
#
# Expected: a conversation reads the same in both versions, or is refused.
# Seen: version 5.23.0 replaces what is not a str, number, list, tuple, dict, dataclass or pydantic model by a text that
#   names its class, before the template sees it. pandas.read_parquet gives nested columns as numpy arrays, so a
#   template loops over the letters of "<ndarray>", or prints them. No error, no warning:
#       content of parts, as numpy array     4.57.6  "2 + 2?"            5.23.0  "<ndarray>"
#       one tool call, in a numpy array      4.57.6  "[call add]"        5.23.0  "[call ]" nine times
#       date_string=datetime.date(...)       4.57.6  "2026-01-02"        5.23.0  "<date>"
#       strftime_now=a function              4.57.6  the function's day  5.23.0  TypeError: 'str' object is not callable
#   The last is the documented way ("Additional kwargs to pass to the template renderer") to pin the day of templates
#   that print it. numpy numbers and booleans are converted rightly.
# Why it matters: data sets for RLHF are Parquet, and many are read by pandas. All prompts of a run then say the same
#   nine letters; rewards stay finite, and nothing is reported. A day that cannot be pinned changes prompts at midnight.
# Here: gipo_mc reads Parquet into lists (by datasets, gipo_mc/data/sources.py) and pins the day by a macro of the same
#   name in front of the template (gipo_mc/data/templates.py).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
for version in 5.23.0 4.57.6; do
    "${PYTHON:-python3}" -m venv "env-$version"
    "env-$version/bin/pip" install -q "transformers==$version" jinja2==3.1.6 pandas==3.1.1 pyarrow==26.0.1 \
        || { echo "pip could not install them."; exit 2; }
done
export HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1

cat > render.py <<'PYTHON'
import datetime
import sys

import pandas
import transformers
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

TEMPLATE = """{% for m in messages -%}
{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}
{%- for call in m.tool_calls or [] %}[call {{ call.name }}]{% endfor %}
{% endfor %}day: {{ day }}"""
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), unk_token="a")
question = {"role": "user", "content": [{"type": "text", "text": "2 + 2?"}], "tool_calls": []}
call = {"role": "assistant", "content": [{"type": "text", "text": ""}], "tool_calls": [{"name": "add"}]}
pandas.DataFrame({"messages": [[question, call]]}).to_parquet("rows.parquet")
messages = list(pandas.read_parquet("rows.parquet").messages[0])

text = tokenizer.apply_chat_template(messages, TEMPLATE, tokenize=False, day=datetime.date(2026, 1, 2))
try:
    clock = datetime.date(2026, 1, 2).strftime
    day = tokenizer.apply_chat_template(messages, "{{ strftime_now('%Y') }}", tokenize=False, strftime_now=clock)
except TypeError as error:
    day = f"TypeError: {error}"
print(f"transformers {transformers.__version__}:\n{text}\nyear: {day}\n")
calls = "[call ]" * len("<ndarray>")
wanted = {
    "4": ("user: 2 + 2?\nassistant: [call add]\nday: 2026-01-02", "2026"),
    "5": (f"user: <ndarray>{calls}\nassistant: <ndarray>{calls}\nday: <date>", "TypeError: 'str' object is not callable"),
}
if (text, day) != wanted[transformers.__version__[0]]:
    sys.exit(f"Changed: another text than {wanted[transformers.__version__[0]]}.")
PYTHON
env-4.57.6/bin/python -I render.py
env-5.23.0/bin/python -I render.py
echo "As stated: version 5.23.0 puts the names of classes into prompts."
