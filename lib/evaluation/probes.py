"""Classifiers on frozen features: k-NN, a linear probe to its optimum, and the paper's probe.

Labels are whole numbers or strings. Predictions are labels; columns of probabilities are in the
order of the sorted labels (``Probe.classes``).
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.sets import choose_per_class
from lib.evaluation.uncertainty import checked_features, class_indices, scaled_rows

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each fit starts from the one before
OWN_PROBE = {"optimizer": "L-BFGS", "weight_decay": PENALTIES, "chosen": "on a tenth of train"}
# VI-SimSiam 2022, App. 9.1. The paper takes the best epoch on validation, we take the last.
PAPER_PROBE = {
    "optimizer": "lars",
    "learning_rate": 1.6,
    "weight_decay": 0.0,
    "momentum": 0.9,
    "batch_size": 512,
    "epochs": 200,
    "schedule": "cosine",
    "augmentation": "none",
    "chosen_epoch": "last",
}
NEAREST = 20  # neighbours that vote, and that a distance is taken to
TEMPERATURE = 0.07  # of the votes of neighbours
SIMILARITIES = 20_000_000  # numbers of the similarity matrix that are held at a time (80 MB)
LARGEST = 1e18  # of the features of a linear probe
MOST_ITERATIONS = {"maxiter": 200, "maxfun": 300, "maxcor": 50, "gtol": 1e-5, "ftol": 1e-8}


# ------------------------------------------------------------------------------ nearest neighbours
def nearest_neighbours(train_x: np.ndarray, test_x: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity and row of the k nearest training images, nearest first: [N, k] each.

    train_x: [M, D], test_x: [N, D]. The scale of features has no effect. The full matrix of
    similarities is never built.
    """
    train_x = checked_features(train_x, "train_x")
    test_x = checked_features(test_x, "test_x", train_x)
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k must be between 1 and the {len(train_x)} training images, got {k}.")
    bank = _unit_rows(train_x).T  # [D, M]
    similarities = []
    rows = []
    for queries in _unit_rows(test_x).split(max(1, SIMILARITIES // len(train_x))):
        nearest = (queries @ bank).topk(k, dim=1)
        similarities.append(nearest.values)
        rows.append(nearest.indices)
    return torch.cat(similarities), torch.cat(rows)


def _unit_rows(features: np.ndarray) -> Tensor:
    return F.normalize(torch.as_tensor(scaled_rows(features), dtype=torch.float32), dim=1)


def knn_predict(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, k: int = NEAREST
) -> tuple[np.ndarray, Tensor]:
    """Predicted labels [N] of a cosine k-NN, and the cosines of the neighbours [N, k].

    Neighbours vote with weight exp(cosine / T): Wu et al. 2018 (instance discrimination), section
    3.4. train_x: [M, D], train_y: [M], test_x: [N, D].

    Example:
        >>> prediction, _ = knn_predict(train["features"], train["label"], test["features"])
        >>> accuracy = (prediction == test["label"]).mean()
    """
    classes, indices = class_indices(train_y, "train_y", len(train_x))
    similarity, rows = nearest_neighbours(train_x, test_x, k)
    weights = torch.softmax(similarity.double() / TEMPERATURE, dim=1)  # [N, k]
    votes = torch.zeros(len(rows), len(classes), dtype=torch.float64)
    votes.scatter_add_(1, torch.as_tensor(indices)[rows], weights)  # [N, C]
    return classes[votes.numpy().argmax(axis=1)], similarity


# ------------------------------------------------------------------------------------ linear probe
@dataclass(frozen=True)
class Probe:
    """A linear classifier: softmax(((x - mean) / scale) weight + bias)."""

    classes: np.ndarray  # [C], the label of each column
    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    weight: np.ndarray  # [D, C]
    bias: np.ndarray  # [C]
    penalty: float = 0.0  # the chosen L2 weight

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities in float64 [N, C] of features [N, D]."""
        x = checked_features(x, "x", self.mean[None])
        logits = ((x - self.mean) / self.scale).astype(np.float32) @ self.weight + self.bias
        return torch.softmax(torch.as_tensor(logits, dtype=torch.float64), dim=1).numpy()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """The most probable label [N] of features [N, D]."""
        return self.classes[self.probabilities(x).argmax(axis=1)]


def linear_probe(
    train_x: np.ndarray, train_y: np.ndarray, penalties: Iterable[float] = PENALTIES
) -> Probe:
    """A linear classifier on frozen features [M, D] with labels [M].

    Features are standardised by training statistics. L-BFGS on all of train minimises mean
    cross-entropy + penalty/2 ‖weight‖², with a free bias. The penalty is chosen by its NLL on a
    stratified tenth of train, then all of train is fitted. The probe never sees test data, so
    nothing can be chosen on them. This probe is ours; the paper's is paper_probe. Its optimum is
    scikit-learn's LogisticRegression's; float32 and warm starts make it several times faster.

    Example:
        >>> probe = linear_probe(train["features"], train["label"])
        >>> accuracy = (probe.predict(test["features"]) == test["label"]).mean()
    """
    train_x, classes, labels = _labelled(train_x, train_y)
    x = torch.as_tensor(train_x, dtype=torch.float32)
    y = torch.as_tensor(labels)
    scale, mean = torch.std_mean(x, dim=0, correction=0)
    # The deviation of a constant feature is rounding noise, which the division would enlarge.
    scale[scale <= 1e-6 * mean.abs()] = 1
    x = (x - mean) / scale
    penalty, start = _choose_penalty(x, y, len(classes), sorted(penalties, reverse=True))
    weight, bias = _logistic_regression(x.T.contiguous(), y, len(classes), penalty, start)
    return Probe(
        classes=classes,
        mean=mean.numpy(),
        scale=scale.numpy(),
        weight=weight.contiguous().numpy(),
        bias=bias.contiguous().numpy(),
        penalty=penalty,
    )


def _choose_penalty(
    x: Tensor, y: Tensor, classes: int, penalties: list[float]
) -> tuple[float, tuple[Tensor, Tensor] | None]:
    """The penalty with the lowest validation NLL, and its fit to train without validation."""
    if len(penalties) == 1:
        return penalties[0], None
    held_out = torch.as_tensor(_tenth(y.numpy()))
    fitted_x = x[~held_out].T.contiguous()
    fitted_y = y[~held_out]
    chosen = penalties[0], None
    lowest = math.inf
    fit = None
    for penalty in penalties:
        fit = _logistic_regression(fitted_x, fitted_y, classes, penalty, fit)
        weight, bias = fit
        nll = F.cross_entropy(x[held_out] @ weight + bias, y[held_out]).item()
        if nll < lowest:
            lowest = nll
            chosen = penalty, fit
    return chosen


def _labelled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [M, D], the classes [C], and the place of each label among them [M]."""
    x = checked_features(x, "train_x")
    largest = np.abs(x).max()
    if largest > LARGEST:
        raise ValueError(
            f"train_x has values up to {largest:.3g}, whose squares overflow in float32; divide "
            "the features by a constant."
        )
    classes, labels = class_indices(y, "train_y", len(x))
    if len(classes) < 2:
        raise ValueError(
            f"train_y holds a single class ({classes[0]}); a probe needs at least two."
        )
    return x, classes, labels


def _tenth(labels: np.ndarray) -> np.ndarray:
    """A mask [M] that holds out a tenth of each class, at least one image where there are two."""
    mask = np.zeros(len(labels), dtype=bool)
    mask[choose_per_class(labels, 0.1, seed=0, least=1, spared=1)] = True
    if not mask.any():
        raise ValueError(
            "every class has a single image, so none can be held out: give more images, a larger "
            "share of labels, or one penalty."
        )
    return mask


def _logistic_regression(
    x: Tensor, y: Tensor, classes: int, penalty: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weight [D, C] and bias [C] at the optimum.

    Features are columns, x [D, M]: in this layout a step takes a fifth of the time.
    """
    from scipy.optimize import minimize  # slow to import

    images = torch.arange(len(y))
    one_hot = torch.zeros(classes, len(y))
    one_hot[y, images] = 1

    def unpacked(parameters: np.ndarray) -> tuple[Tensor, Tensor]:
        both = torch.as_tensor(parameters, dtype=torch.float32).view(classes, -1)
        return both[:, :-1], both[:, -1]  # [C, D], [C]

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = unpacked(parameters)
        logits = torch.addmm(bias[:, None], weight, x)  # [C, M]
        normaliser = logits.logsumexp(0)
        cross_entropy = (normaliser - logits[y, images]).double().mean()
        loss = cross_entropy + penalty / 2 * weight.double().square().sum()
        error = ((logits - normaliser).exp_() - one_hot).div_(len(y))
        weight_gradient = error @ x.T + penalty * weight
        gradient = torch.cat([weight_gradient, error.sum(1, keepdim=True)], dim=1)  # [C, D + 1]
        return loss.item(), gradient.double().numpy().ravel()

    if start is None:
        first = np.zeros(classes * (len(x) + 1))
    else:
        weight, bias = start
        first = torch.cat([weight.T, bias[:, None]], dim=1).double().numpy().ravel()
    optimum = minimize(
        loss_and_gradient, first, jac=True, method="L-BFGS-B", options=MOST_ITERATIONS
    )
    weight, bias = unpacked(optimum.x)
    return weight.T, bias


def paper_probe(
    x: np.ndarray,
    y: np.ndarray,
    epochs: int = PAPER_PROBE["epochs"],
    device: str | torch.device = "cpu",
) -> Probe:
    """The paper's linear probe of features [M, D] with labels [M]: LARS on unscaled features.

    VI-SimSiam 2022, App. 9.1: learning rate 1.6, momentum 0.9, weight decay 0, batch 512, cosine,
    200 epochs. LARS is You et al. 2017, Algorithm 1. For each of the two tensors w with gradient g:
    ``v <- 0.9 v + λ g``, ``w <- w - η_t v``, with λ = 0.001 ‖w‖/‖g‖ (1 where either norm is zero)
    and η_t = η · ½(1 + cos(π t/T)).

    Deviation: η_t is outside of the velocity, as in timm; You et al. have it inside. We take the
    last epoch, the paper the best one by validation. Images are not augmented, as features are
    computed once.

    Example:
        >>> probe = paper_probe(features, animals, epochs=2)
        >>> probe.probabilities(features).shape
        (40, 2)
    """
    from timm.optim import Lars  # slow to import

    x, classes, y = _labelled(x, y)
    features = torch.as_tensor(x, dtype=torch.float32, device=device)
    labels = torch.as_tensor(y, device=device)
    dimension = features.shape[1]
    batch_size = PAPER_PROBE["batch_size"]
    generator = torch.Generator().manual_seed(0)
    classifier = nn.Linear(dimension, len(classes), device=device)
    with torch.no_grad():
        first = 0.01 * torch.randn(dimension, len(classes), generator=generator)
        classifier.weight.copy_(first.T)
        classifier.bias.zero_()
    optimizer = Lars(
        classifier.parameters(),
        lr=PAPER_PROBE["learning_rate"],
        momentum=PAPER_PROBE["momentum"],
        trust_coeff=1e-3,
        always_adapt=True,
        eps=0,
    )
    steps = epochs * -(-len(y) // batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        order = torch.randperm(len(y), generator=generator).to(device)
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(classifier(features[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return Probe(
        classes=classes,
        mean=np.zeros(dimension, np.float32),
        scale=np.ones(dimension, np.float32),
        weight=classifier.weight.T.detach().cpu().numpy(),
        bias=classifier.bias.detach().cpu().numpy(),
    )


# ---------------------------------------------------------------------------- Mahalanobis distance
def fitted_gaussian(train_x: np.ndarray):
    """One Gaussian of training features [M, D], without labels, as scikit-learn's LedoitWolf.

    It has location_, precision_ and mahalanobis. The covariance is shrunk (Ledoit & Wolf 2004),
    which makes it invertible for any M.
    """
    from sklearn.covariance import LedoitWolf  # slow to import

    return LedoitWolf().fit(checked_features(train_x, "train_x").astype(np.float64))


def mahalanobis_distance(train_x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The squared Mahalanobis distance x [N, D] -> [N] from the Gaussian of train_x [M, D].

    Lee et al. 2018, Eq. 2, with one class.

    Example:
        >>> distance = mahalanobis_distance(np.random.default_rng(0).normal(size=(50, 3)))
        >>> distance(np.zeros((2, 3))).shape
        (2,)
    """
    train_x = checked_features(train_x, "train_x")
    gaussian = fitted_gaussian(train_x)

    def distance(x: np.ndarray) -> np.ndarray:
        return gaussian.mahalanobis(checked_features(x, "x", train_x).astype(np.float64))

    return distance
