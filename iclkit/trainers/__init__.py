"""Learning which demonstrations to show: retrievers trained from an LM's feedback.

``Training`` runs the pipeline (mine, score, label, train, report, save) for EPR, UDR, LLM-R, Se² and CEIL; its result
is a sentence-transformers folder that ``iclkit.pool.load_embedder`` reads. Importing this room loads no torch.
"""

from iclkit.trainers._card import headline, interval, percent
from iclkit.trainers._config import METHODS, PRESETS, TrainConfig, parse_settings, preset
from iclkit.trainers._corpus import Corpus, Course, corpus_of_pool, corpus_of_tasks
from iclkit.trainers._exchange import LAYOUTS, export_scores, import_scores
from iclkit.trainers._feedback import Ask, Feedback, Price
from iclkit.trainers._ledger import Ledger, Scope, Told
from iclkit.trainers._prepare import Disk, check_extra
from iclkit.trainers._report import Chooser, TaskReport, Way, report_on
from iclkit.trainers._train import Trained, Training

__all__ = [
    "LAYOUTS",
    "METHODS",
    "PRESETS",
    "Ask",
    "Chooser",
    "Corpus",
    "Course",
    "Disk",
    "Feedback",
    "Ledger",
    "Price",
    "Scope",
    "TaskReport",
    "Told",
    "TrainConfig",
    "Trained",
    "Training",
    "Way",
    "check_extra",
    "corpus_of_pool",
    "corpus_of_tasks",
    "export_scores",
    "headline",
    "import_scores",
    "interval",
    "parse_settings",
    "percent",
    "preset",
    "report_on",
]
