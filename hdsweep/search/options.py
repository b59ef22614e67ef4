"""What may be written under ``search.options``: plain arguments of Optuna's samplers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from hdsweep.errors import SpecError, did_you_mean
from hdsweep.knobs import Drawn
from hdsweep.strategy import Search

CLASSES = {
    "random": "RandomSampler",
    "tpe": "TPESampler",
    "gp": "GPSampler",
    "cmaes": "CmaEsSampler",
    "nsga2": "NSGAIISampler",
}

_PLAIN: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "None": type(None),
}
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}

# The seed is the study's, and the rest is deprecated or speaks to a terminal.
_OURS = (
    {"seed", "warn_independent_sampling", "sigma0", "restart_strategy", "inc_popsize"}
    | {f"consider_{what}" for what in ("prior", "magic_clip", "endpoints")}
    | {"prior_weight"}
)
# Lower bounds that Optuna does not check until it draws.
_LEAST = {"n_startup_trials": 0, "popsize": 2, "population_size": 2}


def check_options(search: Search) -> None:
    """Refuse a search that its sampler cannot do.

    Raises:
        SpecError: Without the file and line, which the caller knows.
    """
    if search.sampler == "cmaes":
        if len(search.maximize) + len(search.minimize) > 1:
            raise SpecError(
                "search: sampler cmaes seeks one objective; use tpe, gp, nsga2 or random for more"
            )
        if search.constraints:
            raise SpecError(
                "search: sampler cmaes knows no constraints; use tpe, gp or nsga2 for them"
            )
    if not search.options:
        return
    known = _plain_arguments(search.sampler)
    for name, value in search.options.items():
        if name not in known:
            hint = did_you_mean(name, known) if known else "; it takes none"
            raise SpecError(
                f"search.options: unknown option '{name}' of sampler {search.sampler}{hint}"
            )
        _check_value(name, value, known[name])
    from hdsweep.search.draws import new_sampler

    try:
        new_sampler(search, {}, seed=0)
    except ValueError as error:
        reason = str(error).replace("`", "'").rstrip(".")
        raise SpecError(f"search.options: sampler {search.sampler} refuses: {reason}") from None


def arguments(search: Search, space: Mapping[str, Drawn]) -> dict[str, Any]:
    """Of the sampler: those written, and what follows from the knobs.

    Where knobs depend on others, TPE models each group of knobs that occur together; left to
    itself it would draw them at random.
    """
    grouped = (
        search.sampler == "tpe"
        and any(knob.when is not None for knob in space.values())
        # With several objectives it takes each knob by itself, which knows no groups.
        and len(search.maximize) + len(search.minimize) == 1
        and search.options.get("multivariate", True)
    )
    return {"group": True, **search.options} if grouped else dict(search.options)


def _plain_arguments(sampler: str) -> dict[str, tuple[str, ...]]:
    """Those that can be written in a file -> the kinds of value that each takes."""
    import optuna

    signature = inspect.signature(getattr(optuna.samplers, CLASSES[sampler]))
    found = {
        name: tuple(str(argument.annotation).split(" | "))
        for name, argument in signature.parameters.items()
        if name not in _OURS
    }
    return {name: kinds for name, kinds in found.items() if set(kinds) <= set(_PLAIN)}


def _check_value(name: str, value: object, kinds: tuple[str, ...]) -> None:
    fits = any(
        isinstance(value, _PLAIN[kind]) and (kind == "bool") == isinstance(value, bool)
        for kind in kinds
    )
    if not fits:
        words = " or ".join(_WORDS[kind] for kind in kinds if kind in _WORDS)
        raise SpecError(f"search.options: {name} is {words}; found {value!r}")
    least = _LEAST.get(name, 1)
    if "int" in kinds and isinstance(value, int) and value < least:
        raise SpecError(f"search.options: {name} is at least {least}; found {value!r}")
