"""The prevalence of a finished run's pool, estimated from its scores."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from configs.errors import InputError
from scripts.planning.finished import FinishedRun, oof_of

if TYPE_CHECKING:
    from ensembles.pool_prevalence import PoolPrevalence

LEARNT_NO_POOL = "supervised"


def pool_prevalence(run: FinishedRun) -> dict[str, Any]:
    """The estimate of the pool's prevalence; `estimate` is None with a reason where there is none.

    Networks that learnt from the pool score it as images that they know, and the out-of-fold rows as new ones, so that
    the two cannot be compared: the prevalence is then estimated with those of arm `supervised`.
    """
    import numpy as np

    from ensembles.arms import learns_from_pool
    from ensembles.blending import blend_scores, fit_blend
    from ensembles.pool_prevalence import estimate_pool_prevalence, fold_log_odds
    from ensembles.predictions import members_of, read_predictions
    from trainers.provenance import derive_seed

    predictions = read_predictions(run.run_dir / "predictions", table=run.table)
    arm, blend, scores = run.stored.arm, run.stored.blend, run.stored.scores
    if learns_from_pool(arm):
        arm = LEARNT_NO_POOL
        members = members_of(predictions, arm)
        blend = fit_blend(members, method=run.config.ensemble.method)
        scores = blend_scores(blend, members)
    chosen = members_of(predictions, arm)
    chosen = chosen[chosen["model"].isin(blend.weights)]
    pool = fold_log_odds(chosen, blend)
    if not pool.size:
        reason = "there is no pool" if not len(run.table.rows("pool")) else "it is not scored; set predict.pool: true"
        return {"estimate": None, "reason": reason}
    targets, _, log_odds, units = oof_of(run, blend, scores)
    try:
        found: PoolPrevalence = estimate_pool_prevalence(
            targets,
            log_odds,
            pool,
            units=units,
            confidence=run.config.metrics.confidence,
            rng=np.random.default_rng(derive_seed(run.config.seed, "plan", "pool")),
        )
    except InputError as error:
        return {"estimate": None, "reason": str(error)}
    if not 0.0 < found.estimate < 1.0:
        return asdict(found) | {"estimate": None, "reason": f"the estimate is {found.estimate:g}, so no point of it"}
    if arm != run.stored.arm:
        run.notes.append(
            f"The pool's prevalence is estimated with the networks of arm {arm}, equally weighted: those of arm "
            f"{run.stored.arm}, which the run kept, learnt from the pool itself."
        )
    if not found.agrees:
        run.notes.append(
            f"The pool's prevalence is {found.estimate:.3g} by the scores' likelihood and {found.second_opinion:.3g} "
            "by their adjusted mean, further apart than chance explains: the pool may differ from the labelled images "
            "by more than its prevalence. Before you rely on either, label a few hundred random images of it."
        )
    return asdict(found) | {"reason": None}
