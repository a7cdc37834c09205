"""Agreement with people: are a network's uncertain images those that people disagree about?"""

from lib.data import cifar10h
from lib.evaluation.measure import Run
from lib.evaluation.suite import UNCERTAINTIES, as_uncertainty, metrics_row
from lib.evaluation.uncertainty import rank_correlation
from lib.runs import store

PEOPLE = "people"


def measure_agreement(run: Run) -> list[dict]:
    """Rank correlation of each stored uncertainty with the entropy of people's labels.

    The labels are CIFAR-10H's, one row an uncertainty: condition "people", score its name, metric
    spearman. Positive: people disagree about the images that the network is uncertain of. Read from
    the stored scores, so that no weights are needed.
    """
    scores = store.stored_scores(run.profile, run.name, cifar10h.CIFAR10)
    entropy = cifar10h.human_entropy(cifar10h.label_counts(scores["label"]))
    common = {"evaluated_on": cifar10h.CIFAR10, "condition": PEOPLE}
    draws = run.settings["bootstrap_draws"]
    rows = []
    for name in UNCERTAINTIES:
        pair = as_uncertainty(scores, name), entropy
        rows.append(
            metrics_row("spearman", rank_correlation, *pair, draws=draws, score=name, **common)
        )
    return rows
