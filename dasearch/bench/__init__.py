"""How good the search is: planted landscapes and tables of real trainings, raced by several samplers."""
