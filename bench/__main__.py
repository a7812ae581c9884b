"""`python -m bench`: the CPU ops beside bitsandbytes' (bench/cpu.py). The GPU bench is bench/gpu.sh."""

from bench.cpu import main

raise SystemExit(main())
