"""Learning which demonstrations to show: retrievers trained from an LM's feedback.

``Training`` runs the pipeline (mine, score, train, report, save) for EPR, UDR, LLM-R, Se² and CEIL; its result is a
sentence-transformers folder that ``iclkit.embed.load_embedder`` reads. ``METHODS`` lists the methods, each with a
config class of its own. Importing this room loads no torch.
"""

from iclkit.trainers._assumed import Assumed, AssumedLM, is_absent, named_parameters
from iclkit.trainers._batch import RetrieverBatch, TrainingRow
from iclkit.trainers._card import headline, interval, percent
from iclkit.trainers._ceil import CEIL, CEILConfig
from iclkit.trainers._config import PRESETS, TrainConfig
from iclkit.trainers._data import TaskData, TrainingData, corpus_of_pool, corpus_of_tasks
from iclkit.trainers._epr import EPR, EPRConfig
from iclkit.trainers._exchange import LAYOUTS, export_scores, import_scores
from iclkit.trainers._feedback import Feedback, FeedbackPrompt, feedback_value, is_correct
from iclkit.trainers._ledger import LabelScores, Ledger, ScoreScope
from iclkit.trainers._llm_r import LLMR, LLMRConfig
from iclkit.trainers._method import Method, Session
from iclkit.trainers._mine import Miner
from iclkit.trainers._prepare import Disk, check_extra
from iclkit.trainers._registry import METHODS, make_method, preset
from iclkit.trainers._report import SelectorSetup, StrategyResult, TaskReport, oracle_share, report_on
from iclkit.trainers._se2 import Se2, Se2Config
from iclkit.trainers._train import Trained, Training
from iclkit.trainers._udr import UDR, UDRConfig

__all__ = [
    "CEIL",
    "EPR",
    "LAYOUTS",
    "LLMR",
    "METHODS",
    "PRESETS",
    "UDR",
    "Assumed",
    "AssumedLM",
    "CEILConfig",
    "Disk",
    "EPRConfig",
    "Feedback",
    "FeedbackPrompt",
    "LLMRConfig",
    "LabelScores",
    "Ledger",
    "Method",
    "Miner",
    "RetrieverBatch",
    "ScoreScope",
    "Se2",
    "Se2Config",
    "SelectorSetup",
    "Session",
    "StrategyResult",
    "TaskData",
    "TaskReport",
    "TrainConfig",
    "Trained",
    "Training",
    "TrainingData",
    "TrainingRow",
    "UDRConfig",
    "check_extra",
    "corpus_of_pool",
    "corpus_of_tasks",
    "export_scores",
    "feedback_value",
    "headline",
    "import_scores",
    "interval",
    "is_absent",
    "is_correct",
    "make_method",
    "named_parameters",
    "oracle_share",
    "percent",
    "preset",
    "report_on",
]
