import logging
from pathlib import Path

import pytest

from tests.cache.faults import Attack, places
from tests.cache.redis_server import needs_redis


@pytest.mark.parametrize(
    "kind", ["disk", pytest.param("redis", marks=needs_redis), pytest.param("layered", marks=needs_redis)]
)
def test_no_attack_gets_a_wrong_answer(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "sixfold.cache.remote")  # every failure is said
    with places(kind, tmp_path) as place:
        attack = Attack(place, seed=1)
        attack.run(6000)
        attack.close()
        assert attack.wrong == 0
        assert attack.counted("rejected") and attack.done["found: the right answer"] > 100
