"""What a table leaves behind: table.md, table.csv, plots, report.html, and how the paper's claims stand."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path

from rela_cli.commands.reproduce.runs import PlannedRuns
from rela_cli.commands.reproduce.tables import LIVE
from rela_cli.pipeline.screen import say
from rela_cli.report.differences.paired import Difference, paired_by_seed
from rela_cli.report.results.collect import collect
from rela_cli.report.results.prior_names import prior_names
from rela_cli.store.files import read_json, write_text

LINE_WIDTH = 78  # letters of a line of explanation
JUDGED = {"full": "rela", "mini": "lbfgs", "smoke": "lbfgs"}  # the protocol that claims are judged by
STANDING = (
    "Each is a difference of mean top-1 at the same seeds, n of them, with its 95 % interval (Student's t).",
    "It holds where all of the interval lies above 0, does not hold where all lies below, is open where 0 lies in it.",
    "With one seed there is no interval: then the sign alone is shown.",
    "A claim of equivalence holds where two one-sided t tests, 5 % each, put the difference within its margin; it does",
    "not hold where all of the interval lies outside.",
)
WORTHLESS = (
    "These runs were far too short: whatever stands here, a claim neither holds nor fails by it (profile=smoke)."
)


def finish(runs: PlannedRuns, out: Path, profile: str) -> None:
    """Write everything into `out`; print the tables and the claims."""
    out.mkdir(parents=True, exist_ok=True)
    markdown, every = [f"# {runs.table.name}, {profile}\n"], list[str]()
    for number, section in enumerate(runs.table.sections):
        folders = [str(folder) for folder in runs.folders(number)]
        if not folders:
            continue
        words = [*folders, *name_options(runs, number)]
        every += words
        say(f"\n{section.title}")
        call_command("table", [*words, "--protocol", JUDGED[profile]])
        markdown += [f"## {section.title}\n", text_of("table", [*words, "--format", "md"])]
    stands = list(claims(runs, JUDGED[profile]))
    if stands:
        say(f"\n{runs.table.whose}, by {JUDGED[profile]}")
        for line in how_claims_stand(profile):
            say(f"  {line}")
        for line in stands:
            say(line)
    if not every:
        return
    if stands:
        markdown += [f"## {runs.table.whose}\n", f"By {JUDGED[profile]}. {' '.join(how_claims_stand(profile))}\n"]
        markdown += [f"- {line.strip()}" for line in stands]
    write_text(out / "table.md", "\n".join(markdown) + "\n", "--to=FOLDER")
    write_text(out / "table.csv", text_of("table", [*every, "--format", "csv"]), "--to=FOLDER")
    call_command("plot", [*every, "--out", str(out / "plots")])
    call_command("report.command", [*every, "--out", str(out / "report.html")])
    say(f"\n  table, plots and report: {out}")


def how_claims_stand(profile: str) -> list[str]:
    """How to read the claims, in lines of a screen's width."""
    lines = (*STANDING, WORTHLESS) if profile == "smoke" else STANDING
    return textwrap.wrap(" ".join(lines), LINE_WIDTH)


def name_options(runs: PlannedRuns, section: int) -> list[str]:
    """What a table has to be told to call the priors that were trained for it by their columns."""
    found = {}
    for (number, name, _), group in runs.by_place.items():
        for planned in group if number == section and not name.endswith(LIVE) else ():  # the same prior as without
            if planned.teacher and not planned.missing and planned.done:
                found[planned.run.folder] = name
    results = collect(list(found), []) if found else []
    ours = zip(prior_names(results, {}), results, strict=True)
    by_folder = {folder.resolve(): name for folder, name in found.items()}
    told = {f"--name={prior}={by_folder[Path(result['path'])]}": None for prior, result in ours}
    return list(told)


def call_command(module: str, words: Sequence[str]) -> None:
    """Another command of ours."""
    import_module(f"rela_cli.commands.{module}").main(list(words))


def text_of(module: str, words: Sequence[str]) -> str:
    """What another command prints."""
    text = StringIO()
    with redirect_stdout(text):
        call_command(module, words)
    return text.getvalue()


# ------------------------------------------------------------------------------------------------------------- claims


def claims(runs: PlannedRuns, protocol: str) -> Iterator[str]:
    """One line a claim: holds, does not hold, or open, with the difference in points and its interval."""
    for claim in runs.table.claims:
        better = top1_by_seed(runs, claim.section, claim.better, claim.budget, protocol)
        than = top1_by_seed(runs, claim.section, claim.than, claim.than_budget, protocol)
        yield f"  {claim.text}: {standing_text(paired_by_seed(better, than), claim.margin)}"


def top1_by_seed(runs: PlannedRuns, section: int, name: str, budget: float, protocol: str) -> dict[int, float]:
    """Top-1 by seed."""
    found = {}
    for planned in runs.by_place.get((section, name, budget), []):
        if planned.missing or not planned.done:
            continue
        number = (read_json(planned.run.folder / "result.json") or {}).get("probe", {}).get(protocol)
        if number:
            found[planned.seed] = float(number["top1"])
    return found


def standing_text(difference: Difference | None, margin: float | None = None) -> str:
    """`holds: +4.1 points [+3.0, +5.2] (n 3)`, as `STANDING` explains it; with a margin, of an equivalence."""
    if difference is None:
        return "not measured"
    points, n = 100 * difference.mean, len(difference.seeds)
    if difference.low is None or difference.high is None:
        if margin is not None:
            return f"open: {points:+.1f} points (n {n}; equivalence needs two seeds or more)"
        word = "holds" if points > 0 else "does not hold"
        return f"{word} by its sign alone: {points:+.1f} points (n {n}, no interval)"
    if margin is None:
        word = "holds" if difference.low > 0 else "does not hold" if difference.high < 0 else "open"
    else:
        outside = 100 * difference.low > margin or 100 * difference.high < -margin
        word = "holds" if difference.is_within(margin / 100) else "does not hold" if outside else "open"
    return f"{word}: {points:+.1f} points [{100 * difference.low:+.1f}, {100 * difference.high:+.1f}] (n {n})"
