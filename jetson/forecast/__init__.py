"""Memory, time and energy of a bundle on a target, predicted from its graphs."""
