"""Networks, weights and the model file; calibration, metrics and heatmaps."""
