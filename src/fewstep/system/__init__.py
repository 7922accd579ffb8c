"""Files, processes and machines: what a run stands on."""
