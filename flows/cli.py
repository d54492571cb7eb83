"""The command line: `autolabel generate | plan | demo | evaluate | train-mal | cache`.

Prefect, torch and the flows are imported by the command that needs them: `--help` answers at once, and the server is
there before `import prefect` reads its settings.
"""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from types import FrameType
from typing import NoReturn

from flows.cache_command import add_cache
from flows.commands import DONE, INTERRUPTED, MENDABLE, SOME_FAILED, STATUS_HELP, Commands, add_command
from tasks.domain.addresses import without_password
from tasks.domain.errors import AutoLabelError
from tasks.domain.spec import ExperimentSpec
from tasks.storage.folder import Folder


def main() -> NoReturn:
    """Run the command that the arguments name, and exit with its status."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Say so, and exit with the status that a shell gives for the signal."""
    del frame
    print("autolabel: terminated; the same command goes on where it stopped", file=sys.stderr)
    sys.exit(128 + number)


def run(arguments: Sequence[str]) -> int:
    """The exit status of a command line, without the program's name; messages for the user go to stderr."""
    options = _parser().parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except AutoLabelError as error:
        print(f"autolabel: {error}", file=sys.stderr)
        return MENDABLE
    except KeyboardInterrupt:
        print("autolabel: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autolabel",
        description="Label images with boxes from words and masks from boxes: Grounding DINO, then Mask Auto-Labeler.",
        epilog=STATUS_HELP,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('autolabel-flow')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_plan(commands)
    _add_demo(commands)
    _add_evaluate(commands)
    _add_train_mal(commands)
    add_cache(commands)
    return parser


def _add_generate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "generate",
        _generate,
        "label the images of a spec",
        "autolabel generate -e specs/text2box.yaml results_dir=out 'grounding_dino.dataset.class_names=[\"bus stop\"]'",
    )
    _add_spec_arguments(parser)


def _add_plan(commands: Commands) -> None:
    parser = add_command(
        commands,
        "plan",
        _plan,
        "say what `generate` would do now, without asking a model",
        "autolabel plan -e specs/text2box.yaml results_dir=out",
    )
    _add_spec_arguments(parser)


def _add_demo(commands: Commands) -> None:
    parser = add_command(
        commands,
        "demo",
        _demo,
        "draw scenes, label them with the models that ship, and compare with the truth",
        "autolabel demo --scenes 20 --grounding results_dir=out",
    )
    parser.add_argument("--scenes", type=_at_least_1, default=40, metavar="N", help="pictures to draw (default: 40)")
    parser.add_argument(
        "--seed", type=_at_least_0, default=0, metavar="S", help="seed of the first picture (default: 0)"
    )
    parser.add_argument(
        "--grounding", action="store_true", help='ask for each scene\'s phrases ("red star") in place of class names'
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the demo's spec")


def _add_evaluate(commands: Commands) -> None:
    parser = add_command(
        commands,
        "evaluate",
        _evaluate,
        "compare labels with ground truth: COCO AP, precision and recall, per class and iteration, or mIoU of masks",
        "autolabel evaluate autolabel-demo --ground-truth autolabel-demo/scenes/ground_truth.json",
    )
    parser.add_argument("labels", metavar="RESULTS_OR_COCO", help="a results_dir, a COCO file, or a COCO results list")
    parser.add_argument("--ground-truth", required=True, metavar="COCO", help="COCO file with the true boxes")
    parser.add_argument(
        "--masks",
        action="store_true",
        help="compare masks in place of boxes: mIoU per class and size, and COCO AP of masks; both files have a "
        "`segmentation` then, and labels need no score (AP takes 1)",
    )
    parser.add_argument("--class-agnostic", action="store_true", help="compare objects, whatever their class")
    parser.add_argument("--json", action="store_true", help="print the report as JSON in place of tables")


def _add_train_mal(commands: Commands) -> None:
    parser = add_command(
        commands,
        "train-mal",
        _train_mal,
        "train the Mask Auto-Labeler on your own boxes; no mask is needed",
        "autolabel train-mal -e specs/train_mal.yaml results_dir=out dataset.train_ann_path=boxes.json "
        "dataset.train_img_dir=images",
    )
    parser.add_argument(
        "-e",
        "--experiment-spec",
        required=True,
        metavar="SPEC",
        help="YAML file, relative to where the command runs; the bare name train_mal means the spec that ships. "
        "docs/spec_train_mal.md lists its keys: lengths are pixels, areas square pixels, the learning rate is that of "
        "one box",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the spec, e.g. train.num_epochs=5"
    )


def _add_spec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-e",
        "--experiment-spec",
        required=True,
        metavar="SPEC",
        help="YAML file, relative to where the command runs; a bare name means a spec that ships, such as `demo`",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to the spec, e.g. grounding_dino.reprompt=all"
    )


def _at_least_1(text: str) -> int:
    return _whole_number(text, 1)


def _at_least_0(text: str) -> int:
    return _whole_number(text, 0)


def _whole_number(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = None
    if number is None or number < least:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, {least} or more")
    return number


def _generate(options: argparse.Namespace) -> int:
    from flows.spec_files import read_spec

    return _label(read_spec(options.experiment_spec, options.overrides))


def _label(spec: ExperimentSpec) -> int:
    from flows.console import errors, output, progress_bars, show_warnings
    from flows.local_server import ensure_server

    if unused := spec.unused_keys():
        errors.print(f"not used here: {', '.join(unused)}")
    if len(spec.gpu_ids) > 1:
        errors.print(f"gpu_ids: only GPU {spec.gpu_ids[0]} is used; this version runs on one GPU")
    api = ensure_server()
    from flows.label_dataset import run_flow
    from flows.mask_console import print_result

    show_warnings()
    with progress_bars():
        state = run_flow(spec)
    page = f"run: {api.removesuffix('/api')}/runs/flow-run/{state.state_details.flow_run_id}"
    if not state.is_completed():
        errors.print(page, soft_wrap=True)
    images = print_result(state.result())
    output.print(f"labels: {without_password(spec.results_dir)}", page, sep="\n", soft_wrap=True)
    return SOME_FAILED if images.failed else DONE


def _plan(options: argparse.Namespace) -> int:
    from flows.console import print_plan, progress_bars, show_warnings
    from flows.mask_console import print_mask_plan
    from flows.mask_plan import plan_masks
    from flows.plan import plan_run
    from flows.spec_files import read_spec

    spec = read_spec(options.experiment_spec, options.overrides)
    show_warnings()
    with progress_bars():
        boxes = plan_run(spec) if spec.makes_boxes else None
        masks = plan_masks(spec, boxes.labels if boxes else None) if spec.makes_masks else None
    if boxes:
        print_plan(boxes)
    if spec.makes_masks:
        print_mask_plan(masks)
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from flows.console import print_evaluation, print_mask_evaluation, progress_bars
    from flows.demo import CLASS_TRUTH, PHRASE_TRUTH, demo_spec, write_scenes
    from flows.sole_run import claimed
    from tasks.evaluate import evaluate, evaluate_mask_files

    spec = demo_spec(options.overrides, grounding=options.grounding)
    results = Folder(spec.results_dir, spec.storage_options)
    # The scenes and what is compared with them belong to the run: nobody may draw others there meanwhile.
    with claimed("results_dir", results, "autolabel demo", exclusive=True):
        with progress_bars():
            write_scenes(results, options.scenes, options.seed)
        status = _label(spec)
        truth = f"{spec.results_dir.rstrip('/')}/{PHRASE_TRUTH if options.grounding else CLASS_TRUTH}"
        print_evaluation(evaluate(spec.results_dir, truth, storage_options=spec.storage_options))
        if spec.makes_masks:
            print_mask_evaluation(evaluate_mask_files(spec.results_dir, truth, storage_options=spec.storage_options))
    return status


def _train_mal(options: argparse.Namespace) -> int:
    from flows.console import errors, output, progress_bars, show_warnings
    from flows.local_server import ensure_server
    from flows.spec_files import read_train_mal_spec

    spec = read_train_mal_spec(options.experiment_spec, options.overrides)
    if unused := spec.unused_keys():
        errors.print(f"not used here: {', '.join(unused)}")
    api = ensure_server()
    from flows.train_mal import train_mal
    from flows.training_report import print_training

    show_warnings()
    with progress_bars():
        state = train_mal(spec, return_state=True)
    page = f"run: {api.removesuffix('/api')}/runs/flow-run/{state.state_details.flow_run_id}"
    if not state.is_completed():
        errors.print(page, soft_wrap=True)
    record = state.result()
    print_training(record)
    output.print(f"network: {without_password(spec.results_dir)}/mal", page, sep="\n", soft_wrap=True)
    return SOME_FAILED if record.failed else DONE


def _evaluate(options: argparse.Namespace) -> int:
    from flows.console import print_evaluation, print_mask_evaluation
    from tasks.evaluate import BoxReport, evaluate, evaluate_mask_files

    compare = evaluate_mask_files if options.masks else evaluate
    report = compare(options.labels, options.ground_truth, class_agnostic=options.class_agnostic)
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    elif isinstance(report, BoxReport):
        print_evaluation(report)
    else:
        print_mask_evaluation(report)
    return DONE


if __name__ == "__main__":
    main()
