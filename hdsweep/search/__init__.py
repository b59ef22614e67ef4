"""Configurations that a search draws: Optuna by ask and tell, rebuilt from a log at any moment.

What a study suggests next is a function of its knobs, its settings and the history of what was
asked and told, and of nothing else. So a run that was killed goes on as if it had not been, and
the log is the truth: an Optuna study is only ever made from it. To that end each suggestion has a
sampler of its own, seeded by the study's key and the configuration's number; see ``draws``.

This package is the only home of Optuna, which is imported when something is first drawn, checked
or exported: a sweep without a search does not pay for it.
"""

from hdsweep.search.dashboard import Exported, export
from hdsweep.search.history import Asked, State, Told, aggregate, best
from hdsweep.search.importances import Evaluator, Importance, importance
from hdsweep.search.options import check_options
from hdsweep.search.study import Study

__all__ = [
    "Asked",
    "Evaluator",
    "Exported",
    "Importance",
    "State",
    "Study",
    "Told",
    "aggregate",
    "best",
    "check_options",
    "export",
    "importance",
]
