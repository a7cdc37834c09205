"""The claims ledger on small stored results: what a query finds, what a rule says of it, and what that makes of a claim."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib import figures as plotting
from lib.claims import differences as comparisons
from lib.claims import ledger as claims
from lib.claims.ledger import (
    CONTRADICTED,
    NOT_REPRODUCED,
    NOT_TESTABLE,
    NOT_TESTED,
    REPRODUCED,
    SAME,
    Found,
)
from lib.evaluation import measure as protocol
from lib.pipeline import jobs as reproduction
from lib.runs import settings as resolution
from lib.runs import store as artifacts

CLAIM = {"paper": "vs1", "where": "Table 1", "statement": "it holds", "kind": "number"}
OWN = {
    "data": "imagenet100",
    "epochs": 40,
    "family": "resnet",
    "query": {"method": "vi_simsiam"},
    "rule": {"above": 0},
}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path)
    table = pd.DataFrame(
        {
            "dataset": ["a", "a", "b"],
            "epochs": [5, 40, 5],
            "points": [1.0, -2.0, 3.0],
            "ci_low": [0.5, -3.0, np.nan],
            "ci_high": [1.5, -1.0, np.nan],
            "seeds": 3,
            "n": 100,
        }
    )
    artifacts.write_csv(tmp_path / "standard" / "tables" / "20_points.csv", table)
    for seed, (value, low, high) in enumerate([(0.6, 0.55, 0.65), (0.7, 0.66, 0.74)]):
        row = {
            "method": "vi_simsiam",
            "metric": "auroc",
            "condition": "clean",
            "value": value,
            "ci_low": low,
            "ci_high": high,
            "n": 50,
            "seed": seed,
            "commit": "abc",
        }
        name = resolution.run_name(resolution.resolve("vi_simsiam", "standard", seed=seed))
        artifacts.write_metrics("standard", "32_x", name, [row])
        artifacts.write_metrics(
            "standard", "32_x", name.replace("e40", "e5"), [row | {"value": 0.1}]
        )
    return tmp_path


# ---------------------------------------------------------------------------------------------------------------- the file
def test_every_claim_can_be_judged():
    found = claims.claims()
    for prefix, count in (("VS1", 12), ("VS2", 14), ("SV", 24), ("PM", 15), ("VJ", 6)):
        assert {f"{prefix}-{number}" for number in range(1, count + 1)} <= set(found)
    for name, claim in found.items():
        prefix = {"vs1": "VS1-", "vs2": "VS2-", "simvae": "SV-", "prosmin": "PM-", "vje": "VJ-"}[
            claim["paper"]
        ]
        assert claim["paper"] in reproduction.PAPERS and name.startswith(prefix)
        assert claim["parts"] or claim["kind"] == "recipe", name
        for part in claim["parts"]:
            if "query" in part:
                method = part["query"].get("method", "vi_simsiam")
                assert method.removesuffix("_latent") in plotting.METHODS
            if claim["kind"] != "recipe" and not part.keys().isdisjoint(("published", "query")):
                assert part.get("unit") or claim.get("unit"), (
                    f"{name}, {part['name']}: of what unit?"
                )
            if "rule" in part and "published" in part and claims.BEYOND not in part["name"]:
                # The published number itself lies where the rule says: a rule is a direction that the paper's own number has.
                number = claims.published(part)
                assert claims.side(part, Found(number, number, number, 1, 3, "")) == 1, (
                    name,
                    part["name"],
                )


def test_every_claim_says_what_its_full_test_takes():
    found = claims.claims()
    for name, claim in found.items():
        assert all("recipe" in part for part in claim["parts"]) or claim["needs"], name
        assert set(re.findall(r"\bas ([A-Z]+\d?-\d+)", claim.get("needs", ""))) <= set(found), name
        assert set(claim.get("methods", ())) <= set(plotting.METHODS), name
    assert (
        claims.takes("SV-2") == f"as SV-1 ({claims.takes('SV-1')})" and claims.takes("SV-16") == ""
    )


def test_notebooks_and_figures_name_only_claims_that_there_are():
    for path in reproduction.NOTEBOOKS.glob("*.ipynb"):
        assert set(re.findall(r"(?:VS[12]|SV|PM|VJ)-\d+", path.read_text())) <= set(
            claims.claims()
        ), path.stem
    for path in sorted((artifacts.ROOT / "results").glob("*/figures/*.json")):
        assert set(artifacts.read_json(path)["claims"]) <= set(claims.claims()), path


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"name": "p", "query": {"table": "t"}}, "query and its rule"),
        ({"name": "p"}, "query and its rule, or why"),
        ({"name": "p", "query": {}, "rule": {"around": 1}}, "not one of above, below"),
        ({"name": "p", "query": {}, "rule": {"above": 1, "below": 2}}, "not one of above, below"),
        (
            {"name": "p", "query": {}, "rule": {"above": 1}, "never": "no names"},
            "why there can never be",
        ),
        (
            {"name": "p", "why": "no data", "familly": "mlp"},
            "Claim X-1, part 'p': nothing reads familly; it may say .*family",
        ),
        ({"why": "no data"}, "Claim X-1, part None does not say its name"),
        (
            {"name": "p", "query": {"papr": {"epochs": 1}}, "rule": {"above": 1}},
            "asks something else in .'papr'., which are no profiles",
        ),
    ],
)
def test_claims_that_cannot_be_judged_are_refused(monkeypatch, part, message):
    monkeypatch.setattr(resolution, "read", lambda name, *_: {"X-1": CLAIM | {"parts": [part]}})
    with pytest.raises(ValueError, match=message):
        claims.claims.__wrapped__()


def test_a_claim_of_unknown_words_or_without_its_place_is_refused(monkeypatch):
    for claim, message in (
        (CLAIM | {"unlke": "other views"}, "Claim X-1: nothing reads unlke; it may say .*unlike"),
        ({"kind": "number"}, "paper, where, statement"),
        (CLAIM | {"kind": "rumour"}, "has the kind 'rumour'"),
    ):
        monkeypatch.setattr(resolution, "read", lambda name, *_, claim=claim: {"X-1": claim})
        with pytest.raises(ValueError, match=message):
            claims.claims.__wrapped__()


def test_parts_of_one_name_are_refused(monkeypatch):
    part = {"name": "p", "why": "no data"}
    monkeypatch.setattr(
        resolution, "read", lambda name, *_: {"X-1": CLAIM | {"parts": [part, part]}}
    )
    with pytest.raises(ValueError, match="several parts called p"):
        claims.claims.__wrapped__()


def test_published_numbers_are_cells_differences_or_ratios():
    assert claims.published({"published": 0.72}) == 0.72 and np.isnan(claims.published({}))
    assert (
        claims.published({"published": {"of": 5, "minus": 2}}) == 3
        and claims.published({"published": {"of": 6, "over": 2}}) == 3
    )


# ---------------------------------------------------------------------------------------------------------------- queries
def test_a_query_finds_one_row_of_a_table(stored):
    found = claims.find(
        {"table": "20_points", "value": "points", "dataset": "a", "epochs": 5}, "standard"
    )
    assert found[:5] == (1.0, 0.5, 1.5, 100, 3)
    assert (
        claims.find({"table": "20_points", "value": "points", "dataset": "c"}, "standard") is None
    )
    assert claims.find({"table": "21_none", "value": "points"}, "standard") is None
    with pytest.raises(ValueError, match="2 rows of 20_points.csv answer"):
        claims.find({"table": "20_points", "value": "points", "dataset": "a"}, "standard")
    with pytest.raises(ValueError, match="no columns"):
        claims.find({"table": "20_points", "value": "points", "data": "a"}, "standard")


def test_a_query_finds_the_metrics_of_all_seeds_of_the_protocol(stored):
    found = claims.find({"notebook": "32_x", "method": "vi_simsiam", "metric": "auroc"}, "standard")
    assert found.value == pytest.approx(0.65) and (
        found.low,
        found.high,
        found.seeds,
        found.commit,
    ) == (0.55, 0.74, 2, "abc")
    assert (found.t_low, found.t_high) == pytest.approx(
        stats.t.interval(0.95, 1, 0.65, 0.05)
    )  # of 0.6 and 0.7
    assert (
        claims.find({"notebook": "32_x", "method": "vi_simsiam", "metric": "aurc"}, "standard")
        is None
    )
    assert (
        claims.find({"notebook": "32_x", "method": "simsiam", "metric": "auroc"}, "standard")
        is None
    )


# ---------------------------------------------------------------------------------------------------------------- verdicts
@pytest.mark.parametrize(
    ("rule", "low", "high", "expected"),
    [
        ({"above": 0}, 0.1, 0.3, 1),
        ({"above": 0}, -0.1, 0.3, 0),
        ({"above": 0}, -0.3, -0.1, -1),
        ({"above": 0.5}, 0.4, 0.45, -1),
        ({"below": 0}, -0.3, -0.1, 1),
        ({"below": 0}, 0.1, 0.3, -1),
        ({"below": 0}, -0.1, 0.1, 0),
        ({"within": 2}, 48.1, 51.9, 1),
        ({"within": 2}, 52.1, 54.0, -1),
        ({"within": 2}, 40.0, 47.9, -1),
        ({"within": 2}, 49.0, 52.1, 0),
        ({"within": 2}, 47.9, 51.0, 0),
        ({"within": 2}, 40.0, 60.0, 0),
        ({"within": 2}, np.nan, np.nan, 0),
        ({"above": 0}, np.nan, np.nan, 0),
    ],
)
def test_sides(rule, low, high, expected):
    """A level claimed within two of a published 50: both a much higher and a much lower one lie on the other side."""
    assert (
        claims.side({"rule": rule, "published": 50.0}, Found(0.0, low, high, 10, 3, "")) == expected
    )


@pytest.mark.parametrize(
    ("kind", "change", "low", "high", "seeds", "expected"),
    [
        ("number", {"published": 0.2}, 0.1, 0.3, 3, REPRODUCED),
        ("number", {"published": 0.4}, 0.1, 0.3, 3, CONTRADICTED),
        ("number", {"published": 0.4}, np.nan, np.nan, 3, NOT_TESTED),
        # 97.5 % quantile of Student's t with two degrees of freedom: 4.303
        ("number", {"published": 0.4, "error": 0.024}, 0.1, 0.3, 3, SAME),
        (
            "number",
            {"published": 0.4, "error": 0.024, "rule": {"above": 0.2}},
            0.1,
            0.3,
            3,
            NOT_REPRODUCED,
        ),
        ("number", {"published": 0.4, "error": 0.023}, 0.1, 0.3, 3, CONTRADICTED),
        ("number", {"published": 0.0, "error": 0.024}, 0.1, 0.3, 3, SAME),
        # Printed digits: 0.3 may have been 0.349, 0.4 - 0.1 a difference of 0.399, "0.0" an error of 0.049.
        ("number", {"published": 0.3}, 0.1, 0.26, 3, REPRODUCED),
        ("number", {"published": 0.3}, 0.1, 0.24, 3, CONTRADICTED),
        ("number", {"published": {"of": 0.4, "minus": 0.1}}, 0.1, 0.21, 3, REPRODUCED),
        ("number", {"published": 0.5, "error": 0.0}, 0.1, 0.3, 3, SAME),
        # An interval on the other side of the bound reproduces nothing, however wide the printed digits are.
        ("number", {"published": 0.0}, -0.04, -0.02, 3, NOT_REPRODUCED),
        # A difference of unknown sign reproduces none, though the published one lies in the interval; of a level there is no sign.
        ("number", {"published": {"of": 0.4, "minus": 0.2}}, -0.1, 0.3, 3, NOT_REPRODUCED),
        ("number", {"published": 0.2, "rule": {"within": 0.05}}, 0.1, 0.3, 3, REPRODUCED),
        (
            "number",
            {"published": 0.2, "rule": {"within": 0.05}, "data": "imagenet"},
            0.3,
            0.4,
            3,
            NOT_REPRODUCED,
        ),
        (
            "number",
            {"published": 0.2, "rule": {"within": 0.05}, "data": "imagenet"},
            0.18,
            0.22,
            3,
            SAME,
        ),
        ("number", {"published": 0.6, "error": 0.0}, 0.1, 0.3, 3, CONTRADICTED),
        ("number", {"published": 0.2, "error": 0.024}, 0.1, 0.3, 3, REPRODUCED),
        ("direction", {}, 0.1, 0.3, 3, REPRODUCED),
        ("direction", {}, -0.1, 0.3, 3, NOT_REPRODUCED),
        ("direction", {}, -0.3, -0.1, 3, CONTRADICTED),
        # What is not the paper's own experiment is at most a direction, and never a contradiction.
        ("number", {"published": 0.2, "data": "imagenet"}, 0.1, 0.3, 3, SAME),
        ("number", {"published": 0.2, "data": "imagenet"}, -0.3, -0.1, 3, NOT_REPRODUCED),
        ("number", {"published": 0.2}, 0.1, 0.3, 2, SAME),
        ("number", {"published": 0.2, "epochs": 500}, 0.1, 0.3, 3, SAME),
        ("direction", {"family": "vit"}, -0.3, -0.1, 3, NOT_REPRODUCED),
        ("direction", {"unlike": "its recipe is not printed"}, 0.1, 0.3, 3, SAME),
        ("direction", {"unlike": "its recipe is not printed"}, -0.3, -0.1, 3, NOT_REPRODUCED),
        ("direction", {"data": ["imagenet", "imagenet100"]}, 0.1, 0.3, 3, REPRODUCED),
        ("direction", {"data": ["imagenet", "cifar10"]}, 0.1, 0.3, 3, SAME),
    ],
)
def test_verdicts(monkeypatch, kind, change, low, high, seeds, expected):
    resolved = {"dataset": "imagenet100", "epochs": 40, "backbone": "resnet18"}
    monkeypatch.setattr(resolution, "resolve", lambda *_, **__: resolved)
    monkeypatch.setattr(claims, "_unsearched", lambda profile, results: ())
    verdict, reason = claims.decide(
        OWN | change, kind, Found(0.0, low, high, 10, seeds, ""), "standard"
    )
    assert verdict == expected and reason


def test_an_interval_that_is_missing_is_not_one_that_includes_the_bound():
    verdict, reason = claims.decide(
        OWN | {"data": "imagenet"}, "direction", Found(0.2, np.nan, np.nan, 10, 1, ""), "standard"
    )
    assert verdict == NOT_TESTED and reason.startswith("no interval to judge our number by")


def test_a_reason_names_the_claimed_side_and_what_seeds_alone_would_say():
    def reason(**over_seeds):
        return claims.decide(
            OWN | {"data": "imagenet"},
            "direction",
            Found(0.2, 0.1, 0.3, 10, 3, "", **over_seeds),
            "standard",
        )[1]

    assert (
        "on the claimed side (claimed: above 0), 3 seeds;" in reason()
        and "Student" not in reason(t_low=0.05, t_high=0.35)
    )
    assert "3 seeds (Student's t over them alone includes the bound: -0.20 to +0.60);" in reason(
        t_low=-0.2, t_high=0.6
    )
    level = OWN | {"data": "imagenet", "published": 0.2, "rule": {"within": 0.3}}
    assert (
        "(claimed: within 0.3 of 0.2)"
        in claims.decide(level, "number", Found(0.2, 0.1, 0.3, 10, 3, ""), "standard")[1]
    )


def test_a_difference_smaller_than_that_of_a_repetition_reproduces_nothing(monkeypatch):
    monkeypatch.setattr(
        resolution,
        "resolve",
        lambda *_, **__: {"dataset": "imagenet100", "epochs": 50, "backbone": "resnet18"},
    )
    monkeypatch.setattr(claims, "_unsearched", lambda profile, results: ())
    found = Found(-0.2, -0.3, -0.1, 10, 3, "")
    below = OWN | {"rule": {"below": 0}}
    assert (
        claims.decide(below, "direction", found._replace(repetition=0.19), "standard")[0]
        == REPRODUCED
    )
    verdict, reason = claims.decide(below, "direction", found._replace(repetition=0.21), "standard")
    assert verdict == SAME and reason.endswith("another precision or seed may move one run by more")


def test_what_a_part_has_unlike_is_added_to_what_its_claim_has(monkeypatch):
    parts = [{"name": "p", "why": "no data", "unlike": "one seed"}, {"name": "q", "why": "no data"}]
    monkeypatch.setattr(
        resolution,
        "read",
        lambda name, *_: {"X-1": CLAIM | {"unlike": "other views", "parts": parts}},
    )
    assert [part["unlike"] for part in claims.claims.__wrapped__()["X-1"]["parts"]] == [
        "other views, one seed",
        "other views",
    ]


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        (98.4, 0.05),
        (0.029, 0.0005),
        (90, 0.5),
        ({"of": 90.7, "minus": 88.25}, 0.055),
        ({"of": 2.0, "over": 4.0}, 0.5 * (0.025 + 0.0125)),
    ],
)
def test_printed_digits(printed, expected):
    assert claims.rounding({"published": printed}) == pytest.approx(expected, rel=1e-4)


def test_zeros_at_the_end_of_a_printed_number_are_digits():
    parts = {
        (name, part["name"]): part
        for name, claim in claims.claims().items()
        for part in claim["parts"]
    }
    assert claims.rounding(parts["PM-2", "NLL, ProSMin minus DINO, ViT"]) == pytest.approx(
        0.001
    )  # 0.900 minus 0.919
    assert claims.rounding(parts["SV-1", "MNIST: β-VAE"]) == pytest.approx(0.05)  # 98.0
    assert claims.rounding(parts["VS1-3", "ImageNette over DTD"]) == pytest.approx(
        11527 / 3522 * (0.5 / 11527 + 0.5 / 3522)
    )
    with_a_decimal = [
        part.get("published")
        for (name, _), part in parts.items()
        if name in ("SV-1", "SV-2", "SV-3", "SV-9", "SV-10")
    ]
    assert len(with_a_decimal) > 50 and not [
        number for number in with_a_decimal if isinstance(number, int)
    ]


def test_half_the_epochs_are_enough(monkeypatch):
    monkeypatch.setattr(
        resolution,
        "resolve",
        lambda *_, **__: {"dataset": "imagenet100", "epochs": 50, "backbone": "resnet18"},
    )
    monkeypatch.setattr(claims, "_unsearched", lambda profile, results: ())
    found = Found(0.2, 0.1, 0.3, 10, 3, "")
    assert claims.decide(OWN | {"epochs": 100}, "direction", found, "standard")[0] == REPRODUCED
    assert claims.decide(OWN | {"epochs": 101}, "direction", found, "standard")[0] == SAME


def test_a_learning_rate_that_no_search_chose_is_named(monkeypatch):
    run = {"method": "simsiam", "dataset": "imagenet100", "epochs": 50, "backbone": "resnet18"}
    monkeypatch.setattr(claims, "_by_name", lambda profile: {"simsiam-x": run})
    monkeypatch.setattr(claims, "_unsearched", lambda profile, results: ("simsiam",))
    found = Found(0.2, 0.1, 0.3, 10, 3, "", runs=("simsiam-x",))
    verdict, reason = claims.decide(OWN, "direction", found, "standard")
    assert (
        verdict == SAME and "a learning rate of simsiam that no whole search has chosen" in reason
    )
    monkeypatch.setattr(claims, "_unsearched", lambda profile, results: ("vje",))
    assert claims.decide(OWN, "direction", found, "standard")[0] == REPRODUCED
    compared = OWN | {"query": OWN["query"] | {"minus": "vje"}}  # a table may name no runs
    assert (
        "a learning rate of vje that no"
        in claims.decide(compared, "direction", found._replace(runs=()), "standard")[1]
    )


def test_what_cannot_be_said_is_not_tested(monkeypatch):
    found = Found(0.2, 0.1, 0.3, 10, 3, "")
    verdict, reason = claims.decide(OWN, "direction", None, "standard")
    assert (
        verdict == NOT_TESTED
        and reason == "budget: no such run in profile standard, or none that can be judged"
    )
    assert claims.decide(OWN | {"lacks": "a network"}, "direction", None, "standard") == (
        NOT_TESTED,
        "budget: a network",
    )
    assert claims.decide(OWN, "direction", found, "quick") == (
        NOT_TESTED,
        "profile: quick is an illustration",
    )
    monkeypatch.setattr(claims, "is_trained", lambda method, profile: False)
    verdict, reason = claims.decide(OWN | {"about": "kappa"}, "direction", found, "standard")
    assert verdict == NOT_TESTED and reason.startswith("under-trained")
    monkeypatch.setattr(claims, "is_trained", lambda method, profile: method == "vi_simsiam")
    verdict, reason = claims.decide(
        OWN | {"about": "kappa", "methods": ["dino"]}, "direction", found, "standard"
    )
    assert verdict == NOT_TESTED and "k-NN on dino does" in reason
    assert claims.decide({"never": "it is in a figure alone"}, "direction", None, "standard") == (
        NOT_TESTABLE,
        "it is in a figure alone",
    )


def test_a_difference_between_two_runs_that_learned_nothing_tests_nothing(stored):
    first, second = ("prosmin-a", "dino-a"), ("prosmin-b", "dino-b")
    common = {"difference": -4.0, "ci_low": -5.0, "ci_high": -3.0, "n": 100, "seeds": 1}
    rows = [
        common | {"comparison": name, "first": a, "second": b, "not_above_untrained": weak}
        for name, (a, b), weak in (
            ("both", first, " ".join(first)),
            ("one", second, second[1]),
            ("none", second, ""),
        )
    ]
    artifacts.write_csv(
        artifacts.results_dir("standard") / "tables" / "52_effects.csv", pd.DataFrame(rows)
    )

    def verdict(name):
        query = {"table": "52_effects", "value": "difference", "comparison": name}
        return claims.decide(
            OWN | {"query": query, "data": "imagenet"},
            "direction",
            claims.find(query, "standard"),
            "standard",
        )

    assert verdict("both")[0] == NOT_TESTED and "neither of the two runs" in verdict("both")[1]
    assert verdict("one")[0] == verdict("none")[0] == NOT_REPRODUCED


def test_published_numbers_in_words():
    assert claims.printed("VS2-3").endswith(
        " of the linear classifier), published: AUROC of κ (0.72)."
    )
    both = claims.printed(
        "SV-6", "VS2-6"
    )  # cells that are compared, and a part without a number of the paper left out
    assert (
        "SimVAE minus VAE (51.8 against 30.3 %); " in both
        and "Pearson's r" in both
        and "Spearman" not in both
    )
    errors = claims.printed(
        "SV-12"
    )  # a last zero is a digit, and the paper prints what is said against it as well
    assert (
        "MNIST, error: SimVAE minus CR-VAE (0.026 against 0.030)" in errors
        and "not in the paper" not in errors
    )


def test_no_published_number_is_typed_into_a_notebook_or_code():
    """Numbers of three digits and a point, which hardly stand there by chance; 0.996 and the like are settings as well."""
    cells = [
        cell
        for claim in claims.claims().values()
        for part in claim["parts"]
        if "recipe" not in part
        for cell in _cells(part)
    ]
    texts = {
        cell.text
        for cell in cells
        if "." in cell.text and len(cell.text.replace(".", "").lstrip("0")) > 2
    }
    assert len(texts) > 100
    typed = re.compile(rf"(?<![\d.])(?:{'|'.join(map(re.escape, sorted(texts)))})(?![\d.]*\d)")
    root = claims.artifacts.ROOT
    sources = {
        path.name: path.read_text()
        for path in (*root.glob("lib/*.py"), *root.glob("lib/methods/*.py"))
    }
    for path in root.glob("notebooks/*.ipynb"):
        sources[path.name] = "\n".join(
            "".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]
        )
    assert {name: found for name, text in sources.items() if (found := typed.findall(text))} == {}


def _cells(part):
    published = part.get("published", {})
    return [
        cell
        for cell in (published.values() if isinstance(published, dict) else [published])
        if isinstance(cell, claims.Printed)
    ]


def test_what_the_interval_of_one_seed_is_over_is_said():
    found = Found(0.2, 0.1, 0.3, 10, 1, "")
    for change, words in (
        ({}, "its interval is over images alone"),
        ({"over": "classes"}, "its interval is over classes"),
    ):
        assert (
            words
            in claims.decide(OWN | {"data": "imagenet"} | change, "direction", found, "standard")[1]
        )
    cost = OWN | {"about": "cost", "data": "imagenet"}
    for low, words in ((0.1, "5 timings"), (0.3, "counted")):
        assert (
            words in claims.decide(cost, "direction", Found(0.3, low, 0.3, 5, 1, ""), "standard")[1]
        )
    assert all(
        part.get("over", "").startswith("classes") for part in claims.claims()["VJ-2"]["parts"]
    )


def test_a_method_is_trained_if_every_seed_beats_the_untrained_network_and_raw_pixels(
    stored, monkeypatch
):
    listed = [resolution.resolve("vi_simsiam", "standard", seed=seed) for seed in (0, 1)]
    listed += [resolution.resolve(name, "standard") for name in ("random", "raw_pixels")]
    monkeypatch.setattr(protocol, "compared_runs", lambda profile: listed)

    def store(*shares):
        for run, share in zip(listed, shares, strict=True):
            artifacts.write_scores(
                "standard",
                resolution.run_name(run),
                run["dataset"],
                {"knn_correct": np.arange(500) < 500 * share},
            )

    store(0.6, 0.6, 0.3, 0.4)
    assert claims.is_trained("vi_simsiam", "standard") and not claims.is_trained("dino", "standard")
    for shares in ((0.6, 0.4, 0.3, 0.4), (0.3, 0.6, 0.3, 0.2), (0.6, 0.6, 0.7, 0.4)):
        store(*shares)
        assert not claims.is_trained("vi_simsiam", "standard"), shares


def test_a_ledger_asks_once_whether_a_method_is_trained(monkeypatch):
    asked = []
    monkeypatch.setattr(claims, "find", lambda query, profile: Found(0.2, 0.1, 0.3, 10, 3, ""))
    monkeypatch.setattr(claims, "is_trained", lambda method, profile: asked.append(method) or True)
    claims.ledger("standard")
    assert sorted(asked) == ["dino", "prosmin", "prosmin_vit", "vi_simsiam", "vje"]


def test_theory_needs_no_data():
    part = {"name": "largest error", "about": "theory", "query": {}, "rule": {"at_most": 1e-9}}
    assert (
        claims.decide(part, "number", Found(1e-12, np.nan, np.nan, 1, 1, ""), "smoke")[0]
        == REPRODUCED
    )
    assert (
        claims.decide(part, "number", Found(1e-3, np.nan, np.nan, 1, 1, ""), "smoke")[0]
        == CONTRADICTED
    )
    beyond = part | {"name": "largest error (not in the paper)"}
    assert (
        claims.decide(beyond, "number", Found(1e-3, np.nan, np.nan, 1, 1, ""), "smoke")[0]
        == NOT_REPRODUCED
    )


def test_recipes_are_followed_or_deviate():
    ours = resolution.recipe("vi_simsiam_2022")
    claim = {
        "recipe": "vi_simsiam_2022",
        "published": {"batch_size": ours["batch_size"], "momentum": ours["momentum"]},
    }
    assert claims.decide_recipe(claim)[0] == claims.FOLLOWED
    verdict, reason = claims.decide_recipe(
        claim | {"published": {"batch_size": 4096, "momentum": ours["momentum"]}}
    )
    assert verdict == claims.DEVIATES and reason == "batch_size is 64, not 4096"
    beside = claims.published_settings(
        {"recipe": "views simvae_grey", "published": {"scale": [0.4, 1.0], "flip": 0.5}}
    )
    assert beside.followed.tolist() == [True, False] and beside.ours.tolist() == [[0.4, 1.0], 0.0]
    with pytest.raises(ValueError, match="Unknown recipe 'views simvae_gray'"):
        claims.published_settings({"recipe": "views simvae_gray", "published": {}})


def test_simvaes_networks_are_those_of_its_tables():
    parts = {part["recipe"]: part for part in claims.claims()["SV-20"]["parts"]}
    for recipe in ("networks of SimVAE, mnist", "networks of SimVAE, celeba"):
        assert claims.decide_recipe(parts[recipe]) == (claims.FOLLOWED, "2 settings as published")
    wider = parts["networks of SimVAE, mnist"] | {
        "published": {"encoder": ["500", "500", "1000", "10"]}
    }
    assert claims.decide_recipe(wider)[0] == claims.DEVIATES


def test_the_ledger_has_every_part_and_a_claim_is_as_good_as_its_worst_tested_part(
    stored, monkeypatch
):
    table = claims.ledger("smoke")
    assert list(table.columns) == claims.COLUMNS and set(table.id) == set(claims.claims())
    assert set(table[table.kind != "recipe"].verdict) <= {NOT_TESTED, NOT_TESTABLE, REPRODUCED}
    kappa = table[table.id == "VS2-3"].iloc[0]
    assert (kappa.claimed, kappa.bound) == ("above", 0.5) and table[
        table.kind == "recipe"
    ].claimed.isna().all()
    parts = pd.DataFrame(
        {
            "id": ["A", "A", "A", "B", "C"],
            "part": ["p", "q", "r", "p", "p"],
            "paper": "vs1",
            "where": "",
            "statement": "",
            "kind": "number",
            "seeds": [3.0, 1.0, np.nan, np.nan, np.nan],
            "verdict": [SAME, NOT_REPRODUCED, NOT_TESTED, NOT_TESTED, claims.DEVIATES],
            "reason": ["our interval", f"our interval {claims.INCLUDES}, 1 seed", "", "", ""],
        }
    )
    combined = claims.verdicts(parts).set_index("id")
    assert combined.verdict.to_dict() == {
        "A": NOT_REPRODUCED,
        "B": NOT_TESTED,
        "C": claims.DEVIATES,
    }
    assert combined.parts_tested.to_dict() == {"A": 2, "B": 0, "C": 1}
    assert combined.inconclusive.to_dict() == {"A": True, "B": False, "C": False}
    clear = claims.verdicts(parts.assign(reason="our interval lies on the other side")).set_index(
        "id"
    )
    assert clear.verdict["A"] == NOT_REPRODUCED and not clear.inconclusive["A"]
    assert combined.few_seeds.to_dict() == {"A": True, "B": False, "C": False}
    beyond = claims.verdicts(
        parts.assign(part=["p", "q (not in the paper)", "r", "p", "p"])
    ).set_index("id")
    assert (
        beyond.verdict["A"] == SAME
        and beyond.parts_tested["A"] == 1
        and beyond.parts["A"] == 2
        and not beyond.few_seeds["A"]
    )
    told = ["our interval lies there", f"3 seeds ({claims.UNSETTLED}: -1 to 1)", "", "", ""]
    weak = claims.verdicts(
        parts.assign(verdict=[SAME, SAME, NOT_TESTED, NOT_TESTED, claims.DEVIATES], reason=told)
    ).set_index("id")
    assert (
        weak.unsettled.to_dict() == {"A": True, "B": False, "C": False}
        and not combined.unsettled.any()
    )
    against = [
        f"our interval lies on the other side, 3 seeds ({claims.UNSETTLED}: -1 to 1)",
        parts.reason[1],
        "",
        "",
        "",
    ]
    for reasons, expected in (
        (against, True),
        (against[:1] + ["our interval lies on the other side"] + against[2:], False),
    ):
        failing = parts.assign(
            verdict=[NOT_REPRODUCED, NOT_REPRODUCED, NOT_TESTED, NOT_TESTED, claims.DEVIATES],
            reason=reasons,
        )
        weak = claims.verdicts(failing).set_index("id")
        assert weak.unsettled["A"] == expected and not weak.inconclusive["A"]


# ---------------------------------------------------------------------------------------------------------------- runs
@pytest.mark.parametrize(
    ("query", "others", "named"),
    [
        (
            {"table": "32_auroc", "method": "vi_simsiam"},
            [],
            ["vi_simsiam-cifar10-e40-seed0", "vi_simsiam-cifar10-e40-seed1"],
        ),
        (
            {"notebook": "31_x", "method": "vi_simsiam"},
            [],
            ["vi_simsiam-cifar10-e40-seed0", "vi_simsiam-cifar10-e40-seed1"],
        ),
        (
            {"table": "20_difference", "epochs": 40},
            ["simsiam"],
            ["simsiam-cifar10-e40-seed0", "vi_simsiam-cifar10-e40-seed0"],
        ),
        ({"table": "20_difference", "epochs": 5}, ["simsiam"], ["vi_simsiam-cifar10-e5-seed0"]),
        (
            {"table": "60_differences", "method": "vje", "minus": "simsiam"},
            [],
            ["simsiam-cifar10-e40-seed0"],
        ),
        (
            {"table": "60_one_class", "method": "vje", "minus": "VI-SimSiam, −κ"},
            [],
            ["vje-cifar10_class_0-e10-seed0"],
        ),
        (
            {"table": "61_effects", "method": "vje", "name": "radial_weight 0"},
            [],
            ["vje-cifar10-e10-n10000-radialweight0-seed0", "vje-cifar10-e10-n10000-seed0"],
        ),
        (
            {
                "table": "61_effects",
                "method": "vje",
                "name": "directional_freedom 100000, learning_rate 0.12",
                "against": "same_rate",
            },
            [],
            [
                "vje-cifar10-e10-n10000-lr0.12-directionalfreedom100000-seed0",
                "vje-cifar10-e10-n10000-lr0.12-seed0",
            ],
        ),
        (
            {"table": "41_generation", "method": "simvae", "dataset": "mnist"},
            [],
            ["simvae-mnist-e20-seed0"],
        ),
        (
            {"table": "40_longer", "method": "simvae", "dataset": "mnist", "epochs": 200},
            [],
            ["simvae-mnist-e200-seed0"],
        ),
        ({"table": "43_style"}, [], []),
    ],
)
def test_runs_behind_a_number(stored, query, others, named):
    for name in (
        "vi_simsiam-cifar10-e40-seed0",
        "vi_simsiam-cifar10-e40-seed1",
        "vi_simsiam-cifar10-e5-seed0",
        "simsiam-cifar10-e40-seed0",
        "vje-cifar10_class_0-e10-seed0",
        "vje-cifar10-e10-n10000-seed0",
        "vje-cifar10-e10-n10000-radialweight0-seed0",
        "vje-cifar10-e10-n10000-directionalfreedom1-seed0",
        "vje-cifar10-e10-n10000-lr0.12-seed0",
        "vje-cifar10-e10-n10000-lr0.12-directionalfreedom100000-seed0",
        "simvae-mnist-e20-seed0",
        "simvae-mnist-e200-seed0",
    ):
        artifacts.write_json(artifacts.run_dir("standard", name) / "config.json", {})
    part = {
        "query": query | ({"value": "value"} if "table" in query else {}),
        "rule": {"above": 0},
        "methods": others,
    }
    assert sorted(claims.runs(part, "standard")) == named
    assert (
        claims.runs(part | {"about": "theory"}, "standard")
        == []
        == claims.runs({"recipe": "vi_simsiam"}, "standard")
    )


def test_a_number_of_runs_on_several_sets_says_so():
    found = Found(
        0.2,
        0.1,
        0.3,
        10,
        3,
        "",
        runs=("vi_simsiam-cifar10-e40-seed0", "vi_simsiam-imagenette96-e200-seed0"),
    )
    verdict, reason = claims.decide(OWN | {"data": "cars"}, "direction", found, "standard")
    assert verdict == SAME and "other data (cifar10 and imagenette96, not cars)" in reason


def test_a_number_of_another_form_of_the_method_says_so():
    found = Found(
        0.2, 0.1, 0.3, 10, 3, "", runs=("vi_simsiam-cifar10-e40-seed0", "simsiam-cifar10-e40-seed0")
    )
    reasons = [
        claims.decide(OWN | form, "direction", found, "standard")[1]
        for form in ({"form": "vi_simsiam_2022"}, {})
    ]
    assert ["the form vi_simsiam, not vi_simsiam_2022" in reason for reason in reasons] == [
        True,
        False,
    ]
    of_2022 = [
        claim
        for claim in claims.claims().values()
        if claim["paper"] == "vs1" and claim["kind"] != "recipe"
    ]
    assert all(part["form"] == "vi_simsiam_2022" for claim in of_2022 for part in claim["parts"])


def test_the_untrained_network_beside_a_method_does_not_shorten_its_run():
    found = Found(
        0.2, 0.1, 0.3, 10, 3, "", runs=("vi_simsiam-cifar10-e40-seed0", "random-cifar10-e0-seed0")
    )
    assert (
        "40 epochs, not 100"
        in claims.decide(OWN | {"epochs": 100}, "direction", found, "standard")[1]
    )


def test_what_differs_at_standard_alone_is_said_there_alone():
    part = {
        "name": "p",
        "at_standard": "other views",
        "unlike": "another probe",
        "query": {"epochs": 1, "paper": {"epochs": 9}},
    }
    said = {profile: claims.in_profile(part, profile) for profile in ("standard", "paper")}
    assert [said[profile]["unlike"] for profile in said] == [
        "other views, another probe",
        "another probe",
    ]
    assert [said[profile]["query"] for profile in said] == [{"epochs": 1}, {"epochs": 9}]
    assert (
        "unlike" not in claims.in_profile({"name": "p", "at_standard": "other views"}, "paper")
        and "at_standard" in part
    )


def test_profile_paper_trains_what_its_queries_name():
    trained = {(run["dataset"], run["epochs"]) for run in resolution.runs("paper")}
    for name, claim in claims.claims().items():
        for part in claim["parts"] if claim["kind"] != "recipe" else ():
            query = claims.in_profile(part, "paper").get("query", {})
            fitting = [
                pair
                for pair in trained
                if pair == (query.get("dataset", pair[0]), query.get("epochs", pair[1]))
            ]
            assert fitting or claims.BEYOND in part["name"], (name, part["name"])


def test_profile_paper_is_judged_by_the_papers_own_sets_and_lengths(stored, monkeypatch):
    monkeypatch.setattr(protocol, "measured", lambda listed: listed)
    pairs, rows = comparisons.simsiam_pairs("paper"), []
    for dataset, epochs, points in (
        ("imagenette", 100, 2.4),
        ("flowers102", 100, 3.0),
        ("imagenet100", 50, 22.8),
        ("imagenet100", 500, -0.5),
    ):
        runs = [run for by_seed in pairs[dataset, epochs].values() for run in by_seed.values()]
        rows.append(
            {
                "dataset": dataset,
                "epochs": epochs,
                "classifier": "linear",
                "measure": "top-1",
                "difference_points": points,
                "ci_low": points - 1,
                "ci_high": points + 1,
                "seeds": 3,
                "n": 10,
                "runs": " ".join(map(resolution.run_name, runs)),
            }
        )
    artifacts.write_csv(stored / "paper" / "tables" / "20_difference.csv", pd.DataFrame(rows))
    ours = claims.ledger("paper").set_index(["id", "part"])
    for part, verdict in {
        ("VS1-1", "ImageNette"): REPRODUCED,
        ("VS1-1", "Flowers"): CONTRADICTED,
        ("VS1-1", "Cars"): NOT_TESTED,
        ("VS2-1", "50 epochs (5 at standard)"): REPRODUCED,
        ("VS2-2", "worse at the most epochs"): NOT_REPRODUCED,
    }.items():
        assert ours.verdict[part] == verdict, (part, ours.reason[part])


def test_runs_that_a_row_names_are_those_behind_its_number(stored):
    rows = pd.DataFrame(
        {
            "comparison": ["a minus b", "a minus c"],
            "first": ["a", "a"],
            "second": ["b", "c"],
            "difference": [1.0, 2.0],
        }
    )
    artifacts.write_csv(stored / "standard" / "tables" / "52_effects.csv", rows)
    query = {
        "table": "52_effects",
        "value": "difference",
        "comparison": "a minus c",
        "method": "prosmin",
    }
    with pytest.raises(ValueError, match="no columns"):
        claims.runs({"query": query}, "standard")
    artifacts.write_csv(
        stored / "standard" / "tables" / "52_effects.csv", rows.assign(method="prosmin")
    )
    assert claims.runs({"query": query}, "standard") == ["a", "c"]
    artifacts.write_csv(
        stored / "standard" / "tables" / "36_x.csv",
        pd.DataFrame({"measure": ["gain"], "value": [1.0], "runs": ["a b c"]}),
    )
    assert claims.runs(
        {"query": {"table": "36_x", "value": "value", "measure": "gain"}}, "standard"
    ) == ["a", "b", "c"]


def test_the_ledger_names_the_commits_that_measured_a_number(stored):
    for name, commit in (("a", "one"), ("b", "one"), ("c", "two")):
        artifacts.write_metrics(
            "standard",
            claims.protocol.MEASURED_BY,
            name,
            [{"method": "x", "value": 1.0, "commit": commit}],
        )
    assert claims.measured_at(["a", "b", "c"], "standard") == "one two"


def test_settings_of_recipes_stand_beside_those_of_the_runs():
    usual = resolution.resolve("simvae", "paper")
    found = claims.beside_runs(
        "simvae", [usual, usual | {"batch_size": 999, "representation": 3}]
    ).set_index(["recipe", "setting"])
    batch = found.loc[("simvae", "batch_size")]
    assert (
        set(batch.in_these_runs.split(", ")) == {str(usual["batch_size"]), "999"} and not batch.held
    )
    assert (
        found.in_these_runs["simvae", "representation"]
        == ""
        == found.in_these_runs["vae", "batch_size"]
    ), "no run's deviation, and no run"
    of_recipes, alike = found.loc["vae"], found.loc["simvae"]
    assert (
        (of_recipes.held == of_recipes.followed).all()
        and alike.held.any()
        and (alike.followed | ~alike.held).all()
    )
