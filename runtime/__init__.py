"""The ground floor: the bundle contract and the torch-free library that decodes from it."""
