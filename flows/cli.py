"""The command line: `autolabel generate | plan | demo | evaluate`.

Prefect, torch and the flows are imported by the command that needs them: `--help` answers at once, and the server is
there before `import prefect` reads its settings.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import NoReturn, TypeAlias

from tasks.domain.addresses import without_password
from tasks.domain.errors import AutoLabelError
from tasks.domain.spec import ExperimentSpec
from tasks.store import Folder

# argparse has no public name for what `add_subparsers` returns.
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001

DONE, MENDABLE, SOME_FAILED, INTERRUPTED = 0, 2, 3, 130
STATUS_HELP = "exit status: 0 done, 1 a fault of ours, 2 something to mend, 3 done but some images failed"


def main() -> NoReturn:
    """Run the command that the arguments name, and exit with its status."""
    sys.exit(run(sys.argv[1:]))


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
        description="Label images with boxes from words: Grounding DINO, asked again with a lower bar.",
        epilog=STATUS_HELP,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('autolabel-flow')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_generate(commands)
    _add_plan(commands)
    _add_demo(commands)
    _add_evaluate(commands)
    return parser


def _add_generate(commands: Commands) -> None:
    parser = _add(
        commands,
        "generate",
        _generate,
        "label the images of a spec",
        "autolabel generate -e specs/text2box.yaml results_dir=out 'grounding_dino.dataset.class_names=[\"bus stop\"]'",
    )
    _add_spec_arguments(parser)


def _add_plan(commands: Commands) -> None:
    parser = _add(
        commands,
        "plan",
        _plan,
        "say what `generate` would do now, without asking the detector",
        "autolabel plan -e specs/text2box.yaml results_dir=out",
    )
    _add_spec_arguments(parser)


def _add_demo(commands: Commands) -> None:
    parser = _add(
        commands,
        "demo",
        _demo,
        "draw scenes, label them with the detector that ships, and compare with the truth",
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
    parser = _add(
        commands,
        "evaluate",
        _evaluate,
        "compare labels with ground truth: COCO AP, precision and recall, per class and iteration",
        "autolabel evaluate autolabel-demo --ground-truth autolabel-demo/scenes/ground_truth.json",
    )
    parser.add_argument("labels", metavar="RESULTS_OR_COCO", help="a results_dir, a COCO file, or a COCO results list")
    parser.add_argument("--ground-truth", required=True, metavar="COCO", help="COCO file with the true boxes")
    parser.add_argument("--class-agnostic", action="store_true", help="compare boxes only, whatever their class")
    parser.add_argument("--json", action="store_true", help="print the report as JSON in place of tables")


def _add(
    commands: Commands,
    name: str,
    command: Callable[[argparse.Namespace], int],
    purpose: str,
    example: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example:\n  {example}\n\n{STATUS_HELP}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=command)
    return parser


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
    from flows.console import errors, output, print_run, progress_bars, show_warnings
    from flows.local_server import ensure_server

    if unused := spec.unused_keys():
        errors.print(f"not used here: {', '.join(unused)}")
    if len(spec.gpu_ids) > 1:
        errors.print(f"gpu_ids: only GPU {spec.gpu_ids[0]} is used; this version runs on one GPU")
    api = ensure_server()
    from flows.auto_label import auto_label

    show_warnings()
    with progress_bars():
        state = auto_label(spec, return_state=True)
    page = f"run: {api.removesuffix('/api')}/runs/flow-run/{state.state_details.flow_run_id}"
    if not state.is_completed():
        errors.print(page, soft_wrap=True)
    record = state.result()
    print_run(record)
    output.print(f"labels: {without_password(spec.results_dir)}", page, sep="\n", soft_wrap=True)
    return SOME_FAILED if record.images.failed else DONE


def _plan(options: argparse.Namespace) -> int:
    from flows.console import print_plan, progress_bars, show_warnings
    from flows.plan import plan_run
    from flows.spec_files import read_spec

    spec = read_spec(options.experiment_spec, options.overrides)
    show_warnings()
    with progress_bars():
        plan = plan_run(spec)
    print_plan(plan)
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from flows.console import print_evaluation, progress_bars
    from flows.demo import CLASS_TRUTH, PHRASE_TRUTH, demo_spec, write_scenes
    from tasks.evaluate import evaluate

    spec = demo_spec(options.overrides, grounding=options.grounding)
    with progress_bars():
        write_scenes(Folder(spec.results_dir, spec.storage_options), options.scenes, options.seed)
    status = _label(spec)
    truth = f"{spec.results_dir.rstrip('/')}/{PHRASE_TRUTH if options.grounding else CLASS_TRUTH}"
    print_evaluation(evaluate(spec.results_dir, truth, storage_options=spec.storage_options))
    return status


def _evaluate(options: argparse.Namespace) -> int:
    from flows.console import print_evaluation
    from tasks.evaluate import evaluate

    report = evaluate(options.labels, options.ground_truth, class_agnostic=options.class_agnostic)
    if options.json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print_evaluation(report)
    return DONE


if __name__ == "__main__":
    main()
