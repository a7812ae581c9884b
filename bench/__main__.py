"""The benches: `python -m bench` times the CPU ops, and its --help names the others."""

import sys

if sys.argv[1:2] == ["gpu"]:
    from bench.gpu.main import main

    raise SystemExit(main(sys.argv[2:]))
if sys.argv[1:2] == ["chart"]:
    from bench.gpu.chart import main

    raise SystemExit(main(sys.argv[2:]))
if sys.argv[1:2] == ["quality"]:
    from bench.quality_int8 import main

    raise SystemExit(main(sys.argv[2:]))

if sys.argv[1:2] == ["training"]:
    from bench.training import main

    raise SystemExit(main(sys.argv[2:]))

from bench.cpu import main

raise SystemExit(main())
