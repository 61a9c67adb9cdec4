"""Pairs of images: tasks, layouts of data sets, reading, colour and the H5 format."""
