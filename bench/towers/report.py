"""docs/benchmarks/towers_speed.md: tables and the figure of bench/towers/speed.py's runs."""

import math
import os
from pathlib import Path
from statistics import median

from bench.shared.report import machine_line
from bench.towers import dmt_figure10
from bench.towers.cases import (
    COMMUNICATION,
    DIMENSION,
    FLAT,
    FLAT_WHOLE,
    GLOBAL_BATCH,
    NARROW,
    TABLES,
    TOWERS,
    TRANSFORM,
)
from bench.towers.fit import (
    FITTED_CLUSTERS,
    FITTED_RATES,
    UNITS,
    fit,
    is_fitted,
    modelled,
    predicted_by_others,
)
from bench.towers.runs import Run, at, baseline, operating_rate, step_ms_at, unlimited

REPORT = Path("docs/benchmarks/towers_speed.md")
FIGURE = Path("docs/images/towers_speed.png")
MEGA = 1e6
WITHIN = 0.2
ABOUT = "## About these runs"  # what follows it is written by hand
SHORT_FLAT, SHORT_TOWERS = "flat, short over arch", "towers, CR 2, short over arch"


def write_report(runs: list[Run]) -> None:
    """The page, which keeps what was written by hand at its end, and its figure."""
    by_hand = written_by_hand(REPORT.read_text() if REPORT.exists() else "")
    head = [
        "# Flat training against towers on a slow network",
        "",
        machine_line(),
        "",
        "    python -m bench.towers.speed --write",
        "",
    ]
    REPORT.write_text("\n".join([*head, *_text(), *report_lines(runs), *by_hand]) + "\n")
    _draw(runs)


def written_by_hand(page: str) -> list[str]:
    """The lines of ``page`` from ABOUT on, and an empty one before; none if it has no such
    section."""
    _, heading, text = page.partition(f"\n{ABOUT}\n")
    return ["", ABOUT, *text.rstrip("\n").split("\n")] if heading else []


def report_lines(runs: list[Run]) -> list[str]:
    """Every table, as Markdown."""
    lines = [*_operating_points(runs), *_where_it_pays(runs)]
    for cluster in dict.fromkeys(run.cluster for run in runs):
        lines += _measured(runs, [run for run in runs if run.cluster == cluster])
    if any(is_fitted(run) for run in runs):
        lines += _model(modelled(runs), os.cpu_count() or 1)
    else:
        lines += ["", f"The cost model is not fitted: no run of {_fitted_clusters()}."]
    return [
        *lines,
        "",
        "## The paper's Figure 10",
        "",
        *dmt_figure10.text(),
        "",
        *dmt_figure10.lines(),
    ]


def speed_up(runs: list[Run], run: Run) -> float:
    """Over the faster flat plan in the same place; the short over arch over the flat one with
    it."""
    flat = at(runs, run, SHORT_FLAT) if run.contender == SHORT_TOWERS else baseline(runs, run)
    return flat.step_ms / run.step_ms


def _text() -> list[str]:
    wire = (
        f"{COMMUNICATION.forward} forward, {COMMUNICATION.backward} backward, "
        f"{COMMUNICATION.gradients} gradients"
    )
    return [
        "Hosts are network namespaces on one machine (bench/towers/cluster.py), each with a",
        f"limited egress rate. Ranks are gloo processes and share {os.cpu_count()} cores.",
        f"There are {TABLES} tables of width {DIMENSION} and {GLOBAL_BATCH} examples per step",
        "over all ranks, so that a step without a rate limit takes 100 to 500 ms. The models",
        "are smaller versions of the paper's, with its ratio of exchanged embeddings to dense",
        f"gradients. All contenders use the same formats ({wire}), with overlap. *Flat* is the",
        "faster of the planner's plan (made for 400 Mbit/s) and whole tables. Each host has",
        "one tower, by stride. Contenders are built once in the same ranks and train in",
        "turns.",
        "",
        "*Exposed* is the step time at the given rate minus the same contender's without a",
        "limit. *Blocked* is how long a rank sleeps in collectives per step, as a mean over",
        "ranks (bench/towers/asleep.py): for bytes in transit, for the processes that pack",
        "and copy them, and for ranks that share its core and arrive later, so it is not 0",
        "without a limit. *Compute saved* is flat minus towers, both without a limit: FLOPs,",
        "and bytes that two cores need not copy. *CPU* is the CPU time of all ranks. *MB per",
        "host* is what the busiest host's interface sent, including headers.",
        "",
        "![Speed-up over flat by network rate](../images/towers_speed.png)",
        "",
    ]


def _operating_points(runs: list[Run]) -> list[str]:
    lines = [
        "## At the paper's operating point",
        "",
        "The rate at which 27.5 % of the flat step is exposed (the paper's Figure 1); all times "
        "are between the rates",
        "measured, linear in 1 / rate. Removing all of the flat step's exposed time and nothing "
        "else would give 1.38.",
        "",
        "| model | hosts x ranks | Mbit/s | flat ms | contender | ms | x | saved: compute ms | "
        "communication ms |",
        "|---|---|---:|---:|---|---:|---:|---:|---:|",
    ]
    for first in runs:
        if first.rate_mbit is not None or first.contender in (FLAT, FLAT_WHOLE, SHORT_FLAT):
            continue
        own = _by_rate(runs, first, first.contender)
        flat = (
            _by_rate(runs, first, SHORT_FLAT)
            if first.contender == SHORT_TOWERS
            else _flat_by_rate(runs, first)
        )
        rate = operating_rate(flat)
        before, after = step_ms_at(flat, rate), step_ms_at(own, rate)
        compute = flat[None] - own[None]
        cells = [
            first.architecture.upper(),
            f"{first.hosts} x {first.ranks_per_host}",
            f"{rate:.0f}",
            f"{before:.0f}",
        ]
        cells += [first.contender, f"{after:.0f}", f"{before / after:.2f}", f"{compute:+.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{before - after - compute:+.0f}'])} |")
    return lines


def _by_rate(runs: list[Run], like: Run, contender: str) -> dict[float | None, float]:
    return {
        run.rate_mbit: run.step_ms
        for run in runs
        if (run.cluster, run.contender) == (like.cluster, contender)
    }


def _flat_by_rate(runs: list[Run], like: Run) -> dict[float | None, float]:
    """The faster of the two flat plans at each rate."""
    planner, whole = (_by_rate(runs, like, name) for name in (FLAT, FLAT_WHOLE))
    return {rate: min(planner[rate], whole[rate]) for rate in whole}


def _where_it_pays(runs: list[Run]) -> list[str]:
    lines = [
        "",
        "## From which rate down it pays",
        "",
        "| model | hosts x ranks | contender | x without a limit | x at 100 Mbit/s | faster than "
        "flat |",
        "|---|---|---|---:|---:|---|",
    ]
    for first in runs:
        if first.rate_mbit is not None or first.contender in (FLAT, FLAT_WHOLE, SHORT_FLAT):
            continue
        same = [
            run for run in runs if run.cluster == first.cluster and run.contender == first.contender
        ]
        points = sorted((run.rate_mbit or math.inf, speed_up(runs, run)) for run in same)
        cells = [
            first.architecture.upper(),
            f"{first.hosts} x {first.ranks_per_host}",
            first.contender,
        ]
        cells += [f"{points[-1][1]:.2f}", f"{points[0][1]:.2f}", _range(points)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _range(points: list[tuple[float, float]]) -> str:
    """Where the speed-up is above 1, by the measured rates."""
    wins = [rate for rate, gain in points if gain > 1]
    if len(wins) == len(points):
        return "at every rate"
    if not wins:
        return "at none"
    below = max(wins)
    if wins != [rate for rate, _ in points if rate <= below]:
        return (
            "at "
            + ", ".join("no limit" if math.isinf(rate) else f"{rate:.0f}" for rate in wins)
            + " Mbit/s"
        )
    return f"at {below:.0f} Mbit/s and below"


def _measured(runs: list[Run], shown: list[Run]) -> list[str]:
    first = shown[0]
    lines = [
        "",
        f"## {first.architecture.upper()}, {first.hosts} hosts of {first.ranks_per_host}",
        "",
        "| Mbit/s | contender | ms | range | samples/s | x flat | exposed ms | blocked ms | CPU ms "
        "| MB per host |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in sorted(shown, key=lambda run: run.rate_mbit or math.inf):
        rate = "no limit" if run.rate_mbit is None else f"{run.rate_mbit:.0f}"
        cells = [
            rate,
            run.contender,
            f"{run.step_ms:.0f}",
            f"{run.spread_ms[0]:.0f} - {run.spread_ms[1]:.0f}",
        ]
        cells += [f"{GLOBAL_BATCH / run.step_ms * 1e3:,.0f}", f"{speed_up(runs, run):.2f}"]
        cells += [
            f"{run.step_ms - unlimited(runs, run).step_ms:.0f}",
            f"{run.blocked_ms:.0f}",
            f"{run.busy_ms:.0f}",
        ]
        lines.append(f"| {' | '.join([*cells, f'{run.host_bytes / MEGA:.2f}'])} |")
    return lines


def _model(runs: list[Run], cores: int) -> list[str]:
    fitted, whole = fit([run for run in runs if is_fitted(run)], cores), fit(runs, cores)
    rates = ", ".join("no limit" if rate is None else f"{rate:.0f}" for rate in FITTED_RATES)
    lines = [
        "",
        "## The cost model on these runs",
        "",
        f"Fitted (least squares of the relative error, no cost below 0) on {_fitted_clusters()}, "
        f"at {rates} Mbit/s; judged on the",
        "rest: other rates, other numbers of hosts, each model on the other's. What is fitted "
        "(which terms, which",
        "clusters) was settled after a look at the first runs. The planner's flat plan is left "
        "out: it splits by rows.",
        "",
        "| cost | value | unit |",
        "|---|---:|---|",
        *(f"| {name} | {value:.3g} | {UNITS[name]} |" for name, value in fitted.costs.items()),
        "",
        "| runs | number | median error | largest | within 20 % |",
        "|---|---:|---:|---:|---:|",
    ]
    judged = [run for run in runs if not is_fitted(run)]
    others = [run for run in judged if run.cluster not in FITTED_CLUSTERS]
    for name, chosen in {
        "fitted": [run for run in runs if is_fitted(run)],
        "judged": judged,
        "judged, other clusters": others,
    }.items():
        lines += _errors(name, chosen, [fitted.predict(run) for run in chosen])
    lines += _errors("all, fitted on all", runs, [whole.predict(run) for run in runs])
    lines += _errors(
        "all, each rate fitted without it",
        runs,
        predicted_by_others(runs, cores, lambda r: r.rate_mbit),
    )
    lines += _errors(
        "all, each cluster fitted without it",
        runs,
        predicted_by_others(runs, cores, lambda r: r.cluster),
    )
    lines += ["", "| model | hosts | contender | Mbit/s | predicted ms | measured ms | error |"]
    lines += ["|---|---:|---|---:|---:|---:|---:|"]
    for run in judged:
        predicted = fitted.predict(run)
        rate = "no limit" if run.rate_mbit is None else f"{run.rate_mbit:.0f}"
        cells = [run.architecture.upper(), str(run.hosts), run.contender, rate, f"{predicted:.0f}"]
        lines.append(
            f"| "
            f"{' | '.join([*cells, f'{run.step_ms:.0f}', f'{predicted / run.step_ms - 1:+.0%}'])} |"
        )
    return lines


def _fitted_clusters() -> str:
    return ", ".join(f"{name} {hosts} hosts" for name, hosts in sorted(FITTED_CLUSTERS))


def _errors(name: str, chosen: list[Run], predicted: list[float]) -> list[str]:
    """A row of the table of errors; none without runs, and where nothing predicts them it says
    so."""
    if chosen and not predicted:
        return [f"| {name} | {len(chosen)} | not fitted: no other runs | | |"]
    errors = [abs(ms / run.step_ms - 1) for run, ms in zip(chosen, predicted, strict=True)]
    if not errors:
        return []
    within = sum(error <= WITHIN for error in errors)
    return [
        f"| {name} | {len(errors)} | {median(errors):.0%} | {max(errors):.0%} | {within} of "
        f"{len(errors)} |"
    ]


def _draw(runs: list[Run]) -> None:
    from recsys.figures import figure_of

    with figure_of(FIGURE, (10, 4.5)) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        shown = {
            "dcn": {TRANSFORM: ":", TOWERS: "--", NARROW: "-"},
            "dlrm": {TRANSFORM: ":", "towers, CR 2": "--", "towers, CR 8": "-"},
        }
        for place, (architecture, styles) in zip(axes, shown.items(), strict=True):
            for colour, hosts in enumerate(sorted({run.hosts for run in runs})):
                for name, style in styles.items():
                    same = [
                        r
                        for r in runs
                        if r.cluster == (architecture, hosts)
                        and r.contender == name
                        and r.rate_mbit
                    ]
                    same.sort(key=lambda run: run.rate_mbit or 0)
                    gains = [speed_up(runs, run) for run in same]
                    rates = [run.rate_mbit for run in same]
                    place.plot(
                        rates,
                        gains,
                        style,
                        marker="o",
                        color=f"C{colour}",
                        label=f"{name}, {hosts} hosts",
                    )
            place.axhline(1.0, color="black", linewidth=0.8)
            place.set(xscale="log", xlabel="Mbit/s per host", title=architecture.upper())
            place.legend(fontsize="x-small")
        axes[0].set_ylabel("speed-up over flat (times)")
