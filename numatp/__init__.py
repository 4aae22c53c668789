"""numatp: tensor-parallel LLM inference on the NUMA nodes of one server, one rank per node."""

__version__ = "0.1.0"
