"""raw -> harmonized: a regular clock, a mask instead of holes, a frozen split, scalers fitted on the training part."""
