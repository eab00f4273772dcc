"""Private and public samples, told apart: where the public ones come from, and that none is private.

A share of the training data, chosen by content (one sample more moves no other), or a data set of its
own with the same columns and classes. Public means: nothing protects them.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
from typing import Any

from steelyard.data import Table, load
from steelyard.data.disjoint import refuse_overlap
from steelyard.data.split import held_out, keys, take
from steelyard.runs.config import TrainConfig

SALT = 1310  # of the split: another one than that of the packaged test parts


def separate(config: TrainConfig, table: Table) -> tuple[Table, Table | None]:
    """The private table, and the public one: its training rows are the public samples.

    Raises ValueError where the two do not fit together or have rows in common.
    """
    if config.public_part:
        mask = held_out(keys(table.train_x), share=config.public_part, seed=SALT)
        if not 0 < mask.sum() < len(mask):
            raise ValueError(
                f"--public-part {config.public_part:g} of {table.n} samples leaves "
                f"{int(mask.sum())} public ones: choose another share"
            )
        try:
            return _rows(table, ~mask), _rows(table, mask)
        except ValueError as error:
            raise ValueError(
                f"--public-part {config.public_part:g} does not leave all classes on both sides "
                f"({error}): choose another share"
            ) from None
    if config.public_data is None:
        return table, None
    public = load(config.public_data, text=config.text, label=config.label)
    if (public.kind, public.classes) != (table.kind, table.classes):
        raise ValueError(
            f"--public-data {config.public_data}: {public.kind} of {len(public.classes)} classes, "
            f"the private data {table.kind} of {len(table.classes)}: they must be alike"
        )
    if table.kind != "text" and public.train_x[0].shape != table.train_x[0].shape:  # pyright: ignore
        raise ValueError(
            f"--public-data {config.public_data} has rows of another shape than the private data"
        )
    refuse_overlap(public.train_x, table.train_x, "private training rows")
    refuse_overlap(public.train_x, table.test_x, "test rows")
    return table, public


def _rows(table: Table, mask: Any) -> Table:
    labels = None if table.train_y is None else table.train_y[mask]
    return dataclasses.replace(table, train_x=take(table.train_x, mask), train_y=labels)
