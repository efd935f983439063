"""Images that cost no distillation: class means and k-means centres, coresets."""
