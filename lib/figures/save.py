"""Saving what a notebook shows: a figure with its data, caption and provenance, a table as CSV.

A figure is four or five files in results/<profile>/figures: <id>.png for the screen, <id>.pdf for
print (not for profiles that are illustrations only), <id>.csv with exactly what is drawn, and
<id>.json with the caption and where the figure comes from. All writes are atomic. The JSON comes
last, so that a figure with a JSON is complete.
"""

import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import PIL.Image
from IPython import get_ipython
from IPython.display import Image, Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures.style import STYLE_FILE
from lib.runs import store
from lib.runs.settings import ILLUSTRATIONS

NOTEBOOK_DPI = 110  # of the pictures inside executed notebooks
PDF_DPI = 300  # of what is rasterised inside a PDF
DIGITS = 5  # of the numbers in a figure's CSV
# No dates and versions in the files: the same data then give the same bytes.
METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None}}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[^a-z\s])")


@dataclass(frozen=True)
class Report:
    """What one notebook shows in one profile.

    Example:
        >>> report = Report("32_kappa_as_confidence", "standard")
        >>> report.table("32_auroc", auroc)
        >>> report.figure("32_roc", roc_plot(curves), data=curves, caption="κ detects errors. …")
    """

    notebook: str
    profile: str

    def figure(
        self,
        id: str,
        drawn: Figure | Axes | np.ndarray,
        *,
        data: pd.DataFrame,
        caption: str,
        alt: str = "",
        claims: Iterable[str] = (),
        inputs: Iterable[str | Path] = (),
    ) -> None:
        """Write results/<profile>/figures/<id>.{png,pdf,csv,json}; in a notebook, show the figure.

        Args:
            drawn: the figure, or axes of it. It is closed.
            data: exactly what is drawn, tidy, units in the column names.
            caption: what is to be seen, in one sentence (shown bold), and how to read the figure.
            alt: the trend in words, for whoever cannot see the figure; by default the first
                sentence of the caption.
            claims: ids of claims that the figure answers.
            inputs: the files that were read; they are stored with their hashes.
        """
        caption = " ".join(caption.split())
        if not caption:
            raise ValueError(f"Figure {id} has no caption: say what is to be seen.")
        if data.empty:
            raise ValueError(f"The data of figure {id} have no rows: pass exactly what is drawn.")
        figure = figure_of(drawn)
        alt = alt or split_caption(caption)[0]
        path = _figure_path(id, self.profile)
        picture = _picture(figure, "png")
        store.write_bytes(path.with_suffix(".png"), picture)
        if self.profile not in ILLUSTRATIONS:
            store.write_bytes(path.with_suffix(".pdf"), _picture(figure, "pdf", dpi=PDF_DPI))
        store.write_csv(path.with_suffix(".csv"), data, digits=DIGITS)
        record = {
            "id": id,
            "caption": caption,
            "alt": alt,
            "claims": list(claims),
            "notebook": self.notebook,
            "profile": self.profile,
            "inputs": _hashes(inputs),
            "commit": store.commit(),
        }
        store.write_json(path, record)
        plt.close(figure)
        _show(Image(_smaller(picture), alt=alt), _in_bold(caption))

    def save(self, id: str, table: pd.DataFrame) -> None:
        """Save a table as CSV, all digits, without showing it."""
        store.write_csv(store.table_path(self.profile, id), table)

    def table(self, id: str, table: pd.DataFrame) -> None:
        """Save a table as CSV, all digits, and show it."""
        self.save(id, table)
        self.show(table)

    def show(self, table: pd.DataFrame, caption: str = "") -> None:
        """Show a table as people read it: four digits, nothing for what is missing."""
        if table.empty:
            _show(Markdown("*No stored run has this yet.*"))
            return
        shown = table.style.format(_readable, na_rep="")
        if pd.api.types.is_integer_dtype(table.index):  # numbers of rows
            shown = shown.hide(axis="index")
        _show(shown, *([_in_bold(caption)] if caption else []))


def _readable(value) -> str:
    """A cell of a table: numbers with four digits, thousands separated."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return str(value)
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def show_stored(id: str, profile: str) -> None:
    """Show a stored figure with its caption, where what it is computed from is not available.

    Example:
        figures.show_stored("32_roc", "standard")
    """
    path = _figure_path(id, profile)
    if not path.exists():
        raise FileNotFoundError(
            f"no stored figure {id} for profile {profile}: run `make reproduce PROFILE={profile}`"
        )
    record = store.read_json(path, ("alt", "caption", "commit"))
    picture = Image(path.with_suffix(".png").read_bytes(), alt=record["alt"], width=600)
    note = f"*Stored at commit {record['commit']}; drawn again where its images are available.*"
    _show(picture, Markdown(f"{_in_bold(record['caption']).data} {note}"))


def stored_ids(prefix: str, profile: str) -> list[str]:
    """The ids of the stored figures that begin so, sorted.

    Example:
        figures.stored_ids("30_", "standard")  # ["30_kappa_by_class", …]
    """
    folder = store.results_dir(profile) / "figures"
    return sorted(path.stem for path in folder.glob(f"{prefix}*.json"))


def stored_data(id: str, profile: str, inputs: Iterable[str | Path]) -> pd.DataFrame | None:
    """The data of a stored figure, if it was drawn from these inputs as they are now; else None.

    For what takes a network to compute, such as t-SNE, where the network is not available.
    Classes are read as text.

    Example:
        plane = figures.stored_data("20_tsne", "standard", inputs=[])
    """
    path = _figure_path(id, profile)
    if not path.exists() or not all(Path(name).exists() for name in inputs):
        return None
    if store.read_json(path, ("inputs",))["inputs"] != _hashes(inputs):
        return None
    return store.read_csv(path.with_suffix(".csv"), dtype={"class": str})


def show_note(text: str) -> None:
    """Show a sentence of Markdown in a notebook; nothing elsewhere."""
    _show(Markdown(text))


def split_caption(caption: str) -> tuple[str, str]:
    """The first sentence of a caption, and the rest."""
    first, *rest = SENTENCE_END.split(caption.strip(), maxsplit=1)
    return first, "".join(rest)


def notebook_picture(figure: Figure, alt: str) -> Image:
    """The figure as an image for a notebook; the figure is closed."""
    content = _smaller(_picture(figure, "png"))
    plt.close(figure)
    return Image(content, alt=alt)


def _smaller(picture: bytes) -> bytes:
    """A PNG at NOTEBOOK_DPI: drawing the figure a second time would take ten times as long."""
    image = PIL.Image.open(io.BytesIO(picture)).convert("RGB")
    dpi = image.info["dpi"][0]
    size = [round(side * NOTEBOOK_DPI / dpi) for side in image.size]
    buffer = io.BytesIO()
    image.resize(size, PIL.Image.Resampling.LANCZOS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def figure_of(drawn: Figure | Axes | np.ndarray) -> Figure:
    """The figure that an axes, or an array of axes, belongs to."""
    if isinstance(drawn, Figure):
        return drawn
    first = np.ravel(np.asarray(drawn, dtype=object))[0]
    return first.get_figure()


def _figure_path(id: str, profile: str) -> Path:
    name = store.plain_name(id, "a figure")
    return store.results_dir(profile) / "figures" / f"{name}.json"


def _picture(figure: Figure, kind: str, dpi: float | None = None) -> bytes:
    """The figure as the bytes of a file, in this project's style whoever drew it.

    dpi: by default that of the style.
    """
    buffer = io.BytesIO()
    with plt.style.context(STYLE_FILE):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata=METADATA[kind])
    return buffer.getvalue()


def _hashes(inputs: Iterable[str | Path]) -> dict[str, str]:
    return {_relative(path): store.sha256(Path(path)) for path in inputs}


def _relative(path: str | Path) -> str:
    """A path as others find it: below the repository, or below results wherever that lies."""
    path = Path(path).resolve()
    results = store.RESULTS.resolve()
    if path.is_relative_to(results):
        return (Path("results") / path.relative_to(results)).as_posix()
    if path.is_relative_to(store.ROOT):
        return path.relative_to(store.ROOT).as_posix()
    return path.name


def _in_bold(caption: str) -> Markdown:
    first, rest = split_caption(caption)
    return Markdown(f"**{first}** {rest}".rstrip())


def _show(*shown) -> None:
    """Display these in a notebook; nothing elsewhere."""
    if get_ipython() is not None:
        display(*shown)
