"""The cross-fitted AP of a tuned blend is that of such blends on new images; the one on its own rows is optimistic."""

import numpy as np

from ensembles.blend_search import search
from ensembles.blending import fit_blend
from ensembles.recipes import Learner, OutOfFold
from ensembles.tuning import cross_fit
from tests.ensembles.tuning_toys import toy_predictions, toy_table
from trainers.metrics import average_precision

SKILLS = {"a": 1.7, "b": 1.4, "c": 1.4}
SHARES = (1000 / 1059, 59 / 1059)
DRAWS, TRIALS = 40, 12


def test_cross_fitted_ap_has_no_bias_with_59_positives_and_the_naive_one_has():
    rng = np.random.default_rng(1000)
    table = toy_table(rng, num_rows=30_000, shares=SHARES, num_test=0)
    new = OutOfFold.of(toy_predictions(rng, table, SKILLS), num_classes=2)

    def true_ap(blend):
        return average_precision(new.targets, new.scores(blend)[:, 0])

    cross_fitted, naive = [], []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        table = toy_table(rng, num_rows=1059, shares=SHARES, num_test=0)
        predictions = toy_predictions(rng, table, SKILLS)
        oof = OutOfFold.of(predictions, num_classes=2)
        blends, ranking = cross_fit(oof, trials=TRIALS, seed=seed)
        learner = Learner(oof, oof.targets)
        final = learner.blend(search(learner, trials=TRIALS, seed=seed, name="all").recipe)
        equal = fit_blend(predictions, method="logits")
        # how much better equal weights do on these rows than on new ones is luck of the rows, which all blends share
        luck = average_precision(oof.targets, oof.scores(equal)[:, 0]) - true_ap(equal)
        true = np.mean([true_ap(blend) for blend in blends])
        cross_fitted.append(average_precision(oof.targets, ranking[:, 0]) - luck - true)
        naive.append(average_precision(oof.targets, oof.scores(final)[:, 0]) - luck - true_ap(final))

    def error(values):
        return np.std(values, ddof=1) / np.sqrt(DRAWS)

    assert abs(np.mean(cross_fitted)) <= 0.01 + 2 * error(cross_fitted)
    assert np.mean(naive) > 0.01 + 2 * error(naive)  # the control: tuned and judged on the same rows
