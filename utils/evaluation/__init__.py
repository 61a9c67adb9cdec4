"""Results: inference, metrics of data sets, contact sheet and report."""
