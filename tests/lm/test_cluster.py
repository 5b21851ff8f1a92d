"""LM and embedder on a cluster: what comes back is bit for bit what this process computes, and is kept by it."""

from __future__ import annotations

import os
import sys
from functools import partial

import numpy as np
import pytest

from iclkit.embed import embedding_engine, load_embedder
from iclkit.errors import RunError, UsageError
from iclkit.lm import ScoreRequest, load_lm
from iclkit.pool import Pool
from iclkit.records import Example
from tests.engines.fake_ray import use_fake_ray
from tests.subprocesses import run_python

REQUESTS = [
    ScoreRequest(f"the film {n} was {'very ' * (n % 7)}fine", label) for n in range(40) for label in (" good", " bad")
]


@pytest.fixture
def fake(monkeypatch):
    return partial(use_fake_ray, monkeypatch)


def test_scores_of_a_cluster_are_those_of_this_process_and_go_to_its_cache(tiny_folder, tmp_path, fake):
    folder = str(tiny_folder())
    want = load_lm(folder, dtype="fp32", workers=1, cache=False, batch_tokens=64).score(REQUESTS)
    ray = fake(mortal=(0,))
    settings = {"dtype": "fp32", "engine": "ray", "workers": 2, "batch_tokens": 64, "cache": tmp_path / "cache.db"}
    assert load_lm(folder, **settings).score(REQUESTS) == want
    assert sum(actor.jobs for actor in ray.actors) > 3
    ray = fake()
    again = load_lm(folder, **settings)
    assert again.score(REQUESTS) == want
    assert ray.actors == []
    assert again.usage.calls == 0


def test_another_model_of_that_name_is_refused(tiny_folder, tmp_path, fake):
    fake()
    one, other = tiny_folder(), tiny_folder(initializer_range=0.2)
    folder = tmp_path / "model"
    folder.symlink_to(one)
    lm = load_lm(str(folder), dtype="fp32", engine="ray", workers=2, cache=False, batch_tokens=64)
    folder.unlink()
    folder.symlink_to(other)  # as it may be on another machine
    with pytest.raises(RunError, match="is another one there: it has the fingerprint") as found:
        lm.score(REQUESTS)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("spec", "dtype"), [("openai:m@http://127.0.0.1:1", "auto"), ("gguf:x.gguf", "auto"), ("x", "bf16-verified")]
)
def test_an_engine_that_an_lm_cannot_have_is_a_usage_error(spec, dtype):
    with pytest.raises(UsageError, match="--engine"):
        load_lm(spec, engine="ray", dtype=dtype, cache=False)
    with pytest.raises(UsageError, match="HOST:PORT"):
        load_lm(spec, engine="spark", cache=False)


@pytest.mark.models
def test_vectors_of_a_cluster_are_those_of_this_process_and_only_missing_ones_are_made(
    minilm_path, tmp_path, fake, monkeypatch
):
    monkeypatch.setattr("iclkit.pool._vectors.BATCH", 10)
    examples = [Example(f"a text about {n}", "x") for n in range(60)]
    model = load_embedder(str(minilm_path), threads=1)
    ray = fake(mortal=(1,))
    engine = embedding_engine("ray", model, str(minilm_path), workers=2)
    with Pool.open(tmp_path / "alone.db") as alone, Pool.open(tmp_path / "shared.db") as shared:
        for pool in (alone, shared):
            pool.add(examples[:30])
        alone.embed(model)
        shared.embed(model)
        for pool in (alone, shared):
            pool.add(examples[30:])
        alone.embed(model)
        assert shared.embed(model, engine=engine) == 30
        assert sum(len(job) for actor in ray.actors for job in actor.answered) == 30
        assert np.array_equal(alone.view().vectors(model), shared.view().vectors(model))


def test_an_embedder_that_is_no_folder_has_no_engine():
    from iclkit.testing import HashEmbedder

    with pytest.raises(UsageError, match="--engine"):
        embedding_engine("ray", HashEmbedder(), "mean:some-lm")


@pytest.mark.slow
@pytest.mark.models
def test_a_real_cluster_scores_as_this_process_does(tiny_folder, tmp_path):
    pytest.importorskip("ray")
    program = f"""
from iclkit.lm import ScoreRequest, load_lm
texts = ["the " + "film " * (n % 9) + "was " + "thin " * (n // 9) + "and fine" for n in range(80)]
requests = [ScoreRequest(text, label) for text in texts for label in (" good", " bad")]
for engine in (None, "ray"):
    where = {{"engine": engine, "workers": 2 if engine else 1}}
    lm = load_lm({str(tiny_folder())!r}, dtype="fp32", cache=False, batch_tokens=64, **where)
    print([s.logprob for s in lm.score(requests)])
    if engine:
        assert lm.inner.engine.workers, lm.inner.engine.notes
"""
    path = os.pathsep.join(filter(None, sys.path))
    done = run_python(program, timeout=300, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    alone, shared = done.stdout.splitlines()
    assert alone == shared
