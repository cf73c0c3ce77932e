#!/usr/bin/env bash
# transformers 5.23.0, `transformers serve` (torch 2.13.0, CPU): temperature of a chat completion.
#
# Expected: `temperature` is what the protocol says: 0 is greedy, above it the answers are drawn; a text too long for the
#   model is refused; `n: 2` gives two choices or an error.
#   Assumed, and written down after the first look: temperature is honoured, and the text too long is refused with 400.
# Seen: the server sets generation_config.temperature and never do_sample=True. Unless the model's own
#   generation_config.json has do_sample, every answer is greedy, at temperature 3 as at 0, for every seed. A prompt of more
#   tokens than the model has positions is answered all the same; `n: 2` gives one choice. Nothing says so.
# Why it matters: a judge that is asked several times to see how stable its verdicts are gives the same verdict each time,
#   and looks certain. Verdicts on cut or over-long prompts look like any others.
# Here: docs/evaluation.md, "Servers", says what each server did with what it was sent.
set -euo pipefail
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q "transformers[serving]==5.23.0" torch==2.13.0 || { echo "pip could not install them."; exit 2; }
export HF_HOME="$folder/hf" HF_HUB_OFFLINE=1 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 OMP_NUM_THREADS=1

cat > make.py <<'PYTHON'
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<s>", "</s>", *(f"w{n}" for n in range(62))]
core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="w0"))
core.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="w0")
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
tokenizer.save_pretrained("model")
torch.manual_seed(0)
config = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
)
LlamaForCausalLM(config).save_pretrained("model")
PYTHON
env/bin/python -I make.py
env/bin/transformers serve --host 127.0.0.1 --port 8791 --device cpu > serve.log 2>&1 &
server=$!

cat > ask.py <<'PYTHON'
import json
import sys
import time
import urllib.error
import urllib.request


def ask(content="w5 w6", **more):
    body = {"model": sys.argv[1], "max_tokens": 12, "messages": [{"role": "user", "content": content}], **more}
    request = urllib.request.Request(
        "http://127.0.0.1:8791/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    for _ in range(120):
        try:
            return json.load(urllib.request.urlopen(request, timeout=120))
        except urllib.error.HTTPError as error:
            return {"choices": [], "error": error.code}
        except OSError:
            time.sleep(0.5)
    sys.exit("The server did not start.")


def text(answer):
    return answer["choices"][0]["message"]["content"] if answer["choices"] else answer["error"]


greedy = text(ask(temperature=0.0))
drawn = {text(ask(temperature=3.0, seed=seed)) for seed in range(5)}
print(f"temperature 0: {greedy}\ntemperature 3, five seeds: {drawn}")
two, long = len(ask(n=2)["choices"]), ask("w5 " * 500)
print(f"n=2: {two} choice; 500 words for 64 positions: {'refused' if 'error' in long else long['usage']}")
sys.exit(0 if drawn == {greedy} and two == 1 and "error" not in long else 1)
PYTHON
env/bin/python -I ask.py "$folder/model" || { tail -5 serve.log; echo "Changed: it is not as stated."; exit 1; }
echo "As stated."
