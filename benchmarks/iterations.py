"""What iterating brings: labels, precision, recall and forwards after each iteration, against one pass.

    python benchmarks/iterations.py --scenes 200

Draws scenes that no training saw, labels them with the detector that ships, once per way of asking, each with an empty
cache, and writes a Markdown table and a JSON file beside this script.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from flows.local_server import ensure_server

HERE = Path(__file__).parent
FALLING = (0.6, 0.4, 0.25)  # as in specs/demo.yaml
WAYS: Mapping[str, tuple[str, Sequence[float]]] = {
    "undetected": ("undetected", FALLING),
    "all": ("all", FALLING),
    "one pass, first threshold": ("all", FALLING[:1]),
    "one pass, last threshold": ("all", FALLING[-1:]),
}
COLUMNS = ("asked", "how", "iteration", "threshold", "forwards", "labels", "precision", "recall", "F1", "AP50")


def main() -> None:
    """Run every way over the same scenes, for class names and for phrases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=200, help="pictures to draw (default: 200)")
    scenes = parser.parse_args().scenes
    ensure_server()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for grounding in (False, True) for row in measure(Path(folder), scenes, grounding=grounding)]
    table = as_markdown(rows)
    print(table)
    (HERE / "iterations.md").write_text(f"# What iterating brings ({scenes} unseen scenes)\n\n{table}\n")
    (HERE / "iterations.json").write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, scenes: int, *, grounding: bool) -> Iterator[dict[str, object]]:
    """A row per way and iteration, forwards summed up to it."""
    # Imported here: Prefect reads the server's address when it is imported.
    from flows.auto_label import auto_label
    from flows.demo import CLASS_TRUTH, PHRASE_TRUTH, demo_spec, write_scenes
    from tasks.evaluate import evaluate
    from tasks.storage.folder import Folder

    results = folder / ("phrases" if grounding else "classes")
    write_scenes(Folder(str(results)), scenes, seed=0)
    for number, (how, (reprompt, thresholds)) in enumerate(WAYS.items()):
        schedule = json.dumps([{"conf_threshold": threshold} for threshold in thresholds])
        overrides = [
            f"results_dir={results}",
            f"cache_dir={results}/cache{number}",
            f"grounding_dino.iteration_scheduler={schedule}",
            f"grounding_dino.reprompt={reprompt}",
            "grounding_dino.visualize=false",
        ]
        record = auto_label(demo_spec(overrides, grounding=grounding))
        report = evaluate(str(results), str(results / (PHRASE_TRUTH if grounding else CLASS_TRUTH)))
        forwards = 0
        for iteration, scores in report.iterations.items():
            forwards += record.iterations[iteration].forwards
            values = (scores.counts.precision, scores.counts.recall, scores.counts.f1, scores.ap50)
            start = ("phrases" if grounding else "class names", how, iteration, thresholds[iteration], forwards)
            yield dict(zip(COLUMNS, (*start, scores.labels, *values), strict=True))


def as_markdown(rows: Sequence[Mapping[str, object]]) -> str:
    """The rows as a Markdown table, rates with three decimals."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        cells = (f"{row[c]:.3f}" if c in COLUMNS[6:] else str(row[c]) for c in COLUMNS)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
