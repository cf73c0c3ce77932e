#!/usr/bin/env bash
# torch 2.13.0: a second derivative of a function whose backward is marked `once_differentiable`.
#
# Expected: the mark makes every attempt to differentiate the gradient an error, as its message says, instead of a wrong
#   number.
# Seen: `torch.autograd.grad` never meets the error: the node that would raise it leads to no input, so it is passed
#   over, and the gradient counts as a constant. `backward()` meets it only where the gradient that comes in has a graph
#   of its own; below a `sum()` it has none, and the result is a constant again. With f(x) = x^3 marked so, the
#   derivative of d(sum f)/dx + x at 2 is 1, and not 13; of d(sum f^2)/dx + x it is 1, and not 481.
# Why it matters: gradient penalties and Hessian-vector products often begin at a sum.
# Here: gipo_mc/ops/native.py marks backward passes in a way of its own, which refuses both; tests/ops/layers holds it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
"${PYTHON:-python3}" -m venv env
env/bin/pip install -q torch==2.13.0 numpy==2.4.6 || { echo "pip could not install it."; exit 2; }
env/bin/python -I - <<'PYTHON'
import sys

import torch
from torch.autograd.function import once_differentiable


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * upstream


def first(square):
    """The gradient at 2 of the sum of f, or of its square, to be differentiated again."""
    x = torch.tensor([2.0], requires_grad=True)
    y = Cube.apply(x)
    (gradient,) = torch.autograd.grad((y.square() if square else y).sum(), x, create_graph=True)
    return (gradient + x).sum(), x


found = {}
for square in (False, True):
    again, x = first(square)
    found["grad", square] = torch.autograd.grad(again, x)[0].item()
    again, x = first(square)
    try:
        again.backward()
        found["backward", square] = x.grad.item()
    except RuntimeError as error:
        found["backward", square] = "once_differentiable" in str(error)
print(found)
if found != {("grad", False): 1.0, ("backward", False): 1.0, ("grad", True): 1.0, ("backward", True): True}:
    sys.exit("Changed.")
print("As stated.")
PYTHON
