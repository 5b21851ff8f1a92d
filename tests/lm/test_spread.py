"""One copy of a model spread over devices and the disk (``device_map``), on a CPU with a limit of memory."""

import shutil

import pytest

from iclkit.errors import UnknownName, UsageError
from iclkit.lm import GenerateRequest, spread_spec
from iclkit.lm._load import load_torch

from .test_generate import CONTEXTS
from .test_score import branching_pairs, scores_of


def test_a_model_larger_than_memory_gives_what_the_whole_one_gives(tiny_folder):
    folder, places = tiny_folder(num_hidden_layers=4, tie_word_embeddings=True), ["cpu", "disk"]
    spread = load_torch(f"{folder},device_map=auto,max_memory=[cpu=200KB]", dtype="fp32")
    whole = load_torch(str(folder), dtype="fp32", device="cpu", packed=False)
    assert spread.notes[0] == f"one copy of the model is spread over {', '.join(places)}"
    assert spread.model.packed is None
    pairs = branching_pairs(n=2, vocabulary=100)
    assert scores_of(spread, pairs) == pytest.approx(scores_of(whole, pairs), abs=1e-4)
    asks = [GenerateRequest(c, 2) for c in CONTEXTS[:2]]
    assert spread.generate(asks) == whole.generate(asks)
    assert spread.name == whole.name
    assert spread.fingerprint == whole.fingerprint.removesuffix("cpu") + "+".join(places)


def test_one_that_fits_is_the_same_lm_as_without_a_map(tiny_folder):
    folder = tiny_folder()
    spread = load_torch(f"{folder},device_map=auto", dtype="fp32")
    if spread.notes[0].endswith("over cpu"):  # no GPU here
        assert spread.model.packed is not None
        assert spread.fingerprint == load_torch(str(folder), dtype="fp32", device="cpu").fingerprint


def test_a_path_with_a_comma_is_a_path(tiny_folder, tmp_path):
    folder = tmp_path / "tiny,device_map=auto"
    shutil.copytree(tiny_folder(), folder)
    assert spread_spec(str(folder)) == (str(folder), {})


def test_settings_are_read():
    spec = "some/model,device_map=balanced,max_memory=[0=20GiB, cpu=1.5TB]"
    assert spread_spec(spec) == (
        "some/model",
        {"device_map": "balanced", "max_memory": {0: "20GiB", "cpu": "1.5TB"}},
    )


@pytest.mark.parametrize(
    ("settings", "kind", "says"),
    [
        ("device_map=auto,max_memory=20GiB", UsageError, "expected e.g."),
        ("device_map=auto,max_memory=[cpu=lots]", UsageError, "expected e.g."),
        ("device_map=everywhere", UsageError, "device_map is 'everywhere'; expected one of auto"),
        ("devicemap=auto", UnknownName, "device_map"),
        ("device_map", UsageError, "is not key=value"),
    ],
)
def test_settings_that_cannot_be_are_one_clear_line(settings, kind, says, tiny_folder):
    with pytest.raises(kind, match=says):
        load_torch(f"{tiny_folder()},{settings}")


@pytest.mark.parametrize("more", [{"workers": 2}, {"device": "cpu,cpu"}])
def test_one_copy_is_not_shared_by_several_processes(more, tiny_folder):
    with pytest.raises(UsageError, match="device_map spreads one copy"):
        load_torch(f"{tiny_folder()},device_map=auto", **more)
