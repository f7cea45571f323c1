"""Rates of a CPU of round numbers: what plans of it must come to can be told by head."""

from dlm_edge.jetson.forecast.host import HostRates

RATES = HostRates(
    version=1,
    cpu="a CPU of round numbers",
    threads=1,
    engine="0",
    rows=(1, 512),
    footprints_mib=(1.0, 100.0),
    product_macs_per_s=((1e9, 1e9), (1e9, 1e9)),
    integer_macs_per_s=((2e9, 2e9), (2e9, 2e9)),
    attention_macs_per_s=(1e9, 1e9),
    items=(1, 1024),
    pointwise_s=(1e-9, 1024e-9),
    costly_s=(1e-9, 1024e-9),
    move_s=(1e-9, 1024e-9),
    dispatch_s=1e-6,
    sample_row_s=1e-6,
    sample_item_s=1e-9,
    step_s=1e-5,
    resident_mib=50.0,
    waited_share=0.0,
)
