"""The campaign of kills, in short; the long form is `python tests/campaigns/kills.py --num 100`."""

import pytest
from campaigns.kills import KINDS, main


@pytest.mark.slow
def test_nothing_is_lost_doubled_or_left_behind_by_kills_at_random_moments() -> None:
    assert main(num=2 * len(KINDS), seed=1) == 0
