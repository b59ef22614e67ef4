"""hdsweep: method x seed x hyperparameter sweeps of anomaly-detection research."""
