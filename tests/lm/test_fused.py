"""The Triton kernels against torch's own operations, in Triton's interpreter on CPU."""

import importlib.util
import os
import subprocess
import sys

import pytest

CHECK = """
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM
from iclkit.lm import _cascade, _fused
from iclkit.lm._architecture import describe
from iclkit.lm._packed import PackedForward
from iclkit.lm._forward import matches_module

torch.manual_seed(0)
x, more, weight = torch.randn(5, 48), torch.randn(5, 48), torch.randn(48)
total = x + more
assert torch.allclose(_fused.add_norm(x, more, weight, 1e-5, torch.float32), F.rms_norm(total, (48,), weight, 1e-5))
assert torch.equal(x, total)
a, b = torch.randn(3, 5000), torch.randn(3, 5000)
expected = F.silu(a) * b
assert torch.allclose(_fused.gate(a, b), expected)
for heads, groups, size in ((6, 3, 8), (9, 3, 64), (4, 4, 12)):
    config = LlamaConfig(
        hidden_size=heads * size,
        head_dim=size,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        vocab_size=100,
    )
    module = LlamaForCausalLM(config).eval()
    assert matches_module(module, PackedForward(describe(module), fused=True, attention=_cascade.plain))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernels_do_what_the_module_does():
    done = subprocess.run([sys.executable, "-c", CHECK], env={**os.environ, "TRITON_INTERPRET": "1"}, check=False)
    assert done.returncode == 0
