"""The ways out for graphs, by the kind of model that they came from."""
