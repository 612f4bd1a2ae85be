"""Draws a CUDA grid of `relay bench attention --json`: time over limit, and speed-up over plain attention.

    python3 bench/plot_cuda.py bench/results/h200/grid.jsonl bench/results/h200
"""

import json
import math
import pathlib
import sys

WIDTH, HEIGHT, MARGIN = 300, 220, 46
COLOURS = {1: "#7f7f7f", 8: "#1f77b4", 32: "#2ca02c", 128: "#d62728"}


def load(path, method):
    points = {}
    for line in pathlib.Path(path).read_text().splitlines():
        point = json.loads(line)
        if point["method"] == method and point["groups"] == 1:
            points[point["heads"], point["batch"], point["system"], point["user"]] = point
    return points


class Panel:
    """One set of log-log axes."""

    def __init__(self, x, y, title, xs, low, high):
        self.x, self.y, self.xs, self.low, self.high = x, y, xs, low, high
        self.parts = [f'<text x="{x + MARGIN}" y="{y + 18}" font-weight="bold">{title}</text>']
        for i, value in enumerate(xs):
            self.parts.append(self.label(self.across(i), y + HEIGHT - 26, str(value), "middle"))
        step = low
        while step <= high * 1.001:
            at = self.up(step)
            self.parts.append(f'<line x1="{x + MARGIN}" x2="{x + WIDTH - 10}" y1="{at:.1f}" y2="{at:.1f}" stroke="#ddd"/>')
            self.parts.append(self.label(x + MARGIN - 5, at + 4, f"{step:g}", "end"))
            step *= 2

    @staticmethod
    def label(x, y, text, anchor):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="#444">{text}</text>'

    def across(self, i):
        return self.x + MARGIN + 12 + (WIDTH - MARGIN - 40) * i / max(1, len(self.xs) - 1)

    def up(self, value):
        part = math.log(min(max(value, self.low), self.high) / self.low) / math.log(self.high / self.low)
        return self.y + HEIGHT - 42 - part * (HEIGHT - 74)

    def line(self, values, colour, dashed):
        at = " ".join(f"{self.across(i):.1f},{self.up(v):.1f}" for i, v in enumerate(values) if v is not None)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>')


def draw(points, value, title, low, high, to):
    heads = list(dict.fromkeys(key[0] for key in points))
    batches, systems, users = (sorted({key[i] for key in points}) for i in (1, 2, 3))
    systems = [s for s in systems if sum(key[2] == s for key in points) > 1]
    parts = []
    for i, name in enumerate(heads):
        panel = Panel(i * WIDTH, 24, f"{name} heads", systems, low, high)
        for batch in batches:
            for user in users:
                found = [points.get((name, batch, system, user)) for system in systems]
                if any(found):
                    panel.line([value(p) if p else None for p in found], COLOURS.get(batch, "#000"), user == users[-1])
        parts += panel.parts
    legend = f"{title}; tokens of the prompt along the bottom; dashed: {users[-1]} tokens a user, else {users[0]}; B = "
    keys = " ".join(f'<tspan fill="{COLOURS.get(b, "#000")}">{b}</tspan>' for b in batches)
    parts.append(f'<text x="10" y="16">{legend}{keys}</text>')
    size = f'width="{len(heads) * WIDTH}" height="{HEIGHT + 30}"'
    pathlib.Path(to).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n')


def main():
    grid, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    points = load(grid, "gd")
    draw(points, lambda p: p["relay_us"] / p["limit_us"], "time / limit (gd)", 1, 128, folder / "limit.svg")
    draw(points, lambda p: p["plain_us"] / p["relay_us"], "plain / relay (gd)", 0.5, 32, folder / "plain.svg")


main()
