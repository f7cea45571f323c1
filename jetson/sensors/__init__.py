"""Memory, power and clocks of the machine, sampled while a bundle runs."""
