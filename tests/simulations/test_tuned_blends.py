"""The cross-fitted AP of a tuned blend is that of such blends on new images; the one on its own rows is optimistic."""

import numpy as np
import pytest

from ensembles.blend_search import search
from ensembles.blending import fit_blend
from ensembles.recipes import Learner, OutOfFold
from ensembles.tuning import cross_fit
from tests.ensembles.tuning_toys import toy_predictions, toy_table
from trainers.metrics import average_precision

SKILLS = {"a": 1.7, "b": 1.4, "c": 1.4}


@pytest.mark.parametrize(("positives", "negatives", "optimism"), [(59, 1000, 0.01), (293, 5000, 0.002)])
def test_cross_fitted_ap_has_no_bias_and_the_naive_one_has(positives, negatives, optimism, size):
    if positives == 293:
        size.only_in_full()
    rng, draws, trials = np.random.default_rng(1000), size.draws(40, 100), size.draws(12, 50)
    num_rows = positives + negatives
    shares = (negatives / num_rows, positives / num_rows)
    table = toy_table(rng, num_rows=30_000, shares=shares, num_test=0)
    new = OutOfFold.of(toy_predictions(rng, table, SKILLS), num_classes=2)

    def true_ap(blend):
        return average_precision(new.targets, new.scores(blend)[:, 0])

    cross_fitted, naive = [], []
    for seed in range(draws):
        rng = np.random.default_rng(seed)
        table = toy_table(rng, num_rows=num_rows, shares=shares, num_test=0)
        predictions = toy_predictions(rng, table, SKILLS)
        oof = OutOfFold.of(predictions, num_classes=2)
        blends, ranking = cross_fit(oof, trials=trials, seed=seed)
        learner = Learner(oof, oof.targets)
        final = learner.blend(search(learner, trials=trials, seed=seed, name="all").recipe)
        equal = fit_blend(predictions, method="logits")
        # how much better equal weights do on these rows than on new ones is luck of the rows, which all blends share
        luck = average_precision(oof.targets, oof.scores(equal)[:, 0]) - true_ap(equal)
        true = np.mean([true_ap(blend) for blend in blends])
        cross_fitted.append(average_precision(oof.targets, ranking[:, 0]) - luck - true)
        naive.append(average_precision(oof.targets, oof.scores(final)[:, 0]) - luck - true_ap(final))

    def error(values):
        return np.std(values, ddof=1) / np.sqrt(draws)

    size.note(
        cross_fitted=np.mean(cross_fitted), its_error=error(cross_fitted), naive=np.mean(naive), error=error(naive)
    )
    assert abs(np.mean(cross_fitted)) <= 0.01 + 2 * error(cross_fitted)
    assert np.mean(naive) > optimism + 2 * error(naive)  # the control: tuned and judged on the same rows
