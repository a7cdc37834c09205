"""The pages of the site that are made of stored results: verdicts, pictures, the ledger."""

from html import escape
from pathlib import Path

import pandas as pd

from lib.claims import ledger
from lib.pipeline.progress import stored_figures
from lib.runs import settings, store


def write_fragments(profile: str, notebooks: list[str], source: Path) -> None:
    """Write the ledger's page, and the fragments that the front page includes."""
    figures = stored_figures(profile)
    rows = ledger.ledger(profile)
    fragments = source / "_fragments"
    fragments.mkdir()
    (fragments / "verdicts.md").write_text(verdict_bars(rows))
    (fragments / "wall.md").write_text(wall(figures, notebooks, source))
    (source / "ledger.md").write_text(ledger_page(rows, figures, notebooks))


# ------------------------------------------------------------------------------------ front page
def verdict_bars(rows: pd.DataFrame) -> str:
    """A bar of verdicts for each paper, and what the colours mean with their counts."""
    counts = ledger.verdict_counts(rows)
    lines = ["```{raw} html"]
    for paper, title in settings.PAPERS.items():
        segments = []
        for verdict, colour in ledger.COLOURS.items():
            count = counts.loc[paper, verdict]
            if count:
                style = f"flex: {count}; background: {colour}"
                segments.append(f'<span style="{style}" title="{count} {verdict}"></span>')
        lines.append(f"<div>{escape(title)}: {counts.loc[paper].sum()} claims</div>")
        lines.append(f'<div class="verdicts">{"".join(segments)}</div>')
    keys = []
    for verdict, colour in ledger.COLOURS.items():
        swatch = f'<span class="swatch" style="background: {colour}"></span>'
        what = f"recipe {verdict}" if verdict in (ledger.FOLLOWED, ledger.DEVIATES) else verdict
        keys.append(f"{swatch}{counts[verdict].sum()} {what}")
    lines += [f"<p>{' &ensp; '.join(keys)}</p>", "```"]
    return "\n".join(lines) + "\n"


def wall(figures: dict[str, dict], notebooks: list[str], source: Path) -> str:
    """Cards with the pictures that people come for, each linked to its notebook."""
    lines = ["::::{grid} 1 1 2 2", ":gutter: 2", ""]
    for name in settings.pipeline()["front_page"]:
        figure = figures.get(name)
        if figure is None or figure["notebook"] not in notebooks:
            continue
        picture = source / f"{figure['id']}.png"
        picture.write_bytes(figure["picture"].read_bytes())
        lines += [
            ":::{grid-item-card}",
            f":img-top: {picture.name}",
            f":img-alt: {figure['alt']}",
            f":link: {figure['notebook']}",
            ":link-type: doc",
            first_sentence(figure["caption"]),
            ":::",
        ]
    lines.append("::::")
    return "\n".join(lines) + "\n"


def first_sentence(caption: str) -> str:
    """What is to be seen: the first sentence of a caption, without the dot."""
    from lib.figures.save import split_caption  # slow to import: matplotlib

    return split_caption(caption)[0].rstrip(".")


# ---------------------------------------------------------------------------------------- ledger
def ledger_page(rows: pd.DataFrame, figures: dict[str, dict], notebooks: list[str]) -> str:
    """Every claim: what is printed, ours with its interval, the verdict, and where it is shown."""
    verdicts = ledger.verdicts(rows).set_index("claim")
    lines = [
        "# Ledger of claims",
        "",
        "A claim of a paper has one or a few parts. Each part has the published number, what is "
        "claimed of ours, ours with its 95 % interval, and a verdict. The claim has the verdict of "
        "its worst tested part. "
        f"[Its notebook]({settings.pipeline()['ledger']}.ipynb) explains the rule.",
        "",
    ]
    for paper, title in settings.PAPERS.items():
        lines += [f"## {title}", ""]
        of_paper = verdicts[verdicts.paper == paper]
        is_recipe = of_paper.verdict.isin([ledger.FOLLOWED, ledger.DEVIATES])
        is_untested = of_paper.verdict == ledger.NOT_TESTED
        for claim, summary in of_paper[~is_recipe & ~is_untested].iterrows():
            parts = rows[rows.claim == claim]
            lines += _claim(claim, summary, parts, figures, notebooks)
        recipes = of_paper[is_recipe]
        lines += _table_of_claims(f"Recipes of {title}", recipes, "our recipe", recipes.verdict)
        untested = of_paper[is_untested]
        lines += _table_of_claims(
            f"Not tested of {title}", untested, "what a test would take", untested.needs
        )
    return "\n".join(lines) + "\n"


def _claim(
    claim: str,
    summary: pd.Series,
    parts: pd.DataFrame,
    figures: dict[str, dict],
    notebooks: list[str],
) -> list[str]:
    heading = f"### {summary.title}: {summary.verdict}"
    if summary.tested < summary.parts:
        heading += f" ({summary.tested} of {summary.parts} parts tested)"
    lines = [heading, "", f"**{claim}.** {summary.text} ({summary['where']}).", ""]
    table = [["part", "published", "claimed of ours", "ours", "95 % interval", "seeds", "verdict"]]
    for part in parts.itertuples():
        table.append(
            [
                _cell(part.part),
                _number(part.published, part.unit),
                ledger.claimed(part.side, part.bound, part.unit),
                _number(part.ours, part.unit),
                _interval(part.low, part.high),
                "" if pd.isna(part.seeds) else int(part.seeds),
                part.verdict,
            ]
        )
    lines += [store.markdown_table(table), ""]
    links = []
    for figure in figures.values():
        if claim in figure["claims"] and figure["notebook"] in notebooks:
            links.append(f"[{figure['id']}]({figure['notebook']}.ipynb)")
    if links:
        lines += [f"Shown in {', '.join(links)}.", ""]
    runs = sorted(set(" ".join(parts.runs.dropna()).split()))
    if runs:
        names = ", ".join(f"`{name}`" for name in runs)
        lines += [":::{dropdown} Runs behind it", names, ":::", ""]
    return lines


def _table_of_claims(
    heading: str, claims: pd.DataFrame, last_column: str, remarks: pd.Series
) -> list[str]:
    """Claims without numbers, each with what its paper says and a remark; nothing if none."""
    if claims.empty:
        return []
    table = [["claim", "what the paper says", last_column]]
    for claim, summary in claims.iterrows():
        text = f"{summary.text} ({summary['where']})"
        table.append([f"{summary.title} ({claim})", _cell(text), _cell(remarks[claim])])
    return [f"### {heading}", "", store.markdown_table(table), ""]


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|")


def _number(value: float, unit: str) -> str:
    if pd.isna(value):
        return ""
    return f"{value:.4g} {unit}".strip()


def _interval(low: float, high: float) -> str:
    if pd.isna(low) or pd.isna(high):
        return ""
    return f"{low:.4g} to {high:.4g}"
