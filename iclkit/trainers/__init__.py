"""Learning which demonstrations to show: retrievers trained from an LM's feedback.

``Training`` runs the pipeline (mine, score, label, train, report, save) for EPR, UDR, LLM-R, Se² and CEIL; its result
is a sentence-transformers folder that ``iclkit.embed.load_embedder`` reads. Importing this room loads no torch.
"""

from iclkit.trainers._card import headline, interval, percent
from iclkit.trainers._config import METHODS, PRESETS, TrainConfig, parse_settings, preset
from iclkit.trainers._data import TaskData, TrainingData, corpus_of_pool, corpus_of_tasks
from iclkit.trainers._exchange import LAYOUTS, export_scores, import_scores
from iclkit.trainers._feedback import CostEstimate, Feedback, FeedbackPrompt
from iclkit.trainers._ledger import LabelScores, Ledger, ScoreScope
from iclkit.trainers._prepare import Disk, check_extra
from iclkit.trainers._report import SelectorSetup, StrategyResult, TaskReport, report_on
from iclkit.trainers._train import Trained, Training

__all__ = [
    "LAYOUTS",
    "METHODS",
    "PRESETS",
    "CostEstimate",
    "Disk",
    "Feedback",
    "FeedbackPrompt",
    "LabelScores",
    "Ledger",
    "ScoreScope",
    "SelectorSetup",
    "StrategyResult",
    "TaskData",
    "TaskReport",
    "TrainConfig",
    "Trained",
    "Training",
    "TrainingData",
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
