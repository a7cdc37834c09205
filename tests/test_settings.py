"""lib.runs.settings: precedence, errors, and the names and hashes of runs."""

import json
import re

import pytest

from lib.evaluation import measure as protocol
from lib.methods import METHODS
from lib.runs import settings
from lib.runs.settings import find_runs, resolve, run_hash, run_name, variant

PROFILES = sorted(settings.read("profiles"))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Settings files of the test's own: files(recipes="...", ...)."""
    (tmp_path / "settings").mkdir()

    def write(**texts):
        for name, text in texts.items():
            (tmp_path / "settings" / f"{name}.toml").write_text(text)
        monkeypatch.setattr(settings, "ROOT", tmp_path)
        settings.read.cache_clear()

    yield write
    settings.read.cache_clear()


# ---------------------------------------------------------------------------------------------------------------- precedence
COMMON = "version = 1\nbatch_size = 8\nimage_size = 8\nwidth = 1\ndimension = 2\nlocal_views = 0\nweight_decay = 0.0\nmomentum = 0.0\n"
COMMON += 'warmup_epochs = 0.0\nclip_norm = 0.0\ndataset = "x"\n'


def test_precedence(files):
    files(
        recipes=f"[parent]\n{COMMON}epochs = 9\nlearning_rate = 1.0\n"
        "[child]\ninherits = 'parent'\nversion = 3\nlearning_rate = 2.0\nwidth = 5\n"
        "[reference]\ninherits = 'parent'\nepochs = 0\n",
        profiles="[tiny]\nepochs = 7\nlearning_rate = 3.0\nbatch_size = 16\n[tiny.methods.child]\nbatch_size = 32\n",
    )
    parent, child = resolve("parent", "tiny"), resolve("child", "tiny")
    assert (parent["width"], child["width"], child["version"]) == (
        1,
        5,
        3,
    )  # recipe over the recipe it inherits from
    assert (parent["learning_rate"], child["learning_rate"]) == (3.0, 3.0)  # profile over recipe
    assert (parent["batch_size"], child["batch_size"]) == (
        16,
        32,
    )  # the profile's method table over both
    assert (
        resolve("child", "tiny", batch_size=64, epochs=2)["batch_size"] == 64
    )  # parameters over everything
    assert resolve("reference", "tiny")["epochs"] == 0  # what is not trained stays so
    assert (
        child["method"] == "child"
        and child["profile"] == "tiny"
        and child["seed"] == 0
        and child["split"] == "train"
    )
    assert "inherits" not in child and "methods" not in child


def test_precedence_of_what_a_recipe_has_for_a_data_set_and_of_what_it_keeps(files):
    files(
        recipes=f"[first]\n{COMMON}epochs = 9\nlearning_rate = 1.0\nkeeps = ['learning_rate']\n[first.datasets.x]\nwidth = 2\nimage_size = 9\n"
        "[second]\nbatch_size = 4\nepochs = 5\n[third]\ninherits = ['first', 'second']\n[third.datasets.x]\nwidth = 3\n"
        "[fourth]\ninherits = 'first'\n",
        profiles="[tiny]\nlearning_rate = 3.0\nwidth = 8\nimage_size = 12\n[tiny.datasets.x]\nimage_size = 10\n"
        "[tiny.methods.third]\nepochs = 1\n[tiny.methods.fourth]\ninherits = 'third'\n[tiny.datasets.z]\ninherits = 'x'\n",
    )
    elsewhere, here, child = (
        resolve("first", "tiny", dataset="y"),
        resolve("first", "tiny", dataset="x"),
        resolve("third", "tiny", dataset="x"),
    )
    assert (elsewhere["width"], here["width"], child["width"]) == (
        8,
        2,
        3,
    )  # profile, recipe's data set, child's data set
    assert (elsewhere["image_size"], here["image_size"], child["image_size"]) == (
        12,
        10,
        10,
    )  # the profile's data set over the recipe's
    assert (
        elsewhere["learning_rate"] == here["learning_rate"] == child["learning_rate"] == 1.0
    )  # kept
    assert (child["batch_size"], child["epochs"]) == (
        4,
        1,
    )  # the later parent, the profile's method
    other = resolve("third", "tiny", dataset="z")
    assert (other["image_size"], other["width"]) == (
        10,
        8,
    )  # what the profile says of a data set, it says of its heir
    assert resolve("fourth", "tiny")["epochs"] == 1 and "inherits" not in other
    assert "keeps" not in child and "datasets" not in child


def test_whole_numbers_of_a_recipe_are_floats_where_these_are_meant_and_a_bad_one_is_blamed_on_its_file(
    files,
):
    recipe, profile = (
        f"[mine]\n{COMMON}epochs = 9\nlearning_rate = 1\n[mine.datasets.x]\n",
        "[tiny]\n",
    )
    files(
        recipes=recipe + "learning_rate = 2\n",
        profiles=profile + "weight_decay = 1\n[other]\nlearning_rate = 0.5\n",
    )
    mine, whole = resolve("mine", "tiny", dataset="x"), resolve("mine", "tiny", dataset="y")
    found = [mine["learning_rate"], whole["learning_rate"], mine["weight_decay"]]
    assert found == [2, 1, 1] and {type(value) for value in found} == {float}
    assert (
        resolve("mine", "tiny", learning_rate=0.5)["learning_rate"]
        == resolve("mine", "other", dataset="y")["learning_rate"]
        == 0.5
    )
    for text, message in (
        (
            'learning_rate = "2"\n',
            r"data set 'x': parameter 'learning_rate' is '2' \(str\); it must be a float",
        ),
        ("wdith = 2\n", "data set 'x' sets 'wdith', which no recipe has"),
    ):
        files(recipes=recipe + text)
        with pytest.raises(ValueError, match=f"Recipe 'mine' of settings/recipes.toml, {message}"):
            resolve("mine", "tiny", dataset="x")
    files(recipes=recipe.replace("learning_rate = 1", 'learning_rate = "1"'))
    with pytest.raises(
        ValueError,
        match=r"Recipe 'mine' of settings/recipes.toml: parameter 'learning_rate' is '1' \(str\)",
    ):
        resolve("mine", "tiny")


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_recipe_resolves_in_every_profile(method, profile):
    resolved = resolve(method, profile)
    json.dumps(resolved)
    assert resolved["dataset"] and (resolved["epochs"] == 0) == (method in protocol.REFERENCES)
    assert re.fullmatch(rf"{method}-{resolved['dataset']}-e\d+-seed0", run_name(resolved))


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_and_experiments_name_only_what_there_is(profile):
    assert set(settings.read("profiles")[profile].get("methods", {})) <= set(METHODS)
    known = {*settings.DEFAULTS, *settings.NOT_TRAINED_WITH, "dataset", "inherits"}.union(
        *(settings.recipe(method) for method in METHODS)
    )
    own = settings.read("profiles")[profile]
    tables = [
        settings.profile_settings(profile),
        *own.get("methods", {}).values(),
        *own.get("datasets", {}).values(),
    ]
    by_set = [
        table
        for method in own.get("methods", {}).values()
        for table in method.get("datasets", {}).values()
    ]
    assert set().union(*tables, *by_set) - {"datasets"} <= known
    listed = settings.runs(profile) + settings.tuning_runs(profile)
    assert all(
        run["epochs"] == 0 for run in listed if settings.recipe(run["method"])["epochs"] == 0
    )  # a reference row is not trained
    names = [run_name(run) for run in listed]
    assert listed and len(names) == len(set(names))
    hashes = [run_hash(run, "data") for run in listed]
    assert len(hashes) == len(set(hashes))


def test_a_run_is_compared_with_its_recipe():
    run = resolve("byol", "standard", batch_size=4096)
    apart = settings.unlike_recipe(run)
    assert (
        apart["optimizer"] == ("sgd", "lars")
        and apart["width"] == (16, 64)
        and not {"batch_size", "local_size", "seed"} & set(apart)
    )
    grey = settings.unlike_recipe(resolve("vae", "standard", dataset="mnist"))
    assert not {"backbone", "image_size", "augmentation", "width", "stem"} & set(grey), (
        "what the recipe has for MNIST is the paper's"
    )
    assert not any(
        settings.unlike_recipe(settings.recipe(name) | {"method": name, "dataset": "none"})
        for name in METHODS
    )


def test_profile_smoke_runs_every_method():
    assert {run["method"] for run in settings.runs("smoke")} == set(METHODS)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_data_sets_of_a_recipe_change_only_what_it_has(method):
    whole = settings._whole_recipe(method)
    assert set(whole.get("keeps", ())).union(*whole["datasets"].values()) <= set(
        settings.recipe(method)
    )


def test_integers_are_taken_for_floats():
    resolved = resolve("simsiam", "smoke", learning_rate=1)
    assert resolved["learning_rate"] == 1.0 and isinstance(resolved["learning_rate"], float)


# ---------------------------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: resolve("simclear", "smoke"),
            r"Unknown method 'simclear'; choose one of \[.*'simsiam'",
        ),
        (
            lambda: resolve("simsiam", "fast"),
            r"Unknown profile 'fast'; choose one of \['paper', 'quick', 'smoke', 'standard'\]",
        ),
        (
            lambda: resolve("simsiam", "smoke", learning_rat=1.0),
            r"Unknown parameter 'learning_rat' for method 'simsiam'; choose from \[",
        ),
        (
            lambda: resolve("simsiam", "smoke", initial_cosine=0.1),
            "Unknown parameter 'initial_cosine'",
        ),
        (
            lambda: resolve("simsiam", "smoke", epochs=2.0),
            r"Parameter 'epochs' is 2.0 \(float\); it must be a int like 1",
        ),
        (lambda: resolve("simsiam", "smoke", epochs=True), r"Parameter 'epochs' is True \(bool\)"),
        (
            lambda: resolve("simsiam", "smoke", learning_rate="0.1"),
            r"Parameter 'learning_rate' is '0.1' \(str\); it must be a float",
        ),
        (
            lambda: resolve("simsiam", "smoke", learning_rate=True),
            r"Parameter 'learning_rate' is True \(bool\)",
        ),
        (
            lambda: resolve("vi_simsiam", "smoke", divide_loss=1),
            r"Parameter 'divide_loss' is 1 \(int\); it must be a bool",
        ),
        (
            lambda: resolve("simsiam", "smoke", dataset=1),
            r"Parameter 'dataset' is 1 \(int\); it must be a str",
        ),
        (
            lambda: resolve("simsiam", "smoke", epochs=-1),
            "Parameter 'epochs' is -1; it must be at least 0",
        ),
        (
            lambda: resolve("simsiam", "smoke", batch_size=1),
            "Parameter 'batch_size' is 1; it must be at least 2",
        ),
        (
            lambda: resolve("simsiam", "smoke", image_size=4),
            "Parameter 'image_size' is 4; it must be at least 8",
        ),
        (
            lambda: resolve("simsiam", "smoke", dimension=1),
            "Parameter 'dimension' is 1; it must be at least 2",
        ),
        (lambda: resolve("simsiam", "smoke", seed=-1), "Parameter 'seed' is -1"),
        (
            lambda: resolve("simsiam", "smoke", learning_rate=float("nan")),
            "Parameter 'learning_rate' is nan; it must be finite",
        ),
        (
            lambda: resolve("vi_simsiam", "smoke", initial_cosine=1.0),
            "'initial_cosine' is 1.0; it must be above 0 and below 1",
        ),
        (
            lambda: resolve("vi_simsiam", "smoke", concentration_warmup_epochs=float("nan")),
            "'concentration_warmup_epochs' is nan; it must be finite",
        ),
        (
            lambda: resolve("simsiam", "smoke", weight_decay=-0.1),
            "Parameter 'weight_decay' is -0.1; it must be finite and not negative",
        ),
        (
            lambda: resolve("byol", "smoke", target_momentum=3.0),
            "Parameter 'target_momentum' is 3.0; it must be in 0..1",
        ),
        (
            lambda: resolve("simclr", "smoke", temperature=-1.0),
            "Parameter 'temperature' is -1.0; it must be finite and above 0",
        ),
        (
            lambda: resolve("simsiam", "smoke", clip_norm=float("inf")),
            "Parameter 'clip_norm' is inf",
        ),
        (
            lambda: find_runs(["simsiam-digits-e9-seed0"], "smoke"),
            "Profile 'smoke' lists no run 'simsiam-digits-e9-seed0'; its runs are",
        ),
        (lambda: settings.runs("fast"), "Unknown profile of settings/experiments.toml 'fast'"),
    ],
)
def test_bad_values_are_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_misspelt_setting_of_an_own_recipe_is_told(files):
    files(
        recipes=f"[parent]\n{COMMON}epochs = 9\nlearning_rate = 1.0\n[mine]\ninherits = 'parent'\nlearning_rte = 3\n[new]\nsharpness = 2\n"
    )
    with pytest.raises(
        ValueError,
        match="Recipe 'mine' .* sets 'learning_rte', which no other recipe has: 'learning_rate' is meant",
    ):
        settings.check_recipe("mine")
    settings.check_recipe("new")
    with pytest.raises(
        ValueError, match=r"Unknown method 'no'; .* or add a recipe \[no\] to settings/recipes.toml"
    ):
        settings.check_recipe("no")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_recipe_has_a_setting_that_looks_misspelt(method):
    settings.check_recipe(method)


def test_a_file_that_is_not_toml_is_named(files):
    files(recipes="[simsiam\n")
    with pytest.raises(ValueError, match=r"recipes.toml is not valid TOML"):
        settings.recipe("simsiam")


# ---------------------------------------------------------------------------------------------------------------- names and hashes
def test_differences_are_what_a_run_is_compared_by():
    assert settings.differences(resolve("simvae", "smoke", seed=3, epochs=2)) == {}, (
        "seed and epochs are not a variant"
    )
    assert settings.differences(resolve("simvae", "smoke", views=3, dataset="styled_digits")) == {
        "views": 3
    }
    assert settings.differences(resolve("simvae", "smoke", mean_prior="normal", split="fit")) == {
        "split": "fit",
        "mean_prior": "normal",
    }


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, "e1"),
        ({"seed": 3}, "e1"),
        ({"epochs": 40}, "e40"),
        ({"epochs": 2, "learning_rate": 0.03}, "e2-lr0.03"),
        ({"learning_rate": 0.06}, "e1"),
        (
            {"split": "fit"},
            "e1-fit-lr0.06",
        ),  # a tuning run says its learning rate even where it is the usual one
        ({"batch_size": 64, "width": 8, "dimension": 32, "train_images": 99}, "e1-b64-w8-d32-n99"),
        ({"optimizer": "adamw"}, "e1-optimizeradamw"),
        ({"condition_images": 7}, "e1"),  # evaluation only
    ],
)
def test_variant_names_what_differs(parameters, expected):
    resolved = resolve("simsiam", "smoke", **parameters)
    assert sorted(variant(resolved).split("-")) == sorted(expected.split("-"))
    assert variant(resolved).startswith(expected.split("-")[0])
    assert (
        run_name(resolved) == f"simsiam-digits-{variant(resolved)}-seed{parameters.get('seed', 0)}"
    )


def another(value):
    """Of the same type, but different."""
    if isinstance(value, bool):
        return not value
    return (
        value + 1
        if isinstance(value, int | float)
        else value + ["x"]
        if isinstance(value, list)
        else f"{value}x"
    )


def test_the_hash_changes_with_what_is_trained_and_nothing_else():
    base = resolve("vi_simsiam", "smoke")
    expected = run_hash(base, "data")
    assert (
        re.fullmatch("[0-9a-f]{12}", expected)
        and run_hash(dict(reversed(base.items())), "data") == expected
    )
    assert run_hash(base, "other data") != expected
    for name, value in base.items():
        same = name in settings.NOT_TRAINED_WITH or name == "profile"
        assert (run_hash(base | {name: another(value)}, "data") == expected) == same, name


@pytest.mark.parametrize("profile", PROFILES)
def test_every_listed_run_is_found_by_its_name(profile):
    listed = settings.runs(profile) + settings.tuning_runs(profile)
    by_name = {run_name(run): run for run in listed}
    assert all(by_name[run_name(run)] == run for run in listed), (
        "two runs that differ have one name"
    )
    for run in listed[::41]:  # each looks through all
        assert find_runs([run_name(run)], profile) == [run]


@pytest.mark.parametrize("profile", ["smoke", "quick", "standard", "paper"])
def test_every_profile_has_what_the_notebooks_on_vje_read(profile):
    protocol, changed, single = (
        settings.runs(profile, "vje", group) for group in ("protocol", "likelihood", "one_class")
    )
    assert {"vje", "vi_simsiam", "random"} <= {run["method"] for run in protocol} and len(
        {run["dataset"] for run in protocol}
    ) == 1
    assert all({*run["ood_near"], *run["ood_far"]} - {run["dataset"]} for run in protocol)
    assert {"vje", "random"} <= {run["method"] for run in changed} and len(
        {run.get("directional_freedom") for run in changed}
    ) > 2
    assert len({run["dataset"] for run in single}) > 1 and {"vje", "vi_simsiam"} <= {
        run["method"] for run in single
    }


def test_one_class_has_the_settings_of_its_set():
    whole, single = (
        settings.resolve("vje", "paper", dataset=name) for name in ("cifar10", "cifar10_class_3")
    )
    assert (
        settings.resolve("simsiam", "standard", dataset="fashion_class_1_mnist")["image_size"] == 32
    ), "a name that goes on is another set"
    assert (
        single == whole | {"dataset": "cifar10_class_3"}
        and whole["image_size"] == 32 != settings.resolve("vje", "paper")["image_size"]
    )


def test_a_recipe_that_a_claim_is_compared_with_is_what_profile_paper_trains():
    """The ledger reads the recipe; a table of the profile must not give its runs other values. Only a representation's length is by data set."""
    from lib.claims import ledger as claims

    published = {}
    for parts in claims.claims().values():
        for part in parts:
            if part.recipe:
                published.setdefault(part.recipe, set()).update(part.settings)
    usual = [
        run
        for run in settings.runs("paper")
        if run["method"] in published and settings.is_usual(run)
    ]
    assert {"simvae", "simclr_latent", "vi_simsiam_2022", "prosmin"} <= {
        run["method"] for run in usual
    }
    for run in usual:
        own = settings.recipe(run["method"])
        for name in published[run["method"]] & own.keys() - {"representation"}:
            assert run[name] == own[name], (settings.run_name(run), name)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("simvae", {"augmentation": "simvae_colour", "epochs": 400}),
        ("cr_vae", {"augmentation": "simvae_colour", "epochs": 400}),
        (
            "simclr_latent",
            {
                "augmentation": "simvae_colour",
                "epochs": 600,
                "projector_layers": 2,
                "dimension": 128,
            },
        ),
        ("moco_latent", {"projector_layers": 1, "dimension": 128}),
        ("moco_v2_latent", {"projector_layers": 2, "dimension": 128}),
        ("vicreg_latent", {"projector_layers": 3, "dimension": 8192}),
        ("random_latent", {"augmentation": "simvae_colour", "epochs": 0}),
        # SimSiam, App. D: 0.03 for 256 images
        (
            "simsiam",
            {
                "learning_rate": 0.03 * 512 / 256,
                "batch_size": 512,
                "weight_decay": 5e-4,
                "projector_layers": 2,
                "epochs": 800,
            },
        ),
        ("barlow_twins", {"projector_layers": 3, "dimension": 8192}),
    ],
)
def test_profile_paper_has_the_methods_own_settings_on_cifar10(method, expected):
    resolved = settings.resolve(method, "paper", dataset="cifar10")
    assert {name: resolved[name] for name in expected} == pytest.approx(expected)


def test_papers_choose_runs():
    everything, first, second = (settings.runs("paper", paper) for paper in ("all", "vs1", "vs2"))
    assert len(second) < len(everything) and all(run in everything for run in first + second)
    assert {run["method"] for run in second} == {
        "vi_simsiam",
        "vi_simsiam_undivided",
        "simsiam",
        "random",
        "dino",
    }
    assert settings.runs("paper", "none") == []


def test_groups_set_and_vary_make_runs(monkeypatch):
    entries = [
        {"papers": ["vs1"], "methods": ["simsiam"], "seeds": [0]},
        {
            "papers": ["vs2"],
            "group": "lengths",
            "methods": ["simsiam"],
            "seeds": [0, 1],
            "set": {"width": 8},
            "vary": {"epochs": [1, 2, 3]},
        },
        {
            "papers": ["vs2"],
            "group": "controls",
            "methods": ["simsiam"],
            "seeds": [0],
            "vary": {"learning_rate": [0.06, 0.5]},
        },
    ]
    monkeypatch.setattr(settings, "experiments", lambda profile: {"runs": entries})
    names = [run_name(run) for run in settings.runs("smoke", group="lengths")]
    assert names == [
        f"simsiam-digits-e{epochs}-w8-seed{seed}" for seed in (0, 1) for epochs in (1, 2, 3)
    ]
    assert [run["learning_rate"] for run in settings.runs("smoke", group="controls")] == [0.06, 0.5]
    # Two groups share the run at the usual learning rate; it is one run.
    assert len(settings.runs("smoke")) == 1 + 6 + 1 and len(settings.runs("smoke", "vs1")) == 1
    assert settings.runs("smoke", group=settings.PROTOCOL) == [resolve("simsiam", "smoke")]


def test_a_data_set_brings_its_own_budget_and_a_plain_name():
    run = resolve("vi_simsiam", "standard", dataset="imagenette96")
    assert run["image_size"] == 96 and run_name(run) == "vi_simsiam-imagenette96-e200-seed0"
    assert resolve("random", "standard", dataset="imagenette96")["epochs"] == 0
    assert run_name(
        resolve("vi_simsiam", "standard", dataset="imagenette96", image_size=64)
    ).startswith("vi_simsiam-imagenette96-e200-imagesize64")


def test_a_usual_run_differs_in_data_set_and_seed_alone():
    assert settings.is_usual(
        resolve("vi_simsiam", "standard", dataset="mnist", seed=2)
    ) and settings.is_usual(resolve("random", "standard"))
    assert not settings.is_usual(resolve("vi_simsiam", "standard", epochs=5))
    assert not settings.is_usual(resolve("vi_simsiam", "standard", learning_rate=0.5))


def test_tuning_is_the_same_effort_for_every_method():
    runs = settings.tuning_runs("standard")
    by_method = {
        method: [run for run in runs if run["method"] == method]
        for method in {run["method"] for run in runs}
    }
    assert set(by_method) >= {"simsiam", "vi_simsiam"}
    for runs in by_method.values():
        tuned = "beta" if runs[0]["method"] == "beta_vae" else "learning_rate"
        assert len(runs) == len({run[tuned] for run in runs}) == 4
        epochs = (
            5 * 2 / runs[0]["views"] if runs[0]["method"] == "simvae" else 5
        )  # as many views as the methods of two
        assert {(run["epochs"], run["seed"], run["split"]) for run in runs} == {(epochs, 0, "fit")}


def test_notebooks_need_earlier_ones():
    numbers = ["10"]
    for entry in settings.notebooks():
        assert set(entry["needs"]) <= set(numbers) and entry["papers"]
        numbers.append(entry["name"][:2])
