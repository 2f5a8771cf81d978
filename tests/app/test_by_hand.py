"""A whole study worked out with paper and pencil: the counts, the comparison and the sentence on the page."""

import math

import pytest
from fastapi.testclient import TestClient

from ml.pack import Pack
from tests.app.oracle import MODELS, OUTCOMES, by_labels, play, strict
from tests.app.reading import Page, assert_page_says

BY_HAND = [  # (fooled, second, none, yes) for each of three participants
    {"undefended": (1, 2, 1, 3), "distilled": (0, 2, 0, 0), "gradient_regularized": (4, 2, 1, 6)},
    {"undefended": (0, 3, 2, 2), "distilled": (0, 1, 1, 0), "gradient_regularized": (3, 1, 2, 7)},
    {"undefended": (2, 0, 0, 1), "distilled": (0, 4, 0, 0), "gradient_regularized": (1, 3, 0, 6)},
]


COUNTED = (*OUTCOMES[:7], "placebo_reasonable")  # the contract's


@pytest.mark.only("sqlite")  # test_results.py reads such answers from both
def test_three_participants_worked_by_hand(researcher: TestClient, pack: Pack) -> None:
    for plans in BY_HAND:
        play(researcher, "test", [pack], by_labels(plans))
    found = strict(researcher.get("/results/test.json").text)
    models = found["packs"]["test-pack"]["models"]
    counts = {m: {o: models[m][o]["count"] for o in COUNTED} for m in MODELS}
    names = dict.fromkeys(COUNTED, 0)
    assert counts == {
        "undefended": names
        | {
            "human_fooled": 3,
            "mistake_reasonable": 11,
            "mistake_reasonable_direct": 6,
            "target_first": 3,
            "target_second": 5,
            "none_plausible": 3,
            "kept_source": 24,  # all but fooled and none
            "placebo_reasonable": 3,  # no label was ever named but source and target: "none" alone is left
        },
        "distilled": names
        | {
            "mistake_reasonable": 8,
            "target_second": 7,
            "none_plausible": 1,
            "kept_source": 29,
            "placebo_reasonable": 1,
        },
        "gradient_regularized": names
        | {
            "human_fooled": 8,
            "mistake_reasonable": 17,
            "mistake_reasonable_direct": 19,
            "target_first": 8,
            "target_second": 6,
            "none_plausible": 3,
            "kept_source": 19,
            "placebo_reasonable": 3,
        },
    }
    assert {models[m][o]["n"] for m in MODELS for o in COUNTED} == {30}
    zero = models["distilled"]["human_fooled"]
    assert (zero["low"], round(zero["high"], 4)) == (0, 0.1135)  # Wilson, 0 of 30: z^2 / (30 + z^2)

    comparisons = {(c["a"], c["b"], c["outcome"]): c for c in found["packs"]["test-pack"]["comparisons"]}
    assert len(comparisons) == 9
    primary = comparisons["undefended", "gradient_regularized", "mistake_reasonable"]
    # Participants' differences: 4 - 7, 5 - 6, 2 - 4 tenths; mean -0.2, s 0.1, t(0.975; 2) = 4.302653.
    assert primary["primary"] is True
    assert math.isclose(primary["difference"], -0.2)
    assert math.isclose(primary["low"], -0.2 - 4.302653 * 0.1 / math.sqrt(3), abs_tol=1e-6)
    assert math.isclose(primary["high"], -0.2 + 4.302653 * 0.1 / math.sqrt(3), abs_tol=1e-6)
    assert (primary["p"], primary["p_mid"], primary["p_holm"]) == (2 / 8, 1 / 8, None)
    direct = comparisons["undefended", "gradient_regularized", "mistake_reasonable_direct"]
    assert math.isclose(direct["difference"], -13 / 30)  # 3 - 6, 2 - 7, 1 - 6 tenths
    fooled = comparisons["undefended", "gradient_regularized", "human_fooled"]
    assert math.isclose(fooled["difference"], -5 / 30)  # 1 - 4, 0 - 3, 2 - 1: |5| of 7 from 4 of 8 patterns
    assert fooled["p"] == 4 / 8
    assert {c["p_holm"] for c in comparisons.values() if not c["primary"]} == {1.0}

    page = Page(researcher.get("/results/test").text)
    assert page.findings == [
        "Over 3 participants, mistakes of undefended counted as reasonable in 36.7 % of answers, those of gradient "
        "regularized in 56.7 %: 20.0 percentage points less often (95 % interval of the difference −44.8 to +4.8; "
        "exact two-sided sign-flip test, p = 0.2500). That is no evidence of a difference: p is above the 0.05 "
        "that was fixed beforehand. Differences from −44.8 to +4.8 points remain possible. This speaks about new "
        f"participants and these images. For new participants and new images: p = {primary['p_new_images']:.4f}. "
        "With 3 participants this test cannot give a p below 0.2500."
    ]
    assert_page_says(page, found)
