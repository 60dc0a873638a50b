"""What the student of a fold is taught of the pool, as the ledger in pseudo_labels/ has it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from configs.pool import PseudoConfig
from trainers.atomic import read_parquet_metadata
from trainers.provenance import digest
from trainers.table import ImageTable

if TYPE_CHECKING:
    from trainers.pool_batches import PoolData


@dataclass(frozen=True)
class FoldLabels:
    """The rows of the ledger that are for one fold, and the pool's class shares that they hold at."""

    fold: int
    frame: pd.DataFrame
    prior: np.ndarray

    def digest(self, table: ImageTable) -> str:
        """A hash of everything that is taught: what the images show, not what they are called."""
        content = table.frame.set_index("id")["sha256"].loc[self.frame["id"]].to_numpy()
        taught = self.frame.drop(columns=["id", "teacher", "reason"]).assign(sha256=content)
        return digest([self.prior.tolist(), sorted(pd.util.hash_pandas_object(taught, index=False).tolist())])

    def pool_data(self, table: ImageTable, pseudo: PseudoConfig) -> "PoolData":
        """What training takes."""
        from ensembles.pseudo_labels import pool_targets
        from trainers.pool_batches import PoolData

        rows, targets, weights = pool_targets(self.frame, self.fold, table)
        return PoolData(
            rows,
            targets,
            weights,
            self.prior,
            batch_size=pseudo.batch_size,
            loss_weight=pseudo.loss_weight,
            like_labels=pseudo.draw == "like_labels",
        )


def ledger_name(arm: str, model: str, pseudo: PseudoConfig) -> str:
    """What the ledger of a model of a student arm is called: one for the arm, or with `cross` teachers one a model."""
    return f"{arm}.{model}" if pseudo.teachers == "cross" else arm


def ledger_file(name: str) -> str:
    """Where a ledger is, below the run folder."""
    return f"pseudo_labels/{name}.parquet"


def read_fold_labels(run_dir: Path, name: str, fold: int) -> FoldLabels:
    """The part of a ledger that is for the student of a fold."""
    path = run_dir / ledger_file(name)
    frame = pd.read_parquet(path)
    priors = read_parquet_metadata(path)["priors"]
    return FoldLabels(fold, frame[frame["student_fold"] == fold], np.array(priors[str(fold)]))
