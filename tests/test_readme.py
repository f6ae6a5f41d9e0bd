"""The README's code runs as it is pasted, block after block, and its pictures are there."""

import re
import runpy
from pathlib import Path

import pytest
from test_docs import pasted

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
# All that the test changes: sizes.
SMALLER = {
    "20_000": "300",
    "2_000": "50",
    "num_updates=3000": "num_updates=5",
    "num_particles=1000": "num_particles=20",
    "num_warmup=200": "num_warmup=2",
    "num_samples=500": "num_samples=4",
}


@pytest.mark.filterwarnings("ignore::nedm_ppl.inference.DoubtfulPosterior")  # twenty particles
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # four draws have no r-hat
def test_the_examples_run(tmp_path, capsys):
    file = tmp_path / "example.py"
    file.write_text(pasted(ROOT / "README.md", SMALLER))
    names = runpy.run_path(str(file))
    assert names["samples"].shape == (1000, 2)
    assert "±" in capsys.readouterr().out
    assert float(names["loss"]) > 0 and names["mcmc"].get_samples()["x"].shape == (4, 2)


def test_every_picture_and_page_it_points_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 4
    for link in links:
        assert (ROOT / link).exists(), link
