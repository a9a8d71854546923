"""Inference engines: Keras, LiteRT, OpenVINO; conversion, parity checks and export."""
