"""Pairs of images: tasks, layouts of data sets, image files, colour and the H5 format."""
