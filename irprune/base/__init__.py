"""What every other package may use and what knows nothing of models: files written whole or not at
all, threads, tolerances."""
