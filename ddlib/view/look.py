"""Look at synthetic sets in a notebook, and at the real images nearest to them."""

import base64
import copy
import html
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import Data
from ..nets import embedding
from ..run import Run
from ..support.errors import DDError, check_range
from ..support.public import public
from ..support.store import digest
from ..synset import SHOWN, ZOOM, SyntheticSet

AT_ONCE = 1000  # real images compared at once
SCRIPT = """
(function () {
  const view = document.getElementById("%(key)s"), frames = %(frames)s;
  const [picture, which, at, label] = view.querySelectorAll("img, select, input, output");
  function draw() {
    const own = frames[which.value];
    at.max = own.length - 1;
    const frame = own[Math.min(at.value, at.max)];
    picture.src = "data:image/png;base64," + frame[1];
    label.textContent = frame[0];
  }
  which.onchange = at.oninput = draw;
  picture.onmousemove = function (event) {
    const box = picture.getBoundingClientRect(), names = %(names)s;
    const across = (event.clientX - box.left) / box.width;
    const down = (event.clientY - box.top) / box.height;
    picture.title = names[Math.floor((%(in_a_row)s ? across : down) * names.length)];
  };
})();
"""


@dataclass
class Look:
    """Sets for a notebook: a slider over the iterations of each, a menu to flip between them, the
    class on hover. Where no script may run, a picture of the first set as it is now.
    """

    sets: dict[str, SyntheticSet]

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {one!r}" for name, one in self.sets.items())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        frames = {name: frames_of(one) for name, one in self.sets.items()}
        last = base64.b64encode(next(iter(self.sets.values())).thumbnails(ZOOM)).decode()
        return {"text/plain": repr(self), "text/html": self.page(frames), "image/png": last}

    def page(self, frames: dict[str, list[tuple[str, str]]]) -> str:
        """The HTML: the last frame of the first set, so that it is right before any script runs."""
        first = next(iter(self.sets.values()))
        names = [first.classes[int(label)] for label in first.labels.unique()[:SHOWN]]
        # From the content, so that a notebook that is run again is the same file
        key = "look-" + digest(json.dumps(frames))[:12]
        own, in_a_row = next(iter(frames.values())), first.ipc == 1
        width = 33 * (len(names) if in_a_row else min(SHOWN, first.ipc))
        choices = "".join(f"<option>{html.escape(name)}</option>" for name in frames)
        hidden = ' style="display:none"' * (len(frames) < 2)
        slider = f'<input type="range" min="0" max="{len(own) - 1}" value="{len(own) - 1}"'
        about = {"key": key, "frames": safe_json(frames), "names": safe_json(names)}
        script = SCRIPT % (about | {"in_a_row": safe_json(in_a_row)})
        return (
            f'<div id="{key}"><img src="data:image/png;base64,{own[-1][1]}" '
            f'style="image-rendering:pixelated;width:{width}px"><br>'
            f"<select{hidden}>{choices}</select> {slider}> <output>{own[-1][0]}</output></div>"
            f"<script>{script}</script>"
        )


@public
class Watch:
    """A live view: `distill(config, data, callback=Watch(10))`.

    In a notebook the images so far and the loss, refreshed every so many iterations in one place;
    the last frame stays. Elsewhere a line of text each time.
    """

    def __init__(self, every: int = 10) -> None:
        check_range("every", every, 1)
        self.every = every
        self.run: Run | None = None
        self.handle: Any = None

    def __call__(self, k: int, run: Run) -> None:
        if k % self.every and k < run.config.iterations:
            return
        losses = [float(row["loss"]) for row in run.rows]
        text = f"iteration {k} of {run.config.iterations}, loss {losses[-1]:.4g}"
        if "IPython" not in sys.modules or not sys.modules["IPython"].get_ipython():
            print(text)
            return
        from IPython.display import display

        bundle, page = {"text/plain": text}, f"{curve(losses)}<br>{text}"
        if (synset := run.current()).has_pictures:
            bundle["image/png"] = base64.b64encode(synset.thumbnails(ZOOM)).decode()
            page = f'<img src="data:image/png;base64,{bundle["image/png"]}"><br>{page}'
        bundle["text/html"] = page
        if run is not self.run:
            self.run, self.handle = run, display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)


def curve(values: Sequence[float], width: int = 330, height: int = 60) -> str:
    """Values as a line in SVG, from 0 up; what is not finite is left out."""
    points = [(i, value) for i, value in enumerate(values) if math.isfinite(value)]
    highest = max((value for _, value in points), default=0.0) or 1.0
    across, up = width / max(len(values) - 1, 1), (height - 2) / highest
    line = " ".join(f"{i * across:.1f},{height - 1 - value * up:.1f}" for i, value in points)
    return (
        f'<svg width="{width}" height="{height}"><polyline points="{line}" fill="none" '
        'stroke="#1f77b4"/></svg>'
    )


@public
def look(*synsets: SyntheticSet, names: tuple[str, ...] = ()) -> Look:
    """Sets to look at in a notebook, with their history; `names`: by default pool and seed.

    Raises `DDError` for no set, or names that are not one for each, all different.
    """
    titles = names or tuple(title_of(one) for one in synsets)
    if not synsets or len(set(titles)) != len(synsets):
        raise DDError(f"{len(synsets)} sets have the names {list(titles)}; needed: one each")
    for synset in synsets:
        synset.pixels01()  # which refuses sets that have no pictures
    return Look(dict(zip(titles, synsets, strict=True)))


def title_of(synset: SyntheticSet) -> str:
    """How a menu calls a set."""
    about = synset.config
    parts = [str(about[k]) for k in ("method", "pool") if about.get(k)]
    return ", ".join([*parts, f"ipc {synset.ipc}, seed {about.get('seed', 0)}"])


def frames_of(synset: SyntheticSet) -> list[tuple[str, str]]:
    """Iteration and base64 PNG of the set at each iteration of its history, itself last."""
    by_iteration = {one.iteration: one for one in (*synset.history, synset)}
    shown = [by_iteration[k] for k in sorted(by_iteration)]
    pictures = [base64.b64encode(one.thumbnails()).decode() for one in shown]
    return [(f"iteration {one.iteration}", p) for one, p in zip(shown, pictures, strict=True)]


def safe_json(value: object) -> str:
    """JSON that cannot end a script element."""
    return json.dumps(value).replace("</", "<\\/")


@public
def nearest(
    synset: SyntheticSet,
    data: Data,
    k: int = 5,
    net: nn.Module | None = None,
    same_class: bool = False,
) -> tuple[Tensor, Tensor]:
    """The k training images nearest to each synthetic image: rows of `data.x_train`, int64 [N, k],
    the nearest first, and their distances, [N, k].

    Distances are Euclidean, per number: the root of the mean squared difference of normalised
    pixels, or of what `net` (with `embed`) has before its classifier. A synthetic image that is a
    copy has distance 0. `same_class`: only among images of its class. Raises `DDError` if the set
    does not fit the data, or k is more than there are images.
    """
    own, real = (list(images.shape[1:]) for images in (synset.images, data.x_train))
    if own != real:
        raise DDError(f"images of the set are {own}, of {data.name} {real}; they must agree")
    if synset.space != data.space:
        raise DDError(f"images of the set are {synset.space}, of {data.name} {data.space}")
    check_range("k", k, 1, min(data.counts()) if same_class else len(data.x_train))
    see = embedding(copy.deepcopy(net).eval()) if net else nn.Flatten()
    with torch.no_grad():
        ours = see(synset.images.to(data.device, data.x_train.dtype)).flatten(1).double()
        parts = []
        for images in data.x_train.split(AT_ONCE):
            theirs = see(images).flatten(1).double()  # by differences: a copy is at 0
            parts.append(torch.cdist(ours, theirs, compute_mode="donot_use_mm_for_euclid_dist"))
    distances = torch.cat(parts, 1) / ours.shape[1] ** 0.5
    if same_class:
        other = synset.labels.to(data.device)[:, None] != data.y_train[None]
        distances = distances.masked_fill(other, torch.inf)
    found = distances.topk(k, largest=False)
    return found.indices, found.values
