"""κ of every image of somebody's folder, and the page that shows it.

Example:
    images, files = survey("holiday", image_size=64)
    run = training_settings(len(images), "standard")
    kappa = score(images, training_run=run)["kappa"]
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image, ImageFilter

from lib import evaluation, figures, methods, training
from lib.data import sources
from lib.data.sets import ImageSet
from lib.evaluation import encoders, uncertainty
from lib.pipeline.image_issues import ISSUES, issues_by_image
from lib.pipeline.own_files import NAME, STATUS
from lib.runs import settings, store

IMAGES_SEEN = 150_000  # by a network that is trained on a folder, with repetitions
MOST_EPOCHS = 400
ROWS = 4  # of a contact sheet
COLUMNS = 8
LONGEST_NAME = 22  # letters of a name in a figure
CONSTANT = 1e-5  # the range of κ, relative to its mean, below which all images have one κ
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)


# ------------------------------------------------------------------------- scoring
def training_settings(
    count: int, profile: str, image_size: int = 64, epochs: int = 0, seed: int = 0
) -> dict:
    """Settings of VI-SimSiam for a folder of ``count`` images.

    epochs 0: as many as show the network about IMAGES_SEEN images, at most MOST_EPOCHS.
    """
    if epochs == 0:
        epochs = min(MOST_EPOCHS, max(1, IMAGES_SEEN // count))
    return settings.resolve(
        "vi_simsiam", profile, dataset=NAME, image_size=image_size, epochs=epochs, seed=seed
    )


def score(
    images: ImageSet, encoder: str = "", training_run: dict | None = None
) -> evaluation.Embedded:
    """Features and κ of every image.

    encoder: a committed encoder; "" trains one on these very images with the settings training_run
    (``training_settings``). A finished training is not repeated.
    """
    if encoder:
        check_encoder(encoder)
        return score_by_encoder(encoder, images)
    try:
        training.train(training_run, images)
    except training.TrainingStopped as error:
        advice = (
            "Nothing can be learned from images that are all alike: score them with a committed "
            "encoder instead, ENCODER=vi_simsiam."
        )
        raise training.TrainingStopped(f"{error} {advice}") from error
    channels = 3
    return evaluation.embed_images(training.load_trained(training_run, channels), images)


def check_encoder(encoder: str) -> None:
    """ValueError if there is no committed encoder of this name that has κ; "" is none."""
    if not encoder:
        return
    able = [name for name in encoders.stored() if "concentration_from" in _info(name)["settings"]]
    if encoder not in able:
        raise ValueError(
            f"There is no committed encoder {encoder!r} with κ; choose one of {able}, or none to "
            "train on the folder."
        )


def _info(encoder: str) -> dict:
    """What a committed encoder says of itself: its settings and channels."""
    return store.read_tensors_info(encoders.stored()[encoder], encoders.INFO)


def score_by_encoder(encoder: str, images: ImageSet) -> evaluation.Embedded:
    """Features and uncertainty by a committed encoder, at the size that it was trained with."""
    network = encoders.load(encoder)
    transform = evaluation.input_transform(network.settings, network.channels)
    return evaluation.embed_images(network, images, transform=transform)


def compare(images: ImageSet, kappa: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The uncertainty of the images by every committed encoder.

    Returns a table of one row an image, with a column for each encoder, and a table of one row an
    encoder: encoder, trained_on, uncertainty (what it is), spearman (rank correlation with −κ),
    unlikeness (``encoders.unlikeness`` of the images and the encoder's own test images) and
    resembles ("no" above ``encoders.UNLIKE``, else "undecided").
    """
    columns = {}
    rows = []
    for name, path in encoders.stored().items():
        embedded = score_by_encoder(name, images)
        trained_with = _info(name)["settings"]
        native, words = methods.own_uncertainty(trained_with["method"])
        columns[f"uncertainty_{name}_{native or 'trivial_norm'}"] = embedded["uncertainty"]
        statistics = encoders.statistics_beside(path)
        unlikeness = encoders.unlikeness(embedded["features"], statistics)
        rows.append(
            {
                "encoder": name,
                "trained_on": trained_with["dataset"],
                "uncertainty": words,
                "spearman": rank_correlation(embedded["uncertainty"], -kappa),
                "unlikeness": unlikeness,
                "resembles": "no" if unlikeness > encoders.UNLIKE else "undecided",
            }
        )
    return pd.DataFrame(columns, index=range(len(kappa))), pd.DataFrame(rows)


# ------------------------------------------------------------------------- tables
def used_files(files: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``survey``'s table that are images, in their order."""
    return files[files.status == "used"].reset_index(drop=True)


def ranked(files: pd.DataFrame, kappa: np.ndarray, issues: pd.DataFrame) -> pd.DataFrame:
    """One row an image, the most certain first.

    Columns: index (its place in the set), rank (1: highest κ), kappa, file, folder, issues (those
    of ``find_issues``, joined by commas).
    """
    used = used_files(files)
    table = pd.DataFrame(
        {
            "rank": scipy.stats.rankdata(-kappa, "min").astype(int),
            "kappa": kappa,
            "file": used.file,
            "folder": used.folder,
            "issues": issues_by_image(issues, len(used)),
        }
    )
    table = table.rename_axis("index").reset_index()
    return table.sort_values(["rank", "index"], ignore_index=True)


def stored_ranks(output: Path) -> pd.DataFrame:
    """The kappa.csv of ``write_tables``; names are text, also those of folders of years."""
    return store.read_csv(
        Path(output, "kappa.csv"), dtype={"file": str, "folder": str}, keep_default_na=False
    )


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's; NaN where κ, or what it is compared with, is the same for all images."""
    try:
        return uncertainty.rank_correlation(first, second)
    except uncertainty.UndefinedStatistic:
        return np.nan


def is_constant(kappa: np.ndarray) -> bool:
    """Whether κ is the same for all images: the network was trained for too short a time."""
    return bool(np.ptp(kappa) <= CONSTANT * kappa.mean())


def short_name(name: str, place: int) -> str:
    """A long name cut, and numbered so that it differs from others."""
    if len(name) > LONGEST_NAME:
        return f"{name[: LONGEST_NAME - 5]}… {place}"
    return name


# ------------------------------------------------------------------------- the page
@dataclass(frozen=True)
class Source:
    """The network that κ is of: a committed encoder, or one that was trained on the folder."""

    encoder: str = ""
    images: int = 0
    image_size: int = 0
    epochs: int = 0
    seed: int = 0
    seconds: float = 0.0


def trained_source(settings_of_run: dict) -> Source:
    """The network of a stored training on a folder."""
    path = store.config_path(settings_of_run["profile"], settings.run_name(settings_of_run))
    config = store.read_json(path, ("data", "seconds"))
    return Source(
        images=config["data"]["images"],
        image_size=settings_of_run["image_size"],
        epochs=settings_of_run["epochs"],
        seed=settings_of_run["seed"],
        seconds=config["seconds"],
    )


def contact_sheet(images: np.ndarray, table: pd.DataFrame) -> plt.Figure:
    """The first images of a ranked table in reading order, with rank and κ under each."""
    shown = table.head(ROWS * COLUMNS)
    tiles = images[shown["index"]].reshape(ROWS, COLUMNS, *images.shape[1:])
    notes = [f"{row.rank} · {figures.kappa_text(row.kappa)}" for row in shown.itertuples()]
    return figures.image_grid(tiles, notes=np.array(notes).reshape(ROWS, COLUMNS))


# files: of ``survey``; table: of ``ranked``; issues: of ``find_issues``; uncertainties and about:
# the two tables of ``compare``.
def write_tables(
    output: Path,
    files: pd.DataFrame,
    table: pd.DataFrame,
    issues: pd.DataFrame,
    uncertainties: pd.DataFrame,
    about: pd.DataFrame,
) -> None:
    """Write the tables that the page links to."""
    named = named_issues(issues, table)
    names = table.set_index("index").sort_index().file
    store.write_csv(output / "kappa.csv", table.drop(columns="index"))
    store.write_csv(output / "files.csv", files)
    store.write_csv(output / "issues.csv", named[["issue", "group", "file", "score", "kappa"]])
    store.write_csv(output / "encoders.csv", about)
    store.write_csv(output / "uncertainties.csv", pd.concat([names, uncertainties], axis=1))


def write_page(
    output: Path,
    title: str,
    images: np.ndarray,
    files: pd.DataFrame,
    table: pd.DataFrame,
    issues: pd.DataFrame,
    about: pd.DataFrame,
    source: Source,
) -> None:
    """Write the page and its contact sheets; it loads nothing from elsewhere, names are escaped."""
    brightness = images[table["index"]].mean((1, 2, 3))
    sheets = {
        "most_certain": table.head(ROWS * COLUMNS),
        "least_certain": table.tail(ROWS * COLUMNS)[::-1],
    }
    for name, shown in sheets.items():
        _write_sheet(output / f"{name}.png", images, shown)
    by_name = {row.encoder: row for row in about.itertuples()}
    page = TEMPLATES.get_template("own_images.html.j2").render(
        title=title,
        source=source,
        encoder=by_name.get(source.encoder),
        constant=is_constant(table.kappa.to_numpy()),
        brightness=rank_correlation(brightness, table.kappa.to_numpy()),
        counts=files.status.value_counts().to_dict(),
        status=STATUS,
        sheets=sheets,
        folders=kappa_by_folder(table),
        issues=dict(list(named_issues(issues, table).groupby("issue", sort=False))),
        meaning=ISSUES,
        about=about,
        left_out=files[files.status != "used"],
        noted=files[(files.status == "used") & (files.note != "")],
        kappa_text=figures.kappa_text,
        unlike=encoders.UNLIKE,
    )
    store.write_text(output / "index.html", page)


def named_issues(issues: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The issues with the file and the κ of each image."""
    return issues.join(table.set_index("index")[["file", "kappa"]], on="index")


def kappa_by_folder(table: pd.DataFrame) -> pd.DataFrame:
    """Images, quartiles and median of κ for each sub-folder, the highest median first."""
    quartiles = table.groupby("folder").kappa.describe()[["count", "25%", "50%", "75%"]]
    quartiles.columns = ["images", "lower", "median", "upper"]
    return quartiles.astype({"images": int}).sort_values("median", ascending=False).reset_index()


def _write_sheet(path: Path, images: np.ndarray, shown: pd.DataFrame) -> None:
    figure = contact_sheet(images, shown)
    with store.atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=220)
    plt.close(figure)


# ------------------------------------------------------------------------- an example
def example(folder: Path) -> None:
    """Write a folder to try with.

    96 drawn images in two sub-folders, three copies of the first ones, a white, a black, a noisy
    and a blurred one, and four files that need care: CMYK, an animation, an icon and a broken file.
    """
    drawn = sources.generated(n=96, size=80)
    for place, pixels in enumerate(drawn.images):
        image = Image.fromarray(pixels)
        name = f"{drawn.classes[drawn.labels[place]]} {place:03d}.png"
        path = Path(folder, "even" if place % 2 == 0 else "odd", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        if place < 3:
            copy = path.with_name(f"copy of {place:03d}.jpg")
            image.resize((60, 60)).save(copy, quality=60)
    for name, color in (("white", "white"), ("black", "black")):
        Image.new("RGB", (80, 80), color).save(Path(folder, f"{name}.png"))
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(noise).save(Path(folder, "noise.png"))
    first = Image.fromarray(drawn.images[0])
    first.filter(ImageFilter.GaussianBlur(6)).save(Path(folder, "blurred.png"))
    second = Image.fromarray(drawn.images[1])
    printed = Path(folder, "printed.jpg")
    first.convert("CMYK").save(printed)
    first.save(Path(folder, "moving.gif"), save_all=True, append_images=[second])
    first.resize((4, 4)).save(Path(folder, "icon.png"))
    Path(folder, "broken.png").write_bytes(printed.read_bytes()[:200])
