"""How often a run asks a bucket that holds its cache; docs/scale.md counts on these numbers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.auto_label import auto_label
from tasks.domain.spec import validate_spec

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("server"), pytest.mark.slow]

THRESHOLDS = (0.6, 0.4)
KINDS = ("annotations", "candidates", "index")


@pytest.fixture
def requests_of(s3, tmp_path: Path, paint_picture: Callable[..., Path]) -> Callable[[int], tuple[int, Counter[str]]]:
    """Labels so many pictures twice: the shards, and the requests of the second run for artifacts, by method."""

    def labelled(pictures: int) -> tuple[int, Counter[str]]:
        place = tmp_path / str(pictures)
        for number in range(pictures):
            objects = [("cat", 0.9 - number / 1000, (4, 4, 40, 30)), ("dog", 0.5, (50, 4, 80, 30))][: number % 3]
            paint_picture(place / "images" / f"{number}.png", objects, (90 + number, 40))
        spec = validate_spec(
            {
                "autolabel_type": "grounding_dino",
                "shard_size": 4,
                "results_dir": str(place / "results"),
                "cache_dir": f"{s3.uri}/{pictures}",
                "storage_options": {"s3": s3.storage_options},
                "grounding_dino": {
                    "checkpoint": "fake",
                    "visualize": False,
                    "iteration_scheduler": [{"conf_threshold": threshold} for threshold in THRESHOLDS],
                    "dataset": {"image_dir": str(place / "images"), "class_names": ["cat", "dog"]},
                },
            }
        )
        auto_label(spec)
        s3.faults.clear()
        shards = auto_label(spec).iterations[-1].shards
        asked = (request.split(" ") for request in s3.faults.asked)
        return shards, Counter(method for method, path in asked if path.split("/")[3:4] in [[kind] for kind in KINDS])

    return labelled


def test_a_run_over_known_labels_asks_for_each_shard_as_often_as_the_documentation_says(requests_of):
    few, of_few = requests_of(12)
    many, of_many = requests_of(36)
    assert of_many - of_few == Counter(GET=(6 + 11 * len(THRESHOLDS)) * (many - few))
    assert set(of_many) == {"GET"}
