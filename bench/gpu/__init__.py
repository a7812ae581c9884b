"""The GPU bench: every table of 4-bit speed in one run, beside bf16 cuBLAS and other libraries."""
