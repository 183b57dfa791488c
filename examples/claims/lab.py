"""The laboratory: what every claim's script shares, and the page that is made of their results.

python examples/claims/15_best_of_two.py   # tries one claim; writes docs/claims/15_best_of_two.json and .png
python examples/claims/lab.py              # makes docs/claims.md of all that are there

A claim is decided by one rule, fixed before anything is measured. Its differences are written so that a number above
zero speaks for it: it holds where all of each 95 % interval is above zero, does not where all of one is below, and is
unclear otherwise.
"""

import argparse
import json
import math
import statistics
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import t2i
from t2i.io.images import from_pil
from t2i.run import train
from t2i.stages.registry import load_stage

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "claims"
_STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""The 97.5 % point of Student's distribution by degrees of freedom."""


class Claim(NamedTuple):
    """What a paper says: number and name as in the file's name, the sentence, its place, and what is tried here."""

    number: int
    name: str
    says: str
    paper: str
    tried: str


class Value(NamedTuple):
    """A mean over `num` pictures or trainings, ± half of its 95 % interval."""

    mean: float
    half: float
    num: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Value":
        """Over pictures, scenes or other things of which there are many."""
        half = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.inf
        return cls(statistics.fmean(values), half, len(values))

    @classmethod
    def of_trainings(cls, values: Sequence[float]) -> "Value":
        """Over trainings from different seeds, of which there are few: Student's interval, which holds what pictures
        and trainings add."""
        few = len(values) - 1
        half = _STUDENT.get(few, 2.2) * statistics.stdev(values) / len(values) ** 0.5 if few else math.inf
        return cls(statistics.fmean(values), half, len(values))

    def __str__(self) -> str:
        return f"{self.mean:.4g} ± {self.half:.2g}"


class Difference(NamedTuple):
    """Something that is above zero where the claim is right."""

    what: str
    value: Value


def apart(a: Value, b: Value) -> Value:
    """a - b, of values that have nothing in common."""
    return Value(a.mean - b.mean, math.hypot(a.half, b.half), min(a.num, b.num))


def paired(a: Sequence[float], b: Sequence[float]) -> Value:
    """Mean of a - b over what both were measured on."""
    return Value.of([x - y for x, y in zip(a, b, strict=True)])


def resampled(f: Callable[[Tensor], float], num: int, times: int = 200) -> Value:
    """f of all of `num` things, and the spread that it has over `times` draws of as many of them, with replacement."""
    random = torch.Generator().manual_seed(0)
    drawn = sorted(f(torch.randint(num, (num,), generator=random)) for _ in range(times))
    low, high = drawn[round(0.025 * (times - 1))], drawn[round(0.975 * (times - 1))]
    return Value(f(torch.arange(num)), (high - low) / 2, num)


def verdict(differences: Sequence[Difference]) -> str:
    """`holds`, `does not` or `unclear`: see the head of this file."""
    values = [d.value for d in differences]
    if any(v.mean + v.half < 0 for v in values):
        return "does not"
    return "holds" if all(v.mean - v.half > 0 for v in values) else "unclear"


@dataclass
class Result:
    """What was measured: `rows` by arm and measure, the differences that decide, what the intervals cover, and `data`
    for the plot."""

    rows: dict[str, dict[str, Value]]
    differences: list[Difference]
    covers: str
    data: dict[str, Any] = field(default_factory=dict)
    notes: str = ""


class Lab:
    """Where a claim is tried.

    Args:
        tiny: whether only the way is tried, in seconds, and not the claim.
        folder: of this claim's trainings, which go on where they were stopped.
        seeds: of trainings, and of pictures.
    """

    def __init__(self, tiny: bool, folder: Path, seeds: tuple[int, ...]) -> None:
        self.tiny, self.folder, self.seeds = tiny, folder, seeds
        self.settings: dict[str, Any] = {"seeds": seeds}

    def choose(self, name: str, full: Any, tiny: Any) -> Any:
        """A size of the experiment; it is kept in the result."""
        self.settings[name] = chosen = tiny if self.tiny else full
        return chosen

    def train(self, name: str, config: str, *overrides: str) -> Path:
        """The folder of a trained stage; what is done already is not done again."""
        folder = self.folder / name
        always = ["train.val_every=0", "train.sample_every=0", "train.log_every=50", "data.num_workers=0"]
        train(ROOT / config, [f"train.out={folder}", *always, *overrides])
        return folder


def pictures(drawn: Any) -> Tensor:
    """Those of a pipeline's call, (N, 3, S, S) in [-1, 1]."""
    return torch.stack([from_pil(image) for image in drawn.images])


@torch.no_grad()
def embedded(images: Tensor, batch: int = 64) -> Tensor:
    """Unit embeddings (N, D) of pictures (N, 3, S, S) in [-1, 1] by the bundled CLIP of shapes, float64."""
    clip: Any = load_stage(ROOT / "weights" / "shapes" / "clip", expect="clip")
    return torch.cat([clip.encode_image(part) for part in images.split(batch)]).double()


def frechet(x: Tensor, y: Tensor) -> float:
    """Fréchet distance of Gaussians through (N, D) and (M, D) float64: |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½).

    With X and Y centred and divided by the root of their numbers less one, the trace of the root is the sum of the
    singular values of X Yᵀ, whatever the rank; here it is taken in D dimensions.
    """
    a, b = x - x.mean(dim=0), y - y.mean(dim=0)
    cov_a, cov_b = a.mT @ a / (len(a) - 1), b.mT @ b / (len(b) - 1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(dim=0) - y.mean(dim=0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def diversity(z: Tensor, num: int) -> list[float]:
    """Mean cosine distance of two pictures of one sentence, of each sentence; `num` of each stand side by side in unit
    embeddings (N, D)."""
    groups = z.unflatten(0, (-1, num))  # (G, n, D)
    return (1 - ((groups @ groups.mT).sum(dim=(1, 2)) - num) / (num * (num - 1))).tolist()


def main(claim: Claim, run: Callable[[Lab], Result], plot: Callable[[Any, Result], None], seeds: int = 3) -> None:
    """The command line of a claim's script.

    Args:
        run: does the experiment.
        plot: draws its result on a matplotlib figure.
        seeds: how many, if not told.
    """
    parser = argparse.ArgumentParser(description=claim.says)
    parser.add_argument("--tiny", action="store_true", help="only whether it runs")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="folder of trainings")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the JSON and the plot")
    parser.add_argument("--seeds", type=int, nargs="+")
    args = parser.parse_args()
    name = f"{claim.number:02}_{claim.name}"
    lab = Lab(args.tiny, args.work / name, tuple(args.seeds or range(2 if args.tiny else seeds)))
    began = time.process_time()
    result = run(lab)
    minutes = (time.process_time() - began) / 60
    facts = {
        **claim._asdict(),
        "command": f"python examples/claims/{name}.py",
        "settings": lab.settings,
        "cpu_minutes": round(minutes, 1),
        "rows": {arm: {what: list(v) for what, v in row.items()} for arm, row in result.rows.items()},
        "differences": [[d.what, *d.value] for d in result.differences],
        "covers": result.covers,
        "notes": result.notes,
        "verdict": verdict(result.differences),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_plot(result, plot, args.out / f"{name}.png")
    (args.out / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(table(facts))


def save_plot(result: Result, plot: Callable[[Any, Result], None], path: Path) -> None:
    """Draw with matplotlib, without a window."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(7, 3.4), layout="constrained")
    plot(figure, result)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def bars(ax: Any, rows: dict[str, dict[str, Value]], what: str, label: str) -> None:
    """A dot with its interval for each arm."""
    for i, row in enumerate(rows.values()):
        ax.errorbar([i], [row[what].mean], yerr=[[row[what].half]] * 2, fmt="o", capsize=4, color=f"C{i}")
    ax.set_xticks(range(len(rows)), [name.replace(", ", ",\n") for name in rows], fontsize=8)
    ax.set_xlim(-0.5, len(rows) - 0.5)
    ax.set_ylabel("\n".join(textwrap.wrap(label, 36)))


def table(facts: dict[str, Any]) -> str:
    """A claim's numbers in Markdown, with what decides."""
    rows = {arm: {what: Value(*v) for what, v in row.items()} for arm, row in facts["rows"].items()}
    measures = list(dict.fromkeys(what for row in rows.values() for what in row))
    lines = [f"| | {' | '.join(measures)} |", "|---" * (len(measures) + 1) + "|"]
    for arm, row in rows.items():
        lines.append(f"| {arm} | {' | '.join(str(row[m]) if m in row else '' for m in measures)} |")
    lines.append("")
    lines += [f"{what}: **{Value(*value)}** ({value[-1]})" for what, *value in facts["differences"]]
    return "\n".join([*lines, f"So it **{said(facts)}**."])


def said(facts: dict[str, Any]) -> str:
    """`holds`, `does not hold` or `is unclear`, as said of a claim."""
    return {"holds": "holds", "does not": "does not hold", "unclear": "is unclear"}[facts["verdict"]]


def page(results: Sequence[dict[str, Any]]) -> str:
    """docs/claims.md."""
    count = {kind: sum(r["verdict"] == kind for r in results) for kind in ("holds", "does not", "unclear")}
    hours = sum(r["cpu_minutes"] for r in results) / 60
    lines = [
        "# The papers' claims, tried on a laptop",
        "",
        "Each claim of this lineage is tried by one script of `examples/claims/`, on small networks and the shapes "
        "world. That a claim does not hold here says that it does not show at this size, not that the paper is wrong.",
        "",
        "The rule is fixed before anything is measured: a claim's differences are written so that a number above zero "
        "speaks for it. It holds where all of each 95 % interval is above zero, does not where all of one is below, "
        "and is unclear otherwise. What an interval covers stands with it.",
        "",
        f"{len(results)} were tried in {hours:.1f} hours of one CPU core: {count['holds']} hold, {count['does not']} "
        f"do not, {count['unclear']} are unclear. What several claims train alike is trained, and counted, once. "
        "`python examples/claims/lab.py` makes this page.",
        "",
        "| | claim | paper | what decides | verdict |",
        "|---|---|---|---|---|",
    ]
    for r in results:
        decides = "; ".join(f"{what} {Value(*value)}" for what, *value in r["differences"])
        link = f"[{r['says']}](#{r['number']:02}-{r['name'].replace('_', '-')})"
        lines.append(f"| {r['number']:02} | {link} | {r['paper']} | {decides} | {r['verdict']} |")
    for r in results:
        name = f"{r['number']:02}_{r['name']}"
        settings = ", ".join(f"{key} {_listed(value)}" for key, value in r["settings"].items())
        lines += ["", f"## {r['number']:02} {r['name'].replace('_', ' ')}", "", f"**{r['says']}** ({r['paper']})", ""]
        lines += [
            r["tried"],
            "",
            "```bash",
            r["command"],
            "```",
            "",
            table(r),
            "",
            f"{r['covers']} {r['notes']}".strip(),
        ]
        lines += ["", f"{r['cpu_minutes']:.1f} CPU minutes; {settings}.", "", f"![{r['says']}](claims/{name}.png)"]
    return "\n".join(lines) + "\n"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def open_pipeline(name: str) -> Any:
    """A bundled pipeline on the CPU, whose repeatable arithmetic the numbers are of."""
    return t2i.Pipeline.from_pretrained(name, device="cpu")


if __name__ == "__main__":
    found = [json.loads(path.read_text()) for path in sorted(DOCS.glob("[0-9][0-9]_*.json"))]
    (ROOT / "docs" / "claims.md").write_text(page(found))
    sys.stderr.write(f"{len(found)} claims in docs/claims.md\n")
