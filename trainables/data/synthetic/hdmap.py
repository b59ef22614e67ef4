"""Synthetic health data maps of a planetary gearbox, of known difficulty.

A twin of the measured maps (Ha, Park, Na, Kim, Youn, IEEE TIE 65(7) 2018), for a machine that has
none of them and for a question they cannot answer: does a method find a fault because it is good
or because the fault is loud? So every part of the signal is one a gearbox has, and is a number
below:

- Mesh n of planet and ring gear falls on cell (n mod 31, n mod 95). A planet tooth is a row, a ring
  tooth a column, and what drifts during a measurement runs along diagonals.
- A unit (one per domain) has teeth of its own: a fixed row and column texture. It is what makes the
  brightest pixel worthless as a score.
- Speckle is gamma distributed, independent in each cell; a cold gearbox is quieter by a gain.
- A fault is one planet tooth, heard while it passes the sensor: a row x window of columns, louder
  by the *severity*. It leaks to the neighbouring teeth, and a few faults can hardly be seen.

The free constants (texture, speckle, drift, the spread of severities) are chosen so that with the
preset ``published`` a statistic that knows the shape of a fault, but not its row, reaches AUROC
.986/.985/.960/.974 (to .01) and TPR@FPR=1 % .958/.963/.842/.919 (to .03) on A-D, and the brightest
pixel AUROC .51-.59: neither trivial nor hopeless. ``tests/test_hdmap_generator.py`` holds them.

Every map has a random stream of its own, named by seed, domain, split and index: a longer test
split begins with the same maps as a shorter one, but for the half that is cold.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hdsweep.method import Strict
from trainables.data.folders import MARKER

Domain = Literal["A", "B", "C", "D"]
Split = Literal["train/good", "test/good", "test/fault"]
Floats = NDArray[np.float64]

DOMAINS: tuple[Domain, ...] = get_args(Domain)
SPLITS: tuple[Split, ...] = get_args(Split)
ROWS, COLUMNS = 31, 95  # planet teeth, ring teeth; coprime, so 2945 meshes visit every cell once

SEVERITY: dict[str, dict[Domain, float]] = {
    "published": {"A": 0.55, "B": 0.55, "C": 0.27, "D": 0.50},
    "quickstart": {"A": 1.2, "B": 1.2, "C": 0.5, "D": 1.2},
}


@dataclass(frozen=True, slots=True)
class _Sensor:
    """One load class heard by one sensor.

    Args:
        raw_mean: Mean of a warm map, in the unit of the difference signal.
        column: Ring tooth at which the sensor sits.
        speckle_std: Relative standard deviation of a cell between two maps of one unit.
    """

    raw_mean: float
    column: float
    speckle_std: float


_SENSORS: dict[Domain, _Sensor] = {
    "A": _Sensor(raw_mean=0.080, column=24.0, speckle_std=0.355),
    "B": _Sensor(raw_mean=0.334, column=71.0, speckle_std=0.355),
    "C": _Sensor(raw_mean=0.0215, column=24.0, speckle_std=0.295),
    "D": _Sensor(raw_mean=0.0915, column=71.0, speckle_std=0.445),
}
_ROW_TEXTURE = 0.15  # standard deviation of the logarithm, tooth to tooth
_COLUMN_TEXTURE = 0.30
_DRIFT = 0.10  # largest relative amplitude
_COLD_GAIN = 0.72
_LEAK = 0.35  # of a fault, to each neighbouring row
_WINDOW_COLUMNS = 24.0  # standard deviation of the sensor window
_WINDOW_JITTER_COLUMNS = 4.0
_SEVERITY_SPREAD = 0.18  # standard deviation of the logarithm, fault to fault
_FAINT_SHARE = 0.045
_FAINT_FACTOR = 0.20  # of the severity it would otherwise have

_MESH = np.arange(ROWS * COLUMNS)

_Rise = Annotated[float, Field(ge=0, le=10)]


class Severity(Strict):
    """Relative rise of the vibration at the centre of a typical fault, in place of the preset's."""

    A: _Rise | None = None
    B: _Rise | None = None
    C: _Rise | None = None
    D: _Rise | None = None


class Params(Strict):
    """Synthetic health data maps: four domains in the published layout.

    Args:
        preset: Severities of the faults. ``published`` has the difficulty stated above;
            ``quickstart`` has louder faults, for a short training on a CPU.
        seed: Names the units, the noise and the faults.
        train: Normal training maps per domain.
        good: Normal test maps per domain.
        fault: Faulty test maps per domain.
        severity: Overrides the preset, domain by domain.
    """

    preset: Literal["published", "quickstart"] = "published"
    seed: int = Field(1, ge=0)  # with 1, test values exceed 1 in every domain of the full size
    train: int = Field(1000, ge=1, le=10_000)
    good: int = Field(1000, ge=1, le=10_000)
    fault: int = Field(1000, ge=1, le=10_000)
    severity: Severity | None = None

    def severity_of(self, domain: Domain) -> float:
        """The severity in force for ``domain``."""
        override: float | None = getattr(self.severity, domain, None)
        return SEVERITY[self.preset][domain] if override is None else override


def write(params: Params, root: Path) -> None:
    """Write ``domain_{A..D}/{train/good,test/good,test/fault}/0000.tiff`` ... below ``root``.

    Float32 maps of shape (31, 95), scaled by the minimum and maximum of their domain's training
    split, so test values exceed 1. The same ``params`` write the same bytes.
    """
    import tifffile

    for domain in DOMAINS:
        for split, maps in domain_maps(params, domain).items():
            folder = root / f"domain_{domain}" / split
            folder.mkdir(parents=True)
            for index, one in enumerate(maps):
                # Nothing but the pixels: no software tag, no shape comment, no native byte order.
                tifffile.imwrite(
                    folder / f"{index:04d}.tiff",
                    one,
                    byteorder="<",
                    photometric="minisblack",
                    metadata=None,
                    software=False,
                )
    (root / MARKER).write_text(params.model_dump_json(indent=2) + "\n", encoding="utf-8")


def domain_maps(params: Params, domain: Domain) -> dict[Split, NDArray[np.float32]]:
    """Maps of one domain by split, each of shape (count, 31, 95), scaled by the training split."""
    counts: dict[Split, int] = {
        "train/good": params.train,
        "test/good": params.good,
        "test/fault": params.fault,
    }
    texture = _texture(params.seed, domain)
    raw = {split: _raw_maps(params, domain, split, counts[split], texture) for split in SPLITS}
    low, high = raw["train/good"].min(), raw["train/good"].max()
    return {split: ((maps - low) / (high - low)).astype(np.float32) for split, maps in raw.items()}


def _stream(seed: int, domain: Domain, *key: int) -> np.random.Generator:
    spawn_key = (DOMAINS.index(domain), *key)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=spawn_key))


def _texture(seed: int, domain: Domain) -> Floats:
    """Fixed pattern of a unit, shape (31, 95), mean 1."""
    rng = _stream(seed, domain, len(SPLITS))
    rows = rng.normal(0.0, _ROW_TEXTURE, (ROWS, 1))
    columns = rng.normal(0.0, _COLUMN_TEXTURE, (1, COLUMNS))
    texture: Floats = np.exp(rows + columns)
    texture /= texture.mean()
    return texture


def _raw_maps(params: Params, domain: Domain, split: Split, count: int, texture: Floats) -> Floats:
    """Maps in the unit of the signal, shape (count, 31, 95); the first half is cold."""
    sensor = _SENSORS[domain]
    shape = sensor.speckle_std**-2
    maps = np.empty((count, ROWS, COLUMNS))
    drift = np.empty((count, 2))
    fault = np.empty((count, 4))
    for index in range(count):
        rng = _stream(params.seed, domain, SPLITS.index(split), index)
        maps[index] = rng.standard_gamma(shape, (ROWS, COLUMNS))
        drift[index] = rng.random(2)
        fault[index, :2] = rng.random(2)
        fault[index, 2:] = rng.standard_normal(2)
    maps *= sensor.raw_mean / shape * texture
    maps *= _drift(drift)
    maps[: count // 2] *= _COLD_GAIN
    if split == "test/fault":
        maps *= 1.0 + params.severity_of(domain) * _faults(fault, sensor.column)
    return maps


def _drift(uniform: Floats) -> Floats:
    """Slow change during a measurement, shape (count, 31, 95), mean 1.

    Args:
        uniform: Shape (count, 2): amplitude and phase of each map.
    """
    amplitude, phase = uniform[:, 0, None], uniform[:, 1, None]
    along = 1.0 + _DRIFT * amplitude * np.sin(2.0 * np.pi * (_MESH / _MESH.size + phase))
    drift = np.empty((len(uniform), ROWS, COLUMNS))
    drift[:, _MESH % ROWS, _MESH % COLUMNS] = along
    return drift


def _faults(draw: Floats, column: float) -> Floats:
    """Each fault at severity 1, shape (count, 31, 95): 1 at the centre of a typical one.

    Args:
        draw: Shape (count, 4): uniform row and faintness, normal place and severity.
        column: Ring tooth at which the sensor sits.
    """
    row = (draw[:, 0] * ROWS).astype(np.intp)
    strength = np.exp(_SEVERITY_SPREAD * draw[:, 3])
    strength[draw[:, 1] < _FAINT_SHARE] *= _FAINT_FACTOR
    away = np.arange(COLUMNS) - column - _WINDOW_JITTER_COLUMNS * draw[:, 2, None]
    away = (away + COLUMNS / 2) % COLUMNS - COLUMNS / 2  # the ring closes on itself
    window = np.exp(-0.5 * (away / _WINDOW_COLUMNS) ** 2)
    profile = np.zeros((len(draw), ROWS))
    each = np.arange(len(draw))
    profile[each, row] = 1.0
    profile[each, (row - 1) % ROWS] = _LEAK
    profile[each, (row + 1) % ROWS] = _LEAK
    return strength[:, None, None] * profile[:, :, None] * window[:, None, :]
