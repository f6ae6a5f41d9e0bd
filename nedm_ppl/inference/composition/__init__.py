"""A trained model among the other latents of a program: Gibbs and Metropolis."""

from nedm_ppl.inference.composition._particle_metropolis import ParticleMetropolis as ParticleMetropolis
from nedm_ppl.inference.composition._path_gibbs import PathGibbs as PathGibbs
