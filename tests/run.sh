#!/bin/bash
# Sets up, builds and runs every test and check. The last line is "N passed, N failed, N skipped", and the exit
# status is 0 only if nothing failed. A stage that is not a Bazel test counts as one test, and is skipped where
# its tool is missing.
#
#   bash tests/run.sh                 everything
#   bash tests/run.sh --quick         set up and run the Bazel tests, without the other stages
#   bash tests/run.sh --stage NAME    one stage (may be repeated)
#   bash tests/run.sh --list          the stages
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

stages=(
  "setup     Debian packages (tools/setup.sh)"
  "format    tools/format.py (clang-format) leaves every source as it is"
  "tests     bazel test //..."
  "tidy      clang's warnings, every lock contract among them (-Wthread-safety), and clang-tidy (.clang-tidy)"
  "sanitize  tests with AddressSanitizer and UndefinedBehaviorSanitizer"
  "tsan      tests with ThreadSanitizer"
  "cuda      kernels for CUDA build, and run where there is a device"
  "show      deploy/quickstart.sh --quick, and with --elastic: the main job, with kills, resizes and a pull"
)

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

is_stage() {
  local stage
  for stage in "${stages[@]}"; do [[ ${stage%% *} == "$1" ]] && return 0; done
  return 1
}

selected=()
while (($#)); do
  case $1 in
    --quick) selected+=(setup tests) ;;
    --stage)
      is_stage "${2-}" || { echo "run.sh: --stage needs one of: ${stages[*]%% *}" >&2; exit 2; }
      selected+=("$2")
      shift
      ;;
    --list) printf '%s\n' "${stages[@]}"; exit 0 ;;
    -h | --help) usage; exit 0 ;;
    *) echo "run.sh: unknown argument $1 (see --help)" >&2; exit 2 ;;
  esac
  shift
done
((${#selected[@]})) || selected=("${stages[@]%% *}")

bazel_flags=(--jobs="$(bash tools/jobs.sh)" --show_result=0 --ui_event_filters=-info)
[[ -t 2 ]] || bazel_flags+=(--noshow_progress --color=no)

tally=$(mktemp)
trap 'rm -f "$tally"' EXIT

count() { python3 tools/test_summary.py add --tally "$tally" --stage "$1" "$2"; }

# Patterns of the directories among "$@" that exist, each with the sign of its argument: "-a/b" gives "-//a/b/...".
below() {
  local dir
  for dir in "$@"; do
    [[ $dir == -* ]] && { [[ -d ${dir#-} ]] && echo "-//${dir#-}/..."; continue; }
    [[ -d $dir ]] && echo "//$dir/..."
  done
}
# Left out: what includes libtorch, whose headers take clang and the sanitizers longer than all the rest.
mapfile -t without_torch < <(below core kernels proto runtime server client -client/torch -client/examples)
mapfile -t sanitized < <(below core kernels proto runtime server client tests/step tests/sim \
  -client/torch -client/examples)
# Of core, kernels and the simulator one test has threads; the command line's are one or two that wait.
mapfile -t threaded < <(below runtime server client tests/step -client/cli -client/config -client/torch -client/examples)
[[ -d core ]] && threaded=("//core:chunked_list_test" "${threaded[@]}")

bazel_tests() {  # STAGE BAZEL_ARGS...: counts its own test cases
  local stage=$1
  shift
  counted=1
  python3 tools/test_summary.py run --tally "$tally" --stage "$stage" -- "${bazel_flags[@]}" "$@"
}

# Each stage_NAME returns 0 (passed), 1 (failed) or 77 (skipped, having said why).
stage_setup() { bash tools/setup.sh; }

stage_format() {
  command -v clang-format >/dev/null || { echo "no clang-format"; return 77; }
  python3 tools/format.py --check
}

stage_tests() { bazel_tests tests //...; }

stage_tidy() {
  command -v clang-tidy >/dev/null || { echo "no clang-tidy"; return 77; }
  bazel build --config=tidy --keep_going "${bazel_flags[@]}" -- "${without_torch[@]}"
}

stage_sanitize() { bazel_tests sanitize --config=sanitize --build_tests_only -- "${sanitized[@]}"; }

stage_tsan() { bazel_tests tsan --config=tsan --build_tests_only -- "${threaded[@]}"; }

stage_cuda() {
  [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]] || { echo "no nvcc in ${CUDA_HOME:-/usr/local/cuda}"; return 77; }
  bazel_tests cuda --config=cuda //kernels/cuda:all
}

stage_show() { bash deploy/quickstart.sh --quick && bash deploy/quickstart.sh --quick --elastic --steps 400; }

for stage in "${selected[@]}"; do
  start=$SECONDS
  counted=
  printf '== %s\n' "$stage"
  "stage_$stage"
  status=$?
  case $status in
    0) result=passed ;;
    77) result=skipped ;;
    *) result=failed ;;
  esac
  [[ $counted ]] || count "$stage" "$result"
  printf '== %s %s, %d s\n' "$stage" "$result" $((SECONDS - start))
  # Without its packages nothing below can be built.
  [[ $stage == setup && $result == failed ]] && break
done
python3 tools/test_summary.py total --tally "$tally"
