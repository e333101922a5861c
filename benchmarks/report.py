"""The benchmark's numbers as JSON, as Markdown tables and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from viny.evidence.figures import kit

NAMES = {"pretrain": "Pre-training", "finetune": "Fine-tuning"}


def table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return [*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows), ""]


def spread(value: dict[str, float], digits: int = 0) -> str:
    return f"{value['median']:.{digits}f} ({value['least']:.{digits}f} to {value['most']:.{digits}f})"


def write_report(results: dict[str, Any], folder: Path) -> None:
    """Write speed.json, speed.md and, where batch sizes were tried, speed.png."""
    (folder / "speed.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    machine = results["machine"]
    lines = [f"{', '.join(f'{key}: {value}' for key, value in machine.items() if value is not None)}.", ""]
    lines += ["Medians over the rounds, least to most in brackets.", ""]
    if rows := results.get("training"):
        lines += ["## A stage against the peer and the machine", ""]
        lines += table(
            [
                "stage",
                "precision",
                "peer, images/s",
                "its workers",
                "ours, images/s",
                "over peer",
                "over its float32",
                "over its best",
                "GFLOP/s",
                "limit",
                "share",
                "peer, MB",
                "ours, MB",
            ],
            [
                [
                    row["stage"],
                    row["precision"],
                    spread(row["peer_images_per_second"]),
                    row["peer_workers"],
                    spread(row["images_per_second"]),
                    f"{row['over_peer_same_precision']:.2f}",
                    f"{row['over_peer_float32']:.2f}",
                    f"{row['over_peer_best']:.2f}",
                    f"{row['flops'] / 1e9:.0f}",
                    f"{row['limit_flops'] / 1e9:.0f}",
                    f"{row['share_of_limit']:.2f}",
                    row.get("peer_memory_mb", ""),
                    row.get("ours_memory_mb", ""),
                ]
                for row in rows
            ],
        )
        parts = list(rows[0]["milliseconds_a_step"])
        lines += [f"Where a step of {machine['batch_size']} images goes, milliseconds:", ""]
        lines += table(
            ["stage", "precision", *parts],
            [[row["stage"], row["precision"], *(row["milliseconds_a_step"][part] for part in parts)] for row in rows],
        )
    if found := results.get("grid"):
        each = ", ".join(
            f"{found['passes'][k] / 1e6:.1f} million for {k} in {v:.1f} h" for k, v in found["hours"].items()
        )
        total = sum(found["hours"].values())
        lines += [f"The paper's {found['cells']} cells at these rates: {each}; {total:.1f} hours in all.", ""]
    if rows := results.get("jobs"):
        lines += ["## Jobs beside each other", ""]
        lines += table(
            ["stage", "precision", "jobs", "threads each", "images/s in all"],
            [[r["stage"], r["precision"], r["jobs"], r["threads_each"], spread(r)] for r in rows],
        )
    if found := results.get("packing"):
        lines += ["## Packing JPEGs of 500 x 375 to 128 px, images/s", ""]
        names = {
            "ours": "one thread",
            "ours_threads": f"{found['threads']} threads",
            "peer": "a DataLoader that decodes and resizes, in its own process",
        }
        lines += table(["what", "images/s"], [[text, spread(found[name])] for name, text in names.items()])
    if found := results.get("large"):
        held = f"{found['memory_mb']:,} MB at most ({found['steps']} steps, {found['images_per_second']:.0f} images/s)"
        lines += [f"Pre-training that streams from a pack of {found['images']:,} images holds {held}.", ""]
    if found := results.get("startup"):
        lines += ["## Start-up, seconds", ""]
        lines += table(["what", "seconds"], [[name, spread(value, 2)] for name, value in found.items()])
    if found := results.get("small_jobs"):
        lines += ["## Small jobs, processor seconds", ""]
        lines += table(["job", "seconds"], [[name, spread(value, 2)] for name, value in found.items()])
    if found := results.get("dry_run"):
        lines += ["## Dry run, seconds", ""]
        lines += table(["cells", "seconds"], [[name, spread(value, 2)] for name, value in found.items()])
        overhead = results["overhead"]
        lines += [f"Snakemake takes {1000 * overhead['seconds_a_job']:.0f} ms a job (mean of {overhead['jobs']}).", ""]
    if rows := results.get("scaling"):
        draw(rows, results.get("training", []), folder / "speed.png")
        lines += ["![Images a second against batch size](speed.png)", ""]
    (folder / "speed.md").write_text("\n".join(lines), encoding="utf-8")


def draw(rows: list[dict[str, Any]], training: list[dict[str, Any]], path: Path) -> None:
    """Images per second against batch size: a panel per stage, a line per precision and thread count."""
    with mpl.style.context(kit.STYLE, after_reset=True):
        figure = Figure(figsize=(6.5, 3.0), layout="constrained")
        FigureCanvasAgg(figure)
        stages = list(dict.fromkeys(row["stage"] for row in rows))
        panels = figure.subplots(1, len(stages), sharey=True, squeeze=False)[0]
        kinds = list(dict.fromkeys((row["precision"], row["threads"]) for row in rows))
        for panel, stage in zip(panels, stages, strict=True):
            for kind, colour in zip(kinds, kit.CLASS_COLOURS, strict=False):
                mine = [row for row in rows if row["stage"] == stage and (row["precision"], row["threads"]) == kind]
                sizes = [row["batch_size"] for row in mine]
                below = [row["median"] - row["least"] for row in mine]
                above = [row["most"] - row["median"] for row in mine]
                medians = [row["median"] for row in mine]
                threads = f"{kind[1]} thread{'s' if kind[1] > 1 else ''}"
                label = f"{kind[0]}, {threads}"
                panel.errorbar(sizes, medians, [below, above], marker="o", color=colour, label=label)
            for row in training:
                if row["stage"] == stage:
                    style = {"float32": ":", "bfloat16": "--"}[row["precision"]]
                    peer = row["peer_images_per_second"]["median"]
                    panel.axhline(peer, color="#777777", linestyle=style, label=f"peer, {row['precision']}")
            panel.set_xscale("log", base=2)
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
            panel.set_title(NAMES[stage])
            panel.set_xlabel("Batch size")
        panels[0].set_ylim(bottom=0)  # last, because it fixes the limits
        panels[0].set_ylabel("Training images a second")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(path)
