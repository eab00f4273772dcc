"""Objectives of unlearning: every one a loss to minimise, `objective(model, tokens, reference)`.

| | forget rows | retain rows |
|---|---|---|
| likelihood | `GA` | `CE` |
| negative preference | `NPO`, `SimNPO` | |
| preference pairs | `DPO`, `IdkDPO`, `AltPO` | |
| distributions | `UNDIAL`, `CEU`, `PDU` | `KL` |
| weighted tokens | `WGA`, `SatImp` | |
| hidden states | `RMU` | `KeepHidden` |

Each is a frozen dataclass: `per_sample(...)` gives [B], a call its mean. `needs_reference` and
`needs_pair` say what it takes. `negate` works on weights instead.
"""

from __future__ import annotations

from typing import Any

from steelyard.objectives.alternatives import IDK_ANSWERS, idk_rows, swapped_rows
from steelyard.objectives.ascent import CE, GA
from steelyard.objectives.distillation import CEU, KL, UNDIAL
from steelyard.objectives.negation import negate
from steelyard.objectives.npo import NPO, SimNPO
from steelyard.objectives.pdu import PDU, PrimalDual
from steelyard.objectives.preference import DPO, AltPO, IdkDPO
from steelyard.objectives.reference import Reference
from steelyard.objectives.reweighted import WGA, SatImp
from steelyard.objectives.rmu import RMU, KeepHidden
from steelyard.objectives.tokens import Pair, Tokens, encode, logits, token_nll

OBJECTIVES: dict[str, type[Any]] = {
    "ga": GA,
    "ce": CE,
    "kl": KL,
    "npo": NPO,
    "simnpo": SimNPO,
    "dpo": DPO,
    "idkdpo": IdkDPO,
    "altpo": AltPO,
    "rmu": RMU,
    "keephidden": KeepHidden,
    "undial": UNDIAL,
    "ceu": CEU,
    "wga": WGA,
    "satimp": SatImp,
    "pdu": PDU,
}

__all__ = [
    "CE",
    "CEU",
    "DPO",
    "GA",
    "IDK_ANSWERS",
    "KL",
    "NPO",
    "OBJECTIVES",
    "PDU",
    "RMU",
    "UNDIAL",
    "WGA",
    "AltPO",
    "IdkDPO",
    "KeepHidden",
    "Pair",
    "PrimalDual",
    "Reference",
    "SatImp",
    "SimNPO",
    "Tokens",
    "encode",
    "idk_rows",
    "logits",
    "negate",
    "swapped_rows",
    "token_nll",
]
