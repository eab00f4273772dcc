"""A family of random models, batches, clipping groups and rules: what test_family.py draws from.

A model is a front (tokens, bags of tokens, or nothing), one to five blocks (family_blocks.py) and a
head. Any block may be called again where the shapes fit, wrapped, have an activation behind it, be
tied to another block's parameter of the same shape, and be frozen in parts.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from steelyard.rows.groups import partition
from steelyard.weightings.clip import CLIPS

blocks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("family_blocks.py"))))
Apply, BOOL, one_of = blocks.Apply, blocks.BOOL, blocks.one_of
Draw = Callable[[st.SearchStrategy], Any]
Shape = tuple[int, ...]
VOCABULARY = 5
FRONTS = {"sequences": 2, "tokens": 2, "images": 3, "vectors": 1, "bags": 1}  # dimensions
# an activation may write over its input where nothing needs that any more
ACTIVATIONS = [
    *(nn.Tanh, nn.GELU, lambda: nn.Dropout(0.0)),
    *(lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True)),
]
KEEPS_OUTPUT = {"recurrent", "positions_last"}  # autograd forbids writing over what these return
# of the losses: ordinary, zero, small, large
SCALES = st.sampled_from([1.0, 1.0, 0.5, 2.0, 0.0, 1e-2, 30.0])


@dataclass(kw_only=True)
class Case:
    """One model with one batch [x, targets, scale], and how it is clipped.

    turns: the samples of each backward call. parts: of the whole batch, in micro-batches.
    share: the bound, over the norm of sample `place` in the order of size.
    """

    model: nn.Module
    batch: tuple[Tensor, ...]
    kinds: list[str] = field(default_factory=list)
    groups: Any
    clip: str
    place: int
    share: float
    turns: list[list[int]]
    parts: list[list[int]]


def losses(model: nn.Module, x: Tensor, targets: Tensor, scale: Tensor) -> Tensor:  # [B]
    y = model(x).flatten(1)
    return scale * (y - targets[:, torch.arange(y.shape[1]) % 3]).square().mean(1)


class Model(nn.Module):
    def __init__(self, front: nn.Module, body: list[nn.Module], head: nn.Module):
        super().__init__()
        self.front, self.body, self.head = front, nn.Sequential(*body), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.front(x)))


def output_shape(module: nn.Module, shape: Shape) -> Shape | None:
    """None where the module cannot take this shape, or leaves too little."""
    try:
        with torch.no_grad():
            found = tuple(module(torch.zeros(2, *shape)).shape[1:])
    except (RuntimeError, ValueError, AssertionError, IndexError):  # a kernel larger than its input
        return None
    return found if len(found) < 2 or found[-1] * found[-2] > 2 else None


def add_block(
    draw: Draw, shape: Shape, body: list[nn.Module], kinds: list[str], wanted: str | None
) -> Shape:
    again = [m for m in body if m.takes == len(shape) and output_shape(m, shape) == shape]
    if again and draw(st.integers(0, 4)) == 0:
        body.append(one_of(draw, *again))  # a module called twice
        kinds.append("again")
        return shape
    fits = [one for one, dims in blocks.BLOCKS.items() if len(shape) in dims]
    make = draw(st.sampled_from([one for one in fits if wanted in (None, one.__name__)]))
    module, kind = make(draw, shape), make.__name__
    if module is None or output_shape(module, shape) is None:
        module, kind = blocks.linear(draw, shape), "linear"
    wrap = draw(st.integers(0, 5))
    if wrap < len(blocks.WRAPS):
        module = Apply(blocks.WRAPS[wrap], module)
        kinds.append(blocks.WRAPS[wrap].__name__)
    acts = ACTIVATIONS[: 3 if kind in KEEPS_OUTPUT else None]
    if draw(BOOL):
        module = nn.Sequential(module, draw(st.sampled_from(acts))())
    found = output_shape(module, shape)
    assert found is not None
    module.takes = len(shape)  # type: ignore[assignment]
    body.append(module)
    kinds.append(kind)
    return found


def front(draw: Draw, B: int, kinds: list[str], dims: Any) -> tuple[nn.Module, Tensor, Shape]:
    """The front, its input for B samples, and the shape that it hands on, of so many dimensions."""
    kind = one_of(draw, *(kind for kind, of in FRONTS.items() if of in dims))
    kinds.append(kind)  # inputs are copied: an activation may write over them
    T, d = one_of(draw, 5, 3, 4, 6, 7, 8, 9), draw(blocks.WIDTH)
    if kind == "vectors":
        return Apply(torch.clone), torch.randn(B, d + 1), (d + 1,)
    if kind == "sequences":
        return Apply(torch.clone), torch.randn(B, T, d), (T, d)
    if kind == "images":
        shape = (draw(st.integers(1, 3)), draw(st.integers(3, 6)), draw(st.integers(3, 6)))
        return Apply(torch.clone), torch.randn(B, *shape), shape
    tokens = torch.randint(0, VOCABULARY, (B, T))
    padding = one_of(draw, None, 0, -1)
    if kind == "tokens":
        return nn.Embedding(VOCABULARY, d, padding_idx=padding), tokens, (T, d)
    mode, offsets = one_of(draw, "sum", "mean", "max"), draw(BOOL)
    inner = nn.EmbeddingBag(VOCABULARY, d, mode=mode, padding_idx=padding)

    def bags(x: Tensor, inner: nn.Module) -> Tensor:
        if offsets:
            return inner(x.flatten(), torch.arange(0, x.numel(), x.shape[1]))
        return inner(x)

    return Apply(bags, inner), tokens, (d,)


def head(draw: Draw, shape: Shape, embedding: nn.Module, kinds: list[str]) -> nn.Module:
    if len(shape) == 3:
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 3))
    if isinstance(embedding, nn.Embedding) and draw(BOOL):
        kind = one_of(draw, "tied head", "functional head")
        kinds.append(kind)
        before = nn.Linear(shape[-1], embedding.embedding_dim)
        if kind == "functional head":
            return Apply(lambda x, before, of: F.linear(before(x), of.weight), before, embedding)
        last = nn.Linear(embedding.embedding_dim, VOCABULARY, bias=draw(BOOL))
        last.weight = embedding.weight
        return nn.Sequential(before, last)
    last = nn.Linear(shape[-1], 3, bias=draw(BOOL))
    return Apply(lambda x, last: last(x.mean(1) if x.dim() == 3 else x), last)


def tie(draw: Draw, model: nn.Module, kinds: list[str]) -> None:
    """Two parameters of the same shape become one, wherever they are."""
    slots = [
        (module, name, p)
        for module in model.modules()
        for name, p in module.named_parameters(recurse=False)
    ]
    pairs = [
        (a, b) for i, a in enumerate(slots) for b in slots[:i]
        if a[2].shape == b[2].shape and a[2] is not b[2]
    ]  # fmt: skip
    if pairs and draw(st.integers(0, 2)) == 0:
        (module, name, _), (_, _, p) = draw(st.sampled_from(pairs))
        setattr(module, name, p)
        kinds.append("tied")


def freeze(draw: Draw, model: nn.Module, kinds: list[str]) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if draw(st.integers(0, 2)) == 0:
        kept = draw(st.integers(0, len(parameters) - 1))
        for i, p in enumerate(parameters):
            if i != kept and draw(BOOL):
                p.requires_grad_(False)
                kinds.append("frozen")


def away_from_ones_and_zeros(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
        for module in model.modules():
            if getattr(module, "starts_at_zero", False):
                module.weight.zero_()  # type: ignore[operator]


def groups_of(draw: Draw, model: nn.Module) -> Any:
    """One of every way to say what is clipped together, as far as it fits the model."""
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    layers = len({name.rpartition(".")[0] for name in names})
    modules = sorted({name.rpartition(".")[0] for name in names} - {""})
    one, other = draw(st.sampled_from(modules)), draw(st.sampled_from(modules))
    fits = ["all", "layer", "parameter", draw(st.integers(1, layers))]
    for entries in (["*.bias"], ["*weight"], [one], [one, other], ["body", "head.*"]):
        try:
            partition(names, entries)
        except ValueError:
            continue
        fits.append(entries)
    return draw(st.sampled_from(fits))


@st.composite
def cases(draw: Draw, block: str) -> Case:
    """Cases with this block of family_blocks.py behind the front."""
    torch.manual_seed(draw(st.integers(0, 10**6)))
    B, kinds = one_of(draw, 3, 1, 2, 4, 5, blocks.LARGEST), []
    dims = next(dims for make, dims in blocks.BLOCKS.items() if make.__name__ == block)
    first, x, shape = front(draw, B, kinds, dims)
    body: list[nn.Module] = []
    for i in range(draw(st.integers(1, 5))):
        shape = add_block(draw, shape, body, kinds, None if i else block)
    model = Model(first, body, head(draw, shape, first, kinds))
    tie(draw, model, kinds)
    freeze(draw, model, kinds)
    model.double()
    away_from_ones_and_zeros(model)
    x = x.double() if x.is_floating_point() else x
    scale = torch.tensor([draw(SCALES) for _ in range(B)], dtype=torch.float64)
    order, everybody = draw(st.permutations(range(B))), list(range(B))
    cuts = sorted(draw(st.sets(st.integers(1, B)))) if B > 1 else []
    parts = [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, B], strict=True)]
    some = st.sets(st.integers(0, B - 1), min_size=1).map(sorted)
    return Case(
        model=model,
        batch=(x, torch.randn(B, 3).double(), scale),
        kinds=kinds,
        groups=groups_of(draw, model),
        clip=draw(st.sampled_from(sorted(CLIPS))),
        place=draw(st.integers(0, B - 1)),
        share=one_of(draw, 0.3, 0.8, 1.3),
        turns=[draw(some), draw(some), everybody, draw(some), everybody],
        parts=[part for part in parts if part],
    )
