"""On a GPU: the kernels against plain products, and scores and texts against the module's own. Skipped without one."""

import pytest
import torch

from iclkit.lm import GenerateRequest
from iclkit.lm._cascade import attend, flash, memory_efficient, parts_of, plain
from iclkit.lm._load import load_torch
from iclkit.lm._packed import PackedForward
from iclkit.lm._plan import build_layout

from .test_score import branching_pairs, scores_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("kernel", [flash, memory_efficient])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
def test_a_kernel_sees_what_plain_products_see(kernel, heads, groups):
    device, dtype = torch.device("cuda"), torch.bfloat16 if kernel is flash else torch.float32
    past = 10
    pairs = [p for seed in range(4) for p in branching_pairs(seed, 8)]
    stem = pairs[0].ids[:past]
    layout = build_layout([type(p)((*stem, *p.ids), past + p.n_context) for p in pairs], past)
    torch.manual_seed(0)
    n = len(layout.tokens)
    q = torch.randn(n, heads, 64, device=device, dtype=dtype) / 8
    k, v = torch.randn(2, n, groups, 64, device=device, dtype=dtype)
    prefix = torch.randn(2, past, groups, 64, device=device, dtype=dtype)
    own, parts = parts_of(layout, past, device)
    assert len(parts) > 1, "the case must have a prefix and branches"
    got = attend(q, k, v, (prefix[0], prefix[1]), own, parts, kernel).float()
    wide = [x.double() for x in (q, k, v, prefix)]
    want = attend(*wide[:3], (wide[3][0], wide[3][1]), own, parts, plain).float()
    assert float((got - want).norm() / want.norm()) < (1e-2 if kernel is flash else 1e-5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scores_on_a_gpu_equal_the_reference(tiny_folder, naive, dtype, fused):
    folder = tiny_folder(initializer_range=0.1)
    lm = load_torch(str(folder), dtype=dtype, device="cuda", batch_tokens=256)
    lm.model.packed = PackedForward(lm.model.packed.architecture, fused=fused)
    pairs = branching_pairs(vocabulary=lm.model.module.config.vocab_size)
    assert lm.plan_encoded(pairs).prefixes
    assert scores_of(lm, pairs) == pytest.approx(naive(folder, pairs), abs=1e-3 if dtype == "fp32" else 0.5)


def test_texts_on_a_gpu_are_those_of_the_cpu(tiny_folder):
    folder = str(tiny_folder(initializer_range=0.6))
    requests = [GenerateRequest("the quick brown" + " fox" * n, 20) for n in range(5)]
    requests += [GenerateRequest("what is", 20, temperature=1.0, seed=3), GenerateRequest("what is", 1)]
    on_gpu = load_torch(folder, dtype="fp32", device="cuda")
    assert on_gpu.model.packed is not None
    assert on_gpu.generate(requests) == load_torch(folder, dtype="fp32", device="cpu").generate(requests)
