"""Latency on onnxruntime: measured for each operator at its shapes, kept in a table, added up, and
checked on whole models.

    operators   what of a graph costs time, as operators with two sizes that may shrink
    kernels     one operator, built as a model of one node and timed
    table       measured times: a file per machine, provider, threads and version; in between,
                interpolation
    predict     the sum over a graph, for any choice
    whole       whole models, timed in turns
    search      choose, measure, correct: until the measured latency is what was asked for

Sources: HALP (Shen et al., NeurIPS 2022) and ZipLM (Kurtic et al., NeurIPS 2023): tables of
latencies and a knapsack over them."""
