"""The README's code runs as printed, in small, and its pictures are there."""

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_examples_run(tmp_path, capsys):
    first, programs, composed, exact = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    small = (
        first.replace("num_steps=3000", "num_steps=5, progress=False").replace("20_000", "300").replace("2_000", "50")
    )
    assert small != first
    programs = "import optax\nrng_key, x0 = jax.random.key(0), data.swiss_roll(0, 8)\n" + programs
    few = composed.replace("num_particles=1000", "num_particles=20").replace("num_warmup=200, num_samples=500", "2, 3")
    few = re.sub(r"MCMC\((.*), 2, 3\)", r"MCMC(\1, num_warmup=2, num_samples=3, progress_bar=False)", few)
    assert "num_samples=3" in few and "num_particles=20" in few
    script = tmp_path / "example.py"
    script.write_text("\n".join([small, programs, few, exact]))
    names = runpy.run_path(str(script))
    assert names["samples"].shape == (1000, 2)
    assert "±" in capsys.readouterr().out
    assert float(names["loss"]) > 0


def test_every_picture_and_page_it_points_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert len(links) > 4
    for link in links:
        assert (ROOT / link).exists(), link
