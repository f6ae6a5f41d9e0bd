"""The command line: `nedm list`, `run`, `train`, `sample`, `loglik`, `inpaint`, `denoise` and `show`."""

from nedm_ppl.cli._main import main as main
