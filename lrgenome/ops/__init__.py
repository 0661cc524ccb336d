"""The operations: each has a slow twin (``naive.py``), which is its definition, and fast ones that agree with it.

* ``rglru``: the gated linear recurrence of Hawk. * ``selective_scan``: that of Mamba.
* ``conv``: the short depthwise convolution before either. * ``gating``: GELU and SiLU gates.
* ``norm``: RMSNorm and the residual sum. * ``linear``: matrix products. * ``rope``: rotary positions.

`backend.select` says which implementation runs: ``cpu`` (numba) for float32 and bfloat16 on a CPU, ``cuda``
where its kernels import and pass their self-check, ``blocked`` (plain torch) on any other device, ``naive`` for
float64.
"""
