"""The figures of compare.py as Markdown, as a picture, and between the markers of README.md.

In: the dictionary that compare.py gathers. Out: compare.json, compare.md, compare.svg. Nothing in them
names this machine or a path on it.

    python -m benchmarks.report       once more from results/compare.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.ours import DRIVERS, called

RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "benchmarks" / "README.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
OURS, GREY, PEER = "#2a78d6", "#808080", "#a0a4a8"
# Of the picture: its sections, and the rows that are ours.
SHOWN = ("register", "out again", "remove", "cold read", "changes")
OURS_SHOWN = {called(driver) for driver in DRIVERS}


def cell(found: dict[str, Any] | None) -> str:
    if not found:
        return ""
    if "error" in found:
        return "failed"
    memory = f" / {found['peak_mb']:.0f}" if found["peak_mb"] else ""
    disturbed = " !" if found["disturbed"] else ""
    return f"{_seconds(found['seconds'])} / {_seconds(found['cpu_seconds'])}{memory}{disturbed}"


def _seconds(value: float) -> str:
    digits = 2 if value >= 0.1 else 3 if value >= 0.001 else 5
    return f"{value:.{digits}f}"


def table(section: dict[str, Any], names: list[str]) -> list[str]:
    names = [name for name in names if any(name in row for row in section["rows"].values())]
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for who, row in section["rows"].items():
        shown = f"**{who}**" if who.startswith("layerstore") else who
        lines.append(f"| {shown} | {' | '.join(cell(row.get(name)) for name in names)} |")
    return lines


def pipeline(section: dict[str, Any], names: list[str]) -> list[str]:
    """How near register comes to its slowest stage alone."""
    parts = []
    for name in names:
        times = {who: row[name]["seconds"] for who, row in section["rows"].items() if "seconds" in row.get(name, {})}
        whole = times.pop("layerstore", None)
        times.pop("tar reader", None)  # a part of record and of unpack
        if whole and times:
            slowest = max(times, key=lambda who: times[who])
            parts.append(f"{name}: {whole / times[slowest]:.2f} times its slowest stage ({slowest}), "
                         f"{whole / sum(times.values()):.2f} of the sum of all")  # fmt: skip
    return [f"register takes, {'; '.join(parts)}."] if parts else []


def markdown(found: dict[str, Any]) -> str:
    names = list(found["layers"])
    lines = [f"Medians of {found['runs']} runs in turn, stores on {found['file system']}, layers in the page cache. "
             "A cell: seconds of wall / CPU seconds of all processes / peak MB of all processes that are not this one. "
             "`!` other programs took more than a fifth of a core meanwhile.", ""]  # fmt: skip
    lines += [f"- {what}: {value}" for what, value in found["machine"].items()]
    lines.append("- peers: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items()))
    lines += ["", "| layer | MB | entries | |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {mb:.0f} | {entries:,} | {origin} |" for name, (mb, entries, origin) in found["layers"].items()
    ]
    for section in found["sections"]:
        if not section["rows"]:
            continue
        lines += ["", f"### {section['title']}: {section['sentence']}", "", *table(section, names)]
        if section["title"] == "stages":
            lines += ["", *pipeline(section, names)]
        for name in names:
            notes = [
                f"{who} {row[name]['note']}" for who, row in section["rows"].items() if row.get(name, {}).get("note")
            ]
            if notes:
                lines += ["", f"Found, {name}: {'; '.join(notes)}."]
    if "costs" in found:
        lines += ["", *costs(found["costs"])]
    return "\n".join(lines) + "\n"


def costs(found: dict[str, Any]) -> list[str]:
    lines = [
        "### memory: what the peak of a fresh process grows by, MB",
        "",
        "| | before | register | then tar_stream |",
        "|---|---|---|---|",
    ]
    for name, grown in found["memory"].items():
        lines.append(
            f"| {name} | {grown['before_mb']:.0f} | +{grown['register_mb']:.1f} | +{grown['tar_stream_mb']:.1f} |"
        )
    lines += ["", "### beside a loop that never rests: a thread of this Python, or a process of its own; seconds", ""]
    lines += ["| | alone | beside the process | beside the thread | thread / process |", "|---|---|---|---|---|"]
    for name, jobs in found["threads"].items():
        for job, times in jobs.items():
            alone, process, thread = (times[who] for who in ("alone", "process", "thread"))
            lines.append(f"| {job}, {name} | {alone:.2f} | {process:.2f} | {thread:.2f} | {thread / process:.2f} |")
    return lines


# ---- the picture --------------------------------------------------------------------------------------
def picture(found: dict[str, Any], to: Path) -> None:
    """Draw bars, ours in blue; no background and mid-grey text, for light pages and dark ones.

    One column, as wide as a narrow screen (400 px), so that its text can be read there; the layers that most peers ran.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    colours = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor")
    pyplot.rcParams.update(dict.fromkeys(colours, GREY))
    pyplot.rcParams.update({"font.size": 8.5, "svg.fonttype": "none", "svg.hashsalt": "layerstore"})
    panels = []
    for section in found["sections"]:
        if section["title"] not in SHOWN:
            continue
        for name in list(found["layers"])[:2]:
            bars = {who: row[name]["seconds"] for who, row in section["rows"].items() if "seconds" in row.get(name, {})}
            bars = {who: value for who, value in bars.items() if who in OURS_SHOWN or not who.startswith("layerstore")}
            if "layerstore" in bars:
                panels.append(
                    (f"{section['title']}: {name}, seconds", dict(sorted(bars.items(), key=lambda bar: -bar[1])))
                )
    if not panels:
        return
    heights = [len(bars) + 1.5 for _, bars in panels]
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(4, 0.19 * sum(heights)), squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    for axis, panel in zip(axes.flat, panels, strict=True):
        _bars(axis, *panel)
    figure.tight_layout()
    figure.savefig(to, transparent=True, metadata={"Date": None})
    pyplot.close(figure)


def _bars(axis: Any, title: str, bars: dict[str, float]) -> None:
    drawn = axis.barh(
        list(bars), list(bars.values()), color=[OURS if who in OURS_SHOWN else PEER for who in bars], height=0.7
    )
    axis.bar_label(drawn, labels=[_seconds(value) for value in bars.values()], padding=3)
    axis.set_title(title, loc="right", fontsize=9, fontweight="bold")
    axis.set_xlim(0, max(bars.values()) * 1.3)
    axis.tick_params(length=0)
    axis.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


# ---- files ----------------------------------------------------------------------------------------------
def write(found: dict[str, Any], results: Path, *, readme: bool) -> None:
    results.mkdir(parents=True, exist_ok=True)
    (results / "compare.json").write_text(json.dumps(found, indent=1) + "\n")
    text = markdown(found)
    (results / "compare.md").write_text(text)
    try:
        picture(found, results / "compare.svg")
    except ImportError:
        print("no picture: matplotlib is not installed (the extra `bench` of pyproject.toml)", file=sys.stderr)
    if readme:
        old = README.read_text()
        head, rest = old.split(BEGIN, 1)
        README.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.split(END, 1)[1]}")


if __name__ == "__main__":
    write(json.loads((RESULTS / "compare.json").read_text()), RESULTS, readme=True)
