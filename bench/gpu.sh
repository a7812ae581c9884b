#!/usr/bin/env bash
# Proves a CUDA build on a machine with a GPU. Installs dist/*.whl (from `make cuda`), then runs the C++ tests, the Python GPU
# tests and the GPU bench, and in a second run the C++ tests under compute-sanitizer, each within a time limit and each run
# within 10 minutes.
# Needs python3 with torch and pytest, and takes what that python3 lacks from wheels in dist/ or packages in .peers/.
# Variables:
#   OUT           where the logs, bench.json, its chart and summary.json go (out/gpu)
#   QBITS_COMMIT  the commit that was built (git's HEAD)
#   STAGES        which stages run ("install cpp pytest bench"; the others are "sanitizer racecheck initcheck synccheck")
set -uo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-out/gpu}
export QBITS_COMMIT=${QBITS_COMMIT:-$(git rev-parse --verify -q HEAD 2>/dev/null || echo unknown)}
STAGES=${STAGES:-install cpp pytest bench}
mkdir -p "$OUT"
export work
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH=$work/site:$PWD/.peers${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1

install() {
  python3 -m pip install -q --no-deps --no-index --no-compile --target "$work/site" dist/*.whl && python3 -m qbits
}

cpp() {
  local status=0
  for program in dist/bin/*_test; do
    "$program" --gtest_brief=1 --gtest_output="json:$work/cpp/$(basename "$program").json" || status=$?
  done
  return $status
}

# compute_sanitizer TOOL FILTER STAGE: the tests of the CUDA back end under that tool.
compute_sanitizer() {
  local status=0
  for program in dist/bin/*cuda*_test; do
    compute-sanitizer --tool "$1" --error-exitcode 1 "$program" --gtest_brief=1 --gtest_filter="$2" \
      --gtest_output="json:$work/$3/$(basename "$program").json" || status=$?
  done
  return $status
}

# All but those of tens of gigabytes and those that make CUDA report an error, which memcheck would count.
most_tests='-*Large*:*DeliberateError*'
export most_tests

sanitizer() {
  compute_sanitizer memcheck "$most_tests" sanitizer
}

# Racecheck takes many times as long as the tests: small ones that use each kernel with shared memory. It takes an
# arrival on an mbarrier to order what the arriving thread did, not what its warp did before a __syncwarp, so what it says
# of the Stream and wgmma kernels, where one lane arrives for all, is no failure; with every lane arriving it finds
# only what is meant so (bench/results/NOTES.md, CUDA on Hopper).
racecheck() {
  local log=$work/racecheck.txt
  local tests='Cuda*.StreamsAndGraphs:Linear4bit*Cuda.NanScale*:LinearInt8*Cuda.Nan*:IgemmMmaCuda.EveryPlanOfASmall*'
  compute_sanitizer racecheck "$tests" racecheck | tee "$log"
  grep -q 'RACECHECK SUMMARY' "$log" && ! grep -q 'FAILED' "$log" &&
    ! grep 'Race reported' "$log" | grep -qvE 'linear_4bit_(stream|wgmma)_kernel'
}

# Memory that nothing wrote.
initcheck() {
  compute_sanitizer initcheck "$most_tests" initcheck
}

# Barriers that threads miss.
synccheck() {
  compute_sanitizer synccheck "$most_tests" synccheck
}

pytest() {
  local parallel=()
  python3 -c 'import xdist' 2>/dev/null && parallel=(-n auto)
  python3 -m pytest -v --tb=short -rf -p no:cacheprovider -m gpu "${parallel[@]}" --junit-xml="$work/pytest.xml" \
    tests/python
}

bench() {
  local status=0
  python3 -m bench gpu --json "$OUT/bench.json" || status=$?
  python3 -c 'import matplotlib' 2>/dev/null && python3 -m bench chart "$OUT/bench.json" "$OUT/linear_4bit.png"
  return $status
}

export -f install cpp pytest compute_sanitizer sanitizer racecheck initcheck synccheck bench

# stage NAME SECONDS: runs the function of that name, keeps its log, records its result, goes on. At the limit it is
# interrupted first, so that pytest still reports its failures.
stage() {
  local name=$1 limit=$2 start=$SECONDS status=0
  case " $STAGES " in *" $name "*) ;; *) return ;; esac
  timeout --signal=INT --kill-after=5 "$limit" bash -c "$name" >"$OUT/$name.log" 2>&1 || status=$?
  printf '%s\t%s\t%s\n' "$name" "$status" "$((SECONDS - start))" >>"$work/stages.tsv"
  echo "--- $name: exit status $status after $((SECONDS - start)) s (limit $limit)"
  tail -n 5 "$OUT/$name.log"
}

touch "$work/stages.tsv"
stage install 40
# The tests share the GPU, the bench has it for itself.
stage cpp 260 &
stage pytest 260
wait
stage bench 260
stage sanitizer 250
stage racecheck 250
stage initcheck 200
stage synccheck 200

python3 - "$work" "$OUT/summary.json" <<'EOP'
import collections, datetime, importlib.metadata, json, os, pathlib, subprocess, sys, xml.etree.ElementTree

work, target = map(pathlib.Path, sys.argv[1:])


def gtest_counts(folder):
    counts = collections.Counter(passed=0, skipped=0, failed=0)
    for path in folder.glob("*.json"):
        for suite in json.loads(path.read_text())["testsuites"]:
            for test in suite["testsuite"]:
                if test["status"] == "RUN":
                    skipped = test["result"] == "SKIPPED"
                    counts["failed" if test.get("failures") else "skipped" if skipped else "passed"] += 1
    return counts


def pytest_counts(path):
    suite = xml.etree.ElementTree.parse(path).getroot().find("testsuite") if path.exists() else None
    total, skipped, failed = (
        (int(suite.get("tests")), int(suite.get("skipped")), int(suite.get("failures")) + int(suite.get("errors")))
        if suite is not None
        else (0, 0, 0)
    )
    return {"passed": total - skipped - failed, "skipped": skipped, "failed": failed}


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip().splitlines()[-1]
    except (OSError, IndexError, subprocess.CalledProcessError):
        return None


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


counts = {
    "pytest": pytest_counts(work / "pytest.xml"),
    **{name: gtest_counts(work / name) for name in ("cpp", "sanitizer", "racecheck", "initcheck", "synccheck")},
}
stages = {}
for line in (work / "stages.tsv").read_text().splitlines():
    name, status, seconds = line.split("\t")
    stages[name] = {"exit_status": int(status), "seconds": int(seconds), **counts.get(name, {})}
summary = {
    "commit": os.environ["QBITS_COMMIT"],
    "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    "gpu": said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
    "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    "versions": {
        "python": sys.version.split()[0],
        **{package: version(package) for package in ("qbits", "torch", "bitsandbytes", "numpy", "transformers")},
        "nvcc": said("nvcc", "--version"),
    },
    "stages": stages,
    "passed": all(stage["exit_status"] == 0 for stage in stages.values()),
}
target.write_text(json.dumps(summary, indent=2) + "\n")
print(json.dumps(summary, indent=2))
sys.exit(not summary["passed"])
EOP
