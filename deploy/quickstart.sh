#!/bin/bash
# Installs what is missing, builds Sherd, then runs its main job on this host: shard servers hold the state of a
# small GPT that trains on real text. On the way it asks the servers for that state, resizes them, kills a trainer
# and a server, and pulls the weights, all while training goes on; the same training undisturbed must end with
# the same bits. Last come text from the pulled weights and what each of these cost.
#
#   bash deploy/quickstart.sh [--quick] [--elastic] [--text FILE] [--ranks N] [--steps N] [--stage S] [--size NAME] [--keep]
#
#   --quick       about a minute of training instead of five
#   --elastic     trainers join and leave too; as many virtual ranks as there are at most keep the bits the same
#   --text FILE   train on this file (default: the King James Bible of the package bible-kjv-text)
#   --ranks N     trainers, with a shard server beside each (default 2)
#   --steps N     updates (default 6000; 600 with --quick)
#   --stage S     ZeRO stage 0, 1, 2 or 3 (default 2)
#   --size NAME   tiny or small (default tiny)
#   --keep        afterwards leave a cluster up that trains on
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
root=$PWD

usage_error() {
  printf 'quickstart: %s (see --help)\n' "$*" >&2
  exit 2
}
number() {  # FLAG VALUE LEAST MOST
  if ! [[ $2 =~ ^[0-9]{1,9}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then
    usage_error "$1 takes a number from $3 to $4, not '$2'"
  fi
}

quick='' elastic='' text='' ranks=2 steps='' stage=2 size=tiny keep=''
while (($#)); do
  case $1 in
    --quick) quick=1; shift; continue ;;
    --keep) keep=1; shift; continue ;;
    --elastic) elastic=1; shift; continue ;;
    -h | --help) sed -n '2,18s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    --text | --ranks | --steps | --stage | --size) (($# > 1)) || usage_error "$1 needs a value" ;;
    *) usage_error "unknown argument $1" ;;
  esac
  case $1 in
    --text) text=$2 ;;
    --ranks) number "$1" "$2" 1 64; ranks=$2 ;;
    --steps) number "$1" "$2" 40 100000000; steps=$2 ;;
    --stage) number "$1" "$2" 0 3; stage=$2 ;;
    --size) [[ $2 == tiny || $2 == small ]] || usage_error "--size is tiny or small, not '$2'"; size=$2 ;;
  esac
  shift 2
done
steps=${steps:-$([[ $quick ]] && echo 600 || echo 6000)}
virtual=()
if [[ $elastic ]]; then
  ((ranks > 0 && (ranks & (ranks - 1)) == 0 && ranks <= 4 && stage == 2)) ||
    usage_error "--elastic needs --ranks 1, 2 or 4 and --stage 2"
  virtual=(--virtual-ranks $((2 * ranks)))
fi
if [[ $text ]]; then
  [[ -f $text && -r $text ]] || usage_error "--text $text: no such file, or not readable"
  text=$(realpath "$text")
fi

out=$(mktemp -d "${TMPDIR:-/tmp}/sherd-quickstart.XXXXXX") || exit 1
job=quickstart-$$
run_pid='' open_line='' terminal=''
[[ -t 1 ]] && terminal=1

# ---- What is printed

say() {
  [[ $open_line ]] && printf '\r\033[K'
  open_line=''
  printf '%s\n' "$*"
}
title() { say; say "== $*"; }

finish() {  # ends what still runs, and says where to look if that was not the plan
  local status=$?
  trap - EXIT INT TERM
  if [[ $run_pid ]] && kill -INT "$run_pid" 2>/dev/null; then wait "$run_pid"; fi
  case $status in
    0) ;;
    130 | 143) say "quickstart: stopped; logs are in $out" >&2 ;;
    *) say "quickstart: failed; logs are in $out" >&2 ;;
  esac
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

fail() {
  say "quickstart: $*" >&2
  if [[ -s ${log-} ]]; then
    echo "The end of $log:" >&2
    tail -n 8 "$log" >&2
  fi
  exit 1
}

# ---- What a run of train_gpt writes: one JSON object a step

now_ms() { echo $((${EPOCHREALTIME/./} / 1000)); }
last_line() { tail -n 1 "$dir/steps.jsonl" 2>/dev/null; }
value() { sed -n "s/.*\"$1\":\([-0-9.e+]*\).*/\1/p"; }  # of one JSON line
step() { last_line | value step; }

draw() {
  local line at filled bar
  line=$(last_line)
  at=$(value step <<<"$line")
  [[ $at ]] || return
  filled=$((30 * at / steps))
  printf -v bar '%*s' "$filled" ''
  bar=${bar// /#}$(printf '%*s' $((30 - filled)) '')
  # Speed over the last steps: of one it jumps.
  line=$(tail -n 20 "$dir/steps.jsonl" | awk -v bar="$bar" -v at="$at" -v steps="$steps" '
    function of(key, s) { s = $0; if (!sub(".*\"" key "\":", "", s)) return 0; sub(/[,}].*/, "", s); return s + 0 }
    { n++; loss += of("loss"); ms += of("step_ms"); epoch = of("epoch"); world = of("world_size")
      tokens = of("tokens"); if (n == 1) first = tokens; else span += of("step_ms") }
    END { speed = span > 0 ? (tokens - first) / span * 1000 : 0
      printf "  [%s] %d/%d  loss %.3f  %d tokens/s  epoch %d  world size %d", bar, at, steps, loss / n, speed, epoch, world }')
  if [[ $terminal ]]; then
    printf '\r\033[K%s' "${line:0:$(($(tput cols 2>/dev/null || echo 100) - 1))}"
    open_line=1
  elif ((at * 10 / steps != ${drawn:--1})); then
    drawn=$((at * 10 / steps))
    [[ $line == "$printed" ]] || echo "$line"
    printed=$line
  fi
}

train_until() {  # STEP: shows progress until it is done. The end of the run before that is a failure.
  local at
  while at=$(step); [[ -z $at ]] || ((at < $1)); do
    kill -0 "$run_pid" 2>/dev/null || { [[ $(step) -ge $1 ]] && break; fail "training ended at step ${at:-0}"; }
    draw
    sleep 0.1
  done
  draw
}

start_run() {  # DIR STEPS
  dir=$1 log=$1/run.log drawn=-1 printed=''
  mkdir -p "$dir"
  # A process group of its own: Ctrl-C is for this script, which then ends the job in order.
  setsid "$sherd" run -n "$ranks" --job "$job" --dir "$dir" -- "$bin/client/examples/train_gpt" --size "$size" \
    --steps "$2" --stage "$stage" --seed 1 --json "$dir/steps.jsonl" --save "$dir/final.safetensors" \
    "${virtual[@]}" ${text:+--text "$text"} >"$log" 2>&1 &
  run_pid=$!
}
end_run() {
  train_until "$steps"
  say
  wait "$run_pid" || fail "sherd run failed with exit status $?"
  run_pid=''
}

# ---- The cluster, over RPC

# The servers' sockets; a client tries one after the other, so any of them may be gone.
ask() {
  local sockets
  sockets=$(printf ',unix:%s' "/dev/shm/sherd-$UID/$job"-*/*.sock)
  "$sherd" --endpoint "${sockets:1}" "$@"
}
of_json() { python3 -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1], {"d": d}))' "$1"; }

costs=()
cost() { costs+=("$(printf '%-34s %12s %14s %9s' "$@")"); }

kill_one() {  # KIND, NUMBER of it
  local pid before start after
  pid=$(ask status --json |
    of_json "[m['pid'] for m in d['members'] if m['kind'] == '$1'][$2]") || fail "sherd status failed"
  before=$(step)
  start=$(now_ms)
  kill -9 "$pid" || fail "no process $pid to kill"
  say "  kill -9 $pid ($1 $2) after step $before"
  # The step under way may have had all it needs from the dead; the one after it needs the successor.
  train_until $((before + 2))
  after=$(($(now_ms) - start))
  say "  a successor took its place; step $((before + 2)) was done $after ms after the kill"
  cost "$1 killed, two steps later" "-" "-" "$(awk "BEGIN { printf \"%.2f s\", $after / 1000 }")"
}

resize() {  # SERVERS
  local answer
  answer=$(ask resize --servers "$1" --json) || fail "sherd resize --servers $1 failed"
  say "  sherd resize --servers $1: $(of_json "'from step %d on, %d elements changed owner, %d bytes moved' % (
    d['step'] + 1, d['changed_elements'], d['moved_bytes'])" <<<"$answer")"
  cost "resize to $1 servers" "$(of_json "'%.1f ms' % (d['pause_seconds'] * 1e3)" <<<"$answer")" \
    "$(of_json "'%d moved' % d['moved_bytes']" <<<"$answer")" "$(of_json "'%.2f s' % d['seconds']" <<<"$answer")"
}

resize_trainers() {  # TRAINERS: then shows some steps of so many
  local answer before what
  before=$(step)
  answer=$(ask resize --trainers "$1" --json) || fail "sherd resize --trainers $1 failed"
  what="$1 trainers"; (($1 > 1)) || what="1 trainer"
  say "  sherd resize --trainers $1: $(of_json "'%d from step %d on, pause %.1f ms' % (
    d['trainers'], d['step'] + 1, d['pause_seconds'] * 1e3)" <<<"$answer");" \
    "$(($(of_json "d['step']" <<<"$answer") - before)) steps were trained while it was prepared"
  cost "resize to $what" "$(of_json "'%.1f ms' % (d['pause_seconds'] * 1e3)" <<<"$answer")" \
    "$(of_json "'%d moved' % d['moved_bytes']" <<<"$answer")" "$(of_json "'%.2f s' % d['seconds']" <<<"$answer")"
  train_until $(($(of_json "d['step']" <<<"$answer") + (steps / 50 > 5 ? steps / 50 : 5)))
  drawn=-1
  draw
}

query() {
  local start status
  start=$(now_ms)
  status=$(ask status --json) || fail "sherd status failed"
  cost "one query (sherd status)" "-" "-" "$(awk "BEGIN { printf \"%.2f s\", $(($(now_ms) - start)) / 1000 }")"
  elements=$(of_json "d['total_elements']" <<<"$status")
  say "  sherd status: $(of_json "'step %d, epoch %d, %d trainers, %d servers, %d parameters in %d tensors' % (
    d['step'], d['epoch'], d['world_size'], d['servers'], d['total_elements'], d['tensors'])" <<<"$status")"
  say "  sherd stat, three of them:"
  ask stat >"$dir/stat.txt" || fail "sherd stat failed"
  while IFS= read -r line; do say "    $line"; done < <(head -n 4 "$dir/stat.txt")
}

pull() {
  local answer before
  before=$(step)
  # At a rate that makes it last two seconds, so that training is seen to go on.
  answer=$(ask pull "$out/model.safetensors" --rate $((elements * 2 > 65536 ? elements * 2 : 65536)) --json) ||
    fail "sherd pull failed"
  say "  sherd pull model.safetensors: step $(of_json "d['step']" <<<"$answer"), whole and of one step;" \
    "$(($(step) - before)) steps were trained meanwhile"
  cost "pull while training (rate limited)" "-" "$(of_json "'%d' % d['bytes']" <<<"$answer")" \
    "$(of_json "'%.2f s' % d['seconds']" <<<"$answer")"
}

# What is left of a job: processes that carry its name, and its shared memory.
left_over() {
  local process name=$1
  for process in /proc/[0-9]*; do
    [[ ${process##*/} == "$$" ]] && continue
    if tr '\0' '\n' 2>/dev/null <"$process/cmdline" | grep -qxF -- "$name" ||
      tr '\0' '\n' 2>/dev/null <"$process/environ" | grep -qxF -- "SHERD_JOB=$name"; then
      echo "process ${process##*/}"
    fi
  done
  compgen -G "/dev/shm/sherd-$UID/$name-*"
}

# ---- The show

title "Install and build"
bash tools/setup.sh || exit 1
bazel_flags=(--jobs="$(bash tools/jobs.sh)" --show_result=0 --ui_event_filters=-info)
[[ -t 2 ]] || bazel_flags+=(--curses=no --color=no --show_progress_rate_limit=20)
start=$SECONDS
bazel build "${bazel_flags[@]}" //client/cli:sherd //server:sherdd //client/examples:train_gpt \
  //client/examples:sample_gpt || fail "the build failed"
bin=$root/bazel-bin sherd=$root/bazel-bin/client/cli/sherd
say "built in $((SECONDS - start)) s; logs and results go to $out"

title "Train: $ranks trainers, $ranks shard servers, ZeRO stage $stage, $steps steps of a $size GPT"
start_run "$out/run" "$steps"
train_until $((steps / 10))
say; say "Ask the servers, over RPC:"
query
train_until $((steps * 2 / 10))
say; say "One more server, live:"
resize $((ranks + 1))
train_until $((steps * 35 / 100))
say; say "Kill a trainer:"
kill_one trainer $((ranks - 1))
train_until $((steps / 2))
say; say "Kill a shard server:"
kill_one server $((ranks - 1))
if [[ $elastic ]]; then
  train_until $((steps * 52 / 100))
  say; say "Twice as many trainers, live:"
  resize_trainers $((ranks * 2))
  say; say "One alone, and back:"
  resize_trainers 1
  resize_trainers "$ranks"
fi
# While enough is left to train that the pull ends first, however fast the machine.
train_until $((steps * 6 / 10))
say; say "Pull the weights:"
pull
train_until $((steps * 7 / 10))
say; say "And back to as many servers as before:"
resize "$ranks"
end_run
say "  $(grep -h 'held-out' "$log" | tail -n 1)"

title "The same training, undisturbed"
start_run "$out/twin" "$steps"
end_run
cmp "$out/run/final.safetensors" "$out/twin/final.safetensors" ||
  fail "the undisturbed run ended with other parameters: this is a defect"
say "  both runs ended with the same $(stat -c %s "$out/run/final.safetensors") bytes, bit for bit"

title "Text from the pulled weights, by a program that never met the cluster"
prompt=(); [[ $text ]] || prompt=(--prompt "In the beginning")
"$bin/client/examples/sample_gpt" --file "$out/model.safetensors" --tokens 240 "${prompt[@]}" | fold -s -w 100 |
  sed 's/^/  /' || fail "sample_gpt failed"

title "What it cost"
printf '  %-34s %12s %14s %9s\n' "" "pause" "bytes" "time"
printf '  %s\n' "${costs[@]}"

left=$(left_over "$job")
[[ -z $left ]] || fail "left behind: $left"
say; say "Nothing is left running or in shared memory. Results: $out"

if [[ $keep ]]; then
  start_run "$out/keep" 1000000000
  train_until 1
  kept=$run_pid run_pid=''
  title "A cluster is up and trains on (job $job)"
  ask status
  say "Try: bazel-bin/client/cli/sherd top     End it: kill -INT $kept"
fi
