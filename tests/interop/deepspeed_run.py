"""The training of regression_trainer.cc by real DeepSpeed, which saves or loads a universal folder.

    python3 deepspeed_run.py make FOLDER STAGE RANKS LR OPTIMIZER   trains 7 steps, saves, converts with
                                                                    ds_to_universal.py
    python3 deepspeed_run.py load FOLDER STAGE RANKS LR OPTIMIZER   loads FOLDER and goes on

OPTIMIZER is torch (its AdamW) or deepspeed (its DeepSpeedCPUAdam, which is compiled at first use: needs ninja).
Prints {"losses": [...]}: of make, those of the steps after the save; of load, of the steps after loading. Each is
the loss of all rows before its update. On the CPU, ranks as processes over gloo.
"""
import json
import os
import socket
import subprocess
import sys

ROWS, INPUTS, OUTPUTS = 12, 8, 4
STEPS, CONTINUED = 7, 5


def rank_main(what, folder, stage, learning_rate, kind):
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # pylint: disable=import-outside-toplevel,import-error
    import torch  # pylint: disable=import-outside-toplevel,import-error
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(INPUTS, 16), torch.nn.Tanh(), torch.nn.Linear(16, OUTPUTS))
    x = torch.arange(ROWS * INPUTS, dtype=torch.float32).view(ROWS, INPUTS).sin()
    y = torch.arange(ROWS * OUTPUTS, dtype=torch.float32).view(ROWS, OUTPUTS).cos()
    mine = slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks)
    if kind == "deepspeed":
        from deepspeed.ops.adam import DeepSpeedCPUAdam as AdamW  # pylint: disable=import-outside-toplevel,import-error
    else:
        AdamW = torch.optim.AdamW
    optimizer = AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config={
        "train_batch_size": ROWS, "zero_optimization": {"stage": stage}, "zero_allow_untested_optimizer": True,
        "checkpoint": {"load_universal": what == "load"}})

    def step():
        loss = torch.nn.functional.mse_loss(engine(x[mine]), y[mine])
        whole = loss.detach().clone()
        torch.distributed.all_reduce(whole)
        engine.backward(loss)
        engine.step()
        return float(whole) / ranks

    if what == "make":
        for _ in range(STEPS):
            step()
        engine.save_checkpoint(folder, tag="native")
        if rank == 0:
            subprocess.run([sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--input_folder",
                            os.path.join(folder, "native"), "--output_folder", os.path.join(folder, "universal"),
                            "--inject_missing_state", "--num_extract_workers", "1", "--num_merge_workers", "1"],
                           check=True, stdout=sys.stderr)
    else:
        path, _ = engine.load_checkpoint(folder)
        assert path is not None, folder
    losses = [step() for _ in range(CONTINUED)]
    if rank == 0:
        with open(os.environ["LOSSES"], "w") as f:
            json.dump({"losses": losses, "global_steps": engine.global_steps}, f)


def main():
    what, folder, stage, ranks = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if "RANK" in os.environ:
        rank_main(what, folder, stage, float(sys.argv[5]), sys.argv[6])
        return
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    losses = os.path.join(folder, "losses.json")
    processes = [subprocess.Popen([sys.executable, *sys.argv], stdout=sys.stderr, env={
        **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOSSES": losses,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}) for rank in range(ranks)]
    if any([p.wait() != 0 for p in processes]):  # all of them, also after the first that failed
        sys.exit(1)
    with open(losses) as f:
        print(f.read())


if __name__ == "__main__":
    main()
