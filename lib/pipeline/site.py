"""The gallery of a profile: results/<profile>/index.html and README.md, from the stored ledger, figures, tables, runs and executed notebooks.

The pages load nothing from anywhere else: style inline, pictures beside them or inside them, no scripts. `python -m lib.pipeline.site PROFILE` builds
them, and those that are of all profiles: results/README.md, the hours behind each claim; results/DEVIATIONS.md, where we differ from the papers; and
the verdicts in the README of the repository.
"""

import argparse
import ast
import html
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable
from itertools import groupby, pairwise
from operator import itemgetter
from os.path import commonprefix, relpath
from pathlib import Path
from urllib.parse import quote

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments import lex
from pygments.lexers import get_lexer_by_name
from pygments.token import Comment, Keyword, Operator, String
from traitlets.config import Config

from lib.runs import settings
from lib.runs import store as artifacts
from lib.runs.settings import PAPERS
from lib.runs.store import markdown_table

TABLE_ROWS, ASKED_ROWS = 1, 100  # of tables that no question leads to, and of those that one does
WORTH_PUBLISHING = ("paper", "standard", "quick")  # the best first
CSV_ALONE = (
    "runs",
    "first",
    "second",
    "not_above_untrained",
    "pairing",
    "p_holm",
)  # columns of which a page is not the place
PIXELS_PER_INCH = 130  # on screen: 300 dpi pictures are shown somewhat larger than in print
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)
HIGHLIGHTED = (
    (Keyword, "b"),
    (Operator.Word, "b"),
    (String, "i"),
    (Comment, "em"),
)  # the tags of tokens; the others need none
# A tag that makes the browser fetch something from elsewhere; plain links to papers are fine.
FETCHES = re.compile(
    r"""<(?:script|link|img|iframe|source|video|audio|embed|object)\b[^>]*\b(?:src|href|data)\s*=\s*["']?(?:https?:)?//""",
    re.I,
)
FIGURE_KEYS = ("id", "caption", "alt", "notebook", "inputs", "claims", "commit")
FEW = (
    "In brackets: those of which a part rests on fewer than three seeds. Inconclusive: not reproduced, every failing interval includes the bound. "
    "Open by its seeds: the interval over seeds and images lies on one side of the bound, Student's t over its seeds alone includes it, or "
    "another precision or seed may move one run by more."
)
VECTORS = ("pdf", "svg")  # git keeps them in figures/ alone (.gitignore)
PUBLISHED = (*VECTORS, "png", "csv")  # beside the JSON
EVIDENCE = "standard"  # the profile that is committed as evidence
BY_PAPER = "Tables and figures of the papers"
AT_HAND = (
    "With a paper at hand: what its tables and figures show, where our runs show the same, on other data mostly and trained shorter, the claims read "
    "off it, and what ours lacks besides."
)
ABOUT = (
    "What this is, what the words mean, and how to run it on your own images or with your own method",
    "README.md",
)
FINDINGS = (
    "What the results say, method by method, and what the numbers alone do not",
    "results/FINDINGS.md",
)
# What the README says of each method: claims of the ledger, and one part of each.
HEADLINES = (
    ("VS2-1", "50 epochs (5 at standard)"),
    ("VS2-1", "100 epochs (10 at standard)"),
    ("VS2-1", "200 epochs (20 at standard)"),
    ("VS2-1", "500 epochs (40 at standard)"),
    ("VS2-3", "AUROC of κ"),
    ("VS2-12", "10 % of highest κ minus 10 % at random"),
    ("SV-3", "MNIST, kNN: SimVAE minus VAE"),
    ("SV-3", "MNIST, kNN: SimVAE minus VAE, trained as long"),
    ("SV-3", "MNIST, kNN: SimVAE minus VAE of as many views and steps (not in the paper)"),
    ("SV-3", "Fashion-MNIST, kNN: SimVAE minus VAE"),
    ("SV-3", "Fashion-MNIST, kNN: SimVAE minus β-VAE"),
    ("SV-6", "SimVAE minus VAE"),
    ("SV-5", "share of the gap closed"),
    ("SV-4", "MNIST, MP: SimVAE minus SimCLR"),
    ("SV-4", "MNIST, MP: SimVAE minus VicREG"),
    ("SV-4", "Fashion-MNIST, kNN: SimVAE minus SimCLR"),
    ("SV-9", "GMM, MNIST: SimVAE"),
    ("SV-9", "GMM, MNIST: VAE"),
    ("SV-7", "drawn factors: SimVAE minus SimCLR"),
    ("SV-7", "drawn factors: SimVAE minus VAE"),
    ("PM-2", "top-1, ProSMin minus DINO, ViT"),
    ("PM-2", "NLL, ProSMin minus DINO, ViT"),
    ("PM-2", "top-1, ProSMin minus DINO, ResNet (not in the paper)"),
    ("PM-10", "ProSMin minus DINO, dimension 4096"),
    ("PM-10", "dimension 4096 minus 1024"),
    ("VJ-1", "VJE minus SimSiam, linear"),
    ("VJ-3", "AUROC of the likelihood, MNIST"),
    ("VJ-3", "AUROC of the likelihood, CIFAR-100"),
    ("VJ-4", "k-NN, 100,000 degrees of freedom minus 4, at the rate tuned for 4"),
    ("VJ-4", "k-NN, 100,000 degrees of freedom minus 4, at a quarter of the rate"),
)
# What a visitor asks, and where index.html answers: a claim, a figure, a table (t-), or a section; what a profile does not have is left out.
QUESTIONS = (
    ("Which claims hold, and how sure is that?", "holds"),
    ("Does κ tell right from wrong predictions: what became of VS2-3?", "VS2-3"),
    ("From which table is that verdict read?", "VS2-3"),
    ("Which runs does it rest on, and how long did they take?", "VS2-3"),
    (
        "Whose uncertainty tells right from wrong best, and is it better than scores that cost nothing?",
        "80_ranks",
        "80_against_trivial",
        "advice",
    ),
    ("Whose uncertainty notices other data (OOD) best?", "80_ranks", "t-80_ranks", "advice"),
    (
        "Which methods are told apart in linear accuracy?",
        "t-80_differences",
        "t-20_difference",
        "t-60_differences",
    ),
    ("How long did a run take, of SimCLR say?", "runs"),
    (
        "What do augmentations do to κ (box plots), and where are the numbers of the figure?",
        "31_kappa_by_augmentation",
    ),
    ("Does VJE fail towards the Gaussian limit: what became of VJ-4, and why?", "VJ-4"),
    ("What would it take to test a claim that was not tested, PM-1 say?", "PM-1"),
    ("How many claims of each paper have which verdict?", "verdicts"),
    ("How many hours of training are behind a claim, VJ-1 say?", "VJ-1"),
    ("How well are probabilities calibrated, ProSMin's and its rivals'?", "t-50_calibration"),
    ("Which score follows how far an image is cropped, blurred or corrupted?", "advice"),
    ("Where is what a paper's table or figure shows, SimVAE's Figure 10 say?", "by-paper"),
)


class _Exporter(HTMLExporter):
    """Tags in Markdown stay text, in cells and in outputs: a name in it may be anybody's."""

    @pass_context
    def markdown2html(self, context, source):
        renderer = IPythonRenderer(
            escape=True, allow_harmful_protocols=False, exclude_anchor_links=True
        )
        return MarkdownWithMath(renderer=renderer).render(source)


def _highlighted(source: str) -> str:
    """Python as HTML, in few tags: neighbours of one kind share theirs, which has no class (pages of spans are twice as long)."""
    tokens = groupby(
        lex(source, get_lexer_by_name("ipython3", stripnl=False)),
        lambda token: next((tag for kind, tag in HIGHLIGHTED if token[0] in kind), ""),
    )
    parts = (
        (tag, html.escape("".join(text for _, text in part), quote=False)) for tag, part in tokens
    )
    return "".join(f"<{tag}>{text}</{tag}>" if tag else text for tag, text in parts).rstrip("\n")


def build(profile: str) -> Path:
    """Write the gallery of a profile and return the path of index.html; the same results give the same bytes."""
    settings.profile_settings(profile)
    folder = artifacts.results_dir(profile)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no results for profile {profile!r}: run `make reproduce PROFILE={profile}` first"
        )
    figures = [_figure(path, profile) for path in sorted((folder / "figures").glob("*.json"))]
    tables = [_table(path) for path in sorted((folder / "tables").glob("*.csv"))]
    notebooks = _notebooks(folder / "notebooks")
    kinds = {"figures": figures, "tables": tables, "notebooks": notebooks}
    groups = [
        {"number": number, "title": _title(number, [*notebooks, *figures])}
        | {
            kind: [entry for entry in entries if entry["number"] == number]
            for kind, entries in kinds.items()
        }
        for number in sorted({entry["number"] for entries in kinds.values() for entry in entries})
    ]
    runs = _runs(profile)
    claims = _claims(profile, runs)
    for claim in claims:
        own = [figure["id"] for figure in figures if claim["id"] in figure["claims"]]
        claim["figures"] = [id for id in own if id[:2] in claim["numbers"]] or own
        claim["notebooks"] = [
            notebook for notebook in notebooks if notebook["number"] in claim["numbers"]
        ]
    places = {entry["id"]: f"figure {entry['id']}" for entry in figures} | {
        f"t-{entry['id']}": f"table {entry['id']}" for entry in tables
    }
    places |= {claim["id"]: f"claim {claim['id']}" for claim in claims} | (
        {"runs": "all runs"} if runs else {}
    )
    advice = _advice() if profile == EVIDENCE else []
    places |= ({"holds": "what holds", "verdicts": "counts of verdicts"} if claims else {}) | (
        {"advice": "which score to use"} if advice else {}
    )
    by_paper = _by_paper(places, claims)
    places |= {"by-paper": BY_PAPER.lower()} if by_paper else {}
    questions = [
        (text, found)
        for text, *asked in QUESTIONS
        if (found := [(place, places[place]) for place in asked if place in places])
    ]
    home = quote(Path(relpath(artifacts.ROOT, folder)).as_posix())  # the results may lie elsewhere
    ways = [
        (text, f"{home}/{page}")
        for text, page in ([ABOUT, FINDINGS] if profile == EVIDENCE else [ABOUT])
    ]
    content = {
        "profile": profile,
        "home": home,
        "ways": ways,
        "provenance": _provenance(folder / "run.json", figures) + _share(profile, runs),
        "groups": groups,
        "claims": claims,
        "runs": {name: run for name, run in runs.items() if not _tried(run)},
        "searches": _searches(runs),
        "stale": settings.stale_runs(profile),
        "papers": PAPERS,
        "counts": _counts(claims),
        "few": FEW,
        "holds": _holding(claims),
        "questions": questions,
        "advice": advice,
        "caption": _advice_caption() if advice else "",
        "by_paper": by_paper,
        "papers_places": (BY_PAPER, AT_HAND),
    }
    page = TEMPLATES.get_template("gallery.html.j2").render(content)
    artifacts.write_text(
        folder / "index.html", page.replace("&#39;", "'")
    )  # no attribute of the template stands in single quotation marks
    artifacts.write_text(folder / "README.md", _readme(**content))
    if artifacts.RESULTS == artifacts.ROOT / "results":  # pages of the repository, not of a profile
        artifacts.write_text(artifacts.RESULTS / "README.md", _hours())
        artifacts.write_text(artifacts.RESULTS / "DEVIATIONS.md", deviations())
    return folder / "index.html"


def notebook_html(executed: Path) -> Path:
    """Write an executed notebook as one HTML page beside it and return its path; formulas stay TeX source, since no script is loaded.

    A picture that is a stored figure of the profile is a link to it, so that the page holds no second copy; any other is in the page.
    """
    executed = Path(executed)
    try:
        notebook = nbformat.read(executed, as_version=4)
    except nbformat.reader.NotJSONError as error:
        raise ValueError(
            f"{executed} is truncated or not a notebook: delete it and run the job that writes it again"
        ) from error
    _link_figures(notebook, executed)
    # Widgets and scripts would come from a network: the same output holds a picture or a text of them, which does not.
    kinds = [
        "text/html",
        "image/svg+xml",
        "image/png",
        "image/jpeg",
        "text/markdown",
        "text/latex",
        "text/plain",
    ]
    title = _heading(notebook.cells) or executed.stem
    exporter = _Exporter(
        config=Config(NbConvertBase={"display_data_priority": kinds}),
        embed_images=True,
        filters={"highlight_code": _highlighted},
        extra_template_paths=[str(Path(__file__).parent)],
        template_file="notebook.html.j2",
    )
    page, _ = exporter.from_notebook_node(
        notebook, resources={"metadata": {"path": str(executed.parent)}, "title": title}
    )
    fetched = FETCHES.search(page)
    if fetched:
        raise ValueError(
            f"{executed} would load {fetched.group(0)[:120]!r} from the network: store what it needs in the notebook"
        )
    page = re.sub(r"\n\s*(?=<t[hd]\b|</tr>)", "", page)  # a row of a table is a line
    path = executed.with_suffix(".html")
    artifacts.write_text(path, page)
    return path


def _link_figures(notebook: nbformat.NotebookNode, executed: Path) -> None:
    """Put links in place of the pictures that have the alt text of one figure of this notebook."""
    stored: dict[str, list[Path]] = {}
    for path in sorted(executed.parent.parent.glob(f"figures/{executed.stem[:2]}_*.json")):
        if path.with_suffix(".png").exists():
            stored.setdefault(artifacts.read_json(path)["alt"], []).append(path.with_suffix(".png"))
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        alt = next(
            (
                said.get("alt")
                for kind, said in output.get("metadata", {}).items()
                if kind in ("image/png", "image/jpeg")
            ),
            None,
        )
        if len(stored.get(alt, ())) == 1:
            (picture,) = stored[alt]
            width, height = _screen_size(picture)
            link = f'<img src="../figures/{quote(picture.name)}" alt="{html.escape(alt)}" width="{width}" height="{height}">'
            output["data"] = nbformat.NotebookNode({"text/html": link})


def _screen_size(picture: Path) -> tuple[int, int]:
    """Width and height of a stored picture as a page shows it."""
    with Image.open(picture) as image:
        scale = PIXELS_PER_INCH / round(image.info.get("dpi", (300, 300))[0])
        return round(image.width * scale), round(image.height * scale)


def _figure(path: Path, profile: str) -> dict:
    from lib.figures.charts import (  # slow to import, and a page of a notebook needs none of it
        closing_sentence,
        split_caption,
    )

    record = artifacts.read_json(path, FIGURE_KEYS)
    picture = path.with_suffix(".png")
    if not picture.exists():
        raise FileNotFoundError(
            f"{path.name} has no {picture.name} beside it: draw the figure again with {record['notebook']}"
        )
    width, height = _screen_size(picture)
    claim, rest = split_caption(record["caption"])
    files = {kind: f"figures/{path.stem}.{kind}" for kind in ("png", "csv", "json")}
    if artifacts.RESULTS.parent == artifacts.ROOT and _published(path.stem, profile):
        files |= {kind: f"../../figures/{path.stem}.{kind}" for kind in VECTORS}
    return record | {
        "number": path.stem[:2],
        "claim": claim,
        "rest": rest.removesuffix(
            closing_sentence(record["id"], record["notebook"])
        ).rstrip(),  # links to both stand below
        "width": width,
        "height": height,
        "files": {
            kind: quote(files[kind]) for kind in ("png", *VECTORS, "csv", "json") if kind in files
        },
        "changed": [name for name, digest in record["inputs"].items() if _changed(name, digest)],
    }


def _published(id: str, profile: str) -> bool:
    """Whether figures/ has this very figure of the profile."""
    record, picture = (
        artifacts.ROOT / "figures" / f"{id}.json",
        artifacts.results_dir(profile) / "figures" / f"{id}.png",
    )
    return (
        record.exists()
        and picture.exists()
        and artifacts.read_json(record, ("sha256",))["sha256"][picture.name]
        == artifacts.sha256(picture)
    )


def _changed(name: str, digest: str) -> bool:
    """Whether an input is here and differs from what was drawn; one that is not here (an embedding) cannot be judged."""
    path = (
        artifacts.RESULTS.joinpath(*Path(name).parts[1:])
        if name.startswith("results/")
        else artifacts.ROOT / name
    )
    return path.is_file() and artifacts.sha256(path) != digest


def _table(path: Path) -> dict:
    frame = artifacts.read_csv(path, dtype=str, keep_default_na=False).drop(
        columns=list(CSV_ALONE), errors="ignore"
    )
    asked, length = any(f"t-{path.stem}" in places for _, *places in QUESTIONS), len(frame)
    begin = (
        frame[frame.iloc[:, 0] == frame.iloc[0, 0]] if length > ASKED_ROWS else frame
    )  # of a long one what its first cell names
    shown = (
        begin if asked else frame.head(0 if path.stem.startswith("90_") else TABLE_ROWS)
    )  # the page begins with the ledger
    # What every row repeats is said once, below.
    same = {
        column: _short(cells.iloc[0])
        for column, cells in frame.items()
        if length > 2 and cells.iloc[0] and (cells == cells.iloc[0]).all()
    }
    shown = shown.drop(columns=list(same))
    rows = [[_short(cell) for cell in row] for row in shown.itertuples(index=False)]
    columns, href = list(shown.columns), quote(f"tables/{path.name}")
    return {
        "id": path.stem,
        "number": path.stem[:2],
        "columns": columns,
        "rows": _shared(rows),
        "same": same,
        "length": length,
        "href": href,
    }


def _shared(rows: list[list[str]]) -> list[list[tuple[str, int]]]:
    """The cells that each row writes, and how many rows each stands for: neighbours share the cells of the first columns where they agree in all of
    those; how many columns that is, the two that agree furthest tell, and the last is never shared."""
    columns = max((len(commonprefix([above, below])) for above, below in pairwise(rows)), default=0)
    columns, written = min(columns, len(rows[0]) - 1) if rows else 0, []
    for first, same in groupby(rows, lambda row: row[:columns]):
        own = [[(cell, 1) for cell in row[columns:]] for row in same]
        written += [[(cell, len(own)) for cell in first] + own[0], *own[1:]]
    return written


def _short(cell: str) -> str:
    """Long decimals to three significant digits, whole numbers to all of theirs; the CSV has every digit."""
    found = re.fullmatch(r"-?(\d+)\.\d{3,}(e[+-]?\d+)?", cell)
    return f"{float(cell):.{max(3, len(found[1]))}g}" if found else cell


def _notebooks(folder: Path) -> list[dict]:
    entries = []
    for path in sorted(folder.glob("[!.]*.ipynb")):
        page = path.with_suffix(".html") if path.with_suffix(".html").exists() else path
        title = _heading(artifacts.read_json(path).get("cells", []))
        entries.append(
            {
                "number": path.stem[:2],
                "name": path.stem,
                "title": title,
                "href": quote(f"notebooks/{page.name}"),
            }
        )
    return entries


def _heading(cells: list[dict]) -> str:
    lines = (
        line
        for cell in cells
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
    )
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")


def _title(number: str, entries: list[dict]) -> str:
    """The heading of the notebook, or its name: 30 Kappa distributions."""
    own = [entry for entry in entries if entry["number"] == number]
    name = next((entry.get("notebook") or entry.get("name") for entry in own), number).split("--")[
        0
    ]
    return next(
        (entry["title"] for entry in own if entry.get("title")),
        f"{number} {name[3:].replace('_', ' ').capitalize()}".strip(),
    )


def _runs(profile: str) -> dict[str, dict]:
    """What the stored runs say of themselves, by name."""
    unknown = {"settings": {}, "seconds": 0, "images_per_second": ""}
    return {
        folder.name: unknown | config for folder, config in artifacts.run_configs(profile).items()
    }


def _hours_of(runs: Iterable[dict]) -> float:
    """Hours that training took, by the runs' own clocks."""
    return sum(run["seconds"] for run in runs) / 3600


def _tried(run: dict) -> bool:
    """Whether a run was trained to choose a hyperparameter, and measured on held-out images alone."""
    return run["settings"].get("split") == "fit"


def _searches(runs: dict[str, dict]) -> list[tuple[str, dict[str, str], float]]:
    """Of the runs that were tried: (what they have in common, the rest of each one's name by name, minutes of training in all)."""
    found: dict[str, dict[str, str]] = {}
    for name in [name for name, run in runs.items() if _tried(run)]:
        common, _, rest = name.partition("-fit-")
        found.setdefault(common, {})[name] = rest
    return [
        (common, names, 60 * _hours_of(runs[name] for name in names))
        for common, names in found.items()
    ]


def _claims(profile: str, runs: dict[str, dict]) -> list[dict]:
    """Every claim of the stored ledger: verdict, parts, what the full test takes, and the names of the files and runs it is judged from."""
    path = artifacts.results_dir(profile) / "tables" / "90_claims.csv"
    if not path.exists():
        return []
    from lib.claims import ledger  # it imports torch

    rows, found = artifacts.read_csv(path).fillna({"unit": ""}), []
    rows = rows[rows.id.isin(ledger.claims())]  # an older ledger may have others
    for entry in ledger.verdicts(rows).to_dict("records"):
        claim, parts = ledger.claims()[entry["id"]], rows[rows.id == entry["id"]]
        measured = set(parts[parts.ours.notna()].part)
        asked = [
            ledger.in_profile(part, profile)
            for part in claim["parts"]
            if part["name"] in measured and "query" in part
        ]
        queries = [
            (part["query"], [run for run in ledger.runs(part, profile) if run in runs])
            for part in asked
        ]
        files = [f"tables/{query['table']}.csv" for query, _ in queries if "table" in query]
        files += [
            f"metrics/{query['notebook']}--{run}.csv"
            for query, named in queries
            if "notebook" in query
            for run in named
        ]
        named = dict.fromkeys(run for _, named in queries for run in named)
        hours = _hours_of(runs[run] for run in named)
        shared = [
            claim[key]
            for key in ("at_standard", "unlike")
            if key in claim and (key == "unlike" or profile == EVIDENCE)
        ]
        words = [
            _part(part)
            | {
                "decides": ledger.BEYOND not in part["part"],
                "reason": _without(part["reason"].replace(ledger.ALONE, ""), shared),
            }
            | (
                open_ := {
                    "inconclusive": ledger.settles_nothing(part["reason"]),
                    "unsettled": ledger.is_unsettled(part["reason"]),
                }
            )
            | {"said": ledger.qualified(part | open_)}
            for part in parts.to_dict("records")
        ]
        found.append(
            entry
            | {
                "said": ledger.qualified(entry),
                "in_part": ledger.tested_in_part(entry),
                "needs": ledger.takes(entry["id"]),
                "runs": list(named),
                "unlike": "; ".join(shared) if measured else "",
                "hours": f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}",
                "seeds": sorted(
                    {int(part["seeds"]) for part in words if part["decides"] and part["seeds"]}
                ),
                "numbers": {(query.get("table") or query["notebook"])[:2] for query, _ in queries},
                "files": [
                    file
                    for file in dict.fromkeys(files)
                    if (artifacts.results_dir(profile) / file).exists()
                ],
                # Parts with one verdict for one reason stand together, under it.
                "reasons": [
                    (key, list(same))
                    for key, same in groupby(
                        words, lambda part: (part["verdict"], _why(part["reason"]))
                    )
                ],
            }
        )
    return sorted(
        found,
        key=lambda claim: (list(PAPERS).index(claim["paper"]), int(claim["id"].split("-")[1])),
    )


def _by_paper(places: dict[str, str], claims: list[dict]) -> dict[str, list[dict]]:
    """By paper its tables and figures (settings/papers.toml): place, shows, lacks, the places of the page that show it, the claims read off it."""
    found = {
        paper: [{"lacks": ""} | entry for entry in entries]
        for paper, entries in settings.read("papers").items()
    }
    for paper, entries in found.items():
        for entry in entries:
            asked = [
                *entry.get("figures", ()),
                *(f"t-{table}" for table in entry.get("tables", ())),
            ]
            entry["here"] = [(place, places[place]) for place in asked if place in places]
            entry["claims"] = [
                claim["id"]
                for claim in claims
                if claim["paper"] == paper and entry["place"] in named_places(claim["where"])
            ]
    return {
        paper: entries
        for paper, entries in found.items()
        if any(entry["here"] for entry in entries)
    }


def named_places(where: str) -> list[str]:
    """The tables and figures that a claim's place names: "Figures 5 right and 6, §7" -> ["Figure 5", "Figure 6"]."""
    kinds = {"Table": "Table", "Fig": "Figure"}
    return [
        f"{kinds[kind]} {number}"
        for kind, rest in re.findall(r"(Table|Fig)\w*\.? ([^A-Z§]*)", where)
        for number in re.findall(r"\d+", rest)
    ]


def _why(reason: str) -> str:
    """A reason without what other cells of its row say, the seeds, how few they are and the published number, so that more parts share one, and
    without what says itself: beside an interval, "on the other side (above 0)"."""
    reason = re.sub(r"^our interval (?:lies )?(.+) \(claimed: ", r"\1 (", reason).removeprefix(
        "our "
    )
    reason = re.sub(r", \d+ seeds?(?=;|$)", "", reason)
    reason = re.sub(
        r"; too few seeds(, |$)|, too few seeds", lambda found: "; " * (found[1] == ", "), reason
    )
    return re.sub(r"(?<=within )(\S+) of [\d.-]+(?=\))", r"\1", reason)


def _without(reason: str, shared: list[str]) -> str:
    """A reason without what is unlike the paper in all parts of its claim, which stands below them once."""
    for told in shared:
        reason = (
            reason.replace(f"; {told}, ", "; ").replace(f"; {told}", "").replace(f", {told}", "")
        )
    return reason


def _part(row: dict) -> dict:
    """A row of the ledger in words, the interval as one; of our number and its interval the digits that a twentieth of its width needs."""
    width = row["ci_high"] - row["ci_low"]
    shown = f".{max(0, math.ceil(math.log10(20 / width)))}f" if width > 0 else ".4g"
    form = dict.fromkeys(("published", "seeds"), ".4g") | dict.fromkeys(
        ("ours", "ci_low", "ci_high"), shown
    )
    number = {name: "" if pd.isna(row[name]) else format(row[name], form[name]) for name in form}
    interval = f"[{number['ci_low']}, {number['ci_high']}]" if number["ci_low"] else ""
    return row | number | {"interval": interval}


def _counts(claims: list[dict]) -> list[list]:
    """How many claims of each paper have which verdict, as rows of cells: head, one row a paper, sum; inconclusive and in brackets: FEW."""
    from lib.claims import ledger

    order = (
        ledger.REPRODUCED,
        ledger.SAME,
        ledger.NOT_REPRODUCED,
        ledger.CONTRADICTED,
        ledger.NOT_TESTED,
        ledger.NOT_TESTABLE,
    )
    verdicts = [
        name
        for name in (*order, ledger.FOLLOWED, ledger.DEVIATES)
        if any(claim["verdict"] == name for claim in claims)
    ]
    found = [[claim for claim in claims if claim["paper"] == paper] for paper in PAPERS] + [claims]

    def cell(own: list[dict], verdict: str) -> int | str:
        few = [claim["few_seeds"] for claim in own if claim["verdict"] == verdict]
        return f"{len(few)} ({sum(few)})" if any(few) else len(few)

    cells = [
        [cell(own, name) for name in verdicts]
        + [sum(claim["inconclusive"] for claim in own), len(own)]
        for own in found
    ]
    return [
        ["paper", *verdicts, "inconclusive", "claims"],
        *([name, *row] for name, row in zip([*PAPERS.values(), "all"], cells, strict=True)),
    ]


def _holding(claims: list[dict]) -> list[tuple[str, list[dict]]]:
    """The claims that hold by how sure that is, in words, the surest first."""
    from lib.claims import ledger

    def doubt(claim: dict) -> tuple[bool, bool, bool]:
        return claim["verdict"] != ledger.REPRODUCED, claim["few_seeds"], claim["unsettled"]

    held = sorted(
        (claim for claim in claims if claim["verdict"] in (ledger.REPRODUCED, ledger.SAME)),
        key=doubt,
    )
    found = [list(same) for _, same in groupby(held, doubt)]
    return [
        (same[0]["said"] + ", on fewer than three seeds" * same[0]["few_seeds"], same)
        for same in found
    ]


def with_results(readme: str) -> str:
    """The README of the repository with the present headlines, what holds, counts of verdicts by paper, and what to use for what, at their marks."""
    runs = _runs(EVIDENCE)
    claims = _claims(EVIDENCE, runs)
    held = [
        [
            said,
            f"{_claim_link(claim, f'results/{EVIDENCE}')} {_escape(claim['statement'])}{claim['in_part']}",
        ]
        for said, same in _holding(claims)
        for claim in same
    ]
    tables = {
        "headlines": _headlines(claims),
        "holds": [["how sure", "claim"], *held],
        "verdicts": _counts(claims),
        "advice": _advice(),
    }
    for name, text in (
        {"runs": _compared(runs)} | {name: markdown_table(rows) for name, rows in tables.items()}
    ).items():
        marks = rf"(<!-- {name} -->\n).*?(<!-- end -->)"
        readme = re.sub(
            marks, lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", readme, flags=re.S
        )
    return readme


def _compared(runs: dict[str, dict]) -> str:
    """The stored runs that methods are compared by, as a list: how many seeds of which method, what a run took, whose learning rate is given."""
    from lib.claims import differences as comparisons  # they import torch
    from lib.evaluation import measure as protocol
    from lib.figures.charts import method_style

    found, lines = {}, []
    for run in protocol.compared_runs(EVIDENCE):
        if run["epochs"]:
            found.setdefault((run["dataset"], run["epochs"], run["backbone"]), []).append(run)
    for (dataset, epochs, backbone), listed in found.items():
        seeds = Counter(run["method"] for run in listed)
        of = [
            f"{number} seed{'s' * (number > 1)} each of {'; '.join(method_style(name).label for name in seeds if seeds[name] == number)}"
            for number in sorted(set(seeds.values()), reverse=True)
        ]
        took = [runs[settings.run_name(run)]["seconds"] / 60 for run in listed]
        lines.append(
            f"- {dataset}, {epochs} epochs, {backbone}: {'. '.join(of)}. A run took {min(took):.0f} to {max(took):.0f} minutes."
        )
    everyone = [run for listed in found.values() for run in listed]
    named, tried = sorted({run["method"] for run in everyone}), comparisons.tuning(EVIDENCE)
    reasons = comparisons.unsearched(EVIDENCE, everyone, tried)
    given = [f"{method_style(name).label} ({reasons[name]})" for name in named if name in reasons]
    lines.append(
        f"- Learning rates are the best of a search with one seed for few epochs, but for: {'; '.join(given) or 'none'}."
    )
    ends = comparisons.at_an_end(tried[tried.method.isin(set(named) - set(reasons))])
    return "\n".join([*lines, *[f"- {ends}"] * bool(ends)])


def _headlines(claims: list[dict]) -> list[list]:
    """HEADLINES as rows of cells, in the ledger's own words and numbers, a claim named once; ValueError for one that the ledger does not have."""
    parts = {
        (claim["id"], part["part"]): part | {"claim": claim}
        for claim in claims
        for _, same in claim["reasons"]
        for part in same
    }
    if absent := [f"{id}, {part}" for id, part in HEADLINES if (id, part) not in parts]:
        raise ValueError(
            f"The ledger has no part {'; '.join(absent)}: name another in gallery.HEADLINES."
        )
    ours = "ours, and its interval (of one seed: over images alone)"
    rows = [
        [
            "claim, and its verdict over all parts tested",
            "part",
            "published",
            ours,
            "seeds",
            "verdict of the part",
        ]
    ]
    for _, same in groupby((parts[headline] for headline in HEADLINES), itemgetter("id")):
        for place, row in enumerate(same):
            claim, link = row["claim"], _claim_link(row, f"results/{EVIDENCE}")
            tested = f"{claim['parts_tested']} of {claim['parts']} parts tested"
            said = (
                ""
                if place
                else f"{link} {_escape(row['statement'])}: **{claim['said']}** ({tested})"
            )
            rows.append(
                [
                    said,
                    _escape(row["part"]),
                    row["published"],
                    _ours(row),
                    row["seeds"],
                    row["said"],
                ]
            )
    return rows


def _advice() -> list[list]:
    """The best stored score of every kind for every use, over all networks and over those of three seeds, as rows of cells (benchmark.advice)."""
    from lib.claims import ledger
    from lib.claims import tables as benchmark  # it imports torch

    path = artifacts.results_dir(EVIDENCE) / "tables" / "80_advice.csv"
    if not path.exists():
        return []
    rows = [
        [
            "to tell apart",
            "kind of score",
            "AUROC or ρ",
            "highest mean",
            "seeds",
            "highest with three seeds",
        ]
    ]

    def shown(row) -> tuple[str, str]:
        return (
            f"{row.value:.2f} [{row.ci_low:.2f}, {row.ci_high:.2f}]",
            f"{row.score} of {benchmark.label(row.method)}",
        )

    for (use, kind), found in artifacts.read_csv(path).groupby(["use", "kind"], sort=False):
        best, of_three = found.iloc[0], found[found.seeds >= ledger.SEEDS]
        other = (
            "the same"
            if best.seeds >= ledger.SEEDS
            else "; ".join(reversed(shown(of_three.iloc[0])))
            if len(of_three)
            else "none"
        )
        rows.append([use, kind, *shown(best), best.seeds, other])
    return rows


def _advice_caption() -> str:
    """What the advice is of, in words."""
    from lib.claims import ledger  # it imports torch

    sets = settings.profile_settings(EVIDENCE)
    near, far = ", ".join(sets["ood_near"]), ", ".join(sets["ood_far"])
    path = artifacts.results_dir(EVIDENCE) / "tables" / "80_benchmark.csv"
    rows = (
        artifacts.read_csv(path).query("measure == 'corruption_spearman' and value.notna()")
        if path.exists()
        else pd.DataFrame({"seeds": []})
    )
    return (
        "Means over seeds, and from the lowest to the highest end of any seed's 95 % interval over images: AUROC, and of “how far” the rank "
        f"correlation ρ with the severity; of corruptions {(rows.seeds >= ledger.SEEDS).sum()} of {len(rows)} networks have three seeds. No tests: "
        f"what one seed has is unconfirmed. Near OOD: {near}; far OOD: {far}; against {sets['dataset']}. k-NN distance: mean cosine distance to the "
        "nearest training images, in features. A method's own: what it says of an image beside the scores that any network has. The ranks of "
        "notebook 80 are of one score a method that was fixed before the runs (the feature norm, where it has none of its own; VJE's log-volume, not "
        "its likelihood) and of methods with three seeds. Of “how far” each network has that one score alone."
    )


def _hours() -> str:
    """results/README.md: of every claim about data that was tested the training hours behind it, in the best profile that tested it."""
    about = (
        "In this folder: what came out, [method by method](FINDINGS.md); [where runs and code differ from the papers](DEVIATIONS.md); "
        f"[the data](../notebooks/data.md); and all numbers and figures, of profile [{EVIDENCE}]({EVIDENCE}/README.md) and of [quick](quick/README.md), an "
        "illustration. What the words of the verdicts mean: [README](../README.md#verdicts)."
    )
    counted = (
        "Wall-clock time of training the runs that a claim is judged from (`seconds` of their config.json); a run counts for each claim. Where the "
        "table behind a claim does not name its runs, they are those of its methods of the seeds that all have."
    )
    lines, done = ["# Results, and the hours behind each claim", "", about, "", counted], set()
    for profile in ("paper", "standard", "quick"):
        runs = _runs(profile)
        tested = [
            claim
            for claim in _claims(profile, runs)
            if claim["parts_tested"] and claim["kind"] != "recipe" and claim["id"] not in done
        ]
        done |= {claim["id"] for claim in tested}
        if runs:
            hours = _hours_of(runs.values())
            used = [run["hardware"] for run in runs.values() if "hardware" in run]
            machines = sorted(
                {
                    f"{on['processor']}, {on['cores']} cores"
                    if on["accelerator"] == "none"
                    else on["accelerator"]
                    for on in used
                }
            )
            lines += [
                "",
                f"## Profile {profile}",
                "",
                f"All {len(runs)} stored runs: {hours:.1f} hours on {_escape('; '.join(machines))}.",
            ]
        cells = []
        for claim in tested:
            seeds = " to ".join(
                str(number) for number in dict.fromkeys(claim["seeds"][:1] + claim["seeds"][-1:])
            )
            link = _claim_link(claim, profile)
            hours = claim["hours"] if claim["runs"] else "in the notebook"
            parts = f"{claim['parts_tested']} of {claim['parts']}"
            cells.append(
                [
                    link,
                    _escape(claim["statement"]),
                    claim["said"],
                    parts,
                    seeds,
                    len(claim["runs"]),
                    hours,
                ]
            )
        lines += (
            [
                "",
                markdown_table(
                    [
                        ["claim", "statement", "verdict", "parts tested", "seeds", "runs", "hours"],
                        *cells,
                    ]
                ),
            ]
            if cells
            else []
        )
    return "\n".join(lines) + "\n"


def deviations() -> str:
    """results/DEVIATIONS.md: where we differ from the papers, as notebooks, recipes and docstrings say it where they do."""
    collected = (
        "Collected from the notebooks, the recipes and the docstrings of `lib`, where each stands beside what it is about: the paper is the one that "
        "is spoken of there, and what is above, below or under a heading is so in the notebook that is linked. Where a notebook speaks of the "
        f"profile's values, those of profile {EVIDENCE} stand at the end, under [Runs](#runs)."
    )
    parts = ["# Deviations from the papers", "", collected, "", "## Notebooks", ""]
    for path in sorted((artifacts.ROOT / "notebooks").glob("*.ipynb")):
        texts = [
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type == "markdown"
        ]
        for found in filter(
            None,
            (
                re.search(r"^## Deviations[^\n]*\n(.*?)(?=^\*\*Next|^## |\Z)", text, re.M | re.S)
                for text in texts
            ),
        ):
            parts += [f"### [{path.stem}](../notebooks/{path.name})", "", found[1].strip(), ""]
    rows = [["where", "deviation"]]
    for path in sorted((artifacts.ROOT / "lib").rglob("*.py")):
        module = ".".join(path.relative_to(artifacts.ROOT).with_suffix("").parts)
        rows += [
            [f"`{module}.{name}`", text]
            for name, text in _said_to_deviate(ast.parse(path.read_text()))
        ]
    recipes = re.findall(
        r"^\[(\w+)\]\n((?:#[^\n]*\n)+)",
        (artifacts.ROOT / "settings" / "recipes.toml").read_text(),
        re.M,
    )
    said = [
        (name, re.search(r"\bDeviations?: (.*)", " ".join(comment.replace("#", "").split())))
        for name, comment in recipes
    ]
    unlike = [
        ["recipe", "deviation"],
        *([f"`{name}`", found[1].replace("|", r"\|")] for name, found in said if found),
    ]
    parts += [
        "## Recipes",
        "",
        markdown_table(unlike),
        "",
        "## Code",
        "",
        markdown_table(rows),
        "",
        "## Runs",
        "",
        *_runs_unlike_recipes(),
        "",
    ]
    return "\n".join(parts)


def _runs_unlike_recipes() -> list[str]:
    """Of every method that is trained at EVIDENCE where its run differs from its recipe: of the common protocol, else the first that is listed."""
    first = {}
    for run in settings.runs(EVIDENCE, group=settings.PROTOCOL) + settings.runs(EVIDENCE):
        if run["epochs"]:
            first.setdefault(run["method"], run)
    text = (
        f"What a run at profile {EVIDENCE} has in place of its recipe's value (in brackets), of every method that is trained; of one trained on "
        "several sets it is the run of the common protocol, or the first that is listed. Settings that a method does not read, such as a predictor's "
        "width where there is none, mean nothing there."
    )
    rows = [["method", "data", "in place of the recipe's"]]
    for method, run in first.items():
        changes = [
            f"{name} {_words(here)} ({_words(own)})"
            for name, (here, own) in settings.unlike_recipe(run).items()
        ]
        rows.append([f"`{method}`", run["dataset"], ", ".join(changes)])
    return [text, "", markdown_table(rows)]


def _said_to_deviate(tree: ast.AST, within: str = "") -> list[tuple[str, str]]:
    """(name, text) of every class and function whose docstring says where it deviates: that paragraph from the word on."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            said = re.search(r"\bDeviations?\b.*?(?=\n\n|\Z)", ast.get_docstring(node) or "", re.S)
            if said:
                found.append(
                    (
                        within + node.name,
                        " ".join(re.sub(r"^Deviations?: ", "", said[0]).split()).replace(
                            "|", r"\|"
                        ),
                    )
                )
            found += _said_to_deviate(node, f"{within}{node.name}.")
    return found


def _share(profile: str, runs: dict) -> list[tuple[str, str]]:
    """How many of the runs that a profile lists are stored, and how long all took to train, as (name, text)."""
    listed = {
        settings.run_name(run) for run in settings.runs(profile) + settings.tuning_runs(profile)
    }
    stored = f"{len(listed & runs.keys())} of the {len(listed)} that the profile lists"
    return [("runs stored", stored), ("hours of training", f"{_hours_of(runs.values()):.1f}")]


def _provenance(path: Path, figures: list[dict]) -> list[tuple[str, str]]:
    """Where figures come from, and what run.json says of the longest call, as (name, text), without dates."""
    commits = {figure["commit"] for figure in figures}
    found = (
        [("figures", f"{len(figures)} at {len(commits)} commits; each names its own")]
        if figures
        else []
    )
    if not path.exists():
        return found
    record = artifacts.read_json(path)
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold one JSON object: it holds a {type(record).__name__}")
    kept = {
        name: value for name, value in record.items() if name != "training_seconds"
    }  # runs are listed apart
    count = len(record.get("training_seconds", ()))
    then = f", which found or trained {count} runs" if count else ""
    return [*found, (f"longest call of make reproduce{then}", _words(kept))]


def _words(value) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{str(name).replace('_', ' ')} {_words(part)}" for name, part in value.items()
        )
    return ", ".join(map(_words, value)) if isinstance(value, list) else str(value)


def _readme(
    profile: str,
    ways: list[tuple[str, str]],
    provenance: list[tuple[str, str]],
    groups: list[dict],
    claims: list[dict],
    counts: list[list],
    holds: list,
    questions: list,
    advice: list[list],
    caption: str,
    by_paper: dict[str, list[dict]],
    **_,
) -> str:
    """The same gallery for a repository browser, which shows Markdown and not HTML."""
    lines = [
        f"# Results, profile {_escape(profile)}",
        "",
        "The same with all tables: [index.html](index.html), from disk in any browser.",
        "",
        *(f"[{text}]({href})  " for text, href in ways),
        "",
    ]
    lines += [f"- {_escape(name)}: {_escape(value)}" for name, value in provenance]
    where = {claim["id"]: f"#{_anchor(PAPERS[claim['paper']])}" for claim in claims}
    where |= {
        "runs": "runs",
        "holds": "#claims",
        "verdicts": "#claims",
        "advice": "#which-score-to-use-for-what",
    }
    where["by-paper"] = f"#{_anchor(BY_PAPER)}"
    where |= {f"t-{table['id']}": table["href"] for group in groups for table in group["tables"]}
    where |= {
        figure["id"]: figure["files"]["png"] for group in groups for figure in group["figures"]
    }
    if questions:
        lines += ["", "## Questions", ""]
        lines += [
            f"- {_escape(text)} {', '.join(f'[{_escape(name)}]({where[place]})' for place, name in found)}"
            for text, found in questions
        ]
    lines += (
        ["", "## Which score to use for what", "", caption, "", markdown_table(advice)]
        if advice
        else []
    )
    if claims:
        lines += ["", "## Claims", "", "What holds, the surest first:", ""]
        lines += [
            f"- {said}: {', '.join(f'[{id}]({where[id]})' for id in map(itemgetter('id'), same))}"
            for said, same in holds
        ]
        lines += ["", markdown_table(counts), "", FEW, ""]
        lines += [
            "Of every claim the first part that decides its verdict; all of them, in full: [90_claims.csv](tables/90_claims.csv).",
            "If nothing else is said, an interval of one seed is over images alone.",
        ]
    for paper, name in PAPERS.items():
        own = [claim for claim in claims if claim["paper"] == paper]
        head = (
            [
                [
                    "claim",
                    "statement",
                    "verdict",
                    "parts tested",
                    "part",
                    "published",
                    "ours",
                    "why",
                    "evidence",
                ]
            ]
            if own
            else []
        )
        lines += (
            ["", f"### {name}", "", markdown_table(head + [_row(claim) for claim in own])]
            if own
            else []
        )
    lines += ["", f"## {BY_PAPER}", "", AT_HAND] if by_paper else []
    for paper, entries in by_paper.items():
        rows = [["in the paper", "shows", "here", "claims", "lacks"]]
        for entry in entries:
            here = ", ".join(f"[{_escape(name)}]({where[place]})" for place, name in entry["here"])
            rows.append(
                [
                    entry["place"],
                    _escape(entry["shows"]),
                    here,
                    ", ".join(entry["claims"]),
                    _escape(entry["lacks"]),
                ]
            )
        lines += ["", f"**{PAPERS[paper]}**", "", markdown_table(rows)]
    for group in groups:
        lines += ["", f"## {_escape(group['title'])}", ""]
        links = [
            (notebook["name"], f"notebooks/{quote(notebook['name'])}.ipynb")
            for notebook in group["notebooks"]
        ]
        links += [(f"{table['id']}.csv", table["href"]) for table in group["tables"]]
        lines += [f"- [{_escape(name)}]({href})" for name, href in links]
        for figure in group["figures"]:
            files = " · ".join(
                f"[{kind}]({file})" for kind, file in figure["files"].items() if kind != "png"
            )
            lines += ["", f"![{_escape(figure['alt'])}]({figure['files']['png']})", ""]
            lines += [f"**{_escape(figure['claim'])}** {_escape(figure['rest'])} {files}"]
            if figure["changed"]:
                lines += [
                    "",
                    f"Stale: {_escape(', '.join(figure['changed']))} changed since this figure was drawn.",
                ]
    return "\n".join(lines) + "\n"


def _row(claim: dict) -> list[str]:
    """A claim as a row of the README: a number that decides its verdict, the published one, and links to figures, data, notebooks and runs."""
    judged = [
        part
        for (verdict, _), parts in claim["reasons"]
        for part in parts
        if verdict == claim["verdict"]
    ]
    open_ = {
        key: not claim[key] for key in ("inconclusive", "unsettled")
    }  # such a part does not stand for a claim that is not called so
    part = min(
        judged,
        key=lambda part: (
            not part["decides"],
            not part["ours"],
            *(part[key] and closed for key, closed in open_.items()),
        ),
    )
    links = [(id, f"figures/{id}.png") for id in claim["figures"]] + [
        (Path(file).name, file) for file in claim["files"]
    ]
    links += [
        (notebook["name"], f"notebooks/{notebook['name']}.ipynb") for notebook in claim["notebooks"]
    ]
    links += [(run, f"runs/{run}/config.json") for run in claim["runs"]]
    evidence = ", ".join(f"[{_escape(name)}]({quote(link)})" for name, link in links) or "none"
    evidence += _escape(f"; full test: {claim['needs']}" if claim["needs"] else "")
    shown = [
        _escape(part["part"]) if part["ours"] or part["published"] else "",
        part["published"],
        _ours(part),
        _escape(part["reason"]),
    ]
    return [
        claim["id"],
        _escape(claim["statement"]),
        claim["said"],
        f"{claim['parts_tested']} of {claim['parts']}",
        *shown,
        evidence,
    ]


def _ours(part: dict) -> str:
    """Our number of a part (_part) with its interval and unit; empty where nothing was measured."""
    return (
        f"{part['ours']} {_escape(part['interval'])} {_escape(part['unit'])}".strip()
        if part["ours"]
        else ""
    )


def _claim_link(claim: dict, folder: str) -> str:
    """A claim's id as a link to its paper's claims in the README of a profile's results."""
    return f"[{claim['id']}]({folder}/README.md#{_anchor(PAPERS[claim['paper']])})"


def publish_figures(profile: str = "") -> list[Path]:
    """Make figures/ the figures of a profile, the best complete one if none is named; each JSON gains its runs and the hashes of the other files.

    RuntimeError if what draws them is not committed, or if the profile is not complete: one paper's part of it would take the others' figures away;
    ValueError for one that is not WORTH_PUBLISHING.
    """
    if artifacts.commit().endswith("+"):
        raise RuntimeError(
            "lib, notebooks or settings have uncommitted changes: commit them, so that the published figures name code that is there."
        )
    if profile and settings.profile_settings(profile) and profile not in WORTH_PUBLISHING:
        raise ValueError(
            f"Figures of profile {profile!r} show that everything runs, and no more: publish those of {', '.join(WORTH_PUBLISHING)}."
        )
    wanting = {name: _wanting(name) for name in ([profile] if profile else WORTH_PUBLISHING)}
    profile = next((name for name, what in wanting.items() if not what), "")
    if not profile:
        raise RuntimeError(
            f"No complete results to publish: {'; '.join(f'{name} {what}' for name, what in wanting.items())}. "
            f"Make them with: make reproduce PROFILE={[*wanting][-1]}"
        )
    source, target = artifacts.results_dir(profile) / "figures", artifacts.ROOT / "figures"
    records = [artifacts.read_json(path, FIGURE_KEYS) for path in sorted(source.glob("*.json"))]
    ids = {record["id"] for record in records}
    for old in target.glob("[0-9][0-9]_*"):
        if old.stem not in ids:
            old.unlink()
    stored, listed = _runs(profile), settings.runs(profile, group=settings.PROTOCOL)
    claims = {claim["id"]: claim for claim in _claims(profile, stored)}
    for record in records:
        files = [f"{record['id']}.{kind}" for kind in PUBLISHED]
        for name in files:
            artifacts.write_bytes(target / name, _stored(name, profile).read_bytes())
        hashes, drawn = (
            {name: artifacts.sha256(target / name) for name in files},
            _drawn_runs(record, claims, source / files[-1], stored, listed),
        )
        artifacts.write_json(
            target / f"{record['id']}.json",
            record | {"runs": [run for run in stored if run in drawn], "sha256": hashes},
        )
    return [target / record["id"] for record in records]


def _stored(name: str, profile: str) -> Path:
    """Where a file of a figure is: with the profile, or, of vector graphics that were drawn elsewhere, in figures/ beside the same picture."""
    own = artifacts.results_dir(profile) / "figures" / name
    return (
        own
        if own.exists() or not _published(own.stem, profile)
        else artifacts.ROOT / "figures" / name
    )


def _drawn_runs(
    record: dict, claims: dict[str, dict], data: Path, stored: dict[str, dict], listed: list[dict]
) -> set[str]:
    """The runs that a figure shows: those its inputs name, or its data and the claims that it answers. listed: the runs of the protocol."""
    read = {
        part
        for path in record["inputs"]
        for name in Path(path).parts
        for part in name.removesuffix(".csv").split("--")
    }
    if read & stored.keys():
        return read
    shown, number = artifacts.read_csv(data), record["id"][:2]
    compared = [
        settings.run_name(run) for run in listed if run["method"] in set(shown.get("method", ()))
    ]
    own = [claims[id] for id in record["claims"] if id in claims]
    own = [claim for claim in own if number in claim["numbers"]] or own
    return {*compared, *shown.get("run", ()), *(run for claim in own for run in claim["runs"])}


def _wanting(profile: str) -> str:
    """What a profile lacks to be published, in words; empty if nothing."""
    from lib.evaluation import image_scores  # it imports torch

    folder, account = artifacts.results_dir(profile), artifacts.results_dir(profile) / "run.json"
    records = [
        artifacts.read_json(path, FIGURE_KEYS)
        for path in sorted((folder / "figures").glob("*.json"))
    ]
    files = [f"{record['id']}.{kind}" for record in records for kind in PUBLISHED]
    executed = {path.stem.split("--")[0] for path in (folder / "notebooks").glob("*.ipynb")}
    published = {
        artifacts.read_json(path, FIGURE_KEYS)["notebook"]
        for path in (artifacts.ROOT / "figures").glob("*.json")
    }
    needed = {record["notebook"] for record in records} | published & {
        entry["name"] for entry in settings.notebooks()
    }
    measured = {path.stem.split("--")[1] for path in (folder / "metrics").glob("*--*.csv")} - {
        image_scores.RUN
    }
    lacking = {
        "has no figures": not records,
        "was not run to its end (no run.json)": not account.exists(),
        "lacks": [name for name in files if not _stored(name, profile).exists()],
        "has not executed": sorted(needed - executed),
        "has lost runs": sorted(measured - _runs(profile).keys()),
        "has unfinished runs": [
            name for name, run in _runs(profile).items() if not run.get("finished")
        ],
        "has figures whose inputs changed:": [
            record["id"]
            for record in records
            if any(_changed(*item) for item in record["inputs"].items())
        ],
    }
    what = next((what for what, names in lacking.items() if names), "")
    names = lacking[what] if what and lacking[what] is not True else []
    return " ".join(
        [what, ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)]
    ).strip()


def _anchor(heading: str) -> str:
    return heading.lower().replace(" ", "-")


def _escape(text: str) -> str:
    """Plain text for Markdown: no tags, links, emphasis or code."""
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", html.escape(str(text), quote=False))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.pipeline.site", description="Build the gallery of a profile."
    )
    parser.add_argument("profile")
    try:
        print(build(parser.parse_args().profile))
        if artifacts.RESULTS == artifacts.ROOT / "results":  # the README shows what is committed
            from lib.evaluation import encoders  # it imports torch

            encoders.write_cards()
            artifacts.write_text(
                artifacts.ROOT / "README.md",
                with_results((artifacts.ROOT / "README.md").read_text()),
            )
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
