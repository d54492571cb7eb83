"""The wheel that users install holds all that the commands need, specs and checkpoint too."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's wheel unpacked in it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT], check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def in_wheel(installed: Path, code: str) -> str:
    """What `code` prints when it can import the project from the wheel alone, far from the checkout."""
    program = f"import sys; sys.path.insert(0, {str(installed)!r}); {code}"
    answer = subprocess.run(
        [sys.executable, "-c", program], cwd=installed, check=True, capture_output=True, text=True, timeout=120
    )
    return answer.stdout.strip()


def test_the_specs_ship_in_the_wheel(installed):
    code = "from flows.spec_files import shipped_specs as s; print(*sorted(s()), s()['demo'])"
    *names, path = in_wheel(installed, code).split()
    assert {"box2seg", "demo", "text2box"} <= set(names)
    assert Path(path).is_relative_to(installed)


def test_the_checkpoint_of_the_demo_ships_in_the_wheel(installed):
    code = (
        "from tasks.models import *; "
        "d = load_prompter(DetectorConfig('bundled:grounding_dino_scenes')); "
        "import tasks.models as m; print(len(d.captions(['star', 'ring'])), m.__file__)"
    )
    captions, path = in_wheel(installed, code).split()
    assert captions == "1"
    assert Path(path).is_relative_to(installed)


def test_the_checkpoint_weighs_no_more_than_twelve_megabytes(installed):
    weights = installed / "tasks/models/bundled/grounding_dino_scenes/model.safetensors"
    assert weights.stat().st_size <= 12_000_000
