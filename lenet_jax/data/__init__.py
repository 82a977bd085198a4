"""Data sets: images and labels as arrays, from files, downloads and photos."""
