"""Measure an exported Grounding DINO on 200 scenes that neither training nor the choice of its weights has seen.

python infra/training/evaluate_grounding_dino.py tasks/models/bundled/grounding_dino_scenes
"""

import argparse
import sys
from pathlib import Path

from transformers import GroundingDinoForObjectDetection

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

from evaluation import Examination  # noqa: E402
from scene_data import TEST_SEED  # noqa: E402

_SCENES = 200


def main() -> None:
    """Print AP50, precision and recall for class names and for phrases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    model = GroundingDinoForObjectDetection.from_pretrained(parser.parse_args().folder).eval()
    for name, scores in Examination.drawn(TEST_SEED, _SCENES).scores(model).items():
        print(f"{name:12} {scores}")


if __name__ == "__main__":
    main()
