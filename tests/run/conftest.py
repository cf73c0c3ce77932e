"""An open run folder."""

import pytest

from gipo_mc.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    with RunFolder.open(tmp_path, "toy", "train_gi_ppo", resume=True) as opened:
        yield opened
