"""The course of a training as a picture: losses and mean IoU over the epochs, as SVG that any browser opens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from tasks.domain.training_record import EpochRecord

WIDTH, HEIGHT = 420, 260  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 34  # margins around its axes
TICKS = 4  # intervals of the upright axis
STYLE = "font-family:sans-serif;font-size:11px"


@dataclass(frozen=True)
class Line:
    """A line of a panel: its name, its colour, and its value after every epoch, None where there is none."""

    name: str
    colour: str
    values: tuple[float | None, ...]


def training_curve(epochs: Sequence[EpochRecord]) -> str:
    """The SVG: losses on the left, and on the right what was measured, where anything was."""
    panels = [("loss", _losses(epochs))]
    if any(epoch.mean_iou is not None for epoch in epochs):
        panels.append(("mean IoU", _ious(epochs)))
    body = [_panel(title, lines, i * WIDTH) for i, (title, lines) in enumerate(panels)]
    size = f'width="{len(panels) * WIDTH}" height="{HEIGHT}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{STYLE}">',
            '<rect width="100%" height="100%" fill="white"/>',
            *body,
            "</svg>\n",
        ]
    )


def _losses(epochs: Sequence[EpochRecord]) -> list[Line]:
    lines = [
        Line("projection", "#1f77b4", tuple(epoch.projection_loss for epoch in epochs)),
        Line("refinement", "#d62728", tuple(epoch.refinement_loss for epoch in epochs)),
    ]
    measured = tuple(epoch.validation.projection_loss if epoch.validation else None for epoch in epochs)
    return [*lines, Line("projection, measured", "#2ca02c", measured)] if any(measured) else lines


def _ious(epochs: Sequence[EpochRecord]) -> list[Line]:
    students = [epoch.validation.student if epoch.validation else None for epoch in epochs]
    teachers = [epoch.validation.teacher if epoch.validation else None for epoch in epochs]
    return [
        Line("student", "#1f77b4", tuple(scores.overall if scores else None for scores in students)),
        Line("teacher", "#d62728", tuple(scores.overall if scores else None for scores in teachers)),
    ]


def _panel(title: str, lines: Sequence[Line], left: int) -> str:
    known = [value for line in lines for value in line.values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    pad = (high - low) * 0.05 or 0.05
    low, high = low - pad, high + pad
    last = max(len(line.values) for line in lines) - 1

    def x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch / last if last else 0.5)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)

    grid = [low + (high - low) * i / TICKS for i in range(TICKS + 1)]
    parts = [_text(LEFT, 14, title, "start"), *(_tick(y(value), value) for value in grid)]
    parts += [_text(x(epoch), HEIGHT - 16, str(epoch), "middle") for epoch in sorted({0, last // 2, last})]
    parts.append(_text(WIDTH - RIGHT, HEIGHT - 3, "epoch", "end"))
    for place, line in enumerate(lines):
        parts += [_curve(line, x, y), _text(LEFT + 60 + 85 * place, 14, line.name, "start", line.colour)]
    return f'<g transform="translate({left},0)">{"".join(parts)}</g>'


def _curve(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    points = [(x(epoch), y(value)) for epoch, value in enumerate(line.values) if value is not None]
    path = " ".join(f"{across:.1f},{up:.1f}" for across, up in points)
    dots = "".join(f'<circle cx="{across:.1f}" cy="{up:.1f}" r="2.5" fill="{line.colour}"/>' for across, up in points)
    return f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="1.5"/>{dots}'


def _tick(height: float, value: float) -> str:
    line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="#ddd"/>'
    return line + _text(LEFT - 6, height + 4, f"{value:.3g}", "end")


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
