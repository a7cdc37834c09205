"""How sure a network is of each image of somebody's folder, and the page that shows it.

images, files = survey("holiday", image_size=64)     an ImageSet of what can be used, and one row for every file
kappa = score(images, settings=training_settings(len(images), "standard"))["kappa"]
"""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy
from PIL import Image

from lib import methods, training
from lib.data import sets as image_sets
from lib.data import sources as data
from lib.evaluation import encoders, uncertainty
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.figures import charts as plotting
from lib.pipeline import site as gallery
from lib.pipeline.own_files import ALIKE, FEWEST, NAME, STATUS, THUMBNAIL, near_duplicates, survey
from lib.runs import settings as resolution
from lib.runs import store as artifacts

__all__ = [
    "FEWEST",
    "agreement",
    "check_encoder",
    "compare",
    "contact_sheet",
    "example",
    "facts",
    "near_duplicates",
    "ranked",
    "score",
    "short_names",
    "survey",
    "training_settings",
    "write_page",
]

IMAGES_SEEN, MOST_EPOCHS = 150_000, 400
SHEET = (4, 8)  # rows and columns of a contact sheet


# ---------------------------------------------------------------------------------------------------------------- scoring
def training_settings(
    count: int, profile: str, image_size: int = 64, epochs: int = 0, seed: int = 0
) -> dict:
    """Settings of VI-SimSiam for a folder of ``count`` images; epochs 0: as many as show about IMAGES_SEEN images, at most MOST_EPOCHS."""
    epochs = epochs or min(MOST_EPOCHS, max(1, IMAGES_SEEN // count))
    return resolution.resolve(
        "vi_simsiam", profile, dataset=NAME, image_size=image_size, epochs=epochs, seed=seed
    )


def score(
    images: image_sets.ImageSet, encoder: str = "", settings: dict | None = None
) -> evaluation.Embedded:
    """What VI-SimSiam says of every image (features, kappa): a committed encoder, or one trained on these very images with ``settings``."""
    if encoder:
        check_encoder(encoder)
        return ask(encoder, images)
    settings = training_settings(len(images), "standard") if settings is None else settings
    try:
        training.train(settings, images)
    except training.TrainingStopped as error:
        advice = "Images that are all alike cannot be told apart: score them with a committed encoder instead, ENCODER=vi_simsiam."
        raise training.TrainingStopped(f"{error} {advice}") from error
    return evaluation.embed(training.load_trained(settings, 3), images)


def check_encoder(encoder: str) -> None:
    """ValueError, before anything is read, if there is no committed encoder of this name that has κ; "" is none."""
    able = [
        name
        for name, path in encoders.stored().items()
        if "concentration_from" in _info(path)["settings"]
    ]
    if encoder and encoder not in able:
        raise ValueError(
            f"There is no committed encoder {encoder!r} with κ; choose one of {able}, or none to train on the folder."
        )


def _info(encoder: Path) -> dict:
    return artifacts.read_tensors_info(encoder, encoders.INFO)


def ask(encoder: str, images: image_sets.ImageSet) -> evaluation.Embedded:
    """What a committed encoder says of every image, at the size it was trained with."""
    method, info = encoders.load(encoder), _info(encoders.stored()[encoder])
    return evaluation.embed(
        method, images, transform=protocol.fit(info["settings"], info["channels"])
    )


def compare(images: image_sets.ImageSet, kappa: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The uncertainty of every committed encoder: (a column for each [N], one row an encoder).

    Columns of the second: encoder, trained_on, uncertainty (in words), spearman (rank correlation with -κ), unlikeness (encoders.unlikeness, by
    the summary of its training set that lies beside it) and resembles (no, or not told apart).
    """
    columns, rows = {}, []
    for name, path in encoders.stored().items():
        embedded = ask(name, images)
        native, words = methods.own_uncertainty(name)
        columns[f"uncertainty_{name}_{native or 'trivial_norm'}"] = embedded["uncertainty"]
        far = encoders.unlikeness(embedded["features"], encoders.statistics_beside(path))
        rows.append(
            {
                "encoder": name,
                "trained_on": _info(path)["settings"]["dataset"],
                "uncertainty": words,
                "spearman": uncertainty.rank_correlation(embedded["uncertainty"], -kappa),
                "unlikeness": far,
                "resembles": "no" if far > encoders.UNLIKE else "not told apart",
            }
        )
    return pd.DataFrame(columns, index=range(len(kappa))), pd.DataFrame(rows)


def agreement(about: pd.DataFrame, encoder: str, count: int) -> str:
    """Which encoder's order of ``count`` images agrees most with the order by κ, in words, beside what chance gives; about: of ``compare``.

    encoder: the one that κ is of, which is left out ("": none is). Chance: the value that the largest of m rank correlations of unrelated orders
    exceeds in 5 % of cases, the m taken as independent; if encoders resemble one another it is lower.
    """
    others = about[(about.encoder != encoder) & about.spearman.notna()]
    if others.empty:
        return "There is no other encoder whose order could be compared with the order by κ."
    closest, m = others.loc[others.spearman.idxmax()], len(others)
    found = f"rank correlation {closest.spearman:.2f} over {count:,} images, the largest of {m}, of which {(others.spearman < 0).sum()} are negative"
    if closest.spearman <= 0:
        return (
            f"None of the other encoders agrees with the order by κ ({closest.encoder}: {found})."
        )
    chance = scipy.stats.norm.ppf(0.95 ** (1 / m)) / (count - 1) ** 0.5
    verdict = (
        "agrees most with the order by κ"
        if closest.spearman > chance
        else "comes nearest to the order by κ, but not beyond chance"
    )
    return f"Of the other encoders {closest.encoder} {verdict} ({found}; by chance alone up to {chance:.2f})."


def ranked(files: pd.DataFrame, kappa: np.ndarray, columns: pd.DataFrame) -> pd.DataFrame:
    """kappa.csv: file, folder, kappa, rank (1: most certain) and the columns of ``compare``, most certain first; index: the place in the set."""
    used = files.loc[files.status == "used", ["file", "folder"]].reset_index(drop=True)
    table = used.assign(kappa=kappa, rank=scipy.stats.rankdata(-kappa, "min").astype(int))
    table = pd.concat([table, columns], axis=1).rename_axis("index").reset_index()
    return table.sort_values(["rank", "index"], ignore_index=True)


def stored_ranks(output: Path) -> pd.DataFrame:
    """The kappa.csv of ``write_page`` in a folder; names are text, whatever they look like (folders of years)."""
    return artifacts.read_csv(
        Path(output, "kappa.csv"), dtype={"file": str, "folder": str}, keep_default_na=False
    )


def facts(
    images: np.ndarray, kappa: np.ndarray, encoder: str, settings: dict, about: pd.DataFrame
) -> list[str]:
    """Sentences on how the κ of a folder came about: what was trained, or of which encoder it is and whether the images resemble its training set.

    And how far κ follows the plainest property of an image, its brightness (rank correlation).
    """
    said, dead = (
        [],
        "κ is the same for every image: the network was trained for too short a time to tell them apart. Give more epochs.",
    )
    if encoder:
        (row,) = about[about.encoder == encoder].itertuples()
        verdict = {
            "not told apart": f"These images are not told apart from its training set (unlikeness {row.unlikeness:.2f}, at most {encoders.UNLIKE}).",
            "no": f"These images do not resemble its training set (unlikeness {row.unlikeness:.2f}, above {encoders.UNLIKE}): "
            "take the order with care, or leave the encoder out and train on the folder.",
        }
        said += [
            f"κ by the committed encoder {encoder}, trained on {row.trained_on}; nothing was trained here.",
            verdict[row.resembles],
        ]
    else:
        config = artifacts.read_json(
            artifacts.config_path(settings["profile"], resolution.run_name(settings))
        )
        said.append(
            f"VI-SimSiam was trained on these {config['data']['images']:,} images, without labels, at {settings['image_size']} px for "
            f"{settings['epochs']:,} epochs (seed {settings['seed']}, profile {settings['profile']}, {config['seconds']:,.0f} s); another seed "
            "gives another order. κ is of the very images it was trained on."
        )
    if np.ptp(kappa) <= 1e-5 * kappa.mean():
        return [*said, dead]
    follows = uncertainty.rank_correlation(images.mean((1, 2, 3)), kappa)
    return [
        *said,
        f"The rank correlation of κ with the mean brightness of an image is {follows:+.2f}; that part of the order may be no more.",
    ]


def short_names(names: list[str]) -> dict[str, str]:
    """Names as figures can show them: of some 22 letters at most, different ones different, a dollar sign no formula."""
    cut = {
        name: name if len(name) <= 22 else f"{name[:17]}… {place}"
        for place, name in enumerate(names, 1)
    }
    return {name: text.replace("$", r"\$") for name, text in cut.items()}


# ---------------------------------------------------------------------------------------------------------------- the page
def contact_sheet(images: np.ndarray, table: pd.DataFrame) -> plt.Figure:
    """The first images of ``table`` (ranked) in reading order, with rank and κ under each."""
    shown = table.iloc[: SHEET[0] * SHEET[1]]
    notes = np.array(
        [f"{row.rank} · {plotting.kappa_text(row.kappa)}" for row in shown.itertuples()]
    ).reshape(SHEET)
    return plotting.image_grid(
        images[shown["index"]].reshape(*SHEET, *images.shape[1:]), notes=notes
    )


def write_page(
    output: Path,
    title: str,
    images: np.ndarray,
    files: pd.DataFrame,
    table: pd.DataFrame,
    duplicates: pd.DataFrame,
    about: pd.DataFrame,
    facts: list[str],
) -> Path:
    """Write kappa.csv, files.csv, near_duplicates.csv, encoders.csv, both contact sheets and index.html into ``output``; the path of the page.

    facts: sentences on how κ came about, shown first. The page loads nothing from elsewhere, and every name in it is escaped.
    """
    output, named = Path(output), table.set_index("index")
    copies = duplicates.assign(
        file=named.file[duplicates["index"]].to_numpy(),
        kappa=named.kappa[duplicates["index"]].to_numpy(),
    )
    for name, frame in {
        "kappa": table.drop(columns="index"),
        "files": files,
        "encoders": about,
        "near_duplicates": copies[["group", "file", "similarity", "kappa"]],
    }.items():
        artifacts.write_csv(output / f"{name}.csv", frame)
    sheets = {
        "most_certain": table.head(SHEET[0] * SHEET[1]),
        "least_certain": table.tail(SHEET[0] * SHEET[1])[::-1],
    }
    for name, shown in sheets.items():
        figure, buffer = contact_sheet(images, shown), io.BytesIO()
        figure.savefig(buffer, format="png", dpi=220)
        plt.close(figure)
        artifacts.write_bytes(output / f"{name}.png", buffer.getvalue())
    folders = (
        table.groupby("folder")
        .kappa.describe()[["count", "25%", "50%", "75%"]]
        .sort_values("50%", ascending=False)
        .reset_index()
    )
    page = gallery.TEMPLATES.get_template("own_images.html.j2").render(
        title=title,
        facts=facts,
        counts=files.status.value_counts().to_dict(),
        status=STATUS,
        sheets=sheets,
        folders=folders,
        copies=[group for _, group in copies.groupby("group")],
        about=about,
        left_out=files[files.status != "used"],
        noted=files[(files.status == "used") & (files.note != "")],
        kappa_text=plotting.kappa_text,
        alike=ALIKE,
        thumbnail=THUMBNAIL,
        unlike=encoders.UNLIKE,
    )
    artifacts.write_text(output / "index.html", page)
    return output / "index.html"


def example(folder: Path) -> None:
    """Write a folder to try with: 96 drawn images in two sub-folders, three copies of the first ones, and four files that need care."""
    drawn = data.generated(n=96, size=80)
    for place, image in enumerate(map(Image.fromarray, drawn.images)):
        path = Path(
            folder,
            "even" if place % 2 == 0 else "odd",
            f"{drawn.classes[drawn.labels[place]]} {place:03d}.png",
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        if place < 3:
            image.resize((60, 60)).save(path.with_name(f"copy of {place:03d}.jpg"), quality=60)
    first = Image.fromarray(drawn.images[0])
    first.convert("CMYK").save(Path(folder, "printed.jpg"))
    first.save(
        Path(folder, "moving.gif"), save_all=True, append_images=[Image.fromarray(drawn.images[1])]
    )
    first.resize((4, 4)).save(Path(folder, "icon.png"))
    Path(folder, "broken.png").write_bytes(Path(folder, "printed.jpg").read_bytes()[:200])
