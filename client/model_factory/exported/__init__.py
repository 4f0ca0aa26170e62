"""Models as programs of torch.export or ONNX, for machines without model-factory."""
