"""What a checkpoint is worth, measured item by item.

    checkpoint + held-out documents --on_ray, several scorers--> losses.parquet: one row a document

Per-document results are the artifact, not their average: comparisons between variants are paired (medschool.ablate).
"""
