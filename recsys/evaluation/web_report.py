"""The evaluation as a single HTML file with tables, figures and explanations; needs no other file
and no network."""

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from recsys.evaluation.comparison import p_text
from recsys.evaluation.model_table import PLAIN, ModelRow, in_words
from recsys.evaluation.printed import number

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 66rem;
       margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
caption { text-align: left; color: #555; padding-bottom: .3rem; }
th, td { padding: .25rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
th, td { white-space: nowrap; }
.wide { overflow-x: auto; }
tr.plain { background: #f4f4f4; }
figure { margin: 1.5rem 0; } img { max-width: 100%; } figcaption { color: #555; }
.refused { border-left: .3rem solid #d55e00; padding-left: .8rem; }
"""
CAPTIONS = {
    "ne": "Normalised entropy (log loss over the entropy of the click rate; lower is better) by "
    "window. Each prediction was made before the model trained on the window.",
    "calibration": "How often predictions came true, in bins with equal numbers of rows. On the "
    "diagonal a model is right; below it, its predictions are too high.",
    "gain": "NE below plain's, in % of it, with the interval of the bootstrap, by domain and by "
    "how often the rarest of an example's ids had been seen before.",
}
COLUMNS = ("model", "NE", "AUC", "gAUC", "LogLoss", "calibration", "NE - plain", "interval", "p")


def web_page(
    title: str,
    judged: str,
    models: dict[str, Sequence[ModelRow]],
    refusals: dict[str, str],
    figures: dict[str, dict[str, Path]],
) -> str:
    """The page; the same content gives the same text.

    Args:
        judged: a description of the rows on which the models were judged.
        models: each student's models, for its main task.
        refusals: why a student may not be served, by student; only refused students.
        figures: PNG files by student and content (a key of CAPTIONS).
    """
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1><p>{escape(judged)}</p>",
    ]
    for student, rows in models.items():
        parts += [f"<h2>{escape(student)}</h2>", f"<p>{escape(in_words(rows))}</p>"]
        if student in refusals:
            text = escape(f"{student} may not be served as champion: {refusals[student]}.")
            parts.append(f'<p class="refused">{text}</p>')
        parts.append(_table(rows))
        parts += [_figure(path, CAPTIONS[what]) for what, path in figures[student].items()]
    return "\n".join([*parts, "</body></html>\n"])


def _table(rows: Sequence[ModelRow]) -> str:
    heads = "".join(f"<th>{one}</th>" for one in COLUMNS)
    lines = []
    for row in rows:
        cells = [row.model]
        cells += [
            number(row.metrics[name], ".4f")
            for name in ("ne", "auc", "gauc", "logloss", "calibration")
        ]
        if row.model == PLAIN:
            cells += ["", "", ""]
        else:
            interval = f"[{number(row.low, '+.5f')}, {number(row.high, '+.5f')}]"
            cells += [number(row.difference, "+.5f"), interval, p_text(row.p_holm)]
        style = ' class="plain"' if row.model == PLAIN else ""
        inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr{style}>{inner}</tr>")
    caption = "Lower is better for NE and LogLoss; calibration 1 is right on average. p: Holm."
    return (
        f'<div class="wide"><table><caption>{caption}</caption><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _figure(path: Path, caption: str) -> str:
    image = base64.b64encode(path.read_bytes()).decode()
    alt = escape(caption, quote=True)
    return (
        f'<figure><img alt="{alt}" src="data:image/png;base64,{image}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
