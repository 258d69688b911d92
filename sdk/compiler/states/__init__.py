"""States: what a model keeps from one step to the next, and what of it the compiler aliases with device memory.

`pairs.py` finds which input is an earlier value of which output, also by what lies beside the file (`config.py`);
`memory.py` says in which cache each lies; `roles.py` says which other inputs follow from how much a state holds;
`binding.py` gives all of them to the lowerings as values; `evaluation.py` computes on the host what follows from them,
by which `passes/use_caches.py` proves that a mask is what the commands over caches do anyway, and `following.py` finds
what a model computes in ways of its own. `lengths.py` refuses what is right for one length of a past alone. `report.py`
says what was found.
"""

from __future__ import annotations

from sdk.compiler.compiled import StateInfo, StateKind
from sdk.compiler.states.memory import CONTEXT_LENGTH, cache_places, caches_of, context_of
from sdk.compiler.states.pairs import BLOCK_TOKENS, StateLayout, StatePair, find_states, state_infos
from sdk.compiler.states.roles import MAY_BE_GIVEN, ROWS, TABLES, derived_inputs, step_input

__all__ = [
    "BLOCK_TOKENS",
    "CONTEXT_LENGTH",
    "MAY_BE_GIVEN",
    "ROWS",
    "TABLES",
    "StateInfo",
    "StateKind",
    "StateLayout",
    "StatePair",
    "cache_places",
    "caches_of",
    "context_of",
    "derived_inputs",
    "find_states",
    "state_infos",
    "step_input",
]
