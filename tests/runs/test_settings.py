"""lib.runs.settings: order of the layers, errors, names and hashes of runs, the plan of runs."""

import json

import pytest

from lib.evaluation import results
from lib.methods import METHODS
from lib.runs import settings, store
from lib.runs.settings import evaluation_hash, find_runs, resolve, run_hash, run_name, variant

PROFILES = sorted(settings.read("profiles"))
# What every recipe must have. [simsiam] is the recipe that all others start from.
BASE = """
[simsiam]
version = 1
batch_size = 8
image_size = 8
width = 1
dimension = 2
local_views = 0
weight_decay = 0.0
momentum = 0.0
warmup_epochs = 2.0
clip_norm = 0.0
epochs = 10
learning_rate = 1.0
"""
PROFILE = """
[tiny]
dataset = "x"
"""
RUNS = """
[tiny]
one_job_per = "run"

[[tiny.protocol]]
papers = ["vs1"]
methods = ["simsiam"]
seeds = [0]
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Settings files of the test's own: files(recipes="...", profiles="...", runs="...")."""
    (tmp_path / "settings").mkdir()
    monkeypatch.setattr(settings, "ROOT", tmp_path)

    def write(recipes=BASE, profiles=PROFILE, runs=RUNS):
        texts = {"recipes": recipes, "profiles": profiles, "runs": runs}
        for name, text in texts.items():
            (tmp_path / "settings" / f"{name}.toml").write_text(text)
        read_again()

    def read_again():
        for cached in (settings.read, settings._usual, settings._listed):
            cached.cache_clear()

    write()
    yield write
    read_again()


# --------------------------------------------------------------------------------------- the layers
LAYERS = """
[parent]
batch_size = 10
[parent.datasets.x]
batch_size = 13
[child]
inherits = "parent"
batch_size = 11
[child.datasets.x]
batch_size = 14
"""
PROFILE_LAYERS = """
[tiny]
dataset = "x"
batch_size = 12
[tiny.datasets.x]
batch_size = 99
[tiny.datasets.z]
inherits = "x"
width = 3
[tiny.methods.child]
batch_size = 15
"""


def test_later_layers_stand_over_earlier_ones(files):
    """Without the last layer the one before it decides, and so down to the recipe of all."""
    files(recipes=BASE + LAYERS, profiles=PROFILE_LAYERS)
    assert resolve("child", "tiny", batch_size=16)["batch_size"] == 16
    assert resolve("child", "tiny")["batch_size"] == 15
    without_method = PROFILE_LAYERS.split("[tiny.methods")[0]
    files(recipes=BASE + LAYERS, profiles=without_method)
    assert resolve("child", "tiny")["batch_size"] == 14
    assert resolve("parent", "tiny")["batch_size"] == 13
    assert resolve("simsiam", "tiny")["batch_size"] == 99
    assert resolve("simsiam", "tiny", dataset="z")["batch_size"] == 99
    assert resolve("child", "tiny", dataset="y")["batch_size"] == 12
    files(recipes=BASE + LAYERS, profiles=PROFILE)
    assert resolve("child", "tiny", dataset="y")["batch_size"] == 11
    assert resolve("parent", "tiny", dataset="y")["batch_size"] == 10
    assert resolve("simsiam", "tiny", dataset="y")["batch_size"] == 8


def test_what_a_recipe_leaves_untrained_is_trained_in_no_profile(files):
    files(recipes=BASE + "[untrained]\nepochs = 0\n", profiles=PROFILE + "epochs = 7\n")
    assert resolve("untrained", "tiny")["epochs"] == 0
    assert resolve("simsiam", "tiny")["epochs"] == 7


@pytest.mark.parametrize(
    ("profile", "parameters", "expected"),
    [
        ("", {}, 2.0),  # the recipe's 2 of 10 epochs
        ("epochs = 5\n", {}, 1.0),
        ("epochs = 5\nwarmup_epochs = 2.0\n", {"epochs": 50}, 20.0),  # the profile's 2 of 5
        ("", {"epochs": 20, "warmup_epochs": 3.0}, 3.0),
    ],
)
def test_schedules_scale_with_the_length_of_a_run(files, profile, parameters, expected):
    files(profiles=PROFILE + profile)
    assert resolve("simsiam", "tiny", **parameters)["warmup_epochs"] == expected


def test_one_class_has_the_settings_of_its_set():
    whole = resolve("vje", "paper", dataset="cifar10")
    single = resolve("vje", "paper", dataset="cifar10_class_3")
    assert single == whole | {"dataset": "cifar10_class_3"}
    # A name that goes on is another set.
    assert resolve("simsiam", "standard", dataset="mnist_class_1_x")["image_size"] == 32


@pytest.mark.parametrize("profile", PROFILES)
def test_every_recipe_resolves_in_every_profile(profile):
    assert set(METHODS) == set(settings.read("recipes"))
    for method in METHODS:
        settings.check_recipe(method)
        resolved = resolve(method, profile)
        json.dumps(resolved)
        assert (resolved["epochs"] == 0) == (method in results.REFERENCES)


def test_a_run_is_compared_with_its_recipe():
    pairs = settings.unlike_recipe(resolve("byol", "standard", batch_size=4096))
    assert pairs["optimizer"] == ("sgd", "lars")
    assert pairs["width"] == (16, 64)
    assert not {"batch_size", "local_size", "seed"} & set(pairs)
    assert "warmup_epochs" not in pairs  # 0.4 of 40 epochs: the share of 10 of 1000
    # What the recipe has for MNIST is the paper's.
    grey = settings.unlike_recipe(resolve("vae", "standard", dataset="mnist"))
    assert not {"backbone", "image_size", "augmentation", "width", "stem"} & set(grey)


# ------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("method", "name", "value"),
    [
        ("simsiam", "epochs", 2.0),
        ("simsiam", "epochs", True),
        ("simsiam", "batch_size", 1),
        ("simsiam", "learning_rate", float("nan")),
        ("simclr", "temperature", -1.0),
    ],
)
def test_a_value_of_another_type_or_out_of_range_is_refused(method, name, value):
    with pytest.raises(ValueError, match=name):
        resolve(method, "smoke", **{name: value})


def test_a_whole_number_is_taken_for_a_float():
    assert isinstance(resolve("simsiam", "smoke", learning_rate=1)["learning_rate"], float)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recipes": "[simsiam\n"}, ["recipes.toml"]),
        ({"recipes": BASE + "[simsiam.datasets.x]\nwdith = 2\n"}, ["wdith", "width"]),
        ({"recipes": BASE + '[other]\ninherits = "simsaim"\n'}, ["simsaim", "simsiam"]),
        ({"recipes": BASE + LAYERS + '[other]\ninherits = "child"\n'}, ["other", "recipes.toml"]),
        ({"profiles": PROFILE + "wdith = 2\n"}, ["wdith", "width"]),
        ({"profiles": PROFILE + "[tiny.methods.simsiam]\nwdith = 2\n"}, ["wdith", "width"]),
        ({"runs": RUNS + "wdith = 2\n"}, ["wdith", "width"]),
        ({"runs": RUNS.replace("protocol", "protcol")}, ["protcol", "protocol"]),
        ({"runs": RUNS.replace('["simsiam"]', '["simsaim"]')}, ["simsaim", "simsiam"]),
        ({"runs": RUNS.replace("seeds = [0]\n", "")}, ["seeds"]),
        ({"runs": RUNS.replace("[0]", "[0, 1, 0]")}, ["[0, 1, 0]"]),
    ],
)
def test_a_fault_in_a_settings_file_is_named(files, changed, words):
    files(**changed)
    with pytest.raises(ValueError) as error:
        resolve("simsiam", "tiny")
        settings.runs("tiny")
        settings.check_recipe("other")
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------------------- names and hashes
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"seed": 3}, {"e1"}),
        ({"epochs": 2, "learning_rate": 0.03}, {"e2", "lr0.03"}),
        # A tuning run has its learning rate even where it is the usual one.
        ({"split": "fit"}, {"e1", "fit", "lr0.06"}),
        ({"batch_size": 64, "dimension": 32, "train_images": 99}, {"e1", "b64", "d32", "n99"}),
        ({"condition_images": 7}, {"e1"}),  # only evaluation
    ],
)
def test_variant_names_what_differs(parameters, expected):
    resolved = resolve("simsiam", "smoke", **parameters)
    seed = parameters.get("seed", 0)
    assert set(variant(resolved).split("-")) == expected
    assert run_name(resolved) == f"simsiam-digits-{variant(resolved)}-seed{seed}"


def _another(value):
    """A different value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return value + type(value)("x")


def test_each_setting_changes_the_hash_of_training_or_of_evaluation():
    base = resolve("vi_simsiam", "smoke")
    training = run_hash(base, "data")
    assert run_hash(dict(reversed(base.items())), "data") == training
    assert run_hash(base, "other data") != training
    for name, value in base.items():
        changed = base | {name: _another(value)}
        measured_only = name in settings.NOT_TRAINED_WITH
        same_training = measured_only or name == "profile"
        assert (run_hash(changed, "data") == training) == same_training, name
        assert (evaluation_hash(changed) != evaluation_hash(base)) == measured_only, name


def test_stored_runs_have_the_hashes_that_they_would_have_today():
    """Code may be reorganised, stored evidence must not become stale by it."""
    folder = store.ROOT / "results" / "standard" / "runs"
    listed = settings.runs("standard") + settings.tuning_runs("standard")
    by_name = {run_name(run): run for run in listed}
    paths = sorted(folder.glob("*/config.json"))
    assert paths
    for path in paths:
        config = json.loads(path.read_text())
        if config["settings"]["method"] in METHODS:
            run = by_name[config["run"]]
            assert run_hash(run, config["data"]["checksum"]) == config["run_hash"], config["run"]


def test_a_run_that_was_trained_with_other_settings_is_stale():
    run = settings.runs("smoke")[0]
    config = {"run": run_name(run), "run_hash": run_hash(run, "sum"), "data": {"checksum": "sum"}}
    path = store.config_path("smoke", run_name(run))
    store.write_json(path, config)
    assert settings.stale_runs("smoke") == []
    store.write_json(path, config | {"run_hash": "another"})
    assert settings.stale_runs("smoke") == [run_name(run)]


# --------------------------------------------------------------------------------- the plan of runs
def test_lists_and_cases_make_runs_and_two_entries_may_share_one(files):
    entries = """
[[tiny.lengths]]
papers = ["vs2"]
methods = ["simsiam"]
seeds = [0, 1]
width = 2
epochs = [10, 20]
cases = [{}, { momentum = 0.5, clip_norm = 1.0 }]

[[tiny.datasets]]
papers = ["vs1"]
methods = ["simsiam"]
seeds = [0]
"""
    files(runs=RUNS + entries)
    runs = settings.runs("tiny", group="lengths")
    combinations = {(run["seed"], run["epochs"], run["momentum"]) for run in runs}
    assert len(runs) == len(combinations) == 2 * 2 * 2
    for run in runs:
        assert run["width"] == 2
        assert run["clip_norm"] == (1.0 if run["momentum"] else 0.0)
    shared = settings.runs("tiny", "vs1")
    assert shared == settings.runs("tiny", group="datasets") == [resolve("simsiam", "tiny")]
    assert len(settings.runs("tiny")) == 9


@pytest.mark.parametrize("profile", PROFILES)
def test_runs_of_a_profile_differ_in_name_and_hash(profile):
    listed = settings.runs(profile) + settings.tuning_runs(profile)
    assert len({run_name(run) for run in listed}) == len(listed)
    assert len({run_hash(run, "data") for run in listed}) == len(listed)
    last = listed[-1]
    assert find_runs([run_name(last)], profile) == [last]


def test_profile_smoke_runs_every_method_and_every_group():
    assert {run["method"] for run in settings.runs("smoke")} == set(METHODS)
    assert all(settings.runs("smoke", group=group) for group in settings.GROUPS)


def test_tuning_is_the_same_effort_for_every_method():
    by_method = {}
    for run in settings.tuning_runs("standard"):
        by_method.setdefault(run["method"], []).append(run)
        assert run["seed"] == 0
        assert run["split"] == "fit"
    del by_method["vje"][-2:]  # ablations at one rate
    # The rows that a search has to beat
    for method in ("random", "random_vit", "raw_pixels"):
        assert len(by_method.pop(method)) == 1
    for runs in by_method.values():
        final = resolve(runs[0]["method"], "standard")
        assert len({run["learning_rate"] for run in runs}) == len(runs) == 3
        assert {2 * run["epochs"] for run in runs} == {final["epochs"]}


def test_sets_that_nothing_can_fetch_are_absent_until_they_are_there(data_dir):
    own_sets = settings.plan("standard")["own_sets"]
    assert settings.absent_sets("standard") == own_sets
    (data_dir / own_sets[0]).mkdir(parents=True)
    assert settings.absent_sets("standard") == own_sets[1:]


def test_a_method_that_inherits_has_optimiser_and_rate_that_belong_together(monkeypatch):
    recipes = settings.read("recipes")
    parents = [name for name, recipe in recipes.items() if "inherits" not in recipe]
    for parent in parents:
        monkeypatch.setitem(recipes, "mine", {"inherits": parent})
        ours = resolve("mine", "standard")
        theirs = resolve(parent, "standard")
        for name in ("optimizer", "learning_rate", "weight_decay", "momentum"):
            assert ours.get(name) == theirs.get(name), (parent, name)
