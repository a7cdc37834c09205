"""The evaluation suite, part by part: what is measured of which runs while their weights are there.

Every run has the part "suite" (lib.evaluation.measure). The parts listed here belong to a paper's
tables and figures, and are measured of the runs that these are about. Each writes metrics rows
under its name, and some store an array for each image. lib.evaluation.results reads them.

Example:
    >>> from lib.evaluation import parts
    >>> parts.overview("standard")
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
from tqdm.auto import tqdm

from lib import methods
from lib.data import cifar10h, sources
from lib.evaluation import (
    finetune,
    generation,
    image_scores,
    kappa,
    measure,
    people,
    results,
    salience,
    shift,
    style,
    theory,
)
from lib.evaluation.measure import Run
from lib.runs import settings, store
from lib.training import TrainingStopped

PAPERS = tuple(settings.PAPERS)
VI_SIMSIAM = ("vs1", "vs2")
SIMSIAM_PAIR = ("vi_simsiam", "vi_simsiam_2022", "simsiam")


@dataclass(frozen=True)
class Part:
    """One part of the suite.

    papers: whose tables and figures it belongs to. runs: the settings of the runs that it is
    measured of. measure: from a run to metrics rows. from_scores: whether it reads stored scores
    only, so that a run needs no weights.
    """

    name: str
    papers: tuple[str, ...]
    runs: list[dict]
    measure: Callable[[Run], list[dict]]
    from_scores: bool = False


# ----------------------------------------------------------------------------------- what there is
def parts(profile: str) -> list[Part]:
    """All parts of a profile, in the order in which they are measured."""
    return [
        *_parts_of_vi_simsiam(profile),
        *_parts_of_simvae(profile),
        *_parts_of_prosmin(profile),
        *_parts_of_vje(profile),
        _agreement_with_people(profile),
    ]


def _parts_of_vi_simsiam(profile: str) -> list[Part]:
    main = _measured(profile, settings.PROTOCOL, "datasets")
    trained = [run for run in main if run["method"] != "raw_pixels"]
    with_kappa = [run for run in main if "concentration_from" in run]
    on_resnets = [run for run in with_kappa if run["backbone"] == "resnet18"]
    in_2023 = [run for run in results.compared_runs(profile) if run["method"] == "vi_simsiam"]
    pair = [run for run in results.compared_runs(profile) if run["method"] in SIMSIAM_PAIR]
    return [
        Part("paper_probe", VI_SIMSIAM, trained, measure.measure_paper_probe),
        Part("kappa", VI_SIMSIAM, with_kappa, kappa.measure_distribution),
        Part("augmentation", VI_SIMSIAM, with_kappa, kappa.measure_augmentation),
        Part(salience.PART, VI_SIMSIAM, on_resnets, salience.measure_object_crops),
        Part("selection", ("vs2",), in_2023, kappa.measure_selection),
        Part("cosine", VI_SIMSIAM, pair, kappa.measure_cosine),
        Part("few_labels", ("vs1",), _with_few_labels(profile), finetune.measure_few_labels),
    ]


def _with_few_labels(profile: str) -> list[dict]:
    """SimSiam, VI-SimSiam and the untrained network: usual set and the paper's, longest run."""
    usual = settings.profile_settings(profile)["dataset"]
    longest: dict[tuple[str, str], int] = {}
    candidates = []
    for run in _measured(profile, settings.PROTOCOL, "datasets"):
        is_own_set = run["dataset"].startswith(("imagenette", "imagewoof"))
        if run["method"] not in (*SIMSIAM_PAIR, "random"):
            continue
        if not settings.is_usual_at_any_length(run):
            continue
        if run["dataset"] == usual or is_own_set:
            candidates.append(run)
            key = run["method"], run["dataset"]
            longest[key] = max(run["epochs"], longest.get(key, 0))
    return [run for run in candidates if run["epochs"] == longest[run["method"], run["dataset"]]]


def _parts_of_simvae(profile: str) -> list[Part]:
    simvae = ("simvae",)
    compared = results.compared_runs(profile)
    generative = [run for run in compared if run["method"] in methods.GENERATIVE]
    simvae_runs = [*_measured(profile, "simvae"), *generative]
    networks = [run for run in simvae_runs if run["method"] != "raw_pixels"]
    more = _measured(profile, "views", "ablations")
    pictures = [run for run in networks if not run["dataset"].startswith("styled_")]
    without_part = {*methods.GENERATIVE, "raw_pixels"}  # those that ``measure_content`` measures
    others = [run for run in compared if run["method"] not in without_part]
    factors = []
    for name, runs in _runs_by_factor_set(profile, simvae_runs, more).items():
        measure_factors = partial(style.measure_factors, dataset=name)
        factors.append(Part(f"{results.FACTORS}-{name}", simvae, runs, measure_factors))
    return [
        Part("content", simvae, networks + more, style.measure_content),
        *factors,
        Part("generation", simvae, pictures, partial(_measure_generation, profile)),
        Part("variance_within", simvae, others, style.measure_variance_within),
    ]


def _runs_by_factor_set(
    profile: str, simvae_runs: list[dict], more: list[dict]
) -> dict[str, list[dict]]:
    """The runs that are probed for the style factors of each set: those that are trained on it.

    A set of the profile's ``factor_sets`` that nothing is trained on is probed in the networks of
    its plain images; each of these sets also in the compared runs.
    """
    by_set: dict[str, list[dict]] = {}
    for run in simvae_runs + more:
        if sources.has_styles(run["dataset"]):
            by_set.setdefault(run["dataset"], []).append(run)
    for name in settings.profile_settings(profile)["factor_sets"]:
        if name not in by_set:
            by_set[name] = [run for run in simvae_runs if name == f"styled_{run['dataset']}"]
        by_set[name] += results.compared_runs(profile)
    return by_set


def _measure_generation(profile: str, run: Run) -> list[dict]:
    """With SimSiam's network of the same data, seed 0, as the judge of generated images."""
    for other in settings.runs(profile):
        is_simsiam = other["method"] == "simsiam" and other["seed"] == 0
        if is_simsiam and other["dataset"] == run.settings["dataset"] and settings.is_usual(other):
            judge = Run(other)
            return generation.measure_generation(run, judge if judge.is_available else None)
    return generation.measure_generation(run, None)


def _parts_of_prosmin(profile: str) -> list[Part]:
    prosmin = ("prosmin",)
    compared = results.compared_runs(profile)
    listed = results.compared_runs(profile, "prosmin")
    networks = [run for run in listed if run["method"] != "raw_pixels"]
    several_scores = [run for run in listed if "trade_off" in run]
    transfer = []
    for name in settings.profile_settings(profile)["transfer_sets"]:
        measure_transfer = partial(finetune.measure_transfer, dataset=name)
        transfer.append(Part(f"{finetune.TRANSFER}-{name}", prosmin, networks, measure_transfer))
    return [
        Part("corruptions", prosmin, compared, shift.measure_corruptions),
        Part("own_scores", prosmin, several_scores, shift.measure_own_scores),
        Part(finetune.FEW_LABELS, prosmin, networks, finetune.measure_few_labels),
        *transfer,
    ]


def _parts_of_vje(profile: str) -> list[Part]:
    compared = _measured(profile, settings.PROTOCOL, paper="vje")
    vje = [run for run in compared if run["method"] == "vje"]
    return [
        Part("own_scores", ("vje",), vje, shift.measure_own_scores),
        Part("variances", ("vje",), vje, theory.measure_variances),
    ]


def _agreement_with_people(profile: str) -> Part:
    compared = results.compared_runs(profile)
    networks = [run for run in compared if run["method"] != "raw_pixels"]
    runs = [run for run in networks if run["dataset"] == cifar10h.CIFAR10]
    return Part(people.PEOPLE, VI_SIMSIAM, runs, people.measure_agreement, from_scores=True)


def _measured(profile: str, *groups: str, paper: str = "all") -> list[dict]:
    runs = []
    for group in groups:
        runs += results.measured(settings.runs(profile, paper, group))
    return runs


# ---------------------------------------------------------------------------- measuring and reading
def measure_parts(profile: str, papers: Sequence[str] = PAPERS) -> list[str]:
    """Measure what is not stored yet of every run whose network is here.

    papers: only the parts that belong to one of them. Returns why something was left out, each
    reason once: a data set or a network that is not available, a fine-tuning that diverges.
    """
    left_out = []
    try:
        image_scores.measure_images(profile)
    except FileNotFoundError as error:
        left_out.append(f"{image_scores.PART}: {error}")
    chosen = [part for part in parts(profile) if not set(papers).isdisjoint(part.papers)]
    for part in tqdm(chosen, desc="parts of the suite", unit="part"):
        for run in tqdm(list(_measurable(part)), desc=part.name, leave=False):
            if measure.is_measured(run, part.name):
                continue
            try:
                run.write_metrics(part.measure(run), part.name)
            except (FileNotFoundError, TrainingStopped) as error:
                left_out.append(f"{part.name}: {error}")
    return list(dict.fromkeys(left_out))


def _measurable(part: Part) -> Iterator[Run]:
    """The runs of a part whose network is here, or, of stored scores, that it does not fit yet.

    The data of a run are read when it is given, so that nothing is read where nothing is to do.
    """
    if not part.from_scores:
        yield from measure.available(part.runs)
        return
    for run in part.runs:
        rows = store.read_metrics(run["profile"], "*", settings.run_name(run))
        suite = rows[rows.part == store.SUITE]
        if set(rows[rows.part == part.name].run_hash) != set(suite.run_hash):
            yield Run(run)


def overview(profile: str) -> pd.DataFrame:
    """One row a part: papers, how many runs it is measured of, and of how many it is stored."""
    rows = []
    for part in parts(profile):
        stored = [
            run
            for run in part.runs
            if store.has_metrics(profile, part.name, settings.run_name(run))
        ]
        row = {"part": part.name, "papers": " ".join(part.papers)}
        rows.append(row | {"runs": len(part.runs), "stored": len(stored)})
    return pd.DataFrame(rows)
