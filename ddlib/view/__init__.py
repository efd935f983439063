"""Look at sets: in a notebook, beside real images, image by image."""
