"""Shared: the reference data, and one small trained estimator for all tests."""

import os
from pathlib import Path

import pytest
import torch

from ampost import Estimator, Model
from ampost.inference import train
from ampost.learning import Settings
from ampost.refining import Refining
from ampost.training import Schedule
from ampost.zoo import michaelis_menten

torch.set_num_threads(1)  # two threads that wait for each other crawl on a busy machine


@pytest.fixture(scope="session")
def reference() -> Path:
    default = Path(__file__).parents[2] / "shared" / "reference"
    folder = Path(os.environ.get("AMPOST_REFERENCE", default))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set AMPOST_REFERENCE")
    return folder


@pytest.fixture(scope="session")
def kinetics() -> Model:
    return michaelis_menten.model()


@pytest.fixture(scope="session")
def trained(kinetics: Model) -> Estimator:
    settings = Settings(
        simulations=4_000, schedule=Schedule(steps=500), refining=Refining(2_500, Schedule(steps=400))
    )
    return train(kinetics, settings, seed=1, progress=False)
