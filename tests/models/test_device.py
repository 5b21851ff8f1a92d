"""One answer to what a machine computes in, and transformers as it was after it was kept quiet."""

from __future__ import annotations

import pytest

from iclkit import models
from iclkit.errors import UsageError


def test_bf16_that_a_gpu_only_emulates_is_not_taken_for_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)  # emulated bf16 counts there
    for capability, dtype in (((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert models.resolve_dtype("auto", torch.device("cuda")) == dtype
    assert models.resolve_dtype("bf16", torch.device("cpu")) == "bf16"
    assert not models.supports_bf16(torch.device("meta"))


@pytest.mark.parametrize("name", ["tpu?", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=name.replace("?", r"\?")):
        models.find_device(name)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_and_log_lines_of_transformers_come_back_after_an_error_too(shown: bool) -> None:
    from transformers.utils import logging as chatter

    before = chatter.is_progress_bar_enabled(), chatter.get_verbosity()
    try:
        (chatter.enable_progress_bar if shown else chatter.disable_progress_bar)()
        chatter.set_verbosity_info()
        inside = []
        with pytest.raises(KeyError), models.quiet_transformers():
            inside.append(chatter.is_progress_bar_enabled()) or {}["no such key"]
        assert inside == [False]
        assert (chatter.is_progress_bar_enabled(), chatter.get_verbosity()) == (shown, chatter.INFO)
    finally:
        (chatter.enable_progress_bar if before[0] else chatter.disable_progress_bar)()
        chatter.set_verbosity(before[1])
