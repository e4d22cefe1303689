"""From images to predictions: compiled models, tiles, test-time augmentation, files."""
