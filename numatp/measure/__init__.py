"""HOW FAST is it, and is that what the machine gives? Benchmarks, op by op, beside the roofline; what memory gives."""
