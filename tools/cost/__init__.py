"""Per-device graph x cluster → time.

    curves.py       the constants: what fraction of a peak each kind of kernel reaches, latencies, engine overheads
    compute.py      kernels of a partitioned body → FLOPs, bytes, GEMM shapes → seconds (roofline)
    collectives.py  α–β time of a collective on the topology level that its group really spans
    steps.py        one forward pass of every pipeline stage, for arrays of candidates
    serving.py      requests over steps: TTFT, TPOT, throughput of a replica in closed form
    estimate.py     one strategy → Estimate, with bands, margins, breakdown and memory
Everything works on ints and on numpy arrays alike: the search prices a whole candidate set with the same functions that
price one strategy.
"""
